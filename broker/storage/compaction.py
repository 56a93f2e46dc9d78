"""Log compaction: of each key only the newest record stays, and offsets never change.

Owns what a pass keeps, and its blocking half, which runs in the reader threads. A pass reads the part of the log that
no pass has seen yet (as much of it as a bounded map of keys holds), and then rewrites everything from there down to
the log start, batch by batch and in chunks: a record goes when its key has a newer one in the map. Followers and
readers that are in the middle of it see each surviving record once and in order, because a batch keeps its base
offset and its span, and says with deltas which offsets are left.

Downwards, because then the sizes of ranges can be kept right as it goes: positions of what lies above stay as they
are, and those below are raised by what was removed above.

A tombstone (a record without a value) goes later: when an earlier pass has seen it already, so that nothing older of
its key is left; when it is older than readers may take to come by; and when every replica has it, because a follower
that missed it would keep the record for ever. A batch without records stays for as long as deduplication has to know
of it, and where it is the last, so that followers reach the end.

Follows Kafka's log cleaner (offset map, clean and dirty part, tombstones), without segments.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from broker.storage import envelope
from broker.storage.batch import StoredBatch
from broker.storage.engine import MIB, Op
from broker.storage.errors import LogCorrupt
from broker.storage.log_reader import Indexed, LogReader
from broker.storage.log_state import BATCHES, INDEX, offset_key
from broker.storage.records import RecordsDamaged, open_batch, with_records

_DIGEST_BYTES: Final = 16
_CHUNK_BATCHES_MAX: Final = 1024


@dataclass(frozen=True, slots=True)
class CompactionSettings:
    """Of all compacted logs of a node."""

    interval_ms: int = 15_000
    """How often logs are looked at."""
    dirty_share_min: float = 0.5
    """A pass begins when this share of the bytes has not been through one. Less: more is rewritten, more often."""
    lag_min_ms: int = 0
    """Records younger than this stay, whatever came after them."""
    delete_retention_ms: int = 24 * 3600 * 1000
    """How long tombstones stay. A reader that takes longer from an old record to its tombstone misses that it went."""
    keys_max: int = 200_000
    """Keys remembered at once, some 200 bytes each. Fewer: more passes over a log with many keys."""
    chunk_bytes_max: int = MIB
    """Read, and at most written, at once."""
    bytes_per_s_max: int = 32 * MIB
    """Read and written by a pass, so that it leaves the disk and the processor to others."""


class KeyMap:
    """The newest offset of each key, within a bound."""

    def __init__(self, *, keys_max: int) -> None:
        self._keys_max = keys_max
        self._offsets: dict[bytes, int] = {}

    def __len__(self) -> int:
        return len(self._offsets)

    def has_room(self, records_count: int) -> bool:
        """Whether the keys of so many records fit; those of one batch always do, or nothing would ever go on."""
        return not self._offsets or len(self._offsets) + records_count <= self._keys_max

    def add(self, key: bytes, offset: int) -> None:
        """Offsets grow."""
        self._offsets[_short(key)] = offset

    def newest(self, key: bytes) -> int:
        """-1: not known."""
        return self._offsets.get(_short(key), -1)


def _short(key: bytes) -> bytes:
    # A digest is longer than any key that is taken as it is, so that they can't be mistaken for each other.
    return key if len(key) < _DIGEST_BYTES else hashlib.blake2b(key, digest_size=_DIGEST_BYTES).digest()


class Chunk(NamedTuple):
    """A part of the log, rewritten; to be written in one go."""

    ops: list[Op]
    begin_offset: int
    """Base of its first batch; of the chunk before it if it is empty."""
    position: int
    """Of its first batch, from now on."""
    size_bytes: int
    """To be written."""
    read_bytes: int
    removed_bytes: int
    last: bool
    """Nothing lies below it."""


@dataclass(slots=True)
class CompactionPass:
    """One pass over one log. Its methods block; only one of them runs at a time."""

    reader: LogReader
    log_id: int
    clean_end_offset: int
    """Below, an earlier pass has left one record a key."""
    dirty_end_offset: int
    """Nothing from here on is looked at: not below the high watermark, or too young."""
    tombstones_before_us: int
    """Tombstones that were appended later stay."""
    replicated_offset: int
    """Tombstones from here on stay: not every replica has them."""
    requests_since_us: int
    """Batches with request ids that were appended later may not vanish."""
    producers_from: Mapping[int, int]
    """Nor may those of a producer from this offset on: they are what it is remembered by."""
    keys: KeyMap
    chunk_bytes_max: int
    end_offset: int = 0
    """Where the pass begins its way down: as far as the keys were remembered."""
    newest_tombstone_us: int = 0
    """Append time of the newest one that was kept; 0: none was."""

    def map_chunk(self, offset: int) -> tuple[int, int, bool]:
        """Remembers the keys from there on. Returns where to go on, bytes read, and whether that was all."""
        chunk = self.reader.indexed(offset, end_offset=self.dirty_end_offset, max_bytes=self.chunk_bytes_max)
        read_bytes = 0
        for indexed, stored in zip(chunk, self._fetch(chunk), strict=True):
            if indexed.end_offset > self.dirty_end_offset or not self.keys.has_room(indexed.entry.record_count):
                return self.end_offset, read_bytes, True
            if stored is not None:
                self._map(stored)
            self.end_offset = indexed.end_offset
            read_bytes += indexed.entry.size_bytes
        return self.end_offset, read_bytes, not chunk

    def _map(self, stored: StoredBatch) -> None:
        try:
            keys = open_batch(bytes(stored.batch)).keys
        except RecordsDamaged:
            return  # it stays as it is
        for key, offset in zip(keys, _offsets(stored, len(keys)), strict=True):
            if key is not None:
                self.keys.add(key, offset)

    def rewrite_chunk(self, end_offset: int, *, position: int, begin_offset: int) -> Chunk:
        """Rewrites the last batches below end_offset, down to begin_offset at most.

        position: of what follows on them.
        """
        chunk: list[Indexed] = []
        read_bytes = 0
        last = True
        for indexed in self.reader.entries_backwards(begin_offset, end_offset):
            if chunk and (
                read_bytes + indexed.entry.size_bytes > self.chunk_bytes_max or len(chunk) >= _CHUNK_BATCHES_MAX
            ):
                last = False
                break
            chunk.append(indexed)
            read_bytes += indexed.entry.size_bytes
        ops: list[Op] = []
        size_bytes = removed_bytes = 0
        for indexed, stored in zip(chunk, self._fetch(chunk), strict=True):
            key = offset_key(self.log_id, indexed.base_offset)
            value = None if stored is None else self._rewritten(indexed, stored)
            if value == b"":
                ops += [("delete", BATCHES, key), ("delete", INDEX, key)]
                removed_bytes += indexed.entry.size_bytes
                continue
            position -= len(value) if value else indexed.entry.size_bytes
            if value:
                entry = _entry(value, position)
                ops += [("put", BATCHES, key, value), ("put", INDEX, key, entry)]
                size_bytes += len(value) + len(entry)
                removed_bytes += indexed.entry.size_bytes - len(value)
            elif position != indexed.entry.position:
                entry = envelope.encode_entry_at(indexed.entry, position=position)
                ops.append(("put", INDEX, key, entry))
                size_bytes += len(entry)
        begin_offset = chunk[-1].base_offset if chunk else end_offset
        return Chunk(ops, begin_offset, position, size_bytes, read_bytes, removed_bytes, last)

    def _rewritten(self, indexed: Indexed, stored: StoredBatch) -> bytes | None:
        """The envelope with what is left; empty: nothing has to be; None: it stays as it is."""
        batch = b""
        deltas: list[int] = []
        if stored.record_count:
            try:
                opened = open_batch(bytes(stored.batch))
            except RecordsDamaged:
                return None
            offsets = _offsets(stored, len(opened.keys))
            kept = [
                index
                for index, (key, tombstone, offset) in enumerate(
                    zip(opened.keys, opened.tombstones, offsets, strict=True)
                )
                if key is None or self._stays(key, offset, tombstone=tombstone, time_us=stored.append_time_us)
            ]
            if len(kept) == len(offsets):
                return None
            if kept:
                batch = with_records(opened, kept)
                deltas = [offsets[index] - stored.base_offset for index in kept]
        if not batch:
            if not self._is_remembered(indexed):
                return b""
            if not stored.record_count:
                return None
        before = envelope.decode(stored.envelope)
        value, _ = envelope.encode(
            batch,
            base_offset=before.base_offset,
            record_count=len(deltas),
            span=before.span,
            append_time_us=before.append_time_us,
            leader_epoch=before.leader_epoch,
            codec=before.codec if batch else 0,
            producer_id=before.producer_id,
            producer_epoch=before.producer_epoch,
            producer_sequence=before.producer_sequence,
            request_id=before.request_id,
            record_indexes=before.indexes,
            offset_deltas=envelope.encode_indexes(deltas),
        )
        return value

    def _stays(self, key: bytes, offset: int, *, tombstone: bool, time_us: int) -> bool:
        if self.keys.newest(key) > offset:
            return False
        if not tombstone:
            return True
        if offset < self.clean_end_offset and offset < self.replicated_offset and time_us < self.tombstones_before_us:
            return False
        self.newest_tombstone_us = max(self.newest_tombstone_us, time_us)
        return True

    def _is_remembered(self, indexed: Indexed) -> bool:
        """Whether a batch has to stay without its records."""
        entry = indexed.entry
        if indexed.end_offset >= self.end_offset:
            return True  # so that followers get as far as this
        if entry.request_id and entry.append_time_us >= self.requests_since_us:
            return True
        from_offset = self.producers_from.get(entry.producer_id) if entry.producer_id else None
        return from_offset is not None and indexed.base_offset >= from_offset

    def _fetch(self, chunk: Sequence[Indexed]) -> list[StoredBatch | None]:
        """The batches; None: damaged, and left as it is."""
        found: list[StoredBatch | None] = []
        while len(found) < len(chunk):
            try:
                found += self.reader.fetch(chunk[len(found) :])
            except LogCorrupt:
                found.append(None)
        return found


def _offsets(stored: StoredBatch, count: int) -> Sequence[int]:
    base_offset = stored.base_offset
    if stored.deltas:
        return [base_offset + delta for delta in stored.offset_deltas]
    return range(base_offset, base_offset + count)


def _entry(value: bytes, position: int) -> bytes:
    decoded = envelope.decode(value)
    return envelope.entry_of(decoded, size_bytes=len(value), position=position)
