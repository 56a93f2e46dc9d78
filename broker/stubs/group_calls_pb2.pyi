from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GroupPartition(_message.Message):
    __slots__ = ("topic_id", "partition")
    TOPIC_ID_FIELD_NUMBER: _ClassVar[int]
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    topic_id: str
    partition: int
    def __init__(self, topic_id: _Optional[str] = ..., partition: _Optional[int] = ...) -> None: ...

class GroupPartitions(_message.Message):
    __slots__ = ("partitions",)
    PARTITIONS_FIELD_NUMBER: _ClassVar[int]
    partitions: _containers.RepeatedCompositeFieldContainer[GroupPartition]
    def __init__(self, partitions: _Optional[_Iterable[_Union[GroupPartition, _Mapping]]] = ...) -> None: ...

class GroupStartPosition(_message.Message):
    __slots__ = ("topic", "partition", "offset")
    TOPIC_FIELD_NUMBER: _ClassVar[int]
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    topic: str
    partition: int
    offset: int
    def __init__(self, topic: _Optional[str] = ..., partition: _Optional[int] = ..., offset: _Optional[int] = ...) -> None: ...

class GroupTopicNames(_message.Message):
    __slots__ = ("names",)
    NAMES_FIELD_NUMBER: _ClassVar[int]
    names: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, names: _Optional[_Iterable[str]] = ...) -> None: ...

class GroupHeartbeatCall(_message.Message):
    __slots__ = ("group", "member_id", "member_epoch", "instance_id", "client_id", "peer", "topics", "owned", "leave", "processing_timeout_ms", "rack", "stream", "start_at", "start_positions", "group_kind", "node_id", "join_id")
    class StartAtEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: bytes
        def __init__(self, key: _Optional[str] = ..., value: _Optional[bytes] = ...) -> None: ...
    GROUP_FIELD_NUMBER: _ClassVar[int]
    MEMBER_ID_FIELD_NUMBER: _ClassVar[int]
    MEMBER_EPOCH_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_ID_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    PEER_FIELD_NUMBER: _ClassVar[int]
    TOPICS_FIELD_NUMBER: _ClassVar[int]
    OWNED_FIELD_NUMBER: _ClassVar[int]
    LEAVE_FIELD_NUMBER: _ClassVar[int]
    PROCESSING_TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    RACK_FIELD_NUMBER: _ClassVar[int]
    STREAM_FIELD_NUMBER: _ClassVar[int]
    START_AT_FIELD_NUMBER: _ClassVar[int]
    START_POSITIONS_FIELD_NUMBER: _ClassVar[int]
    GROUP_KIND_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    JOIN_ID_FIELD_NUMBER: _ClassVar[int]
    group: str
    member_id: str
    member_epoch: int
    instance_id: str
    client_id: str
    peer: str
    topics: GroupTopicNames
    owned: GroupPartitions
    leave: bool
    processing_timeout_ms: int
    rack: str
    stream: bool
    start_at: _containers.ScalarMap[str, bytes]
    start_positions: _containers.RepeatedCompositeFieldContainer[GroupStartPosition]
    group_kind: int
    node_id: int
    join_id: str
    def __init__(self, group: _Optional[str] = ..., member_id: _Optional[str] = ..., member_epoch: _Optional[int] = ..., instance_id: _Optional[str] = ..., client_id: _Optional[str] = ..., peer: _Optional[str] = ..., topics: _Optional[_Union[GroupTopicNames, _Mapping]] = ..., owned: _Optional[_Union[GroupPartitions, _Mapping]] = ..., leave: bool = ..., processing_timeout_ms: _Optional[int] = ..., rack: _Optional[str] = ..., stream: bool = ..., start_at: _Optional[_Mapping[str, bytes]] = ..., start_positions: _Optional[_Iterable[_Union[GroupStartPosition, _Mapping]]] = ..., group_kind: _Optional[int] = ..., node_id: _Optional[int] = ..., join_id: _Optional[str] = ...) -> None: ...

class GroupAssigned(_message.Message):
    __slots__ = ("topic", "topic_id", "partition", "offset", "fence")
    TOPIC_FIELD_NUMBER: _ClassVar[int]
    TOPIC_ID_FIELD_NUMBER: _ClassVar[int]
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    FENCE_FIELD_NUMBER: _ClassVar[int]
    topic: str
    topic_id: str
    partition: int
    offset: int
    fence: int
    def __init__(self, topic: _Optional[str] = ..., topic_id: _Optional[str] = ..., partition: _Optional[int] = ..., offset: _Optional[int] = ..., fence: _Optional[int] = ...) -> None: ...

class GroupHeartbeatReply(_message.Message):
    __slots__ = ("member_id", "member_epoch", "group_epoch", "target", "lost")
    MEMBER_ID_FIELD_NUMBER: _ClassVar[int]
    MEMBER_EPOCH_FIELD_NUMBER: _ClassVar[int]
    GROUP_EPOCH_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    LOST_FIELD_NUMBER: _ClassVar[int]
    member_id: str
    member_epoch: int
    group_epoch: int
    target: _containers.RepeatedCompositeFieldContainer[GroupAssigned]
    lost: _containers.RepeatedCompositeFieldContainer[GroupPartition]
    def __init__(self, member_id: _Optional[str] = ..., member_epoch: _Optional[int] = ..., group_epoch: _Optional[int] = ..., target: _Optional[_Iterable[_Union[GroupAssigned, _Mapping]]] = ..., lost: _Optional[_Iterable[_Union[GroupPartition, _Mapping]]] = ...) -> None: ...

