"""Trouble with other nodes in the log, at a bounded rate: a peer that is away is asked several times a second."""

from typing import Final

import structlog

from broker.clock import Clock

log = structlog.get_logger(__name__)

# Beyond, all is forgotten: many strangers cost some lines, never memory.
KINDS_MAX: Final = 1000


class Troubles:
    """Logs the same trouble with the same peer once in `interval_s`, and then how often it was."""

    def __init__(self, clock: Clock, interval_s: float) -> None:
        self._clock = clock
        self._interval_s = interval_s
        self._told: dict[tuple[str, object, str], tuple[float, int]] = {}

    def tell(self, event: str, peer: object, *, kind: str = "", **fields: object) -> None:
        """`event` with `peer`. The same `kind` of it is the same trouble, whatever the other fields say."""
        key, now = (event, peer, kind), self._clock.monotonic()
        told_at, unsaid = self._told.get(key, (None, 0))
        if told_at is not None and now - told_at < self._interval_s:
            self._told[key] = (told_at, unsaid + 1)
            return
        if len(self._told) >= KINDS_MAX:
            self._told.clear()
        self._told[key] = (now, 0)
        said = {name: value for name, value in {"kind": kind, **fields}.items() if value not in ("", None)}
        log.warning(event, peer=peer, **said, **({"times_since": unsaid} if unsaid else {}))

    def over(self, event: str, peer: object, *, kind: str = "") -> None:
        """It is well again: the next time is told at once."""
        self._told.pop((event, peer, kind), None)
