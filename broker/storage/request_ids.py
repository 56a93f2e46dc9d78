"""Deduplication by request id: which requests were appended to a log within the window, and where.

Derived from the log: `PartitionLog.load_request_ids` rebuilds it from the index. An id inside the window is never
evicted: at the bound, new requests with an id are refused instead.

Ages are counted on the monotonic clock, which is handed in: a wall clock that jumps ahead, here or on a node that led
before, must not make ids look old while their requests are still being repeated. Append times, which are wall time,
count only for what was not seen as it came: for what is read from the index, and for records that come all at once
to a replica that catches up.
"""

from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from broker.storage.errors import StorageError

DEFAULT_WINDOW_US: Final = 5 * 60 * 1_000_000
# After a pause all of them leave the window at once: 200,000 in one go would hold up the loop for 80 ms a partition.
EXPIRED_AT_ONCE_MAX: Final = 1_000
# Between two records that come at once, more than this is taken for a clock that jumped.
GAP_US_MAX: Final = 30 * 1_000_000


class RequestPart(NamedTuple):
    """A batch that holds (part of) a request."""

    base_offset: int
    record_count: int
    append_time_us: int
    record_indexes: tuple[int, ...]
    """Which records of the request; empty: all."""


class RequestIdsFull(StorageError):  # noqa: N818 - an outcome
    """As many ids are inside the window as may be remembered."""

    def __init__(self, *, count: int, retry_after_us: int) -> None:
        super().__init__(f"{count} request ids are inside the deduplication window")
        self.count = count
        self.retry_after_us = retry_after_us


class _Request(NamedTuple):
    seen_us: int
    """When its newest part was appended, by the table's own time."""
    parts: tuple[RequestPart, ...]


class RequestIdTable:
    """The request ids of one log, in order of their newest part."""

    def __init__(
        self, *, monotonic: Callable[[], float], window_us: int = DEFAULT_WINDOW_US, request_ids_max: int = 200_000
    ) -> None:
        """monotonic: seconds since some moment, of a clock that never jumps."""
        self.window_us = window_us
        """The topic's setting; may change at any time."""
        self.request_ids_max = request_ids_max
        self._monotonic = monotonic
        self._requests: dict[bytes, _Request] = {}
        # The table's own time: the monotonic clock, but for records that come faster than they were appended.
        self._ahead_us = 0
        self._passed_us = 0  # when `passed` was called last
        self._append_time_us: int | None = None  # what it was told then

    def __len__(self) -> int:
        return len(self._requests)

    def find(self, request_id: bytes) -> tuple[RequestPart, ...]:
        """What was appended of this request within the window; empty: nothing."""
        self.expire()
        request = self._requests.get(request_id)
        if request is None:
            return ()
        if request.seen_us < self._now_us - self.window_us:
            del self._requests[request_id]
            return ()
        return request.parts

    def check_room(self, request_id: bytes) -> None:
        """Raises RequestIdsFull if this id is new and there is no room for it."""
        if request_id in self._requests or len(self._requests) < self.request_ids_max:
            return
        self.expire()
        if len(self._requests) >= self.request_ids_max:
            oldest_us = next(iter(self._requests.values())).seen_us
            retry_after_us = max(1, oldest_us + self.window_us - self._now_us)
            raise RequestIdsFull(count=len(self._requests), retry_after_us=retry_after_us)

    def passed(self, append_time_us: int) -> None:
        """A batch was appended, with or without an id; append times never fall."""
        now_us = self._now_us
        if self._append_time_us is not None:
            leap_us = min(append_time_us - self._append_time_us, GAP_US_MAX) - (now_us - self._passed_us)
            if leap_us > 0:
                self._ahead_us += leap_us
                now_us += leap_us
        self._passed_us, self._append_time_us = now_us, append_time_us

    def add(self, request_id: bytes, part: RequestPart) -> None:
        """Remembers a part of a batch that `passed` was told of."""
        self._add(request_id, part, seen_us=self._passed_us)

    def log_time_us(self, wall_us: int) -> int:
        """What append times are to be compared with to tell how old they are; wall_us: the time here."""
        if self._append_time_us is None:
            return wall_us
        # One of the two clocks may have jumped ahead.
        return min(wall_us, self._append_time_us + self._now_us - self._passed_us)

    def add_all(self, parts: Iterable[tuple[bytes, RequestPart]], *, log_time_us: int) -> None:
        """Remembers parts that were read from the log, in its order."""
        now_us = self._now_us
        for request_id, part in parts:
            self._add(request_id, part, seen_us=now_us - max(0, log_time_us - part.append_time_us))
        # A leader has refused what was too much within the window: the oldest were outside.
        while len(self._requests) > self.request_ids_max:
            del self._requests[next(iter(self._requests))]

    def cut(self, end_offset: int) -> None:
        """Forgets the parts from there on: the log was truncated."""
        changed: dict[bytes, _Request] = {}
        for request_id, request in reversed(self._requests.items()):
            if request.parts[-1].base_offset < end_offset:
                break  # they are in the order of their newest part
            parts = tuple(part for part in request.parts if part.base_offset < end_offset)
            changed[request_id] = _Request(request.seen_us, parts)
        for request_id in changed:
            del self._requests[request_id]
        remaining = [(request_id, request) for request_id, request in changed.items() if request.parts]
        if remaining:
            in_order = sorted([*self._requests.items(), *remaining], key=lambda item: item[1].parts[-1].base_offset)
            self._requests = dict(in_order)

    def clear(self) -> None:
        """Forgets everything."""
        self._requests.clear()

    def expire(self) -> None:
        """Forgets ids whose newest part has left the window; many of them over several calls."""
        before_us = self._now_us - self.window_us
        expired: list[bytes] = []
        for request_id, request in self._requests.items():
            if request.seen_us >= before_us or len(expired) >= EXPIRED_AT_ONCE_MAX:
                break
            expired.append(request_id)
        for request_id in expired:
            del self._requests[request_id]

    @property
    def _now_us(self) -> int:
        return round(self._monotonic() * 1_000_000) + self._ahead_us

    def _add(self, request_id: bytes, part: RequestPart, *, seen_us: int) -> None:
        earlier = self._requests.pop(request_id, None)
        self._requests[request_id] = _Request(seen_us, (part,) if earlier is None else (*earlier.parts, part))
