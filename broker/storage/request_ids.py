"""Deduplication by request id: which requests were appended to a log within the window, and where.

Pure, and derived from the log: `PartitionLog.load_request_ids` rebuilds it from the index. An id inside the window is
never evicted: at the bound, new requests with an id are refused instead.
"""

from collections.abc import Iterable
from typing import Final, NamedTuple

from broker.storage.errors import StorageError

DEFAULT_WINDOW_US: Final = 5 * 60 * 1_000_000
# After a pause all of them leave the window at once: 200,000 in one go would hold up the loop for 80 ms a partition.
EXPIRED_AT_ONCE_MAX: Final = 1_000


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


class RequestIdTable:
    """The request ids of one log, in order of their newest part."""

    def __init__(self, *, window_us: int = DEFAULT_WINDOW_US, request_ids_max: int = 200_000) -> None:
        self.window_us = window_us
        """The topic's setting; may change at any time."""
        self.request_ids_max = request_ids_max
        self._parts: dict[bytes, tuple[RequestPart, ...]] = {}

    def __len__(self) -> int:
        return len(self._parts)

    def find(self, request_id: bytes, *, now_us: int) -> tuple[RequestPart, ...]:
        """What was appended of this request within the window; empty: nothing."""
        self.expire(now_us)
        parts = self._parts.get(request_id, ())
        if parts and parts[-1].append_time_us < now_us - self.window_us:
            del self._parts[request_id]
            return ()
        return parts

    def check_room(self, request_id: bytes, *, now_us: int) -> None:
        """Raises RequestIdsFull if this id is new and there is no room for it."""
        if request_id in self._parts or len(self._parts) < self.request_ids_max:
            return
        self.expire(now_us)
        if len(self._parts) >= self.request_ids_max:
            oldest = next(iter(self._parts.values()))[-1].append_time_us
            raise RequestIdsFull(count=len(self._parts), retry_after_us=max(1, oldest + self.window_us - now_us))

    def add(self, request_id: bytes, part: RequestPart) -> None:
        """Remembers a part that was appended. Append times never fall."""
        earlier = self._parts.pop(request_id, ())
        self._parts[request_id] = (*earlier, part)

    def add_all(self, parts: Iterable[tuple[bytes, RequestPart]]) -> None:
        """Remembers parts in the order of the log."""
        for request_id, part in parts:
            self.add(request_id, part)

    def cut(self, end_offset: int) -> None:
        """Forgets the parts from there on: the log was truncated."""
        kept: dict[bytes, tuple[RequestPart, ...]] = {}
        for request_id, parts in reversed(self._parts.items()):
            if parts[-1].base_offset < end_offset:
                break  # they are in the order of their newest part
            kept[request_id] = tuple(part for part in parts if part.base_offset < end_offset)
        for request_id in kept:
            del self._parts[request_id]
        remaining = [(request_id, parts) for request_id, parts in kept.items() if parts]
        if remaining:
            in_order = sorted([*self._parts.items(), *remaining], key=lambda item: item[1][-1].base_offset)
            self._parts = dict(in_order)

    def clear(self) -> None:
        """Forgets everything."""
        self._parts.clear()

    def expire(self, now_us: int) -> None:
        """Forgets ids whose newest part has left the window; many of them over several calls."""
        before_us = now_us - self.window_us
        expired: list[bytes] = []
        for request_id, parts in self._parts.items():
            if parts[-1].append_time_us >= before_us or len(expired) >= EXPIRED_AT_ONCE_MAX:
                break
            expired.append(request_id)
        for request_id in expired:
            del self._parts[request_id]
