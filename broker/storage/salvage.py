"""What can still be read of a damaged database, copied into an empty one.

RocksDB refuses every write once a compaction has met a damaged block, and no call takes that block out of its tables:
its own repair drops whole tables (older values of the same keys would come back: offsets would be handed out twice)
and knows nothing of blob files. Reading, however, tells damage from absence. So everything is read, checksums checked,
and written anew; what can't be read leaves a place that can't be read there either, never one that looks empty:

- a damaged batch keeps its index entry, so that reading it fails;
- damaged index entries are made again from their batches; where those are damaged too, one entry covers the gap;
- deduplication state of producers that is damaged is made again from the index.

A log with any of these is noted as damaged in its state: replication fills it anew from another copy if there is one,
and if this is the only one, everything else in it stays. A log whose state is damaged is given up, which counts as a
loss (`recovery.py`): where it ended is not known, and a wrong guess would hand out offsets twice.

A log's state is written last. A copy that was cut short goes on behind the logs that have one.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from broker.storage import envelope
from broker.storage.engine import MIB, Engine, Op
from broker.storage.envelope import EnvelopeDamaged, IndexEntry
from broker.storage.errors import StoreCorrupt, StoreFailed, WriteStalled
from broker.storage.log_reader import Indexed, LogReader
from broker.storage.log_state import (
    BATCHES,
    INDEX,
    PRODUCERS,
    RAFT,
    STATE,
    LogState,
    key_log_id,
    key_number,
    log_key,
    offset_key,
    producer_key,
)
from broker.storage.producers import ProducerTable

CHUNK_BYTES: Final = 4 * MIB
CHUNK_COUNT: Final = 512
_VALUES_AT_ONCE: Final = 4
_WRITE_BYTES: Final = MIB
_STALL_RETRY_S: Final = 0.01
_STALL_TIMEOUT_S: Final = 120.0
_NUMBERS_END: Final = 2**64 - 1
_SPAN_MAX: Final = 2**32 - 1


@dataclass(slots=True)
class Salvaged:
    """What came of it."""

    logs_count: int = 0
    damaged: dict[int, int] = field(default_factory=dict)
    """The first damaged offset of each log that has one."""
    bytes_count: int = 0


@dataclass(frozen=True, slots=True)
class Hole:
    """Numbers of keys, begin <= number < end, that can't be read."""

    begin: int
    end: int


KeyOf = Callable[[int], bytes]


def readable(
    engine: Engine, family: str, key_of: KeyOf, begin: int, end: int, *, at_once: int
) -> Iterator[tuple[bytes, bytes] | Hole]:
    """Entries from key_of(begin) to below key_of(end), in order, with a hole wherever they can't be read.

    At most `at_once` of them are in memory. What is whole between two damaged blocks may be in the hole, too.
    """
    position, wanted = key_of(begin), at_once
    while begin < end:
        try:
            found = engine.scan(family, position, key_of(end), limit=wanted)
        except StoreCorrupt:
            if wanted > 1:
                wanted //= 2  # one damaged entry fails all that are asked for with it
                continue
            after = _readable_from(engine, family, key_of, begin, end)
            yield Hole(begin, after)
            begin, position, wanted = after, key_of(after), at_once
            continue
        if not found:
            return
        yield from found
        begin = int.from_bytes(found[-1][0][-8:], "big") + 1
        position, wanted = key_of(begin) if begin < end else position, at_once


def _readable_from(engine: Engine, family: str, key_of: KeyOf, bad: int, end: int) -> int:
    """A number behind a damaged one from which on reading works again; `end` if there is none."""

    def works(number: int) -> bool:
        try:
            engine.scan(family, key_of(number), key_of(end), limit=1)
        except StoreCorrupt:
            return False
        return True

    step = 1
    while bad + step < end and not works(bad + step):
        bad, step = bad + step, step * 2
    good = min(bad + step, end)
    while good - bad > 1:
        middle = (bad + good) // 2
        if works(middle):
            good = middle
        else:
            bad = middle
    return good


def copy_raft(source: Engine, target: Engine) -> Salvaged:
    """The `meta` database: all or nothing, for a vote that is forgotten could be cast again. Raises StoreCorrupt."""
    entries = source.scan(RAFT, b"", b"\xff")
    _Writer(target).put_all([("put", RAFT, key, value) for key, value in entries])
    return Salvaged(bytes_count=sum(len(value) for _, value in entries))


