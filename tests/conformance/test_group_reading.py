"""What an ordered group promises its members: windows, acknowledgement, moving, static members, smart clients."""

import asyncio
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from postbus.v1 import group_pb2, record_pb2, subscriber_pb2

Start = subscriber_pb2.StartPosition
Delivery = subscriber_pb2.Delivery
Place = record_pb2.Position


async def numbers(bus: Any, count: int = 10, partitions: int = 1) -> str:
    """A topic with the records 0, 1, …, one a batch, in partition 0."""
    topic = await bus.topic(partitions)
    for number in range(count):
        await bus.publish(topic, b"%d" % number, partition=0)
    return topic


async def take(stream: Any, tools: Any, count: int) -> tuple[list[bytes], list[Any]]:
    """So many records at least, and their deliveries."""
    values: list[bytes] = []
    deliveries: list[Any] = []
    while len(values) < count:
        message = await stream.read()
        values += tools.values_of(message.batches)
        deliveries += [batch.delivery for batch in message.batches]
    return values, deliveries


async def quiet(stream: Any, command_id: int = 99) -> None:
    """No batch comes before the echo of a command."""
    await stream.send(command_id=command_id)
    message = await stream.until(lambda message: message.batches or message.command_id == command_id)
    assert not message.batches


async def committed(bus: Any, group: str) -> list[int]:
    offsets = (await bus.call("GroupService/GetCommittedOffsets", group=group)).offsets
    return [place.offset for place in offsets]


@pytest.mark.parametrize("window", [{"window_records": 3}, {"window_bytes": 13}])
async def test_a_member_s_window_holds_what_is_out(bus: Any, tools: Any, window: dict[str, int]) -> None:
    """Records or bytes delivered and not acknowledged; each acknowledgement lets more out."""
    topic = await numbers(bus)
    stream = await bus.subscribe(topic, group=bus.name("group"), **window)
    values, deliveries = await take(stream, tools, 3)
    assert values == [b"0", b"1", b"2"]
    await quiet(stream)
    await stream.send(acks=[deliveries[1]])
    assert (await take(stream, tools, 1))[0] == [b"3"]
    await quiet(stream)


async def test_acknowledgements_in_any_order_commit_the_contiguous_prefix(bus: Any, tools: Any) -> None:
    """Whole or in part; `report_acks` tells what was committed, the group what its lag is."""
    topic = await numbers(bus, 5)
    group = bus.name("group")
    stream = await bus.subscribe(topic, group=group, report_acks=True)
    _, deliveries = await take(stream, tools, 5)
    await stream.send(acks=[deliveries[3], deliveries[1]], command_id=1)
    await stream.until(lambda message: message.command_id == 1)
    assert await committed(bus, group) == [0]
    await stream.send(acks=[deliveries[0]])
    place = Place(topic=topic, partition=0, offset=2)
    await stream.until(lambda message: place in message.ack_report.committed)
    await stream.send(acks=[deliveries[2]])
    place = Place(topic=topic, partition=0, offset=4)
    await stream.until(lambda message: place in message.ack_report.committed)
    (offset,) = (await bus.call("GroupService/GetCommittedOffsets", group=group)).offsets
    assert (offset.offset, offset.high_watermark, offset.lag) == (4, 5, 1)
    await stream.end()
    again = await bus.subscribe(topic, group=group)
    assert (await take(again, tools, 1))[0] == [b"4"]


async def test_a_part_of_a_batch_may_be_acknowledged(bus: Any, tools: Any) -> None:
    """The next member begins inside it."""
    topic = await bus.topic()
    await bus.publish(topic, b"a", b"b", b"c", b"d")
    group = bus.name("group")
    stream = await bus.subscribe(topic, group=group)
    _, (delivery,) = await take(stream, tools, 4)
    delivery.end_offset = 3
    await stream.send(acks=[delivery])
    await stream.end()
    again = await bus.subscribe(topic, group=group)
    values, (delivery,) = await take(again, tools, 1)
    assert (values, delivery.base_offset, delivery.end_offset) == ([b"d"], 3, 4)


async def test_half_closing_commits_frees_the_partitions_and_ends_with_ok(bus: Any, tools: Any) -> None:
    """Leaving, in one word; the next member has them at once."""
    topic = await numbers(bus, 4, partitions=2)
    group = bus.name("group")
    first = await bus.subscribe(topic, group=group)
    _, deliveries = await take(first, tools, 4)
    await first.send(acks=deliveries)
    await first.end()
    assert not (await bus.call("GroupService/GetGroup", name=group)).group.members
    assert sorted(await committed(bus, group)) == [0, 4]


