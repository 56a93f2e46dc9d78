"""TopicService, GroupService and ClusterService given what can't be: the status, the details, and nothing changed."""

from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from postbus.v1 import cluster_pb2, group_pb2, record_pb2, subscriber_pb2, topic_pb2

Start = subscriber_pb2.StartPosition
HUGE = 2**63 - 1
TOPIC = "T"  # stands for the topic that a case is given
GROUP = "G"  # and for its group

BAD_NAMES = {
    "empty": "",
    "too long": "a" * 250,
    "a slash": "a/b",
    "one dot": ".",
    "two dots": "..",
    "a space": "a b",
    "a control character": "a\x07",
    "a line break at the end": "a\n",
    "a NUL": "\0",
    "not ASCII": "straße",
    "emoji": "🚌" * 249,
    "a percent sign": "%41",
}

# Every request that names something: the RPC, its other fields, the field, how the error names it.
NAMED: list[tuple[str, dict[str, Any], str, str]] = [
    ("TopicService/CreateTopic", {}, "name", "name"),
    ("TopicService/GetTopic", {}, "name", "name"),
    ("TopicService/UpdateTopic", {"update_mask": FieldMask(paths=["labels"])}, "name", "name"),
    ("TopicService/DeleteTopic", {}, "name", "name"),
    ("TopicService/AddPartitions", {"partition_count": 7}, "name", "name"),
    ("TopicService/ListPartitions", {}, "topic", "topic"),
    ("TopicService/DeleteRecords", {"before": Start(edge=2)}, "topic", "topic"),
    ("TopicService/ListOffsets", {}, "topic", "topic"),
    ("GroupService/CreateGroup", {}, "name", "name"),
    ("GroupService/GetGroup", {}, "name", "name"),
    ("GroupService/UpdateGroup", {}, "name", "name"),
    ("GroupService/DeleteGroup", {}, "name", "name"),
    ("GroupService/Heartbeat", {"topics": ["t"]}, "group", "group"),
    ("GroupService/CommitOffsets", {"offsets": [group_pb2.Assignment()]}, "group", "group"),
    ("GroupService/GetCommittedOffsets", {}, "group", "group"),
    ("GroupService/ResetOffsets", {"topic": "t", "shift": 1}, "group", "group"),
    ("GroupService/ResetOffsets", {"group": "g", "shift": 1}, "topic", "topic"),
    ("SubscriberService/Fetch", {}, "topic", "topic"),
    ("SubscriberService/Acknowledge", {"member_id": "m"}, "group", "group"),
]


@pytest.mark.parametrize("name", BAD_NAMES.values(), ids=BAD_NAMES.keys())
async def test_a_name_that_can_not_be_is_refused_everywhere(bus: Any, name: str) -> None:
    """Never NOT_FOUND: such a thing can't exist."""
    for rpc, others, field, named in NAMED:
        (await bus.refused(rpc, **{**others, field: name})).expect("INVALID_FIELD", named)
    if name:
        lists = [("ClusterService/GetMetadata", {}), ("ClusterService/WatchMetadata", {})]
        lists += [("GroupService/GetCommittedOffsets", {"group": "g"}), ("GroupService/Heartbeat", {"group": "g"})]
        for rpc, others in lists:
            (await bus.refused(rpc, **others, topics=["fine", name])).expect("INVALID_FIELD", "topics[1]")


async def test_what_does_not_exist_is_not_found_and_named(bus: Any) -> None:
    """Topic, group, partition: ResourceInfo says which."""
    topic = await bus.topic()
    group = bus.name("group")
    await bus.call("GroupService/CreateGroup", name=group)
    for rpc, others, field, _ in NAMED:
        if rpc.endswith(("/CreateTopic", "/CreateGroup")):
            continue
        fields = {**others, field: "nowhere"}
        if rpc == "GroupService/ResetOffsets":
            fields = {**fields, "group": group if field == "topic" else "nowhere"}
        if rpc == "GroupService/CommitOffsets":
            place = record_pb2.Position(topic=topic, partition=0, offset=0)
            fields["offsets"] = [group_pb2.Assignment(position=place)]
        if rpc == "GroupService/Heartbeat":
            fields.update(group=group, topics=["nowhere"])
        if rpc == "SubscriberService/Acknowledge":
            fields["acks"] = [subscriber_pb2.Delivery(topic=topic, partition=0, base_offset=0, end_offset=1)]
        refusal = await bus.refused(rpc, **fields)
        is_group = (field == "group" and not rpc.endswith("/Heartbeat")) or (
            rpc.startswith("GroupService/") and field == "name"
        )
        refusal.expect("GROUP_NOT_FOUND" if is_group else "TOPIC_NOT_FOUND")
        assert refusal.resource == ("group" if is_group else "topic", "nowhere")
    for rpc, fields in (
        ("TopicService/DeleteRecords", {"topic": topic, "before": Start(edge=2), "partitions": [1]}),
        ("TopicService/ListOffsets", {"topic": topic, "partitions": [-1]}),
        ("TopicService/ListOffsets", {"topic": topic, "partitions": [2**31 - 1]}),
        ("GroupService/ResetOffsets", {"group": group, "topic": topic, "shift": 1, "partitions": [1]}),
    ):
        (await bus.refused(rpc, **fields)).expect("PARTITION_NOT_FOUND")


