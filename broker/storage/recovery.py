"""Opening a database after whatever happened to it: a torn tail is normal, a real loss is not.

RocksDB replays its WAL up to damage at the very end (what a power cut leaves) and refuses damage further in. Neither
tells how much is gone, so what it recovered is compared with the durable mark. At or past the mark, only writes
that were never acknowledged are gone, and the database opens. Below it, or where RocksDB cannot open at all, promised
records are lost: `StoreLoss`. On a lone node the operator decides (`postbus doctor --accept-loss`, here
`accept_loss`). In a cluster the others have them: `store.py` goes on with what is left of `data`, sets `meta` aside
(`set_aside`), and says so to the controller.

Where RocksDB refuses because of damage inside the WAL, a copy is opened with point-in-time recovery first: the damage
may still lie past the mark, and opening the original that way would throw away what a closer look could save.
"""

import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from broker.storage import rebuild
from broker.storage.durable_mark import DurableMark, fsync_folder, read_mark, write_mark
from broker.storage.engine import Engine, FamilyOptions, RecoveryMode
from broker.storage.errors import StoreCorrupt, StoreLoss
from broker.storage.rebuild import Rebuilt
from broker.storage.salvage import Salvaged

LOSSES_FILE: Final = "losses.jsonl"
_IMMUTABLE_SUFFIXES: Final = (".sst", ".blob")


@dataclass(frozen=True, slots=True)
class DatabaseSpec:
    """What is to be opened: `name` is the folder in the data directory."""

    name: str
    families: Mapping[str, FamilyOptions]
    block_cache_bytes: int
    wal_bytes_max: int
    load: Callable[[Engine], object]
    """Reads what a start needs of it. Raises StoreCorrupt, which counts as a loss."""
    salvage: Callable[[Engine, Engine], Salvaged]
    """Copies what can be read from the first to the second. Raises StoreCorrupt, which counts as a loss."""
    divisible: bool
    """What is left of it is worth something."""
    live_bytes: Callable[[Engine], int] = lambda engine: 0
    """About how much such a copy takes."""
    damaged: Callable[[Engine], dict[int, int]] = lambda copy: {}
    """What could not be read, as the copy tells."""


@dataclass(frozen=True, slots=True)
class RecoveredDatabase:
    """How an opening went."""

    name: str
    clean: bool
    """It had been closed in good order."""
    created: bool
    damaged_tail: bool
    """There was damage inside the WAL, past all that had been promised."""
    wal_bytes: int
    """Replayed."""
    seconds: float


@dataclass(frozen=True, slots=True)
class Loss:
    """One line of `losses.jsonl`: what an operator accepted."""

    time_us: int
    database: str
    promised_sequence: int
    recovered_sequence: int
    reason: str
    set_aside: str
    """Where the damaged files are; empty: nothing was set aside."""


@dataclass(frozen=True, slots=True)
class OpenDatabase:
    """A database in use."""

    engine: Engine
    mark: DurableMark
    loaded: Any
    """What `DatabaseSpec.load` returned."""
    report: RecoveredDatabase

    def close(self) -> None:
        """Closes both."""
        self.mark.close()
        self.engine.close()


def open_database(data_dir: Path, spec: DatabaseSpec, *, expected: bool = False) -> OpenDatabase:
    """Opens or creates; expected: it existed before. Raises StoreLoss, StoreFailed.

    Blocks for as long as the WAL takes to replay.
    """
    begin = time.monotonic()
    path, mark_path = data_dir / spec.name, data_dir / f"{spec.name}.mark"
    created = not (path / "CURRENT").exists()
    mark = read_mark(mark_path)
    if mark is None and not created:
        raise _loss(spec.name, "its durable mark is missing or unreadable, so nobody can tell what is gone")
    if created and expected:
        raise _loss(spec.name, "the database is gone")
    if mark is None:
        # The mark first: a database without one counts as damaged.
        write_mark(mark_path, 0)
    promised = 0 if mark is None else mark.sequence
    if created and promised:
        raise _loss(spec.name, f"the database is gone, {promised} writes with it")
    wal_bytes = sum(file.stat().st_size for file in path.glob("*.log"))
    damaged_tail = False
    try:
        engine = _open(path, spec, "tolerate_torn_tail")
    except StoreCorrupt as error:
        recovered = _sequence_of_copy(path, spec)
        if recovered is None or recovered < promised:
            raise _loss(spec.name, f"{error} ({_count_text(promised, recovered)})") from error
        engine = _open(path, spec, "point_in_time")
        damaged_tail = True
    recovered = engine.sequence()
    if recovered < promised:
        engine.close()
        raise _loss(spec.name, _count_text(promised, recovered))
    if created:
        # RocksDB makes its own files durable, but not its folder's entry in ours.
        fsync_folder(data_dir)
    try:
        loaded = spec.load(engine)
    except StoreCorrupt as error:
        engine.close()
        raise _loss(spec.name, f"what every start needs of it is damaged: {error}") from error
    report = RecoveredDatabase(
        name=spec.name,
        clean=mark is not None and mark.clean,
        created=created,
        damaged_tail=damaged_tail,
        wal_bytes=wal_bytes,
        seconds=time.monotonic() - begin,
    )
    return OpenDatabase(engine=engine, mark=DurableMark(mark_path), loaded=loaded, report=report)


