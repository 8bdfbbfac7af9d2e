"""Fixtures that every room's tests may ask for, and how property tests are drawn."""

import os

# Before anything imports torch: of several test processes, each would take all cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from hypothesis import settings

from tests.helpers.cli import home, tiny_model
from tests.helpers.redis_server import embedded_server, redis_client, redis_server

__all__ = ["embedded_server", "home", "redis_client", "redis_server", "tiny_model"]

# The suite is the same every time; HYPOTHESIS_PROFILE=explore looks for new counterexamples instead.
settings.register_profile("steady", derandomize=True, deadline=None)
settings.register_profile("explore", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "steady"))