def config(**fields: Any) -> dict[str, Any]:
    return {"config": topic_pb2.TopicConfig(**fields)}


def group_config(**fields: Any) -> dict[str, Any]:
    return {"config": group_pb2.GroupConfig(**fields)}


TOPIC_SETTINGS: dict[str, tuple[dict[str, Any], str, str]] = {
    "negative retention": (config(retention_time=Duration(seconds=-1)), "INVALID_FIELD", "config.retention_time"),
    "tiny retention": (config(retention_time=Duration(nanos=1)), "INVALID_FIELD", "config.retention_time"),
    "endless retention": (config(retention_time=Duration(seconds=HUGE)), "INVALID_FIELD", "config.retention_time"),
    "retention that is no duration": (
        config(retention_time=Duration(seconds=1, nanos=-1)),
        "INVALID_FIELD",
        "config.retention_time",
    ),
    "negative size": (config(retention_bytes=-1), "INVALID_FIELD", "config.retention_bytes"),
    "no replica in sync": (config(min_insync_replicas=0), "INVALID_FIELD", "config.min_insync_replicas"),
    "more in sync than there are": (config(min_insync_replicas=2), "INVALID_FIELD", "config.min_insync_replicas"),
    "records of nothing": (config(max_record_bytes=0), "INVALID_FIELD", "config.max_record_bytes"),
    "records over the node's limit": (config(max_record_bytes=2**31 - 1), "INVALID_FIELD", "config.max_record_bytes"),
    "batches negative": (config(max_batch_bytes=-1), "INVALID_FIELD", "config.max_batch_bytes"),
    "batches over the node's limit": (config(max_batch_bytes=2**31 - 1), "INVALID_FIELD", "config.max_batch_bytes"),
    "records over batches": (
        config(max_record_bytes=200, max_batch_bytes=100),
        "INVALID_FIELD",
        "config.max_record_bytes",
    ),
    "negative window": (
        config(deduplication_window=Duration(nanos=-1)),
        "INVALID_FIELD",
        "config.deduplication_window",
    ),
    "window too long": (
        config(deduplication_window=Duration(seconds=8 * 86400)),
        "INVALID_FIELD",
        "config.deduplication_window",
    ),
    "a label without a name": ({"labels": {"": "x"}}, "INVALID_FIELD", "labels"),
    "too many labels": ({"labels": {str(number): "" for number in range(65)}}, "TOO_LARGE", "labels"),
    "labels too long": ({"labels": {"a": "x" * 4096}}, "TOO_LARGE", "labels"),
}


@pytest.mark.parametrize(("fields", "reason", "named"), TOPIC_SETTINGS.values(), ids=TOPIC_SETTINGS.keys())
async def test_settings_that_can_not_hold_make_no_topic_and_change_none(
    bus: Any, fields: dict[str, Any], reason: str, named: str
) -> None:
    """On creation, on a dry run and on an update alike."""
    name = bus.name()
    (await bus.refused("TopicService/CreateTopic", name=name, **fields)).expect(reason, named)
    (await bus.refused("TopicService/CreateTopic", name=name, validate_only=True, **fields)).expect(reason, named)
    (await bus.refused("TopicService/GetTopic", name=name)).expect("TOPIC_NOT_FOUND")
    topic = await bus.topic()
    before = await bus.call("TopicService/GetTopic", name=topic)
    mask = FieldMask(paths=["config" if "config" in fields else "labels"])
    (await bus.refused("TopicService/UpdateTopic", name=topic, update_mask=mask, **fields)).expect(reason, named)
    assert await bus.call("TopicService/GetTopic", name=topic) == before


