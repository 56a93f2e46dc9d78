from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PullRequest(_message.Message):
    __slots__ = ("broker_epoch", "starts", "progress", "stops", "credit_bytes", "catch_up_credit_bytes")
    BROKER_EPOCH_FIELD_NUMBER: _ClassVar[int]
    STARTS_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    STOPS_FIELD_NUMBER: _ClassVar[int]
    CREDIT_BYTES_FIELD_NUMBER: _ClassVar[int]
    CATCH_UP_CREDIT_BYTES_FIELD_NUMBER: _ClassVar[int]
    broker_epoch: int
    starts: _containers.RepeatedCompositeFieldContainer[PullStart]
    progress: _containers.RepeatedCompositeFieldContainer[PullProgress]
    stops: _containers.RepeatedScalarFieldContainer[int]
    credit_bytes: int
    catch_up_credit_bytes: int
    def __init__(self, broker_epoch: _Optional[int] = ..., starts: _Optional[_Iterable[_Union[PullStart, _Mapping]]] = ..., progress: _Optional[_Iterable[_Union[PullProgress, _Mapping]]] = ..., stops: _Optional[_Iterable[int]] = ..., credit_bytes: _Optional[int] = ..., catch_up_credit_bytes: _Optional[int] = ...) -> None: ...

class PullStart(_message.Message):
    __slots__ = ("log_id", "leader_epoch", "session", "fetch_offset", "last_epoch", "durable_offset", "partition_epoch")
    LOG_ID_FIELD_NUMBER: _ClassVar[int]
    LEADER_EPOCH_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    FETCH_OFFSET_FIELD_NUMBER: _ClassVar[int]
    LAST_EPOCH_FIELD_NUMBER: _ClassVar[int]
    DURABLE_OFFSET_FIELD_NUMBER: _ClassVar[int]
    PARTITION_EPOCH_FIELD_NUMBER: _ClassVar[int]
    log_id: int
    leader_epoch: int
    session: int
    fetch_offset: int
    last_epoch: int
    durable_offset: int
    partition_epoch: int
    def __init__(self, log_id: _Optional[int] = ..., leader_epoch: _Optional[int] = ..., session: _Optional[int] = ..., fetch_offset: _Optional[int] = ..., last_epoch: _Optional[int] = ..., durable_offset: _Optional[int] = ..., partition_epoch: _Optional[int] = ...) -> None: ...

class PullProgress(_message.Message):
    __slots__ = ("log_id", "session", "durable_offset", "written_offset")
    LOG_ID_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    DURABLE_OFFSET_FIELD_NUMBER: _ClassVar[int]
    WRITTEN_OFFSET_FIELD_NUMBER: _ClassVar[int]
    log_id: int
    session: int
    durable_offset: int
    written_offset: int
    def __init__(self, log_id: _Optional[int] = ..., session: _Optional[int] = ..., durable_offset: _Optional[int] = ..., written_offset: _Optional[int] = ...) -> None: ...

class PullResponse(_message.Message):
    __slots__ = ("partitions", "catch_up")
    PARTITIONS_FIELD_NUMBER: _ClassVar[int]
    CATCH_UP_FIELD_NUMBER: _ClassVar[int]
    partitions: _containers.RepeatedCompositeFieldContainer[PulledPartition]
    catch_up: bool
    def __init__(self, partitions: _Optional[_Iterable[_Union[PulledPartition, _Mapping]]] = ..., catch_up: bool = ...) -> None: ...

class PulledPartition(_message.Message):
    __slots__ = ("log_id", "session", "envelopes", "high_watermark", "log_start_offset", "replicated_offset", "diverging", "reset_offset", "not_leader")
    LOG_ID_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    ENVELOPES_FIELD_NUMBER: _ClassVar[int]
    HIGH_WATERMARK_FIELD_NUMBER: _ClassVar[int]
    LOG_START_OFFSET_FIELD_NUMBER: _ClassVar[int]
    REPLICATED_OFFSET_FIELD_NUMBER: _ClassVar[int]
    DIVERGING_FIELD_NUMBER: _ClassVar[int]
    RESET_OFFSET_FIELD_NUMBER: _ClassVar[int]
    NOT_LEADER_FIELD_NUMBER: _ClassVar[int]
    log_id: int
    session: int
    envelopes: _containers.RepeatedScalarFieldContainer[bytes]
    high_watermark: int
    log_start_offset: int
    replicated_offset: int
    diverging: PulledDivergence
    reset_offset: int
    not_leader: bool
    def __init__(self, log_id: _Optional[int] = ..., session: _Optional[int] = ..., envelopes: _Optional[_Iterable[bytes]] = ..., high_watermark: _Optional[int] = ..., log_start_offset: _Optional[int] = ..., replicated_offset: _Optional[int] = ..., diverging: _Optional[_Union[PulledDivergence, _Mapping]] = ..., reset_offset: _Optional[int] = ..., not_leader: bool = ...) -> None: ...

