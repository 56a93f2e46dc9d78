"""What a trigger may say, and how many members follow from it."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from postbus.v1 import subscriber_pb2

from broker.errors import PostbusError
from broker.services.scaler_trigger import METRIC_MAX, THRESHOLD_MAX, Backlog, Trigger, parse_trigger

GROUP = {"group": "billing"}


def test_only_the_group_is_required_and_the_defaults_are_kedas() -> None:
    """As in KEDA's lag scalers: 10 records a member, none too few to begin with, no idle members."""
    assert parse_trigger(GROUP) == Trigger(
        group="billing",
        topic="",
        lag_threshold=10,
        activation_lag_threshold=0,
        start=subscriber_pb2.LOG_EDGE_EARLIEST,
        allow_idle_consumers=False,
        limit_to_partitions_with_lag=False,
    )


def test_everything_can_be_said() -> None:
    """Booleans and policies in any case; what KEDA reads itself is passed over; an empty text says nothing."""
    said = {
        "scalerAddress": "postbus:7070",
        "enableTLS": "false",
        "topicFromEnv": "orders",
        "lagThreshold": "25",
        "activationLagThreshold": "5",
        "offsetResetPolicy": "Latest",
        "allowIdleConsumers": "TRUE",
        "limitToPartitionsWithLag": "",
    }
    assert parse_trigger(GROUP | said) == Trigger(
        group="billing",
        topic="orders",
        lag_threshold=25,
        activation_lag_threshold=5,
        start=subscriber_pb2.LOG_EDGE_LATEST,
        allow_idle_consumers=True,
    )


@pytest.mark.parametrize(
    ("metadata", "key", "example"),
    [
        ({}, "group", 'group: "billing"'),
        ({"group": ""}, "group", 'group: "billing"'),
        ({"group": "a b"}, "group", 'group: "billing"'),
        ({"group": "x" * 250}, "group", 'group: "billing"'),
        ({**GROUP, "topic": "orders/1"}, "topic", 'topic: "orders"'),
        ({**GROUP, "topicFromEnv": ".."}, "topicFromEnv", 'topic: "orders"'),
        ({**GROUP, "topic": "orders", "topicFromEnv": "orders"}, "'topicFromEnv'", "leave one"),
        ({**GROUP, "lagThreshold": "0"}, "lagThreshold", 'lagThreshold: "10"'),
        ({**GROUP, "lagThreshold": "-1"}, "lagThreshold", 'lagThreshold: "10"'),
        ({**GROUP, "lagThreshold": "1.5"}, "lagThreshold", 'lagThreshold: "10"'),
        ({**GROUP, "lagThreshold": "ten"}, "lagThreshold", 'lagThreshold: "10"'),
        ({**GROUP, "lagThreshold": "٣"}, "lagThreshold", 'lagThreshold: "10"'),
        ({**GROUP, "lagThreshold": "9" * 500}, "lagThreshold", 'lagThreshold: "10"'),
        ({**GROUP, "lagThreshold": str(THRESHOLD_MAX + 1)}, "lagThreshold", 'lagThreshold: "10"'),
        ({**GROUP, "activationLagThreshold": "-1"}, "activationLagThreshold", 'activationLagThreshold: "0"'),
        ({**GROUP, "offsetResetPolicy": "newest"}, "offsetResetPolicy", 'offsetResetPolicy: "latest"'),
        ({**GROUP, "allowIdleConsumers": "yes"}, "allowIdleConsumers", 'allowIdleConsumers: "true"'),
        ({**GROUP, "limitToPartitionsWithLag": "1"}, "limitToPartitionsWithLag", 'limitToPartitionsWithLag: "true"'),
        (
            {**GROUP, "allowIdleConsumers": "true", "limitToPartitionsWithLag": "true"},
            "limitToPartitionsWithLag",
            'limitToPartitionsWithLag: "true"',
        ),
        ({**GROUP, "lagTreshold": "5"}, "'lagTreshold'", 'lagThreshold: "10"'),
        ({**GROUP, "\n" * 5000: "5"}, "'" + "\\n" * 40 + "\\u2026'", 'lagThreshold: "10"'),
    ],
)
def test_what_is_missing_or_wrong_is_named_with_an_example(metadata: dict[str, str], key: str, example: str) -> None:
    """Field path and what to write instead, also for a key that nobody knows."""
    with pytest.raises(PostbusError) as refused:
        parse_trigger(metadata, "scaledObjectRef.scalerMetadata")
    assert refused.value.code.name == "INVALID_ARGUMENT"
    assert refused.value.field == f"scaledObjectRef.scalerMetadata.{key}"
    assert example in refused.value.message
    assert len(refused.value.message) < 500


@pytest.mark.parametrize(("unread", "threshold", "active"), [(0, 0, False), (1, 0, True), (5, 5, False), (6, 5, True)])
def test_more_than_the_activation_threshold_starts_the_first_member(unread: int, threshold: int, active: bool) -> None:
    trigger = Trigger(group="g", activation_lag_threshold=threshold)
    assert trigger.is_active(Backlog(unread=unread, partitions=1, partitions_with_lag=1)) is active


def test_a_place_that_nobody_took_is_worth_one_member() -> None:
    """Whatever the threshold: what is published before somebody took it would not be the group's."""
    trigger = Trigger(group="g", activation_lag_threshold=100, limit_to_partitions_with_lag=True)
    nobody = Backlog(partitions=200, places_open=True)
    assert trigger.is_active(nobody)
    assert replicas(trigger, nobody) == 1


def replicas(trigger: Trigger, backlog: Backlog) -> int:
    """As the autoscaler computes it for a target of type AverageValue."""
    return math.ceil(trigger.metric(backlog) / trigger.lag_threshold)


@given(
    partitions=st.integers(1, 10_000),
    unread=st.integers(0, 2**63 - 1),
    threshold=st.integers(1, THRESHOLD_MAX),
    data=st.data(),
)
def test_never_more_members_than_have_something_to_do(
    partitions: int, unread: int, threshold: int, data: st.DataObject
) -> None:
    """At most one a partition (with lag, if so asked), unless idle ones are allowed; one at least if there is work."""
    with_lag = data.draw(st.integers(min(unread, 1), min(partitions, unread)))
    backlog = Backlog(unread=unread, partitions=partitions, partitions_with_lag=with_lag)
    plain = Trigger(group="g", lag_threshold=threshold)
    assert replicas(plain, backlog) == min(math.ceil(unread / threshold), partitions)
    limited = Trigger(group="g", lag_threshold=threshold, limit_to_partitions_with_lag=True)
    assert replicas(limited, backlog) == min(math.ceil(unread / threshold), with_lag)
    idle = Trigger(group="g", lag_threshold=threshold, allow_idle_consumers=True)
    assert idle.metric(backlog) == min(unread, METRIC_MAX)
    for trigger in (plain, limited, idle):
        assert (trigger.metric(backlog) > 0) == (unread > 0) == trigger.is_active(backlog)
        assert float(trigger.metric(backlog)) == trigger.metric(backlog), "KEDA reads a double"
