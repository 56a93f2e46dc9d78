"""What was read last of partitions that have no replica in sync here, kept for their next readers.

One budget over all of a node's: what was not read for longest goes first. Pure.
"""

from collections import OrderedDict

from broker.storage.batch import StoredBatch


class RemoteBuffers:
    """By log id; of each a run of batches without a gap that was not read so."""

    def __init__(self, *, bytes_max: int, partition_bytes_max: int) -> None:
        """bytes_max: of all together. A single batch that is larger than a bound is kept alone."""
        self.size_bytes = 0
        self._bytes_max = bytes_max
        self._partition_bytes_max = min(bytes_max, partition_bytes_max)
        self._kept: OrderedDict[int, list[StoredBatch]] = OrderedDict()  # least recently read first

    def __len__(self) -> int:
        return len(self._kept)

    def find(self, log_id: int, offset: int) -> list[StoredBatch] | None:
        """What is kept of a partition, if it holds that offset."""
        batches = self._kept.get(log_id)
        if batches is None or not batches[0].base_offset <= offset < batches[-1].end_offset:
            return None
        self._kept.move_to_end(log_id)
        return batches

    def keep(self, log_id: int, batches: list[StoredBatch]) -> None:
        """These, at least one, were read; they go on from what is kept, or replace it."""
        kept = self._kept.get(log_id, [])
        self.drop(log_id)
        if kept and kept[-1].end_offset == batches[0].base_offset:
            batches = kept + batches
        size_bytes, first = _size(batches), 0
        while size_bytes > self._partition_bytes_max and first < len(batches) - 1:
            size_bytes -= len(batches[first].envelope)
            first += 1
        self._kept[log_id] = batches[first:]
        self.size_bytes += size_bytes
        while self.size_bytes > self._bytes_max and len(self._kept) > 1:
            self.drop(next(iter(self._kept)))

    def drop(self, log_id: int) -> None:
        """Nobody will read it here."""
        self.size_bytes -= _size(self._kept.pop(log_id, []))


def _size(batches: list[StoredBatch]) -> int:
    return sum(len(batch.envelope) for batch in batches)
