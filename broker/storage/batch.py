"""What goes into a log and comes out of it. Values only; `log.py` hands them on."""

from dataclasses import dataclass
from typing import NamedTuple


@dataclass(slots=True)
class NewBatch:
    """What is to be appended. Not frozen for speed (3.5 µs against 0.9); nobody changes one."""

    batch: bytes
    """A serialised RecordBatch, kept verbatim."""
    record_count: int
    codec: int = 0
    """postbus.v1.Compression."""
    leader_epoch: int = 0
    producer_id: int = 0
    """0: none."""
    producer_epoch: int = 0
    producer_sequence: int = 0
    request_id: bytes = b""
    record_indexes: tuple[int, ...] = ()
    """Which records of a split request these are, ascending; empty: all."""


class Appended(NamedTuple):
    """Where a batch went."""

    base_offset: int
    end_offset: int
    append_time_us: int


@dataclass(slots=True)
class StoredBatch:
    """What a read gives. Not frozen for speed; nobody changes one: the tail shares them."""

    base_offset: int
    record_count: int
    append_time_us: int
    leader_epoch: int
    codec: int
    batch: bytes | memoryview
    """A serialised RecordBatch, verbatim."""

    @property
    def end_offset(self) -> int:
        """Exclusive."""
        return self.base_offset + self.record_count
