"""Probes: when one counts as passed or failed, and how long a container waits before it is started again. Pure."""

from dataclasses import dataclass
from typing import Any

BACK_OFF_S = 10.0
BACK_OFF_MAX_S = 300.0
BACK_OFF_FORGET_S = 600.0


@dataclass(slots=True)
class ProbeCount:
    """Results in a row of one probe. `passing` is None until it is known."""

    success_threshold: int = 1
    failure_threshold: int = 3
    passing: bool | None = None
    _successes: int = 0
    _failures: int = 0

    @classmethod
    def of(cls, probe: dict[str, Any], *, passing: bool | None = None) -> "ProbeCount":
        return cls(probe.get("successThreshold", 1), probe.get("failureThreshold", 3), passing)

    def note(self, ok: bool) -> bool:
        """One result; whether `passing` is another than before."""
        before = self.passing
        self._successes, self._failures = (self._successes + 1, 0) if ok else (0, self._failures + 1)
        if self._successes >= self.success_threshold:
            self.passing = True
        elif self._failures >= self.failure_threshold:
            self.passing = False
        return self.passing is not before


@dataclass(slots=True)
class BackOff:
    """How long to wait before the next start: nothing the first time, then longer and longer."""

    base_s: float = BACK_OFF_S
    restarts: int = 0

    def after(self, ran_s: float) -> float:
        """The container ended after so long."""
        if ran_s > BACK_OFF_FORGET_S:
            self.restarts = 0
        self.restarts += 1
        return 0.0 if self.restarts == 1 else min(BACK_OFF_MAX_S, self.base_s * 2.0 ** (self.restarts - 2))


def port_of(container: dict[str, Any], port: int | str) -> int:
    """A probe's port, which may be the name of one of the container's."""
    if isinstance(port, int):
        return port
    if port.isdecimal():
        return int(port)
    return next(int(one["containerPort"]) for one in container.get("ports", ()) if one.get("name") == port)
