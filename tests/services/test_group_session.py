"""A member's stream where something comes between: rebalances, refusals, other calls. Nobody stays for ever."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from live_node import LiveNode, OpenNode
from postbus.v1 import group_pb2, record_pb2, subscriber_pb2

from broker.errors import PostbusError, Reason
from broker.groups.client import CoordinatorClient
from broker.groups.coordinator import GroupCoordinator
from broker.services import group_session
from broker.services.group_session import GroupSession
from broker.storage.batch import NewBatch

GROUP = "g"


class Member:
    """A member and all that came to it."""

    def __init__(self, bus: LiveNode, **start: Any) -> None:
        self.call = bus.subscriber.Subscribe()
        topics = [subscriber_pb2.TopicSelector(topic="t")]
        self.start = subscriber_pb2.SubscribeStart(group=GROUP, topics=topics, **start)
        self.came: list[subscriber_pb2.SubscribeResponse] = []

    async def send(self, **request: Any) -> None:
        await self.call.write(subscriber_pb2.SubscribeRequest(**request))

    async def until(self, enough: Callable[[subscriber_pb2.SubscribeResponse], Any]) -> Any:
        """The first true answer of `enough` to a response."""
        while True:
            response = await self.call.read()
            assert response is not grpc.aio.EOF, await self.call.code()
            self.came.append(response)
            if found := enough(response):
                return found

    async def status(self) -> grpc.StatusCode:
        """How the stream ends."""
        with contextlib.suppress(grpc.aio.AioRpcError):
            while (response := await self.call.read()) is not grpc.aio.EOF:
                self.came.append(response)
        code: grpc.StatusCode = await self.call.code()
        return code

    async def batch(self) -> subscriber_pb2.DeliveredBatch:
        batch: subscriber_pb2.DeliveredBatch = (await self.until(lambda response: response.batches))[0]
        return batch


def session_of(bus: LiveNode) -> GroupSession:
    (session,) = bus.node._subscriber._subscriptions
    assert isinstance(session, GroupSession)
    return session


def refused(reason: Reason) -> PostbusError:
    return PostbusError(reason, "not now, says the test", retry_after_ms=10)


async def members_go(bus: LiveNode) -> None:
    """Returns when the group has no members."""
    while (await bus.groups.GetGroup(group_pb2.GetGroupRequest(name=GROUP))).group.members:
        pass


@pytest.fixture
async def bus(open_node: OpenNode) -> LiveNode:
    bus = await open_node(member_resume_seconds=0.05)
    await bus.create("t", 2)
    for partition in range(2):
        await bus.publish("t", b"r", partition=partition)
    return bus


async def test_a_partition_asked_for_during_a_seek_passes_on(bus: LiveNode, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rebalance that comes while the coordinator moves a place must not be forgotten: the partition passes on."""
    seek, moved, go_on = GroupCoordinator.seek, asyncio.Event(), asyncio.Event()

    async def slow(*arguments: Any) -> Any:
        assigned = await seek(*arguments)
        moved.set()
        await go_on.wait()
        return assigned

    monkeypatch.setattr(GroupCoordinator, "seek", slow)
    async with asyncio.timeout(20):
        first, second = Member(bus), Member(bus)
        await first.send(start=first.start)
        deliveries: dict[int, subscriber_pb2.Delivery] = {}
        while len(deliveries) < 2:
            batches = await first.until(lambda response: response.batches)
            deliveries |= {batch.delivery.partition: batch.delivery for batch in batches}
        session = session_of(bus)
        cursors = {cursor.partition.number: cursor for cursor in session.cursors.values()}
        # Partition 1 is the one that goes to a second member.
        await first.send(nacks=[subscriber_pb2.Nack(delivery=deliveries[1])])
        await moved.wait()
        await second.send(start=second.start)
        await first.until(lambda response: response.assignment_change.revoking)
        assert cursors[1].revoking, "the test nacks the wrong partition"
        go_on.set()
        got = await second.batch()
        assert got.delivery.partition == 1
        assert got.delivery.base_offset == 0


async def test_a_nack_s_delay_outlasts_a_rebalance(bus: LiveNode, monkeypatch: pytest.MonkeyPatch) -> None:
    """The coordinator's heartbeat may tell of the new fence before the seek itself returns: the delay holds."""
    seek = GroupCoordinator.seek

    async def told_late(self: GroupCoordinator, *arguments: Any) -> Any:
        assigned = await seek(self, *arguments)
        await session_of(bus)._heartbeat_coordinator()
        return assigned

    monkeypatch.setattr(GroupCoordinator, "seek", told_late)
    async with asyncio.timeout(20):
        member = Member(bus)
        await member.send(start=member.start)
        delivery = (await member.batch()).delivery
        nack = subscriber_pb2.Nack(delivery=delivery)
        nack.delay.FromSeconds(3000)
        await member.send(nacks=[nack], command_id=1)
        await member.until(lambda response: response.command_id == 1)
        session = session_of(bus)
        (cursor,) = (c for c in session.cursors.values() if c.partition.number == delivery.partition)
        assert cursor.fence > delivery.fence
        assert cursor.delayed
        assert not cursor.paused


