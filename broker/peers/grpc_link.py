"""One end of a link over a gRPC stream: what waits to be written, several messages to a frame, and how it ends.

Knows nothing of channels and servers: it is given a `write`, and told of frames that came in. A frame costs gRPC some
fifty microseconds whatever its size, so that all that has queued up while one was written goes into the next.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Final

import structlog
from google.protobuf.message import DecodeError

from broker.peers import wire
from broker.peers.links import MESSAGE_BYTES_MAX, LinkHandler, PeerId
from broker.stubs import peers_pb2

log = structlog.get_logger(__name__)

_LAST_FRAME: Final = peers_pb2.PeerFrame(last=True).SerializeToString()


@dataclass(frozen=True, slots=True)
class LinkSettings:
    """Bounds of each link."""

    frame_bytes: int = 256 * 1024  # messages are added to a frame up to this; a larger one has a frame of its own
    queue_bytes: int = 4 * 1024 * 1024  # above it `has_room` is False, until half of it is left
    queue_bytes_max: int = 256 * 1024 * 1024  # whoever sends on and on all the same loses the link


class GrpcLink:
    """A link; `run_writer` is the task that drains it."""

    handler: LinkHandler

    def __init__(self, peer: PeerId, service: str, settings: LinkSettings) -> None:
        self.peer = peer
        self.service = service
        self.closing = False  # asked for by this end
        self.closed_there = False  # by the other end
        self.over = False
        self._settings = settings
        self._queue: deque[bytes] = deque()
        self._queued_bytes = 0
        self._full = False
        self._wake: asyncio.Future[None] | None = None

    # --- for its user ---

    @property
    def has_room(self) -> bool:
        if self._queued_bytes > self._settings.queue_bytes:
            self._full = True
        return not self._full

    def send(self, message: bytes) -> None:
        assert len(message) <= MESSAGE_BYTES_MAX, len(message)
        if self.closing or self.over:
            return
        self._queue.append(message)
        self._queued_bytes += len(message)
        if self._queued_bytes > self._settings.queue_bytes_max:
            log.error("peer_link_overrun", peer=self.peer.node_id, service=self.service, bytes=self._queued_bytes)
            self._queue.clear()
            self.close()
        elif self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    def close(self) -> None:
        if self.closing or self.over:
            return
        self.closing = True
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)
        asyncio.get_running_loop().call_soon(self.end)

    # --- for whoever runs the stream ---

    async def run_writer(self, write: Callable[[bytes], Awaitable[None]]) -> None:
        """Writes until this end closes the link and all that was queued is written."""
        while True:
            while self._queue:
                frame, taken_bytes = self._take_frame()
                await write(frame)
                self._queued_bytes -= taken_bytes
                if self._full and self._queued_bytes <= self._settings.queue_bytes // 2 and not self.over:
                    self._full = False
                    self._tell(self.handler.writable)
            if self.closing:
                await write(_LAST_FRAME)
                return
            self._wake = asyncio.get_running_loop().create_future()
            await self._wake

    def _take_frame(self) -> tuple[bytes, int]:
        queue = self._queue
        fields: list[bytes] = []
        size_bytes = 0
        while queue and (not fields or size_bytes + len(queue[0]) <= self._settings.frame_bytes):
            message = queue.popleft()
            fields += (wire.head(wire.FIELD_1, len(message)), message)  # a PeerFrame's `messages`
            size_bytes += len(message)
        return b"".join(fields), size_bytes

    def received(self, frame: bytes) -> None:
        """Hands out what a frame holds. Garbage ends the link."""
        messages: Iterable[bytes]
        last = False
        sole = wire.sole_field(frame, wire.FIELD_1)  # as all that are large are
        if sole is not None:
            messages = (sole,)
        else:
            try:
                parsed = peers_pb2.PeerFrame.FromString(frame)
            except DecodeError:
                log.warning("peer_garbage", peer=self.peer.node_id, service=self.service, bytes=len(frame))
                self.close()
                return
            messages, last = parsed.messages, parsed.last
        received = self.handler.received
        try:
            for message in messages:
                if self.closing or self.over:
                    return
                received(message)
        except Exception:  # a bug in the handler must not look like a peer that says nothing
            log.exception("peer_handler_failure", peer=self.peer.node_id, service=self.service)
            self.close()
        self.closed_there = last

    def end(self) -> None:
        """The stream is over, or as good as: tells the handler, once."""
        if not self.over:
            self.over = True
            self._tell(self.handler.closed)

    def _tell(self, what: Callable[[], None]) -> None:
        try:
            what()
        except Exception:
            log.exception("peer_handler_failure", peer=self.peer.node_id, service=self.service)
