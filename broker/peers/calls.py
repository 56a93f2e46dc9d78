"""Questions between nodes: asked over a link of their own, answered out of order, started in order.

Owns what waits for an answer, with its time and its bounds; opens a link to a node with the first question to it, and
again after a loss. Never repeats a question: whether that is safe only the asker knows, so a loss says whether it may
have arrived. Errors for clients travel whole. Runs on any loop and transport, the simulated ones included.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, cast

import structlog
from google.protobuf.message import DecodeError

from broker.clock import Clock
from broker.errors import KINDS, PostbusError, Reason
from broker.peers.backoff import Backoff
from broker.peers.links import MESSAGE_BYTES_MAX, Link, PeerId, Transport
from broker.stubs import peers_pb2

log = structlog.get_logger(__name__)

SERVICE: Final = "calls"
PAYLOAD_BYTES_MAX: Final = MESSAGE_BYTES_MAX - 64 * 1024

Handler = Callable[[PeerId, bytes], Awaitable[bytes]]


class PeerUnreachable(Exception):  # noqa: N818 - says what is
    """No answer will come. sent: the question may have arrived, what came of it is not known."""

    def __init__(self, node_id: int, why: str, *, sent: bool) -> None:
        super().__init__(f"node {node_id}: {why}")
        self.node_id = node_id
        self.why = why
        self.sent = sent


@dataclass(frozen=True, slots=True)
class CallsSettings:
    """Bounds."""

    calls_max: int = 10_000  # to one node, unanswered; also what one node may have running here
    bytes_max: int = 64 * 1024 * 1024  # their payloads
    reconnect_delay_min_s: float = 0.05  # after a connection that failed; meanwhile questions fail at once
    reconnect_delay_max_s: float = 0.25


class Calls:
    """All questions that this node asks and answers."""

    def __init__(
        self,
        transport: Transport,
        *,
        clock: Clock,
        node_id: int,
        store_id: str = "",
        settings: CallsSettings | None = None,
    ) -> None:
        self.me = PeerId(node_id, store_id)
        self.settings = settings or CallsSettings()
        self.clock = clock
        self.handlers: dict[str, Handler] = {}
        self._transport = transport
        self._asked: dict[int, _Asked] = {}
        self._backoffs: dict[int, Backoff] = {}
        self._connect_at: dict[int, float] = {}
        self._answering: dict[Link, _Answering] = {}
        self._own = _Tasks()
        self._closed = False
        transport.serve(SERVICE, self._accept)

    def handle(self, method: str, handler: Handler) -> None:
        """Says who answers `method`.

        Handlers are started in the order in which their questions arrive. A PostbusError goes back to the asker as it
        is. When the asker's time is over, or its link is lost, the handler is cancelled.
        """
        assert method not in self.handlers
        self.handlers[method] = handler

    async def call(self, node_id: int, method: str, payload: bytes, *, timeout_s: float) -> bytes:
        """Asks and waits. Raises the PostbusError that the other side raised, PeerUnreachable, or TimeoutError, after
        which the question may still be answered there."""
        return await self.start_call(node_id, method, payload, timeout_s=timeout_s)

    def start_call(self, node_id: int, method: str, payload: bytes, *, timeout_s: float) -> asyncio.Future[bytes]:
        """The same, sent when this returns: calls to one node start there in the order of these."""
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        if len(payload) > PAYLOAD_BYTES_MAX:
            future.set_exception(PeerUnreachable(node_id, f"{method}: {len(payload)} bytes are too many", sent=False))
        elif self._closed:
            future.set_exception(PeerUnreachable(node_id, "this node stops", sent=False))
        elif node_id == self.me.node_id:
            self._ask_myself(method, payload, timeout_s, future)
        elif (asked := self._asked.get(node_id) or self._connect(node_id)) is None:
            future.set_exception(PeerUnreachable(node_id, "it could not be reached a moment ago", sent=False))
        else:
            asked.ask(method, payload, timeout_s, future)
        return future

    def has_room(self, node_id: int) -> bool:
        """False: as many questions to the node are open as may be; a further one fails, as not sent."""
        asked = self._asked.get(node_id)
        return asked is None or asked.has_room(0)

    async def wait_for_room(self, node_id: int) -> None:
        """Returns when there is room, or no link any more."""
        while (asked := self._asked.get(node_id)) is not None and not asked.has_room(0):
            await asked.wait_for_room()

    async def close(self) -> None:
        """Ends all of them: what this node asked fails, what it was asked is cancelled."""
        self._closed = True
        tasks = [*self._own.cancel_all()]
        for answering in list(self._answering.values()):
            tasks += answering.close()
        for asked in list(self._asked.values()):
            asked.close()
        if tasks:
            await asyncio.wait(tasks)

    # --- links ---

    def _connect(self, node_id: int) -> "_Asked | None":
        if self.clock.monotonic() < self._connect_at.get(node_id, 0.0):
            return None
        asked = self._asked[node_id] = _Asked(self, node_id)
        asked.link = self._transport.connect(node_id, SERVICE, asked)
        return asked

    def _accept(self, link: Link) -> "_Answering":
        # Whoever connects is there: no reason to wait any longer before asking it.
        self._connect_at.pop(link.peer.node_id, None)
        answering = self._answering[link] = _Answering(self, link)
        return answering

    def lost(self, asked: "_Asked") -> None:
        """A link that this node opened is gone."""
        node_id = asked.node_id
        if self._asked.get(node_id) is asked:
            del self._asked[node_id]
        backoff = self._backoffs.get(node_id)
        if backoff is None:
            backoff = self._backoffs[node_id] = Backoff(
                delay_min_s=self.settings.reconnect_delay_min_s, delay_max_s=self.settings.reconnect_delay_max_s
            )
        if asked.established:
            backoff.worked()
        else:
            self._connect_at[node_id] = self.clock.monotonic() + backoff.failed()

    def gone(self, link: Link) -> None:
        """A link that another node opened is gone."""
        self._answering.pop(link, None)

    # --- to itself ---

    def _ask_myself(self, method: str, payload: bytes, timeout_s: float, future: asyncio.Future[bytes]) -> None:
        def answered(answer: peers_pb2.PeerAnswer) -> None:
            if not future.done():
                _settle(future, self.me.node_id, answer)

        def ended() -> None:
            if not future.done():
                future.set_exception(
                    PeerUnreachable(self.me.node_id, "this node stops", sent=True) if self._closed else TimeoutError()
                )

        handler = self.handlers.get(method)
        if handler is None:
            answered(peers_pb2.PeerAnswer(not_taken=f"it does not know {method}"))
            return

        async def run(handler: Handler) -> None:
            answered(await _answer(handler, method, self.me, payload))

        # Not at the end of `run`: of what is cancelled before it began (the loop was held for so long), nothing runs.
        self._own.start(run(handler), timeout_s).add_done_callback(lambda _: ended())


class _Tasks:
    """Handlers under way, each with its deadline. Kept in order: what is cancelled first must not depend on chance."""

    __slots__ = ("_number", "_tasks")

    def __init__(self) -> None:
        self._tasks: dict[int, tuple[asyncio.Task[None], asyncio.TimerHandle]] = {}
        self._number = 0

    def __len__(self) -> int:
        return len(self._tasks)

    def start(self, run: "asyncio._CoroutineLike[None]", timeout_s: float) -> asyncio.Task[None]:
        """Tasks run their first step in the order in which they are made."""
        loop = asyncio.get_running_loop()
        number = self._number = self._number + 1
        task = loop.create_task(run)
        self._tasks[number] = (task, loop.call_later(timeout_s, task.cancel))
        task.add_done_callback(lambda _: self._ended(number))
        return task

    def _ended(self, number: int) -> None:
        task, timer = self._tasks.pop(number)
        timer.cancel()
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("peer_call_failure", error=repr(error), exc_info=error)

    def cancel_all(self) -> list[asyncio.Task[None]]:
        tasks = [task for task, _ in self._tasks.values()]
        for task in tasks:
            task.cancel()
        return tasks


@dataclass(slots=True)
class _Open:
    future: asyncio.Future[bytes]
    timer: asyncio.TimerHandle
    size_bytes: int


class _Asked:
    """A link that this node opened, and what it asked on it."""

    link: Link

    def __init__(self, calls: Calls, node_id: int) -> None:
        self.node_id = node_id
        self._calls = calls
        self._open: dict[int, _Open] = {}
        self._bytes = 0
        self._call_id = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._ended = False

    @property
    def established(self) -> bool:
        return bool(self.link.peer.store_id)

    def has_room(self, size_bytes: int) -> bool:
        settings = self._calls.settings
        return not self._open or (
            len(self._open) < settings.calls_max and self._bytes + size_bytes < settings.bytes_max
        )

    async def wait_for_room(self) -> None:
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiting)
        await waiting

    def ask(self, method: str, payload: bytes, timeout_s: float, future: asyncio.Future[bytes]) -> None:
        if not self.has_room(len(payload)):
            future.set_exception(PeerUnreachable(self.node_id, "too many questions to it are open", sent=False))
            return
        call_id = self._call_id = self._call_id + 1
        timer = asyncio.get_running_loop().call_later(timeout_s, self._expire, call_id)
        self._open[call_id] = _Open(future, timer, len(payload))
        self._bytes += len(payload)
        timeout_ms = max(1, round(timeout_s * 1000))
        call = peers_pb2.PeerCall(call_id=call_id, method=method, payload=payload, timeout_ms=timeout_ms)
        self.link.send(call.SerializeToString())

    def received(self, message: bytes) -> None:
        try:
            answer = peers_pb2.PeerAnswer.FromString(message)
        except DecodeError:
            log.warning("peer_garbage", peer=self.node_id, service=SERVICE)
            self.link.close()
            return
        call = self._take(answer.call_id)
        if call is not None and not call.future.done():
            _settle(call.future, self.node_id, answer)

    def _expire(self, call_id: int) -> None:
        call = self._take(call_id)
        if call is not None and not call.future.done():
            call.future.set_exception(TimeoutError(f"node {self.node_id} gave no answer in time"))

    def _take(self, call_id: int) -> _Open | None:
        call = self._open.pop(call_id, None)
        if call is not None:
            call.timer.cancel()
            self._bytes -= call.size_bytes
            # They look again: waking them all at once would only make them collide.
            if self._waiting and self.has_room(0):
                self._wake(1)
        return call

    def _wake(self, count: int) -> None:
        while self._waiting and count:
            waiting = self._waiting.popleft()
            if not waiting.done():
                waiting.set_result(None)
                count -= 1

    def writable(self) -> None:
        """Nothing: `bytes_max` bounds what is queued, too."""

    def close(self) -> None:
        self.link.close()
        self.closed()

    def closed(self) -> None:
        if self._ended:
            return
        self._ended = True
        self._calls.lost(self)
        sent = self.established
        why = "the connection was lost" if sent else "no connection"
        lost, self._open, self._bytes = list(self._open.values()), {}, 0
        for call in lost:
            call.timer.cancel()
            if not call.future.done():
                call.future.set_exception(PeerUnreachable(self.node_id, why, sent=sent))
        self._wake(len(self._waiting))


class _Answering:
    """A link that another node opened, and what it asked."""

    def __init__(self, calls: Calls, link: Link) -> None:
        self._calls = calls
        self._link = link
        self._tasks = _Tasks()
        self._waiting: list[asyncio.Future[None]] = []

    def received(self, message: bytes) -> None:
        try:
            call = peers_pb2.PeerCall.FromString(message)
        except DecodeError:
            log.warning("peer_garbage", peer=self._link.peer.node_id, service=SERVICE)
            self._link.close()
            return
        handler = self._calls.handlers.get(call.method)
        if handler is None:
            self._refuse(call.call_id, f"it does not know {call.method}")
        elif len(self._tasks) >= self._calls.settings.calls_max:
            self._refuse(call.call_id, "too many questions are open there")
        else:
            self._tasks.start(self._run(handler, call), call.timeout_ms / 1000)

    async def _run(self, handler: Handler, call: peers_pb2.PeerCall) -> None:
        answer = await _answer(handler, call.method, self._link.peer, call.payload)
        answer.call_id = call.call_id
        while not self._link.has_room:
            waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(waiting)
            await waiting
        self._link.send(answer.SerializeToString())

    def _refuse(self, call_id: int, why: str) -> None:
        self._link.send(peers_pb2.PeerAnswer(call_id=call_id, not_taken=why).SerializeToString())

    def writable(self) -> None:
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            if not each.done():
                each.set_result(None)

    def close(self) -> list[asyncio.Task[None]]:
        self._link.close()
        self._calls.gone(self._link)
        return self._tasks.cancel_all()

    def closed(self) -> None:
        self._calls.gone(self._link)
        self._tasks.cancel_all()


async def _answer(handler: Handler, method: str, peer: PeerId, payload: bytes) -> peers_pb2.PeerAnswer:
    try:
        answer = await handler(peer, payload)
    except PostbusError as error:
        # Its traceback holds this frame, and so the payload.
        error.__traceback__ = None
        return peers_pb2.PeerAnswer(error=to_peer(error))
    except (PeerUnreachable, TimeoutError) as error:
        return peers_pb2.PeerAnswer(fault=f"{method}: {error or 'no answer in time'}")
    except Exception:
        log.exception("peer_call_failure", method=method, peer=peer.node_id)
        return peers_pb2.PeerAnswer(fault=f"a fault over {method}; its log has the details")
    if len(answer) > PAYLOAD_BYTES_MAX:
        log.error("peer_call_failure", method=method, peer=peer.node_id, answer_bytes=len(answer))
        return peers_pb2.PeerAnswer(fault=f"{method}: an answer of {len(answer)} bytes")
    return peers_pb2.PeerAnswer(payload=answer)


def _settle(future: asyncio.Future[bytes], node_id: int, answer: peers_pb2.PeerAnswer) -> None:
    if answer.not_taken:
        future.set_exception(PeerUnreachable(node_id, answer.not_taken, sent=False))
    elif answer.fault:
        future.set_exception(PeerUnreachable(node_id, answer.fault, sent=True))
    elif answer.HasField("error"):
        future.set_exception(from_peer(answer.error))
    else:
        future.set_result(answer.payload)


# --- errors ---


def to_peer(error: PostbusError) -> peers_pb2.PeerError:
    """As it travels."""
    kind, name = error.resource or ("", "")
    return peers_pb2.PeerError(
        reason=error.reason,
        message=error.message,
        field=error.field,
        resource_kind=kind,
        resource_name=name,
        retry_after_ms=error.retry_after_ms,
        metadata=error.metadata,
    )


def from_peer(error: peers_pb2.PeerError) -> PostbusError:
    """As it was raised. A reason that this version does not know means that nothing is known."""
    return PostbusError(
        cast(Reason, error.reason) if error.reason in KINDS else Reason.ERROR_REASON_TIMEOUT,
        error.message,
        field=error.field,
        resource=(error.resource_kind, error.resource_name) if error.resource_kind else None,
        retry_after_ms=error.retry_after_ms if error.HasField("retry_after_ms") else None,
        metadata=error.metadata,
    )