async def test_a_member_whose_leave_is_refused_goes_all_the_same(
    bus: LiveNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The groups log takes nothing while the client half-closes: the member must not hold its partitions for ever."""
    heartbeat = GroupCoordinator.heartbeat

    async def full(self: GroupCoordinator, call: Any) -> Any:
        if call.leave:
            raise refused(Reason.ERROR_REASON_DISK_FULL)
        return await heartbeat(self, call)

    monkeypatch.setattr(GroupCoordinator, "heartbeat", full)
    async with asyncio.timeout(20):
        member = Member(bus)
        await member.send(start=member.start)
        await member.batch()
        await member.call.done_writing()
        assert await member.status() == grpc.StatusCode.RESOURCE_EXHAUSTED
        await members_go(bus)


async def test_a_member_that_hangs_is_looked_at_again_after_a_refusal(
    bus: LiveNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The groups log takes nothing when the processing timeout comes: the timeout holds all the same, later."""
    timed_out = GroupCoordinator.processing_timed_out
    refusals: list[Any] = []

    async def full_once(*arguments: Any) -> None:
        if not refusals:
            refusals.append(arguments)
            raise refused(Reason.ERROR_REASON_DISK_FULL)
        await timed_out(*arguments)

    monkeypatch.setattr(GroupCoordinator, "processing_timed_out", full_once)
    async with asyncio.timeout(20):
        member = Member(bus)
        member.start.processing_timeout.FromMilliseconds(100)
        await member.send(start=member.start)
        assert await member.status() == grpc.StatusCode.ABORTED
        await members_go(bus)
        assert refusals


async def test_a_member_that_is_expelled_has_no_ghost(bus: LiveNode, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stream ends for its processing timeout where the coordinator, one rebalance ahead, did not remove it."""

    async def only_what_it_was_giving_up(*arguments: Any) -> None:
        pass

    monkeypatch.setattr(GroupCoordinator, "processing_timed_out", only_what_it_was_giving_up)
    async with asyncio.timeout(20):
        member = Member(bus)
        member.start.processing_timeout.FromMilliseconds(100)
        await member.send(start=member.start)
        assert await member.status() == grpc.StatusCode.ABORTED
        await members_go(bus)


async def test_on_send_sends_nothing_whose_commit_was_refused(bus: LiveNode, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most once: what another owner gets by now must not go out here as well."""

    async def stale(self: Any, group: str, member_id: str, entries: Any) -> list[PostbusError | None]:
        return [refused(Reason.ERROR_REASON_ASSIGNMENT_LOST) for _ in entries]

    monkeypatch.setattr(GroupCoordinator, "commit", stale)
    async with asyncio.timeout(20):
        member = Member(bus, ack_mode=subscriber_pb2.ACK_MODE_ON_SEND)
        await member.send(start=member.start)
        with contextlib.suppress(grpc.aio.AioRpcError):
            await member.until(lambda response: response.ack_report.rejected)
        assert not any(response.batches for response in member.came)


async def test_acknowledgements_outlast_a_coordinator_that_is_nowhere(
    bus: LiveNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stream goes on, and what was acknowledged meanwhile is committed once there is a coordinator again."""
    commit, failures = CoordinatorClient.commit, 3

    async def nowhere(*arguments: Any) -> Any:
        nonlocal failures
        if failures:
            failures -= 1
            raise refused(Reason.ERROR_REASON_NO_LEADER)
        return await commit(*arguments)

    monkeypatch.setattr(CoordinatorClient, "commit", nowhere)
    monkeypatch.setattr(group_session, "COORDINATOR_RETRY_S", 0.01)
    async with asyncio.timeout(20):
        member = Member(bus, report_acks=True)
        await member.send(start=member.start)
        await member.send(acks=[(await member.batch()).delivery])
        committed = await member.until(lambda response: response.ack_report.committed)
        assert committed[0].offset == 1
        assert not failures
        await bus.publish("t", b"another", partition=0)
        assert await member.until(lambda response: [b for b in response.batches if b.delivery.base_offset == 1])


async def test_a_half_close_commits_what_was_on_its_way(bus: LiveNode, monkeypatch: pytest.MonkeyPatch) -> None:
    """The coordinator goes with a commit under way: the end of the stream says it again, and only then leaves."""
    commit, calls, never = CoordinatorClient.commit, 0, asyncio.Event()

    async def first_is_lost(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 1:
            await never.wait()
        return await commit(*arguments)

    monkeypatch.setattr(CoordinatorClient, "commit", first_is_lost)
    async with asyncio.timeout(20):
        member = Member(bus)
        await member.send(start=member.start)
        batch = await member.batch()
        await member.send(acks=[batch.delivery], command_id=1)
        await member.until(lambda response: response.command_id == 1)
        await member.call.done_writing()
        assert await member.status() == grpc.StatusCode.OK
    found = await bus.groups.GetCommittedOffsets(group_pb2.GetCommittedOffsetsRequest(group=GROUP))
    assert {place.partition: place.offset for place in found.offsets}[batch.delivery.partition] == 1


async def test_a_stream_that_slept_asks_what_it_holds_before_it_delivers(
    bus: LiveNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process was stopped: others may have the partitions. What is theirs is not sent here once more."""
    heartbeat, gone = CoordinatorClient.heartbeat, False

    async def expired(self: CoordinatorClient, call: Any, **options: Any) -> Any:
        if gone and call.member_epoch and not call.leave:
            raise refused(Reason.ERROR_REASON_ASSIGNMENT_LOST)
        return await heartbeat(self, call, **options)

    monkeypatch.setattr(CoordinatorClient, "heartbeat", expired)
    async with asyncio.timeout(20):
        member = Member(bus)
        await member.send(start=member.start)
        await member.batch()
        session = session_of(bus)
        session._ticked_at -= 20
        await bus.publish("t", b"after a short sleep")
        await member.batch()
        assert not session._unsure
        gone = True
        session._ticked_at -= 20
        await bus.publish("t", b"not for this member")
        count = len(member.came)
        assert await member.status() == grpc.StatusCode.ABORTED
        assert not any(response.batches for response in member.came[count:])


async def test_a_unary_acknowledgement_answers_once_it_is_durable(
    bus: LiveNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even of what was acknowledged on the stream a moment before, and with where the commit is."""
    commit, began, go_on = GroupCoordinator.commit, asyncio.Event(), asyncio.Event()

    async def slow(*arguments: Any) -> Any:
        began.set()
        await go_on.wait()
        return await commit(*arguments)

    monkeypatch.setattr(GroupCoordinator, "commit", slow)
    async with asyncio.timeout(20):
        member = Member(bus)
        await member.send(start=member.start)
        delivery = (await member.batch()).delivery
        await member.send(acks=[delivery])
        await began.wait()
        request = subscriber_pb2.AcknowledgeRequest(group=GROUP, member_id=session_of(bus).member_id, acks=[delivery])
        answer = asyncio.ensure_future(bus.subscriber.Acknowledge(request))
        early, _ = await asyncio.wait({answer}, timeout=0.1)
        assert not early
        go_on.set()
        assert [place.offset for place in (await answer).report.committed] == [1]


async def test_a_unary_acknowledgement_that_did_not_count_says_so(
    bus: LiveNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The coordinator refused the commit: the answer is `rejected`, not `committed`."""

    async def stale(self: Any, group: str, member_id: str, entries: Any) -> list[PostbusError | None]:
        return [refused(Reason.ERROR_REASON_ASSIGNMENT_LOST) for _ in entries]

    monkeypatch.setattr(GroupCoordinator, "commit", stale)
    async with asyncio.timeout(20):
        member = Member(bus)
        await member.send(start=member.start)
        delivery = (await member.batch()).delivery
        request = subscriber_pb2.AcknowledgeRequest(group=GROUP, member_id=session_of(bus).member_id, acks=[delivery])
        report = (await bus.subscriber.Acknowledge(request)).report
        assert not report.committed
        assert len(report.rejected) == 1


async def test_a_member_that_hangs_and_does_not_read_leaves_nothing_behind(open_node: OpenNode) -> None:
    """Its stream is stuck in a write: the processing timeout ends that too, not only the membership."""
    bus = await open_node()
    await bus.create("t")
    (partition,) = bus.node._bus.partitions.topic("t").partitions
    batch = record_pb2.RecordBatch(records=[record_pb2.Record(value=bytes(900_000))]).SerializeToString()
    for _ in range(30):
        partition.append(NewBatch(batch=batch, record_count=1))
    await partition.log.barrier()
    async with asyncio.timeout(20):
        member = Member(bus, window_bytes=1 << 30)
        member.start.processing_timeout.FromMilliseconds(100)
        await member.send(start=member.start)
        ended = asyncio.Event()
        assert (await member.call.read()).HasField("started")
        session = session_of(bus)
        leave = session.leave

        async def left() -> None:
            await leave()
            ended.set()

        session.leave = left  # type: ignore[method-assign]
        await ended.wait()
        await members_go(bus)
    member.call.cancel()
