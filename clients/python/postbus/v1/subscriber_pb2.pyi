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

class LogEdge(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LOG_EDGE_UNSPECIFIED: _ClassVar[LogEdge]
    LOG_EDGE_EARLIEST: _ClassVar[LogEdge]
    LOG_EDGE_LATEST: _ClassVar[LogEdge]

class GroupKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    GROUP_KIND_UNSPECIFIED: _ClassVar[GroupKind]
    GROUP_KIND_ORDERED: _ClassVar[GroupKind]
    GROUP_KIND_SHARED: _ClassVar[GroupKind]

class AckMode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ACK_MODE_UNSPECIFIED: _ClassVar[AckMode]
    ACK_MODE_EXPLICIT: _ClassVar[AckMode]
    ACK_MODE_ON_SEND: _ClassVar[AckMode]

class OutOfRangePolicy(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OUT_OF_RANGE_POLICY_UNSPECIFIED: _ClassVar[OutOfRangePolicy]
    OUT_OF_RANGE_POLICY_EARLIEST: _ClassVar[OutOfRangePolicy]
    OUT_OF_RANGE_POLICY_LATEST: _ClassVar[OutOfRangePolicy]
    OUT_OF_RANGE_POLICY_FAIL: _ClassVar[OutOfRangePolicy]

class NackAction(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    NACK_ACTION_UNSPECIFIED: _ClassVar[NackAction]
    NACK_ACTION_REDELIVER: _ClassVar[NackAction]
    NACK_ACTION_DEAD_LETTER: _ClassVar[NackAction]
LOG_EDGE_UNSPECIFIED: LogEdge
LOG_EDGE_EARLIEST: LogEdge
LOG_EDGE_LATEST: LogEdge
GROUP_KIND_UNSPECIFIED: GroupKind
GROUP_KIND_ORDERED: GroupKind
GROUP_KIND_SHARED: GroupKind
ACK_MODE_UNSPECIFIED: AckMode
ACK_MODE_EXPLICIT: AckMode
ACK_MODE_ON_SEND: AckMode
OUT_OF_RANGE_POLICY_UNSPECIFIED: OutOfRangePolicy
OUT_OF_RANGE_POLICY_EARLIEST: OutOfRangePolicy
OUT_OF_RANGE_POLICY_LATEST: OutOfRangePolicy
OUT_OF_RANGE_POLICY_FAIL: OutOfRangePolicy
NACK_ACTION_UNSPECIFIED: NackAction
NACK_ACTION_REDELIVER: NackAction
NACK_ACTION_DEAD_LETTER: NackAction

class SubscribeRequest(_message.Message):
    __slots__ = ("start", "acks", "nacks", "lease_extensions", "credit", "seeks", "pause", "resume", "release", "command_id", "leave")
    START_FIELD_NUMBER: _ClassVar[int]
    ACKS_FIELD_NUMBER: _ClassVar[int]
    NACKS_FIELD_NUMBER: _ClassVar[int]
    LEASE_EXTENSIONS_FIELD_NUMBER: _ClassVar[int]
    CREDIT_FIELD_NUMBER: _ClassVar[int]
    SEEKS_FIELD_NUMBER: _ClassVar[int]
    PAUSE_FIELD_NUMBER: _ClassVar[int]
    RESUME_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    COMMAND_ID_FIELD_NUMBER: _ClassVar[int]
    LEAVE_FIELD_NUMBER: _ClassVar[int]
    start: SubscribeStart
    acks: _containers.RepeatedCompositeFieldContainer[Delivery]
    nacks: _containers.RepeatedCompositeFieldContainer[Nack]
    lease_extensions: _containers.RepeatedCompositeFieldContainer[LeaseExtension]
    credit: Credit
    seeks: _containers.RepeatedCompositeFieldContainer[Seek]
    pause: _containers.RepeatedCompositeFieldContainer[_record_pb2.TopicPartition]
    resume: _containers.RepeatedCompositeFieldContainer[_record_pb2.TopicPartition]
    release: _containers.RepeatedCompositeFieldContainer[_record_pb2.TopicPartition]
    command_id: int
    leave: bool
    def __init__(self, start: _Optional[_Union[SubscribeStart, _Mapping]] = ..., acks: _Optional[_Iterable[_Union[Delivery, _Mapping]]] = ..., nacks: _Optional[_Iterable[_Union[Nack, _Mapping]]] = ..., lease_extensions: _Optional[_Iterable[_Union[LeaseExtension, _Mapping]]] = ..., credit: _Optional[_Union[Credit, _Mapping]] = ..., seeks: _Optional[_Iterable[_Union[Seek, _Mapping]]] = ..., pause: _Optional[_Iterable[_Union[_record_pb2.TopicPartition, _Mapping]]] = ..., resume: _Optional[_Iterable[_Union[_record_pb2.TopicPartition, _Mapping]]] = ..., release: _Optional[_Iterable[_Union[_record_pb2.TopicPartition, _Mapping]]] = ..., command_id: _Optional[int] = ..., leave: bool = ...) -> None: ...

class SubscribeStart(_message.Message):
    __slots__ = ("topics", "group", "start_at", "group_kind", "instance_id", "member_id", "processing_timeout", "ack_mode", "window_records", "window_bytes", "explicit_credit", "accept_compressions", "max_response_bytes", "max_batch_records", "assign_paused", "report_acks", "rack", "out_of_range", "heartbeat_interval", "leader_only", "client_id")
    TOPICS_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    START_AT_FIELD_NUMBER: _ClassVar[int]
    GROUP_KIND_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_ID_FIELD_NUMBER: _ClassVar[int]
    MEMBER_ID_FIELD_NUMBER: _ClassVar[int]
    PROCESSING_TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    ACK_MODE_FIELD_NUMBER: _ClassVar[int]
    WINDOW_RECORDS_FIELD_NUMBER: _ClassVar[int]
    WINDOW_BYTES_FIELD_NUMBER: _ClassVar[int]
    EXPLICIT_CREDIT_FIELD_NUMBER: _ClassVar[int]
    ACCEPT_COMPRESSIONS_FIELD_NUMBER: _ClassVar[int]
    MAX_RESPONSE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_BATCH_RECORDS_FIELD_NUMBER: _ClassVar[int]
    ASSIGN_PAUSED_FIELD_NUMBER: _ClassVar[int]
    REPORT_ACKS_FIELD_NUMBER: _ClassVar[int]
    RACK_FIELD_NUMBER: _ClassVar[int]
    OUT_OF_RANGE_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_INTERVAL_FIELD_NUMBER: _ClassVar[int]
    LEADER_ONLY_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    topics: _containers.RepeatedCompositeFieldContainer[TopicSelector]
    group: str
    start_at: StartPosition
    group_kind: GroupKind
    instance_id: str
    member_id: str
    processing_timeout: _duration_pb2.Duration
    ack_mode: AckMode
    window_records: int
    window_bytes: int
    explicit_credit: bool
    accept_compressions: _containers.RepeatedScalarFieldContainer[_record_pb2.Compression]
    max_response_bytes: int
    max_batch_records: int
    assign_paused: bool
    report_acks: bool
    rack: str
    out_of_range: OutOfRangePolicy
    heartbeat_interval: _duration_pb2.Duration
    leader_only: bool
    client_id: str
    def __init__(self, topics: _Optional[_Iterable[_Union[TopicSelector, _Mapping]]] = ..., group: _Optional[str] = ..., start_at: _Optional[_Union[StartPosition, _Mapping]] = ..., group_kind: _Optional[_Union[GroupKind, str]] = ..., instance_id: _Optional[str] = ..., member_id: _Optional[str] = ..., processing_timeout: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., ack_mode: _Optional[_Union[AckMode, str]] = ..., window_records: _Optional[int] = ..., window_bytes: _Optional[int] = ..., explicit_credit: bool = ..., accept_compressions: _Optional[_Iterable[_Union[_record_pb2.Compression, str]]] = ..., max_response_bytes: _Optional[int] = ..., max_batch_records: _Optional[int] = ..., assign_paused: bool = ..., report_acks: bool = ..., rack: _Optional[str] = ..., out_of_range: _Optional[_Union[OutOfRangePolicy, str]] = ..., heartbeat_interval: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., leader_only: bool = ..., client_id: _Optional[str] = ...) -> None: ...

class TopicSelector(_message.Message):
    __slots__ = ("topic", "partitions", "start_at", "positions", "stop_at")
    TOPIC_FIELD_NUMBER: _ClassVar[int]
    PARTITIONS_FIELD_NUMBER: _ClassVar[int]
    START_AT_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    STOP_AT_FIELD_NUMBER: _ClassVar[int]
    topic: str
    partitions: _containers.RepeatedScalarFieldContainer[int]
    start_at: StartPosition
    positions: _containers.RepeatedCompositeFieldContainer[_record_pb2.Position]
    stop_at: StopPosition
    def __init__(self, topic: _Optional[str] = ..., partitions: _Optional[_Iterable[int]] = ..., start_at: _Optional[_Union[StartPosition, _Mapping]] = ..., positions: _Optional[_Iterable[_Union[_record_pb2.Position, _Mapping]]] = ..., stop_at: _Optional[_Union[StopPosition, _Mapping]] = ...) -> None: ...

class StartPosition(_message.Message):
    __slots__ = ("edge", "offset", "time", "ago", "last_records")
    EDGE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    AGO_FIELD_NUMBER: _ClassVar[int]
    LAST_RECORDS_FIELD_NUMBER: _ClassVar[int]
    edge: LogEdge
    offset: int
    time: _timestamp_pb2.Timestamp
    ago: _duration_pb2.Duration
    last_records: int
    def __init__(self, edge: _Optional[_Union[LogEdge, str]] = ..., offset: _Optional[int] = ..., time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., ago: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., last_records: _Optional[int] = ...) -> None: ...

class StopPosition(_message.Message):
    __slots__ = ("edge", "offset", "time")
    EDGE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    edge: LogEdge
    offset: int
    time: _timestamp_pb2.Timestamp
    def __init__(self, edge: _Optional[_Union[LogEdge, str]] = ..., offset: _Optional[int] = ..., time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class Delivery(_message.Message):
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

class Nack(_message.Message):
    __slots__ = ("delivery", "action", "delay", "reason")
    DELIVERY_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    DELAY_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    delivery: Delivery
    action: NackAction
    delay: _duration_pb2.Duration
    reason: str
    def __init__(self, delivery: _Optional[_Union[Delivery, _Mapping]] = ..., action: _Optional[_Union[NackAction, str]] = ..., delay: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., reason: _Optional[str] = ...) -> None: ...

class LeaseExtension(_message.Message):
    __slots__ = ("delivery", "duration")
    DELIVERY_FIELD_NUMBER: _ClassVar[int]
    DURATION_FIELD_NUMBER: _ClassVar[int]
    delivery: Delivery
    duration: _duration_pb2.Duration
    def __init__(self, delivery: _Optional[_Union[Delivery, _Mapping]] = ..., duration: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class Credit(_message.Message):
    __slots__ = ("records", "bytes")
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    records: int
    bytes: int
    def __init__(self, records: _Optional[int] = ..., bytes: _Optional[int] = ...) -> None: ...

class Seek(_message.Message):
    __slots__ = ("partition", "to")
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    TO_FIELD_NUMBER: _ClassVar[int]
    partition: _record_pb2.TopicPartition
    to: StartPosition
    def __init__(self, partition: _Optional[_Union[_record_pb2.TopicPartition, _Mapping]] = ..., to: _Optional[_Union[StartPosition, _Mapping]] = ...) -> None: ...

class SubscribeResponse(_message.Message):
    __slots__ = ("batches", "started", "assignment_change", "caught_up", "heartbeat", "draining", "ack_report", "skipped", "command_id")
    BATCHES_FIELD_NUMBER: _ClassVar[int]
    STARTED_FIELD_NUMBER: _ClassVar[int]
    ASSIGNMENT_CHANGE_FIELD_NUMBER: _ClassVar[int]
    CAUGHT_UP_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    ACK_REPORT_FIELD_NUMBER: _ClassVar[int]
    SKIPPED_FIELD_NUMBER: _ClassVar[int]
    COMMAND_ID_FIELD_NUMBER: _ClassVar[int]
    batches: _containers.RepeatedCompositeFieldContainer[DeliveredBatch]
    started: SubscribeStarted
    assignment_change: AssignmentChange
    caught_up: _containers.RepeatedCompositeFieldContainer[_record_pb2.Position]
    heartbeat: SubscribeHeartbeat
    draining: _record_pb2.Draining
    ack_report: AckReport
    skipped: _containers.RepeatedCompositeFieldContainer[SkippedRange]
    command_id: int
    def __init__(self, batches: _Optional[_Iterable[_Union[DeliveredBatch, _Mapping]]] = ..., started: _Optional[_Union[SubscribeStarted, _Mapping]] = ..., assignment_change: _Optional[_Union[AssignmentChange, _Mapping]] = ..., caught_up: _Optional[_Iterable[_Union[_record_pb2.Position, _Mapping]]] = ..., heartbeat: _Optional[_Union[SubscribeHeartbeat, _Mapping]] = ..., draining: _Optional[_Union[_record_pb2.Draining, _Mapping]] = ..., ack_report: _Optional[_Union[AckReport, _Mapping]] = ..., skipped: _Optional[_Iterable[_Union[SkippedRange, _Mapping]]] = ..., command_id: _Optional[int] = ...) -> None: ...

class DeliveredBatch(_message.Message):
    __slots__ = ("delivery", "batch", "append_time", "offset_deltas", "delivery_attempts", "lease_deadline", "leader_epoch", "high_watermark")
    DELIVERY_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    APPEND_TIME_FIELD_NUMBER: _ClassVar[int]
    OFFSET_DELTAS_FIELD_NUMBER: _ClassVar[int]
    DELIVERY_ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    LEASE_DEADLINE_FIELD_NUMBER: _ClassVar[int]
    LEADER_EPOCH_FIELD_NUMBER: _ClassVar[int]
    HIGH_WATERMARK_FIELD_NUMBER: _ClassVar[int]
    delivery: Delivery
    batch: _record_pb2.RecordBatch
    append_time: _timestamp_pb2.Timestamp
    offset_deltas: _containers.RepeatedScalarFieldContainer[int]
    delivery_attempts: _containers.RepeatedScalarFieldContainer[int]
    lease_deadline: _timestamp_pb2.Timestamp
    leader_epoch: int
    high_watermark: int
    def __init__(self, delivery: _Optional[_Union[Delivery, _Mapping]] = ..., batch: _Optional[_Union[_record_pb2.RecordBatch, _Mapping]] = ..., append_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., offset_deltas: _Optional[_Iterable[int]] = ..., delivery_attempts: _Optional[_Iterable[int]] = ..., lease_deadline: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., leader_epoch: _Optional[int] = ..., high_watermark: _Optional[int] = ...) -> None: ...

class SubscribeStarted(_message.Message):
    __slots__ = ("node_id", "member_id", "group_kind", "positions", "heartbeat_interval")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    MEMBER_ID_FIELD_NUMBER: _ClassVar[int]
    GROUP_KIND_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_INTERVAL_FIELD_NUMBER: _ClassVar[int]
    node_id: int
    member_id: str
    group_kind: GroupKind
    positions: _containers.RepeatedCompositeFieldContainer[_record_pb2.Position]
    heartbeat_interval: _duration_pb2.Duration
    def __init__(self, node_id: _Optional[int] = ..., member_id: _Optional[str] = ..., group_kind: _Optional[_Union[GroupKind, str]] = ..., positions: _Optional[_Iterable[_Union[_record_pb2.Position, _Mapping]]] = ..., heartbeat_interval: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class AssignmentChange(_message.Message):
    __slots__ = ("group_epoch", "assigned", "revoking", "revoked", "lost")
    GROUP_EPOCH_FIELD_NUMBER: _ClassVar[int]
    ASSIGNED_FIELD_NUMBER: _ClassVar[int]
    REVOKING_FIELD_NUMBER: _ClassVar[int]
    REVOKED_FIELD_NUMBER: _ClassVar[int]
    LOST_FIELD_NUMBER: _ClassVar[int]
    group_epoch: int
    assigned: _containers.RepeatedCompositeFieldContainer[_record_pb2.Position]
    revoking: _containers.RepeatedCompositeFieldContainer[_record_pb2.TopicPartition]
    revoked: _containers.RepeatedCompositeFieldContainer[_record_pb2.TopicPartition]
    lost: _containers.RepeatedCompositeFieldContainer[_record_pb2.TopicPartition]
    def __init__(self, group_epoch: _Optional[int] = ..., assigned: _Optional[_Iterable[_Union[_record_pb2.Position, _Mapping]]] = ..., revoking: _Optional[_Iterable[_Union[_record_pb2.TopicPartition, _Mapping]]] = ..., revoked: _Optional[_Iterable[_Union[_record_pb2.TopicPartition, _Mapping]]] = ..., lost: _Optional[_Iterable[_Union[_record_pb2.TopicPartition, _Mapping]]] = ...) -> None: ...

class SubscribeHeartbeat(_message.Message):
    __slots__ = ("progress",)
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    progress: _containers.RepeatedCompositeFieldContainer[PartitionProgress]
    def __init__(self, progress: _Optional[_Iterable[_Union[PartitionProgress, _Mapping]]] = ...) -> None: ...

class PartitionProgress(_message.Message):
    __slots__ = ("topic", "partition", "next_offset", "high_watermark", "committed_offset")
    TOPIC_FIELD_NUMBER: _ClassVar[int]
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    NEXT_OFFSET_FIELD_NUMBER: _ClassVar[int]
    HIGH_WATERMARK_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_OFFSET_FIELD_NUMBER: _ClassVar[int]
    topic: str
    partition: int
    next_offset: int
    high_watermark: int
    committed_offset: int
    def __init__(self, topic: _Optional[str] = ..., partition: _Optional[int] = ..., next_offset: _Optional[int] = ..., high_watermark: _Optional[int] = ..., committed_offset: _Optional[int] = ...) -> None: ...

class AckReport(_message.Message):
    __slots__ = ("committed", "rejected")
    COMMITTED_FIELD_NUMBER: _ClassVar[int]
    REJECTED_FIELD_NUMBER: _ClassVar[int]
    committed: _containers.RepeatedCompositeFieldContainer[_record_pb2.Position]
    rejected: _containers.RepeatedCompositeFieldContainer[RejectedAck]
    def __init__(self, committed: _Optional[_Iterable[_Union[_record_pb2.Position, _Mapping]]] = ..., rejected: _Optional[_Iterable[_Union[RejectedAck, _Mapping]]] = ...) -> None: ...

class RejectedAck(_message.Message):
    __slots__ = ("delivery", "failure")
    DELIVERY_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    delivery: Delivery
    failure: _error_pb2.Failure
    def __init__(self, delivery: _Optional[_Union[Delivery, _Mapping]] = ..., failure: _Optional[_Union[_error_pb2.Failure, _Mapping]] = ...) -> None: ...

class SkippedRange(_message.Message):
    __slots__ = ("range", "reason")
    RANGE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    range: Delivery
    reason: str
    def __init__(self, range: _Optional[_Union[Delivery, _Mapping]] = ..., reason: _Optional[str] = ...) -> None: ...

class FetchRequest(_message.Message):
    __slots__ = ("topic", "positions", "start_at", "max_records", "max_bytes", "max_wait", "accept_compressions", "group", "leader_only")
    TOPIC_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    START_AT_FIELD_NUMBER: _ClassVar[int]
    MAX_RECORDS_FIELD_NUMBER: _ClassVar[int]
    MAX_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_WAIT_FIELD_NUMBER: _ClassVar[int]
    ACCEPT_COMPRESSIONS_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    LEADER_ONLY_FIELD_NUMBER: _ClassVar[int]
    topic: str
    positions: _containers.RepeatedCompositeFieldContainer[_record_pb2.Position]
    start_at: StartPosition
    max_records: int
    max_bytes: int
    max_wait: _duration_pb2.Duration
    accept_compressions: _containers.RepeatedScalarFieldContainer[_record_pb2.Compression]
    group: str
    leader_only: bool
    def __init__(self, topic: _Optional[str] = ..., positions: _Optional[_Iterable[_Union[_record_pb2.Position, _Mapping]]] = ..., start_at: _Optional[_Union[StartPosition, _Mapping]] = ..., max_records: _Optional[int] = ..., max_bytes: _Optional[int] = ..., max_wait: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., accept_compressions: _Optional[_Iterable[_Union[_record_pb2.Compression, str]]] = ..., group: _Optional[str] = ..., leader_only: bool = ...) -> None: ...

class FetchResponse(_message.Message):
    __slots__ = ("batches", "next", "progress")
    BATCHES_FIELD_NUMBER: _ClassVar[int]
    NEXT_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    batches: _containers.RepeatedCompositeFieldContainer[DeliveredBatch]
    next: _containers.RepeatedCompositeFieldContainer[_record_pb2.Position]
    progress: _containers.RepeatedCompositeFieldContainer[PartitionProgress]
    def __init__(self, batches: _Optional[_Iterable[_Union[DeliveredBatch, _Mapping]]] = ..., next: _Optional[_Iterable[_Union[_record_pb2.Position, _Mapping]]] = ..., progress: _Optional[_Iterable[_Union[PartitionProgress, _Mapping]]] = ...) -> None: ...

class AcknowledgeRequest(_message.Message):
    __slots__ = ("group", "member_id", "acks", "nacks", "lease_extensions")
    GROUP_FIELD_NUMBER: _ClassVar[int]
    MEMBER_ID_FIELD_NUMBER: _ClassVar[int]
    ACKS_FIELD_NUMBER: _ClassVar[int]
    NACKS_FIELD_NUMBER: _ClassVar[int]
    LEASE_EXTENSIONS_FIELD_NUMBER: _ClassVar[int]
    group: str
    member_id: str
    acks: _containers.RepeatedCompositeFieldContainer[Delivery]
    nacks: _containers.RepeatedCompositeFieldContainer[Nack]
    lease_extensions: _containers.RepeatedCompositeFieldContainer[LeaseExtension]
    def __init__(self, group: _Optional[str] = ..., member_id: _Optional[str] = ..., acks: _Optional[_Iterable[_Union[Delivery, _Mapping]]] = ..., nacks: _Optional[_Iterable[_Union[Nack, _Mapping]]] = ..., lease_extensions: _Optional[_Iterable[_Union[LeaseExtension, _Mapping]]] = ...) -> None: ...

class AcknowledgeResponse(_message.Message):
    __slots__ = ("report",)
    REPORT_FIELD_NUMBER: _ClassVar[int]
    report: AckReport
    def __init__(self, report: _Optional[_Union[AckReport, _Mapping]] = ...) -> None: ...
