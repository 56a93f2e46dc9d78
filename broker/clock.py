"""Time, as the broker sees it: injected everywhere, so that tests and simulations own it.

`monotonic` is for timeouts, `wall_us` is what users see (append times). Pure modules take neither: they are
given the time with each event.
"""

import time
from typing import Protocol


class Clock(Protocol):
    """A source of time."""

    def monotonic(self) -> float:
        """Seconds since some moment; never goes back."""

    def wall_us(self) -> int:
        """Microseconds since 1970 UTC; may jump."""


class SystemClock:
    """The machine's."""

    def monotonic(self) -> float:
        return time.monotonic()

    def wall_us(self) -> int:
        return time.time_ns() // 1000


class ManualClock:
    """Stands still until a test moves it."""

    def __init__(self, *, monotonic: float = 1000.0, wall_us: int = 1_750_000_000_000_000) -> None:
        self._monotonic = monotonic
        self._wall_us = wall_us

    def monotonic(self) -> float:
        return self._monotonic

    def wall_us(self) -> int:
        return self._wall_us

    def advance(self, seconds: float) -> None:
        """Moves both, forwards."""
        assert seconds >= 0
        self._monotonic += seconds
        self._wall_us += round(seconds * 1_000_000)
