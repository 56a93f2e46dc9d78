"""Links over grpc.aio: a server on the peer port, one channel to each peer, one stream a link.

Owns who may talk at all (both ends say who they are before any message), how fast a peer that died is noticed, and
what gRPC may hold in memory. Never connects again by itself: whoever lost a link knows when it wants another one.
gRPC's own waiting between attempts, which grows to minutes where a name does not resolve, is avoided by giving up the
channel on which a stream could not be established.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, cast

import grpc
import structlog

from broker.clock import Clock
from broker.peers.grpc_link import GrpcLink, LinkSettings
from broker.peers.identity import Identity, PeerRefused
from broker.peers.links import Link, LinkHandler, PeerId
from broker.peers.troubles import Troubles

log = structlog.get_logger(__name__)

_PACKAGE: Final = "postbus.internal.v1"
_METHODS: Final = {
    "raft": ("RaftService", "Exchange"),
    "pull": ("ReplicationService", "Pull"),
    "calls": ("PeerService", "Call"),
}


@dataclass(frozen=True, slots=True)
class PeerSettings:
    """What governs connections between nodes."""

    ping_s: float = 2.0  # silence after which the other end is pinged
    ping_timeout_s: float = 1.0  # how long the answer may take
    connect_timeout_s: float = 2.0  # from opening a link to knowing who is there
    close_timeout_s: float = 1.0  # for what is still queued when a link is closed
    log_interval_s: float = 10.0  # the same trouble with the same peer is logged once in this time
    message_bytes_max: int = 16 * 1024 * 1024
    link: LinkSettings = field(default_factory=LinkSettings)


class PeerAddressInUse(Exception):  # noqa: N818 - named for what happened
    """The peer port can't be listened on."""


class _NotThere(Exception):  # noqa: N818 - named for what happened
    """Nobody answers at a peer's address; perhaps later."""


