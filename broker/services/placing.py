"""One part of a request and the log that it goes to: deduplication, precondition, append. The leader's side.

In one go, without waiting: nothing comes between the check and the append. Used by the node's own publishers and for
what other nodes pass on, so that a retry through whichever node meets its first try.
"""

from dataclasses import replace
from typing import Final

from broker.errors import PostbusError, Reason
from broker.replication.partition import Partition, Published, Role
from broker.services import batches
from broker.services.batches import BatchPart
from broker.storage.batch import NewBatch
from broker.storage.errors import StorageError

# Refusals for what the log holds or lacks. A later leader's log may differ.
FROM_THE_LOG: Final = frozenset(
    {
        Reason.ERROR_REASON_PRECONDITION_NOT_MET,
        Reason.ERROR_REASON_SEQUENCE_GAP,
        Reason.ERROR_REASON_DUPLICATE_SEQUENCE,
        Reason.ERROR_REASON_PRODUCER_UNKNOWN,
        Reason.ERROR_REASON_PRODUCER_FENCED,
    }
)


def is_to_be_confirmed(partition: Partition, refusal: PostbusError | StorageError) -> bool:
    """Whether it is only true if this node still leads the partition: nobody is told before that is known."""
    return isinstance(refusal, PostbusError) and refusal.reason in FROM_THE_LOG and bool(partition.successors)


def place(partition: Partition, new: NewBatch, *, end_offset: int | None) -> list[Published]:
    """Appends what is not there yet; answers for every record. Raises PostbusError, and nothing is appended then.

    end_offset: where the log has to end; None: wherever.
    """
    if not (new.producer_id or new.request_id) and end_offset is None:
        return [partition.append(new)]  # with nothing to look at before, but what `append` looks at
    error = partition.writable_error()
    if error is not None:
        raise error
    if new.producer_id:
        earlier = partition.find_sequence(
            producer_id=new.producer_id, producer_epoch=new.producer_epoch, sequence=new.producer_sequence
        )
        if earlier is not None:
            return [earlier]
        found: list[Published] = []
    else:
        found = find(partition, new.request_id) if new.request_id else []
        if found:
            rest = left_out([BatchPart(partition.number, new.batch, new.record_count, new.record_indexes)], found)
            if not rest:
                return found
            (part,) = rest
            new = replace(new, batch=part.batch, record_count=part.record_count, record_indexes=part.record_indexes)
        if new.request_id:
            partition.check_request_room(new.request_id)
    if end_offset is not None:
        partition.check_end_offset(end_offset)
    return [*found, partition.append(new)]


def find(partition: Partition, request_id: bytes) -> list[Published]:
    """What this partition's log holds of a request within the window. The ids are loaded."""
    assert partition.local is not None
    return [
        Published(partition.number, part.base_offset, part.record_count, part.record_indexes, part.append_time_us, True)
        for part in partition.local.request_ids.find(request_id)
    ]


def ids_missing(partition: Partition) -> bool:
    """Whether the log's request ids have to be loaded before a request with an id can be placed here."""
    local = partition.local
    return local is not None and partition.role is Role.LEADER and not local.request_ids_loaded


def left_out(parts: list[BatchPart], earlier: list[Published]) -> list[BatchPart]:
    """What an earlier try did not append. The parts of a request are the same records at each try."""
    if not earlier:
        return parts
    if any(not published.record_indexes for published in earlier):
        return []
    there = {index for published in earlier for index in published.record_indexes}
    missing: list[BatchPart] = []
    for part in parts:
        indexes = part.record_indexes or tuple(range(part.record_count))
        wanted = [index for index in indexes if index not in there]
        if len(wanted) == len(indexes):
            missing.append(part)
        elif wanted:
            missing.append(batches.select(part, wanted))
    return missing
