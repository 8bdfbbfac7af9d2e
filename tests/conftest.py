"""Fixtures that every room's tests may ask for."""

from tests.helpers.cli import home, tiny_model
from tests.helpers.redis_server import embedded_server, redis_client, redis_server

__all__ = ["embedded_server", "home", "redis_client", "redis_server", "tiny_model"]
