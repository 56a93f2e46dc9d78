from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class MetadataEntry(_message.Message):
    __slots__ = ("records", "command_id")
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    COMMAND_ID_FIELD_NUMBER: _ClassVar[int]
    records: _containers.RepeatedCompositeFieldContainer[MetadataRecord]
    command_id: int
    def __init__(self, records: _Optional[_Iterable[_Union[MetadataRecord, _Mapping]]] = ..., command_id: _Optional[int] = ...) -> None: ...

class MetadataRecord(_message.Message):
    __slots__ = ("cluster_created", "topic_created", "topic_changed", "partitions_added", "topic_deleted", "producer_ids_reserved", "producer_epoch_raised", "node_registered", "node_changed", "node_removed", "partition_changed", "throttle_changed")
    CLUSTER_CREATED_FIELD_NUMBER: _ClassVar[int]
    TOPIC_CREATED_FIELD_NUMBER: _ClassVar[int]
    TOPIC_CHANGED_FIELD_NUMBER: _ClassVar[int]
    PARTITIONS_ADDED_FIELD_NUMBER: _ClassVar[int]
    TOPIC_DELETED_FIELD_NUMBER: _ClassVar[int]
    PRODUCER_IDS_RESERVED_FIELD_NUMBER: _ClassVar[int]
    PRODUCER_EPOCH_RAISED_FIELD_NUMBER: _ClassVar[int]
    NODE_REGISTERED_FIELD_NUMBER: _ClassVar[int]
    NODE_CHANGED_FIELD_NUMBER: _ClassVar[int]
    NODE_REMOVED_FIELD_NUMBER: _ClassVar[int]
    PARTITION_CHANGED_FIELD_NUMBER: _ClassVar[int]
    THROTTLE_CHANGED_FIELD_NUMBER: _ClassVar[int]
    cluster_created: ClusterCreated
    topic_created: TopicCreated
    topic_changed: TopicChanged
    partitions_added: PartitionsAdded
    topic_deleted: TopicDeleted
    producer_ids_reserved: ProducerIdsReserved
    producer_epoch_raised: ProducerEpochRaised
    node_registered: NodeRegistered
    node_changed: NodeChanged
    node_removed: NodeRemoved
    partition_changed: PartitionChanged
    throttle_changed: ThrottleChanged
    def __init__(self, cluster_created: _Optional[_Union[ClusterCreated, _Mapping]] = ..., topic_created: _Optional[_Union[TopicCreated, _Mapping]] = ..., topic_changed: _Optional[_Union[TopicChanged, _Mapping]] = ..., partitions_added: _Optional[_Union[PartitionsAdded, _Mapping]] = ..., topic_deleted: _Optional[_Union[TopicDeleted, _Mapping]] = ..., producer_ids_reserved: _Optional[_Union[ProducerIdsReserved, _Mapping]] = ..., producer_epoch_raised: _Optional[_Union[ProducerEpochRaised, _Mapping]] = ..., node_registered: _Optional[_Union[NodeRegistered, _Mapping]] = ..., node_changed: _Optional[_Union[NodeChanged, _Mapping]] = ..., node_removed: _Optional[_Union[NodeRemoved, _Mapping]] = ..., partition_changed: _Optional[_Union[PartitionChanged, _Mapping]] = ..., throttle_changed: _Optional[_Union[ThrottleChanged, _Mapping]] = ...) -> None: ...

class ClusterCreated(_message.Message):
    __slots__ = ("cluster_id", "create_time_us")
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_US_FIELD_NUMBER: _ClassVar[int]
    cluster_id: str
    create_time_us: int
    def __init__(self, cluster_id: _Optional[str] = ..., create_time_us: _Optional[int] = ...) -> None: ...