async def test_latest_in_a_group_is_committed_before_anything_comes(bus: Any, tools: Any) -> None:
    """Otherwise a member that dies before its first acknowledgement would make the group skip records."""
    topic = await numbers(bus, 3)
    group = bus.name("group")
    first = await bus.subscribe(topic, group=group, at=Start(edge=2))
    await first.until(lambda message: message.assignment_change.assigned)
    assert await committed(bus, group) == [3]
    await bus.publish(topic, b"new")
    assert (await take(first, tools, 1))[0] == [b"new"]
    first.call.cancel()
    second = await bus.subscribe(topic, group=group, at=Start(edge=2))
    assert (await take(second, tools, 1))[0] == [b"new"]


async def test_a_nack_delivers_again_in_order_under_a_new_fence(bus: Any, tools: Any) -> None:
    """From the first record that is not acknowledged; the old deliveries are stale."""
    topic = await numbers(bus, 4)
    stream = await bus.subscribe(topic, group=bus.name("group"))
    _, deliveries = await take(stream, tools, 4)
    await stream.send(
        acks=[deliveries[0]],
        nacks=[subscriber_pb2.Nack(delivery=deliveries[2], delay=Duration(nanos=1_000_000), reason="busy")],
    )
    values, again = await take(stream, tools, 3)
    assert values == [b"1", b"2", b"3"] and all(delivery.fence > deliveries[0].fence for delivery in again)
    await stream.send(acks=[deliveries[1]])
    stale = (await stream.until(lambda message: message.HasField("ack_report"))).ack_report.rejected
    tools.refusal_in(stale[0].failure).expect("ASSIGNMENT_LOST")


async def test_a_pause_during_the_delay_of_a_nack_outlasts_it(bus: Any, tools: Any) -> None:
    """The end of the delay resumes nothing that the member has paused."""
    topic = await numbers(bus, 1)
    where = record_pb2.TopicPartition(topic=topic, partition=0)
    stream = await bus.subscribe(topic, group=bus.name("group"))
    _, (delivery,) = await take(stream, tools, 1)
    delay = Duration(nanos=150_000_000)
    await stream.send(nacks=[subscriber_pb2.Nack(delivery=delivery, delay=delay)], pause=[where], command_id=1)
    await stream.until(lambda message: message.command_id == 1)
    await asyncio.sleep(0.3)
    await quiet(stream)
    await stream.send(resume=[where])
    assert (await take(stream, tools, 1))[0] == [b"0"]


async def test_a_resume_during_the_delay_of_a_nack_does_not_shorten_it(bus: Any, tools: Any) -> None:
    """Not before this time has passed."""
    topic = await numbers(bus, 1)
    where = record_pb2.TopicPartition(topic=topic, partition=0)
    stream = await bus.subscribe(topic, group=bus.name("group"))
    _, (delivery,) = await take(stream, tools, 1)
    delay = Duration(nanos=300_000_000)
    begin = asyncio.get_running_loop().time()
    await stream.send(nacks=[subscriber_pb2.Nack(delivery=delivery, delay=delay)], resume=[where])
    await take(stream, tools, 1)
    assert asyncio.get_running_loop().time() - begin >= 0.28


async def test_a_seek_moves_the_group_s_place(bus: Any, tools: Any) -> None:
    """Back and forth, for who comes after too; its echo comes before the records."""
    topic = await numbers(bus, 6)
    where = record_pb2.TopicPartition(topic=topic, partition=0)
    group = bus.name("group")
    stream = await bus.subscribe(topic, group=group)
    _, deliveries = await take(stream, tools, 6)
    await stream.send(acks=deliveries, seeks=[{"partition": where, "to": Start(offset=2)}], command_id=5)
    await stream.until(lambda message: message.command_id == 5)
    assert (await take(stream, tools, 4))[0] == [b"2", b"3", b"4", b"5"]
    assert await committed(bus, group) == [2]
    await stream.end()
    other = await bus.subscribe(topic, group=group)
    assert (await take(other, tools, 1))[0][0] == b"2"


async def test_release_gives_a_partition_up_unfinished(bus: Any, tools: Any) -> None:
    """After `revoking`: the next owner gets the rest again at once."""
    topic = await bus.topic(2)
    for partition in (0, 1):
        await bus.publish(topic, b"%d" % partition, partition=partition)
    group = bus.name("group")
    first = await bus.subscribe(topic, group=group)
    await take(first, tools, 2)
    second = await bus.subscribe(topic, group=group)
    (gone,) = (await first.until(lambda message: message.assignment_change.revoking)).assignment_change.revoking
    await first.send(release=[gone])
    await first.until(lambda message: message.assignment_change.revoked)
    assert (await take(second, tools, 1))[0] == [b"%d" % gone.partition]


