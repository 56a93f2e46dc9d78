from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PublishPart(_message.Message):
    __slots__ = ("topic_id", "partition", "leader_epoch", "sender_life", "round", "number", "batch", "record_count", "codec", "acks", "request_id", "record_indexes", "producer_id", "producer_epoch", "producer_sequence", "end_offset")
    TOPIC_ID_FIELD_NUMBER: _ClassVar[int]
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    LEADER_EPOCH_FIELD_NUMBER: _ClassVar[int]
    SENDER_LIFE_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    RECORD_COUNT_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    ACKS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    RECORD_INDEXES_FIELD_NUMBER: _ClassVar[int]
    PRODUCER_ID_FIELD_NUMBER: _ClassVar[int]
    PRODUCER_EPOCH_FIELD_NUMBER: _ClassVar[int]
    PRODUCER_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    END_OFFSET_FIELD_NUMBER: _ClassVar[int]
    topic_id: str
    partition: int
    leader_epoch: int
    sender_life: int
    round: int
    number: int
    batch: bytes
    record_count: int
    codec: int
    acks: int
    request_id: bytes
    record_indexes: _containers.RepeatedScalarFieldContainer[int]
    producer_id: int
    producer_epoch: int
    producer_sequence: int
    end_offset: int
    def __init__(self, topic_id: _Optional[str] = ..., partition: _Optional[int] = ..., leader_epoch: _Optional[int] = ..., sender_life: _Optional[int] = ..., round: _Optional[int] = ..., number: _Optional[int] = ..., batch: _Optional[bytes] = ..., record_count: _Optional[int] = ..., codec: _Optional[int] = ..., acks: _Optional[int] = ..., request_id: _Optional[bytes] = ..., record_indexes: _Optional[_Iterable[int]] = ..., producer_id: _Optional[int] = ..., producer_epoch: _Optional[int] = ..., producer_sequence: _Optional[int] = ..., end_offset: _Optional[int] = ...) -> None: ...

class PlacedRange(_message.Message):
    __slots__ = ("base_offset", "record_count", "record_indexes", "append_time_us", "duplicate")
    BASE_OFFSET_FIELD_NUMBER: _ClassVar[int]
    RECORD_COUNT_FIELD_NUMBER: _ClassVar[int]
    RECORD_INDEXES_FIELD_NUMBER: _ClassVar[int]
    APPEND_TIME_US_FIELD_NUMBER: _ClassVar[int]
    DUPLICATE_FIELD_NUMBER: _ClassVar[int]
    base_offset: int
    record_count: int
    record_indexes: _containers.RepeatedScalarFieldContainer[int]
    append_time_us: int
    duplicate: bool
    def __init__(self, base_offset: _Optional[int] = ..., record_count: _Optional[int] = ..., record_indexes: _Optional[_Iterable[int]] = ..., append_time_us: _Optional[int] = ..., duplicate: bool = ...) -> None: ...

class PublishPartAnswer(_message.Message):
    __slots__ = ("ranges", "error")
    RANGES_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    ranges: _containers.RepeatedCompositeFieldContainer[PlacedRange]
    error: bytes
    def __init__(self, ranges: _Optional[_Iterable[_Union[PlacedRange, _Mapping]]] = ..., error: _Optional[bytes] = ...) -> None: ...

class FindRequest(_message.Message):
    __slots__ = ("topic_id", "partitions", "request_id")
    TOPIC_ID_FIELD_NUMBER: _ClassVar[int]
    PARTITIONS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    topic_id: str
    partitions: _containers.RepeatedScalarFieldContainer[int]
    request_id: bytes
    def __init__(self, topic_id: _Optional[str] = ..., partitions: _Optional[_Iterable[int]] = ..., request_id: _Optional[bytes] = ...) -> None: ...

class FindRequestAnswer(_message.Message):
    __slots__ = ("found",)
    FOUND_FIELD_NUMBER: _ClassVar[int]
    found: _containers.RepeatedCompositeFieldContainer[FoundRequest]
    def __init__(self, found: _Optional[_Iterable[_Union[FoundRequest, _Mapping]]] = ...) -> None: ...