def copy_logs(source: Engine, target: Engine) -> Salvaged:
    """The `data` database. Raises StoreFailed."""
    result = Salvaged()
    for log_id, state in _states(source):
        result.logs_count += 1
        [copied] = target.multi_get(STATE, [log_key(log_id)])
        if copied is None:
            copy = _LogCopy(source, target, log_id, state)
            copy.run()
            result.bytes_count += copy.writer.bytes_count
    result.damaged = damaged_logs(target)
    return result


def live_bytes(source: Engine) -> int:
    """About as much room does a copy of all logs need."""
    return sum(max(0, state.end_position - state.start_position) for _, state in _states(source))


def damaged_logs(copy: Engine) -> dict[int, int]:
    """The first damaged offset of each log that has one, as `copy_logs` told it."""
    return {log_id: state.damaged_offset for log_id, state in _states(copy) if state.damaged}


def _states(source: Engine) -> Iterator[tuple[int, LogState]]:
    for found in readable(source, STATE, log_key, 0, _NUMBERS_END, at_once=CHUNK_COUNT):
        state = None if isinstance(found, Hole) else _state(found[1])
        if not isinstance(found, Hole) and state is not None:
            yield key_log_id(found[0]), state


class _LogCopy:
    """One log."""

    def __init__(self, source: Engine, target: Engine, log_id: int, state: LogState) -> None:
        self.writer = _Writer(target)
        self._source = source
        self._target = target
        self._log_id = log_id
        self._state = state
        self._covered = state.index_deleted_offset  # below, all is told
        self._last: IndexEntry | None = None

    def run(self) -> None:
        state = self._state
        chunk: list[tuple[Indexed, bytes]] = []
        size_bytes, torn = 0, False
        for found in self._entries(INDEX, self._covered, state.end_offset, at_once=CHUNK_COUNT):
            indexed = None if isinstance(found, Hole) else _indexed(*found)
            if isinstance(found, Hole) or indexed is None:
                torn = True
                continue
            if indexed.base_offset < self._covered or indexed.end_offset > state.end_offset:
                self._damaged(indexed.base_offset)  # what had been deleted has come back
                continue
            if torn:
                self._mend(indexed.base_offset)
                torn = False
            chunk.append((indexed, found[1]))
            self._passed(indexed)
            size_bytes += indexed.entry.size_bytes
            if size_bytes >= CHUNK_BYTES or len(chunk) >= CHUNK_COUNT:
                self._copy(chunk)
                chunk, size_bytes = [], 0
        self._copy(chunk)
        if torn:
            self._mend(state.end_offset)
        self._copy_producers()
        # Durable before its state is: a power cut must not leave a state alone.
        self._target.flush_wal()
        self.writer.put_all([("put", STATE, log_key(self._log_id), state.encode())])

    def _entries(self, family: str, begin: int, end: int, *, at_once: int) -> Iterator[tuple[bytes, bytes] | Hole]:
        return readable(
            self._source, family, lambda number: offset_key(self._log_id, number), begin, end, at_once=at_once
        )

    def _passed(self, indexed: Indexed) -> None:
        self._covered, self._last = indexed.end_offset, indexed.entry

    def _damaged(self, offset: int) -> None:
        state = self._state
        offset = max(offset, state.log_start_offset)
        state.damaged_offset = min(offset, state.damaged_offset) if state.damaged else offset

    def _copy(self, chunk: Sequence[tuple[Indexed, bytes]]) -> None:
        """Entries, and their batches as far as they are whole."""
        state = self._state
        for (indexed, entry), value in zip(chunk, self._values([indexed for indexed, _ in chunk]), strict=True):
            key = offset_key(self._log_id, indexed.base_offset)
            ops: list[Op] = [("put", INDEX, key, entry)]
            if value is not None and _is_whole(value, indexed):
                ops.append(("put", BATCHES, key, value))
            elif indexed.end_offset > state.log_start_offset:
                self._damaged(indexed.base_offset)
            self.writer.put(ops)

    def _values(self, wanted: Sequence[Indexed]) -> list[bytes | None]:
        if not wanted:
            return []
        try:
            return self._source.multi_get(
                BATCHES, [offset_key(self._log_id, indexed.base_offset) for indexed in wanted]
            )
        except StoreCorrupt:
            if len(wanted) == 1:
                return [None]
            half = len(wanted) // 2
            return self._values(wanted[:half]) + self._values(wanted[half:])

    def _mend(self, end: int) -> None:
        """Makes the index again between what is copied so far and `end`."""
        torn = False
        for found in self._entries(BATCHES, self._covered, end, at_once=_VALUES_AT_ONCE):
            if isinstance(found, Hole):
                torn = True
                continue
            key, value = found
            try:
                stored = envelope.decode(value)
            except EnvelopeDamaged:
                torn = True
                continue
            if stored.base_offset != key_number(key) or stored.end_offset > end:
                torn = True
                continue
            if torn:
                self._cover(stored.base_offset)
                torn = False
            entry = envelope.entry_of(stored, size_bytes=len(value), position=self._position)
            self.writer.put([("put", BATCHES, key, value), ("put", INDEX, key, entry)])
            self._passed(Indexed(stored.base_offset, envelope.decode_entry(entry)))
        if torn:
            self._cover(end)

    @property
    def _position(self) -> int:
        return self._state.start_position if self._last is None else self._last.position + self._last.size_bytes

    def _cover(self, end: int) -> None:
        """What was there is not known: an entry without a batch, so that it is never taken for a gap."""
        while end > max(self._covered, self._state.log_start_offset):
            begin, span = self._covered, min(end - self._covered, _SPAN_MAX)
            last, epochs = self._last, self._state.leader_epochs
            entry = envelope.encode_entry(
                record_count=span,
                span=span,
                size_bytes=0,
                crc=0,
                append_time_us=0 if last is None else last.append_time_us,
                leader_epoch=last.leader_epoch if last is not None else epochs[0][0] if epochs else 0,
                position=self._position,
            )
            self.writer.put([("put", INDEX, offset_key(self._log_id, begin), entry)])
            self._passed(Indexed(begin, envelope.decode_entry(entry)))
            self._damaged(begin)

    def _copy_producers(self) -> None:
        state, torn = self._state, False
        ops: list[Op] = []
        for found in self._entries(PRODUCERS, 0, _NUMBERS_END, at_once=CHUNK_COUNT):
            if isinstance(found, Hole):
                torn = True
            else:
                ops.append(("put", PRODUCERS, *found))
        if torn:
            self.writer.flush()
            self._damaged(state.log_start_offset)
            producers = ProducerTable()
            producers.high_watermark = state.high_watermark
            known = LogReader(self._target, self._log_id).producer_batches(
                begin=state.index_deleted_offset, end=state.end_offset
            )
            for producer_id, epoch, batch in known:
                producers.replicate(producer_id, epoch, batch)
            ops = [
                ("put", PRODUCERS, producer_key(self._log_id, producer_id), producers.encode(producer_id))
                for producer_id in dict.fromkeys(producer_id for producer_id, _, _ in known)
                if producer_id in producers
            ]
        self.writer.put_all(ops)