async def test_on_send_commits_before_it_sends(bus: Any, tools: Any) -> None:
    """At most once: what came is never delivered again."""
    topic = await numbers(bus, 5)
    group = bus.name("group")
    stream = await bus.subscribe(topic, group=group, ack_mode=subscriber_pb2.ACK_MODE_ON_SEND)
    await take(stream, tools, 5)
    assert await committed(bus, group) == [5]
    stream.call.cancel()


async def test_credit_in_a_group_replaces_its_window(bus: Any, tools: Any) -> None:
    """Additive, whatever is acknowledged."""
    topic = await numbers(bus, 10)
    stream = await bus.subscribe(topic, group=bus.name("group"), explicit_credit=True)
    await stream.until(lambda message: message.assignment_change.assigned)
    await quiet(stream)
    await stream.send(credit=subscriber_pb2.Credit(records=4, bytes=1000))
    assert (await take(stream, tools, 4))[0] == [b"0", b"1", b"2", b"3"]
    await quiet(stream)


async def test_assign_paused_waits_for_the_member_to_say_where(bus: Any, tools: Any) -> None:
    """For offsets that are kept elsewhere: seek, then resume."""
    topic = await numbers(bus, 6)
    where = record_pb2.TopicPartition(topic=topic, partition=0)
    stream = await bus.subscribe(topic, group=bus.name("group"), assign_paused=True)
    await stream.until(lambda message: message.assignment_change.assigned)
    await quiet(stream)
    await stream.send(seeks=[{"partition": where, "to": Start(offset=4)}], resume=[where])
    assert (await take(stream, tools, 2))[0] == [b"4", b"5"]


async def test_a_member_comes_back_as_itself_after_a_broken_stream(bus: Any, tools: Any) -> None:
    """With its member id, within half a second; late acknowledgements count or are stale, never fatal."""
    topic = await numbers(bus, 4)
    group = bus.name("group")
    first = await bus.subscribe(topic, group=group)
    member_id = (await first.read()).started.member_id
    _, deliveries = await take(first, tools, 4)
    first.call.cancel()
    second = await bus.subscribe(topic, group=group, member_id=member_id)
    assert (await second.read()).started.member_id == member_id
    await second.send(acks=deliveries[:2], command_id=1)
    await second.until(lambda message: message.command_id == 1)
    assert len((await bus.call("GroupService/GetGroup", name=group)).group.members) == 1
    await second.end()


async def test_of_two_static_members_with_one_instance_the_newer_wins(bus: Any, tools: Any) -> None:
    """The older is told to stop; the partitions stay with the name, also after a half-close, until it says `leave`."""
    topic = await numbers(bus, 2)
    group = bus.name("group")
    first = await bus.subscribe(topic, group=group, instance_id="billing-1")
    await take(first, tools, 2)
    second = await bus.subscribe(topic, group=group, instance_id="billing-1")
    (await first.refusal()).expect("MEMBER_REPLACED")
    _, deliveries = await take(second, tools, 2)
    await second.send(acks=deliveries)
    await second.end()
    (member,) = (await bus.call("GroupService/GetGroup", name=group)).group.members
    assert member.instance_id == "billing-1" and len(member.assigned) == 1
    third = await bus.subscribe(topic, group=group, instance_id="billing-1")
    await third.until(lambda message: message.assignment_change.assigned)
    await third.send(leave=True)
    while await third.read() is not None:
        pass
    assert not (await bus.call("GroupService/GetGroup", name=group)).group.members


async def test_a_member_that_hangs_loses_its_partitions_and_is_told(bus: Any, tools: Any) -> None:
    """After its own processing timeout, while another gets the records."""
    topic = await numbers(bus, 2)
    group = bus.name("group")
    hanging = await bus.subscribe(topic, group=group, processing_timeout=Duration(nanos=300_000_000))
    await take(hanging, tools, 2)
    (await hanging.refusal()).expect("PROCESSING_TIMEOUT")
    other = await bus.subscribe(topic, group=group)
    assert (await take(other, tools, 2))[0] == [b"0", b"1"]


async def test_added_partitions_are_picked_up_from_their_earliest_record(bus: Any, tools: Any) -> None:
    """By a group that began at LATEST, too."""
    topic = await numbers(bus, 2)
    stream = await bus.subscribe(topic, group=bus.name("group"), at=Start(edge=2))
    await stream.until(lambda message: message.assignment_change.assigned)
    await bus.call("TopicService/AddPartitions", name=topic, partition_count=2)
    await bus.publish(topic, b"new", partition=1)
    assert (await take(stream, tools, 1))[0] == [b"new"]


