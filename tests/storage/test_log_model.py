"""PartitionLog against a naive list: any sequence of appends, reads, trims, retention, maintenance and reopenings."""

import asyncio
import shutil
import tempfile
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from broker.clock import ManualClock
from broker.storage.errors import OffsetOutOfRange
from broker.storage.log import NewBatch, PartitionLog
from broker.storage.producers import ProducerBatch
from broker.storage.request_ids import RequestPart
from broker.storage.store import LogStore, StorageSettings

T = TypeVar("T")
SECOND_US = 1_000_000
WINDOW_US = 300 * SECOND_US
# Small enough that most reads go to RocksDB, large enough that some don't.
SETTINGS = StorageSettings(tail_bytes_max=3000, memtable_bytes=1 << 20)


@dataclass
class Expected:
    base_offset: int
    count: int
    batch: bytes
    time_us: int
    request_id: bytes
    size_bytes: int

    @property
    def end_offset(self) -> int:
        return self.base_offset + self.count


class LogMachine(RuleBasedStateMachine):
    """The model keeps every batch for ever, and a log start."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = Path(tempfile.mkdtemp(prefix="postbus-log-model-"))
        self.clock = ManualClock()
        self.batches: list[Expected] = []
        self.start = 0
        self.sequence = 0
        self.producer_batches: list[ProducerBatch] = []

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    @initialize()
    def open(self) -> None:
        self.store = self.run(LogStore.open(self.folder / "store", SETTINGS, self.clock, self.fail))
        # Neighbours on both sides: nothing of theirs may ever be seen.
        for log_id in (6, 7, 8):
            self.store.create_log(log_id)
        for log_id in (6, 8):
            self.store.log(log_id).append(NewBatch(b"neighbour", 1000), now_us=self.clock.wall_us())
        self.run(self.store.barrier())

    def fail(self, error: Exception) -> None:
        raise error

    @property
    def log(self) -> PartitionLog:
        return self.store.log(7)

    @property
    def end(self) -> int:
        return self.batches[-1].end_offset if self.batches else 0

    @rule(
        count=st.integers(1, 20),
        size=st.sampled_from([1, 50, 900, 3000]),
        request_id=st.sampled_from([b"", b"", b"r1", b"r2"]),
        with_producer=st.booleans(),
        step_us=st.integers(-5 * SECOND_US, 60 * SECOND_US),
    )
    def append(self, count: int, size: int, request_id: bytes, with_producer: bool, step_us: int) -> None:
        self.run(self.log.load_request_ids())
        before = self.log.size_bytes
        if step_us > 0:
            self.clock.advance(step_us / SECOND_US)
        now_us = self.clock.wall_us() + min(0, step_us)
        batch = bytes([self.end % 256]) * size
        producer = {"producer_id": 9, "producer_epoch": 1, "producer_sequence": self.sequence} if with_producer else {}
        appended = self.log.append(NewBatch(batch, count, request_id=request_id, **producer), now_us=now_us)
        assert appended.base_offset == self.end
        assert appended.append_time_us >= now_us
        assert not self.batches or appended.append_time_us >= self.batches[-1].time_us
        expected = Expected(self.end, count, batch, appended.append_time_us, request_id, self.log.size_bytes - before)
        if with_producer:
            self.sequence += 1
            self.producer_batches.append(
                ProducerBatch(self.sequence - 1, self.end, self.end + count, appended.append_time_us)
            )
        self.batches.append(expected)

    @rule()
    def flush(self) -> None:
        self.run(self.log.barrier())
        assert self.log.durable_end_offset == self.end

    @rule(data=st.data())
    def read(self, data: st.DataObject) -> None:
        self.run(self.log.barrier())
        offset = data.draw(st.integers(0, self.end + 2))
        end_offset = data.draw(st.integers(0, self.end))
        max_bytes = data.draw(st.sampled_from([0, 100, 2000, 1 << 20]))
        if not self.start <= offset <= self.end:
            with pytest.raises(OffsetOutOfRange):
                self.run(self.log.read(offset, end_offset=end_offset, max_bytes=max_bytes))
            return
        found = self.run(self.log.read(offset, end_offset=end_offset, max_bytes=max_bytes))
        wanted = [b for b in self.batches if b.end_offset > offset and b.base_offset < end_offset]
        if offset >= end_offset:
            wanted = []
        assert len(found) <= len(wanted)
        assert bool(found) == bool(wanted)
        for batch, expected in zip(found, wanted, strict=False):
            assert (batch.base_offset, batch.record_count) == (expected.base_offset, expected.count)
            assert bytes(batch.batch) == expected.batch
            assert batch.append_time_us == expected.time_us
        if max_bytes == 1 << 20:
            assert len(found) == len(wanted)

    @rule(data=st.data())
    def find_time(self, data: st.DataObject) -> None:
        self.run(self.log.barrier())
        times = [b.time_us for b in self.batches] or [0]
        time_us = data.draw(st.sampled_from(times)) + data.draw(st.integers(-1, 1))
        end_offset = data.draw(st.integers(self.start, self.end))
        expected = next(
            (b.base_offset for b in self.batches if b.time_us >= time_us and b.end_offset > self.start), None
        )
        expected = end_offset if expected is None else min(end_offset, max(expected, self.start))
        assert self.run(self.log.offset_for_time(time_us, end_offset=end_offset)) == expected

    @rule(data=st.data())
    def trim(self, data: st.DataObject) -> None:
        self.run(self.log.barrier())
        to = data.draw(st.integers(0, self.end))
        self.log.trim(to)
        self.start = max(self.start, to)

    @rule(age_us=st.integers(0, 200 * SECOND_US))
    def retain_by_time(self, age_us: int) -> None:
        self.run(self.log.barrier())
        now_us = self.clock.wall_us()
        self.log.set_high_watermark(self.end)
        kept = next((b.base_offset for b in self.batches if b.time_us >= now_us - age_us), self.end)
        self.run(self.log.apply_retention(now_us, age_us, None))
        self.start = max(self.start, kept)

    @rule(bytes_max=st.integers(0, 20_000))
    def retain_by_size(self, bytes_max: int) -> None:
        self.run(self.log.barrier())
        self.log.set_high_watermark(self.end)
        self.run(self.store.maintain())  # so that the size is exact
        self.run(self.log.apply_retention(self.clock.wall_us(), None, bytes_max))
        kept, total = self.end, 0
        for batch in reversed(self.batches):
            total += batch.size_bytes
            if total > bytes_max and kept < self.end:
                break
            kept = batch.base_offset
        if self.start < self.end:
            self.start = max(self.start, kept)

    @rule()
    def maintain(self) -> None:
        self.run(self.store.maintain())
        live = [b.size_bytes for b in self.batches if b.end_offset > self.start]
        if self.log.durable_end_offset == self.end:
            assert self.log.size_bytes == sum(live)

    @rule(seconds=st.sampled_from([1, 100, 400]))
    def pass_time(self, seconds: int) -> None:
        self.clock.advance(seconds)

    @rule()
    def reopen(self) -> None:
        self.run(self.store.close())
        self.store = self.run(LogStore.open(self.folder / "store", SETTINGS, self.clock, self.fail))
        assert self.store.recovery.clean

    @rule()
    def ask_for_requests(self) -> None:
        """What is inside the window is known, whatever was trimmed or reopened."""
        self.run(self.log.load_request_ids())
        now_us = max(self.clock.wall_us(), self.log.last_append_time_us)
        for request_id in (b"r1", b"r2"):
            found = self.log.request_ids.find(request_id, now_us=now_us)
            parts = [
                RequestPart(b.base_offset, b.count, b.time_us, ())
                for b in self.batches
                if b.request_id == request_id and b.time_us >= now_us - WINDOW_US
            ]
            assert found[len(found) - len(parts) :] == tuple(parts)
            assert bool(found) == bool(parts)

    @precondition(lambda self: self.producer_batches)
    @rule()
    def ask_for_producer(self) -> None:
        for batch in self.producer_batches[-5:]:
            assert self.log.producers.check(9, 1, batch.sequence) == batch
        assert self.log.producers.check(9, 1, self.sequence) is None

    @invariant()
    def bounds_are_as_expected(self) -> None:
        if hasattr(self, "store"):
            assert self.log.log_start_offset == self.start
            assert self.log.end_offset == self.end
            assert self.log.durable_end_offset <= self.end

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.run(self.store.close())
        self.loop.close()
        shutil.rmtree(self.folder)


TestLogModel = LogMachine.TestCase
TestLogModel.settings = settings(
    max_examples=20, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
