"""A fake broker on a free port for each test, and clients of it."""

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from postbus import Client

# No package here (tests are imported by path), so the fake's folder has to be named.
sys.path.insert(0, str(Path(__file__).parent))

from fake_broker import FakeBroker


@pytest.fixture
async def broker() -> AsyncIterator[FakeBroker]:
    """In this process and in memory, with the topic "orders" of six partitions and "single" of one."""
    fake = FakeBroker()
    fake.create("orders", 6)
    fake.create("single", 1)
    await fake.start()
    yield fake
    await fake.stop()


@pytest.fixture
async def client(broker: FakeBroker) -> AsyncIterator[Client]:
    """Connected to it."""
    async with Client(broker.address) as connected:
        yield connected