@pytest.mark.parametrize(
    ("fields", "reason", "named"),
    [
        ({"partition_count": -1}, "INVALID_FIELD", "partition_count"),
        ({"partition_count": 1001}, "INVALID_FIELD", "partition_count"),
        ({"partition_count": 2**31 - 1}, "INVALID_FIELD", "partition_count"),
        ({"replication_factor": -1}, "INVALID_FIELD", "replication_factor"),
        ({"replication_factor": 2}, "INVALID_FIELD", "replication_factor"),
        ({"name": "__mine"}, "INVALID_FIELD", "name"),
    ],
)
async def test_a_topic_of_a_shape_that_can_not_be_is_not_made(
    bus: Any, fields: dict[str, Any], reason: str, named: str
) -> None:
    """Partitions, copies, and names of the broker's own."""
    (await bus.refused("TopicService/CreateTopic", **{"name": bus.name(), **fields})).expect(reason, named)


async def test_a_dry_run_makes_nothing_and_tells_what_would_be(bus: Any) -> None:
    """validate_only."""
    name = bus.name()
    answer = await bus.call("TopicService/CreateTopic", name=name, partition_count=3, validate_only=True)
    assert (answer.topic.name, answer.topic.partition_count) == (name, 3)
    (await bus.refused("TopicService/GetTopic", name=name)).expect("TOPIC_NOT_FOUND")


async def test_changes_to_topics_that_can_not_be(bus: Any) -> None:
    """Existing names, masks, etags, ids, fewer partitions."""
    topic = await bus.topic(2)
    exists = (await bus.refused("TopicService/CreateTopic", name=topic)).expect("EXISTS")
    assert exists.resource == ("topic", topic)
    update = "TopicService/UpdateTopic"
    for paths in (
        [],
        ["name"],
        ["config.nonsense"],
        ["config.retention_time.seconds"],
        ["🚌" * 10_000],
        ["x" * 100_000],
    ):
        mask = FieldMask(paths=paths)
        (await bus.refused(update, name=topic, update_mask=mask)).expect("INVALID_FIELD", "update_mask")
    labels = FieldMask(paths=["labels"])
    (await bus.refused(update, name=topic, update_mask=labels, etag="stale")).expect("PRECONDITION_NOT_MET")
    (await bus.refused("TopicService/DeleteTopic", name=topic, topic_id="another")).expect("TOPIC_NOT_FOUND")
    for count in (1, 0, -1):
        refusal = await bus.refused("TopicService/AddPartitions", name=topic, partition_count=count)
        refusal.expect("INVALID_FIELD", "partition_count")
    for rpc, others in (("UpdateTopic", {"update_mask": labels}), ("DeleteTopic", {}), ("AddPartitions", {})):
        (await bus.refused(f"TopicService/{rpc}", name="__groups", **others)).expect("INVALID_FIELD", "name")


@pytest.mark.parametrize("rpc", ["TopicService/ListTopics", "TopicService/ListPartitions", "GroupService/ListGroups"])
async def test_pages_are_exact_and_bad_tokens_refused(bus: Any, rpc: str) -> None:
    """Each thing on one page; sizes and tokens that can't be are refused."""
    prefix = bus.name("paged")
    others: dict[str, Any] = {"prefix": prefix}
    if rpc.endswith("ListPartitions"):
        others = {"topic": await bus.topic(7)}
    else:
        for number in range(7):
            create = "TopicService/CreateTopic" if "Topic" in rpc else "GroupService/CreateGroup"
            await bus.call(create, name=f"{prefix}-{number}")
    for size in (-1, 1001, 2**31 - 1):
        (await bus.refused(rpc, page_size=size, **others)).expect("INVALID_FIELD", "page_size")
    for token in ("?", "größe", "a" * 10_000 + "=", "/" * 7, "\0", "AAA"):
        refusal = await bus.refused(rpc, page_token=token, **others)
        refusal.expect("INVALID_FIELD", "page_token")
    for size in (1, 2, 3, 7, 8):
        found: list[Any] = []
        token = ""
        while True:
            page = await bus.call(rpc, page_size=size, page_token=token, **others)
            items = list(getattr(page, page.DESCRIPTOR.fields[0].name))
            assert len(items) <= size
            found += [getattr(item, "name", None) or item.partition for item in items]
            if not (token := page.next_page_token):
                break
        assert len(found) == 7 and found == sorted(set(found))


PLACES: dict[str, tuple[Start, str]] = {
    "no edge": (Start(edge=0), "edge"),
    "negative offset": (Start(offset=-1), "offset"),
    "most negative offset": (Start(offset=-(2**63)), "offset"),
    "before 1970": (Start(time=Timestamp(seconds=-1)), "time"),
    "after 9999": (Start(time=Timestamp(seconds=253402300800)), "time"),
    "end of time": (Start(time=Timestamp(seconds=HUGE)), "time"),
    "negative nanos": (Start(time=Timestamp(seconds=1, nanos=-1)), "time"),
    "too many nanos": (Start(time=Timestamp(seconds=1, nanos=2**31 - 1)), "time"),
    "ago in the future": (Start(ago=Duration(seconds=-1)), "ago"),
    "ago before all": (Start(ago=Duration(seconds=HUGE)), "ago"),
    "ago of mixed signs": (Start(ago=Duration(seconds=1, nanos=-1)), "ago"),
    "negative count": (Start(last_records=-1), "last_records"),
}


