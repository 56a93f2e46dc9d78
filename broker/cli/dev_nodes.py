"""The processes of `postbus dev`: started, listened to, started again if asked, and ended with their parent."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Final

LINE_BYTES_MAX: Final = 1024 * 1024
RESTART_SECONDS: Final = 1.0


class Phase(StrEnum):
    """Of a process."""

    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    STOPPED = "stopped"
    DEAD = "dead"


COMMAND: Final = (sys.executable, "-m", "broker.cli.dev_child")


class NodeProcess:
    """One node. `changed` is called whenever its phase changes, with what a person should read."""

    def __init__(
        self,
        node_id: int,
        flags: Sequence[str],
        log_path: Path,
        *,
        restart: bool,
        changed: Callable[["NodeProcess", str], None],
        command: Sequence[str] = COMMAND,
    ) -> None:
        self.node_id = node_id
        self.phase = Phase.STARTING
        self.starts = 0
        self.was_ready = False  # since its last start
        self.failure = ""  # what it said when it could not start
        self.exit_code: int | None = None
        self._command = tuple(command)
        self._flags = tuple(flags)
        self._log_path = log_path
        self._restart = restart
        self._changed = changed
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int | None:
        """Of the process, while there is one."""
        return None if self._process is None or self._process.returncode is not None else self._process.pid

    async def run(self) -> None:
        """Until it is stopped, or dead and not to be started again."""
        with contextlib.suppress(OSError):
            self._log_path.replace(self._log_path.with_suffix(".log.before"))
        while True:
            await self._run_once()
            if self.phase is Phase.STOPPED or not self.was_ready:
                return
            if self._restart:
                await asyncio.sleep(RESTART_SECONDS)
            if not self._restart:  # perhaps only since then
                return

    async def _run_once(self) -> None:
        self.was_ready = False
        self.starts += 1
        self._enter(Phase.STARTING, f"node {self.node_id} starts" + (" again" if self.starts > 1 else ""))
        # A session of its own, so that Ctrl-C reaches only the parent, which knows in which order to go on.
        self._process = process = await asyncio.create_subprocess_exec(
            *(*self._command, *self._flags),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
            limit=LINE_BYTES_MAX,
            env={name: value for name, value in os.environ.items() if name != "POSTBUS_CONFIG"},
        )
        if self.phase is Phase.STOPPING:  # meanwhile
            process.terminate()
        await self._listen(process)
        code = self.exit_code = await process.wait()
        if self.phase is Phase.STOPPING:
            self._enter(Phase.STOPPED, f"node {self.node_id} stopped")
        else:
            self._enter(Phase.DEAD, f"node {self.node_id} {self.how_it_ended(code)}")

    async def _listen(self, process: asyncio.subprocess.Process) -> None:
        assert process.stderr is not None
        with self._log_path.open("ab", buffering=0) as log:
            while True:
                try:
                    line = await process.stderr.readline()
                except ValueError:  # longer than any line of ours
                    continue
                if not line:
                    return
                log.write(line)
                self._understand(line)

    def _understand(self, line: bytes) -> None:
        try:
            said = json.loads(line)
            event = said["event"]
        except (ValueError, TypeError, KeyError):
            if self.phase is Phase.STARTING and line.startswith(b"postbus serve:"):
                self.failure = line.decode(errors="replace").strip().removeprefix("postbus serve: ")
            return
        if event == "node_ready":
            self.was_ready = True
            if self.phase is Phase.STARTING:
                self._enter(Phase.RUNNING, f"node {self.node_id} is ready in {said.get('seconds', 0):.2f} s")
        elif event == "start_failure":
            self.failure = str(said.get("error", ""))

    def how_it_ended(self, code: int) -> str:
        """For people."""
        if self.failure:
            return f"could not start: {self.failure}"
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return f"died: {how}; its log is {self._log_path}"

    def stop(self) -> None:
        """Gracefully."""
        if self.phase is Phase.DEAD:
            self._restart = False
        elif self.phase in (Phase.STARTING, Phase.RUNNING):
            self._enter(Phase.STOPPING, f"node {self.node_id} stops")
            self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """At once. Nothing acknowledged is lost."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    def _enter(self, phase: Phase, line: str) -> None:
        # A stop that was asked for is not forgotten because the process is only just starting.
        if not (self.phase is Phase.STOPPING and phase is Phase.STARTING):
            self.phase = phase
        self._changed(self, line)
