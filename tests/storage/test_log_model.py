"""PartitionLog against a naive list, as a leader's and as a follower's log.

Any sequence of appends, replicated appends, truncations, resets, reads, trims, retention, maintenance and reopenings.
"""

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
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from broker.clock import ManualClock
from broker.storage import envelope
from broker.storage.errors import OffsetOutOfRange
from broker.storage.log import NewBatch, PartitionLog
from broker.storage.producers import DuplicateTooOld, ProducerBatch, ProducerUnknown
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
    epoch: int
    producer: tuple[int, int] | None = None
    """Its epoch and sequence."""

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
        self.end = 0
        self.epoch = 0
        self.high_watermark = 0
        self.unsure_below = 0  # what the index had forgotten when a truncation asked it for a producer

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
    def next_in_producer(self) -> tuple[int, int]:
        """Epoch and sequence."""
        last = next((batch.producer for batch in reversed(self.batches) if batch.producer), (1, -1))
        return last[0], last[1] + 1

    @rule(
        count=st.integers(1, 20),
        size=st.sampled_from([1, 50, 900, 3000]),
        request_id=st.sampled_from([b"", b"", b"r1", b"r2"]),
        producer=st.sampled_from(["none", "next", "new epoch"]),
        step_us=st.integers(-5 * SECOND_US, 60 * SECOND_US),
        new_epoch=st.booleans(),
    )
    def append(  # noqa: PLR0917 - drawn
        self, count: int, size: int, request_id: bytes, producer: str, step_us: int, new_epoch: bool
    ) -> None:
        self.run(self.log.load_request_ids())
        before = self.log.size_bytes
        if step_us > 0:
            self.clock.advance(step_us / SECOND_US)
        now_us = self.clock.wall_us() + min(0, step_us)
        self.epoch += new_epoch
        batch = bytes([self.end % 256]) * size
        known, fields = self.draw_producer(producer)
        new = NewBatch(batch, count, request_id=request_id, leader_epoch=self.epoch, **fields)
        appended = self.log.append(new, now_us=now_us)
        assert appended.base_offset == self.end
        assert appended.append_time_us >= now_us
        assert not self.batches or appended.append_time_us >= self.batches[-1].time_us
        size_bytes = self.log.size_bytes - before
        time_us = appended.append_time_us
        self.batches.append(Expected(self.end, count, batch, time_us, request_id, size_bytes, self.epoch, known))
        self.end += count

    def draw_producer(self, producer: str) -> tuple[tuple[int, int] | None, dict[str, int]]:
        epoch, sequence = self.next_in_producer
        if producer == "none":
            return None, {}
        if producer == "next":
            last = next((batch for batch in reversed(self.batches) if batch.producer), None)
            if last is not None and last.base_offset < self.unsure_below:
                producer = "new epoch"  # it may be forgotten
        if producer == "new epoch":
            epoch, sequence = epoch + 1, 0
        return (epoch, sequence), {"producer_id": 9, "producer_epoch": epoch, "producer_sequence": sequence}

    @rule(data=st.data(), batches_count=st.integers(1, 4), new_epoch=st.booleans())
    def replicate(self, data: st.DataObject, batches_count: int, new_epoch: bool) -> None:
        """As a follower: the leader's log may have gaps, and after a reset may start inside a batch."""
        self.epoch += new_epoch
        envelopes = []
        for _ in range(batches_count):
            base = self.end + data.draw(st.sampled_from([0, 0, 0, 1, 5]))
            if not self.batches and self.start == self.end and not envelopes and base == self.end > 0:
                base -= data.draw(st.integers(0, min(3, self.end)))
            count = data.draw(st.integers(1, 10)) + max(0, self.end - base)
            request_id = data.draw(st.sampled_from([b"", b"r1", b"r2"]))
            known, fields = self.draw_producer(data.draw(st.sampled_from(["none", "next", "new epoch"])))
            time_us = max(self.clock.wall_us(), self.batches[-1].time_us if self.batches else 0)
            batch = bytes([base % 256]) * data.draw(st.sampled_from([1, 3000]))
            value, _ = envelope.encode(
                batch,
                base_offset=base,
                record_count=count,
                append_time_us=time_us,
                leader_epoch=self.epoch,
                request_id=request_id,
                **fields,
            )
            envelopes.append(value)
            self.batches.append(Expected(base, count, batch, time_us, request_id, len(value), self.epoch, known))
            self.end = base + count
        assert self.log.append_replicated(envelopes) == self.end

    @rule(data=st.data(), clean=st.booleans())
    def truncate(self, data: st.DataObject, clean: bool) -> None:
        """Sometimes below the high watermark, as after an unclean election."""
        least = max(self.start, self.high_watermark) if clean else self.start
        to = data.draw(st.integers(least, self.end + 1))
        self.run(self.log.barrier())
        index_deleted = self.log._state.index_deleted_offset
        end = self.run(self.log.truncate(to))
        inside = next((b.base_offset for b in self.batches if b.base_offset < to < b.end_offset), to)
        assert end == (self.end if to >= self.end else max(inside, self.start))
        if to >= self.end:
            return
        self.batches = [b for b in self.batches if b.end_offset <= inside]
        self.end = end
        self.high_watermark = min(self.high_watermark, end)
        self.unsure_below = max(self.unsure_below, index_deleted)
        assert self.log.durable_end_offset == end

    @rule(ahead=st.integers(0, 30))
    def reset(self, ahead: int) -> None:
        self.start = self.end = self.high_watermark = self.end + ahead
        self.run(self.log.reset(self.end))
        self.batches = []
        self.unsure_below = 0

    @rule(data=st.data())
    def move_high_watermark(self, data: st.DataObject) -> None:
        to = data.draw(st.integers(0, self.end))
        self.log.set_high_watermark(to)
        self.high_watermark = max(self.high_watermark, to)

    @rule(data=st.data())
    def ask_for_epochs(self, data: st.DataObject) -> None:
        epoch = data.draw(st.integers(0, self.epoch + 1))
        live = [b for b in self.batches if b.end_offset > self.start]
        at_most = [b.epoch for b in live if b.epoch <= epoch]
        if at_most:
            after = next((b.base_offset for b in live if b.epoch > epoch), self.end)
            assert self.log.end_offset_for_epoch(epoch) == (at_most[-1], after)
        if live:
            assert self.log.last_epoch == live[-1].epoch

    @rule()
    def flush(self) -> None:
        self.run(self.log.barrier())
        assert self.log.durable_end_offset == self.log.written_end_offset == self.end

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
        wanted = [b for b in self.batches if b.end_offset > max(offset, self.start) and b.base_offset < end_offset]
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
        self.high_watermark = self.end
        kept = next((b.base_offset for b in self.batches if b.time_us >= now_us - age_us), self.end)
        self.run(self.log.apply_retention(now_us, age_us, None))
        self.start = max(self.start, kept)

    @rule(bytes_max=st.integers(0, 20_000))
    def retain_by_size(self, bytes_max: int) -> None:
        self.run(self.log.barrier())
        self.log.set_high_watermark(self.end)
        self.high_watermark = self.end
        self.run(self.store.maintain())  # so that the size is exact
        self.run(self.log.apply_retention(self.clock.wall_us(), None, bytes_max))
        kept, total = self.end, 0
        for batch in reversed(self.batches):
            total += batch.size_bytes
            if total > bytes_max and kept < self.end:
                break
            kept = batch.base_offset
        if total <= bytes_max:
            kept = self.start  # all of it fits
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
            found = self.log.request_ids.find(request_id)
            parts = [
                RequestPart(b.base_offset, b.count, b.time_us, ())
                for b in self.batches
                if b.request_id == request_id and b.time_us >= now_us - WINDOW_US
            ]
            assert found[len(found) - len(parts) :] == tuple(parts)
            assert bool(found) == bool(parts)

    @rule()
    def ask_for_producer(self) -> None:
        """All above the high watermark is known, and the last five below; of what is still there at least."""
        self.run(self.log.load_request_ids())
        epoch, sequence = self.next_in_producer
        known = [b for b in self.batches if b.producer and b.producer[0] == epoch]
        above = [b for b in known if b.end_offset > self.high_watermark]
        for batch in known[-max(5, len(above)) :]:
            assert batch.producer is not None
            try:
                found = self.log.producers.check(9, epoch, batch.producer[1])
            except (DuplicateTooOld, ProducerUnknown):
                assert batch.base_offset < self.unsure_below
            else:
                assert found == ProducerBatch(batch.producer[1], batch.base_offset, batch.end_offset, batch.time_us)
        if known and known[-1].base_offset >= self.unsure_below:
            assert self.log.producers.check(9, epoch, sequence) is None

    @invariant()
    def bounds_are_as_expected(self) -> None:
        if hasattr(self, "store"):
            assert self.log.log_start_offset == self.start
            assert self.log.end_offset == self.end
            assert self.log.durable_end_offset <= self.end
            assert self.log.high_watermark == self.high_watermark

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.run(self.store.close())
        self.loop.close()
        shutil.rmtree(self.folder)


TestLogModel = LogMachine.TestCase
TestLogModel.settings = settings(
    max_examples=20, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
