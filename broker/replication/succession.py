"""Whether a leader has a successor that it does not know of: asked of all who could be it.

A leader learns last that it was succeeded. Its session outlasts connections that broke, an operator moves leadership
without asking, and a controller that was deposed answers heartbeats until it knows. So what depends on nobody else
having acknowledged anything (the end of the log, a refusal because of what the log lacks) is said only after everybody
who may lead next, without yet another one in between, has said that it knows of no later epoch. Questions about all
partitions go to a node together, one call at a time.
"""

import asyncio
from collections.abc import Callable
from typing import Protocol

from broker.errors import PostbusError
from broker.peers.calls import Calls, PeerUnreachable
from broker.peers.links import PeerId
from broker.replication.settings import ReplicationSettings
from broker.stubs import replication_pb2

EPOCHS = "partition.leader_epochs"
_Answer = asyncio.Future[int | None]


class LedByThisNode(Protocol):
    """A partition that this node leads, as far as it knows."""

    log_id: int
    leader_epoch: int

    @property
    def leading(self) -> bool: ...

    @property
    def successors(self) -> tuple[int, ...]: ...


class Succession:
    """Asks, and answers."""

    def __init__(
        self, calls: Calls | None, *, known_epoch: Callable[[int], int], settings: ReplicationSettings
    ) -> None:
        """calls: None on a node without peers. known_epoch: a partition's leader epoch, by log id; -1: unknown here."""
        self._calls = calls
        self._known_epoch = known_epoch
        self._settings = settings
        self._waiting: dict[int, list[tuple[int, _Answer]]] = {}  # by node: what is asked next
        self._asking: dict[int, asyncio.Task[None]] = {}
        if calls is not None:
            calls.handle(EPOCHS, self._answer)

    async def still_leads(self, partition: LedByThisNode) -> bool:
        """True: nobody else led it when this was called. False: somebody did, or somebody does not say."""
        epoch, successors = partition.leader_epoch, partition.successors
        for answer in [self._ask(node_id, partition.log_id) for node_id in successors]:
            known = await answer
            if known is None or known < 0 or known > epoch:
                return False
        return partition.leading and (partition.leader_epoch, partition.successors) == (epoch, successors)

    async def close(self) -> None:
        """Asks nothing any more."""
        tasks = list(self._asking.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _ask(self, node_id: int, log_id: int) -> _Answer:
        loop = asyncio.get_running_loop()
        answer: _Answer = loop.create_future()
        self._waiting.setdefault(node_id, []).append((log_id, answer))
        if node_id not in self._asking:
            self._asking[node_id] = loop.create_task(self._ask_all(node_id))
        return answer

    async def _ask_all(self, node_id: int) -> None:
        try:
            while asked := self._waiting.pop(node_id, []):
                epochs: list[int | None] = [None] * len(asked)
                try:
                    # An answer that was under way before a question came says nothing of it.
                    told = await self._epochs(node_id, [log_id for log_id, _ in asked])
                    if len(told) == len(asked):
                        epochs = list(told)
                finally:
                    for (_, answer), epoch in zip(asked, epochs, strict=True):
                        if not answer.done():
                            answer.set_result(epoch)
        finally:
            del self._asking[node_id]
            for _, answer in self._waiting.pop(node_id, []):
                if not answer.done():
                    answer.set_result(None)

    async def _epochs(self, node_id: int, log_ids: list[int]) -> list[int]:
        assert self._calls is not None
        question = replication_pb2.LeaderEpochsRequest(log_ids=log_ids).SerializeToString()
        timeout_s = self._settings.succession_timeout_ms / 1000
        try:
            answer = await self._calls.call(node_id, EPOCHS, question, timeout_s=timeout_s)
        except (PeerUnreachable, PostbusError, TimeoutError):
            return []
        return list(replication_pb2.LeaderEpochs.FromString(answer).leader_epochs)

    async def _answer(self, peer: PeerId, payload: bytes) -> bytes:
        log_ids = replication_pb2.LeaderEpochsRequest.FromString(payload).log_ids
        epochs = [self._known_epoch(log_id) for log_id in log_ids]
        return replication_pb2.LeaderEpochs(leader_epochs=epochs).SerializeToString()