class TopicCreated(_message.Message):
    __slots__ = ("name", "topic_id", "partitions", "replication_factor", "config", "labels", "create_time_us", "internal", "grow_time_us")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    TOPIC_ID_FIELD_NUMBER: _ClassVar[int]
    PARTITIONS_FIELD_NUMBER: _ClassVar[int]
    REPLICATION_FACTOR_FIELD_NUMBER: _ClassVar[int]
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_US_FIELD_NUMBER: _ClassVar[int]
    INTERNAL_FIELD_NUMBER: _ClassVar[int]
    GROW_TIME_US_FIELD_NUMBER: _ClassVar[int]
    name: str
    topic_id: str
    partitions: _containers.RepeatedCompositeFieldContainer[PartitionRecord]
    replication_factor: int
    config: bytes
    labels: _containers.ScalarMap[str, str]
    create_time_us: int
    internal: bool
    grow_time_us: int
    def __init__(self, name: _Optional[str] = ..., topic_id: _Optional[str] = ..., partitions: _Optional[_Iterable[_Union[PartitionRecord, _Mapping]]] = ..., replication_factor: _Optional[int] = ..., config: _Optional[bytes] = ..., labels: _Optional[_Mapping[str, str]] = ..., create_time_us: _Optional[int] = ..., internal: bool = ..., grow_time_us: _Optional[int] = ...) -> None: ...

class TopicChanged(_message.Message):
    __slots__ = ("topic_id", "config", "labels", "replication_factor")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    TOPIC_ID_FIELD_NUMBER: _ClassVar[int]
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    REPLICATION_FACTOR_FIELD_NUMBER: _ClassVar[int]
    topic_id: str
    config: bytes
    labels: _containers.ScalarMap[str, str]
    replication_factor: int
    def __init__(self, topic_id: _Optional[str] = ..., config: _Optional[bytes] = ..., labels: _Optional[_Mapping[str, str]] = ..., replication_factor: _Optional[int] = ...) -> None: ...

class PartitionsAdded(_message.Message):
    __slots__ = ("topic_id", "partitions", "grow_time_us")
    TOPIC_ID_FIELD_NUMBER: _ClassVar[int]
    PARTITIONS_FIELD_NUMBER: _ClassVar[int]
    GROW_TIME_US_FIELD_NUMBER: _ClassVar[int]
    topic_id: str
    partitions: _containers.RepeatedCompositeFieldContainer[PartitionRecord]
    grow_time_us: int
    def __init__(self, topic_id: _Optional[str] = ..., partitions: _Optional[_Iterable[_Union[PartitionRecord, _Mapping]]] = ..., grow_time_us: _Optional[int] = ...) -> None: ...

class TopicDeleted(_message.Message):
    __slots__ = ("topic_id",)
    TOPIC_ID_FIELD_NUMBER: _ClassVar[int]
    topic_id: str
    def __init__(self, topic_id: _Optional[str] = ...) -> None: ...

class ProducerIdsReserved(_message.Message):
    __slots__ = ("end_id",)
    END_ID_FIELD_NUMBER: _ClassVar[int]
    end_id: int
    def __init__(self, end_id: _Optional[int] = ...) -> None: ...

class ProducerEpochRaised(_message.Message):
    __slots__ = ("producer_id", "epoch")
    PRODUCER_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    producer_id: int
    epoch: int
    def __init__(self, producer_id: _Optional[int] = ..., epoch: _Optional[int] = ...) -> None: ...

class NodeRegistered(_message.Message):
    __slots__ = ("node_id", "store_id", "broker_epoch", "client_endpoint", "peer_endpoint", "rack", "version", "unclean", "draining")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    STORE_ID_FIELD_NUMBER: _ClassVar[int]
    BROKER_EPOCH_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    PEER_ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    RACK_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    UNCLEAN_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    node_id: int
    store_id: str
    broker_epoch: int
    client_endpoint: str
    peer_endpoint: str
    rack: str
    version: str
    unclean: bool
    draining: bool
    def __init__(self, node_id: _Optional[int] = ..., store_id: _Optional[str] = ..., broker_epoch: _Optional[int] = ..., client_endpoint: _Optional[str] = ..., peer_endpoint: _Optional[str] = ..., rack: _Optional[str] = ..., version: _Optional[str] = ..., unclean: bool = ..., draining: bool = ...) -> None: ...

