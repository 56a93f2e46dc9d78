"""The network between simulated processes: the `Transport` of `broker/peers/links.py`.

Owns what happens to links. A link is an ordered stream, so nothing in it is dropped, repeated or reordered: it is
delayed, stalled, or lost as a whole, and then some of what was on its way arrives and the rest does not. Faults hold
for a direction between two nodes: a cut makes messages pile up; if it heals in time they flow on, otherwise both ends
find out by keepalive, each at its own moment. When a process dies its machine resets the links, so the other ends
learn it at once, with the hint that a peer was lost; when a machine dies they learn it by keepalive. After a break of
which one end does not know yet, the other may connect again: two links from one peer.
"""

import zlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from sim_loop import Process, SimLoop

from broker.peers.links import Link, LinkHandler, PeerId

Accept = Callable[[Link], LinkHandler]


@dataclass(slots=True)
class NetworkSpeed:
    """How fast it is; may be changed at any time."""

    delay_s: float = 0.001
    jitter_s: float = 0.002
    slow_share: float = 0.01
    """Share of messages that take ten times as long (and hold up those behind)."""
    connect_timeout_s: float = 1.0
    keepalive_s: float = 2.0
    """How long a link may be without an answer before an end gives it up."""
    queue_bytes_max: int = 8 * 1024 * 1024


class SimNetwork:
    """Who can reach whom."""

    def __init__(self, loop: SimLoop) -> None:
        self.loop = loop
        self.random = loop.random("network")
        self.speed = NetworkSpeed()
        self.delivered_count = 0
        self.watch: Callable[[int, int, str, bytes], None] | None = None
        """watch(from, to, service, message) for each message that arrives."""
        self._listening: dict[str, SimTransport] = {}
        self._cut: dict[tuple[int, int], int] = {}  # direction -> number of the cut, so that one knows its own
        self._cuts_count = 0
        self._links: list[_Link] = []

    def listen(self, transport: "SimTransport") -> None:
        """From now on others can connect."""
        self._listening[transport.endpoint] = transport

    def listener(self, endpoint: str) -> "SimTransport | None":
        """Who listens there now."""
        found = self._listening.get(endpoint)
        return found if found is not None and found.process.alive else None

    def delay_s(self) -> float:
        speed = self.speed
        delay = speed.delay_s + self.random.random() * speed.jitter_s
        return delay * 10 if self.random.random() < speed.slow_share else delay

    # --- Faults.

    def is_cut(self, from_node: int, to_node: int) -> bool:
        return (from_node, to_node) in self._cut

    def cut(self, from_node: int, to_node: int) -> None:
        """Nothing gets through in this direction."""
        if self.is_cut(from_node, to_node) or from_node == to_node:
            return
        self._cuts_count += 1
        number = self._cut[from_node, to_node] = self._cuts_count
        self.loop.call_later(self.speed.keepalive_s, self._keepalive_missed, from_node, to_node, number)

    def heal(self, from_node: int, to_node: int) -> None:
        """It gets through again; what piled up comes first."""
        if self._cut.pop((from_node, to_node), None) is not None:
            for link in list(self._links):
                for end in (link.client, link.server):
                    if (end.me.node_id, end.other.me.node_id) == (from_node, to_node):
                        end.flow()

    def heal_all(self) -> None:
        for from_node, to_node in list(self._cut):
            self.heal(from_node, to_node)

    def break_links(self, one: int, other: int, *, half: bool = False) -> int:
        """All links between the two are lost; half: only one end of each learns it now. Returns how many."""
        links = self._between(one, other)
        for link in links:
            link.break_(half=half)
        return len(links)

    def died(self, process: Process, node_id: int, *, machine: bool) -> None:
        """The process is gone; with its machine nobody resets its links."""
        for link in [link for link in self._links if process in (link.client.process, link.server.process)]:
            link.died(process, machine=machine)
        self._listening = {at: found for at, found in self._listening.items() if found.process is not process}

    def _keepalive_missed(self, from_node: int, to_node: int, number: int) -> None:
        if self._cut.get((from_node, to_node)) != number:
            return
        for link in self._between(from_node, to_node):
            link.break_(half=False)
        # Links opened into the cut since then are given up, too.
        self.loop.call_later(self.speed.keepalive_s, self._keepalive_missed, from_node, to_node, number)

    def _between(self, one: int, other: int) -> "list[_Link]":
        return [link for link in self._links if {link.client.me.node_id, link.server.me.node_id} == {one, other}]

    def open_link(self, link: "_Link") -> None:
        self._links.append(link)

    def forget(self, link: "_Link") -> None:
        if link in self._links:
            self._links.remove(link)


