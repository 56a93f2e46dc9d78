"""Settings of a topic: what may be set, what was set, and what holds.

What was set is stored as it came (a serialised `postbus.v1.TopicConfig`); what holds is computed from that and the
node's defaults, so that a changed default takes effect without rewriting topics. Pure.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from google.protobuf import duration_pb2
from postbus.v1 import topic_pb2

from broker.errors import invalid_field, unknown_field

if TYPE_CHECKING:  # pydantic is slow to import, and only `serve` needs it
    from broker.config import Settings

TopicConfig = topic_pb2.TopicConfig

US_PER_SECOND: Final = 1_000_000
RETENTION_TIME_US_MAX: Final = 100 * 366 * 86_400 * US_PER_SECOND  # a hundred years: longer is 0, for ever
RETENTION_TIME_US_MIN: Final = 1_000
DEDUPLICATION_WINDOW_US_MAX: Final = 7 * 86_400 * US_PER_SECOND

_COMPACTING: Final = (topic_pb2.CLEANUP_POLICY_COMPACT, topic_pb2.CLEANUP_POLICY_COMPACT_AND_DELETE)
FIELDS: Final = frozenset(field.name for field in TopicConfig.DESCRIPTOR.fields)


@dataclass(frozen=True, slots=True)
class TopicDefaults:
    """What holds for a topic that does not say, and the limits that it may only lower."""

    partition_count: int = 6
    replication_factor: int = 3  # or as many as there are nodes
    retention_time_us: int | None = 7 * 86_400 * US_PER_SECOND  # None: for ever
    retention_bytes: int | None = None  # None: no limit
    deduplication_window_us: int = 300 * US_PER_SECOND
    record_bytes_max: int = 2**20
    batch_bytes_max: int = 3 * 2**20

    @classmethod
    def of(cls, settings: "Settings") -> "TopicDefaults":
        """Those that a node was configured with."""
        retention = settings.topic_retention_seconds
        return cls(
            partition_count=settings.topic_partitions,
            replication_factor=settings.topic_replication_factor,
            retention_time_us=None if retention is None else round(retention * US_PER_SECOND),
            retention_bytes=settings.topic_retention_bytes,
            deduplication_window_us=round(settings.deduplication_window_seconds * US_PER_SECOND),
            record_bytes_max=settings.record_bytes_max,
            batch_bytes_max=settings.batch_bytes_max,
        )


@dataclass(frozen=True, slots=True)
class EffectiveConfig:
    """What holds for a topic."""

    retention_time_us: int | None  # None: for ever
    retention_bytes: int | None  # of a partition; None: no limit
    min_insync_replicas: int
    acks_when_written: bool  # durability REPLICATED: acknowledge once in the page cache
    record_bytes_max: int
    batch_bytes_max: int
    deduplication_window_us: int  # 0: request ids are not remembered
    compacts: bool = False  # of the records with one key, only the latest stays
    unclean_leader_election: bool = False  # a replica that lacks records may lead when no other can


def effective(config: TopicConfig, *, replication_factor: int, defaults: TopicDefaults) -> EffectiveConfig:
    """What holds for a topic with this `config`."""
    batch_bytes_max = defaults.batch_bytes_max
    if config.HasField("max_batch_bytes"):
        batch_bytes_max = min(batch_bytes_max, config.max_batch_bytes)
    # A node may be started with lower limits than when the topic was made: the lower one holds.
    record_bytes_max = min(defaults.record_bytes_max, batch_bytes_max)
    if config.HasField("max_record_bytes"):
        record_bytes_max = min(record_bytes_max, config.max_record_bytes)
    retention_time_us, retention_bytes = defaults.retention_time_us, defaults.retention_bytes
    if config.HasField("retention_time"):
        retention_time_us = _microseconds(config.retention_time) or None
    if config.HasField("retention_bytes"):
        retention_bytes = config.retention_bytes or None
    deduplication_window_us = defaults.deduplication_window_us
    if config.HasField("deduplication_window"):
        deduplication_window_us = _microseconds(config.deduplication_window)
    if config.cleanup_policy == topic_pb2.CLEANUP_POLICY_COMPACT:
        retention_time_us = retention_bytes = None  # nothing goes for its age or size
    return EffectiveConfig(
        retention_time_us=retention_time_us,
        retention_bytes=retention_bytes,
        min_insync_replicas=min_insync_replicas(config, replication_factor=replication_factor),
        acks_when_written=config.durability == topic_pb2.DURABILITY_REPLICATED,
        record_bytes_max=record_bytes_max,
        batch_bytes_max=batch_bytes_max,
        deduplication_window_us=deduplication_window_us,
        compacts=config.cleanup_policy in _COMPACTING,
        unclean_leader_election=config.unclean_leader_election,
    )


def min_insync_replicas(config: TopicConfig, *, replication_factor: int) -> int:
    """How many must be in sync for anything to be acknowledged."""
    return config.min_insync_replicas if config.HasField("min_insync_replicas") else min(2, replication_factor)


def as_proto(config: EffectiveConfig) -> TopicConfig:
    """The same for `Topic.effective_config`: every field is set."""
    return TopicConfig(
        retention_time=_duration(config.retention_time_us or 0),
        retention_bytes=config.retention_bytes or 0,
        cleanup_policy=_cleanup_policy(config),
        min_insync_replicas=config.min_insync_replicas,
        durability=topic_pb2.DURABILITY_REPLICATED if config.acks_when_written else topic_pb2.DURABILITY_FSYNCED,
        max_record_bytes=config.record_bytes_max,
        max_batch_bytes=config.batch_bytes_max,
        deduplication_window=_duration(config.deduplication_window_us),
        unclean_leader_election=config.unclean_leader_election,
    )


def _cleanup_policy(config: EffectiveConfig) -> topic_pb2.CleanupPolicy:
    if not config.compacts:
        return topic_pb2.CLEANUP_POLICY_DELETE
    if config.retention_time_us is None and config.retention_bytes is None:
        return topic_pb2.CLEANUP_POLICY_COMPACT
    return topic_pb2.CLEANUP_POLICY_COMPACT_AND_DELETE


def check(config: TopicConfig, *, replication_factor: int, defaults: TopicDefaults) -> None:
    """Refuses, by the field's name, what can't hold or is not built yet."""
    _check_duration("config.retention_time", config, least_us=RETENTION_TIME_US_MIN, most_us=RETENTION_TIME_US_MAX)
    _check_duration("config.deduplication_window", config, least_us=0, most_us=DEDUPLICATION_WINDOW_US_MAX)
    if config.retention_bytes < 0:
        raise invalid_field("config.retention_bytes", f"0 (no limit) or more, not {config.retention_bytes}")
    if config.cleanup_policy not in topic_pb2.CleanupPolicy.values():
        raise unknown_field("config.cleanup_policy", f"there is no value {config.cleanup_policy}")
    if config.HasField("min_insync_replicas") and not 1 <= config.min_insync_replicas <= replication_factor:
        raise invalid_field(
            "config.min_insync_replicas",
            f"1 to the replication factor, which is {replication_factor}, not {config.min_insync_replicas}",
        )
    if config.durability not in topic_pb2.Durability.values():
        raise unknown_field("config.durability", f"there is no value {config.durability}")
    _check_limit("config.max_batch_bytes", config, most=defaults.batch_bytes_max, setting="batch-bytes-max")
    _check_limit("config.max_record_bytes", config, most=defaults.record_bytes_max, setting="record-bytes-max")
    if config.HasField("max_record_bytes"):
        batch_bytes_max = config.max_batch_bytes if config.HasField("max_batch_bytes") else defaults.batch_bytes_max
        if config.max_record_bytes > batch_bytes_max:
            raise invalid_field(
                "config.max_record_bytes", f"at most max_batch_bytes, {batch_bytes_max}, not {config.max_record_bytes}"
            )


def merge(current: TopicConfig, changes: TopicConfig, *, fields: Iterable[str]) -> TopicConfig:
    """`current` with `fields` as they are in `changes`: set, or unset and so back to the default."""
    merged = TopicConfig()
    merged.CopyFrom(current)
    for field in fields:
        merged.ClearField(field)
        picked = TopicConfig()
        picked.CopyFrom(changes)
        for other in FIELDS - {field}:
            picked.ClearField(other)
        merged.MergeFrom(picked)
    return merged


def _check_duration(path: str, config: TopicConfig, *, least_us: int, most_us: int) -> None:
    """0 is always allowed: it says never, or not at all."""
    name = path.rpartition(".")[2]
    if not config.HasField(name):
        return
    duration: duration_pb2.Duration = getattr(config, name)
    # Both parts bear the same sign; more nanoseconds than a second holds are no duration.
    if duration.seconds < 0 or not 0 <= duration.nanos < 1_000_000_000:
        raise invalid_field(path, "a duration of 0 or more")
    microseconds = _microseconds(duration)
    if (duration.seconds or duration.nanos) and not least_us <= microseconds <= most_us:
        raise invalid_field(
            path,
            f"0, or from {least_us / US_PER_SECOND:g} s to {most_us // US_PER_SECOND} s, "
            f"not {duration.seconds + duration.nanos / 1e9:g} s",
        )


def _check_limit(path: str, config: TopicConfig, *, most: int, setting: str) -> None:
    name = path.rpartition(".")[2]
    if not config.HasField(name):
        return
    value = getattr(config, name)
    if not 1 <= value <= most:
        raise invalid_field(path, f"1 to {most} (the node's {setting}), not {value}")


def _microseconds(duration: duration_pb2.Duration) -> int:
    return duration.seconds * US_PER_SECOND + duration.nanos // 1000


def _duration(microseconds: int) -> duration_pb2.Duration:
    seconds, rest = divmod(microseconds, US_PER_SECOND)
    return duration_pb2.Duration(seconds=seconds, nanos=rest * 1000)
