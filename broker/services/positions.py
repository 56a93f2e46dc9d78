"""Places in a partition as requests name them, resolved to offsets.

What this node knows of a partition's ends may be a moment old: whatever depends on them is asked of the leader, so that
"the latest" is never before something that was acknowledged earlier.
"""

import asyncio
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp
from postbus.v1 import subscriber_pb2

from broker import errors
from broker.clock import Clock
from broker.errors import PostbusError, Reason
from broker.replication.partition import Partition
from broker.services import publish_route, requests
from broker.storage.errors import LogCorrupt

# 9999-12-31T23:59:59Z, the last moment that a Timestamp can name.
TIMESTAMP_SECONDS_MAX: Final = 253_402_300_799
# How long an election is waited out.
LEADER_WAIT_S: Final = 20.0


def check_start(field: str, start: subscriber_pb2.StartPosition) -> None:
    """Raises INVALID_ARGUMENT for a place that can't be."""
    which = start.WhichOneof("at")
    if which == "edge":
        _check_edge(f"{field}.edge", start.edge)
    elif which == "offset":
        requests.check_offset(f"{field}.offset", start.offset)
    elif which == "time":
        _check_time(f"{field}.time", start.time)
    elif which == "ago":
        requests.seconds(f"{field}.ago", start.ago, maximum=TIMESTAMP_SECONDS_MAX)
    elif which == "last_records" and start.last_records < 0:
        raise errors.invalid_field(f"{field}.last_records", f"{start.last_records} is negative")


def check_stop(field: str, stop: subscriber_pb2.StopPosition) -> None:
    """Raises INVALID_ARGUMENT for a place that can't be."""
    which = stop.WhichOneof("at")
    if which is None:
        raise errors.invalid_field(field, "is empty; leave it out to go on for ever")
    if which == "edge":
        if stop.edge != subscriber_pb2.LOG_EDGE_LATEST:
            raise errors.invalid_field(f"{field}.edge", "only LOG_EDGE_LATEST is a place to stop")
    elif which == "offset":
        requests.check_offset(f"{field}.offset", stop.offset)
    else:
        _check_time(f"{field}.time", stop.time)


async def resolve_start(
    partition: Partition, start: subscriber_pb2.StartPosition, clock: Clock, *, timeout_s: float = LEADER_WAIT_S
) -> int:
    """The offset of a checked place. An explicit offset comes back as it is, in the log or not.

    Raises NO_LEADER if nobody answers for so long. The partition's ends are good enough for `within_range` after it.
    """
    known = known_start(partition, start)
    if known is not None:
        return known
    which = start.WhichOneof("at")
    end = await latest(partition, timeout_s)
    if which == "offset":
        return start.offset
    if which == "time":
        return await _at_time(partition, _time_us(start.time), end)
    if which == "ago":
        ago_us = start.ago.seconds * 1_000_000 + start.ago.nanos // 1000
        return await _at_time(partition, clock.wall_us() - ago_us, end)
    if which == "last_records":
        return max(end - start.last_records, partition.log.log_start_offset)
    if which == "edge" and start.edge == subscriber_pb2.LOG_EDGE_LATEST:
        return end
    return partition.log.log_start_offset


async def resolve_stop(
    partition: Partition, stop: subscriber_pb2.StopPosition, *, timeout_s: float = LEADER_WAIT_S
) -> int:
    """The offset of a checked place to stop, exclusive. Raises NO_LEADER."""
    which = stop.WhichOneof("at")
    if which == "offset":
        return stop.offset
    end = await latest(partition, timeout_s)
    return await _at_time(partition, _time_us(stop.time), end) if which == "time" else end


async def make_sure(partition: Partition, offset: int, *, timeout_s: float = LEADER_WAIT_S) -> None:
    """Has the leader asked if the offset is outside of what this node knows; for `within_range`."""
    if not holds(partition, offset):
        await latest(partition, timeout_s)


