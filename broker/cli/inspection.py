"""What can be told about a data directory from outside: who holds it, how its databases open, what is damaged.

Changes nothing that a start would not change: opening a database replays its write-ahead log. Decides nothing about
losses; `doctor` does, when it is told to.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from broker.controller import metadata_log
from broker.controller.state import MetadataError
from broker.raft import storage as raft_storage
from broker.storage.data_dir import DataDir, Identity, read_identity
from broker.storage.durable_mark import read_mark
from broker.storage.engine import MIB, Engine
from broker.storage.errors import LogCorrupt, StorageError, StoreLocked
from broker.storage.log_reader import Indexed, LogReader
from broker.storage.log_state import STATE, LogState, key_log_id, log_key
from broker.storage.rebuild import Request, requested
from broker.storage.recovery import DatabaseSpec, Loss, accepted_losses, open_database
from broker.storage.salvage import CHUNK_COUNT, Hole, readable
from broker.storage.store import StorageSettings, database_specs

READ_BYTES: Final = 8 * MIB
DAMAGE_LISTED_MAX: Final = 1_000
MISSING: Final = "there is no batch"
NOTED: Final = "a node could not read on here; --verify tells how much"

Progress = Callable[[int, int], None]


@dataclass(slots=True)
class DatabaseReport:
    """One of the two databases. None: not known."""

    name: str
    size_bytes: int
    promised_sequence: int | None
    clean_stop: bool | None
    recovered_sequence: int | None = None
    damaged_tail: bool = False
    problem: str = ""
    rebuild: Request | None = None
    """The next start replaces it by a copy of what can be read, and why."""


@dataclass(frozen=True, slots=True)
class LogReport:
    """One partition's log. topic: empty if no topic knows it any more (its deletion was cut short)."""

    log_id: int
    topic: str
    partition: int
    log_start_offset: int
    end_offset: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Damage:
    """Records that cannot be read: [offset, end_offset)."""

    topic: str
    partition: int
    offset: int
    end_offset: int
    why: str


@dataclass(slots=True)
class Inspection:
    """Everything that was found."""

    path: Path
    identity: Identity | None = None
    """Whose it is; None: no node has started on it yet."""
    in_use: str = ""
    """The lock's own words, which name the process; empty: nobody has it."""
    databases: list[DatabaseReport] = field(default_factory=list)
    losses: list[Loss] = field(default_factory=list)
    logs: list[LogReport] = field(default_factory=list)
    verified: bool = False
    verified_batches: int = 0
    verified_records: int = 0
    damage: list[Damage] = field(default_factory=list)

    @property
    def healthy(self) -> bool:
        """A node would start on this, and nothing that was looked at is damaged."""
        asked = any(each.rebuild is not None and not each.rebuild.accepted for each in self.databases)
        return not self.damage and not asked and not any(each.problem for each in self.databases)


def inspect(path: Path, *, verify: bool, progress: Progress = lambda done, total: None) -> Inspection:
    """Looks at everything. Raises StoreFailed where this is no data directory that this version knows."""
    found = Inspection(path, identity=read_identity(path), losses=accepted_losses(path))
    for name in ("meta", "data"):
        mark = read_mark(path / f"{name}.mark")
        found.databases.append(
            DatabaseReport(
                name,
                size_bytes=_size_bytes(path / name),
                promised_sequence=None if mark is None else mark.sequence,
                clean_stop=None if mark is None else mark.clean,
                rebuild=requested(path / name),
            )
        )
    try:
        lock = DataDir.acquire(path)
    except StoreLocked as error:
        found.in_use = str(error)
        return found
    with ExitStack() as stack:
        stack.callback(lock.release)
        engines = [
            _open(path, spec, report, stack, expected=found.identity is not None)
            for spec, report in zip(database_specs(StorageSettings()), found.databases, strict=True)
        ]
        meta, data = engines
        names = _names(meta, found)
        if data is not None:
            states = _look_at_logs(data, names, found)
            if verify:
                _verify(data, states, found, progress)
            else:
                _tell_noted(states, found)
    return found


def _open(path: Path, spec: DatabaseSpec, report: DatabaseReport, stack: ExitStack, *, expected: bool) -> Engine | None:
    if not expected and report.promised_sequence is None and not (path / spec.name / "CURRENT").exists():
        return None  # never used: opening would create it
    try:
        if report.rebuild is not None:
            # As it is: opened for writing it would begin to compact what is damaged.
            engine = Engine.open_damaged(path / spec.name, spec.families)
            stack.callback(engine.close)
            report.recovered_sequence = engine.sequence()
            return engine
        database = open_database(path, spec, expected=expected)
    except StorageError as error:
        report.problem = str(error)
        return None
    stack.callback(database.close)
    report.recovered_sequence = database.engine.sequence()
    report.damaged_tail = database.report.damaged_tail
    return database.engine


def _names(meta: Engine | None, found: Inspection) -> dict[int, tuple[str, int]]:
    """Topic and partition by log id."""
    if meta is None:
        return {}
    try:
        loaded = raft_storage.load(meta)
        # All entries, committed or not as far as this node knew: names are better guessed than missing.
        entries = [(entry.index, entry.data) for entry in loaded.entries]
        image = metadata_log.replay(loaded.snapshot.data if loaded.snapshot is not None else None, entries)
        topics = image.topics.values()
    except (MetadataError, StorageError) as error:
        found.databases[0].problem = str(error)
        return {}
    return {log_id: (topic.name, number) for topic in topics for number, log_id in enumerate(topic.log_ids)}


