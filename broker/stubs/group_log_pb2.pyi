from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GroupRecordKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    GROUP_RECORD_KIND_UNSPECIFIED: _ClassVar[GroupRecordKind]
    GROUP_RECORD_KIND_SETTINGS: _ClassVar[GroupRecordKind]
    GROUP_RECORD_KIND_MEMBER: _ClassVar[GroupRecordKind]
    GROUP_RECORD_KIND_OWNER: _ClassVar[GroupRecordKind]
    GROUP_RECORD_KIND_OFFSET: _ClassVar[GroupRecordKind]
    GROUP_RECORD_KIND_TOPIC: _ClassVar[GroupRecordKind]
GROUP_RECORD_KIND_UNSPECIFIED: GroupRecordKind
GROUP_RECORD_KIND_SETTINGS: GroupRecordKind
GROUP_RECORD_KIND_MEMBER: GroupRecordKind
GROUP_RECORD_KIND_OWNER: GroupRecordKind
GROUP_RECORD_KIND_OFFSET: GroupRecordKind
GROUP_RECORD_KIND_TOPIC: GroupRecordKind

class GroupRecordKey(_message.Message):
    __slots__ = ("group", "kind", "member_id", "topic_id", "partition")
    GROUP_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    MEMBER_ID_FIELD_NUMBER: _ClassVar[int]
    TOPIC_ID_FIELD_NUMBER: _ClassVar[int]
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    group: str
    kind: GroupRecordKind
    member_id: str
    topic_id: str
    partition: int
    def __init__(self, group: _Optional[str] = ..., kind: _Optional[_Union[GroupRecordKind, str]] = ..., member_id: _Optional[str] = ..., topic_id: _Optional[str] = ..., partition: _Optional[int] = ...) -> None: ...

class GroupSettings(_message.Message):
    __slots__ = ("config", "group_epoch", "empty_since_us")
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    GROUP_EPOCH_FIELD_NUMBER: _ClassVar[int]
    EMPTY_SINCE_US_FIELD_NUMBER: _ClassVar[int]
    config: bytes
    group_epoch: int
    empty_since_us: int
    def __init__(self, config: _Optional[bytes] = ..., group_epoch: _Optional[int] = ..., empty_since_us: _Optional[int] = ...) -> None: ...

class GroupMemberRecord(_message.Message):
    __slots__ = ("instance_id", "client_id", "peer", "node_id", "wanted", "heartbeats", "processing_timeout_ms", "joined_time_us", "rack", "member_epoch", "join_id")
    INSTANCE_ID_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    PEER_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    WANTED_FIELD_NUMBER: _ClassVar[int]
    HEARTBEATS_FIELD_NUMBER: _ClassVar[int]
    PROCESSING_TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    JOINED_TIME_US_FIELD_NUMBER: _ClassVar[int]
    RACK_FIELD_NUMBER: _ClassVar[int]
    MEMBER_EPOCH_FIELD_NUMBER: _ClassVar[int]
    JOIN_ID_FIELD_NUMBER: _ClassVar[int]
    instance_id: str
    client_id: str
    peer: str
    node_id: int
    wanted: _containers.RepeatedCompositeFieldContainer[GroupWantedTopic]
    heartbeats: bool
    processing_timeout_ms: int
    joined_time_us: int
    rack: str
    member_epoch: int
    join_id: str
    def __init__(self, instance_id: _Optional[str] = ..., client_id: _Optional[str] = ..., peer: _Optional[str] = ..., node_id: _Optional[int] = ..., wanted: _Optional[_Iterable[_Union[GroupWantedTopic, _Mapping]]] = ..., heartbeats: bool = ..., processing_timeout_ms: _Optional[int] = ..., joined_time_us: _Optional[int] = ..., rack: _Optional[str] = ..., member_epoch: _Optional[int] = ..., join_id: _Optional[str] = ...) -> None: ...

class GroupWantedTopic(_message.Message):
    __slots__ = ("topic", "start_at", "positions")
    class PositionsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: int
        def __init__(self, key: _Optional[int] = ..., value: _Optional[int] = ...) -> None: ...
    TOPIC_FIELD_NUMBER: _ClassVar[int]
    START_AT_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    topic: str
    start_at: bytes
    positions: _containers.ScalarMap[int, int]
    def __init__(self, topic: _Optional[str] = ..., start_at: _Optional[bytes] = ..., positions: _Optional[_Mapping[int, int]] = ...) -> None: ...

class GroupOwner(_message.Message):
    __slots__ = ("member_id", "start_offset")
    MEMBER_ID_FIELD_NUMBER: _ClassVar[int]
    START_OFFSET_FIELD_NUMBER: _ClassVar[int]
    member_id: str
    start_offset: int
    def __init__(self, member_id: _Optional[str] = ..., start_offset: _Optional[int] = ...) -> None: ...

class GroupOffset(_message.Message):
    __slots__ = ("offset", "commit_time_us", "fence")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    COMMIT_TIME_US_FIELD_NUMBER: _ClassVar[int]
    FENCE_FIELD_NUMBER: _ClassVar[int]
    offset: int
    commit_time_us: int
    fence: int
    def __init__(self, offset: _Optional[int] = ..., commit_time_us: _Optional[int] = ..., fence: _Optional[int] = ...) -> None: ...

class GroupTopic(_message.Message):
    __slots__ = ("partition_count",)
    PARTITION_COUNT_FIELD_NUMBER: _ClassVar[int]
    partition_count: int
    def __init__(self, partition_count: _Optional[int] = ...) -> None: ...
