from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ErrorReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ERROR_REASON_UNSPECIFIED: _ClassVar[ErrorReason]
    ERROR_REASON_NOT_LEADER: _ClassVar[ErrorReason]
    ERROR_REASON_NO_LEADER: _ClassVar[ErrorReason]
    ERROR_REASON_NOT_ENOUGH_REPLICAS: _ClassVar[ErrorReason]
    ERROR_REASON_NOT_ENOUGH_REPLICAS_AFTER_APPEND: _ClassVar[ErrorReason]
    ERROR_REASON_TOPIC_NOT_FOUND: _ClassVar[ErrorReason]
    ERROR_REASON_PARTITION_NOT_FOUND: _ClassVar[ErrorReason]
    ERROR_REASON_GROUP_NOT_FOUND: _ClassVar[ErrorReason]
    ERROR_REASON_OFFSET_OUT_OF_RANGE: _ClassVar[ErrorReason]
    ERROR_REASON_PRECONDITION_NOT_MET: _ClassVar[ErrorReason]
    ERROR_REASON_PRODUCER_FENCED: _ClassVar[ErrorReason]
    ERROR_REASON_PRODUCER_UNKNOWN: _ClassVar[ErrorReason]
    ERROR_REASON_SEQUENCE_GAP: _ClassVar[ErrorReason]
    ERROR_REASON_DUPLICATE_SEQUENCE: _ClassVar[ErrorReason]
    ERROR_REASON_PREDECESSOR_FAILED: _ClassVar[ErrorReason]
    ERROR_REASON_ASSIGNMENT_LOST: _ClassVar[ErrorReason]
    ERROR_REASON_PROCESSING_TIMEOUT: _ClassVar[ErrorReason]
    ERROR_REASON_MEMBER_REPLACED: _ClassVar[ErrorReason]
    ERROR_REASON_DISK_FULL: _ClassVar[ErrorReason]
    ERROR_REASON_QUOTA_EXCEEDED: _ClassVar[ErrorReason]
    ERROR_REASON_INVALID_FIELD: _ClassVar[ErrorReason]
    ERROR_REASON_UNKNOWN_FIELD: _ClassVar[ErrorReason]
    ERROR_REASON_TOO_LARGE: _ClassVar[ErrorReason]
    ERROR_REASON_EXISTS: _ClassVar[ErrorReason]
    ERROR_REASON_GROUP_NOT_EMPTY: _ClassVar[ErrorReason]
    ERROR_REASON_GROUP_KIND_MISMATCH: _ClassVar[ErrorReason]
    ERROR_REASON_LOG_CORRUPT: _ClassVar[ErrorReason]
    ERROR_REASON_DRAINING: _ClassVar[ErrorReason]
    ERROR_REASON_TIMEOUT: _ClassVar[ErrorReason]
ERROR_REASON_UNSPECIFIED: ErrorReason
ERROR_REASON_NOT_LEADER: ErrorReason
ERROR_REASON_NO_LEADER: ErrorReason
ERROR_REASON_NOT_ENOUGH_REPLICAS: ErrorReason
ERROR_REASON_NOT_ENOUGH_REPLICAS_AFTER_APPEND: ErrorReason
ERROR_REASON_TOPIC_NOT_FOUND: ErrorReason
ERROR_REASON_PARTITION_NOT_FOUND: ErrorReason
ERROR_REASON_GROUP_NOT_FOUND: ErrorReason
ERROR_REASON_OFFSET_OUT_OF_RANGE: ErrorReason
ERROR_REASON_PRECONDITION_NOT_MET: ErrorReason
ERROR_REASON_PRODUCER_FENCED: ErrorReason
ERROR_REASON_PRODUCER_UNKNOWN: ErrorReason
ERROR_REASON_SEQUENCE_GAP: ErrorReason
ERROR_REASON_DUPLICATE_SEQUENCE: ErrorReason
ERROR_REASON_PREDECESSOR_FAILED: ErrorReason
ERROR_REASON_ASSIGNMENT_LOST: ErrorReason
ERROR_REASON_PROCESSING_TIMEOUT: ErrorReason
ERROR_REASON_MEMBER_REPLACED: ErrorReason
ERROR_REASON_DISK_FULL: ErrorReason
ERROR_REASON_QUOTA_EXCEEDED: ErrorReason
ERROR_REASON_INVALID_FIELD: ErrorReason
ERROR_REASON_UNKNOWN_FIELD: ErrorReason
ERROR_REASON_TOO_LARGE: ErrorReason
ERROR_REASON_EXISTS: ErrorReason
ERROR_REASON_GROUP_NOT_EMPTY: ErrorReason
ERROR_REASON_GROUP_KIND_MISMATCH: ErrorReason
ERROR_REASON_LOG_CORRUPT: ErrorReason
ERROR_REASON_DRAINING: ErrorReason
ERROR_REASON_TIMEOUT: ErrorReason

class Failure(_message.Message):
    __slots__ = ("code", "reason", "message", "retriable", "outcome_unknown", "retry_after", "metadata")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    CODE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    RETRIABLE_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_UNKNOWN_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    code: int
    reason: ErrorReason
    message: str
    retriable: bool
    outcome_unknown: bool
    retry_after: _duration_pb2.Duration
    metadata: _containers.ScalarMap[str, str]
    def __init__(self, code: _Optional[int] = ..., reason: _Optional[_Union[ErrorReason, str]] = ..., message: _Optional[str] = ..., retriable: bool = ..., outcome_unknown: bool = ..., retry_after: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., metadata: _Optional[_Mapping[str, str]] = ...) -> None: ...
