"""Seconds of each step of a detector."""

from __future__ import annotations

import time
from collections.abc import Callable


class Clock:
    """Says what each step found, and adds up its seconds by step.

    Attributes:
        seconds: of each step so far, over its repetitions.
    """

    def __init__(self, name: str, say: Callable[[str], None]) -> None:
        """Start for a detector's name; `say` receives a line for each step."""
        self.seconds: dict[str, float] = {}
        self._name, self._say, self._begin = name, say, time.perf_counter()

    def lap(self, step: str, found: str) -> None:
        """End a step, with what it found in words."""
        now = time.perf_counter()
        taken = now - self._begin
        self.seconds[step] = round(self.seconds.get(step, 0.0) + taken, 2)
        self._begin = now
        self._say(f"{self._name}: {step}: {found} ({taken:.0f} s)")
