"""What a truncation has to know of the log before it: where it cuts, and what derived state goes back to.

Reads the index only, in a reader thread; the log itself changes and writes (`PartitionLog.truncate`).
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

from broker.storage.log_reader import LogReader
from broker.storage.producers import ProducerBatch

# How far back a producer is looked for: as long as a silent one is remembered by default.
_PRODUCER_SEARCH_US: Final = 7 * 24 * 3600 * 1_000_000


class Cut(NamedTuple):
    """A truncation, looked up."""

    end_offset: int
    """A batch's boundary."""
    end_position: int | None
    """None: no batch goes, the positions stay."""
    last_append_time_us: int
    producers: dict[int, tuple[int, list[ProducerBatch]]]
    """(epoch, last batches) of those producers that memory does not reach."""


def plan_cut(reader: LogReader, end_offset: int, *, begin: int, incomplete_producers: Sequence[int]) -> Cut:
    """Looks up a truncation to end_offset; begin: where the index begins. Blocks."""
    last = reader.last_at_or_before(end_offset - 1) if end_offset else None
    if last is not None and last.end_offset > end_offset:
        end_offset = last.base_offset
        last = reader.last_at_or_before(end_offset - 1) if end_offset else None
    first_cut = reader.first_from(end_offset)
    last_append_time_us = 0 if last is None else last.entry.append_time_us
    producers = (
        reader.last_of_producers(
            incomplete_producers, begin=begin, end=end_offset, since_us=last_append_time_us - _PRODUCER_SEARCH_US
        )
        if incomplete_producers
        else {}
    )
    return Cut(end_offset, None if first_cut is None else first_cut.entry.position, last_append_time_us, producers)