async def test_records_deleted_under_a_group_are_passed_over(bus: Any, tools: Any) -> None:
    """`skipped` says which; the committed offset follows."""
    topic = await numbers(bus, 6)
    group = bus.name("group")
    first = await bus.subscribe(topic, group=group, window_records=1)
    _, deliveries = await take(first, tools, 1)
    await first.send(acks=deliveries)
    await first.end()
    await bus.call("TopicService/DeleteRecords", topic=topic, before=Start(offset=4))
    second = await bus.subscribe(topic, group=group)
    gap = (await second.until(lambda message: message.skipped)).skipped[0].range
    assert (gap.base_offset, gap.end_offset) == (1, 4)


async def test_a_smart_client_coordinates_by_heartbeat_and_commits(start_bus: Any, tools: Any) -> None:
    """Joins, shares with a second one, hands over, commits under its fences, leaves."""
    bus = await start_bus(heartbeat_interval_seconds="0.2", session_timeout_seconds="7")
    topic = await numbers(bus, 5, partitions=2)
    group = bus.name("group")
    beat = "GroupService/Heartbeat"
    one = await bus.call(beat, group=group, topics=[topic], client_id="one")
    assert one.member_epoch >= 1 and one.session_timeout.ToMilliseconds() == 7000
    assert [assigned.position.partition for assigned in one.target] == [0, 1]
    fences = {assigned.position.partition: assigned.fence for assigned in one.target}
    owned = [record_pb2.TopicPartition(topic=topic, partition=partition) for partition in (0, 1)]
    place = Place(topic=topic, partition=0, offset=3)
    mine = [group_pb2.Assignment(position=place, fence=fences[0])]
    report = await bus.call("GroupService/CommitOffsets", group=group, member_id=one.member_id, offsets=mine)
    assert [done.offset for done in report.report.committed] == [3]
    me = {"group": group, "member_id": one.member_id, "member_epoch": one.member_epoch}
    two = await bus.call(beat, group=group, topics=[topic], client_id="two")
    assert not two.target
    asked = await bus.call(beat, **me, owned=owned)
    assert len(asked.target) == 1
    kept = asked.target[0].position.partition
    await bus.call(beat, **me, owned=[owned[kept]], topics=[topic])
    got = await bus.call(beat, group=group, member_id=two.member_id, member_epoch=two.member_epoch)
    assert [assigned.position.partition for assigned in got.target] == [1 - kept]
    stale = [group_pb2.Assignment(position=Place(topic=topic, partition=1 - kept, offset=0), fence=fences[1 - kept])]
    report = await bus.call("GroupService/CommitOffsets", group=group, member_id=one.member_id, offsets=stale)
    tools.refusal_in(report.report.rejected[0].failure).expect("ASSIGNMENT_LOST")
    outside = await bus.refused("GroupService/CommitOffsets", group=group, offsets=mine)
    outside.expect("GROUP_NOT_EMPTY")
    for member in (one, two):
        await bus.call(beat, group=group, member_id=member.member_id, member_epoch=member.member_epoch, leave=True)
    assert not (await bus.call("GroupService/GetGroup", name=group)).group.members


async def test_unary_acknowledgement_counts_until_another_owns_the_partition(bus: Any, tools: Any) -> None:
    """Also after the member's stream has gone."""
    topic = await numbers(bus, 2)
    group = bus.name("group")
    first = await bus.subscribe(topic, group=group)
    member_id = (await first.read()).started.member_id
    _, deliveries = await take(first, tools, 2)
    first.call.cancel()
    await asyncio.sleep(0.1)
    answer = await bus.call("SubscriberService/Acknowledge", group=group, member_id=member_id, acks=deliveries[:1])
    assert [place.offset for place in answer.report.committed] == [1]
    second = await bus.subscribe(topic, group=group)
    assert (await take(second, tools, 1))[0] == [b"1"]
    answer = await bus.call("SubscriberService/Acknowledge", group=group, member_id=member_id, acks=deliveries[1:])
    tools.refusal_in(answer.report.rejected[0].failure).expect("ASSIGNMENT_LOST")


async def test_a_nack_of_a_partition_that_is_being_given_up_gives_it_up(bus: Any, tools: Any) -> None:
    """The next owner gets the records again; the old one gets nothing more of it."""
    topic = await bus.topic(2)
    for partition in (0, 1):
        await bus.publish(topic, b"%d" % partition, partition=partition)
    group = bus.name("group")
    first = await bus.subscribe(topic, group=group)
    _, deliveries = await take(first, tools, 2)
    second = await bus.subscribe(topic, group=group)
    (gone,) = (await first.until(lambda message: message.assignment_change.revoking)).assignment_change.revoking
    (nacked,) = [delivery for delivery in deliveries if delivery.partition == gone.partition]
    await first.send(nacks=[subscriber_pb2.Nack(delivery=nacked, delay=Duration())], command_id=1)
    assert (await take(second, tools, 1))[0] == [b"%d" % gone.partition]
