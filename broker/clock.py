"""Time, as the broker sees it: injected everywhere, so that tests and simulations own it.

`monotonic` is for timeouts, `wall_us` is what users see (append times). Pure modules take neither: they are
given the time with each event.

A wall clock may be wrong, or set while a node runs. By that of one node alone no record, offset or request id may grow
old, or one that is ten years ahead would delete all there is within seconds: `ClusterClock`.
"""

import time
from typing import Final, Protocol

# A wall clock that is off by no more is right.
TOLERANCE_US: Final = 10_000_000


class Clock(Protocol):
    """A source of time."""

    def monotonic(self) -> float:
        """Seconds since some moment; never goes back."""

    def wall_us(self) -> int:
        """Microseconds since 1970 UTC; may jump."""


class SystemClock:
    """The machine's."""

    monotonic = staticmethod(time.monotonic)  # itself: it is asked several times a request

    def wall_us(self) -> int:
        return time.time_ns() // 1000


class ClusterClock:
    """A node's clock, whose wall time is the one on which the cluster's clocks agree.

    While the node's own is near that, it counts as it is. Else what was agreed last counts, carried on by the monotonic
    clock: a clock that jumps changes nothing, not even until the others have been asked.
    """

    def __init__(self, own: Clock) -> None:
        self.ages: Clock = _Ages(self)
        """By which things grow old. Among others (`expect_others`), nothing is old before something was agreed on."""
        self.known = True
        """False: nothing was agreed on yet, and is to be."""
        self._own = own
        self._agreed_us: int | None = None  # less the monotonic clock

    def monotonic(self) -> float:
        """Seconds since some moment; never goes back."""
        return self._own.monotonic()

    def wall_us(self) -> int:
        """Microseconds since 1970 UTC."""
        own_us = self._own.wall_us()
        ahead_us = self._ahead_us(own_us)
        return own_us if abs(ahead_us) <= TOLERANCE_US else own_us - ahead_us

    def own_wall_us(self) -> int:
        """What the node's own wall clock shows."""
        return self._own.wall_us()

    @property
    def wrong_by_s(self) -> int:
        """How far the own wall clock is ahead; 0: it is right."""
        ahead_us = self._ahead_us(self._own.wall_us())
        return 0 if abs(ahead_us) <= TOLERANCE_US else ahead_us // 1_000_000

    def expect_others(self) -> None:
        """The node is one of several."""
        self.known = self._agreed_us is not None

    def agree(self, wall_us: int) -> None:
        """So late it is now."""
        self.known = True
        self._agreed_us = wall_us - round(self._own.monotonic() * 1_000_000)

    def _ahead_us(self, own_us: int) -> int:
        if self._agreed_us is None:
            return 0
        return own_us - self._agreed_us - round(self._own.monotonic() * 1_000_000)


class _Ages:
    def __init__(self, clock: ClusterClock) -> None:
        self._clock = clock

    def monotonic(self) -> float:
        return self._clock.monotonic()

    def wall_us(self) -> int:
        return self._clock.wall_us() if self._clock.known else 0


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
