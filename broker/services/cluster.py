"""ClusterService: who is there and who leads what, from this node's image; the watch of it; and what operators change.

Reads never wait for the controller, so that they go on without a quorum. Changes are commands for the controller,
wherever it is.
"""

import asyncio
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol

from postbus.v1 import cluster_pb2, record_pb2

from broker import errors
from broker.controller import partition_decisions, quorum_watch, rebalance
from broker.controller.commands import (
    CancelReassignments,
    Command,
    DrainNode,
    ElectLeaders,
    Outcome,
    PartitionName,
    Reassignment,
    ReassignPartitions,
    RemoveNode,
    UndrainNode,
)
from broker.controller.metadata_log import Executed, MetadataLog
from broker.controller.state import NOBODY, ClusterState, NodeState, PartitionState, Topic, difference
from broker.peers.calls import Calls, PeerUnreachable
from broker.peers.links import PeerId
from broker.services import batches, requests
from broker.services.adapter import Call, ServerStream
from broker.services.catch_up import CatchUp
from broker.services.partition_client import PartitionClient
from broker.services.together import together

# By name, with the first version that has it: a cluster has what all of its nodes have.
FEATURES: Final = {
    "clusters": (0, 1),
    "compare-and-append": (0, 1),
    "compression": (0, 1),
    "idempotence-by-request-id": (0, 1),
    "idempotence-by-sequence": (0, 1),
    "log-compaction": (0, 1),
    "ordered-groups": (0, 1),
}
QUORUM: Final = "quorum.describe"
QUORUM_TIMEOUT_S: Final = 1.0
ADMINISTRATION_TIMEOUT_S_MAX: Final = 30.0
# A watcher that knows more than this node does: how long the node may take to catch up before it tells what it has.
CATCH_UP_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What a node says of itself."""

    node_id: int
    version: str
    record_bytes_max: int
    batch_bytes_max: int
    message_receive_bytes_max: int


class QuorumMember(quorum_watch.QuorumMember, Protocol):
    """As raft.node.Member."""

    @property
    def match_index(self) -> int | None: ...


class Quorum(Protocol):
    """What is shown of Raft (raft.node.RaftNode)."""

    @property
    def leader_id(self) -> int | None: ...

    @property
    def term(self) -> int: ...

    @property
    def commit_index(self) -> int: ...

    def members(self) -> Sequence[QuorumMember]: ...


class Voters(Protocol):
    """Who changes the quorum (controller.controller.Controller); from any node."""

    async def change_voter(self, node_id: int, *, voter: bool, timeout_s: float = 10.0) -> None: ...


class ClusterService:
    """Looks at the cluster and operates it."""

    def __init__(
        self,
        *,
        metadata_log: MetadataLog,
        quorum: Quorum,
        silences_s: Callable[[], Mapping[int, float]],
        voters: Voters,
        calls: Calls,
        client: PartitionClient,
        facts: NodeFacts,
    ) -> None:
        """silences_s: who of the controllers this node can't reach, and for how long."""
        self._metadata_log = metadata_log
        self._quorum = quorum
        self._silences_s = silences_s
        self._voters = voters
        self._calls = calls
        self.partition_client = client
        self._facts = facts
        self._watches: dict[_Watch, None] = {}
        self._draining = False
        # The change that was told last: most watchers are told the same.
        self._told: tuple[_Seen, _Seen, frozenset[str], bytes] | None = None
        # For all services of the node: whether its image is new enough to say that something does not exist.
        self.catch_up = CatchUp(
            metadata_log=metadata_log, commit_index=lambda: quorum.commit_index, calls=calls, clock=calls.clock
        )
        calls.handle(QUORUM, self._describe_quorum)

    # --- who is there ---

    async def get_metadata(
        self, request: cluster_pb2.GetMetadataRequest, call: Call
    ) -> cluster_pb2.GetMetadataResponse:
        """GetMetadata."""
        seen = self._seen()
        wanted = _wanted(request.topics)
        return cluster_pb2.GetMetadataResponse(
            cluster_id=seen.state.cluster_id,
            metadata_epoch=seen.state.index,
            controller_node_id=seen.controller_id,
            nodes=[_node(node, seen) for node in seen.nodes()],
            topics=[_topic(topic) for topic in seen.state.topics.values() if _is_wanted(topic, wanted)],
        )

    async def watch_metadata(self, request: cluster_pb2.WatchMetadataRequest, stream: ServerStream) -> None:
        """WatchMetadata: all there is, then every change."""
        if request.after_epoch < 0:
            raise errors.invalid_field("after_epoch", f"{request.after_epoch} is negative; 0 begins with all")
        watch = _Watch(_wanted(request.topics))
        self._watches[watch] = None
        try:
            if request.after_epoch > self._metadata_log.state.index:
                # Another node told it more: it must not be sent back in time.
                await self._metadata_log.wait_applied(request.after_epoch, timeout_s=CATCH_UP_S)
            sent = self._seen()
            # No history of changes is kept: who is not up to date begins anew.
            if request.after_epoch != sent.state.index:
                await stream.write(_snapshot(sent, watch.wanted).SerializeToString())
            while True:
                await watch.changed.wait()
                watch.changed.clear()
                if self._draining:
                    raise errors.draining()
                seen = self._seen()
                change = self._change(sent, seen, watch.wanted)
                sent = seen
                if change:
                    await stream.write(change)
        finally:
            self._watches.pop(watch, None)

    def _seen(self) -> "_Seen":
        members = self._quorum.members()
        return _Seen(
            self._metadata_log.state,
            self._metadata_log.controller_id,
            frozenset(member.node_id for member in members if member.voter),
        )

    def _change(self, old: "_Seen", new: "_Seen", wanted: frozenset[str]) -> bytes:
        """Empty: nothing that this watcher wants to know."""
        told = self._told
        if told is not None and told[0] == old and told[1] == new and told[2] == wanted:
            return told[3]
        change = _delta(old, new, wanted)
        encoded = change.SerializeToString() if change is not None else b""
        self._told = (old, new, wanted, encoded)
        return encoded

    def changed(self) -> None:
        """The image is another one, or the controller is."""
        for watch in self._watches:
            watch.changed.set()

    def end_streams(self) -> None:
        """The node goes."""
        self._draining = True
        self.changed()
        self.catch_up.close()

    async def get_server_features(
        self, request: cluster_pb2.GetServerFeaturesRequest, call: Call
    ) -> cluster_pb2.GetServerFeaturesResponse:
        """GetServerFeatures: of the oldest version of all nodes that are registered, whether they are up or not."""
        versions = [node.version for node in self._metadata_log.state.nodes.values() if node.version]
        version = min([self._facts.version, *versions], key=_numbers)
        return cluster_pb2.GetServerFeaturesResponse(
            version=version,
            features=[name for name, since in FEATURES.items() if since <= _numbers(version)],
            compressions=[record_pb2.Compression.Name(codec) for codec in sorted(batches.CODECS)],
            max_record_bytes=self._facts.record_bytes_max,
            max_batch_bytes=self._facts.batch_bytes_max,
            max_message_bytes=self._facts.message_receive_bytes_max,
        )

    # --- the quorum ---

    async def get_quorum(self, request: cluster_pb2.GetQuorumRequest, call: Call) -> cluster_pb2.GetQuorumResponse:
        """GetQuorum: as its leader sees it; without one, as this node does."""
        leader_id = self._quorum.leader_id
        if leader_id is not None and leader_id != self._facts.node_id:
            try:
                answer = await self._calls.call(leader_id, QUORUM, b"", timeout_s=QUORUM_TIMEOUT_S)
                return cluster_pb2.GetQuorumResponse.FromString(answer)
            except (PeerUnreachable, TimeoutError, errors.PostbusError):
                pass
        return self._own_view()

    async def _describe_quorum(self, peer: PeerId, payload: bytes) -> bytes:
        return self._own_view().SerializeToString()

    def _own_view(self) -> cluster_pb2.GetQuorumResponse:
        view = cluster_pb2.GetQuorumResponse(
            leader_node_id=self._quorum.leader_id, term=self._quorum.term, commit_index=self._quorum.commit_index
        )
        # Nobody but a leader hears of all of them; without one, whom this node can't reach is asked again and again.
        unreachable = self._silences_s() if self._quorum.leader_id is None else None
        for member in self._quorum.members():
            shown = view.members.add(node_id=member.node_id, voter=member.voter, match_index=member.match_index or 0)
            silence_s = member.last_heard_s if unreachable is None else unreachable.get(member.node_id)
            if silence_s is not None:
                shown.silence.FromMilliseconds(max(round(silence_s * 1000), 0))
        return view

    async def add_voter(self, request: cluster_pb2.AddVoterRequest, call: Call) -> cluster_pb2.AddVoterResponse:
        """AddVoter: answers once it votes."""
        self._check_node(request.node_id)
        await self._voters.change_voter(request.node_id, voter=True, timeout_s=_time_for(call))
        return cluster_pb2.AddVoterResponse()

    async def remove_voter(
        self, request: cluster_pb2.RemoveVoterRequest, call: Call
    ) -> cluster_pb2.RemoveVoterResponse:
        """RemoveVoter."""
        self._check_node(request.node_id)
        await self._voters.change_voter(request.node_id, voter=False, timeout_s=_time_for(call))
        return cluster_pb2.RemoveVoterResponse()

    # --- nodes ---

    async def drain_node(self, request: cluster_pb2.DrainNodeRequest, call: Call) -> cluster_pb2.DrainNodeResponse:
        """DrainNode: begins it, or tells how far it is."""
        node_id = request.node_id
        self._check_node(node_id)
        executed = await self._execute(DrainNode(node_id=node_id, move_replicas=request.move_replicas), call)
        held = [partition for _, _, partition in executed.after.partitions() if node_id in partition.replicas]
        return cluster_pb2.DrainNodeResponse(
            leading_count=sum(1 for partition in held if partition.leader == node_id), replica_count=len(held)
        )

    async def undrain_node(
        self, request: cluster_pb2.UndrainNodeRequest, call: Call
    ) -> cluster_pb2.UndrainNodeResponse:
        """UndrainNode."""
        self._check_node(request.node_id)
        await self._execute(UndrainNode(node_id=request.node_id), call)
        return cluster_pb2.UndrainNodeResponse()

    async def remove_node(self, request: cluster_pb2.RemoveNodeRequest, call: Call) -> cluster_pb2.RemoveNodeResponse:
        """RemoveNode."""
        self._check_node(request.node_id)
        await self._execute(RemoveNode(node_id=request.node_id), call)
        return cluster_pb2.RemoveNodeResponse()

    # --- partitions ---

    async def elect_leaders(
        self, request: cluster_pb2.ElectLeadersRequest, call: Call
    ) -> cluster_pb2.ElectLeadersResponse:
        """ElectLeaders: preferred ones, or where there is none whoever may."""
        if request.unclean and not request.partitions:
            raise errors.invalid_field("partitions", "is required with `unclean`, which loses records: name them")
        command = ElectLeaders(partitions=_names("partitions", request.partitions), unclean=request.unclean)
        executed = await self._execute(command, call)
        return cluster_pb2.ElectLeadersResponse(outcomes=map(_outcome, executed.outcomes))

    async def reassign_partitions(
        self, request: cluster_pb2.ReassignPartitionsRequest, call: Call
    ) -> cluster_pb2.ReassignPartitionsResponse:
        """ReassignPartitions: begins the moves."""
        if not request.reassignments:
            raise errors.invalid_field("reassignments", "is empty; name at least one partition")
        _check_throttle(request.throttle_bytes_per_second)
        names = _names("reassignments", [each.partition for each in request.reassignments], inner=".partition")
        command = ReassignPartitions(
            reassignments=tuple(
                Reassignment(topic=name.topic, partition=name.partition, replicas=tuple(each.replica_node_ids))
                for name, each in zip(names, request.reassignments, strict=True)
            ),
            throttle_bytes_per_s=request.throttle_bytes_per_second,
        )
        outcomes = await self._reassign(command, call, validate_only=request.validate_only)
        return cluster_pb2.ReassignPartitionsResponse(outcomes=map(_outcome, outcomes))

    async def rebalance_cluster(
        self, request: cluster_pb2.RebalanceClusterRequest, call: Call
    ) -> cluster_pb2.RebalanceClusterResponse:
        """RebalanceCluster: plans, and begins the moves unless only the plan is asked for."""
        _check_throttle(request.throttle_bytes_per_second)
        state = self._metadata_log.decided
        # What gets more copies is not moved about at the same time.
        plan = (rebalance.plan_replication(state) if request.raise_replication else ()) or rebalance.plan_balance(state)
        sizes = await self._sizes(state, plan)
        if plan and not request.validate_only:
            command = ReassignPartitions(reassignments=plan, throttle_bytes_per_s=request.throttle_bytes_per_second)
            outcomes = await self._reassign(command, call, validate_only=False)
            refused = {(each.topic, each.partition): each.error for each in outcomes if each.error is not None}
            if len(refused) == len(plan):
                raise next(iter(refused.values()))
            # The image has moved on since the plan was made: the next call plans what is left.
            plan = tuple(each for each in plan if (each.topic, each.partition) not in refused)
        response = cluster_pb2.RebalanceClusterResponse()
        for each in plan:
            move = response.moves.add(
                old_replica_node_ids=state.topics[each.topic].partitions[each.partition].target,
                new_replica_node_ids=each.replicas,
                size_bytes=sizes.get((each.topic, each.partition), 0),
            )
            move.partition.topic = each.topic
            move.partition.partition = each.partition
        return response

    async def _sizes(self, state: ClusterState, plan: Sequence[Reassignment]) -> dict[tuple[str, int], int]:
        """Bytes of each partition of a plan, as its leader tells."""
        copies: dict[str, dict[int, list[int]]] = {}
        for each in plan:
            leader = state.topics[each.topic].partitions[each.partition].leader
            if leader != NOBODY:
                copies.setdefault(each.topic, {}).setdefault(leader, []).append(each.partition)
        names = list(copies)
        told = await together(
            [partial(self.partition_client.describe, state.topics[name].topic_id, copies[name]) for name in names],
            at_once_max=self.partition_client.settings.calls_at_once_max,
        )
        return {
            (name, number): facts.size_bytes
            for name, answer in zip(names, told, strict=True)
            for (_, number), facts in answer.items()
        }

    async def _reassign(self, command: ReassignPartitions, call: Call, *, validate_only: bool) -> tuple[Outcome, ...]:
        if validate_only:
            await self.catch_up.wait()
            return partition_decisions.decide(self._metadata_log.decided, command).outcomes
        return (await self._execute(command, call)).outcomes

    async def list_reassignments(
        self, request: cluster_pb2.ListReassignmentsRequest, call: Call
    ) -> cluster_pb2.ListReassignmentsResponse:
        """ListReassignments: with what is still to be copied, as far as the nodes tell."""
        response = cluster_pb2.ListReassignmentsResponse()
        under_way: dict[str, list[tuple[int, PartitionState]]] = {}
        for topic, number, partition in self._metadata_log.state.partitions():
            if partition.reassigning:
                under_way.setdefault(topic.name, []).append((number, partition))
        for name, moves in under_way.items():
            copies: dict[int, list[int]] = {}
            for number, partition in moves:
                for node_id in {partition.leader, *partition.adding} - {NOBODY}:
                    copies.setdefault(node_id, []).append(number)
            facts = await self.partition_client.describe(self._metadata_log.state.topics[name].topic_id, copies)
            for number, partition in moves:
                leader = facts.get((partition.leader, number))
                ends = [facts[node_id, number].end_offset for node_id in partition.adding if (node_id, number) in facts]
                progress = response.reassignments.add(
                    target=_reassignment(name, number, partition.target),
                    adding_node_ids=partition.adding,
                    removing_node_ids=partition.removing,
                )
                if leader is not None:
                    missing = len(partition.adding) - len(ends)
                    span = leader.end_offset - leader.log_start_offset
                    progress.lag = missing * span + sum(max(leader.end_offset - end, 0) for end in ends)
        return response

    async def cancel_reassignments(
        self, request: cluster_pb2.CancelReassignmentsRequest, call: Call
    ) -> cluster_pb2.CancelReassignmentsResponse:
        """CancelReassignments."""
        executed = await self._execute(CancelReassignments(partitions=_names("partitions", request.partitions)), call)
        return cluster_pb2.CancelReassignmentsResponse(outcomes=map(_outcome, executed.outcomes))

    async def _execute(self, command: Command, call: Call) -> Executed:
        return await self._metadata_log.execute(command, timeout_s=_time_for(call))

    def _check_node(self, node_id: int) -> None:
        if node_id < 1:
            raise errors.invalid_field("node_id", f"{node_id} is no node; ids begin at 1")


