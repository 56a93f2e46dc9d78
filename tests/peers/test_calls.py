"""Questions between nodes: who gets which answer, in which order they start, and what a loss says."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
from memory_transport import MemoryNetwork, MemoryTransport

from broker.clock import ManualClock
from broker.errors import PostbusError, Reason, topic_not_found
from broker.peers.calls import Calls, CallsSettings, PeerUnreachable, from_peer, to_peer
from broker.peers.links import PeerId
from broker.stubs import peers_pb2


@dataclass
class Nodes:
    network: MemoryNetwork
    clock: ManualClock
    first: Calls
    second: Calls
    second_transport: MemoryTransport


@pytest.fixture
async def nodes(network: MemoryNetwork) -> AsyncIterator[Nodes]:
    """Two; the second answers "echo", and "wait" when it is told to."""
    clock = ManualClock()
    settings = CallsSettings(calls_max=4, bytes_max=1000)
    first = Calls(network.transport(1), clock=clock, node_id=1, store_id="store-1", settings=settings)
    transport = network.transport(2)
    second = Calls(transport, clock=clock, node_id=2, store_id="store-2", settings=settings)
    both = Nodes(network, clock, first, second, transport)
    for calls in (first, second):
        calls.handle("echo", _echo)
    yield both
    await first.close()
    await second.close()


async def _echo(peer: PeerId, payload: bytes) -> bytes:
    return b"%d:" % peer.node_id + payload


async def _turns(count: int = 10) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


class Gate:
    """A handler that waits until it is let through, and knows who came."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.started: list[bytes] = []
        self.cancelled: list[bytes] = []
        self.gone = asyncio.Event()

    async def __call__(self, _: PeerId, payload: bytes) -> bytes:
        self.started.append(payload)
        try:
            await self.open.wait()
        except asyncio.CancelledError:
            self.cancelled.append(payload)
            self.gone.set()
            raise
        return payload


async def test_an_answer_comes_back_and_the_handler_knows_who_asks(nodes: Nodes) -> None:
    assert await nodes.first.call(2, "echo", b"a", timeout_s=5) == b"1:a"
    assert await nodes.second.call(1, "echo", b"b", timeout_s=5) == b"2:b"


async def test_a_node_can_ask_itself(nodes: Nodes) -> None:
    assert await nodes.first.call(1, "echo", b"a", timeout_s=5) == b"1:a"


@pytest.mark.parametrize("asked", [1, 2])
async def test_handlers_start_in_the_order_of_the_questions_and_end_in_any(nodes: Nodes, asked: int) -> None:
    gate = Gate()
    order: list[bytes] = []

    async def first_is_last(peer: PeerId, payload: bytes) -> bytes:
        order.append(payload)
        if payload == b"0":
            await gate.open.wait()
        return payload

    (nodes.first if asked == 1 else nodes.second).handle("order", first_is_last)
    open_ = [nodes.first.start_call(asked, "order", b"%d" % number, timeout_s=5) for number in range(4)]
    await asyncio.wait(open_[1:])
    assert order == [b"0", b"1", b"2", b"3"]
    assert not open_[0].done()
    gate.open.set()
    assert await open_[0] == b"0"


@pytest.mark.parametrize("asked", [1, 2])
async def test_an_error_for_a_client_travels_whole(nodes: Nodes, asked: int) -> None:
    async def refuse(_: PeerId, __: bytes) -> bytes:
        raise topic_not_found("orders")

    (nodes.first if asked == 1 else nodes.second).handle("refuse", refuse)
    with pytest.raises(PostbusError) as raised:
        await nodes.first.call(asked, "refuse", b"", timeout_s=5)
    assert raised.value.trailers() == topic_not_found("orders").trailers()


def test_all_parts_of_an_error_survive_the_way() -> None:
    error = PostbusError(
        Reason.ERROR_REASON_NO_LEADER,
        "nobody",
        field="a.b",
        resource=("partition", "orders/1"),
        retry_after_ms=0,
        metadata={"epoch": 7},
    )
    back = from_peer(peers_pb2.PeerError.FromString(to_peer(error).SerializeToString()))
    assert back.failure() == error.failure()
    assert back.trailers() == error.trailers()


