from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ControllerCommand(_message.Message):
    __slots__ = ("command_id", "create_cluster", "adopt_logs", "create_topic", "update_topic", "add_partitions", "delete_topic", "reserve_producer_ids", "raise_producer_epoch", "register_node", "fence_nodes", "unfence_node", "stop_node", "drain_node", "undrain_node", "remove_node", "alter_partitions", "hand_over", "elect_leaders", "reassign_partitions", "cancel_reassignments", "restore_preferred", "set_throttle", "report_damage")
    COMMAND_ID_FIELD_NUMBER: _ClassVar[int]
    CREATE_CLUSTER_FIELD_NUMBER: _ClassVar[int]
    ADOPT_LOGS_FIELD_NUMBER: _ClassVar[int]
    CREATE_TOPIC_FIELD_NUMBER: _ClassVar[int]
    UPDATE_TOPIC_FIELD_NUMBER: _ClassVar[int]
    ADD_PARTITIONS_FIELD_NUMBER: _ClassVar[int]
    DELETE_TOPIC_FIELD_NUMBER: _ClassVar[int]
    RESERVE_PRODUCER_IDS_FIELD_NUMBER: _ClassVar[int]
    RAISE_PRODUCER_EPOCH_FIELD_NUMBER: _ClassVar[int]
    REGISTER_NODE_FIELD_NUMBER: _ClassVar[int]
    FENCE_NODES_FIELD_NUMBER: _ClassVar[int]
    UNFENCE_NODE_FIELD_NUMBER: _ClassVar[int]
    STOP_NODE_FIELD_NUMBER: _ClassVar[int]
    DRAIN_NODE_FIELD_NUMBER: _ClassVar[int]
    UNDRAIN_NODE_FIELD_NUMBER: _ClassVar[int]
    REMOVE_NODE_FIELD_NUMBER: _ClassVar[int]
    ALTER_PARTITIONS_FIELD_NUMBER: _ClassVar[int]
    HAND_OVER_FIELD_NUMBER: _ClassVar[int]
    ELECT_LEADERS_FIELD_NUMBER: _ClassVar[int]
    REASSIGN_PARTITIONS_FIELD_NUMBER: _ClassVar[int]
    CANCEL_REASSIGNMENTS_FIELD_NUMBER: _ClassVar[int]
    RESTORE_PREFERRED_FIELD_NUMBER: _ClassVar[int]
    SET_THROTTLE_FIELD_NUMBER: _ClassVar[int]
    REPORT_DAMAGE_FIELD_NUMBER: _ClassVar[int]
    command_id: int
    create_cluster: CreateCluster
    adopt_logs: AdoptLogs
    create_topic: CreateTopic
    update_topic: UpdateTopic
    add_partitions: AddPartitions
    delete_topic: DeleteTopic
    reserve_producer_ids: ReserveProducerIds
    raise_producer_epoch: RaiseProducerEpoch
    register_node: RegisterNode
    fence_nodes: FenceNodes
    unfence_node: UnfenceNode
    stop_node: StopNode
    drain_node: DrainNode
    undrain_node: UndrainNode
    remove_node: RemoveNode
    alter_partitions: AlterPartitions
    hand_over: HandOver
    elect_leaders: ElectLeaders
    reassign_partitions: ReassignPartitions
    cancel_reassignments: CancelReassignments
    restore_preferred: RestorePreferred
    set_throttle: SetThrottle
    report_damage: ReportDamage
    def __init__(self, command_id: _Optional[int] = ..., create_cluster: _Optional[_Union[CreateCluster, _Mapping]] = ..., adopt_logs: _Optional[_Union[AdoptLogs, _Mapping]] = ..., create_topic: _Optional[_Union[CreateTopic, _Mapping]] = ..., update_topic: _Optional[_Union[UpdateTopic, _Mapping]] = ..., add_partitions: _Optional[_Union[AddPartitions, _Mapping]] = ..., delete_topic: _Optional[_Union[DeleteTopic, _Mapping]] = ..., reserve_producer_ids: _Optional[_Union[ReserveProducerIds, _Mapping]] = ..., raise_producer_epoch: _Optional[_Union[RaiseProducerEpoch, _Mapping]] = ..., register_node: _Optional[_Union[RegisterNode, _Mapping]] = ..., fence_nodes: _Optional[_Union[FenceNodes, _Mapping]] = ..., unfence_node: _Optional[_Union[UnfenceNode, _Mapping]] = ..., stop_node: _Optional[_Union[StopNode, _Mapping]] = ..., drain_node: _Optional[_Union[DrainNode, _Mapping]] = ..., undrain_node: _Optional[_Union[UndrainNode, _Mapping]] = ..., remove_node: _Optional[_Union[RemoveNode, _Mapping]] = ..., alter_partitions: _Optional[_Union[AlterPartitions, _Mapping]] = ..., hand_over: _Optional[_Union[HandOver, _Mapping]] = ..., elect_leaders: _Optional[_Union[ElectLeaders, _Mapping]] = ..., reassign_partitions: _Optional[_Union[ReassignPartitions, _Mapping]] = ..., cancel_reassignments: _Optional[_Union[CancelReassignments, _Mapping]] = ..., restore_preferred: _Optional[_Union[RestorePreferred, _Mapping]] = ..., set_throttle: _Optional[_Union[SetThrottle, _Mapping]] = ..., report_damage: _Optional[_Union[ReportDamage, _Mapping]] = ...) -> None: ...

