from google.protobuf import duration_pb2 as _duration_pb2
from postbus.v1 import error_pb2 as _error_pb2
from postbus.v1 import record_pb2 as _record_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class NodeState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    NODE_STATE_UNSPECIFIED: _ClassVar[NodeState]
    NODE_STATE_FENCED: _ClassVar[NodeState]
    NODE_STATE_ACTIVE: _ClassVar[NodeState]
    NODE_STATE_DRAINING: _ClassVar[NodeState]
NODE_STATE_UNSPECIFIED: NodeState
NODE_STATE_FENCED: NodeState
NODE_STATE_ACTIVE: NodeState
NODE_STATE_DRAINING: NodeState

class Node(_message.Message):
    __slots__ = ("node_id", "endpoint", "rack", "state", "voter", "broker_epoch", "version")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    RACK_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    VOTER_FIELD_NUMBER: _ClassVar[int]
    BROKER_EPOCH_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    node_id: int
    endpoint: str
    rack: str
    state: NodeState
    voter: bool
    broker_epoch: int
    version: str
    def __init__(self, node_id: _Optional[int] = ..., endpoint: _Optional[str] = ..., rack: _Optional[str] = ..., state: _Optional[_Union[NodeState, str]] = ..., voter: bool = ..., broker_epoch: _Optional[int] = ..., version: _Optional[str] = ...) -> None: ...

class TopicMetadata(_message.Message):
    __slots__ = ("name", "topic_id", "partitions")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TOPIC_ID_FIELD_NUMBER: _ClassVar[int]
    PARTITIONS_FIELD_NUMBER: _ClassVar[int]
    name: str
    topic_id: str
    partitions: _containers.RepeatedCompositeFieldContainer[PartitionMetadata]
    def __init__(self, name: _Optional[str] = ..., topic_id: _Optional[str] = ..., partitions: _Optional[_Iterable[_Union[PartitionMetadata, _Mapping]]] = ...) -> None: ...

class PartitionMetadata(_message.Message):
    __slots__ = ("partition", "leader_node_id", "leader_epoch", "replica_node_ids", "isr_node_ids")
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    LEADER_NODE_ID_FIELD_NUMBER: _ClassVar[int]
    LEADER_EPOCH_FIELD_NUMBER: _ClassVar[int]
    REPLICA_NODE_IDS_FIELD_NUMBER: _ClassVar[int]
    ISR_NODE_IDS_FIELD_NUMBER: _ClassVar[int]
    partition: int
    leader_node_id: int
    leader_epoch: int
    replica_node_ids: _containers.RepeatedScalarFieldContainer[int]
    isr_node_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, partition: _Optional[int] = ..., leader_node_id: _Optional[int] = ..., leader_epoch: _Optional[int] = ..., replica_node_ids: _Optional[_Iterable[int]] = ..., isr_node_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class GetMetadataRequest(_message.Message):
    __slots__ = ("topics",)
    TOPICS_FIELD_NUMBER: _ClassVar[int]
    topics: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, topics: _Optional[_Iterable[str]] = ...) -> None: ...

class GetMetadataResponse(_message.Message):
    __slots__ = ("cluster_id", "metadata_epoch", "controller_node_id", "nodes", "topics")
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    METADATA_EPOCH_FIELD_NUMBER: _ClassVar[int]
    CONTROLLER_NODE_ID_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    TOPICS_FIELD_NUMBER: _ClassVar[int]
    cluster_id: str
    metadata_epoch: int
    controller_node_id: int
    nodes: _containers.RepeatedCompositeFieldContainer[Node]
    topics: _containers.RepeatedCompositeFieldContainer[TopicMetadata]
    def __init__(self, cluster_id: _Optional[str] = ..., metadata_epoch: _Optional[int] = ..., controller_node_id: _Optional[int] = ..., nodes: _Optional[_Iterable[_Union[Node, _Mapping]]] = ..., topics: _Optional[_Iterable[_Union[TopicMetadata, _Mapping]]] = ...) -> None: ...

