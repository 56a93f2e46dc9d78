"""The way to each peer: one link out, opened when there is something to say and again after a growing wait.

Messages are dropped, never queued, where there is no link or no room on it: Raft repeats what matters. A link that a
peer opened carries messages too while the own one is not established: a node that just came up, or whose address is
not known here, is answered on it.
"""

from collections.abc import Callable
from random import Random
from typing import Final

from broker.clock import Clock
from broker.peers.backoff import Backoff
from broker.peers.links import Link, PeerId, Transport

SERVICE: Final = "raft"


class Routes:
    """All of a node's."""

    def __init__(
        self,
        transport: Transport,
        *,
        clock: Clock,
        random: Random,
        received: Callable[[PeerId, bytes], None],
        lost: Callable[[int], None],
    ) -> None:
        """received: a message and the end that it came from. lost: what was sent to that node may be lost."""
        self._transport = transport
        self._clock = clock
        self._random = random
        self._received = received
        self._lost = lost
        self._routes: dict[int, _Route] = {}
        self._closed = False
        transport.serve(SERVICE, self._accept)

    def send(self, node_id: int, message: bytes) -> None:
        """Sends it, or drops it."""
        if self._closed:
            return
        route = self._route(node_id)
        if route.outgoing is None and self._clock.monotonic() >= route.retry_at_s:
            end = route.outgoing = _End(self, node_id)
            end.link = self._transport.connect(node_id, SERVICE, end)
        link = route.link()
        if link is not None and link.has_room:
            link.send(message)

    def close(self) -> None:
        """Ends all links."""
        self._closed = True
        for route in self._routes.values():
            for end in (route.outgoing, route.incoming):
                if end is not None and end.link is not None:
                    end.link.close()

    def _route(self, node_id: int) -> "_Route":
        route = self._routes.get(node_id)
        if route is None:
            route = self._routes[node_id] = _Route(Backoff(self._random))
        return route

    def _accept(self, link: Link) -> "_End":
        end = _End(self, link.peer.node_id)
        end.link = link
        route = self._route(link.peer.node_id)
        route.incoming = end
        # It is up: no reason to wait any longer.
        route.retry_at_s = 0.0
        return end

    def _ended(self, end: "_End") -> None:
        route = self._route(end.node_id)
        if route.incoming is end:
            route.incoming = None
        if route.outgoing is end:
            route.outgoing = None
            if end.link is not None and end.link.peer.store_id:
                route.backoff.worked()
            route.retry_at_s = self._clock.monotonic() + route.backoff.failed()
        if not self._closed:
            self._lost(end.node_id)


class _Route:
    __slots__ = ("backoff", "incoming", "outgoing", "retry_at_s")

    def __init__(self, backoff: Backoff) -> None:
        self.outgoing: _End | None = None
        self.incoming: _End | None = None
        self.backoff = backoff
        self.retry_at_s = 0.0

    def link(self) -> Link | None:
        """The best there is: one whose other end has answered, or else the own one."""
        for end in (self.outgoing, self.incoming):
            if end is not None and end.link is not None and end.link.peer.store_id:
                return end.link
        return self.outgoing.link if self.outgoing is not None else None


class _End:
    """Of one link; its handler."""

    __slots__ = ("_routes", "link", "node_id")

    def __init__(self, routes: Routes, node_id: int) -> None:
        self._routes = routes
        self.node_id = node_id
        self.link: Link | None = None

    def received(self, message: bytes) -> None:
        routes = self._routes
        if self.link is not None and not routes._closed:
            routes._received(self.link.peer, message)

    def writable(self) -> None:
        """What was dropped meanwhile is repeated with the next heartbeats."""

    def closed(self) -> None:
        self._routes._ended(self)