@pytest.mark.parametrize(("place", "named"), PLACES.values(), ids=PLACES.keys())
async def test_a_place_that_can_not_be_is_refused_wherever_places_go(bus: Any, place: Start, named: str) -> None:
    """Eight requests hold a StartPosition."""
    topic = await bus.topic()
    group = bus.name("group")
    await bus.call("GroupService/CreateGroup", name=group)
    for rpc, fields, path in (
        ("TopicService/ListOffsets", {"topic": topic, "at": place}, "at"),
        ("TopicService/DeleteRecords", {"topic": topic, "before": place}, "before"),
        ("GroupService/ResetOffsets", {"group": group, "topic": topic, "to": place}, "to"),
        ("SubscriberService/Fetch", {"topic": topic, "start_at": place}, "start_at"),
        ("GroupService/CreateGroup", {"name": bus.name("group"), **group_config(start_at=place)}, "config.start_at"),
        ("GroupService/UpdateGroup", {"name": group, **group_config(start_at=place)}, "config.start_at"),
    ):
        (await bus.refused(rpc, **fields)).expect("INVALID_FIELD", f"{path}.{named}")
    for in_group in ({}, {"group": group}):
        stream = await bus.subscribe(topic, at=place, **in_group)
        (await stream.refusal()).expect("INVALID_FIELD", f"start.topics[0].start_at.{named}")
        stream = await bus.subscribe(topic, start_at=place, **in_group)
        (await stream.refusal()).expect("INVALID_FIELD", f"start.start_at.{named}")
        stream = await bus.subscribe(topic, **in_group)
        if in_group:
            await stream.until(lambda message: message.assignment_change.assigned)
        where = record_pb2.TopicPartition(topic=topic, partition=0)
        await stream.send(seeks=[subscriber_pb2.Seek(partition=where, to=place)])
        (await stream.refusal()).expect("INVALID_FIELD", f"seeks[0].to.{named}")


async def test_places_far_away_are_told_by_partition(bus: Any, tools: Any) -> None:
    """An offset past the end is an outcome of its partition; times and counts find the nearest end."""
    topic = await bus.topic(2)
    await bus.publish(topic, b"a", b"b", partition=0)
    found = await bus.call("TopicService/ListOffsets", topic=topic, at=Start(offset=1))
    assert found.partitions[0].offset == 1 and not found.partitions[0].HasField("failure")
    refusal = tools.refusal_in(found.partitions[1].failure).expect("OFFSET_OUT_OF_RANGE")
    assert (refusal.metadata["earliest"], refusal.metadata["latest"]) == ("0", "0")
    for place, offset in (
        (Start(time=Timestamp(seconds=253402300799)), 2),
        (Start(time=Timestamp()), 0),
        (Start(ago=Duration(seconds=253402300799)), 0),
        (Start(last_records=HUGE), 0),
        (Start(last_records=1), 1),
        (Start(last_records=0), 2),
    ):
        found = await bus.call("TopicService/ListOffsets", topic=topic, partitions=[0], at=place)
        assert found.partitions[0].offset == offset, place
    deleted = await bus.call("TopicService/DeleteRecords", topic=topic, before=Start(offset=HUGE))
    for outcome in deleted.partitions:
        tools.refusal_in(outcome.failure).expect("OFFSET_OUT_OF_RANGE")
        assert outcome.log_start_offset == 0
    (await bus.refused("TopicService/DeleteRecords", topic=topic)).expect("INVALID_FIELD", "before")
    for rpc, fields in (("DeleteRecords", {"before": Start(offset=0)}), ("ListOffsets", {})):
        refusal = await bus.refused(f"TopicService/{rpc}", topic=topic, partitions=[0, 1, 0], **fields)
        refusal.expect("INVALID_FIELD", "partitions")


