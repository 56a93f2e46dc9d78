from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from postbus.v1 import error_pb2 as _error_pb2
from postbus.v1 import record_pb2 as _record_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Acks(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ACKS_UNSPECIFIED: _ClassVar[Acks]
    ACKS_ALL: _ClassVar[Acks]
    ACKS_LEADER: _ClassVar[Acks]
    ACKS_NONE: _ClassVar[Acks]
ACKS_UNSPECIFIED: Acks
ACKS_ALL: Acks
ACKS_LEADER: Acks
ACKS_NONE: Acks

class PublishRequest(_message.Message):
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
    batch: _record_pb2.RecordBatch
    acks: Acks
    request_id: str
    producer: ProducerSequence
    precondition: Precondition
    leader_only: bool
    partition_key: bytes
    def __init__(self, topic: _Optional[str] = ..., partition: _Optional[int] = ..., batch: _Optional[_Union[_record_pb2.RecordBatch, _Mapping]] = ..., acks: _Optional[_Union[Acks, str]] = ..., request_id: _Optional[str] = ..., producer: _Optional[_Union[ProducerSequence, _Mapping]] = ..., precondition: _Optional[_Union[Precondition, _Mapping]] = ..., leader_only: bool = ..., partition_key: _Optional[bytes] = ...) -> None: ...

class ProducerSequence(_message.Message):
    __slots__ = ("id", "epoch", "sequence")
    ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    id: int
    epoch: int
    sequence: int
    def __init__(self, id: _Optional[int] = ..., epoch: _Optional[int] = ..., sequence: _Optional[int] = ...) -> None: ...

class Precondition(_message.Message):
    __slots__ = ("end_offset",)
    END_OFFSET_FIELD_NUMBER: _ClassVar[int]
    end_offset: int
    def __init__(self, end_offset: _Optional[int] = ...) -> None: ...

class PublishResponse(_message.Message):
    __slots__ = ("ranges",)
    RANGES_FIELD_NUMBER: _ClassVar[int]
    ranges: _containers.RepeatedCompositeFieldContainer[PublishedRange]
    def __init__(self, ranges: _Optional[_Iterable[_Union[PublishedRange, _Mapping]]] = ...) -> None: ...

class PublishedRange(_message.Message):
    __slots__ = ("partition", "base_offset", "record_count", "record_indexes", "append_time", "duplicate")
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    BASE_OFFSET_FIELD_NUMBER: _ClassVar[int]
    RECORD_COUNT_FIELD_NUMBER: _ClassVar[int]
    RECORD_INDEXES_FIELD_NUMBER: _ClassVar[int]
    APPEND_TIME_FIELD_NUMBER: _ClassVar[int]
    DUPLICATE_FIELD_NUMBER: _ClassVar[int]
    partition: int
    base_offset: int
    record_count: int
    record_indexes: _containers.RepeatedScalarFieldContainer[int]
    append_time: _timestamp_pb2.Timestamp
    duplicate: bool
    def __init__(self, partition: _Optional[int] = ..., base_offset: _Optional[int] = ..., record_count: _Optional[int] = ..., record_indexes: _Optional[_Iterable[int]] = ..., append_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., duplicate: bool = ...) -> None: ...

class PublishStreamRequest(_message.Message):
    __slots__ = ("correlation_id", "publish", "timeout")
    CORRELATION_ID_FIELD_NUMBER: _ClassVar[int]
    PUBLISH_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    correlation_id: int
    publish: PublishRequest
    timeout: _duration_pb2.Duration
    def __init__(self, correlation_id: _Optional[int] = ..., publish: _Optional[_Union[PublishRequest, _Mapping]] = ..., timeout: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class PublishStreamResponse(_message.Message):
    __slots__ = ("acks", "draining")
    ACKS_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    acks: _containers.RepeatedCompositeFieldContainer[PublishAck]
    draining: _record_pb2.Draining
    def __init__(self, acks: _Optional[_Iterable[_Union[PublishAck, _Mapping]]] = ..., draining: _Optional[_Union[_record_pb2.Draining, _Mapping]] = ...) -> None: ...

class PublishAck(_message.Message):
    __slots__ = ("correlation_id", "result", "failure", "partial")
    CORRELATION_ID_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    PARTIAL_FIELD_NUMBER: _ClassVar[int]
    correlation_id: int
    result: PublishResponse
    failure: _error_pb2.Failure
    partial: PublishResponse
    def __init__(self, correlation_id: _Optional[int] = ..., result: _Optional[_Union[PublishResponse, _Mapping]] = ..., failure: _Optional[_Union[_error_pb2.Failure, _Mapping]] = ..., partial: _Optional[_Union[PublishResponse, _Mapping]] = ...) -> None: ...

class InitProducerRequest(_message.Message):
    __slots__ = ("id", "epoch")
    ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    id: int
    epoch: int
    def __init__(self, id: _Optional[int] = ..., epoch: _Optional[int] = ...) -> None: ...

class InitProducerResponse(_message.Message):
    __slots__ = ("id", "epoch")
    ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    id: int
    epoch: int
    def __init__(self, id: _Optional[int] = ..., epoch: _Optional[int] = ...) -> None: ...
