"""What goes into a log and comes out of it. Values only; `log.py` hands them on."""

from dataclasses import dataclass
from typing import NamedTuple

from broker.storage.envelope import Envelope, decode, decode_indexes


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
    end_offset: int
    """Exclusive; base_offset + record_count, or more where compaction took records out."""
    record_count: int
    """0: compaction took all of them."""
    append_time_us: int
    leader_epoch: int
    codec: int
    envelope: bytes
    """As stored, and as followers get it."""
    batch_begin: int
    """Where in the envelope the RecordBatch begins."""
    deltas: bytes = b""
    """As `envelope.encode_indexes` made them."""

    @classmethod
    def of_envelope(cls, value: bytes) -> "StoredBatch":
        """Checks it. Raises EnvelopeDamaged."""
        return cls.of_decoded(value, decode(value))

    @classmethod
    def of_decoded(cls, value: bytes, decoded: Envelope) -> "StoredBatch":
        """decoded: what `envelope.decode` made of the value."""
        return cls(
            decoded.base_offset,
            decoded.base_offset + decoded.span,
            decoded.record_count,
            decoded.append_time_us,
            decoded.leader_epoch,
            decoded.codec,
            value,
            decoded.batch_begin,
            decoded.deltas,
        )

    @property
    def batch(self) -> memoryview:
        """A serialised RecordBatch; verbatim, unless compaction took records out."""
        return memoryview(self.envelope)[self.batch_begin :]

    @property
    def offset_deltas(self) -> tuple[int, ...]:
        """Offsets of the records, counted from the base; empty: record i has base_offset + i (or there is none)."""
        return decode_indexes(self.deltas)