class ControllerAnswer(_message.Message):
    __slots__ = ("index", "changed", "outcomes")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    CHANGED_FIELD_NUMBER: _ClassVar[int]
    OUTCOMES_FIELD_NUMBER: _ClassVar[int]
    index: int
    changed: bool
    outcomes: _containers.RepeatedCompositeFieldContainer[PartitionAnswer]
    def __init__(self, index: _Optional[int] = ..., changed: bool = ..., outcomes: _Optional[_Iterable[_Union[PartitionAnswer, _Mapping]]] = ...) -> None: ...

class PartitionAnswer(_message.Message):
    __slots__ = ("topic", "topic_id", "partition", "error")
    TOPIC_FIELD_NUMBER: _ClassVar[int]
    TOPIC_ID_FIELD_NUMBER: _ClassVar[int]
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    topic: str
    topic_id: str
    partition: int
    error: bytes
    def __init__(self, topic: _Optional[str] = ..., topic_id: _Optional[str] = ..., partition: _Optional[int] = ..., error: _Optional[bytes] = ...) -> None: ...

class NodeHeartbeat(_message.Message):
    __slots__ = ("broker_epoch", "applied_index", "disk_full", "wall_us")
    BROKER_EPOCH_FIELD_NUMBER: _ClassVar[int]
    APPLIED_INDEX_FIELD_NUMBER: _ClassVar[int]
    DISK_FULL_FIELD_NUMBER: _ClassVar[int]
    WALL_US_FIELD_NUMBER: _ClassVar[int]
    broker_epoch: int
    applied_index: int
    disk_full: bool
    wall_us: int
    def __init__(self, broker_epoch: _Optional[int] = ..., applied_index: _Optional[int] = ..., disk_full: bool = ..., wall_us: _Optional[int] = ...) -> None: ...

class NodeHeartbeatAnswer(_message.Message):
    __slots__ = ("fenced", "index", "wall_us")
    FENCED_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    WALL_US_FIELD_NUMBER: _ClassVar[int]
    fenced: bool
    index: int
    wall_us: int
    def __init__(self, fenced: bool = ..., index: _Optional[int] = ..., wall_us: _Optional[int] = ...) -> None: ...

class ChangeVoter(_message.Message):
    __slots__ = ("node_id", "voter")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    VOTER_FIELD_NUMBER: _ClassVar[int]
    node_id: int
    voter: bool
    def __init__(self, node_id: _Optional[int] = ..., voter: bool = ...) -> None: ...

