"""Settings of a group as the public API has them: what may be set, how a change is applied, what then holds."""

from collections.abc import Sequence

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from postbus.v1 import group_pb2, subscriber_pb2

from broker import errors
from broker.errors import PostbusError, Reason
from broker.groups.driver import CoordinatorSettings

_SHARED_ONLY = ("lease_time", "max_deliveries", "dead_letter_topic", "min_retry_delay", "max_retry_delay")
_YEAR_S = 366 * 24 * 3600
# Field, longest in seconds, whether zero means something.
_DURATIONS = (
    ("max_processing_timeout", 7 * 24 * 3600, False),
    ("offset_retention", 100 * _YEAR_S, True),
    ("static_member_timeout", 24 * 3600, True),
)


def check_config(config: group_pb2.GroupConfig, *, field: str = "config") -> None:
    """Raises UNKNOWN_FIELD for what comes with shared groups, INVALID_FIELD for values that can't be."""
    if config.kind == subscriber_pb2.GROUP_KIND_SHARED:
        raise errors.unknown_field(f"{field}.kind", "shared groups come in a later version; use GROUP_KIND_ORDERED")
    for name in _SHARED_ONLY:
        if _is_set(config, name):
            raise errors.unknown_field(f"{field}.{name}", "belongs to shared groups, which come in a later version")
    for name, seconds_max, zero_allowed in _DURATIONS:
        if config.HasField(name):
            _check_duration(f"{field}.{name}", getattr(config, name), seconds_max=seconds_max, zero=zero_allowed)


def changed_config(
    before: group_pb2.GroupConfig, changes: group_pb2.GroupConfig, paths: Sequence[str]
) -> group_pb2.GroupConfig:
    """`before` with the fields of `changes` that `paths` name (empty: those that are set); raises INVALID_FIELD."""
    after = group_pb2.GroupConfig()
    after.CopyFrom(before)
    for path in paths or [descriptor.name for descriptor, _ in changes.ListFields()]:
        if path not in group_pb2.GroupConfig.DESCRIPTOR.fields_by_name:
            raise errors.invalid_field("update_mask", f"{path!r} is not a field of GroupConfig")
        if path == "kind":
            if changes.kind not in (subscriber_pb2.GROUP_KIND_UNSPECIFIED, before.kind or _ORDERED):
                raise errors.invalid_field("config.kind", "is fixed at creation")
            continue
        after.ClearField(path)
        if _is_set(changes, path):
            value = getattr(changes, path)
            if isinstance(value, Message):
                getattr(after, path).CopyFrom(value)
            else:
                setattr(after, path, value)
    return after


_ORDERED = subscriber_pb2.GROUP_KIND_ORDERED


def effective_config(config: group_pb2.GroupConfig, settings: CoordinatorSettings) -> group_pb2.GroupConfig:
    """What holds, defaults filled in."""
    effective = group_pb2.GroupConfig()
    effective.CopyFrom(config)
    effective.kind = config.kind or _ORDERED
    if not config.HasField("max_processing_timeout"):
        effective.max_processing_timeout.FromMilliseconds(settings.processing_timeout_ms_max)
    if not config.HasField("offset_retention"):
        effective.offset_retention.FromMicroseconds(settings.offset_retention_us or 0)
    if not config.HasField("static_member_timeout"):
        effective.static_member_timeout.FromMilliseconds(settings.static_member_timeout_ms)
    return effective


def check_kind(name: str, kind: int, wanted: int) -> None:
    """Raises GROUP_KIND_MISMATCH; `wanted` unspecified is any."""
    if wanted not in (subscriber_pb2.GROUP_KIND_UNSPECIFIED, kind):
        raise PostbusError(
            Reason.ERROR_REASON_GROUP_KIND_MISMATCH,
            f"group {name!r} is of kind {subscriber_pb2.GroupKind.Name(kind)}",
            resource=("group", name),
            metadata={"kind": subscriber_pb2.GroupKind.Name(kind)},
        )


def _is_set(config: group_pb2.GroupConfig, name: str) -> bool:
    return any(descriptor.name == name for descriptor, _ in config.ListFields())


def _check_duration(field: str, duration: Duration, *, seconds_max: int, zero: bool) -> None:
    if duration.seconds < 0 or duration.nanos < 0 or (not zero and duration.seconds == 0 and duration.nanos == 0):
        raise errors.invalid_field(field, "must be positive" if not zero else "is negative")
    if duration.nanos >= 1_000_000_000 or duration.seconds > seconds_max:
        raise errors.invalid_field(field, f"is longer than {seconds_max} s")