class _Watch:
    def __init__(self, wanted: frozenset[str]) -> None:
        self.wanted = wanted
        self.changed = asyncio.Event()


@dataclass(frozen=True, slots=True)
class _Seen:
    """What metadata is made of, at one moment."""

    state: ClusterState
    controller_id: int | None
    voters: frozenset[int]

    def nodes(self) -> list[NodeState]:
        """By id."""
        return [self.state.nodes[node_id] for node_id in sorted(self.state.nodes)]

    def __eq__(self, other: object) -> bool:
        # Images are compared by identity: there is one for each index.
        return (
            isinstance(other, _Seen)
            and self.state is other.state
            and self.controller_id == other.controller_id
            and self.voters == other.voters
        )

    def __hash__(self) -> int:
        return hash((self.state.index, self.controller_id))


# --- shapes -----------------------------------------------------------------------------------------------------------


def _numbers(version: str) -> tuple[int, ...]:
    """ "0.10.2": (0, 10, 2)."""
    return tuple(int(digits) for digits in re.findall(r"\d+", version)[:3])


def _snapshot(seen: _Seen, wanted: frozenset[str]) -> cluster_pb2.WatchMetadataResponse:
    return cluster_pb2.WatchMetadataResponse(
        metadata_epoch=seen.state.index,
        snapshot=True,
        nodes=[_node(node, seen) for node in seen.nodes()],
        topics=[_topic(topic) for topic in seen.state.topics.values() if _is_wanted(topic, wanted)],
        controller_node_id=seen.controller_id,
    )


