"""Who of the controllers can't be reached: for errors, health and operators, never for decisions.

While there is a leader it knows, or is known to be there. While there is none, each node asks the others by itself.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Final, Protocol

from broker.controller.metadata_log import CallsToNodes, MetadataLog
from broker.errors import PostbusError
from broker.peers.calls import PeerUnreachable
from broker.peers.links import PeerId

PING: Final = "controller.ping"


class QuorumMember(Protocol):
    """What is needed of a member of the Raft group."""

    @property
    def node_id(self) -> int: ...

    @property
    def voter(self) -> bool: ...

    @property
    def last_heard_s(self) -> float | None: ...  # ago


class Quorum(Protocol):
    """What is needed of Raft (raft.node.RaftNode)."""

    @property
    def leader_id(self) -> int | None: ...

    def members(self) -> Sequence[QuorumMember]: ...


class QuorumWatch:
    """Asks while there is no leader."""

    def __init__(
        self,
        *,
        metadata_log: MetadataLog,
        raft: Quorum,
        calls: CallsToNodes,
        node_id: int,
        peer_endpoints: Mapping[int, str],
        interval_s: float = 0.5,
        silence_s: float = 1.5,
    ) -> None:
        """peer_endpoints: of nodes known from the configuration. silence_s: who is so silent counts as gone."""
        self._metadata_log = metadata_log
        self._raft = raft
        self._calls = calls
        self._node_id = node_id
        self._peer_endpoints = dict(peer_endpoints)
        self._interval_s = interval_s
        self._silence_s = silence_s
        self._unreachable: tuple[int, ...] = ()
        self._unreachable_since: dict[int, float] = {}  # the loop's time
        self._task: asyncio.Task[None] | None = None
        calls.handle(PING, _pong)
        metadata_log.quorum_problem = self.problem

    def start(self) -> None:
        """Begins to watch."""
        self._task = asyncio.get_running_loop().create_task(self._watch())

    async def close(self) -> None:
        """Ends."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    @property
    def voters_count(self) -> int:
        """How many vote."""
        return len(self._voters())

    @property
    def unreachable_count(self) -> int:
        """How many of them can't be reached, as far as this node is to know."""
        voters = self._voters()
        return sum(node_id in voters for node_id in self._unreachable)

    def silences_s(self) -> dict[int, float]:
        """Who can't be reached, and for how long."""
        now = asyncio.get_running_loop().time()
        return {node_id: max(now - since, 0.001) for node_id, since in self._unreachable_since.items()}

    def problem(self) -> str:
        """ "2 of 3 controllers unreachable: 2 (10.0.0.2:7071), 3 (10.0.0.3:7071)"; empty if there is none."""
        voters = self._voters()
        missing = [node_id for node_id in self._unreachable if node_id in voters]
        if not missing:
            return ""
        named = ", ".join(f"{node_id} ({self._endpoint(node_id)})" for node_id in missing)
        problem = f"{len(missing)} of {len(voters)} controllers unreachable: {named}"
        # Who sees that a majority is there must not look for another reason.
        founding = not self._metadata_log.state.index and self._node_id in self._peer_endpoints
        return problem + ("; a new cluster begins once all of them have been up together" if founding else "")

    def _endpoint(self, node_id: int) -> str:
        node = self._metadata_log.state.nodes.get(node_id)
        known = node.peer_endpoint if node is not None else ""
        return known or self._peer_endpoints.get(node_id, "address unknown")

    async def _watch(self) -> None:
        while True:
            leader_id = self._raft.leader_id
            if leader_id is None:
                self._unreachable = await self._ask_all()
            elif leader_id == self._node_id:
                self._unreachable = tuple(
                    member.node_id
                    for member in self._raft.members()
                    if member.last_heard_s is not None and member.last_heard_s > self._silence_s
                )
            else:
                self._unreachable = ()
            now = asyncio.get_running_loop().time()
            self._unreachable_since = {
                node_id: self._unreachable_since.get(node_id, now) for node_id in self._unreachable
            }
            await asyncio.sleep(self._interval_s)

    async def _ask_all(self) -> tuple[int, ...]:
        others = [node_id for node_id in self._voters() if node_id != self._node_id]
        asked = {node_id: self._calls.start_call(node_id, PING, b"", timeout_s=self._interval_s) for node_id in others}
        if asked:
            await asyncio.wait(asked.values())
        return tuple(node_id for node_id, call in asked.items() if not _answered(call))

    def _voters(self) -> list[int]:
        """As configured, until the cluster has taken this node in."""
        voters = [member.node_id for member in self._raft.members() if member.voter]
        return voters or sorted(self._peer_endpoints)


def _answered(call: "asyncio.Future[bytes]") -> bool:
    try:
        call.result()
    except (PeerUnreachable, TimeoutError, PostbusError):
        return False
    return True


async def _pong(peer: PeerId, payload: bytes) -> bytes:
    return b""
