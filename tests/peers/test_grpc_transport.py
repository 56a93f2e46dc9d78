"""Links over gRPC on the loopback: order, room, both kinds of end, and who is not let in."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from structlog.testing import capture_logs

from broker.clock import SystemClock
from broker.peers.calls import Calls, PeerUnreachable
from broker.peers.grpc_link import LinkSettings
from broker.peers.grpc_transport import GrpcTransport, PeerAddressInUse, PeerSettings
from broker.peers.identity import Identity
from broker.peers.links import Link, PeerId

SETTINGS = PeerSettings(
    ping_s=0.3,
    ping_timeout_s=0.3,
    connect_timeout_s=1.0,
    link=LinkSettings(queue_bytes=100_000, queue_bytes_max=50_000_000),
)


class End:
    """What one end of a link saw."""

    def __init__(self) -> None:
        self.link: Link | None = None
        self.messages: list[bytes] = []
        self.over = asyncio.Event()
        self.room = asyncio.Event()
        self._news = asyncio.Event()

    def received(self, message: bytes) -> None:
        assert not self.over.is_set()
        self.messages.append(message)
        self._news.set()

    def writable(self) -> None:
        self.room.set()

    def closed(self) -> None:
        assert not self.over.is_set()
        self.over.set()
        self._news.set()

    async def until(self, count: int) -> None:
        while len(self.messages) < count:
            assert not self.over.is_set()
            self._news.clear()
            await self._news.wait()


class Node:
    """A transport, the ends that others opened, and whom it lost."""

    def __init__(self, node_id: int, store_id: str = "", cluster_id: str = "flights") -> None:
        identity = Identity(cluster_id, PeerId(node_id, store_id or f"store-{node_id}"))
        self.transport = GrpcTransport(identity, clock=SystemClock(), settings=SETTINGS)
        self.accepted: asyncio.Queue[End] = asyncio.Queue()
        self.lost: asyncio.Queue[int] = asyncio.Queue()
        self.transport.add_lost_listener(self.lost.put_nowait)
        self.transport.serve("pull", self._accept)
        self.calls = Calls(self.transport, clock=SystemClock(), node_id=node_id)
        self.port = 0

    def _accept(self, link: Link) -> End:
        end = End()
        end.link = link
        self.accepted.put_nowait(end)
        return end

    def open(self, node_id: int) -> tuple[Link, End]:
        end = End()
        end.link = self.transport.connect(node_id, "pull", end)
        return end.link, end


@pytest.fixture
async def make() -> AsyncIterator[Callable[..., Any]]:
    """Makes nodes that listen; `knows` are those whose address it has."""
    nodes: list[Node] = []

    async def start(node_id: int, *knows: Node, port: int = 0, **identity: str) -> Node:
        node = Node(node_id, **identity)
        node.port = await node.transport.start("127.0.0.1", port)
        for other in knows:
            node.transport.set_address(other.transport.me.node_id, f"127.0.0.1:{other.port}")
        nodes.append(node)
        return node

    yield start
    for node in nodes:
        await node.calls.close()
        await node.transport.stop()


async def test_messages_arrive_in_order_in_both_directions_and_each_end_knows_the_other(make: Any) -> None:
    second = await make(2)
    first = await make(1, second)
    link, end = first.open(2)
    sent = [b"%d" % number for number in range(5000)]
    for message in sent:
        link.send(message)
    far = await second.accepted.get()
    assert far.link.peer == PeerId(1, "store-1")
    far.link.send(b"and back")
    await far.until(5000)
    await end.until(1)
    assert far.messages == sent and end.messages == [b"and back"]
    assert link.peer == PeerId(2, "store-2")


async def test_a_large_message_passes_whole(make: Any) -> None:
    second = await make(2)
    first = await make(1, second)
    link, _ = first.open(2)
    link.send(bytes(15 * 1024 * 1024))
    link.send(b"")
    far = await second.accepted.get()
    await far.until(2)
    assert [len(message) for message in far.messages] == [15 * 1024 * 1024, 0]


async def test_a_link_that_is_full_says_so_and_tells_when_there_is_room(make: Any) -> None:
    second = await make(2)
    first = await make(1, second)
    link, end = first.open(2)
    sent = 0
    while link.has_room:
        link.send(bytes(10_000))
        sent += 1
    assert sent == 11
    await end.room.wait()
    assert link.has_room


async def test_who_sends_on_without_room_loses_the_link_rather_than_all_memory(make: Any) -> None:
    second = await make(2)
    first = await make(1, second)
    link, end = first.open(2)
    with capture_logs() as logs:
        for _ in range(6):
            link.send(bytes(10_000_000))
    await end.over.wait()
    assert [line["event"] for line in logs] == ["peer_link_overrun"]


@pytest.mark.parametrize("closer", ["opener", "acceptor"])
async def test_a_link_that_is_closed_delivers_what_was_sent_and_nobody_is_thought_dead(make: Any, closer: str) -> None:
    second = await make(2)
    first = await make(1, second)
    link, near = first.open(2)
    link.send(b"hello")
    far = await second.accepted.get()
    await far.until(1)
    ours, theirs = (near, far) if closer == "opener" else (far, near)
    ours.link.send(b"last words")
    ours.link.close()
    ours.link.send(b"too late")
    await asyncio.gather(near.over.wait(), far.over.wait())
    assert theirs.messages[-1] == b"last words"
    assert first.lost.empty() and second.lost.empty()


async def test_a_node_that_stops_is_not_thought_dead(make: Any) -> None:
    second = await make(2)
    first = await make(1, second)
    link, near = first.open(2)
    link.send(b"")
    far = await second.accepted.get()
    await second.transport.stop()
    await asyncio.gather(near.over.wait(), far.over.wait())
    assert first.lost.empty()


async def test_a_link_to_nowhere_closes_and_says_why_once(make: Any) -> None:
    first = await make(1)
    first.transport.set_address(2, "127.0.0.1:1")
    with capture_logs() as logs:
        for _ in range(3):
            _, end = first.open(2)
            await end.over.wait()
        _, end = first.open(3)
        await end.over.wait()
    assert [(line["event"], line["peer"]) for line in logs] == [("peer_unreachable", 2), ("peer_unreachable", 3)]
    assert "refused" in logs[0]["why"] and "no address" in logs[1]["why"]
    assert "refused" in first.transport.problems[2] and "no address" in first.transport.problems[3]
    assert first.lost.empty()


async def test_a_name_that_does_not_resolve_yet_is_a_reason_to_wait_not_to_fail(make: Any) -> None:
    first = await make(1)
    first.transport.set_address(2, "postbus-2.invalid:7071")
    with capture_logs() as logs:
        _, end = first.open(2)
        await end.over.wait()
    assert "postbus-2.invalid" in logs[0]["endpoint"]
    assert first.transport.problems.keys() == {2} and first.transport.peers == {2: False}
    second = await make(2)
    first.transport.set_address(2, f"127.0.0.1:{second.port}")
    _, end = first.open(2)
    (await second.accepted.get()).link.send(b"here")
    await end.until(1)
    assert not first.transport.problems and first.transport.peers == {2: True}


@pytest.mark.parametrize(
    ("identity", "kind", "says"),
    [
        ({"cluster_id": "trains"}, "other_cluster", "cluster trains"),
        ({"node_id": 2, "store_id": "zz"}, "same_node_id", "two nodes 2"),
        ({"node_id": 2, "store_id": "store-2"}, "itself", "reached itself"),
    ],
)
async def test_a_wrong_peer_is_refused_and_both_sides_say_why(
    make: Any, identity: dict[str, Any], kind: str, says: str
) -> None:
    second = await make(2)
    stranger = await make(**{"node_id": 1, **identity})
    stranger.transport.set_address(2, f"127.0.0.1:{second.port}")
    with capture_logs() as logs:
        for _ in range(3):
            link, end = stranger.open(2)
            link.send(b"let me in")
            await end.over.wait()
    there, here = sorted(logs, key=lambda line: str(line["kind"] == "refused_there"))
    assert (there["event"], there["kind"], there["peer"]) == ("peer_refused", kind, "ipv4:127.0.0.1")
    assert says in there["why"] and says in here["why"]
    assert says in stranger.transport.problems[2]
    assert second.accepted.empty()


async def test_a_second_node_under_an_id_is_refused_while_the_first_is_connected(make: Any) -> None:
    """And let in once that is gone: then it is the same node with a new disk."""
    second = await make(2)
    first = await make(1, second)
    _, end = first.open(2)
    await second.accepted.get()
    impostor = await make(1, second, store_id="another disk")
    with capture_logs() as logs:
        _, refused = impostor.open(2)
        await refused.over.wait()
    assert {line["kind"] for line in logs} == {"same_node_id", "refused_there"}
    assert all("there are two nodes 1" in line["why"] for line in logs)
    assert not end.over.is_set() and second.accepted.empty()
    await first.transport.stop()
    opened: asyncio.Task[End] | None = None
    while opened is None or not opened.done():
        _, end = impostor.open(2)
        opened = opened or asyncio.create_task(second.accepted.get())
        await asyncio.wait({opened, asyncio.create_task(end.over.wait())}, return_when=asyncio.FIRST_COMPLETED)
    far = opened.result()
    assert far.link is not None and far.link.peer == PeerId(1, "another disk")


async def test_a_node_that_is_unwelcome_is_told_why(make: Any) -> None:
    """By whoever knows more of it than who it is; others are let in."""
    second = await make(2)
    second.transport.unwelcome = lambda peer: f"{peer.store_id} was removed" if peer.node_id == 1 else ""
    first, third = await make(1, second), await make(3, second)
    with capture_logs() as logs:
        _, refused = first.open(2)
        await refused.over.wait()
    assert {line["kind"] for line in logs} == {"removed", "refused_there"}
    assert all(line["why"] == "store-1 was removed" for line in logs)
    assert first.transport.problems[2] == "store-1 was removed"
    third.open(2)
    far = await second.accepted.get()
    assert far.link is not None and far.link.peer.node_id == 3


async def test_an_address_that_is_another_nodes_is_refused(make: Any) -> None:
    third = await make(3)
    first = await make(1)
    first.transport.set_address(2, f"127.0.0.1:{third.port}")
    with capture_logs() as logs:
        _, end = first.open(2)
        await end.over.wait()
    assert all("node 3 answers at the address of node 2" in line["why"] for line in logs) and logs
    assert third.accepted.empty()


async def test_a_grpc_server_that_is_no_node_is_refused(make: Any) -> None:
    async def echo(_: Any, context: Any) -> None:
        await context.send_initial_metadata(())
        await context.write(b"hello")

    server = grpc.aio.server()
    handler = grpc.method_handlers_generic_handler(
        "postbus.internal.v1.ReplicationService", {"Pull": grpc.stream_stream_rpc_method_handler(echo)}
    )
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    first = await make(1)
    first.transport.set_address(2, f"127.0.0.1:{port}")
    with capture_logs() as logs:
        for service in ("pull", "calls"):
            end = End()
            first.transport.connect(2, service, end)
            await end.over.wait()
    assert [line["kind"] for line in logs] == ["no_node"]
    assert "no node of Postbus" in logs[0]["why"]
    await server.stop(0)


async def test_garbage_on_the_peer_port_harms_nobody(make: Any) -> None:
    second = await make(2)
    reader, writer = await asyncio.open_connection("127.0.0.1", second.port)
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" + bytes(range(256)) * 100)
    while await reader.read(65536):
        pass
    writer.close()
    first = await make(1, second)
    link, _ = first.open(2)
    link.send(b"hello")
    await (await second.accepted.get()).until(1)


async def test_a_frame_that_does_not_parse_ends_the_link(make: Any) -> None:
    second = await make(2)
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{second.port}")
    call: Any = channel.stream_stream("/postbus.internal.v1.ReplicationService/Pull")(
        metadata=grpc.aio.Metadata(*Identity("flights", PeerId(1, "a")).metadata())
    )
    with capture_logs() as logs:
        await call.write(b"\xff\xff\xff")
        end = await second.accepted.get()
        await end.over.wait()
    assert [line["event"] for line in logs] == ["peer_garbage"]
    await channel.close()


async def test_a_handler_with_a_bug_loses_its_link_and_not_the_node(make: Any) -> None:
    second = await make(2)
    first = await make(1, second)
    link, near = first.open(2)
    link.send(b"hello")
    far = await second.accepted.get()
    await far.until(1)
    far.received = lambda _: 1 / 0
    with capture_logs() as logs:
        link.send(b"boom")
        await asyncio.gather(near.over.wait(), far.over.wait())
    assert [line["event"] for line in logs] == ["peer_handler_failure"]
    first.open(2)
    await second.accepted.get()


async def test_a_port_that_is_taken_is_named(make: Any) -> None:
    first = await make(1)
    with pytest.raises(PeerAddressInUse, match=f"127.0.0.1:{first.port}"):
        await make(2, port=first.port)


async def test_questions_travel_over_it(make: Any) -> None:
    second = await make(2)
    first = await make(1, second)

    async def echo(peer: PeerId, payload: bytes) -> bytes:
        assert peer == PeerId(1, "store-1")
        return payload

    second.calls.handle("echo", echo)
    large = bytes(3 * 1024 * 1024)
    answers = await asyncio.gather(*(first.calls.call(2, "echo", large, timeout_s=30) for _ in range(4)))
    assert answers == [large] * 4


# --- a peer that is killed -----------------------------------------------------------------------------------------


async def _process(port: int = 0) -> tuple[asyncio.subprocess.Process, int]:
    script = Path(__file__).with_name("peer_process.py")
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(script), str(port), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    return process, int(await process.stdout.readline())


async def test_a_peer_that_dies_is_noticed_and_found_again_when_it_is_back(make: Any) -> None:
    """Both directions of the same port: the new process is reached with the first attempt after it listens."""
    process, port = await _process()
    try:
        first = await make(1)
        first.transport.set_address(2, f"127.0.0.1:{port}")
        link, end = first.open(2)
        link.send(b"hello")
        await end.until(1)
        process.kill()
        assert await first.lost.get() == 2
        await end.over.wait()
        _, refused = first.open(2)
        await refused.over.wait()
        with pytest.raises(PeerUnreachable):
            await first.calls.call(2, "echo", b"", timeout_s=5)
        await process.wait()
        process, _ = await _process(port)
        link, end = first.open(2)
        link.send(b"again")
        await end.until(1)
        assert end.messages == [b"again"]
    finally:
        process.kill()
        await process.wait()


async def test_a_peer_that_is_silent_is_noticed_by_its_missing_pings(make: Any) -> None:
    process, port = await _process()
    try:
        first = await make(1)
        first.transport.set_address(2, f"127.0.0.1:{port}")
        link, end = first.open(2)
        link.send(b"hello")
        await end.until(1)
        process.send_signal(signal.SIGSTOP)
        assert await first.lost.get() == 2
        await end.over.wait()
    finally:
        process.kill()
        await process.wait()
