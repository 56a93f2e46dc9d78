"""What this node does not know may exist all the same: before it says no, it makes sure that its image is new enough.

Asks the active controller how far the metadata log is committed, and waits until this node has applied that. Only ever
after a name, a number or an id was not found, so that what is known costs nothing. At most one question is open: who
comes meanwhile shares the next one, for an answer to a question from before may be too old for it.

A node whose question nobody answers can't tell what exists: it says NO_LEADER, not NOT_FOUND. A controller that was
succeeded and does not know it yet, for at most an election timeout, may still answer.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, TypeVar

from broker.clock import Clock
from broker.controller.metadata_log import MetadataLog, not_controller
from broker.errors import PostbusError, Reason
from broker.peers.calls import Calls, PeerUnreachable
from broker.peers.links import PeerId
from broker.stubs.controller_pb2 import ControllerAnswer

INDEX: Final = "controller.index"
RETRY_AFTER_MS: Final = 500
_NOT_THERE: Final = frozenset({Reason.ERROR_REASON_TOPIC_NOT_FOUND, Reason.ERROR_REASON_PARTITION_NOT_FOUND})
# Fields with ids that the controller hands out.
_IDS: Final = frozenset({"id", "producer.id"})

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class CatchUpSettings:
    """Bounds."""

    timeout_s: float = 1.0  # as long as a session: whoever has no answer by then has none
    retry_s: float = 0.05


def may_pass(refusal: PostbusError) -> bool:
    """Whether it may only be that this node does not know yet."""
    return refusal.reason in _NOT_THERE or (
        refusal.reason == Reason.ERROR_REASON_INVALID_FIELD and refusal.field in _IDS
    )


class CatchUp:
    """One a node; on the loop only."""

    def __init__(
        self,
        *,
        metadata_log: MetadataLog,
        commit_index: Callable[[], int],
        calls: Calls,
        clock: Clock,
        settings: CatchUpSettings | None = None,
    ) -> None:
        """commit_index: of the metadata log, as this node knows."""
        self._metadata_log = metadata_log
        self._commit_index = commit_index
        self._calls = calls
        self._clock = clock
        self._settings = settings or CatchUpSettings()
        self._asking: asyncio.Task[PostbusError | None] | None = None
        self._next: asyncio.Task[PostbusError | None] | None = None
        calls.handle(INDEX, self._answer)

    async def wait(self) -> None:
        """Returns when this node's image has all that was committed before. Raises NO_LEADER."""
        if self._next is None:
            self._next = asyncio.get_running_loop().create_task(self._ask_after(self._asking))
        refusal = await asyncio.shield(self._next)  # others wait for it too
        if refusal is not None:
            raise refusal

    async def again(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """What `attempt` gives; refused for what this node did not know, it is made again when it knows.

        Another node that has a part in it, a group's coordinator, may be behind too: what exists is not refused before
        that had its time.
        """
        try:
            return await attempt()
        except PostbusError as refusal:
            if not may_pass(refusal):
                raise
            refusal.__traceback__ = None  # holds the request, and this frame
        await self.wait()
        deadline = self._clock.monotonic() + self._settings.timeout_s
        while True:
            try:
                return await attempt()
            except PostbusError as refusal:
                if not self._exists(refusal) or self._clock.monotonic() >= deadline:
                    raise
                refusal.__traceback__ = None
            await asyncio.sleep(self._settings.retry_s)

    def close(self) -> None:
        """Nobody is asked any more."""
        for task in (self._asking, self._next):
            if task is not None:
                task.cancel()

    def _exists(self, refusal: PostbusError) -> bool:
        """Whether what was not found is in this node's image."""
        kind, name = refusal.resource or ("", "")
        topics = self._metadata_log.state.topics
        if kind == "topic":
            return name in topics and not topics[name].internal
        topic, _, number = name.rpartition("/")
        return kind == "partition" and topic in topics and 0 <= int(number) < topics[topic].partition_count

    # --- the question ---

    async def _ask_after(self, before: "asyncio.Task[PostbusError | None] | None") -> PostbusError | None:
        if before is not None:
            await asyncio.wait([before])
        self._asking, self._next = self._next, None
        try:
            return await self._ask()
        finally:
            self._asking = None

    async def _ask(self) -> PostbusError | None:
        """None: this node has applied what the controller has committed."""
        deadline = self._clock.monotonic() + self._settings.timeout_s
        while (left_s := deadline - self._clock.monotonic()) > 0:
            controller_id = self._metadata_log.controller_id
            if controller_id is not None:
                try:
                    answer = await self._calls.call(controller_id, INDEX, b"", timeout_s=left_s)
                except (PeerUnreachable, PostbusError, TimeoutError):
                    pass  # it is not the controller any more, or not there
                else:
                    index = ControllerAnswer.FromString(answer).index
                    left_s = max(deadline - self._clock.monotonic(), 0.0)
                    if await self._metadata_log.wait_applied(index, timeout_s=left_s):
                        return None
                    return _can_not_tell("this node has not applied yet what the controller has committed")
            await asyncio.sleep(min(self._settings.retry_s, left_s))
        return _can_not_tell(self._metadata_log.quorum_problem() or "no controller answered in time")

    async def _answer(self, peer: PeerId, payload: bytes) -> bytes:
        """ "controller.index": while `active`, all that earlier controllers committed is applied here."""
        if not self._metadata_log.active:
            raise not_controller()
        return ControllerAnswer(index=self._commit_index()).SerializeToString()


def _can_not_tell(why: str) -> PostbusError:
    return PostbusError(
        Reason.ERROR_REASON_NO_LEADER,
        f"this node does not know what was asked for, and can't tell whether it exists: {why}",
        retry_after_ms=RETRY_AFTER_MS,
    )