class _Writer:
    """Writes of a bounded size to a database that nobody else writes to."""

    def __init__(self, target: Engine) -> None:
        self.bytes_count = 0
        self._target = target
        self._ops: list[Op] = []
        self._size_bytes = 0

    def put(self, ops: Sequence[Op]) -> None:
        self._ops += ops
        size_bytes = sum(len(op[3]) for op in ops if op[0] == "put")
        self._size_bytes += size_bytes
        self.bytes_count += size_bytes
        if self._size_bytes >= _WRITE_BYTES:
            self.flush()

    def put_all(self, ops: Sequence[Op]) -> None:
        for op in ops:
            self.put([op])
        self.flush()

    def flush(self) -> None:
        ops, self._ops, self._size_bytes = self._ops, [], 0
        deadline = time.monotonic() + _STALL_TIMEOUT_S
        while ops:
            try:
                self._target.write(ops)
                return
            except WriteStalled as stall:
                if time.monotonic() >= deadline:
                    raise StoreFailed(f"writes stalled for {_STALL_TIMEOUT_S:g} s") from stall
                time.sleep(_STALL_RETRY_S)


def _state(value: bytes) -> LogState | None:
    try:
        return LogState.decode(value)
    except ValueError:
        return None


def _indexed(key: bytes, value: bytes) -> Indexed | None:
    try:
        return Indexed(key_number(key), envelope.decode_entry(value))
    except EnvelopeDamaged:
        return None


def _is_whole(value: bytes, indexed: Indexed) -> bool:
    try:
        stored = envelope.decode(value)
    except EnvelopeDamaged:
        return False
    return stored.crc == indexed.entry.crc and stored.base_offset == indexed.base_offset