class PartitionName(_message.Message):
    __slots__ = ("topic", "partition")
    TOPIC_FIELD_NUMBER: _ClassVar[int]
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    topic: str
    partition: int
    def __init__(self, topic: _Optional[str] = ..., partition: _Optional[int] = ...) -> None: ...

class PartitionId(_message.Message):
    __slots__ = ("topic_id", "partition")
    TOPIC_ID_FIELD_NUMBER: _ClassVar[int]
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    topic_id: str
    partition: int
    def __init__(self, topic_id: _Optional[str] = ..., partition: _Optional[int] = ...) -> None: ...

class CreateCluster(_message.Message):
    __slots__ = ("cluster_id", "now_us")
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    NOW_US_FIELD_NUMBER: _ClassVar[int]
    cluster_id: str
    now_us: int
    def __init__(self, cluster_id: _Optional[str] = ..., now_us: _Optional[int] = ...) -> None: ...

class AdoptLogs(_message.Message):
    __slots__ = ("node_id", "topic_ids", "now_us", "leader_epoch")
    class TopicIdsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: str
        def __init__(self, key: _Optional[int] = ..., value: _Optional[str] = ...) -> None: ...
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    TOPIC_IDS_FIELD_NUMBER: _ClassVar[int]
    NOW_US_FIELD_NUMBER: _ClassVar[int]
    LEADER_EPOCH_FIELD_NUMBER: _ClassVar[int]
    node_id: int
    topic_ids: _containers.ScalarMap[int, str]
    now_us: int
    leader_epoch: int
    def __init__(self, node_id: _Optional[int] = ..., topic_ids: _Optional[_Mapping[int, str]] = ..., now_us: _Optional[int] = ..., leader_epoch: _Optional[int] = ...) -> None: ...

class CreateTopic(_message.Message):
    __slots__ = ("name", "topic_id", "now_us", "partition_count", "replication_factor", "config", "labels", "internal", "seed")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    TOPIC_ID_FIELD_NUMBER: _ClassVar[int]
    NOW_US_FIELD_NUMBER: _ClassVar[int]
    PARTITION_COUNT_FIELD_NUMBER: _ClassVar[int]
    REPLICATION_FACTOR_FIELD_NUMBER: _ClassVar[int]
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    INTERNAL_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    name: str
    topic_id: str
    now_us: int
    partition_count: int
    replication_factor: int
    config: bytes
    labels: _containers.ScalarMap[str, str]
    internal: bool
    seed: int
    def __init__(self, name: _Optional[str] = ..., topic_id: _Optional[str] = ..., now_us: _Optional[int] = ..., partition_count: _Optional[int] = ..., replication_factor: _Optional[int] = ..., config: _Optional[bytes] = ..., labels: _Optional[_Mapping[str, str]] = ..., internal: bool = ..., seed: _Optional[int] = ...) -> None: ...

class UpdateTopic(_message.Message):
    __slots__ = ("name", "paths", "config", "labels", "etag")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    PATHS_FIELD_NUMBER: _ClassVar[int]
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    name: str
    paths: _containers.RepeatedScalarFieldContainer[str]
    config: bytes
    labels: _containers.ScalarMap[str, str]
    etag: str
    def __init__(self, name: _Optional[str] = ..., paths: _Optional[_Iterable[str]] = ..., config: _Optional[bytes] = ..., labels: _Optional[_Mapping[str, str]] = ..., etag: _Optional[str] = ...) -> None: ...

class AddPartitions(_message.Message):
    __slots__ = ("name", "partition_count", "seed", "now_us")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PARTITION_COUNT_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    NOW_US_FIELD_NUMBER: _ClassVar[int]
    name: str
    partition_count: int
    seed: int
    now_us: int
    def __init__(self, name: _Optional[str] = ..., partition_count: _Optional[int] = ..., seed: _Optional[int] = ..., now_us: _Optional[int] = ...) -> None: ...

class DeleteTopic(_message.Message):
    __slots__ = ("name", "topic_id")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TOPIC_ID_FIELD_NUMBER: _ClassVar[int]
    name: str
    topic_id: str
    def __init__(self, name: _Optional[str] = ..., topic_id: _Optional[str] = ...) -> None: ...