GROUP_SETTINGS: dict[str, tuple[dict[str, Any], str, str]] = {
    "shared": (group_config(kind=subscriber_pb2.GROUP_KIND_SHARED), "UNKNOWN_FIELD", "config.kind"),
    "lease time": (group_config(lease_time=Duration(seconds=1)), "UNKNOWN_FIELD", "config.lease_time"),
    "deliveries": (group_config(max_deliveries=1), "UNKNOWN_FIELD", "config.max_deliveries"),
    "no limit of deliveries": (group_config(max_deliveries=0), "UNKNOWN_FIELD", "config.max_deliveries"),
    "dead letters": (group_config(dead_letter_topic="t"), "UNKNOWN_FIELD", "config.dead_letter_topic"),
    "shortest wait": (group_config(min_retry_delay=Duration(seconds=1)), "UNKNOWN_FIELD", "config.min_retry_delay"),
    "longest wait": (group_config(max_retry_delay=Duration(seconds=1)), "UNKNOWN_FIELD", "config.max_retry_delay"),
    "no processing time": (
        group_config(max_processing_timeout=Duration()),
        "INVALID_FIELD",
        "config.max_processing_timeout",
    ),
    "processing for ever": (
        group_config(max_processing_timeout=Duration(seconds=HUGE)),
        "INVALID_FIELD",
        "config.max_processing_timeout",
    ),
    "negative retention": (
        group_config(offset_retention=Duration(seconds=-1)),
        "INVALID_FIELD",
        "config.offset_retention",
    ),
    "retention that is no duration": (
        group_config(offset_retention=Duration(nanos=2**31 - 1)),
        "INVALID_FIELD",
        "config.offset_retention",
    ),
    "absence too long": (
        group_config(static_member_timeout=Duration(seconds=86401)),
        "INVALID_FIELD",
        "config.static_member_timeout",
    ),
}


@pytest.mark.parametrize(("fields", "reason", "named"), GROUP_SETTINGS.values(), ids=GROUP_SETTINGS.keys())
async def test_settings_that_can_not_hold_make_no_group_and_change_none(
    bus: Any, fields: dict[str, Any], reason: str, named: str
) -> None:
    """Shared groups and dead letters are refused by name: this version has none."""
    name = bus.name("group")
    (await bus.refused("GroupService/CreateGroup", name=name, **fields)).expect(reason, named)
    (await bus.refused("GroupService/GetGroup", name=name)).expect("GROUP_NOT_FOUND")
    await bus.call("GroupService/CreateGroup", name=name)
    before = await bus.call("GroupService/GetGroup", name=name)
    refusal = await bus.refused("GroupService/UpdateGroup", name=name, **fields)
    assert refusal.code == "INVALID_ARGUMENT", refusal
    assert await bus.call("GroupService/GetGroup", name=name) == before


async def test_changes_to_groups_that_can_not_be(bus: Any) -> None:
    """Existing and internal names, unknown paths, offsets without members or partitions."""
    group = bus.name("group")
    await bus.call("GroupService/CreateGroup", name=group)
    assert (await bus.refused("GroupService/CreateGroup", name=group)).expect("EXISTS").resource == ("group", group)
    (await bus.refused("GroupService/CreateGroup", name="__mine")).expect("INVALID_FIELD", "name")
    for path in ("nonsense", "config.kind", "kind.x", "🚌" * 10_000):
        mask = FieldMask(paths=[path])
        (await bus.refused("GroupService/UpdateGroup", name=group, update_mask=mask)).expect(
            "INVALID_FIELD", "update_mask"
        )
    topic = await bus.topic()
    reset = "GroupService/ResetOffsets"
    (await bus.refused(reset, group=group, topic=topic)).expect("INVALID_FIELD", "to")
    (await bus.refused(reset, group=group, topic=topic, to=Start())).expect("INVALID_FIELD", "to")
    (await bus.refused(reset, group=group, topic=topic, to=Start(offset=0), shift=1)).expect("INVALID_FIELD", "to")
    for shift in (2**63 - 1, -(2**63)):
        answer = await bus.call(reset, group=group, topic=topic, shift=shift)
        assert answer.changes[0].new_offset == 0
    commit = "GroupService/CommitOffsets"
    (await bus.refused(commit, group=group)).expect("INVALID_FIELD", "offsets")
    for place, fence, reason, named in (
        (record_pb2.Position(), 0, "INVALID_FIELD", "offsets[0].position.topic"),
        (record_pb2.Position(topic=topic), 0, "INVALID_FIELD", "offsets[0].position.partition"),
        (record_pb2.Position(topic=topic, partition=0), 0, "INVALID_FIELD", "offsets[0].position.offset"),
        (record_pb2.Position(topic=topic, partition=-1, offset=0), 0, "INVALID_FIELD", "offsets[0].position.partition"),
        (record_pb2.Position(topic=topic, partition=0, offset=-1), 0, "INVALID_FIELD", "offsets[0].position.offset"),
        (record_pb2.Position(topic=topic, partition=0, offset=0), -1, "INVALID_FIELD", "offsets[0].fence"),
        (record_pb2.Position(topic=topic, partition=1, offset=0), 0, "PARTITION_NOT_FOUND", None),
        (record_pb2.Position(topic="nowhere", partition=0, offset=0), 0, "TOPIC_NOT_FOUND", None),
    ):
        offsets = [group_pb2.Assignment(position=place, fence=fence)]
        (await bus.refused(commit, group=group, offsets=offsets)).expect(reason, named)


