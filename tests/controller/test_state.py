"""The image follows from the records alone, by whichever way it was reached."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from images import RULES, joined, log_ids, register, started
from postbus.v1 import topic_pb2

from broker.controller.commands import (
    AddPartitions,
    Command,
    CreateCluster,
    CreateTopic,
    DeleteTopic,
    FenceNodes,
    RaiseProducerEpoch,
    ReserveProducerIds,
    SetThrottle,
    UpdateTopic,
)
from broker.controller.decisions import decide
from broker.controller.image import apply, from_snapshot, to_snapshot
from broker.controller.state import ClusterState, MetadataError, NodeState, PartitionState, Topic, difference
from broker.errors import PostbusError
from broker.stubs.metadata_log_pb2 import (
    MetadataEntry,
    MetadataRecord,
    MetadataSnapshot,
    NodeChanged,
    NodeRemoved,
    PartitionChanged,
    TopicChanged,
    TopicDeleted,
)

NAMES = st.sampled_from(["a", "b", "c", "d"])
CONFIGS = st.builds(topic_pb2.TopicConfig, retention_bytes=st.none() | st.integers(-1, 5))
LABELS = st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=3)
COMMANDS: st.SearchStrategy[Command] = st.one_of(
    st.builds(
        CreateTopic,
        name=NAMES,
        topic_id=st.uuids().map(str),
        now_us=st.integers(0, 2**50),
        partition_count=st.integers(0, 8),
        config=CONFIGS,
        labels=LABELS,
    ),
    st.builds(
        UpdateTopic,
        name=NAMES,
        paths=st.sampled_from([("labels",), ("config",), ("labels", "config.retention_bytes")]),
        config=CONFIGS,
        labels=LABELS,
    ),
    st.builds(AddPartitions, name=NAMES, partition_count=st.integers(1, 12)),
    st.builds(DeleteTopic, name=NAMES),
    st.builds(ReserveProducerIds, count=st.integers(1, 1000)),
    st.builds(RaiseProducerEpoch, producer_id=st.integers(0, 5), epoch=st.integers(0, 2)),
    st.builds(SetThrottle, bytes_per_s=st.integers(0, 9)),
    st.builds(FenceNodes, node_ids=st.sets(st.integers(1, 3)).map(tuple)),
    st.builds(register, st.integers(1, 4), store_id=st.sampled_from(["", "new"])),
    st.builds(CreateCluster, cluster_id=st.sampled_from(["x", "y"]), now_us=st.integers(0, 2**50)),
)


def decided(commands: list[Command]) -> tuple[ClusterState, list[bytes], set[int]]:
    """The image, the entries as stored, and every log id ever given; checks what always holds on the way."""
    state = joined(1, 2, 3)
    stored: list[bytes] = []
    used: set[int] = set()
    for command in commands:
        try:
            records = decide(state, command, rules=RULES).records
        except PostbusError:
            continue
        if not records:
            continue
        before = state
        state = apply(state, records, index=state.index + 1)
        stored.append(MetadataEntry(records=records).SerializeToString())
        new = set(log_ids(state)) - set(log_ids(before))
        assert not new & used, "a log id was used twice"
        used |= new
        assert state.next_producer_id >= before.next_producer_id
        assert state.next_log_id > max(used, default=0)
        assert state.partition_count == len(log_ids(state)) == len(set(log_ids(state)))
        assert state.topic_names == {topic.topic_id: name for name, topic in state.topics.items()}
    return state, stored, used


def replay(state: ClusterState, stored: list[bytes]) -> ClusterState:
    for entry in stored:
        state = apply(state, MetadataEntry.FromString(entry).records, index=state.index + 1)
    return state


@settings(max_examples=150, deadline=None)
@given(st.lists(COMMANDS, max_size=25), st.data())
def test_replaying_the_records_or_a_snapshot_and_the_rest_gives_the_same_image(
    commands: list[Command], data: st.DataObject
) -> None:
    state, stored, used = decided(commands)
    assert replay(joined(1, 2, 3), stored) == state
    cut = data.draw(st.integers(0, len(stored)))
    snapshot = to_snapshot(replay(joined(1, 2, 3), stored[:cut])).SerializeToString()
    image = replay(from_snapshot(MetadataSnapshot.FromString(snapshot)), stored[cut:])
    assert image == state
    assert [topic.etag for topic in image.topics.values()] == [topic.etag for topic in state.topics.values()]
    # Also what comes after a snapshot never meets a log that was there before it.
    image = started(image, 1)
    create = CreateTopic(name="new", topic_id="new", now_us=0, replication_factor=1)
    (created,) = decide(image, create, rules=RULES).records
    assert not {partition.log_id for partition in created.topic_created.partitions} & used


@settings(max_examples=60, deadline=None)
@given(st.lists(COMMANDS, max_size=12), st.lists(COMMANDS, max_size=12))
def test_following_the_difference_gives_the_new_image(first: list[Command], then: list[Command]) -> None:
    old, _, _ = decided(first)
    new, _, _ = decided(first + then)
    change = difference(old, new)
    followed = {topic.topic_id: topic for topic in old.topics.values()}
    for topic in change.deleted:
        del followed[topic.topic_id]
    for before, after in change.changed:
        assert followed[before.topic_id] == before != after
        followed[after.topic_id] = replace(after, partitions=before.partitions)
    for moved in change.partitions:
        assert moved.before != moved.after
        followed[moved.topic.topic_id] = with_partition(followed[moved.topic.topic_id], moved.number, moved.after)
    for topic in change.created:
        assert topic.topic_id not in followed
        followed[topic.topic_id] = topic
    assert followed == {topic.topic_id: topic for topic in new.topics.values()}
    nodes: dict[int, NodeState] = dict(old.nodes)
    for was, node in change.nodes:
        known = node or was
        assert known is not None and nodes.pop(known.node_id, None) == was
        if node is not None:
            nodes[node.node_id] = node
    assert nodes == dict(new.nodes)


def with_partition(topic: Topic, number: int, state: PartitionState) -> Topic:
    return replace(topic, partitions=(*topic.partitions[:number], state, *topic.partitions[number + 1 :]))


def test_a_topic_replaced_by_another_of_its_name_is_deleted_and_created() -> None:
    def topic(topic_id: str) -> CreateTopic:
        return CreateTopic(name="a", topic_id=topic_id, now_us=0)

    old, _, _ = decided([topic("first")])
    new, _, _ = decided([topic("first"), DeleteTopic(name="a"), topic("second")])
    change = difference(old, new)
    assert [topic.topic_id for topic in change.deleted] == ["first"]
    assert [topic.topic_id for topic in change.created] == ["second"]
    assert not change.changed


@pytest.mark.parametrize(
    "record",
    [
        MetadataRecord(),
        MetadataRecord(topic_deleted=TopicDeleted(topic_id="nothing")),
        MetadataRecord(topic_changed=TopicChanged(topic_id="nothing")),
        MetadataRecord(partition_changed=PartitionChanged(topic_id="nothing")),
        MetadataRecord(node_changed=NodeChanged(node_id=1)),
        MetadataRecord(node_removed=NodeRemoved(node_id=1)),
        # As a newer version might write: a field that is none of ours.
        MetadataRecord.FromString(b"\xfa\x3f\x00"),
    ],
)
def test_a_record_that_makes_no_sense_stops_the_node(record: Any) -> None:
    """Going on without it would make an image that no other node has."""
    with pytest.raises(MetadataError, match="metadata entry 1 "):
        apply(ClusterState(), [record], index=1)


def test_an_image_is_not_changed_by_what_comes_after_it() -> None:
    before, stored, _ = decided([CreateTopic(name="a", topic_id="a", now_us=0, labels={"x": "1"})])
    topics = dict(before.topics)
    for command in (
        UpdateTopic(name="a", paths=("labels",)),
        AddPartitions(name="a", partition_count=9),
        DeleteTopic(name="a"),
    ):
        apply(before, decide(before, command, rules=RULES).records, index=before.index + 1)
    assert dict(before.topics) == topics
    assert before == replay(joined(1, 2, 3), stored)