class ReserveProducerIds(_message.Message):
    __slots__ = ("count",)
    COUNT_FIELD_NUMBER: _ClassVar[int]
    count: int
    def __init__(self, count: _Optional[int] = ...) -> None: ...

class RaiseProducerEpoch(_message.Message):
    __slots__ = ("producer_id", "epoch")
    PRODUCER_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    producer_id: int
    epoch: int
    def __init__(self, producer_id: _Optional[int] = ..., epoch: _Optional[int] = ...) -> None: ...

class RegisterNode(_message.Message):
    __slots__ = ("node_id", "store_id", "client_endpoint", "peer_endpoint", "rack", "version", "unclean")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    STORE_ID_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    PEER_ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    RACK_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    UNCLEAN_FIELD_NUMBER: _ClassVar[int]
    node_id: int
    store_id: str
    client_endpoint: str
    peer_endpoint: str
    rack: str
    version: str
    unclean: bool
    def __init__(self, node_id: _Optional[int] = ..., store_id: _Optional[str] = ..., client_endpoint: _Optional[str] = ..., peer_endpoint: _Optional[str] = ..., rack: _Optional[str] = ..., version: _Optional[str] = ..., unclean: bool = ...) -> None: ...

class FenceNodes(_message.Message):
    __slots__ = ("node_ids",)
    NODE_IDS_FIELD_NUMBER: _ClassVar[int]
    node_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, node_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class UnfenceNode(_message.Message):
    __slots__ = ("node_id", "broker_epoch")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    BROKER_EPOCH_FIELD_NUMBER: _ClassVar[int]
    node_id: int
    broker_epoch: int
    def __init__(self, node_id: _Optional[int] = ..., broker_epoch: _Optional[int] = ...) -> None: ...

class StopNode(_message.Message):
    __slots__ = ("node_id", "broker_epoch")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    BROKER_EPOCH_FIELD_NUMBER: _ClassVar[int]
    node_id: int
    broker_epoch: int
    def __init__(self, node_id: _Optional[int] = ..., broker_epoch: _Optional[int] = ...) -> None: ...

class DrainNode(_message.Message):
    __slots__ = ("node_id", "move_replicas")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    MOVE_REPLICAS_FIELD_NUMBER: _ClassVar[int]
    node_id: int
    move_replicas: bool
    def __init__(self, node_id: _Optional[int] = ..., move_replicas: bool = ...) -> None: ...

class UndrainNode(_message.Message):
    __slots__ = ("node_id",)
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    node_id: int
    def __init__(self, node_id: _Optional[int] = ...) -> None: ...

class RemoveNode(_message.Message):
    __slots__ = ("node_id",)
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    node_id: int
    def __init__(self, node_id: _Optional[int] = ...) -> None: ...

class Member(_message.Message):
    __slots__ = ("node_id", "broker_epoch")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    BROKER_EPOCH_FIELD_NUMBER: _ClassVar[int]
    node_id: int
    broker_epoch: int
    def __init__(self, node_id: _Optional[int] = ..., broker_epoch: _Optional[int] = ...) -> None: ...

class AlterPartition(_message.Message):
    __slots__ = ("topic_id", "partition", "leader_epoch", "partition_epoch", "isr")
    TOPIC_ID_FIELD_NUMBER: _ClassVar[int]
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    LEADER_EPOCH_FIELD_NUMBER: _ClassVar[int]
    PARTITION_EPOCH_FIELD_NUMBER: _ClassVar[int]
    ISR_FIELD_NUMBER: _ClassVar[int]
    topic_id: str
    partition: int
    leader_epoch: int
    partition_epoch: int
    isr: _containers.RepeatedCompositeFieldContainer[Member]
    def __init__(self, topic_id: _Optional[str] = ..., partition: _Optional[int] = ..., leader_epoch: _Optional[int] = ..., partition_epoch: _Optional[int] = ..., isr: _Optional[_Iterable[_Union[Member, _Mapping]]] = ...) -> None: ...