class GrpcTransport:
    """All links of one node."""

    def __init__(self, identity: Identity, *, clock: Clock, settings: PeerSettings | None = None) -> None:
        self.me = identity.me
        self._identity = identity
        self._settings = settings or PeerSettings()
        self._troubles = Troubles(clock, self._settings.log_interval_s)
        self._services: dict[str, Callable[[Link], LinkHandler]] = {}
        self._addresses: dict[int, str] = {}
        self._channels: dict[int, _Channel] = {}
        self._stores: dict[int, str] = {}
        self.unwelcome: Callable[[PeerId], str] = lambda _: ""  # why a node may not talk, though it is of this cluster
        self.problems: dict[int, str] = {}  # why the last try to reach a node failed; of those that were not since
        self._lost_listeners: list[Callable[[int], None]] = []
        self._links: dict[GrpcLink, asyncio.Task[None] | None] = {}  # with the task of those that this node opened
        self._server: grpc.aio.Server | None = None
        self._stopped = False

    # --- for its users ---

    def serve(self, service: str, accept: Callable[[Link], LinkHandler]) -> None:
        assert self._server is None and service in _METHODS and service not in self._services
        self._services[service] = accept

    def set_address(self, node_id: int, endpoint: str) -> None:
        if self._addresses.get(node_id) != endpoint:
            self._addresses[node_id] = endpoint
            # Links that work go on working; new ones take the new address.
            self._give_up(node_id)

    def add_lost_listener(self, lost: Callable[[int], None]) -> None:
        self._lost_listeners.append(lost)

    @property
    def peers(self) -> dict[int, bool]:
        """Nodes with a known address, and whether there is a connection in either direction."""
        there = {link.peer.node_id for link in self._links if link.peer.store_id and not link.over}
        return {node_id: node_id in there for node_id in sorted(self._addresses)}

    def connect(self, node_id: int, service: str, handler: LinkHandler) -> Link:
        link = GrpcLink(PeerId(node_id, ""), service, self._settings.link)
        link.handler = handler
        task = asyncio.get_running_loop().create_task(self._open(link, node_id))
        self._links[link] = task
        task.add_done_callback(lambda _: self._links.pop(link, None))
        return link

    # --- life ---

    async def start(self, host: str, port: int) -> int:
        """Listens; the port really bound. Raises PeerAddressInUse."""
        server = grpc.aio.server(options=self._server_options())
        for service, accept in self._services.items():
            name, method = _METHODS[service]
            handler = cast(Any, grpc.stream_stream_rpc_method_handler(self._acceptor(service, accept)))
            server.add_generic_rpc_handlers(
                (grpc.method_handlers_generic_handler(f"{_PACKAGE}.{name}", {method: handler}),)
            )
        address = f"[{host}]" if ":" in host else host
        try:
            bound = server.add_insecure_port(f"{address}:{port}")
        except RuntimeError:
            bound = 0
        if bound == 0:
            raise PeerAddressInUse(
                f"cannot listen on {address}:{port} for peers: another process does, or the address is not this"
                " machine's; choose another with --peer-port or --host"
            )
        self._server = server
        await server.start()
        return bound

    async def stop(self) -> None:
        """Closes all links, so that peers know that this node left and did not die; then the port."""
        self._stopped = True
        links = list(self._links.items())
        for link, _ in links:
            link.close()
        tasks = [task for _, task in links if task is not None]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=self._settings.close_timeout_s)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late)
        if self._server is not None:
            await self._server.stop(self._settings.close_timeout_s)

    # --- links that this node opens ---

    async def _open(self, link: GrpcLink, node_id: int) -> None:
        endpoint = self._addresses.get(node_id)
        try:
            if endpoint is None or self._stopped:
                raise _NotThere("no address is known" if endpoint is None else "this node stops")
            channel = self._channel(node_id, endpoint)
            channel.users += 1
            name, method = _METHODS[link.service]
            call: Any = channel.grpc.stream_stream(f"/{_PACKAGE}.{name}/{method}")(
                metadata=grpc.aio.Metadata(*self._identity.metadata(wanted_node_id=node_id))
            )
            try:
                link.peer = await self._greeting(call, node_id)
                self._saw(link.peer)
                await self._run_opened(link, call)
            finally:
                call.cancel()
                channel.users -= 1
                if not link.peer.store_id or not channel.users:
                    self._give_up(node_id, channel)
                if not channel.users:
                    await channel.grpc.close()
        except _NotThere as trouble:
            if not link.closing and not self._stopped:
                self.problems[node_id] = str(trouble).rpartition("last error: ")[2]  # of a chain of reasons
                self._troubles.tell("peer_unreachable", node_id, endpoint=endpoint, why=str(trouble))
        except PeerRefused as refused:
            self.problems[node_id] = str(refused)
            self._troubles.tell("peer_refused", node_id, kind=refused.kind, endpoint=endpoint, why=str(refused))
        finally:
            link.end()

    async def _greeting(self, call: Any, node_id: int) -> PeerId:
        """Who is there. Nothing is sent before that is known."""
        timer = asyncio.get_running_loop().call_later(self._settings.connect_timeout_s, call.cancel)
        try:
            metadata = tuple(await call.initial_metadata())
            if not self._identity.is_told_by(metadata):
                silent = call.cancelled()
                # Mostly an answer that is a status and nothing else; a stranger who goes on is cut off by the timer.
                code, details = await call.code(), await call.details()
                if code is grpc.StatusCode.UNAVAILABLE or silent:
                    raise _NotThere(f"no answer within {self._settings.connect_timeout_s:g} s" if silent else details)
                if code is grpc.StatusCode.FAILED_PRECONDITION:
                    raise PeerRefused("refused_there", details)
                raise PeerRefused("no_node", f"what answers there is no node of Postbus: {code.name} {details}")
            return self._identity.check(metadata, expected_node_id=node_id)
        finally:
            timer.cancel()

    async def _run_opened(self, link: GrpcLink, call: Any) -> None:
        loop, node_id = asyncio.get_running_loop(), link.peer.node_id
        reader = loop.create_task(_read(link, call.read))
        writer = loop.create_task(_write(link, call.write))
        try:
            await asyncio.wait({reader, writer}, return_when=asyncio.FIRST_COMPLETED)
            if not reader.done() and link.closing:
                # What was queued is written; it has arrived when the other end ends the call.
                await asyncio.wait({reader}, timeout=self._settings.close_timeout_s)
        finally:
            broken = not link.closing and not link.closed_there
            link.end()
            # A read that is cancelled cancels the call.
            reader.cancel()
            writer.cancel()
            await asyncio.wait({reader, writer})
        if broken:
            why = "" if reader.cancelled() else reader.result()
            self._troubles.tell("peer_lost", node_id, service=link.service, why=why)
            self._lost(node_id)

    def _channel(self, node_id: int, endpoint: str) -> "_Channel":
        channel = self._channels.get(node_id)
        if channel is None:
            channel = self._channels[node_id] = _Channel(
                grpc.aio.insecure_channel(endpoint, options=self._channel_options())
            )
        return channel

    def _give_up(self, node_id: int, channel: "_Channel | None" = None) -> None:
        """The next link gets a new channel; those on this one go on."""
        current = self._channels.get(node_id)
        if current is not None and (channel is None or current is channel):
            del self._channels[node_id]

    # --- links that others open ---

    def _acceptor(self, service: str, accept: Callable[[Link], LinkHandler]) -> Callable[[Any, Any], Any]:
        async def handle(_requests: object, context: Any) -> None:
            try:
                peer = self._identity.check(context.invocation_metadata() or ())
                self._refuse_second(peer)
                if why := self.unwelcome(peer):
                    raise PeerRefused("removed", why)
            except PeerRefused as refused:
                # The port is another one each time.
                address = context.peer().rpartition(":")[0]
                self._troubles.tell("peer_refused", address, kind=refused.kind, why=str(refused))
                await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(refused))
                return
            if self._stopped:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "this node stops")
            await context.send_initial_metadata(self._identity.metadata())
            self._saw(peer)
            await self._run_accepted(GrpcLink(peer, service, self._settings.link), accept, context)

        return handle

    def _refuse_second(self, peer: PeerId) -> None:
        """A disk that was replaced comes when the node with the one before is gone; while that is connected, there are
        two of them."""
        for link in self._links:
            if link.peer.node_id == peer.node_id and link.peer.store_id not in ("", peer.store_id) and not link.over:
                raise PeerRefused(
                    "same_node_id",
                    f"there are two nodes {peer.node_id}: the one with store {link.peer.store_id} is connected, another"
                    f" one came with store {peer.store_id}; give it a node_id of its own, or stop the other",
                )

    async def _run_accepted(self, link: GrpcLink, accept: Callable[[Link], LinkHandler], context: Any) -> None:
        loop = asyncio.get_running_loop()
        link.handler = accept(link)
        self._links[link] = None
        reader = loop.create_task(_read(link, context.read))
        writer = loop.create_task(_write(link, context.write))
        try:
            await asyncio.wait({reader, writer}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            broken = not link.closing and not link.closed_there
            self._links.pop(link, None)
            link.end()
            reader.cancel()
            writer.cancel()
            await asyncio.wait({reader, writer})
            if broken:
                self._lost(link.peer.node_id)

    # --- what is noticed ---

    def _lost(self, node_id: int) -> None:
        if not self._stopped:
            for listener in list(self._lost_listeners):
                listener(node_id)

    def _saw(self, peer: PeerId) -> None:
        for event in ("peer_unreachable", "peer_lost"):
            self._troubles.over(event, peer.node_id)
        self.problems.pop(peer.node_id, None)
        before = self._stores.get(peer.node_id)
        self._stores[peer.node_id] = peer.store_id
        if before is not None and before != peer.store_id:
            self._troubles.tell("peer_store_change", peer.node_id, before=before, store_id=peer.store_id)

    # --- gRPC's own ---

    def _shared_options(self) -> list[tuple[str, int]]:
        settings = self._settings
        return [
            ("grpc.max_receive_message_length", settings.message_bytes_max),
            ("grpc.max_send_message_length", settings.message_bytes_max),
            ("grpc.http2.bdp_probe", 0),
            ("grpc.http2.lookahead_bytes", 1024 * 1024),
            ("grpc.http2.max_frame_size", 1024 * 1024),
            ("grpc.keepalive_time_ms", round(settings.ping_s * 1000)),
            ("grpc.keepalive_timeout_ms", round(settings.ping_timeout_s * 1000)),
            # The ping's own deadline, a minute by default, is what finds a host that is stopped rather than gone.
            ("grpc.http2.ping_timeout_ms", round(settings.ping_timeout_s * 1000)),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.max_pings_without_data", 0),
        ]

    def _server_options(self) -> list[tuple[str, int]]:
        return [
            *self._shared_options(),
            ("grpc.so_reuseport", 0),
            # Peers ping as often as they are told to; that is no attack.
            ("grpc.http2.max_ping_strikes", 0),
            ("grpc.http2.min_recv_ping_interval_without_data_ms", 0),
        ]

    def _channel_options(self) -> list[tuple[str, int]]:
        return [
            *self._shared_options(),
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.enable_retries", 0),
            # Only between the streams of one channel that works: others get a channel of their own.
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 250),
            ("grpc.min_reconnect_backoff_ms", round(self._settings.connect_timeout_s * 1000)),
            # A proxy of the environment is for the outside world.
            ("grpc.enable_http_proxy", 0),
        ]


@dataclass(slots=True, eq=False)
class _Channel:
    """A connection to a peer; closed with the last link that uses it."""

    grpc: grpc.aio.Channel
    users: int = 0


async def _read(link: GrpcLink, read: Callable[[], Any]) -> str:
    """Hands frames to the link until the end; what gRPC says of the end."""
    try:
        while not link.closed_there and (frame := await read()) is not grpc.aio.EOF:
            link.received(frame)
    except grpc.aio.AioRpcError as error:
        return error.details() or error.code().name
    except (grpc.aio.InternalError, grpc.aio.UsageError) as error:
        return str(error)
    return ""


async def _write(link: GrpcLink, write: Callable[[bytes], Any]) -> None:
    try:
        await link.run_writer(write)
    except (grpc.aio.AioRpcError, grpc.aio.InternalError, grpc.aio.UsageError, asyncio.InvalidStateError):
        # The stream is over, which the reader learns too; the owner of both must not be woken before.
        await asyncio.get_running_loop().create_future()
