from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RaftMessage(_message.Message):
    __slots__ = ("cluster_id", "sender_node_id", "sender_store_id", "to_node_id", "to_store_id", "term", "fresh", "vote", "vote_response", "append", "append_response", "heartbeat", "heartbeat_response", "install_snapshot", "install_snapshot_response", "timeout_now", "greeting")
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    SENDER_NODE_ID_FIELD_NUMBER: _ClassVar[int]
    SENDER_STORE_ID_FIELD_NUMBER: _ClassVar[int]
    TO_NODE_ID_FIELD_NUMBER: _ClassVar[int]
    TO_STORE_ID_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    FRESH_FIELD_NUMBER: _ClassVar[int]
    VOTE_FIELD_NUMBER: _ClassVar[int]
    VOTE_RESPONSE_FIELD_NUMBER: _ClassVar[int]
    APPEND_FIELD_NUMBER: _ClassVar[int]
    APPEND_RESPONSE_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_RESPONSE_FIELD_NUMBER: _ClassVar[int]
    INSTALL_SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    INSTALL_SNAPSHOT_RESPONSE_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_NOW_FIELD_NUMBER: _ClassVar[int]
    GREETING_FIELD_NUMBER: _ClassVar[int]
    cluster_id: str
    sender_node_id: int
    sender_store_id: str
    to_node_id: int
    to_store_id: str
    term: int
    fresh: bool
    vote: RaftVote
    vote_response: RaftVoteResponse
    append: RaftAppend
    append_response: RaftAppendResponse
    heartbeat: RaftHeartbeat
    heartbeat_response: RaftHeartbeatResponse
    install_snapshot: RaftInstallSnapshot
    install_snapshot_response: RaftInstallSnapshotResponse
    timeout_now: RaftTimeoutNow
    greeting: RaftGreeting
    def __init__(self, cluster_id: _Optional[str] = ..., sender_node_id: _Optional[int] = ..., sender_store_id: _Optional[str] = ..., to_node_id: _Optional[int] = ..., to_store_id: _Optional[str] = ..., term: _Optional[int] = ..., fresh: bool = ..., vote: _Optional[_Union[RaftVote, _Mapping]] = ..., vote_response: _Optional[_Union[RaftVoteResponse, _Mapping]] = ..., append: _Optional[_Union[RaftAppend, _Mapping]] = ..., append_response: _Optional[_Union[RaftAppendResponse, _Mapping]] = ..., heartbeat: _Optional[_Union[RaftHeartbeat, _Mapping]] = ..., heartbeat_response: _Optional[_Union[RaftHeartbeatResponse, _Mapping]] = ..., install_snapshot: _Optional[_Union[RaftInstallSnapshot, _Mapping]] = ..., install_snapshot_response: _Optional[_Union[RaftInstallSnapshotResponse, _Mapping]] = ..., timeout_now: _Optional[_Union[RaftTimeoutNow, _Mapping]] = ..., greeting: _Optional[_Union[RaftGreeting, _Mapping]] = ...) -> None: ...

class RaftVote(_message.Message):
    __slots__ = ("last_index", "last_term", "pre", "force")
    LAST_INDEX_FIELD_NUMBER: _ClassVar[int]
    LAST_TERM_FIELD_NUMBER: _ClassVar[int]
    PRE_FIELD_NUMBER: _ClassVar[int]
    FORCE_FIELD_NUMBER: _ClassVar[int]
    last_index: int
    last_term: int
    pre: bool
    force: bool
    def __init__(self, last_index: _Optional[int] = ..., last_term: _Optional[int] = ..., pre: bool = ..., force: bool = ...) -> None: ...

class RaftVoteResponse(_message.Message):
    __slots__ = ("granted", "pre")
    GRANTED_FIELD_NUMBER: _ClassVar[int]
    PRE_FIELD_NUMBER: _ClassVar[int]
    granted: bool
    pre: bool
    def __init__(self, granted: bool = ..., pre: bool = ...) -> None: ...

class RaftAppend(_message.Message):
    __slots__ = ("prev_index", "prev_term", "commit", "entries")
    PREV_INDEX_FIELD_NUMBER: _ClassVar[int]
    PREV_TERM_FIELD_NUMBER: _ClassVar[int]
    COMMIT_FIELD_NUMBER: _ClassVar[int]
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    prev_index: int
    prev_term: int
    commit: int
    entries: _containers.RepeatedCompositeFieldContainer[RaftEntry]
    def __init__(self, prev_index: _Optional[int] = ..., prev_term: _Optional[int] = ..., commit: _Optional[int] = ..., entries: _Optional[_Iterable[_Union[RaftEntry, _Mapping]]] = ...) -> None: ...