class FoundRequest(_message.Message):
    __slots__ = ("partition", "ranges")
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    RANGES_FIELD_NUMBER: _ClassVar[int]
    partition: int
    ranges: _containers.RepeatedCompositeFieldContainer[PlacedRange]
    def __init__(self, partition: _Optional[int] = ..., ranges: _Optional[_Iterable[_Union[PlacedRange, _Mapping]]] = ...) -> None: ...

class TrimPartition(_message.Message):
    __slots__ = ("topic_id", "partition", "before_offset")
    TOPIC_ID_FIELD_NUMBER: _ClassVar[int]
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    BEFORE_OFFSET_FIELD_NUMBER: _ClassVar[int]
    topic_id: str
    partition: int
    before_offset: int
    def __init__(self, topic_id: _Optional[str] = ..., partition: _Optional[int] = ..., before_offset: _Optional[int] = ...) -> None: ...

class TrimPartitionAnswer(_message.Message):
    __slots__ = ("log_start_offset",)
    LOG_START_OFFSET_FIELD_NUMBER: _ClassVar[int]
    log_start_offset: int
    def __init__(self, log_start_offset: _Optional[int] = ...) -> None: ...

class DescribePartitions(_message.Message):
    __slots__ = ("topic_id", "partitions")
    TOPIC_ID_FIELD_NUMBER: _ClassVar[int]
    PARTITIONS_FIELD_NUMBER: _ClassVar[int]
    topic_id: str
    partitions: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, topic_id: _Optional[str] = ..., partitions: _Optional[_Iterable[int]] = ...) -> None: ...

class DescribePartitionsAnswer(_message.Message):
    __slots__ = ("replicas",)
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    replicas: _containers.RepeatedCompositeFieldContainer[ReplicaFacts]
    def __init__(self, replicas: _Optional[_Iterable[_Union[ReplicaFacts, _Mapping]]] = ...) -> None: ...

class ReplicaFacts(_message.Message):
    __slots__ = ("partition", "leader_epoch", "leads", "log_start_offset", "end_offset", "durable_end_offset", "high_watermark", "size_bytes")
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    LEADER_EPOCH_FIELD_NUMBER: _ClassVar[int]
    LEADS_FIELD_NUMBER: _ClassVar[int]
    LOG_START_OFFSET_FIELD_NUMBER: _ClassVar[int]
    END_OFFSET_FIELD_NUMBER: _ClassVar[int]
    DURABLE_END_OFFSET_FIELD_NUMBER: _ClassVar[int]
    HIGH_WATERMARK_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    partition: int
    leader_epoch: int
    leads: bool
    log_start_offset: int
    end_offset: int
    durable_end_offset: int
    high_watermark: int
    size_bytes: int
    def __init__(self, partition: _Optional[int] = ..., leader_epoch: _Optional[int] = ..., leads: bool = ..., log_start_offset: _Optional[int] = ..., end_offset: _Optional[int] = ..., durable_end_offset: _Optional[int] = ..., high_watermark: _Optional[int] = ..., size_bytes: _Optional[int] = ...) -> None: ...

class FindEnds(_message.Message):
    __slots__ = ("topic_id", "partitions")
    TOPIC_ID_FIELD_NUMBER: _ClassVar[int]
    PARTITIONS_FIELD_NUMBER: _ClassVar[int]
    topic_id: str
    partitions: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, topic_id: _Optional[str] = ..., partitions: _Optional[_Iterable[int]] = ...) -> None: ...

class FindEndsAnswer(_message.Message):
    __slots__ = ("ends",)
    ENDS_FIELD_NUMBER: _ClassVar[int]
    ends: _containers.RepeatedCompositeFieldContainer[PartitionEnds]
    def __init__(self, ends: _Optional[_Iterable[_Union[PartitionEnds, _Mapping]]] = ...) -> None: ...

class PartitionEnds(_message.Message):
    __slots__ = ("partition", "log_start_offset", "high_watermark")
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    LOG_START_OFFSET_FIELD_NUMBER: _ClassVar[int]
    HIGH_WATERMARK_FIELD_NUMBER: _ClassVar[int]
    partition: int
    log_start_offset: int
    high_watermark: int
    def __init__(self, partition: _Optional[int] = ..., log_start_offset: _Optional[int] = ..., high_watermark: _Optional[int] = ...) -> None: ...
