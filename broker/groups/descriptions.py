"""Groups as people and tools see them: messages of the public API made from a group's state. Changes nothing."""

from collections.abc import Collection, Iterator

from postbus.v1 import group_pb2, record_pb2

from broker.errors import PostbusError
from broker.groups.driver import CoordinatorSettings, Topics
from broker.groups.group import Group
from broker.groups.group_config import effective_config
from broker.groups.records import Member, PartitionKey


def describe(
    group: Group, topics: Topics, settings: CoordinatorSettings, *, node_id: int, in_full: bool = True
) -> group_pb2.Group:
    """The whole group, or (not `in_full`) without members and offsets."""
    described = group_pb2.Group(
        name=group.name,
        config=group.config,
        effective_config=effective_config(group.config, settings),
        state=group.state,
        group_epoch=group.group_epoch,
        coordinator_node_id=node_id,
    )
    if in_full:
        described.members.extend(_describe_member(group, member, topics) for member in _in_order(group))
        described.offsets.extend(describe_offsets(group, topics))
    return described


def describe_offsets(
    group: Group, topics: Topics, *, only: Collection[str] = ()
) -> Iterator[group_pb2.CommittedOffset]:
    """Committed offsets and lag, by topic and partition; of every partition of the topics that the group reads."""
    numbers: dict[str, set[int]] = {}
    for topic_id, partition in group.committed:
        numbers.setdefault(topic_id, set()).add(partition)
    for topic in group.wanted_topics():
        numbers.setdefault(topic.topic_id, set()).update(range(topic.partition_count))
    named = {known.name: topic_id for topic_id in numbers if (known := topics.by_id(topic_id)) is not None}
    for name in sorted(named):
        if only and name not in only:
            continue
        for partition in sorted(numbers[named[name]]):
            described = _describe_offset(group, name, (named[name], partition), topics)
            if described is not None:
                yield described


def _describe_offset(group: Group, name: str, key: PartitionKey, topics: Topics) -> group_pb2.CommittedOffset | None:
    try:
        high_watermark = topics.high_watermark(*key)
    except PostbusError:
        return None  # deleted while we look
    described = group_pb2.CommittedOffset(topic=name, partition=key[1], high_watermark=high_watermark)
    committed = group.committed.get(key)
    if committed is not None:
        described.offset = committed.offset
        described.lag = max(high_watermark - committed.offset, 0)
        described.commit_time.FromMicroseconds(committed.commit_time_us)
    return described


def lag(group: Group, topics: Topics) -> dict[str, int]:
    """Records that are not committed yet, by topic, over the partitions with a committed offset."""
    sums: dict[str, int] = {}
    for described in describe_offsets(group, topics):
        if described.HasField("offset"):
            sums[described.topic] = sums.get(described.topic, 0) + described.lag
    return sums


def _describe_member(group: Group, member: Member, topics: Topics) -> group_pb2.GroupMember:
    described = group_pb2.GroupMember(
        member_id=member.member_id,
        instance_id=member.instance_id,
        client_id=member.client_id,
        peer=member.peer,
        node_id=member.node_id,
        topics=member.topics,
    )
    described.joined_time.FromMicroseconds(member.joined_time_us)
    for key in group.holdings(member.member_id):
        topic = topics.by_id(key[0])
        if topic is None:
            continue
        kept = group.target.get(key) == member.member_id
        place = record_pb2.TopicPartition(topic=topic.name, partition=key[1])
        (described.assigned if kept else described.revoking).append(place)
    return described


def _in_order(group: Group) -> list[Member]:
    return sorted(group.members.values(), key=lambda member: (member.joined_time_us, member.member_id))
