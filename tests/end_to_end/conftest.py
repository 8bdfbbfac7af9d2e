"""Fixtures of the end-to-end tests."""

from tests.helpers.cli import home, tiny_model

__all__ = ["home", "tiny_model"]
