"""A machine's disk in memory: databases with the interface of storage's `Engine`, and the real `Committer` on them.

Owns what survives. A write reaches the page cache at once and the disk when an fsync that began after it has ended:
killing the process loses neither, a power cut loses what was not fsynced, or a random part of it from some batch of
writes on. Batches of writes are lost whole, as RocksDB's WAL loses them. Damage to a key makes reading it raise, as
RocksDB's block checksums do.

The committer is storage's own, all but its thread: a group is written and fsynced in virtual time instead.
"""

import asyncio
import bisect
import random
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

from sim_loop import Process, SimLoop

from broker.storage import committer as committer_module
from broker.storage.committer import Committer, CommitterSettings
from broker.storage.engine import BlobUsage, Op
from broker.storage.errors import StorageError, StoreCorrupt, StoreFailed


class Table:
    """A column family: keys in order."""

    def __init__(self) -> None:
        self.keys: list[bytes] = []
        self.values: dict[bytes, bytes] = {}

    def put(self, key: bytes, value: bytes) -> None:
        if key not in self.values:
            if not self.keys or key > self.keys[-1]:
                self.keys.append(key)
            else:
                bisect.insort(self.keys, key)
        self.values[key] = value

    def delete(self, key: bytes) -> None:
        if key in self.values:
            del self.values[key]
            del self.keys[bisect.bisect_left(self.keys, key)]

    def delete_range(self, begin: bytes, end: bytes) -> None:
        first, last = self.span(begin, end)
        for key in self.keys[first:last]:
            del self.values[key]
        del self.keys[first:last]

    def span(self, begin: bytes, end: bytes) -> tuple[int, int]:
        return bisect.bisect_left(self.keys, begin), bisect.bisect_left(self.keys, end)

    def copy(self) -> "Table":
        copied = Table()
        copied.keys, copied.values = list(self.keys), dict(self.values)
        return copied


class Database:
    """What is on the disk, and what is only in the page cache."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.written: dict[str, Table] = {}
        self.sequence = 0
        self.damaged: set[tuple[str, bytes]] = set()
        self.marked_sequence = 0
        self.clean = False
        self._durable: dict[str, Table] = {}
        self._unsynced: list[tuple[int, Sequence[Op]]] = []

    def write(self, ops: Sequence[Op]) -> None:
        self.sequence += len(ops)
        _apply(self.written, ops)
        self._unsynced.append((self.sequence, ops))
        if self.damaged:
            self.damaged -= {
                (family, key)
                for family, key in self.damaged
                for op in ops
                if op[1] == family and (key == op[2] or (op[0] == "delete_range" and op[2] <= key < op[3]))
            }

    def synced(self, sequence: int) -> None:
        """All writes up to there are on the disk."""
        count = 0
        for written, ops in self._unsynced:
            if written > sequence:
                break
            _apply(self._durable, ops)
            count += 1
        del self._unsynced[:count]

    def cut_power(self, draw: random.Random) -> int:
        """Loses the page cache, all but a random beginning of it; returns how many writes went."""
        kept = draw.randint(0, len(self._unsynced)) if draw.random() < 0.7 else 0
        lost = len(self._unsynced) - kept
        for sequence, ops in self._unsynced[:kept]:
            _apply(self._durable, ops)
            self.sequence = sequence
        self._unsynced.clear()
        self.written = {name: table.copy() for name, table in self._durable.items()}
        return lost

    def damage(self, family: str, key: bytes) -> None:
        """A bit of it flips on the disk."""
        self.damaged.add((family, key))


def _apply(families: dict[str, Table], ops: Sequence[Op]) -> None:
    for op in ops:
        table = families.get(op[1])
        if table is None:
            table = families[op[1]] = Table()
        if op[0] == "put":
            table.put(op[2], op[3])
        elif op[0] == "delete":
            table.delete(op[2])
        else:
            table.delete_range(op[2], op[3])


@dataclass(slots=True)
class DiskSpeed:
    """How long things take; may be changed at any time."""

    write_s: float = 0.0002
    sync_s: float = 0.002
    factor: float = 1.0


class SimDisk:
    """The disk of one machine. Outlives processes, and is told when the power goes."""

    def __init__(self, loop: SimLoop, name: str) -> None:
        self.name = name
        self.loop = loop
        self.random = loop.random(f"disk {name}")
        self.speed = DiskSpeed()
        self.stores_count = 0
        self.sync_fails = False
        """True: the next fsync fails."""
        self.wipe()

    def wipe(self) -> None:
        """A new, empty disk, with a name that no other had."""
        self.new_identity()
        self.databases: dict[str, Database] = {}
        self.files: dict[str, bytes] = {}

    def new_identity(self) -> None:
        """What is on it counts as another disk from now on."""
        self.stores_count += 1
        self.store_id = f"{self.name}-{self.stores_count}"

    def database(self, name: str) -> Database:
        if name not in self.databases:
            self.databases[name] = Database(name)
        return self.databases[name]

    def cut_power(self) -> int:
        """After the process died; returns how many writes were lost."""
        return sum(database.cut_power(self.random) for database in self.databases.values())

    def latency_s(self, typical_s: float) -> float:
        return typical_s * self.speed.factor * self.random.choice((0.5, 1.0, 1.0, 1.5, 4.0))


class SimEngine:
    """A database opened by one process: the interface of storage's Engine."""

    path = "simulated"

    def __init__(self, disk: SimDisk, database: Database, process: Process) -> None:
        self.disk = disk
        self.database = database
        self._process = process

    def write(self, ops: Sequence[Op]) -> None:
        if self._process.alive:
            self.database.write(list(ops))

    def flush_wal(self) -> None:
        """Begins an fsync; `SimCommitter` says when it has ended."""
        if self.disk.sync_fails:
            self.disk.sync_fails = False
            raise StoreFailed("fsync: input/output error")

    def sequence(self) -> int:
        return self.database.sequence

    def multi_get(self, family: str, keys: Sequence[bytes]) -> list[bytes | None]:
        self._check_readable(family, keys)
        table = self.database.written.get(family)
        return [None] * len(keys) if table is None else [table.values.get(key) for key in keys]

    def scan(
        self, family: str, begin: bytes, end: bytes, *, limit: int | None = None, reverse: bool = False
    ) -> list[tuple[bytes, bytes]]:
        table = self.database.written.get(family)
        if table is None:
            return []
        first, last = table.span(begin, end)
        keys = table.keys[first:last]
        if reverse:
            keys.reverse()
        keys = keys[:limit]
        self._check_readable(family, keys)
        return [(key, table.values[key]) for key in keys]

    def _check_readable(self, family: str, keys: Sequence[bytes]) -> None:
        if self.database.damaged:
            for key in keys:
                if (family, key) in self.database.damaged:
                    raise StoreCorrupt(f"Corruption: block checksum mismatch in {family}")

    def blob_usage(self, family: str) -> BlobUsage:
        return BlobUsage(total_bytes=0, garbage_bytes=0)

    def compact(self, family: str, begin: bytes, end: bytes) -> None:
        """Space is no matter here."""

    def collect_garbage(self, family: str, *, below: float, timeout_s: float, stopping: threading.Event) -> bool:
        return True

    def cancel_background(self) -> None:
        """There is none."""

    def close(self) -> None:
        """Nothing is held."""