class AlterPartitions(_message.Message):
    __slots__ = ("node_id", "broker_epoch", "changes")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    BROKER_EPOCH_FIELD_NUMBER: _ClassVar[int]
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    node_id: int
    broker_epoch: int
    changes: _containers.RepeatedCompositeFieldContainer[AlterPartition]
    def __init__(self, node_id: _Optional[int] = ..., broker_epoch: _Optional[int] = ..., changes: _Optional[_Iterable[_Union[AlterPartition, _Mapping]]] = ...) -> None: ...

class HandOver(_message.Message):
    __slots__ = ("node_id", "partitions")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    PARTITIONS_FIELD_NUMBER: _ClassVar[int]
    node_id: int
    partitions: _containers.RepeatedCompositeFieldContainer[PartitionId]
    def __init__(self, node_id: _Optional[int] = ..., partitions: _Optional[_Iterable[_Union[PartitionId, _Mapping]]] = ...) -> None: ...

class ReportDamage(_message.Message):
    __slots__ = ("node_id", "broker_epoch", "partitions")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    BROKER_EPOCH_FIELD_NUMBER: _ClassVar[int]
    PARTITIONS_FIELD_NUMBER: _ClassVar[int]
    node_id: int
    broker_epoch: int
    partitions: _containers.RepeatedCompositeFieldContainer[PartitionId]
    def __init__(self, node_id: _Optional[int] = ..., broker_epoch: _Optional[int] = ..., partitions: _Optional[_Iterable[_Union[PartitionId, _Mapping]]] = ...) -> None: ...

class ElectLeaders(_message.Message):
    __slots__ = ("partitions", "unclean")
    PARTITIONS_FIELD_NUMBER: _ClassVar[int]
    UNCLEAN_FIELD_NUMBER: _ClassVar[int]
    partitions: _containers.RepeatedCompositeFieldContainer[PartitionName]
    unclean: bool
    def __init__(self, partitions: _Optional[_Iterable[_Union[PartitionName, _Mapping]]] = ..., unclean: bool = ...) -> None: ...

class Reassignment(_message.Message):
    __slots__ = ("topic", "partition", "replicas")
    TOPIC_FIELD_NUMBER: _ClassVar[int]
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    topic: str
    partition: int
    replicas: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, topic: _Optional[str] = ..., partition: _Optional[int] = ..., replicas: _Optional[_Iterable[int]] = ...) -> None: ...

class ReassignPartitions(_message.Message):
    __slots__ = ("reassignments", "throttle_bytes_per_s")
    REASSIGNMENTS_FIELD_NUMBER: _ClassVar[int]
    THROTTLE_BYTES_PER_S_FIELD_NUMBER: _ClassVar[int]
    reassignments: _containers.RepeatedCompositeFieldContainer[Reassignment]
    throttle_bytes_per_s: int
    def __init__(self, reassignments: _Optional[_Iterable[_Union[Reassignment, _Mapping]]] = ..., throttle_bytes_per_s: _Optional[int] = ...) -> None: ...

class CancelReassignments(_message.Message):
    __slots__ = ("partitions",)
    PARTITIONS_FIELD_NUMBER: _ClassVar[int]
    partitions: _containers.RepeatedCompositeFieldContainer[PartitionName]
    def __init__(self, partitions: _Optional[_Iterable[_Union[PartitionName, _Mapping]]] = ...) -> None: ...

class RestorePreferred(_message.Message):
    __slots__ = ("node_ids", "limit")
    NODE_IDS_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    node_ids: _containers.RepeatedScalarFieldContainer[int]
    limit: int
    def __init__(self, node_ids: _Optional[_Iterable[int]] = ..., limit: _Optional[int] = ...) -> None: ...

class SetThrottle(_message.Message):
    __slots__ = ("bytes_per_s",)
    BYTES_PER_S_FIELD_NUMBER: _ClassVar[int]
    bytes_per_s: int
    def __init__(self, bytes_per_s: _Optional[int] = ...) -> None: ...
