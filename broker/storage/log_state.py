"""The keys of a log in RocksDB, and its saved state.

The state is rewritten in the same write as every append, so that a start needs to read nothing else of a log. Keys
begin with the log's number, big-endian: a log is one range in every family.
"""

import struct
from dataclasses import dataclass, field
from typing import Final

from broker.storage.engine import MIB, FamilyOptions

BATCHES: Final = "batches"
INDEX: Final = "index"
STATE: Final = "state"
PRODUCERS: Final = "producers"
RAFT: Final = "raft"
"""Of the meta database; broker/raft/storage.py says what is in it."""

LOG_FAMILIES: Final = (BATCHES, INDEX, STATE, PRODUCERS)
OVERWRITTEN_FAMILIES: Final = frozenset((STATE, PRODUCERS))
"""Their keys are put again with every append; see `Committer`."""


def data_families(*, memtable_bytes: int) -> dict[str, FamilyOptions]:
    """The column families of the `data` database."""
    small = max(memtable_bytes // 4, 64 * 1024)
    return {
        BATCHES: FamilyOptions(write_buffer_bytes=memtable_bytes, blobs=True),
        INDEX: FamilyOptions(write_buffer_bytes=small, compressed=True),
        STATE: FamilyOptions(write_buffer_bytes=small),
        PRODUCERS: FamilyOptions(write_buffer_bytes=small),
    }


def meta_families() -> dict[str, FamilyOptions]:
    """The column families of the `meta` database."""
    return {RAFT: FamilyOptions(write_buffer_bytes=4 * MIB)}


_LOG: Final = struct.Struct(">Q")
_LOG_AND_NUMBER: Final = struct.Struct(">QQ")

log_key = _LOG.pack
"""log_key(log_id): the state's key, and the prefix of all others."""
offset_key = _LOG_AND_NUMBER.pack
"""offset_key(log_id, base_offset), in `batches` and `index`."""
producer_key = _LOG_AND_NUMBER.pack
"""producer_key(log_id, producer_id)."""


def key_number(key: bytes) -> int:
    """The base offset, or producer id, of such a key."""
    number: int = _LOG_AND_NUMBER.unpack(key)[1]
    return number


def key_log_id(key: bytes) -> int:
    """The log of any key."""
    log_id: int = _LOG.unpack_from(key)[0]
    return log_id


_VERSION: Final = 2
_VERSION_DAMAGED: Final = 3
"""With the damaged offset behind the leader epochs. Whole logs don't say it: older versions go on reading them."""
_NOT_DAMAGED: Final = -1
_OFFSET: Final = struct.Struct(">q")
_STATE: Final = struct.Struct(">BqqqqqqqqqqI")
_EPOCH: Final = struct.Struct(">iq")


@dataclass(slots=True)
class LogState:
    """What is saved of a log besides its batches."""

    end_offset: int = 0
    log_start_offset: int = 0
    last_append_time_us: int = 0
    end_position: int = 0
    """Grows with every envelope that is appended. Only differences of positions mean anything."""
    start_position: int = 0
    """The same, up to the batch at log start; may lag behind it until maintenance has looked it up."""
    batches_deleted_offset: int = 0
    """Batches below are deleted from RocksDB."""
    index_deleted_offset: int = 0
    """Index entries below are deleted; they outlive their batches by the deduplication window."""
    high_watermark: int = 0
    """As last set; may lag behind by what was set since the last append."""
    compacted_offset: int = 0
    """Below, log compaction has left the newest record of each key only (and what it must not take yet)."""
    positions_from: int = 0
    """Positions of batches below are to be raised by the compaction pass that is under way (or was cut short)."""
    leader_epochs: list[tuple[int, int]] = field(default_factory=list)
    """(leader epoch, its first offset), ascending."""
    damaged_offset: int = _NOT_DAMAGED
    """The first that was found damaged; remembered until the log is emptied."""

    @property
    def damaged(self) -> bool:
        """Something that should be here can't be read, as far as is known."""
        return self.damaged_offset >= self.log_start_offset

    def encode(self) -> bytes:
        """The value in the `state` family."""
        fixed = _STATE.pack(
            _VERSION if self.damaged_offset < 0 else _VERSION_DAMAGED,
            self.end_offset,
            self.log_start_offset,
            self.last_append_time_us,
            self.end_position,
            self.start_position,
            self.batches_deleted_offset,
            self.index_deleted_offset,
            self.high_watermark,
            self.compacted_offset,
            self.positions_from,
            len(self.leader_epochs),
        )
        epochs = b"".join([_EPOCH.pack(*epoch) for epoch in self.leader_epochs])
        return fixed + epochs if self.damaged_offset < 0 else fixed + epochs + _OFFSET.pack(self.damaged_offset)

    @classmethod
    def decode(cls, value: bytes) -> "LogState":
        """Raises ValueError if it is damaged or of an unknown version."""
        try:
            version, *numbers, epoch_count = _STATE.unpack_from(value)
            end, damaged_offset = len(value), _NOT_DAMAGED
            if version == _VERSION_DAMAGED:
                end -= _OFFSET.size
                (damaged_offset,) = _OFFSET.unpack_from(value, end)
            epochs = list(_EPOCH.iter_unpack(value[_STATE.size : end]))
        except struct.error as error:
            raise ValueError(f"a log's state of {len(value)} bytes is cut short") from error
        if version not in {_VERSION, _VERSION_DAMAGED} or len(epochs) != epoch_count:
            raise ValueError(f"a log's state of version {version} with {len(epochs)} leader epochs")
        state = cls(*numbers)
        state.damaged_offset = damaged_offset
        state.leader_epochs = [(epoch, first_offset) for epoch, first_offset in epochs]
        return state
