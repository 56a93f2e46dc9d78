"""What outlives a member's stream, and how much of what it was sent may be out."""

import asyncio
from typing import Any

import grpc
import pytest
from live_node import OpenNode
from postbus.v1 import group_pb2, subscriber_pb2

from broker.groups.ack_tracker import AckTracker
from broker.peers.calls import PeerUnreachable
from broker.peers.links import PeerId
from broker.services.group_session import LEFT_MEMBERS_MAX, Membership, Memberships, WindowLimit
from broker.services.subscriber import MEMBER_ACKNOWLEDGE


class FakeSession:
    """What Memberships looks at."""

    def __init__(self, member_id: str, memberships: Memberships) -> None:
        self.plan = type("FakePlan", (), {"group": "g"})()
        self.member_id = member_id
        self.membership = Membership()
        self.membership = memberships.arrive(self)  # type: ignore[arg-type]


def test_members_that_left_are_remembered_within_a_bound() -> None:
    """For late acknowledgements; the oldest are forgotten first, one that came back is live."""
    memberships = Memberships()
    for number in range(LEFT_MEMBERS_MAX + 5):
        session = FakeSession(f"m{number}", memberships)
        memberships.leave(session)  # type: ignore[arg-type]
    assert len(memberships) == 0
    assert memberships.find("g", "m4") is None
    assert isinstance(memberships.find("g", "m5"), Membership)
    back = FakeSession("m5", memberships)
    assert memberships.find("g", "m5") is back  # type: ignore[comparison-overlap]
    assert len(memberships) == 1


def test_the_end_of_a_replaced_stream_does_not_end_its_successor() -> None:
    """A member resumed before its old stream was noticed to be gone."""
    memberships = Memberships()
    old = FakeSession("m", memberships)
    old.membership.trackers["topic", 0] = tracker = AckTracker(start_offset=0, fence=7)
    tracker.sent(0, 10, record_count=10, size_bytes=100, now=0.0)
    new = FakeSession("m", memberships)
    memberships.leave(old)  # type: ignore[arg-type]
    assert memberships.find("g", "m") is new  # type: ignore[comparison-overlap]
    assert new.membership.earlier_ends == {("topic", 0): (7, 10)}


def test_the_window_counts_all_partitions_and_opens_with_acknowledgements() -> None:
    """By records and by bytes; overdrawn by one batch at most."""
    trackers = {("t", number): AckTracker(start_offset=0, fence=1) for number in range(2)}
    plan: Any = type("FakePlan", (), {"window_records": 10, "window_bytes": 1000})()
    window = WindowLimit(plan, trackers)

    def send(partition: int, base: int, end: int, size_bytes: int) -> None:
        trackers["t", partition].sent(base, end, record_count=end - base, size_bytes=size_bytes, now=0.0)
        window.spend(end - base, size_bytes)

    send(0, 0, 5, 10)
    assert window.open()
    send(1, 0, 5, 10)
    assert not window.open()
    trackers["t", 0].acknowledge(0, 1, fence=1, now=0.0)
    assert window.open()
    send(0, 5, 6, 2000)
    assert not window.open()
    trackers["t", 0].acknowledge(0, 6, fence=1, now=0.0)
    assert window.open()


def test_the_window_asks_its_trackers_seldom() -> None:
    """A member may have a thousand partitions, and a response thousands of batches."""
    asked: list[int] = []

    class Counted(dict[Any, Any]):
        def values(self) -> Any:
            asked.append(1)
            return super().values()

    plan: Any = type("FakePlan", (), {"window_records": 5000, "window_bytes": 1 << 22})()
    window = WindowLimit(plan, Counted({("t", 0): AckTracker(start_offset=0, fence=1)}))
    for _ in range(2000):
        assert window.open()
        window.spend(1, 100)
    assert len(asked) == 1


def test_acknowledgements_that_can_not_be_committed_give_no_room() -> None:
    """One window more at most, until the coordinator is there again."""
    trackers = {("t", 0): AckTracker(start_offset=0, fence=1)}
    plan: Any = type("FakePlan", (), {"window_records": 3, "window_bytes": 1 << 22})()
    window = WindowLimit(plan, trackers)
    sent = 0

    def send_and_acknowledge() -> bool:
        nonlocal sent
        if not window.open():
            return False
        trackers["t", 0].sent(sent, sent + 1, record_count=1, size_bytes=1, now=0.0)
        window.spend(1, 1)
        trackers["t", 0].acknowledge(sent, sent + 1, fence=1, now=0.0)
        sent += 1
        return True

    assert all(send_and_acknowledge() for _ in range(10))
    window.frozen = True
    assert sum(send_and_acknowledge() for _ in range(10)) <= 3
    window.frozen = False
    assert all(send_and_acknowledge() for _ in range(10))


