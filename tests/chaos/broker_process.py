"""A broker as its operator sees it: a process with a port and a data directory, that can be killed and started again.

Only processes started here are ended here, by their own id. Nothing waits for a length of time: a start waits for the
event node_ready, an end for the process, both within a bound.
"""

import asyncio
import contextlib
import itertools
import json
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

WAIT_S = float(os.environ.get("POSTBUS_TEST_WAIT_S", "60"))
STDERR_LINES_KEPT = 200


class BrokerEnded(Exception):  # noqa: N818 - named for what happened
    """It was to become ready and ended instead."""


class BrokerProcess:
    """One data directory and one port; one process at a time. `ready` is set while it serves."""

    def __init__(self, folder: Path, *, environment: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self.port = free_port()
        self.environment = dict(environment or {})
        self.launcher: tuple[str, ...] = ()  # a command that runs the one after it
        self.ready = asyncio.Event()
        self.starts: list[dict[str, Any]] = []
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._lines: deque[str] = deque(maxlen=STDERR_LINES_KEPT)
        self._lines_of_process: deque[str] = deque(maxlen=STDERR_LINES_KEPT)
        self._news = asyncio.Event()

    @property
    def target(self) -> str:
        """Where clients connect."""
        return f"127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Of the process that runs."""
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether there is a process."""
        return self._process is not None

    def signal(self, number: signal.Signals) -> None:
        """To the process."""
        assert self._process is not None
        self._process.send_signal(number)

    async def start(self, *, wait: bool = True, **environment: str) -> None:
        """Starts a process, with settings by environment; returns when it serves (`wait`), or at once."""
        assert self._process is None
        self._lines_of_process.clear()
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("POSTBUS_")}
        command = ["serve", "--data-dir", str(self.folder), "--client-port", str(self.port)]
        if "POSTBUS_HTTP_PORT" not in self.environment:
            command += ["--http-port", "off"]
        self._process = await asyncio.create_subprocess_exec(
            *self.launcher,
            sys.executable,
            "-m",
            "broker.cli.main",
            *command,
            "--log-format",
            "json",
            env={**inherited, **self.environment, **environment},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        self._reader = asyncio.create_task(self._read(self._process))
        if wait:
            await self.until_ready()

    async def until_ready(self) -> None:
        """Waits for node_ready; raises BrokerEnded if that will not come."""
        await self._until(self.ready.is_set, or_end=True)

    async def until_logged(self, text: str) -> None:
        """Waits until a line that the process that runs has logged holds this."""
        await self._until(lambda: any(text in line for line in self._lines_of_process))

    async def kill(self) -> None:
        """SIGKILL; returns when the process is gone."""
        assert self._process is not None
        self._process.kill()
        assert await self.wait() == -signal.SIGKILL

    async def stop(self) -> int:
        """SIGTERM; the exit code."""
        assert self._process is not None
        self._process.terminate()
        return await self.wait()

    async def wait(self) -> int:
        """Waits for the end; the exit code."""
        process, reader = self._process, self._reader
        assert process is not None and reader is not None
        async with asyncio.timeout(WAIT_S):
            code = await process.wait()
            await reader
        self.ready.clear()
        self._process = self._reader = None
        return code

    async def close(self) -> None:
        """Ends what runs, if anything does."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self.wait()

    def log(self) -> str:
        """The end of what it logged."""
        return "\n".join(self._lines)

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stderr is not None
        async for line in process.stderr:
            text = line.decode(errors="replace").rstrip()
            self._lines.append(text)
            self._lines_of_process.append(text)
            if '"node_ready"' in text:
                self.starts.append(json.loads(text))
                self.ready.set()
            self._news.set()
        self._news.set()

    async def _until(self, came: Callable[[], bool], *, or_end: bool = False) -> None:
        assert self._reader is not None
        async with asyncio.timeout(WAIT_S):
            while not came():
                if or_end and self._reader.done():
                    code = await self.wait()
                    raise BrokerEnded(f"exit code {code}\n{self.log()}")
                self._news.clear()
                await self._news.wait()


def free_port(*, besides: Collection[int] = ()) -> int:
    """One outside the range that connections are given: a client that tries a port there may meet itself."""
    for _ in range(len(_PORTS)):
        port = next(_next_ports)
        if port in besides:
            continue
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no free port")


def _ports() -> range:
    """Of this process alone, where two share the tests: between the look and its use a port is anybody's."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    if not worker:
        return range(20_000, 32_768)
    first = 20_000 + int(worker.removeprefix("gw")) % 6 * 2_000
    return range(first, first + 2_000)


_PORTS = _ports()
# None is given again soon, and other runs of the tests begin elsewhere.
_next_ports = itertools.cycle([*_PORTS[os.getpid() % len(_PORTS) :], *_PORTS[: os.getpid() % len(_PORTS)]])
