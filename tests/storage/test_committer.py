"""Group commit: in order, one wake-up a group, nothing told durable that is not, and nothing at all after a failure."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import pytest

from broker.storage.committer import Committer, CommitterSettings
from broker.storage.durable_mark import DurableMark, read_mark
from broker.storage.engine import Op
from broker.storage.errors import StorageError, StoreFailed, WriteStalled


class FakeDisk:
    """Remembers what it is told; `gate` holds the thread before a write, `fail_*` make it fail."""

    def __init__(self) -> None:
        self.written: list[Op] = []
        self.writes: list[list[Op]] = []
        self.durable_count = 0
        self.flushes = 0
        self.stalls = 0
        self.fail_write: Exception | None = None
        self.fail_flush: Exception | None = None
        self.gate = threading.Event()
        self.gate.set()

    def write(self, ops: Sequence[Op]) -> None:
        self.gate.wait()
        if self.stalls:
            self.stalls -= 1
            raise WriteStalled("Result incomplete: Write stall")
        if self.fail_write:
            raise self.fail_write
        self.writes.append(list(ops))
        self.written.extend(ops)

    def flush_wal(self) -> None:
        if self.fail_flush:
            raise self.fail_flush
        self.flushes += 1
        self.durable_count = len(self.written)

    def sequence(self) -> int:
        return len(self.written)


def op(number: int) -> Op:
    return ("put", "log", b"%d" % number, b"")


Make = Callable[..., Committer]


@pytest.fixture
def disk() -> FakeDisk:
    return FakeDisk()


@pytest.fixture
def fatal() -> list[Exception]:
    return []


@pytest.fixture
async def make(disk: FakeDisk, fatal: list[Exception], tmp_path: Path) -> AsyncIterator[Make]:
    made: list[Committer] = []

    def make(**settings: int) -> Committer:
        committer = Committer(
            disk,
            DurableMark(tmp_path / "mark"),
            loop=asyncio.get_running_loop(),
            on_fatal=fatal.append,
            settings=CommitterSettings(**settings),
        )
        made.append(committer)
        return committer

    yield make
    disk.gate.set()
    for committer in made:
        await committer.close()


async def test_what_is_told_durable_was_flushed_in_order(make: Make, disk: FakeDisk) -> None:
    committer = make()
    told: list[int] = []

    def durable(number: int) -> Callable[[], None]:
        def tell() -> None:
            assert disk.durable_count > number
            told.append(number)

        return tell

    for number in range(100):
        committer.submit([op(number)], size_bytes=10, on_durable=durable(number))
        if number % 7 == 0:
            await asyncio.sleep(0)
    await committer.barrier()
    assert told == list(range(100))
    assert disk.written == [op(number) for number in range(100)]


async def test_what_waits_together_is_fsynced_together(make: Make, disk: FakeDisk) -> None:
    committer = make()
    disk.gate.clear()
    committer.submit([op(0)], size_bytes=1)
    for number in range(1, 50):
        committer.submit([op(number)], size_bytes=1)
    disk.gate.set()
    await committer.barrier()
    assert disk.flushes <= 3
    assert len(disk.written) == 50


async def test_a_listener_is_told_once_a_group(make: Make, disk: FakeDisk) -> None:
    class Listener:
        wants_written = False

        def __init__(self) -> None:
            self.tickets: list[int] = []

        def written(self, ticket: int) -> None:
            raise AssertionError("not asked for")

        def durable(self, ticket: int) -> None:
            self.tickets.append(ticket)

    committer, listener = make(), Listener()
    disk.gate.clear()
    for number in range(50):
        ticket = committer.submit([op(number)], size_bytes=1, listener=listener)
    disk.gate.set()
    await committer.barrier()
    assert listener.tickets[-1] == ticket
    assert len(listener.tickets) <= 3


async def test_written_is_told_before_durable(make: Make) -> None:
    committer = make()
    told: list[str] = []
    committer.submit(
        [op(0)], size_bytes=1, on_written=lambda: told.append("written"), on_durable=lambda: told.append("durable")
    )
    await committer.barrier()
    assert told == ["written", "durable"]


async def test_a_group_is_cut_at_its_bounds(make: Make, disk: FakeDisk) -> None:
    committer = make(group_bytes_max=100, write_bytes_max=25)
    disk.gate.clear()
    for number in range(40):
        committer.submit([op(number), op(number)], size_bytes=10)
    disk.gate.set()
    await committer.barrier()
    assert max(len(write) for write in disk.writes) == 4  # two submissions of 10 bytes fit into 25
    assert all(write[::2] == write[1::2] for write in disk.writes), "a submission is never split"
    assert disk.flushes >= 4


async def test_a_key_that_is_overwritten_in_the_same_write_is_written_once(
    disk: FakeDisk, fatal: list[Exception], tmp_path: Path
) -> None:
    """Only in the families named; deletions keep their place among the puts."""
    committer = Committer(
        disk,
        DurableMark(tmp_path / "mark"),
        loop=asyncio.get_running_loop(),
        on_fatal=fatal.append,
        overwritten_families=frozenset({"state"}),
    )
    ops: list[Op] = [
        ("put", "log", b"k", b"1"),
        ("put", "state", b"a", b"1"),
        ("put", "state", b"b", b"1"),
        ("put", "log", b"k", b"2"),
        ("put", "state", b"a", b"2"),
        ("delete", "state", b"b"),
        ("delete_range", "state", b"a", b"b"),
        ("put", "state", b"a", b"3"),
    ]
    committer.submit(ops, size_bytes=1)
    await committer.close()
    assert disk.written == [ops[0], ops[2], ops[3], ops[5], ops[6], ops[7]]


async def test_a_stalled_write_is_tried_again_and_loses_nothing(make: Make, disk: FakeDisk) -> None:
    committer = make()
    disk.stalls = 3
    for number in range(5):
        committer.submit([op(number)], size_bytes=1)
    await committer.barrier()
    assert disk.written == [op(number) for number in range(5)]
    assert committer.stalls_count == 3


async def test_a_stall_without_end_is_a_failure(make: Make, disk: FakeDisk, fatal: list[Exception]) -> None:
    committer = make(write_stall_timeout_ms=0)
    disk.stalls = 1_000_000
    committer.submit([op(0)], size_bytes=1)
    with pytest.raises(StoreFailed):
        await committer.barrier()
    assert len(fatal) == 1


@pytest.mark.parametrize("where", ["fail_write", "fail_flush"])
async def test_after_a_failure_nothing_is_told_durable(
    make: Make, disk: FakeDisk, fatal: list[Exception], where: str
) -> None:
    """EIO: on_fatal once; what was in flight, queued or comes later is never acknowledged, even if it recovers."""
    committer = make()
    told: list[int] = []
    committer.submit([op(0)], size_bytes=1, on_durable=lambda: told.append(0))
    await committer.barrier()
    setattr(disk, where, StoreFailed("IO error: Input/output error"))
    flushes = disk.flushes
    for number in range(1, 20):
        committer.submit([op(number)], size_bytes=1, on_durable=lambda number=number: told.append(number))
    with pytest.raises(StoreFailed):
        await committer.barrier()
    setattr(disk, where, None)
    with pytest.raises(StoreFailed):
        committer.submit([op(20)], size_bytes=1, on_durable=lambda: told.append(20))
    with pytest.raises(StoreFailed):
        await committer.wait_for_room()
    await committer.close()
    assert told == [0]
    assert disk.flushes == flushes, "an fsync is never tried again"
    assert [str(error) for error in fatal] == ["IO error: Input/output error"]


async def test_an_unforeseen_exception_is_as_fatal(make: Make, disk: FakeDisk, fatal: list[Exception]) -> None:
    committer = make()
    disk.fail_write = ValueError("a bug")
    committer.submit([op(0)], size_bytes=1)
    with pytest.raises(StorageError):
        await committer.barrier()
    assert len(fatal) == 1


async def test_one_failing_listener_does_not_keep_others_from_their_answer(make: Make) -> None:
    committer = make()
    reported: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: reported.append(context))
    told: list[int] = []

    def fail() -> None:
        raise ValueError("a bug")

    committer.submit([op(0)], size_bytes=1, on_durable=fail)
    committer.submit([op(1)], size_bytes=1, on_durable=lambda: told.append(1))
    await committer.barrier()
    assert told == [1]
    assert [type(context["exception"]) for context in reported] == [ValueError]


async def test_publishers_wait_in_turn_while_the_queue_is_full(make: Make, disk: FakeDisk) -> None:
    """The queue never exceeds its bound by more than one submission, and who came first goes first."""
    committer = make(append_queue_bytes_max=100, group_bytes_max=10, write_bytes_max=10)
    disk.gate.clear()
    order: list[int] = []
    most = 0

    async def publish(number: int) -> None:
        nonlocal most
        await committer.wait_for_room()
        order.append(number)
        committer.submit([op(number)], size_bytes=30)
        most = max(most, committer.queued_bytes)

    publishers = [asyncio.ensure_future(publish(number)) for number in range(30)]
    await asyncio.sleep(0)
    assert order == [0, 1, 2, 3]
    disk.gate.set()
    await asyncio.gather(*publishers)
    assert order == list(range(30))
    assert most <= 129
    await committer.barrier()
    assert committer.queued_bytes == 0


async def test_a_cancelled_waiter_holds_nobody_up(make: Make, disk: FakeDisk) -> None:
    committer = make(append_queue_bytes_max=10)
    disk.gate.clear()
    committer.submit([op(0)], size_bytes=10)
    waiters = [asyncio.ensure_future(committer.wait_for_room()) for _ in range(4)]
    await asyncio.sleep(0)
    waiters[0].cancel()
    disk.gate.set()
    await waiters[1]
    # Cancelled in the very moment of its turn: the turn passes on.
    waiters[2].cancel()
    await waiters[3]
    assert waiters[0].cancelled()


async def test_closing_drains_and_tells(make: Make, disk: FakeDisk) -> None:
    committer = make()
    told: list[int] = []
    for number in range(200):
        committer.submit([op(number)], size_bytes=1, on_durable=lambda number=number: told.append(number))
    await committer.close()
    assert told == list(range(200))
    assert disk.durable_count == 200
    with pytest.raises(StoreFailed):
        committer.submit([op(0)], size_bytes=1)


async def test_the_mark_follows_each_flush_and_never_leads(make: Make, disk: FakeDisk, tmp_path: Path) -> None:
    committer = make()
    for number in range(3):
        committer.submit([op(number)], size_bytes=1)
        await committer.barrier()
        mark = read_mark(tmp_path / "mark")
        assert mark is not None
        assert mark.sequence == number + 1 == disk.durable_count
    disk.fail_flush = StoreFailed("EIO")
    committer.submit([op(9)], size_bytes=1)
    with pytest.raises(StoreFailed):
        await committer.barrier()
    mark = read_mark(tmp_path / "mark")
    assert mark is not None
    assert mark.sequence == 3