def _delta(old: _Seen, new: _Seen, wanted: frozenset[str]) -> cluster_pb2.WatchMetadataResponse | None:
    """Only what changed. None: nothing that is wanted."""
    changes = difference(old.state, new.state)
    topics = {topic.topic_id: _topic(topic) for topic in changes.created if _is_wanted(topic, wanted)}
    for change in changes.partitions:
        if _is_wanted(change.topic, wanted):
            shown = topics.get(change.topic.topic_id)
            if shown is None:
                shown = topics[change.topic.topic_id] = cluster_pb2.TopicMetadata(
                    name=change.topic.name, topic_id=change.topic.topic_id
                )
            shown.partitions.append(_partition(change.number, change.after))
    nodes = {node.node_id: _node(node, new) for _, node in changes.nodes if node is not None}
    for node_id in sorted(old.voters ^ new.voters):
        if node_id in new.state.nodes:
            nodes[node_id] = _node(new.state.nodes[node_id], new)
    removed_nodes = [before.node_id for before, after in changes.nodes if after is None and before is not None]
    removed_topics = [topic.topic_id for topic in changes.deleted if _is_wanted(topic, wanted)]
    if not (topics or nodes or removed_nodes or removed_topics or old.controller_id != new.controller_id):
        return None
    return cluster_pb2.WatchMetadataResponse(
        metadata_epoch=new.state.index,
        nodes=nodes.values(),
        removed_node_ids=removed_nodes,
        topics=topics.values(),
        removed_topic_ids=removed_topics,
        controller_node_id=new.controller_id,
    )