class RaftAppendResponse(_message.Message):
    __slots__ = ("index", "rejected", "hint_index", "hint_term")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    REJECTED_FIELD_NUMBER: _ClassVar[int]
    HINT_INDEX_FIELD_NUMBER: _ClassVar[int]
    HINT_TERM_FIELD_NUMBER: _ClassVar[int]
    index: int
    rejected: bool
    hint_index: int
    hint_term: int
    def __init__(self, index: _Optional[int] = ..., rejected: bool = ..., hint_index: _Optional[int] = ..., hint_term: _Optional[int] = ...) -> None: ...

class RaftHeartbeat(_message.Message):
    __slots__ = ("commit",)
    COMMIT_FIELD_NUMBER: _ClassVar[int]
    commit: int
    def __init__(self, commit: _Optional[int] = ...) -> None: ...

class RaftHeartbeatResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RaftInstallSnapshot(_message.Message):
    __slots__ = ("index", "snapshot_term", "configuration", "offset", "size_bytes", "data")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_TERM_FIELD_NUMBER: _ClassVar[int]
    CONFIGURATION_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    index: int
    snapshot_term: int
    configuration: RaftConfiguration
    offset: int
    size_bytes: int
    data: bytes
    def __init__(self, index: _Optional[int] = ..., snapshot_term: _Optional[int] = ..., configuration: _Optional[_Union[RaftConfiguration, _Mapping]] = ..., offset: _Optional[int] = ..., size_bytes: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class RaftInstallSnapshotResponse(_message.Message):
    __slots__ = ("index", "offset")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    index: int
    offset: int
    def __init__(self, index: _Optional[int] = ..., offset: _Optional[int] = ...) -> None: ...

class RaftTimeoutNow(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RaftGreeting(_message.Message):
    __slots__ = ("node_id", "store_id")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    STORE_ID_FIELD_NUMBER: _ClassVar[int]
    node_id: int
    store_id: str
    def __init__(self, node_id: _Optional[int] = ..., store_id: _Optional[str] = ...) -> None: ...

class RaftEntry(_message.Message):
    __slots__ = ("term", "data", "configuration")
    TERM_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    CONFIGURATION_FIELD_NUMBER: _ClassVar[int]
    term: int
    data: bytes
    configuration: RaftConfiguration
    def __init__(self, term: _Optional[int] = ..., data: _Optional[bytes] = ..., configuration: _Optional[_Union[RaftConfiguration, _Mapping]] = ...) -> None: ...

class RaftConfiguration(_message.Message):
    __slots__ = ("seats", "removed_stores")
    SEATS_FIELD_NUMBER: _ClassVar[int]
    REMOVED_STORES_FIELD_NUMBER: _ClassVar[int]
    seats: _containers.RepeatedCompositeFieldContainer[RaftSeat]
    removed_stores: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, seats: _Optional[_Iterable[_Union[RaftSeat, _Mapping]]] = ..., removed_stores: _Optional[_Iterable[str]] = ...) -> None: ...

class RaftSeat(_message.Message):
    __slots__ = ("node_id", "store_id", "voter", "returning")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    STORE_ID_FIELD_NUMBER: _ClassVar[int]
    VOTER_FIELD_NUMBER: _ClassVar[int]
    RETURNING_FIELD_NUMBER: _ClassVar[int]
    node_id: int
    store_id: str
    voter: bool
    returning: bool
    def __init__(self, node_id: _Optional[int] = ..., store_id: _Optional[str] = ..., voter: bool = ..., returning: bool = ...) -> None: ...

class RaftHardState(_message.Message):
    __slots__ = ("term", "vote", "commit")
    TERM_FIELD_NUMBER: _ClassVar[int]
    VOTE_FIELD_NUMBER: _ClassVar[int]
    COMMIT_FIELD_NUMBER: _ClassVar[int]
    term: int
    vote: int
    commit: int
    def __init__(self, term: _Optional[int] = ..., vote: _Optional[int] = ..., commit: _Optional[int] = ...) -> None: ...

class RaftSnapshot(_message.Message):
    __slots__ = ("index", "term", "configuration", "data")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    CONFIGURATION_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    index: int
    term: int
    configuration: RaftConfiguration
    data: bytes
    def __init__(self, index: _Optional[int] = ..., term: _Optional[int] = ..., configuration: _Optional[_Union[RaftConfiguration, _Mapping]] = ..., data: _Optional[bytes] = ...) -> None: ...
