"""Real RocksDB in a temporary folder; a clock that stands still; stores that are closed whatever happens."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from broker.clock import ManualClock
from broker.storage.store import LogStore, StorageSettings

OpenStore = Callable[..., Awaitable[LogStore]]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def fatal_errors() -> list[Exception]:
    """What on_fatal was called with."""
    return []


@pytest.fixture
async def open_store(tmp_path: Path, clock: ManualClock, fatal_errors: list[Exception]) -> AsyncIterator[OpenStore]:
    """open_store(**settings) opens the store in tmp_path/store."""
    stores: list[LogStore] = []

    async def open_store(*, free_bytes: Callable[[Path], int] = lambda path: 1 << 40, **settings: Any) -> LogStore:
        store = await LogStore.open(
            tmp_path / "store", StorageSettings(**settings), clock, fatal_errors.append, free_bytes=free_bytes
        )
        stores.append(store)
        return store

    yield open_store
    for store in stores:
        await store.close()
    await asyncio.sleep(0)


@pytest.fixture
async def store(open_store: OpenStore) -> LogStore:
    return await open_store()