class WatchMetadataRequest(_message.Message):
    __slots__ = ("topics", "after_epoch")
    TOPICS_FIELD_NUMBER: _ClassVar[int]
    AFTER_EPOCH_FIELD_NUMBER: _ClassVar[int]
    topics: _containers.RepeatedScalarFieldContainer[str]
    after_epoch: int
    def __init__(self, topics: _Optional[_Iterable[str]] = ..., after_epoch: _Optional[int] = ...) -> None: ...

class WatchMetadataResponse(_message.Message):
    __slots__ = ("metadata_epoch", "snapshot", "nodes", "removed_node_ids", "topics", "removed_topic_ids", "controller_node_id")
    METADATA_EPOCH_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    REMOVED_NODE_IDS_FIELD_NUMBER: _ClassVar[int]
    TOPICS_FIELD_NUMBER: _ClassVar[int]
    REMOVED_TOPIC_IDS_FIELD_NUMBER: _ClassVar[int]
    CONTROLLER_NODE_ID_FIELD_NUMBER: _ClassVar[int]
    metadata_epoch: int
    snapshot: bool
    nodes: _containers.RepeatedCompositeFieldContainer[Node]
    removed_node_ids: _containers.RepeatedScalarFieldContainer[int]
    topics: _containers.RepeatedCompositeFieldContainer[TopicMetadata]
    removed_topic_ids: _containers.RepeatedScalarFieldContainer[str]
    controller_node_id: int
    def __init__(self, metadata_epoch: _Optional[int] = ..., snapshot: bool = ..., nodes: _Optional[_Iterable[_Union[Node, _Mapping]]] = ..., removed_node_ids: _Optional[_Iterable[int]] = ..., topics: _Optional[_Iterable[_Union[TopicMetadata, _Mapping]]] = ..., removed_topic_ids: _Optional[_Iterable[str]] = ..., controller_node_id: _Optional[int] = ...) -> None: ...

class GetServerFeaturesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetServerFeaturesResponse(_message.Message):
    __slots__ = ("version", "features", "compressions", "max_record_bytes", "max_batch_bytes", "max_message_bytes")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    COMPRESSIONS_FIELD_NUMBER: _ClassVar[int]
    MAX_RECORD_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_BATCH_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    version: str
    features: _containers.RepeatedScalarFieldContainer[str]
    compressions: _containers.RepeatedScalarFieldContainer[_record_pb2.Compression]
    max_record_bytes: int
    max_batch_bytes: int
    max_message_bytes: int
    def __init__(self, version: _Optional[str] = ..., features: _Optional[_Iterable[str]] = ..., compressions: _Optional[_Iterable[_Union[_record_pb2.Compression, str]]] = ..., max_record_bytes: _Optional[int] = ..., max_batch_bytes: _Optional[int] = ..., max_message_bytes: _Optional[int] = ...) -> None: ...

class GetQuorumRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetQuorumResponse(_message.Message):
    __slots__ = ("leader_node_id", "term", "commit_index", "members")
    LEADER_NODE_ID_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    COMMIT_INDEX_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    leader_node_id: int
    term: int
    commit_index: int
    members: _containers.RepeatedCompositeFieldContainer[QuorumMember]
    def __init__(self, leader_node_id: _Optional[int] = ..., term: _Optional[int] = ..., commit_index: _Optional[int] = ..., members: _Optional[_Iterable[_Union[QuorumMember, _Mapping]]] = ...) -> None: ...

