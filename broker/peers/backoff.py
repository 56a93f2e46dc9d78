"""How long to wait before connecting again: soon at first, twice as long after each failure, within a bound."""

from random import Random

DELAY_MIN_S = 0.05
DELAY_MAX_S = 1.0


class Backoff:
    """The waits of one connection. With `random`, spread so that nodes do not come all at once."""

    __slots__ = ("_delay_max_s", "_delay_min_s", "_failures", "_random")

    def __init__(
        self, random: Random | None = None, *, delay_min_s: float = DELAY_MIN_S, delay_max_s: float = DELAY_MAX_S
    ) -> None:
        self._random = random
        self._delay_min_s = delay_min_s
        self._delay_max_s = delay_max_s
        self._failures = 0

    def failed(self) -> float:
        """Seconds to wait now."""
        # Past any bound that makes sense, and never a number too large for a float.
        delay_s = min(self._delay_max_s, self._delay_min_s * float(1 << min(self._failures, 30)))
        self._failures += 1
        return delay_s if self._random is None else delay_s * self._random.uniform(0.6, 1.0)

    def worked(self) -> None:
        """The next failure is a first one again."""
        self._failures = 0