class GroupCommitEntry(_message.Message):
    __slots__ = ("topic_id", "partition", "offset", "fence")
    TOPIC_ID_FIELD_NUMBER: _ClassVar[int]
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    FENCE_FIELD_NUMBER: _ClassVar[int]
    topic_id: str
    partition: int
    offset: int
    fence: int
    def __init__(self, topic_id: _Optional[str] = ..., partition: _Optional[int] = ..., offset: _Optional[int] = ..., fence: _Optional[int] = ...) -> None: ...

class GroupCommitCall(_message.Message):
    __slots__ = ("group", "member_id", "entries")
    GROUP_FIELD_NUMBER: _ClassVar[int]
    MEMBER_ID_FIELD_NUMBER: _ClassVar[int]
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    group: str
    member_id: str
    entries: _containers.RepeatedCompositeFieldContainer[GroupCommitEntry]
    def __init__(self, group: _Optional[str] = ..., member_id: _Optional[str] = ..., entries: _Optional[_Iterable[_Union[GroupCommitEntry, _Mapping]]] = ...) -> None: ...

class GroupCommitOutcome(_message.Message):
    __slots__ = ("error",)
    ERROR_FIELD_NUMBER: _ClassVar[int]
    error: bytes
    def __init__(self, error: _Optional[bytes] = ...) -> None: ...

class GroupCommitReply(_message.Message):
    __slots__ = ("outcomes",)
    OUTCOMES_FIELD_NUMBER: _ClassVar[int]
    outcomes: _containers.RepeatedCompositeFieldContainer[GroupCommitOutcome]
    def __init__(self, outcomes: _Optional[_Iterable[_Union[GroupCommitOutcome, _Mapping]]] = ...) -> None: ...

class GroupSeekCall(_message.Message):
    __slots__ = ("group", "member_id", "place")
    GROUP_FIELD_NUMBER: _ClassVar[int]
    MEMBER_ID_FIELD_NUMBER: _ClassVar[int]
    PLACE_FIELD_NUMBER: _ClassVar[int]
    group: str
    member_id: str
    place: GroupCommitEntry
    def __init__(self, group: _Optional[str] = ..., member_id: _Optional[str] = ..., place: _Optional[_Union[GroupCommitEntry, _Mapping]] = ...) -> None: ...

class GroupHeld(_message.Message):
    __slots__ = ("topic_id", "partition", "fence")
    TOPIC_ID_FIELD_NUMBER: _ClassVar[int]
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    FENCE_FIELD_NUMBER: _ClassVar[int]
    topic_id: str
    partition: int
    fence: int
    def __init__(self, topic_id: _Optional[str] = ..., partition: _Optional[int] = ..., fence: _Optional[int] = ...) -> None: ...

class GroupTimedOutCall(_message.Message):
    __slots__ = ("group", "member_id", "member_epoch", "held")
    GROUP_FIELD_NUMBER: _ClassVar[int]
    MEMBER_ID_FIELD_NUMBER: _ClassVar[int]
    MEMBER_EPOCH_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    group: str
    member_id: str
    member_epoch: int
    held: _containers.RepeatedCompositeFieldContainer[GroupHeld]
    def __init__(self, group: _Optional[str] = ..., member_id: _Optional[str] = ..., member_epoch: _Optional[int] = ..., held: _Optional[_Iterable[_Union[GroupHeld, _Mapping]]] = ...) -> None: ...

class GroupDisconnectedCall(_message.Message):
    __slots__ = ("group", "member_id", "member_epoch")
    GROUP_FIELD_NUMBER: _ClassVar[int]
    MEMBER_ID_FIELD_NUMBER: _ClassVar[int]
    MEMBER_EPOCH_FIELD_NUMBER: _ClassVar[int]
    group: str
    member_id: str
    member_epoch: int
    def __init__(self, group: _Optional[str] = ..., member_id: _Optional[str] = ..., member_epoch: _Optional[int] = ...) -> None: ...

class GroupMemberKey(_message.Message):
    __slots__ = ("group", "member_id")
    GROUP_FIELD_NUMBER: _ClassVar[int]
    MEMBER_ID_FIELD_NUMBER: _ClassVar[int]
    group: str
    member_id: str
    def __init__(self, group: _Optional[str] = ..., member_id: _Optional[str] = ...) -> None: ...

class GroupMemberNode(_message.Message):
    __slots__ = ("node_id",)
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    node_id: int
    def __init__(self, node_id: _Optional[int] = ...) -> None: ...

class GroupChangesCall(_message.Message):
    __slots__ = ("watch_id", "first", "added", "removed")
    WATCH_ID_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    ADDED_FIELD_NUMBER: _ClassVar[int]
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    watch_id: str
    first: bool
    added: _containers.RepeatedCompositeFieldContainer[GroupMemberKey]
    removed: _containers.RepeatedCompositeFieldContainer[GroupMemberKey]
    def __init__(self, watch_id: _Optional[str] = ..., first: bool = ..., added: _Optional[_Iterable[_Union[GroupMemberKey, _Mapping]]] = ..., removed: _Optional[_Iterable[_Union[GroupMemberKey, _Mapping]]] = ...) -> None: ...

class GroupChangesReply(_message.Message):
    __slots__ = ("known", "changed")
    KNOWN_FIELD_NUMBER: _ClassVar[int]
    CHANGED_FIELD_NUMBER: _ClassVar[int]
    known: bool
    changed: _containers.RepeatedCompositeFieldContainer[GroupMemberKey]
    def __init__(self, known: bool = ..., changed: _Optional[_Iterable[_Union[GroupMemberKey, _Mapping]]] = ...) -> None: ...

class GroupListCall(_message.Message):
    __slots__ = ("number", "page_size", "after", "prefix")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    number: int
    page_size: int
    after: str
    prefix: str
    def __init__(self, number: _Optional[int] = ..., page_size: _Optional[int] = ..., after: _Optional[str] = ..., prefix: _Optional[str] = ...) -> None: ...
