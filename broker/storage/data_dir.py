"""The data directory: its exclusive lock and its format.

RocksDB writes into a folder before it takes its own lock, so a second process must be stopped earlier. The lock is
the kernel's (flock): it ends with the process, however that ends. The file also names the holder.
"""

import contextlib
import fcntl
import os
from pathlib import Path
from typing import Final

from broker.storage.durable_mark import fsync_folder
from broker.storage.errors import StoreFailed, StoreLocked

FORMAT: Final = "postbus 1"


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

    def _check_format(self) -> None:
        file = self.path / "FORMAT"
        try:
            found = file.read_text().strip()
        except FileNotFoundError:
            if (self.path / "data").exists():
                raise StoreFailed(
                    f"{self.path} holds data, but no FORMAT file: is it a Postbus data directory?"
                ) from None
            self._write_format(file)
            return
        if found != FORMAT:
            raise StoreFailed(f"{self.path} was written by another version: format {found!r}, this is {FORMAT!r}")

    def _write_format(self, file: Path) -> None:
        # Durable before any data, and whole: after a power cut data without a format would be refused.
        new = file.with_suffix(".new")
        with new.open("w") as open_file:
            open_file.write(FORMAT + "\n")
            open_file.flush()
            os.fsync(open_file.fileno())
        new.rename(file)
        fsync_folder(self.path)
        fsync_folder(self.path.absolute().parent)