def _node(node: NodeState, seen: _Seen) -> cluster_pb2.Node:
    if node.fenced:
        state = cluster_pb2.NODE_STATE_FENCED
    elif node.draining or node.stopping:
        state = cluster_pb2.NODE_STATE_DRAINING
    else:
        state = cluster_pb2.NODE_STATE_ACTIVE
    return cluster_pb2.Node(
        node_id=node.node_id,
        endpoint=node.client_endpoint,
        rack=node.rack,
        state=state,
        voter=node.node_id in seen.voters,
        broker_epoch=node.broker_epoch,
        version=node.version,
    )


def _topic(topic: Topic) -> cluster_pb2.TopicMetadata:
    return cluster_pb2.TopicMetadata(
        name=topic.name,
        topic_id=topic.topic_id,
        partitions=[_partition(number, partition) for number, partition in enumerate(topic.partitions)],
    )


def _partition(number: int, partition: PartitionState) -> cluster_pb2.PartitionMetadata:
    return cluster_pb2.PartitionMetadata(
        partition=number,
        leader_node_id=None if partition.leader == NOBODY else partition.leader,
        leader_epoch=partition.leader_epoch,
        replica_node_ids=partition.replicas,
        isr_node_ids=partition.isr,
    )


def _outcome(outcome: Outcome) -> cluster_pb2.PartitionOutcome:
    shown = cluster_pb2.PartitionOutcome()
    shown.partition.topic = outcome.topic
    shown.partition.partition = outcome.partition
    if outcome.error is not None:
        shown.failure.CopyFrom(outcome.error.failure())
    return shown


