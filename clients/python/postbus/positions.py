"""Places in a log as Python says them, turned into the API's: "earliest", 42, a datetime, an hour ago, the last ten."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from google.protobuf import duration_pb2, timestamp_pb2

from postbus import errors
from postbus.records import to_time_us
from postbus.v1 import subscriber_pb2


@dataclass(frozen=True, slots=True)
class Last:
    """So many records before the end of each partition, at most."""

    records: int


# "earliest", "latest", an offset, a moment, so long ago, or the last so many.
Start = str | int | datetime | timedelta | Last | subscriber_pb2.StartPosition
# "latest" (the end as it is at the start), an offset, or a moment; exclusive.
Stop = str | int | datetime | subscriber_pb2.StopPosition

_EDGES = {"earliest": subscriber_pb2.LOG_EDGE_EARLIEST, "latest": subscriber_pb2.LOG_EDGE_LATEST}


def duration(length: timedelta | float) -> duration_pb2.Duration:
    """Seconds or a timedelta."""
    message = duration_pb2.Duration()
    message.FromTimedelta(length if isinstance(length, timedelta) else timedelta(seconds=length))
    return message


def timestamp(moment: datetime, field: str) -> timestamp_pb2.Timestamp:
    """A moment; it must have a time zone."""
    message = timestamp_pb2.Timestamp()
    message.FromMicroseconds(to_time_us(moment, field))
    return message


def start_position(start: Start, field: str = "start") -> subscriber_pb2.StartPosition:
    """Where to begin."""
    if isinstance(start, subscriber_pb2.StartPosition):
        return start
    if isinstance(start, str) and start in _EDGES:
        return subscriber_pb2.StartPosition(edge=_EDGES[start])
    if isinstance(start, int) and not isinstance(start, bool):
        return subscriber_pb2.StartPosition(offset=start)
    if isinstance(start, datetime):
        return subscriber_pb2.StartPosition(time=timestamp(start, field))
    if isinstance(start, timedelta):
        return subscriber_pb2.StartPosition(ago=duration(start))
    if isinstance(start, Last):
        return subscriber_pb2.StartPosition(last_records=start.records)
    raise errors.InvalidArgument(
        f'{field} is {start!r}: give "earliest", "latest", an offset, a datetime, a timedelta (so long ago) or Last(n)',
        field=field,
    )


def stop_position(stop: Stop, field: str = "stop") -> subscriber_pb2.StopPosition:
    """Where to end, exclusive."""
    if isinstance(stop, subscriber_pb2.StopPosition):
        return stop
    if stop == "latest":
        return subscriber_pb2.StopPosition(edge=subscriber_pb2.LOG_EDGE_LATEST)
    if isinstance(stop, int) and not isinstance(stop, bool):
        return subscriber_pb2.StopPosition(offset=stop)
    if isinstance(stop, datetime):
        return subscriber_pb2.StopPosition(time=timestamp(stop, field))
    raise errors.InvalidArgument(f'{field} is {stop!r}: give "latest", an offset or a datetime', field=field)
