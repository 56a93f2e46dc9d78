"""What a ScaledObject's trigger asks for, and the arithmetic that follows from it. Pure: no I/O, no clock.

Keys and defaults are those of KEDA's own lag scalers, so that a trigger for another bus reads the same here. A key that
nobody knows is refused: a misspelt `lagThreshold` would otherwise scale by the default, and nobody would see why.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

from postbus.v1 import subscriber_pb2

from broker import errors
from broker.controller import names
from broker.errors import PostbusError

T = TypeVar("T")

LAG_THRESHOLD_DEFAULT: Final = 10
# Times the partitions of a bus it stays far below what KEDA's 64 bits and a double hold.
THRESHOLD_MAX: Final = 10**9
METRIC_MAX: Final = 10**15
_INTEGER: Final = re.compile(r"[0-9]{1,18}")
# What KEDA itself reads of a trigger, and sends along.
_KEDAS_OWN: Final = frozenset(
    {"scalerAddress", "enableTLS", "unsafeSsl", "tlsCertFile", "caCert", "tlsClientCert", "tlsClientKey"}
)
_FROM_ENV: Final = "FromEnv"
_RESETS: Final[Mapping[str, subscriber_pb2.LogEdge]] = {
    "earliest": subscriber_pb2.LOG_EDGE_EARLIEST,
    "latest": subscriber_pb2.LOG_EDGE_LATEST,
}


@dataclass(frozen=True, slots=True)
class Backlog:
    """What a group has not done yet.

    unread: records that are not committed. places_open: the group has partitions without a place, where it will start
    at the end: nothing in them is behind, but what comes is not its own before a member has taken the place.
    """

    unread: int = 0
    partitions: int = 0
    partitions_with_lag: int = 0
    places_open: bool = False


@dataclass(frozen=True, slots=True)
class Trigger:
    """A checked trigger. topic: empty: all that the group reads. start: where its members start, as they say."""

    group: str
    topic: str = ""
    lag_threshold: int = LAG_THRESHOLD_DEFAULT
    activation_lag_threshold: int = 0
    start: subscriber_pb2.LogEdge = subscriber_pb2.LOG_EDGE_EARLIEST
    allow_idle_consumers: bool = False
    limit_to_partitions_with_lag: bool = False

    @property
    def metric_name(self) -> str:
        """Safe in the paths of Kubernetes' API, as names of groups and topics are."""
        return f"postbus-{self.group}-{self.topic}" if self.topic else f"postbus-{self.group}"

    def is_active(self, backlog: Backlog) -> bool:
        """Whether there should be a member at all."""
        return backlog.places_open or backlog.unread > self.activation_lag_threshold

    def metric(self, backlog: Backlog) -> int:
        """Divided by the threshold and rounded up: how many members could use it.

        More members than partitions would have nothing to do.
        """
        wanted = max(backlog.unread, int(backlog.places_open))
        if not self.allow_idle_consumers:
            busy = backlog.partitions_with_lag if self.limit_to_partitions_with_lag else backlog.partitions
            wanted = min(wanted, max(busy, int(backlog.places_open)) * self.lag_threshold)
        return min(wanted, METRIC_MAX)


def parse_trigger(metadata: Mapping[str, str], path: str = "scalerMetadata") -> Trigger:
    """Raises INVALID_FIELD with the path of the key and an example of what it may be."""
    given = _Metadata(metadata, path)
    trigger = Trigger(
        group=given.read("group", _name, example="billing"),
        topic=given.read("topic", _name, example="orders", default=""),
        lag_threshold=given.read("lagThreshold", _positive, example="10", default=LAG_THRESHOLD_DEFAULT),
        activation_lag_threshold=given.read("activationLagThreshold", _integer, example="0", default=0),
        start=given.read("offsetResetPolicy", _reset, example="latest", default=subscriber_pb2.LOG_EDGE_EARLIEST),
        allow_idle_consumers=given.read("allowIdleConsumers", _boolean, example="true", default=False),
        limit_to_partitions_with_lag=given.read("limitToPartitionsWithLag", _boolean, example="true", default=False),
    )
    given.refuse_others()
    if trigger.allow_idle_consumers and trigger.limit_to_partitions_with_lag:
        raise errors.invalid_field(
            f"{path}.limitToPartitionsWithLag",
            'contradicts allowIdleConsumers: say at most one of them, for example limitToPartitionsWithLag: "true"',
        )
    return trigger


class _Metadata:
    """Keys as KEDA sends them, each read once. One that it took from the Deployment's environment is `…FromEnv`."""

    def __init__(self, metadata: Mapping[str, str], path: str) -> None:
        self._path = path
        self._left: dict[str, tuple[str, str]] = {}  # name: the key as it was sent, the value
        for key in sorted(metadata):
            name = key.removesuffix(_FROM_ENV)
            if name in self._left:
                raise errors.invalid_field(f"{path}.{_shown(key)}", f"says again what {name} says: leave one of them")
            self._left[name] = (key, metadata[key])

    def read(self, name: str, check: Callable[[str], T], *, example: str, default: T | None = None) -> T:
        """Its value; an empty text says nothing. Without a default it has to be there."""
        hint = f'; for example {name}: "{example}"'
        key, text = self._left.pop(name, (name, ""))
        path = f"{self._path}.{key}"
        if not text:
            if default is None:
                raise errors.invalid_field(path, f"is required{hint}")
            return default
        try:
            return check(text)
        except ValueError as error:
            raise errors.invalid_field(path, f"{_shown(text)} {error}{hint}") from None

    def refuse_others(self) -> None:
        """Raises for what nobody read."""
        for name, (key, _) in self._left.items():
            if name not in _KEDAS_OWN:
                raise errors.unknown_field(
                    f"{self._path}.{_shown(key)}",
                    "no key that this broker knows: those are group, topic, lagThreshold, activationLagThreshold,"
                    " offsetResetPolicy, allowIdleConsumers and limitToPartitionsWithLag;"
                    ' for example lagThreshold: "10"',
                )


def _name(text: str) -> str:
    try:
        names.check_name("", text)
    except PostbusError as error:
        raise ValueError(f"can not be its name ({error.message.removeprefix(': ')})") from None
    return text


def _integer(text: str) -> int:
    if not _INTEGER.fullmatch(text) or int(text) > THRESHOLD_MAX:
        raise ValueError(f"is not a whole number from 0 to {THRESHOLD_MAX}")
    return int(text)


def _positive(text: str) -> int:
    if not _INTEGER.fullmatch(text) or not 0 < int(text) <= THRESHOLD_MAX:
        raise ValueError(f"is not a whole number from 1 to {THRESHOLD_MAX}")
    return int(text)


def _boolean(text: str) -> bool:
    known = {"true": True, "false": False}
    if text.lower() not in known:
        raise ValueError("is neither true nor false")
    return known[text.lower()]


def _reset(text: str) -> subscriber_pb2.LogEdge:
    if text.lower() not in _RESETS:
        raise ValueError("is neither earliest nor latest")
    return _RESETS[text.lower()]


def _shown(text: str) -> str:
    return ascii(text if len(text) <= 40 else text[:40] + "…")