async def test_a_static_member_that_half_closes_is_told_ok_when_its_commit_is_durable(open_node: OpenNode) -> None:
    """It keeps its partitions, so that nothing else waits for a commit that is under way."""
    bus = await open_node()
    await bus.create("t")
    await bus.publish("t", b"1")
    call = bus.subscriber.Subscribe()
    start = subscriber_pb2.SubscribeStart(topics=[subscriber_pb2.TopicSelector(topic="t")], group="g", instance_id="i")
    await call.write(subscriber_pb2.SubscribeRequest(start=start))
    while not (response := await call.read()).batches:
        pass
    coordinator = bus.node._bus.groups
    commit, began, go_on, finished = coordinator.commit, asyncio.Event(), asyncio.Event(), []

    async def slow(*arguments: Any) -> Any:
        outcomes = await commit(*arguments)
        began.set()
        await go_on.wait()
        finished.append(outcomes)
        return outcomes

    coordinator.commit = slow  # type: ignore[method-assign]
    await call.write(subscriber_pb2.SubscribeRequest(acks=[response.batches[0].delivery]))
    async with asyncio.timeout(30):
        await began.wait()
        (subscription,) = bus.node._subscriber._subscriptions
        finish = subscription.finish
        finishing = asyncio.Event()

        async def watched() -> None:
            finishing.set()
            await finish()
            assert finished, "it goes on while the commit is under way"

        subscription.finish = watched  # type: ignore[method-assign]
        await call.done_writing()
        await finishing.wait()
        go_on.set()
        while await call.read() is not grpc.aio.EOF:
            pass
        assert await call.code() is grpc.StatusCode.OK
    answer = await bus.groups.GetCommittedOffsets(group_pb2.GetCommittedOffsetsRequest(group="g"))
    assert answer.offsets[0].offset == 1


async def test_an_acknowledgement_finds_the_node_of_the_member_s_stream(open_node: OpenNode) -> None:
    """Whichever node it is sent to: only that one knows what was delivered. One that is silent is UNAVAILABLE."""
    bus = await open_node()
    await bus.create("t")
    await bus.publish("t", b"1")
    call = bus.subscriber.Subscribe()
    start = subscriber_pb2.SubscribeStart(topics=[subscriber_pb2.TopicSelector(topic="t")], group="g")
    await call.write(subscriber_pb2.SubscribeRequest(start=start))
    member_id = ""
    async with asyncio.timeout(20):
        while not (response := await call.read()).batches:
            member_id = response.started.member_id or member_id
        service, groups = bus.node._subscriber, bus.node._bus.groups
        assert await groups.member_node("g", member_id) == 1
        assert await groups.member_node("g", "nobody") == 0
        request = subscriber_pb2.AcknowledgeRequest(group="g", member_id=member_id, acks=[response.batches[0].delivery])

        async def on_node_two(group: str, member: str, **_: Any) -> int:
            return 2

        async def there(node_id: int, method: str, payload: bytes, *, timeout_s: float) -> bytes:
            assert (node_id, method) == (2, MEMBER_ACKNOWLEDGE)
            service._memberships = memberships
            return await service.acknowledge_for_peer(PeerId(1, "s"), payload)

        # The same service plays the node that was asked, which knows nothing, and the one that holds the stream.
        memberships, service._memberships = service._memberships, Memberships()
        groups.member_node, groups.ask_node = on_node_two, there  # type: ignore[method-assign]
        answer = await bus.subscriber.Acknowledge(request)
        assert [place.offset for place in answer.report.committed] == [1]

        async def silent(node_id: int, *_: Any, **__: Any) -> bytes:
            raise PeerUnreachable(node_id, "says the test", sent=True)

        service._memberships = Memberships()
        groups.ask_node = silent  # type: ignore[method-assign]
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await bus.subscriber.Acknowledge(request)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        service._memberships = memberships
    call.cancel()