class SimTransport:
    """All links of one process."""

    def __init__(
        self, network: SimNetwork, process: Process, me: PeerId, *, cluster_id: str = "", endpoint: str | None = None
    ) -> None:
        self.network = network
        self.process = process
        self.me = me
        self.cluster_id = cluster_id
        self.endpoint = endpoint or f"node-{me.node_id}:7071"
        self.services: dict[str, Accept] = {}
        self.refusals: list[str] = []
        self._addresses: dict[int, str] = {}
        self._lost_listeners: list[Callable[[int], None]] = []

    def start(self) -> None:
        """Lets others connect."""
        self.network.listen(self)

    def connect(self, node_id: int, service: str, handler: LinkHandler) -> Link:
        link = _Link(self, PeerId(node_id, ""), service, handler)
        link.connect(self._addresses.get(node_id, ""))
        return link.client

    def serve(self, service: str, accept: Accept) -> None:
        self.services[service] = accept

    def set_address(self, node_id: int, endpoint: str) -> None:
        self._addresses[node_id] = endpoint

    def add_lost_listener(self, lost: Callable[[int], None]) -> None:
        self._lost_listeners.append(lost)

    def lost(self, node_id: int) -> None:
        """An established connection with that node broke."""
        for listener in self._lost_listeners:
            listener(node_id)


class _End:
    """One end of a link: what it sends goes to the other, in order."""

    def __init__(self, link: "_Link", process: Process | None, me: PeerId, peer: PeerId) -> None:
        self.link = link
        self.process = process
        self.me = me
        self.peer = peer
        self.handler: LinkHandler | None = None
        self.other: _End
        self.open = True
        self._told = False
        self._waiting: deque[tuple[str, bytes]] = deque()  # sent, not arrived
        self._scheduled = 0  # of these, on the wire
        self._stalled = False  # something of it hit a cut
        self._queued_bytes = 0
        self._was_full = False
        self._last_arrival = 0.0

    # --- Link.

    @property
    def has_room(self) -> bool:
        return self._queued_bytes < self.link.network.speed.queue_bytes_max

    def send(self, message: bytes) -> None:
        if self.open and self._runs:
            assert isinstance(message, bytes), type(message)
            self._put("message", message)
            self._was_full = self._was_full or not self.has_room

    def close(self) -> None:
        if self.open and self._runs:
            self._put("end", b"")
            self.open = False
            self._tell_closed(0.0)

    # ---

    @property
    def _runs(self) -> bool:
        return self.process is not None and self.process.alive

    def _put(self, kind: str, message: bytes) -> None:
        self._waiting.append((kind, message))
        self._queued_bytes += len(message)
        self.flow()

    def flow(self) -> None:
        """Sets out what is waiting, unless there is a cut."""
        network, process = self.link.network, self.other.process
        if process is None or network.is_cut(self.me.node_id, self.other.me.node_id):
            return
        self._stalled = False
        # Before the other side has taken the link, nothing but the request for it is on its way.
        handshake = self is self.link.client and not self.link.established
        while self._scheduled < len(self._waiting) and not (handshake and self._waiting[self._scheduled][0] != "open"):
            self._scheduled += 1
            self._last_arrival = max(self._last_arrival, network.loop.now + network.delay_s())
            network.loop.call_in(process, self._last_arrival - network.loop.now, self._arrive)

    def _arrive(self) -> None:
        """In the other end's process."""
        network, other = self.link.network, self.other
        if not self._scheduled:
            return
        if self._stalled or network.is_cut(self.me.node_id, other.me.node_id):
            # It, and all behind it, waits for the cut to heal.
            self._stalled = True
            self._scheduled -= 1
            return
        self._scheduled -= 1
        kind, message = self._waiting.popleft()
        self._queued_bytes -= len(message)
        if kind == "open":
            self.link.arrived()
        elif kind == "accepted":
            other.peer = self.me
            self.link.established = True
            other.flow()
        elif kind == "end":
            other.lost(hint=False)
        elif other.open and other.handler is not None:
            network.delivered_count += 1
            network.loop.note(
                f"{self.me.node_id}>{other.me.node_id} {self.link.service} {len(message)} {zlib.crc32(message):08x}"
            )
            if network.watch is not None:
                network.watch(self.me.node_id, other.me.node_id, self.link.service, message)
            other.handler.received(message)
        if self._was_full and self._queued_bytes * 2 < network.speed.queue_bytes_max:
            self._was_full = False
            if self.process is not None:
                network.loop.call_in(self.process, 0.0, self._tell_writable)

    def _tell_writable(self) -> None:
        if self.open and self.handler is not None:
            self.handler.writable()

    def lose_the_rest(self, *, some_arrive: bool) -> None:
        """Of what is on its way a beginning arrives, the rest never will."""
        kept = self.link.network.random.randint(0, self._scheduled) if some_arrive else 0
        while len(self._waiting) > kept:
            self._queued_bytes -= len(self._waiting.pop()[1])
        self._scheduled = kept

    def lost(self, *, hint: bool, delay_s: float = 0.0) -> None:
        """This end learns that the link is gone, after all that arrives before."""
        if self.process is None or not self.process.alive:
            return
        loop = self.link.network.loop
        at = max(loop.now + delay_s, self.other._last_arrival if delay_s else 0.0)
        loop.call_in(self.process, at - loop.now, self._lost, hint)

    def _lost(self, hint: bool) -> None:
        if not self.open:
            return
        self.open = False
        self._tell_closed(0.0)
        transport = self.link.transport_of(self)
        if hint and transport is not None and self.link.established:
            transport.lost(self.peer.node_id)

    def _tell_closed(self, delay_s: float) -> None:
        if not self._told and self.process is not None:
            self._told = True
            self.link.network.loop.call_in(self.process, delay_s, self._closed)
        if not self.other.open or self.other.process is None:
            self.link.network.forget(self.link)

    def _closed(self) -> None:
        if self.handler is not None:
            self.handler.closed()


