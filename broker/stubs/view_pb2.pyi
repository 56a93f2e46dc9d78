from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PublishRequestView(_message.Message):
    __slots__ = ("topic", "partition", "batch", "acks", "request_id", "producer", "precondition", "leader_only", "partition_key")
    TOPIC_FIELD_NUMBER: _ClassVar[int]
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    ACKS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    PRODUCER_FIELD_NUMBER: _ClassVar[int]
    PRECONDITION_FIELD_NUMBER: _ClassVar[int]
    LEADER_ONLY_FIELD_NUMBER: _ClassVar[int]
    PARTITION_KEY_FIELD_NUMBER: _ClassVar[int]
    topic: str
    partition: int
    batch: bytes
    acks: int
    request_id: str
    producer: ProducerSequenceView
    precondition: PreconditionView
    leader_only: bool
    partition_key: bytes
    def __init__(self, topic: _Optional[str] = ..., partition: _Optional[int] = ..., batch: _Optional[bytes] = ..., acks: _Optional[int] = ..., request_id: _Optional[str] = ..., producer: _Optional[_Union[ProducerSequenceView, _Mapping]] = ..., precondition: _Optional[_Union[PreconditionView, _Mapping]] = ..., leader_only: bool = ..., partition_key: _Optional[bytes] = ...) -> None: ...

class ProducerSequenceView(_message.Message):
    __slots__ = ("id", "epoch", "sequence")
    ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    id: int
    epoch: int
    sequence: int
    def __init__(self, id: _Optional[int] = ..., epoch: _Optional[int] = ..., sequence: _Optional[int] = ...) -> None: ...

class PreconditionView(_message.Message):
    __slots__ = ("end_offset",)
    END_OFFSET_FIELD_NUMBER: _ClassVar[int]
    end_offset: int
    def __init__(self, end_offset: _Optional[int] = ...) -> None: ...

class PublishStreamRequestView(_message.Message):
    __slots__ = ("correlation_id", "publish", "timeout")
    CORRELATION_ID_FIELD_NUMBER: _ClassVar[int]
    PUBLISH_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    correlation_id: int
    publish: PublishRequestView
    timeout: _duration_pb2.Duration
    def __init__(self, correlation_id: _Optional[int] = ..., publish: _Optional[_Union[PublishRequestView, _Mapping]] = ..., timeout: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class RecordBatchView(_message.Message):
    __slots__ = ("records", "compression", "compressed_records", "record_count", "uncompressed_bytes")
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    COMPRESSION_FIELD_NUMBER: _ClassVar[int]
    COMPRESSED_RECORDS_FIELD_NUMBER: _ClassVar[int]
    RECORD_COUNT_FIELD_NUMBER: _ClassVar[int]
    UNCOMPRESSED_BYTES_FIELD_NUMBER: _ClassVar[int]
    records: _containers.RepeatedScalarFieldContainer[bytes]
    compression: int
    compressed_records: bytes
    record_count: int
    uncompressed_bytes: int
    def __init__(self, records: _Optional[_Iterable[bytes]] = ..., compression: _Optional[int] = ..., compressed_records: _Optional[bytes] = ..., record_count: _Optional[int] = ..., uncompressed_bytes: _Optional[int] = ...) -> None: ...

class DeliveryView(_message.Message):
    __slots__ = ("topic", "partition", "base_offset", "end_offset", "fence")
    TOPIC_FIELD_NUMBER: _ClassVar[int]
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    BASE_OFFSET_FIELD_NUMBER: _ClassVar[int]
    END_OFFSET_FIELD_NUMBER: _ClassVar[int]
    FENCE_FIELD_NUMBER: _ClassVar[int]
    topic: str
    partition: int
    base_offset: int
    end_offset: int
    fence: int
    def __init__(self, topic: _Optional[str] = ..., partition: _Optional[int] = ..., base_offset: _Optional[int] = ..., end_offset: _Optional[int] = ..., fence: _Optional[int] = ...) -> None: ...

class DeliveredBatchView(_message.Message):
    __slots__ = ("delivery", "batch", "append_time", "offset_deltas", "delivery_attempts", "lease_deadline", "leader_epoch", "high_watermark")
    DELIVERY_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    APPEND_TIME_FIELD_NUMBER: _ClassVar[int]
    OFFSET_DELTAS_FIELD_NUMBER: _ClassVar[int]
    DELIVERY_ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    LEASE_DEADLINE_FIELD_NUMBER: _ClassVar[int]
    LEADER_EPOCH_FIELD_NUMBER: _ClassVar[int]
    HIGH_WATERMARK_FIELD_NUMBER: _ClassVar[int]
    delivery: DeliveryView
    batch: bytes
    append_time: _timestamp_pb2.Timestamp
    offset_deltas: _containers.RepeatedScalarFieldContainer[int]
    delivery_attempts: _containers.RepeatedScalarFieldContainer[int]
    lease_deadline: _timestamp_pb2.Timestamp
    leader_epoch: int
    high_watermark: int
    def __init__(self, delivery: _Optional[_Union[DeliveryView, _Mapping]] = ..., batch: _Optional[bytes] = ..., append_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., offset_deltas: _Optional[_Iterable[int]] = ..., delivery_attempts: _Optional[_Iterable[int]] = ..., lease_deadline: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., leader_epoch: _Optional[int] = ..., high_watermark: _Optional[int] = ...) -> None: ...