def test_a_reason_of_a_newer_version_says_that_the_outcome_is_unknown() -> None:
    assert from_peer(peers_pb2.PeerError(reason=4711, message="?")).kind.outcome_unknown


@pytest.mark.parametrize("asked", [1, 2])
async def test_a_fault_is_no_answer_and_its_outcome_is_unknown(nodes: Nodes, asked: int) -> None:
    async def fault(_: PeerId, __: bytes) -> bytes:
        raise ZeroDivisionError

    (nodes.first if asked == 1 else nodes.second).handle("fault", fault)
    with pytest.raises(PeerUnreachable) as raised:
        await nodes.first.call(asked, "fault", b"", timeout_s=5)
    assert raised.value.sent and raised.value.node_id == asked


@pytest.mark.parametrize("asked", [1, 2])
async def test_a_method_that_is_not_known_there_was_not_sent(nodes: Nodes, asked: int) -> None:
    with pytest.raises(PeerUnreachable, match="does not know nonsense") as raised:
        await nodes.first.call(asked, "nonsense", b"", timeout_s=5)
    assert not raised.value.sent


async def test_a_node_that_is_not_there_was_not_asked(nodes: Nodes) -> None:
    with pytest.raises(PeerUnreachable) as raised:
        await nodes.first.call(3, "echo", b"", timeout_s=5)
    assert not raised.value.sent


async def test_when_the_link_breaks_the_outcome_is_unknown_and_the_handler_ends(nodes: Nodes) -> None:
    gate = Gate()
    nodes.second.handle("wait", gate)
    call = nodes.first.start_call(2, "wait", b"a", timeout_s=5)
    await _turns()
    assert gate.started == [b"a"]
    nodes.network.cut(1, 2)
    with pytest.raises(PeerUnreachable) as raised:
        await call
    assert raised.value.sent
    await _turns()
    assert gate.cancelled == [b"a"]


async def test_after_a_loss_the_next_question_connects_again(nodes: Nodes) -> None:
    await nodes.first.call(2, "echo", b"", timeout_s=5)
    nodes.network.cut(1, 2)
    nodes.network.heal()
    assert await nodes.first.call(2, "echo", b"a", timeout_s=5) == b"1:a"


async def test_after_a_failure_to_connect_questions_fail_at_once_until_the_delay_is_over(nodes: Nodes) -> None:
    nodes.network.cut(1, 2)
    for _ in range(2):
        with pytest.raises(PeerUnreachable):
            await nodes.first.call(2, "echo", b"", timeout_s=5)
    nodes.network.heal()
    with pytest.raises(PeerUnreachable, match="a moment ago"):
        await nodes.first.call(2, "echo", b"", timeout_s=5)
    nodes.clock.advance(0.25)
    assert await nodes.first.call(2, "echo", b"a", timeout_s=5) == b"1:a"


async def test_a_node_that_connects_is_there_and_can_be_asked_at_once(nodes: Nodes) -> None:
    nodes.network.cut(1, 2)
    with pytest.raises(PeerUnreachable):
        await nodes.first.call(2, "echo", b"", timeout_s=5)
    nodes.network.heal()
    await nodes.second.call(1, "echo", b"", timeout_s=5)
    assert await nodes.first.call(2, "echo", b"a", timeout_s=5) == b"1:a"


@pytest.mark.parametrize("asked", [1, 2])
async def test_a_question_ends_in_time_on_both_sides(nodes: Nodes, asked: int) -> None:
    gate = Gate()
    (nodes.first if asked == 1 else nodes.second).handle("wait", gate)
    with pytest.raises(TimeoutError):
        await nodes.first.call(asked, "wait", b"a", timeout_s=0.02)
    await gate.gone.wait()
    assert gate.cancelled == [b"a"]


async def test_an_answer_that_comes_too_late_goes_to_nobody(nodes: Nodes) -> None:
    nodes.network.hold(2, 1)
    with pytest.raises(TimeoutError):
        await nodes.first.call(2, "echo", b"a", timeout_s=0.02)
    nodes.network.heal()
    assert await nodes.first.call(2, "echo", b"b", timeout_s=5) == b"1:b"


