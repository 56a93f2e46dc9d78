"""Deduplication by producer sequence: what a log remembers of each producer.

Pure. `PartitionLog` saves each producer's state in the same write as the batch that changed it. Every batch above the
high watermark is remembered (its outcome may still be asked for), and the last five below it. What is saved is the
last five; what else was above the high watermark comes from the index after a restart (`prepend`). Where the log is
truncated, state is undone with it (`cut`), and what is not in memory comes from the index too. The window of five is
Kafka's (`ProducerStateEntry.NUM_BATCHES_TO_RETAIN`), the most that its clients keep in flight.
"""

import struct
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, NamedTuple

from broker.storage.errors import StorageError

# ruff: noqa: N818 - outcomes, named for what happened

REMEMBERED_COUNT: Final = 5
_VERSION: Final = 1
_STATE: Final = struct.Struct(">BiB")
_BATCH: Final = struct.Struct(">qqqq")


class ProducerBatch(NamedTuple):
    """A batch that was appended before."""

    sequence: int
    base_offset: int
    end_offset: int
    append_time_us: int


class ProducerRefusal(StorageError):
    """A batch is not the producer's next, and not one that is remembered."""


class ProducerFenced(ProducerRefusal):
    """A newer epoch of this producer has published."""

    def __init__(self, current_epoch: int) -> None:
        super().__init__(f"the producer's epoch is {current_epoch} by now")
        self.current_epoch = current_epoch


class SequenceGap(ProducerRefusal):
    """A batch before this one is missing."""

    def __init__(self, expected_sequence: int) -> None:
        super().__init__(f"the next sequence is {expected_sequence}")
        self.expected_sequence = expected_sequence


class DuplicateTooOld(ProducerRefusal):
    """It was appended, so long ago that its offsets are forgotten."""


class ProducerUnknown(ProducerRefusal):
    """The log remembers nothing of this producer: it needs a new epoch, and starts at sequence 0."""


class _Producer:
    __slots__ = ("batches", "epoch")

    def __init__(self, epoch: int, batches: list[ProducerBatch]) -> None:
        self.epoch = epoch
        self.batches = batches


