"""A database that refuses to be written is replaced by a copy of what can be read of it.

Owns the request for that, a file beside the database that outlives the process which could not write any more, and
the replacement: copying into a folder beside it, then two renames. Each step may be cut short; the next start goes on.
What is copied, and what becomes of damage, is `salvage.py`'s; whether a loss is accepted is `recovery.py`'s.

Why a copy, and not an empty database that the other nodes fill: a start does not know which partitions have their only
whole copy here. Copying keeps them all, is the same for a lone node, and costs no network. Its price is the time of one
pass over the data, and room for what is live of it. Where there is no such room the start is refused, rather than
giving up what may be the only copy.

    data              the damaged one; removed at the end, or kept as data.damaged-<time>
    data.rebuild      the request
    data.rebuilding   the copy, not complete
    data.rebuilt      the copy, complete
    data.discarded    the damaged one on its way out
"""

import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from broker.storage.durable_mark import fsync_folder, write_mark
from broker.storage.engine import Engine
from broker.storage.errors import StoreCorrupt, StoreFailed
from broker.storage.salvage import Salvaged


@dataclass(frozen=True, slots=True)
class Request:
    """Why a database has to be replaced."""

    why: str
    accepted: bool = False
    """What every start needs of it can't be read either, and that loss was accepted."""


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """A replacement, to be told."""

    database: str
    why: str
    seconds: float
    salvaged: Salvaged = field(default_factory=Salvaged)
    set_aside: str = ""
    """Where the damaged files are; empty: removed."""


def request(path: Path, why: str, *, accepted: bool = False) -> None:
    """The next start replaces the database in this folder. Durable when it returns. Raises OSError."""
    file, before = _beside(path, "rebuild"), requested(path)
    accepted = accepted or (before is not None and before.accepted)
    new = file.with_suffix(".new")
    with new.open("w") as open_file:
        json.dump(asdict(Request(why, accepted)), open_file)
        open_file.flush()
        os.fsync(open_file.fileno())
    new.rename(file)
    fsync_folder(path.parent)


def requested(path: Path) -> Request | None:
    """Whether the next start will."""
    try:
        return Request(**json.loads(_beside(path, "rebuild").read_text()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):
        return Request("the request itself is damaged")


def withdraw(path: Path) -> None:
    """There is nothing to be copied any more."""
    _beside(path, "rebuild").unlink(missing_ok=True)
    fsync_folder(path.parent)
    remove_leftovers(path)


def remove_leftovers(path: Path) -> None:
    """Where nothing is requested."""
    for kind in ("rebuilding", "rebuilt", "discarded"):
        shutil.rmtree(_beside(path, kind), ignore_errors=True)


def is_copied(path: Path) -> bool:
    """Only the renames are left to be done."""
    return _beside(path, "rebuilt").exists()


def copy(
    path: Path,
    source: Engine,
    *,
    open_target: Callable[[Path], Engine],
    salvage: Callable[[Engine, Engine], Salvaged],
    needed_bytes: int,
    free_bytes: Callable[[Path], int],
) -> Salvaged:
    """Copies what can be read. Raises StoreCorrupt if `salvage` does, StoreFailed."""
    rebuilding = _beside(path, "rebuilding")
    # What was copied before this start stays.
    room_bytes = free_bytes(path.parent) + _size_bytes(rebuilding)
    if room_bytes < needed_bytes:
        raise StoreFailed(
            f"database {path.name!r} is damaged and has to be copied, which takes about {needed_bytes:,} bytes beside"
            f" it, and there are {room_bytes:,}: make room, or give this node an empty data directory, if the other"
            " nodes of its cluster have all that it holds"
        )
    try:
        target = open_target(rebuilding)
    except StoreCorrupt:
        # A power cut may leave anything of what was not made durable yet.
        shutil.rmtree(rebuilding)
        target = open_target(rebuilding)
    try:
        salvaged = salvage(source, target)
        target.flush_wal()
    finally:
        target.close()
    rebuilding.rename(_beside(path, "rebuilt"))
    fsync_folder(path.parent)
    return salvaged


def replace(path: Path, mark_path: Path, *, sequence: int, keep_as: Path | None) -> None:
    """Puts the complete copy, which `sequence` writes have made, into the database's place. Raises OSError."""
    # Too low is harmless, whichever of the two is found behind it.
    write_mark(mark_path, 0)
    if path.exists():
        discarded = keep_as or _beside(path, "discarded")
        if keep_as is None:
            shutil.rmtree(discarded, ignore_errors=True)
        path.rename(discarded)
    rebuilt(path).rename(path)
    fsync_folder(path.parent)
    write_mark(mark_path, sequence)
    withdraw(path)


def rebuilt(path: Path) -> Path:
    """Where the complete copy is."""
    return _beside(path, "rebuilt")


def remember_failure(path: Path, error: Exception) -> None:
    """Before the process ends because RocksDB refuses to write. Where even that fails, it will fail again."""
    with contextlib.suppress(OSError):
        request(path, f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {error}")


def _beside(path: Path, kind: str) -> Path:
    return path.with_name(f"{path.name}.{kind}")


def _size_bytes(folder: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    return 0
