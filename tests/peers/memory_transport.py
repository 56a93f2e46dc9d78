"""The network of a test: links in memory between any number of nodes on one loop, which can be cut, held and broken.

For tests of drivers; the simulation has a network of its own with delays and losses.
"""

import asyncio
from collections import deque
from collections.abc import Callable

from broker.peers.links import Link, LinkHandler, PeerId


class MemoryNetwork:
    """Who is there, and who reaches whom."""

    def __init__(self, *, room_messages: int = 1000) -> None:
        self.room_messages = room_messages
        self.transports: dict[int, MemoryTransport] = {}
        self._cut: set[tuple[int, int]] = set()
        self._held: set[tuple[int, int]] = set()

    def transport(self, node_id: int, store_id: str = "") -> "MemoryTransport":
        """A node of the network; a second one under the same number takes the place of the first."""
        transport = MemoryTransport(self, PeerId(node_id, store_id or f"store-{node_id}"))
        self.transports[node_id] = transport
        return transport

    def cut(self, one: int, other: int) -> None:
        """Breaks all links between two nodes, and refuses new ones."""
        self._cut |= {(one, other), (other, one)}
        for link in [*self.transports[one].links, *self.transports[other].links]:
            if {link.mine.node_id, link.peer.node_id} == {one, other}:
                link.lose()

    def heal(self) -> None:
        """All reach all, and nothing is held."""
        self._cut.clear()
        held, self._held = self._held, set()
        for transport in self.transports.values():
            for link in list(transport.links):
                if held:
                    link.pump()

    def hold(self, sender: int, receiver: int) -> None:
        """What one sends to the other waits, one way, until `heal`; links stay."""
        self._held.add((sender, receiver))

    def kill(self, node_id: int) -> None:
        """A node is gone at once; the others' ends of its links break."""
        gone = self.transports.pop(node_id)
        gone.alive = False
        for link in list(gone.links):
            link.lose()

    def reaches(self, sender: int, receiver: int) -> bool:
        return (sender, receiver) not in self._cut and receiver in self.transports

    def holds(self, sender: int, receiver: int) -> bool:
        return (sender, receiver) in self._held


class MemoryTransport:
    """One node's side. Always listens."""

    def __init__(self, network: MemoryNetwork, me: PeerId) -> None:
        self.me = me
        self.alive = True
        self.links: list[MemoryLink] = []
        self.addresses: dict[int, str] = {}
        self._network = network
        self._services: dict[str, Callable[[Link], LinkHandler]] = {}
        self._lost_listeners: list[Callable[[int], None]] = []

    def serve(self, service: str, accept: Callable[[Link], LinkHandler]) -> None:
        assert service not in self._services
        self._services[service] = accept

    def set_address(self, node_id: int, endpoint: str) -> None:
        self.addresses[node_id] = endpoint

    def add_lost_listener(self, lost: Callable[[int], None]) -> None:
        self._lost_listeners.append(lost)

    def connect(self, node_id: int, service: str, handler: LinkHandler) -> "MemoryLink":
        link = MemoryLink(self._network, self, PeerId(node_id, ""), handler)
        self.links.append(link)
        asyncio.get_running_loop().call_soon(self._establish, link, service)
        return link

    def _establish(self, link: "MemoryLink", service: str) -> None:
        other = self._network.transports.get(link.peer.node_id)
        if link.over or not self.alive:
            return
        if other is None or not self._network.reaches(self.me.node_id, link.peer.node_id):
            link.end()
            return
        accept = other._services.get(service)
        if accept is None:
            link.end()
            return
        far = MemoryLink(self._network, other, self.me, None)
        other.links.append(far)
        far.other, link.other = link, far
        link.peer = other.me
        far.handler = accept(far)
        link.pump()
        far.pump()

    def lost(self, node_id: int) -> None:
        if self.alive:
            for listener in list(self._lost_listeners):
                listener(node_id)


class MemoryLink:
    """One end of a link. What is sent arrives in a later turn of the loop."""

    def __init__(
        self, network: MemoryNetwork, transport: MemoryTransport, peer: PeerId, handler: LinkHandler | None
    ) -> None:
        self.peer = peer
        self.mine = transport.me
        self.handler = handler
        self.other: MemoryLink | None = None
        self.over = False
        self._network = network
        self._transport = transport
        self._queue: deque[bytes] = deque()
        self._pumping = False
        self._full = False

    @property
    def has_room(self) -> bool:
        self._full = self._full or len(self._queue) >= self._network.room_messages
        return not self._full

    def send(self, message: bytes) -> None:
        assert isinstance(message, bytes)
        if not self.over:
            self._queue.append(message)
            self.pump()

    def close(self) -> None:
        """The other end hears all that was sent before."""
        if not self.over:
            asyncio.get_running_loop().call_soon(self.end)

    def lose(self) -> None:
        """It breaks: what is under way is lost, and both nodes are told."""
        if self.over:
            return
        other, mine = self.other, self.mine
        self._queue.clear()
        if other is not None:
            other._queue.clear()
        self.end()
        self._transport.lost(self.peer.node_id)
        if other is not None:
            other._transport.lost(mine.node_id)

    def pump(self) -> None:
        if not self._pumping and self._queue and self.other is not None:
            self._pumping = True
            asyncio.get_running_loop().call_soon(self._deliver)

    def _deliver(self) -> None:
        self._pumping = False
        other = self.other
        if self._network.holds(self.mine.node_id, self.peer.node_id) or other is None:
            return
        while self._queue and not other.over:
            assert other.handler is not None
            other.handler.received(self._queue.popleft())
        if self._full and not self.over:
            self._full = False
            assert self.handler is not None
            self.handler.writable()

    def end(self) -> None:
        if self.over:
            return
        self._deliver()
        self.over = True
        self._transport.links.remove(self)
        assert self.handler is not None
        self.handler.closed()
        if self.other is not None:
            asyncio.get_running_loop().call_soon(self.other.end)