async def test_too_many_open_questions_are_refused_as_not_sent(nodes: Nodes) -> None:
    gate = Gate()
    nodes.second.handle("wait", gate)
    open_ = [nodes.first.start_call(2, "wait", b"", timeout_s=5) for _ in range(4)]
    assert not nodes.first.has_room(2)
    with pytest.raises(PeerUnreachable, match="too many") as raised:
        await nodes.first.call(2, "wait", b"", timeout_s=5)
    assert not raised.value.sent
    waiting = asyncio.create_task(nodes.first.wait_for_room(2))
    await _turns()
    assert not waiting.done()
    gate.open.set()
    await asyncio.gather(*open_)
    await waiting
    assert nodes.first.has_room(2)


async def test_too_many_bytes_are_refused_but_one_question_always_fits(nodes: Nodes) -> None:
    large = nodes.first.start_call(2, "echo", bytes(5000), timeout_s=5)
    with pytest.raises(PeerUnreachable, match="too many"):
        await nodes.first.call(2, "echo", b"a", timeout_s=5)
    assert len(await large) == 5002
    assert await nodes.first.call(2, "echo", b"a", timeout_s=5) == b"1:a"


async def test_whoever_waits_for_room_is_told_of_a_loss(nodes: Nodes) -> None:
    nodes.second.handle("wait", Gate())
    open_ = [nodes.first.start_call(2, "wait", b"", timeout_s=5) for _ in range(4)]
    waiting = asyncio.create_task(nodes.first.wait_for_room(2))
    await _turns()
    nodes.network.cut(1, 2)
    await waiting
    await asyncio.wait(open_)
    assert all(isinstance(each.exception(), PeerUnreachable) for each in open_)


async def test_a_question_whose_asker_left_bothers_nobody(nodes: Nodes) -> None:
    gate = Gate()
    nodes.second.handle("wait", gate)
    call = nodes.first.start_call(2, "wait", b"a", timeout_s=5)
    await _turns()
    call.cancel()
    gate.open.set()
    assert await nodes.first.call(2, "echo", b"b", timeout_s=5) == b"1:b"


async def test_answers_wait_while_the_link_has_no_room(nodes: Nodes) -> None:
    nodes.network.room_messages = 1
    nodes.network.hold(2, 1)
    open_ = [nodes.first.start_call(2, "echo", b"%d" % number, timeout_s=5) for number in range(4)]
    await _turns()
    (link,) = nodes.second_transport.links
    assert len(link._queue) == 1
    nodes.network.heal()
    assert await asyncio.gather(*open_) == [b"1:0", b"1:1", b"1:2", b"1:3"]


async def test_closing_fails_what_was_asked_and_cancels_what_is_answered(nodes: Nodes) -> None:
    gate, own = Gate(), Gate()
    nodes.second.handle("wait", gate)
    nodes.first.handle("wait", own)
    call, myself = (nodes.first.start_call(node_id, "wait", b"a", timeout_s=5) for node_id in (2, 1))
    await _turns()
    await nodes.first.close()
    for each in (call, myself):
        with pytest.raises(PeerUnreachable):
            await each
    await _turns()
    assert gate.cancelled == own.cancelled == [b"a"]
    with pytest.raises(PeerUnreachable, match="stops"):
        await nodes.first.call(2, "echo", b"", timeout_s=5)


async def test_garbage_ends_the_link(nodes: Nodes) -> None:
    ended = asyncio.Event()

    class Stranger:
        def received(self, message: bytes) -> None: ...
        def writable(self) -> None: ...
        def closed(self) -> None:
            ended.set()

    stranger = nodes.network.transport(3)
    stranger.connect(2, "calls", Stranger()).send(b"\xff\xff\xff")
    await ended.wait()
    assert await nodes.first.call(2, "echo", b"a", timeout_s=5) == b"1:a"


async def test_a_question_to_itself_ends_though_its_time_was_over_before_it_began(nodes: Nodes) -> None:
    """The loop was held for so long: what is cancelled before its first step runs nothing, and still is an answer."""
    call = nodes.first.start_call(1, "echo", b"a", timeout_s=5)
    ((task, _),) = nodes.first._own._tasks.values()
    task.cancel()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(5):
            await call
    assert call.done() and not call.cancelled()
    assert await nodes.first.call(1, "echo", b"b", timeout_s=5) == b"1:b"