class NodeChanged(_message.Message):
    __slots__ = ("node_id", "fenced", "stopping", "draining")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    FENCED_FIELD_NUMBER: _ClassVar[int]
    STOPPING_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    node_id: int
    fenced: bool
    stopping: bool
    draining: bool
    def __init__(self, node_id: _Optional[int] = ..., fenced: bool = ..., stopping: bool = ..., draining: bool = ...) -> None: ...

class NodeRemoved(_message.Message):
    __slots__ = ("node_id",)
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    node_id: int
    def __init__(self, node_id: _Optional[int] = ...) -> None: ...

class PartitionChanged(_message.Message):
    __slots__ = ("topic_id", "partition", "state")
    TOPIC_ID_FIELD_NUMBER: _ClassVar[int]
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    topic_id: str
    partition: int
    state: PartitionRecord
    def __init__(self, topic_id: _Optional[str] = ..., partition: _Optional[int] = ..., state: _Optional[_Union[PartitionRecord, _Mapping]] = ...) -> None: ...

class PartitionRecord(_message.Message):
    __slots__ = ("log_id", "replicas", "isr", "elr", "leader", "leader_epoch", "partition_epoch", "adding", "removing", "last_leader")
    LOG_ID_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    ISR_FIELD_NUMBER: _ClassVar[int]
    ELR_FIELD_NUMBER: _ClassVar[int]
    LEADER_FIELD_NUMBER: _ClassVar[int]
    LEADER_EPOCH_FIELD_NUMBER: _ClassVar[int]
    PARTITION_EPOCH_FIELD_NUMBER: _ClassVar[int]
    ADDING_FIELD_NUMBER: _ClassVar[int]
    REMOVING_FIELD_NUMBER: _ClassVar[int]
    LAST_LEADER_FIELD_NUMBER: _ClassVar[int]
    log_id: int
    replicas: _containers.RepeatedScalarFieldContainer[int]
    isr: _containers.RepeatedScalarFieldContainer[int]
    elr: _containers.RepeatedScalarFieldContainer[int]
    leader: int
    leader_epoch: int
    partition_epoch: int
    adding: _containers.RepeatedScalarFieldContainer[int]
    removing: _containers.RepeatedScalarFieldContainer[int]
    last_leader: int
    def __init__(self, log_id: _Optional[int] = ..., replicas: _Optional[_Iterable[int]] = ..., isr: _Optional[_Iterable[int]] = ..., elr: _Optional[_Iterable[int]] = ..., leader: _Optional[int] = ..., leader_epoch: _Optional[int] = ..., partition_epoch: _Optional[int] = ..., adding: _Optional[_Iterable[int]] = ..., removing: _Optional[_Iterable[int]] = ..., last_leader: _Optional[int] = ...) -> None: ...

class ThrottleChanged(_message.Message):
    __slots__ = ("bytes_per_s",)
    BYTES_PER_S_FIELD_NUMBER: _ClassVar[int]
    bytes_per_s: int
    def __init__(self, bytes_per_s: _Optional[int] = ...) -> None: ...

class MetadataSnapshot(_message.Message):
    __slots__ = ("index", "records", "next_log_id", "producer_epoch_floor", "commands")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    NEXT_LOG_ID_FIELD_NUMBER: _ClassVar[int]
    PRODUCER_EPOCH_FLOOR_FIELD_NUMBER: _ClassVar[int]
    COMMANDS_FIELD_NUMBER: _ClassVar[int]
    index: int
    records: _containers.RepeatedCompositeFieldContainer[MetadataRecord]
    next_log_id: int
    producer_epoch_floor: int
    commands: _containers.RepeatedCompositeFieldContainer[RememberedCommand]
    def __init__(self, index: _Optional[int] = ..., records: _Optional[_Iterable[_Union[MetadataRecord, _Mapping]]] = ..., next_log_id: _Optional[int] = ..., producer_epoch_floor: _Optional[int] = ..., commands: _Optional[_Iterable[_Union[RememberedCommand, _Mapping]]] = ...) -> None: ...

class RememberedCommand(_message.Message):
    __slots__ = ("command_id", "index")
    COMMAND_ID_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    command_id: int
    index: int
    def __init__(self, command_id: _Optional[int] = ..., index: _Optional[int] = ...) -> None: ...
