"""Lines of standard input as they come, for an event loop: a thread reads, the loop gets what there is.

Regular files cannot be watched by an event loop, and a blocked read cannot be cancelled; so the thread is a daemon,
which a command that ends leaves behind. At most a few reads are kept ahead.
"""

import asyncio
import os
import threading
from typing import Final

READ_BYTES: Final = 256 * 1024
READS_AHEAD: Final = 4
LINE_BYTES_MAX: Final = 64 * 1024 * 1024


class LineTooLong(Exception):  # noqa: N818 - named for what happened
    """A line is longer than LINE_BYTES_MAX: this is no text."""


class Lines:
    """Lists of lines, without their newlines; the last line may lack one."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[list[bytes] | Exception | None] = asyncio.Queue(READS_AHEAD)
        threading.Thread(target=self._read, name="stdin", daemon=True).start()

    async def get(self) -> list[bytes]:
        """What came since; empty at the end. Raises OSError, LineTooLong."""
        got = await self._queue.get()
        if isinstance(got, Exception):
            raise got
        return got or []

    def _read(self) -> None:
        rest: list[bytes] = []
        rest_bytes = 0
        try:
            while data := os.read(self._fd, READ_BYTES):
                head, newline, tail = data.rpartition(b"\n")
                if newline:
                    lines = (b"".join(rest) + head).split(b"\n")
                    rest, rest_bytes = [tail], len(tail)
                    self._put(lines)
                else:
                    rest.append(tail)
                    rest_bytes += len(tail)
                    if rest_bytes > LINE_BYTES_MAX:
                        raise LineTooLong(f"a line of more than {LINE_BYTES_MAX} bytes")
            if any(rest):
                self._put([b"".join(rest)])
            self._put(None)
        except (OSError, LineTooLong) as error:
            self._put(error)

    def _put(self, what: list[bytes] | Exception | None) -> None:
        try:
            asyncio.run_coroutine_threadsafe(self._queue.put(what), self._loop).result()
        except RuntimeError:  # the loop is closed: nobody listens any more
            return
