"""Raft's log, hard state and snapshot in the meta database.

Owns the family `raft`. What one `Ready` asks for goes down as one submission, so that a crash leaves all of it or
nothing; submissions become durable in their order. It never decides what to save.

    b"e" + index, 8 bytes big-endian -> RaftEntry
    b"h"                             -> RaftHardState
    b"s"                             -> RaftSnapshot
"""

from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from google.protobuf.message import DecodeError

from broker.raft.codec import (
    decode_entry,
    decode_hard_state,
    decode_snapshot,
    encode_entry,
    encode_hard_state,
    encode_snapshot,
)
from broker.raft.messages import Entry, HardState, Loaded, Ready
from broker.storage.errors import StoreCorrupt
from broker.storage.log_state import RAFT

_HARD_STATE: Final = b"h"
_SNAPSHOT: Final = b"s"
_ENTRY: Final = b"e"
_ENTRIES_END: Final = b"f"
_SCAN_ENTRIES: Final = 1_000


class MetaEngine(Protocol):
    """What is needed of the meta database (storage.engine.Engine)."""

    def multi_get(self, family: str, keys: Sequence[bytes]) -> list[bytes | None]: ...

    def scan(
        self, family: str, begin: bytes, end: bytes, *, limit: int | None = None
    ) -> Sequence[tuple[bytes, bytes]]: ...


class MetaCommitter(Protocol):
    """What is needed of its committer (storage.committer.Committer)."""

    def submit(
        self, ops: Sequence[Any], *, size_bytes: int, on_durable: Callable[[], None] | None = None
    ) -> object: ...


def load(engine: MetaEngine) -> Loaded:
    """What was saved; nothing, in a new database. Blocks. Raises StoreCorrupt."""
    try:
        hard_state, snapshot = engine.multi_get(RAFT, [_HARD_STATE, _SNAPSHOT])
        loaded = Loaded(
            decode_hard_state(hard_state) if hard_state is not None else HardState(),
            decode_snapshot(snapshot) if snapshot is not None else None,
            tuple(_load_entries(engine)),
        )
    except DecodeError as error:
        raise StoreCorrupt(f"the Raft log holds something that is no record: {error}") from error
    snapshot_index = loaded.snapshot.index if loaded.snapshot is not None else 0
    first = loaded.entries[0].index if loaded.entries else snapshot_index + 1
    last_index = loaded.entries[-1].index if loaded.entries else snapshot_index
    if first > snapshot_index + 1 or last_index < max(loaded.hard_state.commit, snapshot_index):
        raise StoreCorrupt(
            f"the Raft log holds entries {first} to {last_index} after a snapshot at {snapshot_index}, "
            f"and {loaded.hard_state.commit} were committed"
        )
    return loaded


def _load_entries(engine: MetaEngine) -> list[Entry]:
    entries: list[Entry] = []
    key = _ENTRY
    while found := engine.scan(RAFT, key, _ENTRIES_END, limit=_SCAN_ENTRIES):
        for key, value in found:
            index = int.from_bytes(key[1:], "big")
            if entries and index != entries[-1].index + 1:
                raise StoreCorrupt(f"entry {entries[-1].index + 1} is missing from the Raft log")
            entries.append(decode_entry(value, index))
        key += b"\0"
    return entries


def save(committer: MetaCommitter, ready: Ready, *, on_durable: Callable[[], None]) -> None:
    """Submits what `ready` asks for. Raises StoreFailed if nothing can be saved any more."""
    ops: list[tuple[Any, ...]] = []
    if ready.delete_from is not None:
        ops.append(("delete_range", RAFT, _key(ready.delete_from), _ENTRIES_END))
    if ready.delete_below is not None:
        ops.append(("delete_range", RAFT, _ENTRY, _key(ready.delete_below)))
    if ready.snapshot is not None:
        ops.append(("put", RAFT, _SNAPSHOT, encode_snapshot(ready.snapshot)))
    ops.extend(("put", RAFT, _key(entry.index), encode_entry(entry)) for entry in ready.entries)
    if ready.hard_state is not None:
        ops.append(("put", RAFT, _HARD_STATE, encode_hard_state(ready.hard_state)))
    size_bytes = sum(len(op[3]) for op in ops)
    committer.submit(ops, size_bytes=size_bytes, on_durable=on_durable)


def _key(index: int) -> bytes:
    return _ENTRY + index.to_bytes(8, "big")
