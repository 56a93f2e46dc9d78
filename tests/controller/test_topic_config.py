"""What holds for a topic: what was set, else the node's default, and never more than the node's limits."""

import pytest
from google.protobuf import duration_pb2
from postbus.v1 import topic_pb2

from broker import config
from broker.controller.topic_config import (
    FIELDS,
    EffectiveConfig,
    TopicConfig,
    TopicDefaults,
    as_proto,
    check,
    effective,
)

DEFAULTS = TopicDefaults()


def holds(config: TopicConfig, *, replication_factor: int = 1, defaults: TopicDefaults = DEFAULTS) -> EffectiveConfig:
    return effective(config, replication_factor=replication_factor, defaults=defaults)


def test_what_is_not_set_is_the_default() -> None:
    assert holds(TopicConfig()) == EffectiveConfig(
        retention_time_us=7 * 86_400_000_000,
        retention_bytes=None,
        min_insync_replicas=1,
        acks_when_written=False,
        record_bytes_max=2**20,
        batch_bytes_max=3 * 2**20,
        deduplication_window_us=300_000_000,
    )


def test_what_is_set_holds() -> None:
    set_config = TopicConfig(
        retention_time=duration_pb2.Duration(seconds=2, nanos=5000),
        retention_bytes=10,
        min_insync_replicas=3,
        durability=topic_pb2.DURABILITY_REPLICATED,
        max_record_bytes=100,
        max_batch_bytes=200,
        deduplication_window=duration_pb2.Duration(nanos=1000),
    )
    assert holds(set_config, replication_factor=3) == EffectiveConfig(2_000_005, 10, 3, True, 100, 200, 1)


def test_zero_means_never_and_no_limit() -> None:
    set_config = TopicConfig(
        retention_time=duration_pb2.Duration(), retention_bytes=0, deduplication_window=duration_pb2.Duration()
    )
    defaults = TopicDefaults(retention_bytes=7)
    found = holds(set_config, defaults=defaults)
    assert (found.retention_time_us, found.retention_bytes, found.deduplication_window_us) == (None, None, 0)


@pytest.mark.parametrize(("replication_factor", "in_sync"), [(1, 1), (2, 2), (3, 2), (5, 2)])
def test_two_replicas_in_sync_are_needed_or_one_where_there_is_one(replication_factor: int, in_sync: int) -> None:
    assert holds(TopicConfig(), replication_factor=replication_factor).min_insync_replicas == in_sync


def test_a_record_is_never_larger_than_its_batch() -> None:
    assert holds(TopicConfig(max_batch_bytes=500)).record_bytes_max == 500


def test_a_node_with_lower_limits_than_the_topic_s_applies_its_own() -> None:
    """The topic was made when the limits were higher; what passes must still fit the node's messages."""
    found = holds(
        TopicConfig(max_record_bytes=900, max_batch_bytes=1000),
        defaults=TopicDefaults(record_bytes_max=50, batch_bytes_max=100),
    )
    assert (found.record_bytes_max, found.batch_bytes_max) == (50, 100)


@pytest.mark.parametrize(
    "set_config", [TopicConfig(), TopicConfig(retention_time=duration_pb2.Duration(), durability=2, max_record_bytes=9)]
)
def test_the_effective_configuration_says_every_field_and_sets_nothing_else(set_config: TopicConfig) -> None:
    proto = as_proto(holds(set_config))
    assert {field.name for field, _ in proto.ListFields()} | {"retention_bytes", "unclean_leader_election"} == FIELDS
    check(proto, replication_factor=1, defaults=DEFAULTS)
    assert holds(proto) == holds(set_config)


def test_a_node_s_settings_are_the_defaults() -> None:
    flags = {"topic_partitions": "3", "topic_retention_seconds": "off", "deduplication_window_seconds": "1.5s"}
    defaults = TopicDefaults.of(config.load(flags))
    assert (defaults.partition_count, defaults.retention_time_us, defaults.deduplication_window_us) == (
        3,
        None,
        1_500_000,
    )
    assert TopicDefaults.of(config.load()) == TopicDefaults(), "the two sets of defaults agree"