class _Link:
    """Both ends of one link."""

    def __init__(self, transport: SimTransport, peer: PeerId, service: str, handler: LinkHandler) -> None:
        self.network = transport.network
        self.service = service
        self.established = False
        self.client = _End(self, transport.process, transport.me, peer)
        self.server = _End(self, None, peer, transport.me)
        self.client.other, self.server.other = self.server, self.client
        self.client.handler = handler
        self._client_transport = transport
        self._server_transport: SimTransport | None = None

    def transport_of(self, end: _End) -> SimTransport | None:
        return self._client_transport if end is self.client else self._server_transport

    def connect(self, endpoint: str) -> None:
        network, client = self.network, self.client
        if not client.process or not client.process.alive:
            return
        listener = network.listener(endpoint)
        if listener is None:
            client.lost(hint=False, delay_s=2 * network.delay_s())
            return
        self._server_transport = listener
        self.server.process = listener.process
        network.open_link(self)
        client._put("open", b"")
        network.loop.call_in(client.process, network.speed.connect_timeout_s, self._connect_timeout)

    def arrived(self) -> None:
        """The server's side takes it, or does not."""
        server = self._server_transport
        assert server is not None
        if not self.server.open:
            return
        me = self._client_transport.me
        accept = server.services.get(self.service)
        refusal = ""
        if server.cluster_id and self._client_transport.cluster_id not in ("", server.cluster_id):
            refusal = f"cluster {self._client_transport.cluster_id} is not {server.cluster_id}"
        elif me.node_id == server.me.node_id:
            refusal = f"node {me.node_id} is this one"
        elif self.server.me.node_id != server.me.node_id:
            refusal = f"this is node {server.me.node_id}, not {self.server.me.node_id}"
        elif accept is None:
            refusal = f"nobody serves {self.service}"
        self.server.me = server.me
        if refusal or accept is None:
            server.refusals.append(refusal)
            self.server.open = False
            self.server._told = True
            self.client.lost(hint=False, delay_s=self.network.delay_s())
            return
        self.server._put("accepted", b"")
        self.server.handler = accept(self.server)

    def _connect_timeout(self) -> None:
        if not self.established and self.client.open:
            self.client.lost(hint=False)
            self.client.lose_the_rest(some_arrive=False)
            self.server.lost(hint=False, delay_s=self.network.delay_s())
            self.network.forget(self)

    def break_(self, *, half: bool) -> None:
        """The connection is gone."""
        network = self.network
        ends = [self.client, self.server]
        if network.random.random() < 0.5:
            ends.reverse()
        for end in ends:
            end.lose_the_rest(some_arrive=not network.is_cut(end.me.node_id, end.other.me.node_id))
        ends[0].lost(hint=True, delay_s=network.delay_s())
        ends[1].lost(hint=True, delay_s=network.speed.keepalive_s if half else network.delay_s())
        # Whatever is sent into it goes nowhere.
        for end in ends:
            end.open, end.send = end.open, lambda message: None  # type: ignore[method-assign]
        network.forget(self)

    def died(self, process: Process, *, machine: bool) -> None:
        """One of the processes is gone."""
        network = self.network
        dead, other = (self.client, self.server) if self.client.process is process else (self.server, self.client)
        dead.lose_the_rest(some_arrive=not network.is_cut(dead.me.node_id, other.me.node_id))
        dead.open = False
        reset = not machine and not network.is_cut(dead.me.node_id, other.me.node_id)
        other.lost(hint=True, delay_s=network.delay_s() if reset else network.speed.keepalive_s)
        network.forget(self)