def known_start(partition: Partition, start: subscriber_pb2.StartPosition) -> int | None:
    """The offset of a checked place, if nobody has to be asked for it."""
    which = start.WhichOneof("at")
    if which == "offset":
        return start.offset if holds(partition, start.offset) else None
    earliest = which is None or (which == "edge" and start.edge == subscriber_pb2.LOG_EDGE_EARLIEST)
    return partition.log.log_start_offset if earliest and is_here(partition) else None


def holds(partition: Partition, offset: int) -> bool:
    """Whether an offset is within what this node knows."""
    return is_here(partition) and partition.log.log_start_offset <= offset <= partition.high_watermark


def is_here(partition: Partition) -> bool:
    """Whether its records are read from this node's own disk."""
    return partition.log is partition.local


async def latest(partition: Partition, timeout_s: float) -> int:
    """The end of what may be read: at least all that was acknowledged before, and known to this node from then on.

    Raises NO_LEADER.
    """
    deadline = asyncio.get_running_loop().time() + timeout_s
    end = await partition.fresh_high_watermark(timeout_s)
    await until_known(partition, end, deadline=deadline)
    return end


async def until_known(partition: Partition, end: int, *, deadline: float) -> None:
    """Returns when this node may read so far: a follower learns of it within moments. Raises NO_LEADER.

    deadline: of the loop's time.
    """
    if partition.high_watermark >= end:
        return
    changed = asyncio.Event()
    partition.add_listener(changed.set)
    try:
        async with asyncio.timeout_at(deadline):
            while partition.high_watermark < end and not partition.deleted:
                changed.clear()
                await changed.wait()
    except TimeoutError:
        raise publish_route.no_leader(f"{partition.topic}/{partition.number}") from None
    finally:
        partition.remove_listener(changed.set)


def out_of_range(partition: Partition, offset: int) -> PostbusError:
    """OUT_OF_RANGE, with the range."""
    start, end = partition.log.log_start_offset, partition.high_watermark
    return PostbusError(
        Reason.ERROR_REASON_OFFSET_OUT_OF_RANGE,
        f"{partition.topic}/{partition.number} holds offsets {start} to {end} (exclusive), not {offset}",
        metadata={
            "topic": partition.topic,
            "partition": partition.number,
            "offset": offset,
            "earliest": start,
            "latest": end,
        },
    )


def within_range(partition: Partition, offset: int, policy: int) -> int:
    """Where to go on when records at `offset` may be gone; raises OUT_OF_RANGE where the policy says so.

    An offset past the end names records that never were: it is only replaced by an explicit policy.
    """
    start, end = partition.log.log_start_offset, partition.high_watermark
    if start <= offset <= end:
        return offset
    if policy == subscriber_pb2.OUT_OF_RANGE_POLICY_LATEST:
        return end
    if policy == subscriber_pb2.OUT_OF_RANGE_POLICY_EARLIEST:
        return start
    if policy == subscriber_pb2.OUT_OF_RANGE_POLICY_UNSPECIFIED and offset < start:
        return start
    raise out_of_range(partition, offset)


def _check_edge(field: str, edge: int) -> None:
    if edge == subscriber_pb2.LOG_EDGE_UNSPECIFIED:
        raise errors.invalid_field(field, "must be LOG_EDGE_EARLIEST or LOG_EDGE_LATEST")


def _check_time(field: str, time: Timestamp) -> None:
    if not 0 <= time.seconds <= TIMESTAMP_SECONDS_MAX or not 0 <= time.nanos < 1_000_000_000:
        raise errors.invalid_field(field, "is not a time between 1970 and 9999")


def _time_us(time: Timestamp) -> int:
    # Rounded up, so that "then or later" holds to the nanosecond.
    return time.seconds * 1_000_000 + -(-time.nanos // 1000)


async def _at_time(partition: Partition, time_us: int, end_offset: int) -> int:
    source = partition.log
    try:
        return await source.offset_for_time(max(time_us, 0), end_offset=end_offset)
    except LogCorrupt:
        if await partition.another_copy(source):
            return await _at_time(partition, time_us, end_offset)
        raise
