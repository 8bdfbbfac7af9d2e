"""The registry as a pool has followed it so far: what changed since it last looked, and which voices it has taken over.

A voice takes over once it was loaded, or could not be: until then its persona speaks as before.
"""

from __future__ import annotations

import structlog

from personas.errors import PersonabotError
from personas.registry import VOICES_FILE, Registry
from personas.voices import Given, given_voices
from worker.presence import Presence

log = structlog.get_logger(__name__)


class Following:
    """What one pool knows of the registry. `voices` are in force."""

    def __init__(self, registry: Registry, presence: Presence) -> None:
        self._registry = registry
        self._presence = presence
        self._stamp = registry.stamp()
        self.voices: Given = {}
        self.voices = self._given()

    def look(self) -> Given | None:
        """Return the voices that are given now; None if nothing was promoted, chosen or given since the last look."""
        before, self._stamp = self._stamp, self._registry.stamp()
        return self._given() if before != self._stamp else None

    def new_in(self, voices: Given) -> list[str]:
        """Return the names that a persona is to speak with, and does not yet."""
        return [name for key, name in voices.items() if self.voices.get(key) != name]

    def take_over(self, voices: Given) -> frozenset[str]:
        """Let personas speak with these voices from the next request on; return the names that none was left with."""
        if voices == self.voices:
            return frozenset()
        former = frozenset(self.voices.values()).difference(voices.values())
        self.voices = voices
        log.info("voices", given=dict(voices))
        return former

    def _given(self) -> Given:
        """Return who was given which voice; where that can't be read, what was known."""
        try:
            return given_voices(self._registry)
        except (PersonabotError, OSError) as error:
            self._presence.failed(VOICES_FILE, str(error))
            return self.voices