class QuorumMember(_message.Message):
    __slots__ = ("node_id", "voter", "match_index", "silence")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    VOTER_FIELD_NUMBER: _ClassVar[int]
    MATCH_INDEX_FIELD_NUMBER: _ClassVar[int]
    SILENCE_FIELD_NUMBER: _ClassVar[int]
    node_id: int
    voter: bool
    match_index: int
    silence: _duration_pb2.Duration
    def __init__(self, node_id: _Optional[int] = ..., voter: bool = ..., match_index: _Optional[int] = ..., silence: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class AddVoterRequest(_message.Message):
    __slots__ = ("node_id",)
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    node_id: int
    def __init__(self, node_id: _Optional[int] = ...) -> None: ...

class AddVoterResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RemoveVoterRequest(_message.Message):
    __slots__ = ("node_id",)
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    node_id: int
    def __init__(self, node_id: _Optional[int] = ...) -> None: ...

class RemoveVoterResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DrainNodeRequest(_message.Message):
    __slots__ = ("node_id", "move_replicas")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    MOVE_REPLICAS_FIELD_NUMBER: _ClassVar[int]
    node_id: int
    move_replicas: bool
    def __init__(self, node_id: _Optional[int] = ..., move_replicas: bool = ...) -> None: ...

class DrainNodeResponse(_message.Message):
    __slots__ = ("leading_count", "replica_count")
    LEADING_COUNT_FIELD_NUMBER: _ClassVar[int]
    REPLICA_COUNT_FIELD_NUMBER: _ClassVar[int]
    leading_count: int
    replica_count: int
    def __init__(self, leading_count: _Optional[int] = ..., replica_count: _Optional[int] = ...) -> None: ...

class UndrainNodeRequest(_message.Message):
    __slots__ = ("node_id",)
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    node_id: int
    def __init__(self, node_id: _Optional[int] = ...) -> None: ...

class UndrainNodeResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ElectLeadersRequest(_message.Message):
    __slots__ = ("partitions", "unclean")
    PARTITIONS_FIELD_NUMBER: _ClassVar[int]
    UNCLEAN_FIELD_NUMBER: _ClassVar[int]
    partitions: _containers.RepeatedCompositeFieldContainer[_record_pb2.TopicPartition]
    unclean: bool
    def __init__(self, partitions: _Optional[_Iterable[_Union[_record_pb2.TopicPartition, _Mapping]]] = ..., unclean: bool = ...) -> None: ...

class ElectLeadersResponse(_message.Message):
    __slots__ = ("outcomes",)
    OUTCOMES_FIELD_NUMBER: _ClassVar[int]
    outcomes: _containers.RepeatedCompositeFieldContainer[PartitionOutcome]
    def __init__(self, outcomes: _Optional[_Iterable[_Union[PartitionOutcome, _Mapping]]] = ...) -> None: ...

class PartitionOutcome(_message.Message):
    __slots__ = ("partition", "failure")
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    partition: _record_pb2.TopicPartition
    failure: _error_pb2.Failure
    def __init__(self, partition: _Optional[_Union[_record_pb2.TopicPartition, _Mapping]] = ..., failure: _Optional[_Union[_error_pb2.Failure, _Mapping]] = ...) -> None: ...

class ReassignPartitionsRequest(_message.Message):
    __slots__ = ("reassignments", "throttle_bytes_per_second", "validate_only")
    REASSIGNMENTS_FIELD_NUMBER: _ClassVar[int]
    THROTTLE_BYTES_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    VALIDATE_ONLY_FIELD_NUMBER: _ClassVar[int]
    reassignments: _containers.RepeatedCompositeFieldContainer[Reassignment]
    throttle_bytes_per_second: int
    validate_only: bool
    def __init__(self, reassignments: _Optional[_Iterable[_Union[Reassignment, _Mapping]]] = ..., throttle_bytes_per_second: _Optional[int] = ..., validate_only: bool = ...) -> None: ...

class Reassignment(_message.Message):
    __slots__ = ("partition", "replica_node_ids")
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    REPLICA_NODE_IDS_FIELD_NUMBER: _ClassVar[int]
    partition: _record_pb2.TopicPartition
    replica_node_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, partition: _Optional[_Union[_record_pb2.TopicPartition, _Mapping]] = ..., replica_node_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class ReassignPartitionsResponse(_message.Message):
    __slots__ = ("outcomes",)
    OUTCOMES_FIELD_NUMBER: _ClassVar[int]
    outcomes: _containers.RepeatedCompositeFieldContainer[PartitionOutcome]
    def __init__(self, outcomes: _Optional[_Iterable[_Union[PartitionOutcome, _Mapping]]] = ...) -> None: ...

class ListReassignmentsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListReassignmentsResponse(_message.Message):
    __slots__ = ("reassignments",)
    REASSIGNMENTS_FIELD_NUMBER: _ClassVar[int]
    reassignments: _containers.RepeatedCompositeFieldContainer[ReassignmentProgress]
    def __init__(self, reassignments: _Optional[_Iterable[_Union[ReassignmentProgress, _Mapping]]] = ...) -> None: ...

class ReassignmentProgress(_message.Message):
    __slots__ = ("target", "adding_node_ids", "removing_node_ids", "lag")
    TARGET_FIELD_NUMBER: _ClassVar[int]
    ADDING_NODE_IDS_FIELD_NUMBER: _ClassVar[int]
    REMOVING_NODE_IDS_FIELD_NUMBER: _ClassVar[int]
    LAG_FIELD_NUMBER: _ClassVar[int]
    target: Reassignment
    adding_node_ids: _containers.RepeatedScalarFieldContainer[int]
    removing_node_ids: _containers.RepeatedScalarFieldContainer[int]
    lag: int
    def __init__(self, target: _Optional[_Union[Reassignment, _Mapping]] = ..., adding_node_ids: _Optional[_Iterable[int]] = ..., removing_node_ids: _Optional[_Iterable[int]] = ..., lag: _Optional[int] = ...) -> None: ...

class CancelReassignmentsRequest(_message.Message):
    __slots__ = ("partitions",)
    PARTITIONS_FIELD_NUMBER: _ClassVar[int]
    partitions: _containers.RepeatedCompositeFieldContainer[_record_pb2.TopicPartition]
    def __init__(self, partitions: _Optional[_Iterable[_Union[_record_pb2.TopicPartition, _Mapping]]] = ...) -> None: ...

class CancelReassignmentsResponse(_message.Message):
    __slots__ = ("outcomes",)
    OUTCOMES_FIELD_NUMBER: _ClassVar[int]
    outcomes: _containers.RepeatedCompositeFieldContainer[PartitionOutcome]
    def __init__(self, outcomes: _Optional[_Iterable[_Union[PartitionOutcome, _Mapping]]] = ...) -> None: ...

class RebalanceClusterRequest(_message.Message):
    __slots__ = ("throttle_bytes_per_second", "validate_only", "raise_replication")
    THROTTLE_BYTES_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    VALIDATE_ONLY_FIELD_NUMBER: _ClassVar[int]
    RAISE_REPLICATION_FIELD_NUMBER: _ClassVar[int]
    throttle_bytes_per_second: int
    validate_only: bool
    raise_replication: bool
    def __init__(self, throttle_bytes_per_second: _Optional[int] = ..., validate_only: bool = ..., raise_replication: bool = ...) -> None: ...

class RebalanceClusterResponse(_message.Message):
    __slots__ = ("moves",)
    MOVES_FIELD_NUMBER: _ClassVar[int]
    moves: _containers.RepeatedCompositeFieldContainer[PlannedMove]
    def __init__(self, moves: _Optional[_Iterable[_Union[PlannedMove, _Mapping]]] = ...) -> None: ...

class PlannedMove(_message.Message):
    __slots__ = ("partition", "old_replica_node_ids", "new_replica_node_ids", "size_bytes")
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    OLD_REPLICA_NODE_IDS_FIELD_NUMBER: _ClassVar[int]
    NEW_REPLICA_NODE_IDS_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    partition: _record_pb2.TopicPartition
    old_replica_node_ids: _containers.RepeatedScalarFieldContainer[int]
    new_replica_node_ids: _containers.RepeatedScalarFieldContainer[int]
    size_bytes: int
    def __init__(self, partition: _Optional[_Union[_record_pb2.TopicPartition, _Mapping]] = ..., old_replica_node_ids: _Optional[_Iterable[int]] = ..., new_replica_node_ids: _Optional[_Iterable[int]] = ..., size_bytes: _Optional[int] = ...) -> None: ...

class RemoveNodeRequest(_message.Message):
    __slots__ = ("node_id",)
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    node_id: int
    def __init__(self, node_id: _Optional[int] = ...) -> None: ...

class RemoveNodeResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