class PulledDivergence(_message.Message):
    __slots__ = ("epoch", "end_offset")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    END_OFFSET_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    end_offset: int
    def __init__(self, epoch: _Optional[int] = ..., end_offset: _Optional[int] = ...) -> None: ...

class PartitionReadRequest(_message.Message):
    __slots__ = ("log_id", "offset", "end_offset", "bytes_max")
    LOG_ID_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    END_OFFSET_FIELD_NUMBER: _ClassVar[int]
    BYTES_MAX_FIELD_NUMBER: _ClassVar[int]
    log_id: int
    offset: int
    end_offset: int
    bytes_max: int
    def __init__(self, log_id: _Optional[int] = ..., offset: _Optional[int] = ..., end_offset: _Optional[int] = ..., bytes_max: _Optional[int] = ...) -> None: ...

class PartitionReadResponse(_message.Message):
    __slots__ = ("envelopes", "bounds", "out_of_range", "corrupt", "next_offset")
    ENVELOPES_FIELD_NUMBER: _ClassVar[int]
    BOUNDS_FIELD_NUMBER: _ClassVar[int]
    OUT_OF_RANGE_FIELD_NUMBER: _ClassVar[int]
    CORRUPT_FIELD_NUMBER: _ClassVar[int]
    NEXT_OFFSET_FIELD_NUMBER: _ClassVar[int]
    envelopes: _containers.RepeatedScalarFieldContainer[bytes]
    bounds: PartitionBounds
    out_of_range: bool
    corrupt: str
    next_offset: int
    def __init__(self, envelopes: _Optional[_Iterable[bytes]] = ..., bounds: _Optional[_Union[PartitionBounds, _Mapping]] = ..., out_of_range: bool = ..., corrupt: _Optional[str] = ..., next_offset: _Optional[int] = ...) -> None: ...

class PartitionBounds(_message.Message):
    __slots__ = ("log_start_offset", "high_watermark", "leader_epoch")
    LOG_START_OFFSET_FIELD_NUMBER: _ClassVar[int]
    HIGH_WATERMARK_FIELD_NUMBER: _ClassVar[int]
    LEADER_EPOCH_FIELD_NUMBER: _ClassVar[int]
    log_start_offset: int
    high_watermark: int
    leader_epoch: int
    def __init__(self, log_start_offset: _Optional[int] = ..., high_watermark: _Optional[int] = ..., leader_epoch: _Optional[int] = ...) -> None: ...

class PartitionWatchRequest(_message.Message):
    __slots__ = ("log_id", "known", "wait_ms")
    LOG_ID_FIELD_NUMBER: _ClassVar[int]
    KNOWN_FIELD_NUMBER: _ClassVar[int]
    WAIT_MS_FIELD_NUMBER: _ClassVar[int]
    log_id: int
    known: PartitionBounds
    wait_ms: int
    def __init__(self, log_id: _Optional[int] = ..., known: _Optional[_Union[PartitionBounds, _Mapping]] = ..., wait_ms: _Optional[int] = ...) -> None: ...

class PartitionTimeRequest(_message.Message):
    __slots__ = ("log_id", "time_us", "end_offset")
    LOG_ID_FIELD_NUMBER: _ClassVar[int]
    TIME_US_FIELD_NUMBER: _ClassVar[int]
    END_OFFSET_FIELD_NUMBER: _ClassVar[int]
    log_id: int
    time_us: int
    end_offset: int
    def __init__(self, log_id: _Optional[int] = ..., time_us: _Optional[int] = ..., end_offset: _Optional[int] = ...) -> None: ...

class PartitionTimeResponse(_message.Message):
    __slots__ = ("offset",)
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    offset: int
    def __init__(self, offset: _Optional[int] = ...) -> None: ...

class PartitionBoundsRequest(_message.Message):
    __slots__ = ("log_id", "wait_ms")
    LOG_ID_FIELD_NUMBER: _ClassVar[int]
    WAIT_MS_FIELD_NUMBER: _ClassVar[int]
    log_id: int
    wait_ms: int
    def __init__(self, log_id: _Optional[int] = ..., wait_ms: _Optional[int] = ...) -> None: ...

class LeaderEpochsRequest(_message.Message):
    __slots__ = ("log_ids",)
    LOG_IDS_FIELD_NUMBER: _ClassVar[int]
    log_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, log_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class LeaderEpochs(_message.Message):
    __slots__ = ("leader_epochs",)
    LEADER_EPOCHS_FIELD_NUMBER: _ClassVar[int]
    leader_epochs: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, leader_epochs: _Optional[_Iterable[int]] = ...) -> None: ...