async def test_offsets_that_can_not_be_committed_are_reported_in_band(bus: Any, tools: Any) -> None:
    """Past the end, or by somebody who does not own the partition."""
    topic = await bus.topic(2)
    group = bus.name("group")
    await bus.call("GroupService/CreateGroup", name=group)
    offsets = [
        group_pb2.Assignment(position=record_pb2.Position(topic=topic, partition=0, offset=HUGE)),
        group_pb2.Assignment(position=record_pb2.Position(topic=topic, partition=1, offset=0)),
    ]
    report = (await bus.call("GroupService/CommitOffsets", group=group, offsets=offsets)).report
    tools.refusal_in(report.rejected[0].failure).expect("OFFSET_OUT_OF_RANGE")
    assert [(place.partition, place.offset) for place in report.committed] == [(1, 0)]
    report = (await bus.call("GroupService/CommitOffsets", group=group, member_id="ghost", offsets=offsets[1:])).report
    tools.refusal_in(report.rejected[0].failure).expect("ASSIGNMENT_LOST")


@pytest.mark.parametrize(
    ("fields", "reason", "named"),
    [
        ({"member_epoch": -1}, "INVALID_FIELD", "member_epoch"),
        ({"member_epoch": 1}, "INVALID_FIELD", "member_id"),
        ({"topics": []}, "INVALID_FIELD", "topics"),
        ({"leave": True}, "INVALID_FIELD", "member_id"),
        ({"member_id": "x" * 256}, "TOO_LARGE", "member_id"),
        ({"instance_id": "a\n"}, "INVALID_FIELD", "instance_id"),
        ({"client_id": "\0"}, "INVALID_FIELD", "client_id"),
        ({"rack": "r" * 256}, "TOO_LARGE", "rack"),
        ({"processing_timeout": Duration()}, "INVALID_FIELD", "processing_timeout"),
        ({"processing_timeout": Duration(seconds=-1)}, "INVALID_FIELD", "processing_timeout"),
        ({"processing_timeout": Duration(seconds=HUGE)}, "INVALID_FIELD", "processing_timeout"),
        ({"processing_timeout": Duration(seconds=7200)}, "INVALID_FIELD", "processing_timeout"),
        ({"owned": [record_pb2.TopicPartition(topic="t")]}, "INVALID_FIELD", "owned[0].partition"),
        ({"owned": [record_pb2.TopicPartition(topic="a/b", partition=0)]}, "INVALID_FIELD", "owned[0].topic"),
    ],
    ids=str,
)
async def test_a_heartbeat_that_can_not_be_is_refused(
    bus: Any, fields: dict[str, Any], reason: str, named: str
) -> None:
    """And joins no group."""
    topic = await bus.topic()
    group = bus.name("group")
    refusal = await bus.refused("GroupService/Heartbeat", **{"group": group, "topics": [topic], **fields})
    refusal.expect(reason, named)
    (await bus.refused("GroupService/GetGroup", name=group)).expect("GROUP_NOT_FOUND")


async def test_a_heartbeat_of_a_member_that_is_not_is_told_to_join_again(bus: Any) -> None:
    """Unknown members and older epochs."""
    topic = await bus.topic()
    group = bus.name("group")
    (await bus.refused("GroupService/Heartbeat", group=group, member_id="ghost", member_epoch=1)).expect(
        "GROUP_NOT_FOUND"
    )
    joined = await bus.call("GroupService/Heartbeat", group=group, topics=[topic])
    beat = "GroupService/Heartbeat"
    (await bus.refused(beat, group=group, member_id="ghost", member_epoch=1)).expect("ASSIGNMENT_LOST")
    invented = await bus.refused(beat, group=group, member_id=joined.member_id, member_epoch=99)
    invented.expect("INVALID_FIELD", "member_epoch")
    for rpc, fields in (
        ("GroupService/DeleteGroup", {"name": group}),
        ("GroupService/ResetOffsets", {"group": group, "topic": topic, "shift": 0}),
    ):
        (await bus.refused(rpc, **fields)).expect("GROUP_NOT_EMPTY")
    leaving = {"group": group, "member_id": joined.member_id, "leave": True}
    (await bus.refused(beat, **leaving)).expect("INVALID_FIELD", "member_epoch")
    await bus.call(beat, **leaving, member_epoch=joined.member_epoch)
    await bus.call("GroupService/DeleteGroup", name=group)


