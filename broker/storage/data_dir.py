"""The data directory: its exclusive lock, its format, and whose it is.

RocksDB writes into a folder before it takes its own lock, so a second process must be stopped earlier. The lock is
the kernel's (flock): it ends with the process, however that ends. The file also names the holder.

IDENTITY says which node of which cluster wrote here, and which store this is: a disk that was replaced, or lost what it
had promised to remember, must never pass for the one before. It is written after the databases exist, so that where
it stands a missing database is a loss.
"""

import contextlib
import fcntl
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from broker.storage.durable_mark import fsync_folder
from broker.storage.errors import StoreFailed, StoreLocked

FORMAT: Final = "postbus 2"


@dataclass(frozen=True, slots=True)
class Identity:
    """Whose data directory it is."""

    cluster_id: str
    node_id: int
    store_id: str
    """Of this data directory alone: a new one for a node that lost its disk."""
    replicated: bool = False
    """It has belonged to a node with others beside it: losses are theirs to make good."""


class DataDir:
    """A locked data directory."""

    def __init__(self, path: Path, lock_fd: int) -> None:
        """Use `acquire`."""
        self.path = path
        self._lock_fd: int | None = lock_fd

    @classmethod
    def acquire(cls, path: Path) -> "DataDir":
        """Creates the folder if needed. Raises StoreLocked (naming the holder), StoreFailed."""
        try:
            path.mkdir(parents=True, exist_ok=True)
            fd = os.open(path / "LOCK", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            why = "it is no folder" if path.exists() and not path.is_dir() else str(error)
            raise StoreFailed(f"the data directory {path} cannot be used: {why}") from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(fd)
            raise StoreLocked(f"the data directory {path} is in use by process {holder}") from error
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        data_dir = cls(path, fd)
        try:
            data_dir._check_format()
        except BaseException:
            data_dir.release()
            raise
        return data_dir

    def release(self) -> None:
        """Lets another process in. Idempotent."""
        if self._lock_fd is not None:
            with contextlib.suppress(OSError):
                os.ftruncate(self._lock_fd, 0)
            os.close(self._lock_fd)
            self._lock_fd = None

    def read_identity(self) -> Identity | None:
        """None: never written. Raises StoreFailed."""
        return read_identity(self.path)

    def write_identity(self, identity: Identity) -> None:
        """Durable and whole when it returns."""
        self._write("IDENTITY", json.dumps(asdict(identity)))

    @property
    def unclean(self) -> bool:
        """True: promised records were lost here, and nobody has been told yet."""
        return (self.path / "UNCLEAN").exists()

    def write_unclean(self) -> None:
        """Remembers it across restarts. Durable when it returns."""
        self._write("UNCLEAN", "promised records were lost; see losses.jsonl")

    def clear_unclean(self) -> None:
        """The cluster knows."""
        (self.path / "UNCLEAN").unlink(missing_ok=True)
        fsync_folder(self.path)

    def _check_format(self) -> None:
        file = self.path / "FORMAT"
        try:
            found = file.read_text().strip()
        except FileNotFoundError:
            if (self.path / "data").exists():
                raise StoreFailed(
                    f"{self.path} holds data, but no FORMAT file: is it a Postbus data directory?"
                ) from None
            # Durable before any data, and whole: after a power cut data without a format would be refused.
            self._write("FORMAT", FORMAT)
            return
        if found != FORMAT:
            raise StoreFailed(
                f"{self.path} was written by another version: its format is {found!r}, this version knows {FORMAT!r}"
                " only. Use that version, or name another data directory"
            )

    def _write(self, name: str, text: str) -> None:
        file = self.path / name
        new = file.with_suffix(".new")
        with new.open("w") as open_file:
            open_file.write(text + "\n")
            open_file.flush()
            os.fsync(open_file.fileno())
        new.rename(file)
        fsync_folder(self.path)
        fsync_folder(self.path.absolute().parent)


def read_identity(path: Path) -> Identity | None:
    """Of a data directory that may be in use. None: never written. Raises StoreFailed."""
    try:
        text = (path / "IDENTITY").read_text()
    except FileNotFoundError:
        return None
    try:
        return Identity(**json.loads(text))
    except (ValueError, TypeError) as error:
        raise StoreFailed(
            f"{path / 'IDENTITY'} is damaged: {error}. Put back what `cluster_id`, `node_id` and `store_id` it named,"
            " or give this node an empty data directory to refill"
        ) from error
