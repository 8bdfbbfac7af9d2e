"""Fixtures that every room's tests may ask for."""

from tests.helpers.redis_server import embedded_server, redis_client, redis_server

__all__ = ["embedded_server", "redis_client", "redis_server"]
