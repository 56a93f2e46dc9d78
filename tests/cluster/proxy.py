"""One directed link between two nodes, as something that can be cut: a TCP proxy on the loopback.

A node is told this address for one of its peers. Cut both ways, connections break and new ones are refused after they
were accepted; cut one way, bytes in that direction pile up, as on a network that loses what it should carry.
"""

import asyncio
import contextlib
from enum import Enum

CHUNK_BYTES = 64 * 1024


class Way(Enum):
    """What passes."""

    BOTH = "both"
    NONE = "none"  # connections are broken, and broken again at once
    ONLY_BACK = "only back"  # what the opener sends piles up
    ONLY_FORTH = "only forth"  # what the opened one answers piles up


class LinkProxy:
    """Listens on a port of its own and passes everything on to `target`, as far as `way` lets it."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = 0
        self.way = Way.BOTH
        self.delay_s = 0.0
        self.passed_bytes = 0
        self.held_up = 0  # chunks that had to wait because of the way
        self.broken = 0  # connections that were broken or refused because of the way
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._passes = asyncio.Event()
        self._passes.set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Begins to listen."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    def set(self, way: Way) -> None:
        """Lets so much pass from now on."""
        self.way = way
        if way is Way.NONE:
            self.broken += len(self._open)
            for writer in tuple(self._open):
                writer.transport.abort()
        self._passes.set()  # all look again

    async def close(self) -> None:
        """Ends it."""
        self.set(Way.NONE)
        if self._server is not None:
            self._server.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if self.way is Way.NONE:
            self.broken += 1
            writer.transport.abort()
            return
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.transport.abort()
            return
        self._open |= {writer, back}
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pass(reader, back, forth=True))
                both.create_task(self._pass(there, writer, forth=False))
        except* (OSError, _Ended):
            pass
        finally:
            for one in (writer, back):
                self._open.discard(one)
                one.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, forth: bool) -> None:
        while data := await reader.read(CHUNK_BYTES):
            if not self._may_pass(forth=forth):
                self.held_up += 1
            while not self._may_pass(forth=forth):
                self._passes.clear()
                await self._passes.wait()
            if self.delay_s:
                await asyncio.sleep(self.delay_s)
            writer.write(data)
            await writer.drain()
            self.passed_bytes += len(data)
        with contextlib.suppress(OSError):
            writer.write_eof()
        raise _Ended

    def _may_pass(self, *, forth: bool) -> bool:
        return self.way is Way.BOTH or self.way is (Way.ONLY_FORTH if forth else Way.ONLY_BACK)


class _Ended(Exception):  # noqa: N818 - named for what happened
    """One side closed."""