class SimMark:
    """The durable mark. Kept with the database, for checks; a simulated disk keeps what it promised."""

    def __init__(self, engine: SimEngine) -> None:
        self._database = engine.database

    def record(self, sequence: int, *, clean: bool = False) -> None:
        self._database.clean = clean

    def sync(self) -> None:
        """Part of the fsync."""

    def close(self) -> None:
        """Nothing is held."""


class _IdleThread:
    """Stands in for the committer's thread, which `SimCommitter` does the work of."""

    def __init__(self, **options: Any) -> None:
        pass

    def start(self) -> None:
        pass

    def join(self) -> None:
        pass


class SimCommitter(Committer):
    """Storage's committer in virtual time. One group at a time: written, then fsynced, then told."""

    def __init__(
        self,
        engine: SimEngine,
        mark: SimMark,
        *,
        loop: asyncio.AbstractEventLoop,
        on_fatal: Callable[[Exception], None],
        settings: CommitterSettings | None = None,
        overwritten_families: frozenset[str] = frozenset(),
        name: str = "committer",
    ) -> None:
        self._disk = engine.disk
        self._busy = False
        self._flushed: int | None = None
        with mock.patch.object(committer_module, "threading", mock.Mock(Thread=_IdleThread)):
            super().__init__(
                engine,
                mark,  # type: ignore[arg-type]
                loop=loop,
                on_fatal=on_fatal,
                settings=settings,
                overwritten_families=overwritten_families,
                name=name,
            )

    def submit(self, ops: Sequence[Op], **options: Any) -> int:  # type: ignore[override]
        ticket = super().submit(ops, **options)
        self._work()
        return ticket

    def _work(self) -> None:
        if not self._busy and not self._queue.empty():
            self._busy = True
            self._loop.call_later(self._disk.latency_s(self._disk.speed.write_s), self._turn)

    def _turn(self) -> None:
        group, _ = self._take()
        self._flushed = None
        try:
            self._commit(group)
        except StorageError as error:
            self._loop.call_soon(self._fail, error)

    def _flush(self) -> None:
        sequence = self._engine.sequence()
        super()._flush()
        self._flushed = sequence

    def _call_loop(self, function: Callable[[Any], None], argument: object) -> None:
        if function == self._tell_durable:
            delay_s = 0.0 if self._flushed is None else self._disk.latency_s(self._disk.speed.sync_s)
            self._loop.call_later(delay_s, self._synced, argument, self._flushed)
        else:
            self._loop.call_soon(function, argument)

    def _synced(self, group: Any, sequence: int | None) -> None:
        if sequence is not None:
            engine: Any = self._engine
            engine.database.synced(sequence)
        self._busy = False
        self._tell_durable(group)
        self._work()

    async def close(self) -> None:
        if self._failure is None:
            await self.barrier()
            self._failure = StoreFailed("the store is closed")
        self._fail_waiters(self._failure)


def engines(disk: SimDisk, process: Process, names: Sequence[str]) -> Mapping[str, SimEngine]:
    """Opens these databases for a process."""
    return {name: SimEngine(disk, disk.database(name), process) for name in names}
