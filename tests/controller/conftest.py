"""A meta database in memory, whose fsync happens when a test says so."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest


class MemoryMeta:
    """Engine and committer in one. What was submitted becomes durable with `flush`, or at once with `auto`."""

    def __init__(self, families: dict[str, dict[bytes, bytes]] | None = None, *, auto: bool = True) -> None:
        self.families = families if families is not None else {"log": {}, "snapshot": {}}
        self.auto = auto
        self.pending: list[tuple[Sequence[Any], Callable[[], None] | None]] = []
        self.submitted_count = 0
        self._flushing = False

    def multi_get(self, family: str, keys: Sequence[bytes]) -> list[bytes | None]:
        return [self.families[family].get(key) for key in keys]

    def scan(self, family: str, begin: bytes, end: bytes, *, limit: int | None = None) -> list[tuple[bytes, bytes]]:
        found = sorted((key, value) for key, value in self.families[family].items() if begin <= key < end)
        return found[:limit]

    def submit(self, ops: Sequence[Any], *, size_bytes: int, on_durable: Callable[[], None] | None = None) -> None:
        assert size_bytes >= 0
        self.submitted_count += 1
        self.pending.append((ops, on_durable))
        if self.auto:
            self.flush()

    async def wait_for_room(self) -> None:
        return

    async def barrier(self) -> None:
        self.flush()

    def flush(self, count: int | None = None) -> None:
        """The first `count` submissions, or all, become durable; in order, as on a disk."""
        if self._flushing:
            return
        self._flushing = True
        try:
            while self.pending and (count is None or count > 0):
                ops, on_durable = self.pending.pop(0)
                for op in ops:
                    self._write(op)
                if on_durable is not None:
                    on_durable()
                count = None if count is None else count - 1
        finally:
            self._flushing = False

    def after_crash(self) -> "MemoryMeta":
        """What a new process finds: only what was durable."""
        return MemoryMeta({name: dict(entries) for name, entries in self.families.items()}, auto=self.auto)

    def _write(self, op: Any) -> None:
        match op:
            case ("put", family, key, value):
                self.families[family][key] = value
            case ("delete", family, key):
                self.families[family].pop(key, None)
            case ("delete_range", family, begin, end):
                for key in [key for key in self.families[family] if begin <= key < end]:
                    del self.families[family][key]
            case _:
                raise AssertionError(op)


@pytest.fixture
def meta() -> MemoryMeta:
    return MemoryMeta()


@pytest.fixture
def slow_meta() -> MemoryMeta:
    """Nothing is durable until `flush`."""
    return MemoryMeta(auto=False)


@pytest.fixture(scope="session")
def new_meta() -> type[MemoryMeta]:
    """For tests that need a fresh one for each example."""
    return MemoryMeta