PLACE = record_pb2.TopicPartition(topic="t", partition=0)
OPERATIONS: dict[str, tuple[str, dict[str, Any], str]] = {
    "a voter without a number": ("AddVoter", {}, "node_id"),
    "a voter that is not there": ("AddVoter", {"node_id": 9}, "node_id"),
    "no voter any more without a number": ("RemoveVoter", {}, "node_id"),
    "the only voter": ("RemoveVoter", {"node_id": 1}, "node_id"),
    "draining a negative node": ("DrainNode", {"node_id": -1}, "node_id"),
    "draining nobody": ("DrainNode", {"node_id": 9}, "node_id"),
    "moving all to nowhere": ("DrainNode", {"node_id": 1, "move_replicas": True}, "move_replicas"),
    "taking back no drain": ("UndrainNode", {"node_id": 9}, "node_id"),
    "forgetting nobody": ("RemoveNode", {"node_id": 9}, "node_id"),
    "unclean everywhere": ("ElectLeaders", {"unclean": True}, "partitions"),
    "an election without a partition": (
        "ElectLeaders",
        {"partitions": [record_pb2.TopicPartition(topic="t")]},
        "partitions[0].partition",
    ),
    "an election of no topic": ("ElectLeaders", {"partitions": [record_pb2.TopicPartition()]}, "partitions[0].topic"),
    "the same election twice": ("ElectLeaders", {"partitions": [PLACE, PLACE]}, "partitions[1]"),
    "no moves": ("ReassignPartitions", {}, "reassignments"),
    "moves of no partition": (
        "ReassignPartitions",
        {"reassignments": [cluster_pb2.Reassignment(replica_node_ids=[1])]},
        "reassignments[0].partition.topic",
    ),
    "moves backwards": (
        "ReassignPartitions",
        {"reassignments": [cluster_pb2.Reassignment(partition=PLACE)], "throttle_bytes_per_second": -1},
        "throttle_bytes_per_second",
    ),
    "shares backwards": ("RebalanceCluster", {"throttle_bytes_per_second": -1}, "throttle_bytes_per_second"),
    "stopping the move of nothing": (
        "CancelReassignments",
        {"partitions": [record_pb2.TopicPartition(topic="t")]},
        "partitions[0].partition",
    ),
}


@pytest.mark.parametrize(("method", "fields", "named"), OPERATIONS.values(), ids=OPERATIONS.keys())
async def test_operations_that_can_not_be_are_refused_by_the_field(
    bus: Any, method: str, fields: dict[str, Any], named: str
) -> None:
    """Before anything is moved."""
    (await bus.refused(f"ClusterService/{method}", **fields)).expect("INVALID_FIELD", named)


async def test_each_partition_of_an_operation_has_its_own_outcome(bus: Any, tools: Any) -> None:
    """What is wrong with one holds up no other; a dry run tells the same and does nothing."""
    topic = await bus.topic(1)
    good, gone = ({"topic": topic, "partition": 0}, {"topic": topic, "partition": 7})
    elected = await bus.call("ClusterService/ElectLeaders", partitions=[good, gone, {"topic": "no", "partition": 0}])
    assert [each.HasField("failure") for each in elected.outcomes] == [False, True, True]
    tools.refusal_in(elected.outcomes[1].failure).expect("PARTITION_NOT_FOUND")
    tools.refusal_in(elected.outcomes[2].failure).expect("TOPIC_NOT_FOUND")
    for validate_only in (True, False):
        moved = await bus.call(
            "ClusterService/ReassignPartitions",
            reassignments=[
                {"partition": good, "replica_node_ids": [1]},
                {"partition": gone, "replica_node_ids": [1]},
            ],
            validate_only=validate_only,
        )
        assert [each.partition.partition for each in moved.outcomes if not each.HasField("failure")] == [0]
    nowhere = await bus.call(
        "ClusterService/ReassignPartitions", reassignments=[{"partition": good, "replica_node_ids": [1, 9]}]
    )
    tools.refusal_in(nowhere.outcomes[0].failure).expect("INVALID_FIELD", "replica_node_ids")
    assert not (await bus.call("ClusterService/ListReassignments")).reassignments
    assert not (await bus.call("ClusterService/CancelReassignments")).outcomes
    assert not (await bus.call("ClusterService/RebalanceCluster", raise_replication=True)).moves


async def test_a_partition_is_described_with_its_copies(bus: Any) -> None:
    """Who leads, who is in sync, and how far each copy is."""
    topic = await bus.topic(2)
    await bus.publish(topic, b"v", partition=1)
    first, second = (await bus.call("TopicService/ListPartitions", topic=topic)).partitions
    assert (first.leader_node_id, second.leader_node_id, second.high_watermark) == (1, 1, 1)
    assert second.leader_epoch >= 0 and second.size_bytes > 0 and first.high_watermark == 0
    (copy,) = second.replicas
    assert (copy.node_id, copy.in_sync, copy.end_offset, copy.durable_end_offset) == (1, True, 1, 1)
    assert not (copy.eligible or copy.reassigning or copy.unknown)


