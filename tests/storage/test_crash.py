"""kill -9 in the middle of appending, again and again: every acknowledged batch is there, whole, once, in order."""

import importlib.util
import random
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from broker.clock import SystemClock
from broker.storage.store import LogStore

CHILD = Path(__file__).with_name("crash_child.py")
KILLS = 6
ACKS_MIN = 30


@pytest.fixture
def child() -> ModuleType:
    spec = importlib.util.spec_from_file_location("crash_child", CHILD)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_and_kill(folder: Path, acks: int) -> dict[int, int]:
    """Lets the child acknowledge that often, kills it, and returns what it acknowledged: end offset by log."""
    process = subprocess.Popen([sys.executable, str(CHILD), str(folder)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    lines = []
    try:
        for line in process.stdout:
            lines.append(line)
            if len(lines) > acks:
                break
    finally:
        process.kill()
        # What it had said before it died counts too.
        lines += process.communicate()[0].splitlines(keepends=True)
    assert process.returncode == -9
    acknowledged = {}
    for line in lines:
        if line.endswith(b"\n") and line != b"open\n":
            log_id, end_offset = map(int, line.split())
            acknowledged[log_id] = end_offset
    return acknowledged


async def test_every_acknowledged_batch_survives(tmp_path: Path, child: ModuleType) -> None:
    folder = tmp_path / "store"
    kills = random.Random(20)
    checked = 0
    for _ in range(KILLS):
        acknowledged = run_and_kill(folder, ACKS_MIN + kills.randrange(200))
        assert set(acknowledged) == set(child.LOGS), "a run that acknowledged nothing proves nothing"
        store = await LogStore.open(folder, child.SETTINGS, SystemClock(), lambda error: None)
        assert not store.recovery.clean
        for log_id in child.LOGS:
            log = store.log(log_id)
            assert log.end_offset >= acknowledged[log_id]
            offset = 0
            while offset < log.end_offset:
                for batch in await log.read(offset, end_offset=log.end_offset, max_bytes=8 << 20):
                    assert batch.base_offset == offset
                    assert (bytes(batch.batch), batch.record_count) == child.batch_of(log_id, offset)
                    offset = batch.end_offset
                    checked += 1
            # The same write carried the state and the producer: they agree with the batches.
            child.next_sequence(log)
        await store.close()
    assert checked > KILLS * ACKS_MIN