def rebuild_database(
    data_dir: Path, spec: DatabaseSpec, *, now_us: int, keep_damaged: bool, free_bytes: Callable[[Path], int]
) -> Rebuilt | None:
    """Replaces a database that refused to be written by a copy. None: that was not asked for. Comes before opening.

    keep_damaged: the damaged files are kept beside it, if anything could not be read. Raises StoreLoss as
    `open_database` would, StoreFailed. Blocks for as long as copying takes.
    """
    begin = time.monotonic()
    path, mark_path = data_dir / spec.name, data_dir / f"{spec.name}.mark"
    request = rebuild.requested(path)
    if request is None:
        rebuild.remove_leftovers(path)
        return None
    salvaged = Salvaged()
    if not rebuild.is_copied(path):
        salvaged = _copy_readable(data_dir, spec, accepted=request.accepted, free_bytes=free_bytes)
    engine = Engine.open_damaged(rebuild.rebuilt(path), spec.families)
    sequence = engine.sequence()
    salvaged.damaged = spec.damaged(engine)  # by an earlier start, it may be
    engine.close()
    keep = keep_damaged and salvaged.damaged and path.exists()
    kept = data_dir / f"{spec.name}.damaged-{now_us}" if keep else None
    if kept is not None:
        reason = f"{len(salvaged.damaged)} logs could not be read whole: {request.why}"
        _record(data_dir, Loss(now_us, spec.name, sequence, sequence, reason, kept.name))
    rebuild.replace(path, mark_path, sequence=sequence, keep_as=kept)
    return Rebuilt(
        database=spec.name,
        why=request.why,
        seconds=time.monotonic() - begin,
        salvaged=salvaged,
        set_aside="" if kept is None else kept.name,
    )


def _copy_readable(
    data_dir: Path, spec: DatabaseSpec, *, accepted: bool, free_bytes: Callable[[Path], int]
) -> Salvaged:
    path = data_dir / spec.name
    mark = read_mark(data_dir / f"{spec.name}.mark")
    if mark is None:
        raise _loss(spec.name, "its durable mark is missing or unreadable, so nobody can tell what is gone")
    try:
        source = Engine.open_damaged(path, spec.families)
    except StoreCorrupt as error:
        raise _loss(spec.name, str(error)) from error
    try:
        if source.sequence() < mark.sequence:
            raise _loss(spec.name, _count_text(mark.sequence, source.sequence()))
        if not accepted:
            spec.load(source)
        return rebuild.copy(
            path,
            source,
            open_target=lambda folder: _open(folder, spec, "tolerate_torn_tail"),
            salvage=spec.salvage,
            needed_bytes=spec.live_bytes(source) * 11 // 10 + spec.wal_bytes_max,
            free_bytes=free_bytes,
        )
    except StoreCorrupt as error:
        raise _loss(spec.name, f"what every start needs of it is damaged: {error}") from error
    finally:
        source.close()


def accept_loss(
    data_dir: Path,
    spec: DatabaseSpec,
    *,
    now_us: int,
    expected: bool = False,
    keep_copy: bool = True,
    on_loss: Callable[[], None] = lambda: None,
) -> Loss | None:
    """Makes a database open again with what is left of it, and records what is gone. None: nothing is.

    on_loss: called before anything is changed, after which nothing may tell of the loss if this is cut short.
    keep_copy: the damaged files are kept beside it (as hard links: they cost space only once they would have been
    deleted). Where nothing can be opened at all, it begins empty.
    """
    path, mark_path = data_dir / spec.name, data_dir / f"{spec.name}.mark"
    try:
        open_database(data_dir, spec, expected=expected).close()
        return None
    except StoreLoss as error:
        reason = str(error)
    on_loss()
    promised = read_mark(mark_path)
    copy = data_dir / f"{spec.name}.damaged-{now_us}"
    if path.exists() and keep_copy:
        _copy(path, copy)
    recovered = _open_what_is_left(path, spec, reason)
    loss = Loss(
        time_us=now_us,
        database=spec.name,
        promised_sequence=0 if promised is None else promised.sequence,
        recovered_sequence=recovered,
        reason=reason,
        set_aside=copy.name if copy.exists() else "",
    )
    # Recorded before the mark is lowered: after that nothing else would tell.
    _record(data_dir, loss)
    write_mark(mark_path, recovered)
    return loss