def _look_at_logs(data: Engine, names: dict[int, tuple[str, int]], found: Inspection) -> dict[int, LogState]:
    states: dict[int, LogState] = {}
    try:
        for key, value in _states(data, found):
            log_id, state = key_log_id(key), LogState.decode(value)
            topic, number = names.get(log_id, ("", log_id))
            states[log_id] = state
            size_bytes = state.end_position - state.start_position
            found.logs.append(LogReport(log_id, topic, number, state.log_start_offset, state.end_offset, size_bytes))
    except (StorageError, ValueError) as error:
        found.databases[1].problem = f"the logs' state is damaged: {error}"
    found.logs.sort(key=lambda log: (log.topic, log.partition))
    return states


def _states(data: Engine, found: Inspection) -> Iterator[tuple[bytes, bytes]]:
    if found.databases[1].rebuild is None:
        yield from data.scan(STATE, b"", b"\xff" * 9)
        return
    for entry in readable(data, STATE, log_key, 0, 2**64 - 1, at_once=CHUNK_COUNT):
        if not isinstance(entry, Hole):
            yield entry


def _tell_noted(states: dict[int, LogState], found: Inspection) -> None:
    """What nodes met and could not fill anew from another copy, so far."""
    for log in found.logs:
        state = states[log.log_id]
        if state.damaged:
            _damaged(found, log, state.damaged_offset, state.damaged_offset + 1, NOTED)


def _verify(data: Engine, states: dict[int, LogState], found: Inspection, progress: Progress) -> None:
    """Reads every batch that is there and checks its checksum; and that none is missing."""
    found.verified = True
    total = sum(log.size_bytes for log in found.logs)
    done = 0
    for log in found.logs:
        for each in _walk(LogReader(data, log.log_id), log, states[log.log_id]):
            if each.why:
                _damaged(found, log, each.offset, each.end_offset, each.why)
            else:
                found.verified_batches += 1
                found.verified_records += each.record_count
            done += each.size_bytes
            progress(done, total)


class _Walked(NamedTuple):
    """A batch; or, with `why`, offsets that can't be read."""

    offset: int
    end_offset: int
    why: str = ""
    size_bytes: int = 0
    record_count: int = 0


def _walk(reader: LogReader, log: LogReport, state: LogState) -> Iterator[_Walked]:
    """Every batch of the log in order, and what is wrong between them.

    Where offsets are missing, positions tell log compaction from damage: without damage they follow on each other.
    """
    offset, before = log.log_start_offset, -1
    position: int | None = state.start_position
    while offset < log.end_offset:
        try:
            chunk = reader.indexed(offset, end_offset=log.end_offset, max_bytes=READ_BYTES)
        except LogCorrupt as error:  # an entry of the index
            end = _end_of_batch(reader, error.offset, log)
            yield _Walked(max(offset, error.offset), end, error.why)
            offset, position = end, None
            continue
        except StorageError as error:
            yield _Walked(offset, log.end_offset, str(error))
            return
        if not chunk:
            break
        for indexed, why in _fetched(reader, chunk):
            begin, entry = max(offset, indexed.base_offset), indexed.entry
            # Positions below are those of a compaction pass that was cut short.
            sure = before >= state.positions_from if before >= 0 else not state.compacted_offset
            if begin > offset and sure and position not in {None, entry.position}:
                yield _Walked(offset, begin, MISSING)
            yield _Walked(begin, indexed.end_offset, why, entry.size_bytes, entry.record_count)
            offset, before, position = indexed.end_offset, indexed.base_offset, entry.position + entry.size_bytes
    if offset < log.end_offset and position not in {None, state.end_position}:
        yield _Walked(offset, log.end_offset, MISSING)


def _fetched(reader: LogReader, chunk: Sequence[Indexed]) -> Iterator[tuple[Indexed, str]]:
    """The batches of the chunk, each with what is wrong with it."""
    at = 0
    while at < len(chunk):
        try:
            good_count = len(reader.fetch(chunk[at:]))
        except LogCorrupt as error:
            yield chunk[at], error.why
            at += 1
            continue
        for indexed in chunk[at : at + good_count]:
            yield indexed, ""
        at += good_count


def _end_of_batch(reader: LogReader, offset: int, log: LogReport) -> int:
    """Where to go on behind a damaged batch: at its end if its index entry tells, else an offset further."""
    try:
        at = reader.batch_at(offset)
    except StorageError:
        at = None
    return min(log.end_offset, max(offset + 1, offset if at is None else at.end_offset))


def _damaged(found: Inspection, log: LogReport, begin: int, end: int, why: str) -> None:
    last = found.damage[-1] if found.damage else None
    if last and (last.topic, last.partition, last.end_offset, last.why) == (log.topic, log.partition, begin, why):
        found.damage[-1] = Damage(last.topic, last.partition, last.offset, end, why)
    elif len(found.damage) < DAMAGE_LISTED_MAX:
        found.damage.append(Damage(log.topic, log.partition, begin, end, why))


def _size_bytes(folder: Path) -> int:
    try:
        return sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    except FileNotFoundError:
        return 0
