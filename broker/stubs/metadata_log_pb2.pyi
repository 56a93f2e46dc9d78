from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class MetadataRecord(_message.Message):
    __slots__ = ("cluster_created", "topic_created", "topic_changed", "partitions_added", "topic_deleted", "producer_ids_reserved")
    CLUSTER_CREATED_FIELD_NUMBER: _ClassVar[int]
    TOPIC_CREATED_FIELD_NUMBER: _ClassVar[int]
    TOPIC_CHANGED_FIELD_NUMBER: _ClassVar[int]
    PARTITIONS_ADDED_FIELD_NUMBER: _ClassVar[int]
    TOPIC_DELETED_FIELD_NUMBER: _ClassVar[int]
    PRODUCER_IDS_RESERVED_FIELD_NUMBER: _ClassVar[int]
    cluster_created: ClusterCreated
    topic_created: TopicCreated
    topic_changed: TopicChanged
    partitions_added: PartitionsAdded
    topic_deleted: TopicDeleted
    producer_ids_reserved: ProducerIdsReserved
    def __init__(self, cluster_created: _Optional[_Union[ClusterCreated, _Mapping]] = ..., topic_created: _Optional[_Union[TopicCreated, _Mapping]] = ..., topic_changed: _Optional[_Union[TopicChanged, _Mapping]] = ..., partitions_added: _Optional[_Union[PartitionsAdded, _Mapping]] = ..., topic_deleted: _Optional[_Union[TopicDeleted, _Mapping]] = ..., producer_ids_reserved: _Optional[_Union[ProducerIdsReserved, _Mapping]] = ...) -> None: ...

class ClusterCreated(_message.Message):
    __slots__ = ("cluster_id", "create_time_us")
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_US_FIELD_NUMBER: _ClassVar[int]
    cluster_id: str
    create_time_us: int
    def __init__(self, cluster_id: _Optional[str] = ..., create_time_us: _Optional[int] = ...) -> None: ...

class TopicCreated(_message.Message):
    __slots__ = ("name", "topic_id", "log_ids", "replication_factor", "config", "labels", "create_time_us", "internal")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    TOPIC_ID_FIELD_NUMBER: _ClassVar[int]
    LOG_IDS_FIELD_NUMBER: _ClassVar[int]
    REPLICATION_FACTOR_FIELD_NUMBER: _ClassVar[int]
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_US_FIELD_NUMBER: _ClassVar[int]
    INTERNAL_FIELD_NUMBER: _ClassVar[int]
    name: str
    topic_id: str
    log_ids: _containers.RepeatedScalarFieldContainer[int]
    replication_factor: int
    config: bytes
    labels: _containers.ScalarMap[str, str]
    create_time_us: int
    internal: bool
    def __init__(self, name: _Optional[str] = ..., topic_id: _Optional[str] = ..., log_ids: _Optional[_Iterable[int]] = ..., replication_factor: _Optional[int] = ..., config: _Optional[bytes] = ..., labels: _Optional[_Mapping[str, str]] = ..., create_time_us: _Optional[int] = ..., internal: bool = ...) -> None: ...

class TopicChanged(_message.Message):
    __slots__ = ("topic_id", "config", "labels")
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
    topic_id: str
    config: bytes
    labels: _containers.ScalarMap[str, str]
    def __init__(self, topic_id: _Optional[str] = ..., config: _Optional[bytes] = ..., labels: _Optional[_Mapping[str, str]] = ...) -> None: ...

class PartitionsAdded(_message.Message):
    __slots__ = ("topic_id", "log_ids")
    TOPIC_ID_FIELD_NUMBER: _ClassVar[int]
    LOG_IDS_FIELD_NUMBER: _ClassVar[int]
    topic_id: str
    log_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, topic_id: _Optional[str] = ..., log_ids: _Optional[_Iterable[int]] = ...) -> None: ...

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

class MetadataSnapshot(_message.Message):
    __slots__ = ("index", "records", "next_log_id")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    NEXT_LOG_ID_FIELD_NUMBER: _ClassVar[int]
    index: int
    records: _containers.RepeatedCompositeFieldContainer[MetadataRecord]
    next_log_id: int
    def __init__(self, index: _Optional[int] = ..., records: _Optional[_Iterable[_Union[MetadataRecord, _Mapping]]] = ..., next_log_id: _Optional[int] = ...) -> None: ...