def set_aside(data_dir: Path, spec: DatabaseSpec, *, now_us: int, reason: str) -> Loss:
    """Takes a damaged database out of the way, whole; the next opening creates an empty one."""
    path, mark_path = data_dir / spec.name, data_dir / f"{spec.name}.mark"
    promised = read_mark(mark_path)
    aside = data_dir / f"{spec.name}.damaged-{now_us}"
    loss = Loss(
        time_us=now_us,
        database=spec.name,
        promised_sequence=0 if promised is None else promised.sequence,
        recovered_sequence=0,
        reason=reason,
        set_aside=aside.name if path.exists() else "",
    )
    _record(data_dir, loss)
    # The mark last: without it the database counts as damaged, whatever is cut short here.
    if path.exists():
        path.rename(aside)
    rebuild.withdraw(path)
    fsync_folder(data_dir)
    mark_path.unlink(missing_ok=True)
    fsync_folder(data_dir)
    return loss


def _record(data_dir: Path, loss: Loss) -> None:
    with (data_dir / LOSSES_FILE).open("a") as file:
        file.write(json.dumps(asdict(loss)) + "\n")
        file.flush()
        os.fsync(file.fileno())


def accepted_losses(data_dir: Path) -> list[Loss]:
    """What was accepted so far, oldest first."""
    try:
        lines = (data_dir / LOSSES_FILE).read_text().splitlines()
    except FileNotFoundError:
        return []
    return [Loss(**json.loads(line)) for line in lines]


def _open(path: Path, spec: DatabaseSpec, recovery_mode: RecoveryMode) -> Engine:
    return Engine.open(
        path,
        spec.families,
        block_cache_bytes=spec.block_cache_bytes,
        wal_bytes_max=spec.wal_bytes_max,
        recovery_mode=recovery_mode,
    )


def _open_what_is_left(path: Path, spec: DatabaseSpec, reason: str) -> int:
    """Makes the database open again, or asks for a copy, or else begins empty; returns its sequence."""
    with contextlib.suppress(StoreCorrupt):
        try:
            engine = _open(path, spec, "point_in_time")
        except StoreCorrupt:
            if not spec.divisible:
                raise
            engine = Engine.open_damaged(path, spec.families)
            rebuild.request(path, reason, accepted=True)
        try:
            spec.load(engine)
        except StoreCorrupt:
            if not spec.divisible:
                raise
            rebuild.request(path, reason, accepted=True)
        finally:
            sequence = engine.sequence()
            engine.close()
        return sequence
    rebuild.withdraw(path)
    shutil.rmtree(path, ignore_errors=True)
    engine = _open(path, spec, "tolerate_torn_tail")
    try:
        return engine.sequence()
    finally:
        engine.close()


def _sequence_of_copy(path: Path, spec: DatabaseSpec) -> int | None:
    """How far point-in-time recovery gets; None: it doesn't open either."""
    copy = path.with_name(f"{path.name}.recovering")
    shutil.rmtree(copy, ignore_errors=True)
    try:
        _copy(path, copy)
        engine = _open(copy, spec, "point_in_time")
        recovered = engine.sequence()
        engine.close()
        return recovered
    except StoreCorrupt:
        return None
    finally:
        shutil.rmtree(copy, ignore_errors=True)


def _copy(source: Path, target: Path) -> None:
    """A database's files: links to what RocksDB never changes, copies of the rest (WAL, manifest)."""
    target.mkdir()
    for file in source.iterdir():
        if not file.is_file() or file.name == "LOCK":
            continue
        if file.suffix in _IMMUTABLE_SUFFIXES:
            with contextlib.suppress(FileNotFoundError):
                os.link(file, target / file.name)
        else:
            shutil.copy2(file, target / file.name)


def _count_text(promised: int, recovered: int | None) -> str:
    if recovered is None:
        return f"{promised} writes were promised, and it does not open"
    return f"{promised} writes were promised, {recovered} are left"


def _loss(name: str, what: str) -> StoreLoss:
    return StoreLoss(
        f"database {name!r} has lost acknowledged records: {what}. Restore it from a copy, or run "
        f"`postbus doctor --accept-loss` to go on with what is left"
    )