class ProducerTable:
    """The producers of one log, least recently used first."""

    def __init__(self, *, producers_max: int = 10_000) -> None:
        self.producers_max = producers_max
        self.high_watermark = 0
        """Set through the log by whoever decides how far it is safe."""
        self._producers: dict[int, _Producer] = {}

    def __len__(self) -> int:
        return len(self._producers)

    def check(self, producer_id: int, epoch: int, sequence: int) -> ProducerBatch | None:
        """None: new, append it. A batch: a duplicate of that one. Raises a ProducerRefusal."""
        producer = self._producers.get(producer_id)
        if producer is None:
            if sequence != 0:
                raise ProducerUnknown(f"nothing is known of producer {producer_id}")
            return None
        if epoch < producer.epoch:
            raise ProducerFenced(producer.epoch)
        if epoch > producer.epoch:
            if sequence != 0:
                raise SequenceGap(0)
            return None
        last = producer.batches[-1]
        if sequence == last.sequence + 1:
            return None
        if sequence > last.sequence:
            raise SequenceGap(last.sequence + 1)
        # Sequences are consecutive, so the place in the list follows from the number.
        index = sequence - producer.batches[0].sequence
        if index < 0:
            raise DuplicateTooOld(f"sequence {sequence} was appended long ago; the last is {last.sequence}")
        return producer.batches[index]

    def record(self, producer_id: int, epoch: int, batch: ProducerBatch) -> list[int]:
        """Remembers a batch that `check` found new. Returns the ids of producers that it had to forget for it."""
        producer = self._producers.pop(producer_id, None)
        if producer is None or producer.epoch != epoch:
            assert batch.sequence == 0
            producer = _Producer(epoch, [batch])
        else:
            batches = producer.batches
            assert batch.sequence == batches[-1].sequence + 1
            batches.append(batch)
            while len(batches) > REMEMBERED_COUNT and batches[REMEMBERED_COUNT].end_offset <= self.high_watermark:
                del batches[0]
        self._producers[producer_id] = producer  # at the end: the most recently used
        return self._evict()

    def _evict(self) -> list[int]:
        forgotten = []
        while len(self._producers) > self.producers_max:
            oldest = next(iter(self._producers))
            del self._producers[oldest]
            forgotten.append(oldest)
        return forgotten

    def replicate(self, producer_id: int, epoch: int, batch: ProducerBatch) -> list[int]:
        """As `record`, for what the leader has checked. Compaction may have left gaps in the sequences there."""
        producer = self._producers.get(producer_id)
        if producer is not None and (producer.epoch != epoch or producer.batches[-1].sequence + 1 != batch.sequence):
            producer = None
        if producer is None:
            self._producers.pop(producer_id, None)
            self._producers[producer_id] = _Producer(epoch, [batch])
            return self._evict()
        return self.record(producer_id, epoch, batch)

    def after_cut(self, end_offset: int) -> dict[int, bool]:
        """The producers that `cut` would change; True: what they were below end_offset has to come from the index."""
        changed = {}
        for producer_id, producer in self._producers.items():
            first, last = producer.batches[0], producer.batches[-1]
            if last.end_offset > end_offset:
                kept_count = sum(1 for batch in producer.batches if batch.end_offset <= end_offset)
                complete = kept_count >= REMEMBERED_COUNT or (
                    first.sequence == 0 and (kept_count or not producer.epoch)
                )
                changed[producer_id] = not complete
        return changed

    def cut(self, end_offset: int, from_index: Mapping[int, tuple[int, list[ProducerBatch]]]) -> tuple[int, ...]:
        """Forgets the batches from end_offset on: the log was truncated. Returns the ids of the changed producers.

        from_index: (epoch, batches) of those for which `after_cut` said True, as far as the index knows them.
        """
        changed = self.after_cut(end_offset)
        for producer_id, incomplete in changed.items():
            producer = self._producers[producer_id]
            epoch, indexed = from_index.get(producer_id, (producer.epoch, [])) if incomplete else (producer.epoch, [])
            producer.batches = [batch for batch in producer.batches if batch.end_offset <= end_offset]
            # Either may reach further back: the index ends where its batches were trimmed long ago.
            if len(indexed) > len(producer.batches):
                producer.epoch, producer.batches = epoch, list(indexed)
            if not producer.batches:
                del self._producers[producer_id]
        self.high_watermark = min(self.high_watermark, end_offset)
        self._sort()
        return tuple(changed)

    def prepend(self, earlier: Iterable[tuple[int, int, ProducerBatch]]) -> None:
        """Completes producers with (id, epoch, batch) in the order of the log, which were not saved with them."""
        for producer_id, epoch, batch in reversed(list(earlier)):
            producer = self._producers.get(producer_id)
            if producer and producer.epoch == epoch and batch.sequence == producer.batches[0].sequence - 1:
                producer.batches.insert(0, batch)

    def first_offsets(self) -> dict[int, int]:
        """Of each producer, where the oldest batch begins that is remembered."""
        return {producer_id: producer.batches[0].base_offset for producer_id, producer in self._producers.items()}

    def clear(self) -> None:
        """Forgets everything."""
        self._producers.clear()
        self.high_watermark = 0

    def __contains__(self, producer_id: int) -> bool:
        return producer_id in self._producers

    def expire(self, before_us: int) -> list[int]:
        """Forgets producers whose last batch was appended before then; returns their ids."""
        expired = []
        for producer_id, producer in self._producers.items():
            if producer.batches[-1].append_time_us >= before_us:
                break  # they are in order of their last batch
            expired.append(producer_id)
        for producer_id in expired:
            del self._producers[producer_id]
        return expired

    def encode(self, producer_id: int) -> bytes:
        """One producer's state, to be saved."""
        producer = self._producers[producer_id]
        batches = producer.batches[-REMEMBERED_COUNT:]
        return b"".join((_STATE.pack(_VERSION, producer.epoch, len(batches)), *(_BATCH.pack(*b) for b in batches)))

    def load(self, saved: Iterator[tuple[int, bytes]]) -> None:
        """Fills an empty table from (producer id, encoded state). Raises ValueError if one is damaged."""
        assert not self._producers
        self._producers = {producer_id: _decode(value) for producer_id, value in saved}
        self._sort()

    def _sort(self) -> None:
        self._producers = dict(sorted(self._producers.items(), key=lambda item: _log_order(item[1].batches[-1])))


def _log_order(batch: ProducerBatch) -> tuple[int, int]:
    return batch.append_time_us, batch.base_offset


def _decode(value: bytes) -> _Producer:
    try:
        version, epoch, count = _STATE.unpack_from(value)
        batches = [ProducerBatch(*fields) for fields in _BATCH.iter_unpack(value[_STATE.size :])]
    except struct.error as error:
        raise ValueError("a producer's state is cut short") from error
    if version != _VERSION or len(batches) != count or not batches:
        raise ValueError(f"a producer's state of version {version} with {len(batches)} batches")
    return _Producer(epoch, batches)
