"""Reading a log from RocksDB: blocking, for the reader threads.

Owns searches in the index and the checking of what is read. It sees what is written, not what the log has decided
since: the log looks at its own state again when an answer comes back. Values are fetched by multi-get alone, which
releases the interpreter lock; iterators hold it, so they run over the small index only, a bounded number of entries
at a time.

There is no separate time index: append times never fall within a log, so the offset index itself can be searched by
time, exactly, in some twenty seeks of about 20 µs.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from broker.storage import envelope
from broker.storage.batch import StoredBatch
from broker.storage.engine import Engine
from broker.storage.envelope import EnvelopeDamaged, IndexEntry
from broker.storage.errors import LogCorrupt, StoreCorrupt
from broker.storage.log_state import BATCHES, INDEX, key_number, log_key, offset_key
from broker.storage.producers import REMEMBERED_COUNT, ProducerBatch
from broker.storage.request_ids import RequestPart

READ_BATCHES_MAX: Final = 4096
CHANGED_TIMES_MAX: Final = 10
_SCAN_FIRST_COUNT: Final = 32
_SCAN_COUNT_MAX: Final = 1024


class Indexed(NamedTuple):
    """A batch as the index knows it."""

    base_offset: int
    entry: IndexEntry

    @property
    def end_offset(self) -> int:
        """Exclusive."""
        return self.base_offset + self.entry.span


class LogReader:
    """Reads one log. Every method blocks and may be called from any thread."""

    def __init__(self, engine: Engine, log_id: int) -> None:
        self._engine = engine
        self._log_id = log_id

    def read(self, offset: int, *, end_offset: int, max_bytes: int) -> list[StoredBatch]:
        """Batches from the one that holds `offset` (or the first after it), below end_offset; see PartitionLog.read.

        A damaged or missing batch ends the answer before it; as the first it raises LogCorrupt. Raises StoreCorrupt
        for damage in the index.
        """
        changed_times = 0
        while offset < end_offset:
            wanted = self.indexed(offset, end_offset=end_offset, max_bytes=max_bytes)
            try:
                return self.fetch(wanted)
            except LogCorrupt:
                # Compaction, or a trim, may have come between the index and the batch: then the index says so.
                changed_times += 1
                if changed_times >= CHANGED_TIMES_MAX or self.at(wanted[0].base_offset) == wanted[0]:
                    raise
        return []

    def indexed(self, offset: int, *, end_offset: int, max_bytes: int) -> list[Indexed]:
        """As `read`, what the index knows of them."""
        wanted: list[Indexed] = []
        size_bytes = 0
        first = self.batch_at(offset)
        for indexed in self._entries(offset if first is None else first.base_offset, end_offset):
            size_bytes += indexed.entry.size_bytes
            if wanted and (size_bytes > max_bytes or len(wanted) >= READ_BATCHES_MAX):
                break
            wanted.append(indexed)
        return wanted

    def at(self, base_offset: int) -> Indexed | None:
        """The batch that begins there."""
        found = self.last_at_or_before(base_offset)
        return found if found is not None and found.base_offset == base_offset else None

    def first_from(self, offset: int) -> Indexed | None:
        """The first batch with base_offset >= offset."""
        found = self._engine.scan(INDEX, offset_key(self._log_id, offset), log_key(self._log_id + 1), limit=1)
        return self._indexed(*found[0]) if found else None

    def batch_at(self, offset: int) -> Indexed | None:
        """The batch that holds this offset."""
        before = self.last_at_or_before(offset)
        return before if before is not None and before.end_offset > offset else None

    def last_at_or_before(self, offset: int) -> Indexed | None:
        """The last batch with base_offset <= offset."""
        begin, end = offset_key(self._log_id, 0), offset_key(self._log_id, offset + 1)
        found = self._engine.scan(INDEX, begin, end, limit=1, reverse=True)
        return self._indexed(*found[0]) if found else None

    def first_where(self, holds: Callable[[IndexEntry], bool], *, begin: int, end: int) -> Indexed | None:
        """The first batch that overlaps [begin, end) and for which `holds`, which must stay true once it is true."""
        found: Indexed | None = None
        while begin < end:
            middle = (begin + end) // 2
            at = self.last_at_or_before(middle)
            if at is None or at.end_offset <= begin:
                begin = middle + 1  # a gap
            elif holds(at.entry):
                found, end = at, at.base_offset
            else:
                begin = max(at.end_offset, middle + 1)
        return found

    def request_parts(self, *, begin: int, since_us: int, end: int) -> list[tuple[bytes, RequestPart]]:
        """All parts of requests that were appended at that time or later, in order."""
        first = self.first_where(lambda entry: entry.append_time_us >= since_us, begin=begin, end=end)
        if first is None:
            return []
        return [
            (
                entry.request_id,
                RequestPart(base_offset, entry.span, entry.append_time_us, entry.record_indexes),
            )
            for base_offset, entry in self._entries(first.base_offset, end)
            if entry.request_id
        ]

    def producer_batches(self, *, begin: int, end: int) -> list[tuple[int, int, ProducerBatch]]:
        """(producer id, epoch, batch) of all batches in the range that came from producers, in order."""
        return [
            (indexed.entry.producer_id, indexed.entry.producer_epoch, _producer_batch(indexed))
            for indexed in self._entries(begin, end)
            if indexed.entry.producer_id
        ]

    def last_of_producers(
        self, producer_ids: Iterable[int], *, begin: int, end: int, since_us: int
    ) -> dict[int, tuple[int, list[ProducerBatch]]]:
        """(epoch, last batches) of each producer as they were when the log ended at `end`; backwards until known."""
        found: dict[int, tuple[int, list[ProducerBatch]]] = {}
        wanted = set(producer_ids)
        for indexed in self.entries_backwards(begin, end):
            entry = indexed.entry
            if not wanted or entry.append_time_us < since_us:
                break
            producer_id = entry.producer_id
            if producer_id not in wanted:
                continue
            epoch, batches = found.setdefault(producer_id, (entry.producer_epoch, []))
            if entry.producer_epoch == epoch and (not batches or entry.producer_sequence == batches[-1].sequence - 1):
                batches.append(_producer_batch(indexed))
                if len(batches) < REMEMBERED_COUNT and entry.producer_sequence:
                    continue
            wanted.discard(producer_id)
        for _, batches in found.values():
            batches.reverse()
        return found

    def _entries(self, begin: int, end: int) -> Iterator[Indexed]:
        """Index entries with begin <= base offset < end, in chunks that begin small: most reads want few."""
        count = _SCAN_FIRST_COUNT
        while begin < end:
            found = self._engine.scan(
                INDEX, offset_key(self._log_id, begin), offset_key(self._log_id, end), limit=count
            )
            for key, value in found:
                yield self._indexed(key, value)
            if len(found) < count:
                return
            begin = key_number(found[-1][0]) + 1
            count = min(count * 2, _SCAN_COUNT_MAX)

    def entries_backwards(self, begin: int, end: int) -> Iterator[Indexed]:
        """As `_entries`, from the end."""
        count = _SCAN_FIRST_COUNT
        while begin < end:
            found = self._engine.scan(
                INDEX, offset_key(self._log_id, begin), offset_key(self._log_id, end), limit=count, reverse=True
            )
            for key, value in found:
                yield self._indexed(key, value)
            if len(found) < count:
                return
            end = key_number(found[-1][0])
            count = min(count * 2, _SCAN_COUNT_MAX)

    def _indexed(self, key: bytes, value: bytes) -> Indexed:
        base_offset = key_number(key)
        try:
            return Indexed(base_offset, envelope.decode_entry(value))
        except EnvelopeDamaged as error:
            raise LogCorrupt(self._log_id, base_offset, str(error)) from error

    def fetch(self, wanted: Sequence[Indexed]) -> list[StoredBatch]:
        """Those batches, up to the first that cannot be read. Raises LogCorrupt if that is the first of all."""
        if not wanted:
            return []
        keys = [offset_key(self._log_id, indexed.base_offset) for indexed in wanted]
        try:
            values = self._engine.multi_get(BATCHES, keys)
        except StoreCorrupt as error:
            # One damaged block fails them all; what stands before it is fine.
            if len(wanted) == 1:
                raise LogCorrupt(self._log_id, wanted[0].base_offset, str(error)) from error
            half = len(wanted) // 2
            good = self.fetch(wanted[:half])
            if len(good) < half:
                return good
            try:
                return good + self.fetch(wanted[half:])
            except LogCorrupt:
                return good
        batches: list[StoredBatch] = []
        for indexed, value in zip(wanted, values, strict=True):
            try:
                batches.append(self._checked(indexed, value))
            except LogCorrupt:
                if not batches:
                    raise
                break
        return batches

    def _checked(self, indexed: Indexed, value: bytes | None) -> StoredBatch:
        if value is None:
            # Trimmed meanwhile, or lost: the log knows which.
            raise LogCorrupt(self._log_id, indexed.base_offset, "the batch is missing")
        try:
            stored = envelope.decode(value)
        except EnvelopeDamaged as error:
            raise LogCorrupt(self._log_id, indexed.base_offset, str(error)) from error
        if stored.crc != indexed.entry.crc or stored.base_offset != indexed.base_offset:
            raise LogCorrupt(self._log_id, indexed.base_offset, "batch and index entry do not belong together")
        return StoredBatch.of_decoded(value, stored)


def _producer_batch(indexed: Indexed) -> ProducerBatch:
    entry = indexed.entry
    return ProducerBatch(entry.producer_sequence, indexed.base_offset, indexed.end_offset, entry.append_time_us)