async def test_records_without_a_key_do_not_go_into_a_compacted_topic(bus: Any, tools: Any) -> None:
    """They would stay for ever: the first of them is named, plain or compressed, and nothing is appended."""
    topic = bus.name()
    await bus.call(
        "TopicService/CreateTopic",
        name=topic,
        partition_count=1,
        config=topic_pb2.TopicConfig(cleanup_policy=topic_pb2.CLEANUP_POLICY_COMPACT),
    )
    batch = record_pb2.RecordBatch(
        records=[record_pb2.Record(key=b"k", value=b"v"), record_pb2.Record(key=b""), record_pb2.Record(value=b"v")]
    )
    refused = await bus.refused("PublisherService/Publish", topic=topic, batch=batch)
    refused.expect("INVALID_FIELD", "batch.records[2].key")
    del batch.records[2]
    await bus.call("PublisherService/Publish", topic=topic, batch=batch)
    assert (await bus.call("TopicService/ListOffsets", topic=topic)).partitions[0].high_watermark == 2


async def test_looking_at_the_cluster(bus: Any) -> None:
    """Metadata, features, quorum; topics asked for that don't exist are left out."""
    topic = await bus.topic(2)
    metadata = await bus.call("ClusterService/GetMetadata", topics=[topic, "nowhere"])
    assert [(found.name, len(found.partitions)) for found in metadata.topics] == [(topic, 2)]
    assert metadata.nodes[0].endpoint.endswith(str(bus.port)) and metadata.controller_node_id == 1
    features = await bus.call("ClusterService/GetServerFeatures")
    assert set(features.compressions) == {1, 2, 3, 4} and features.max_message_bytes == 6 * 2**20
    assert "shared-groups" not in features.features
    quorum = await bus.call("ClusterService/GetQuorum")
    assert quorum.leader_node_id == 1 and quorum.members[0].voter
    (await bus.refused("ClusterService/WatchMetadata", after_epoch=-1)).expect("INVALID_FIELD", "after_epoch")


async def test_a_watch_tells_all_then_each_change(bus: Any) -> None:
    """Topics that came, grew and went, by epochs that only grow; who is up to date gets no snapshot."""
    topic = await bus.topic(2)
    request = cluster_pb2.WatchMetadataRequest().SerializeToString()
    call = bus.channel.unary_stream("/postbus.v1.ClusterService/WatchMetadata")(request, timeout=10)

    async def read() -> cluster_pb2.WatchMetadataResponse:
        return cluster_pb2.WatchMetadataResponse.FromString(await call.read())

    first = await read()
    assert first.snapshot and topic in {found.name for found in first.topics} and first.nodes
    await bus.call("TopicService/AddPartitions", name=topic, partition_count=3)
    grown = await read()
    assert not grown.snapshot and grown.metadata_epoch > first.metadata_epoch
    assert [(found.name, [p.partition for p in found.partitions]) for found in grown.topics] == [(topic, [2])]
    other = await bus.topic(1)
    created = await read()
    assert [(found.name, len(found.partitions)) for found in created.topics] == [(other, 1)]
    topic_id = (await bus.call("TopicService/GetTopic", name=other)).topic.topic_id
    await bus.call("TopicService/DeleteTopic", name=other)
    deleted = await read()
    assert list(deleted.removed_topic_ids) == [topic_id] and not deleted.topics
    call.cancel()
    after = cluster_pb2.WatchMetadataRequest(after_epoch=deleted.metadata_epoch).SerializeToString()
    call = bus.channel.unary_stream("/postbus.v1.ClusterService/WatchMetadata")(after, timeout=10)
    await bus.topic()
    assert not (await read()).snapshot
    call.cancel()


async def test_health_by_service_and_reflection(bus: Any) -> None:
    """Each service has a status of its own; an unknown one is NOT_FOUND."""
    health = health_pb2_grpc.HealthStub(bus.channel)
    services = [f"postbus.v1.{name}Service" for name in ("Publisher", "Subscriber", "Group", "Topic", "Cluster")]
    for service in ("", *services):
        answer = await health.Check(health_pb2.HealthCheckRequest(service=service))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.RpcError) as caught:
        await health.Check(health_pb2.HealthCheckRequest(service="postbus.v1.Nonsense"))
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    reflection = reflection_pb2_grpc.ServerReflectionStub(bus.channel)
    call = reflection.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
    listed = {service.name async for answer in call for service in answer.list_services_response.service}
    assert {*services, "grpc.health.v1.Health"} <= listed
