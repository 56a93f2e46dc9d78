"""Two nodes that ask each other, in memory."""

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

# No package here (tests are imported by path), so the transport's folder has to be named.
sys.path.insert(0, str(Path(__file__).parent))

from memory_transport import MemoryNetwork


@pytest.fixture
async def network() -> AsyncIterator[MemoryNetwork]:
    """A network without nodes."""
    yield MemoryNetwork()
