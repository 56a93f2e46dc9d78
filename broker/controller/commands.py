"""What may be asked of the controller: values that `decisions.decide` turns into records, here or on another node.

Identifiers, times and seeds come with a command, so that deciding it is pure. Operators name partitions by topic name,
nodes by topic id, which never means another topic.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from broker.controller.topic_config import TopicConfig, TopicDefaults
from broker.errors import PostbusError


@dataclass(frozen=True, slots=True)
class Rules:
    """What the nodes' configuration allows."""

    defaults: TopicDefaults = field(default_factory=TopicDefaults)
    partitions_max: int = 10_000  # over all topics
    # As many nodes will register: until they have, a topic is not made with fewer copies for want of them.
    expected_nodes: int = 1


@dataclass(frozen=True, slots=True)
class PartitionName:
    """A partition, as users say it."""

    topic: str
    partition: int


@dataclass(frozen=True, slots=True)
class PartitionId:
    """A partition of one topic and no other of that name."""

    topic_id: str
    partition: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a command for one partition."""

    topic: str  # its name; empty if a node named a topic id that is not there
    topic_id: str
    partition: int
    error: PostbusError | None = None  # None: it is so


# --- topics -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateCluster:
    """Begins a cluster; nothing if it has begun."""

    cluster_id: str  # random
    now_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateTopic:
    """As CreateTopicRequest. Again with the same id: nothing."""

    name: str
    topic_id: str  # random
    now_us: int
    partition_count: int = 0  # 0: the default
    replication_factor: int = 0  # 0: the default
    config: TopicConfig = field(default_factory=TopicConfig)
    labels: Mapping[str, str] = field(default_factory=dict)
    internal: bool = False
    seed: int = 0  # where placement begins: random, so that not every topic begins on the same node


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateTopic:
    """As UpdateTopicRequest."""

    name: str
    paths: tuple[str, ...]  # of update_mask
    config: TopicConfig = field(default_factory=TopicConfig)
    labels: Mapping[str, str] = field(default_factory=dict)
    etag: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AddPartitions:
    """As AddPartitionsRequest."""

    name: str
    partition_count: int  # how many there should be
    now_us: int = 0
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteTopic:
    """As DeleteTopicRequest."""

    name: str
    topic_id: str = ""  # empty: whichever


@dataclass(frozen=True, slots=True, kw_only=True)
class AdoptLogs:
    """Logs that exist on a node, but that this metadata log never handed out: its own records were lost.

    Each becomes a topic of one partition on that node, kept for ever, so that no record goes and no id is used twice.
    """

    node_id: int
    topic_ids: Mapping[int, str]  # by log id; random
    now_us: int
    leader_epoch: int = 0  # above that of any record in them


# --- producers --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ReserveProducerIds:
    """A block of ids that nobody else gets: those from the image's `next_producer_id` before to that after."""

    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RaiseProducerEpoch:
    """The next epoch of a producer, for whoever holds the one given out last; `producer_epochs` has it after."""

    producer_id: int
    epoch: int  # that the asker holds


# --- nodes ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisterNode:
    """A node has started. It begins fenced."""

    node_id: int
    store_id: str
    client_endpoint: str = ""
    peer_endpoint: str = ""
    rack: str = ""
    version: str = ""
    unclean: bool = False  # it lost records that it had promised to keep


@dataclass(frozen=True, slots=True, kw_only=True)
class FenceNodes:
    """Nodes that were not heard of: nobody waits for them any more."""

    node_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class UnfenceNode:
    """A node knows its own registration."""

    node_id: int
    broker_epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StopNode:
    """A node is about to stop: others lead, and nobody waits for it."""

    node_id: int
    broker_epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainNode:
    """An operator takes a node out of use."""

    node_id: int
    move_replicas: bool = False  # not only what it leads


@dataclass(frozen=True, slots=True, kw_only=True)
class UndrainNode:
    """The opposite."""

    node_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveNode:
    """A node that holds nothing and is not there goes for good."""

    node_id: int


# --- partitions -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Member:
    """Who is to be in sync, in which life."""

    node_id: int
    broker_epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AlterPartition:
    """The ISR that a leader asks for; only if the partition is still what the leader thinks it is."""

    topic_id: str
    partition: int
    leader_epoch: int
    partition_epoch: int
    isr: tuple[Member, ...]  # with the leader


@dataclass(frozen=True, slots=True, kw_only=True)
class AlterPartitions:
    """What a leader asks for; an outcome a partition."""

    node_id: int
    broker_epoch: int
    changes: tuple[AlterPartition, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class HandOver:
    """A node asks that others lead what it leads; an outcome a partition."""

    node_id: int
    partitions: tuple[PartitionId, ...] = ()  # empty: all that it leads


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportDamage:
    """A node can't read all of what it has of these: nobody may count on its copies until they are made anew.

    An outcome a partition. Refused where no other copy has everything: there the damaged one is the best there is.
    """

    node_id: int
    broker_epoch: int
    partitions: tuple[PartitionId, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ElectLeaders:
    """As ElectLeadersRequest: preferred leaders; where nobody leads, whoever may. An outcome a partition."""

    partitions: tuple[PartitionName, ...] = ()  # empty: all
    unclean: bool = False  # where nobody may lead: whoever is there


@dataclass(frozen=True, slots=True, kw_only=True)
class Reassignment:
    """Where a partition's replicas should be."""

    topic: str
    partition: int
    replicas: tuple[int, ...]  # preferred leader first


@dataclass(frozen=True, slots=True, kw_only=True)
class ReassignPartitions:
    """As ReassignPartitionsRequest; an outcome a partition."""

    reassignments: tuple[Reassignment, ...]
    throttle_bytes_per_s: int = 0  # for each node; 0: as it is


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelReassignments:
    """What was to come goes, what was to go stays; an outcome a partition."""

    partitions: tuple[PartitionName, ...] = ()  # empty: all


@dataclass(frozen=True, slots=True, kw_only=True)
class RestorePreferred:
    """Preferred leaders lead again, where they are in sync."""

    node_ids: tuple[int, ...]  # those that may take back what is theirs
    limit: int  # partitions


@dataclass(frozen=True, slots=True, kw_only=True)
class SetThrottle:
    """How fast replicas that catch up may be."""

    bytes_per_s: int  # for each node; 0: the node's own setting


TopicCommand = AdoptLogs | CreateCluster | CreateTopic | UpdateTopic | AddPartitions | DeleteTopic
ProducerCommand = ReserveProducerIds | RaiseProducerEpoch
NodeCommand = RegisterNode | FenceNodes | UnfenceNode | StopNode | DrainNode | UndrainNode | RemoveNode
PartitionCommand = (
    AlterPartitions
    | HandOver
    | ReportDamage
    | ElectLeaders
    | ReassignPartitions
    | CancelReassignments
    | RestorePreferred
    | SetThrottle
)
Command = TopicCommand | ProducerCommand | NodeCommand | PartitionCommand