def _reassignment(topic: str, number: int, replicas: Sequence[int]) -> cluster_pb2.Reassignment:
    shown = cluster_pb2.Reassignment(replica_node_ids=replicas)
    shown.partition.topic = topic
    shown.partition.partition = number
    return shown


def _names(field: str, named: Iterable[record_pb2.TopicPartition], *, inner: str = "") -> tuple[PartitionName, ...]:
    """Checked; partitions that do not exist have their own outcome."""
    names: dict[PartitionName, None] = {}
    for index, each in enumerate(named):
        path = f"{field}[{index}]{inner}"
        requests.check_name(f"{path}.topic", each.topic)
        if not each.HasField("partition"):
            raise errors.invalid_field(f"{path}.partition", "is required; partitions begin at 0")
        name = PartitionName(each.topic, each.partition)
        if name in names:
            raise errors.invalid_field(path, f"{each.topic}/{each.partition} is named twice")
        names[name] = None
    return tuple(names)


def _check_throttle(bytes_per_s: int) -> None:
    if bytes_per_s < 0:
        raise errors.invalid_field("throttle_bytes_per_second", f"{bytes_per_s} is negative; 0 is the default")


def _time_for(call: Call) -> float:
    return min(max(call.timeout_s * 0.9, 0.0), ADMINISTRATION_TIMEOUT_S_MAX)


def _wanted(names: Iterable[str]) -> frozenset[str]:
    chosen = list(names)
    for index, name in enumerate(chosen):
        requests.check_name(f"topics[{index}]", name)
    return frozenset(chosen)


def _is_wanted(topic: Topic, wanted: frozenset[str]) -> bool:
    # The broker's own topics too: a cluster without leaders for them is not well.
    return not wanted or topic.name in wanted
