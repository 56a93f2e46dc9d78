"""The clients of the run as its conductor sees them: started, stopped, and their notes read as one history.

Judges by the rules of the kill tests (`tests/chaos/history.py`): nothing acknowledged is lost, nothing is read twice at
two places, each key keeps its order, the group misses nothing and commits nothing that was not acknowledged.
"""

import asyncio
import itertools
import json
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from history import Acknowledged, Event, Outcome, Place, Polled, Positioned, Sent
from machine import Machine
from pod_process import Process, script

STOP_S = 150.0
CLIENTS = Path(__file__).with_name("clients.py")


@dataclass(frozen=True, slots=True)
class Pauses:
    """Of a stretch of time: the longest without an acknowledgement, and what else there is to say of it."""

    acknowledged: int
    failed: int
    longest_s: float
    slowest_s: float  # one record's way
    publisher_held_s: float  # the publisher itself had no processor for so long


class Load:
    """Publishers and consumers of one topic."""

    def __init__(self, machine: Machine, namespace: str, address: str, topic: str, group: str) -> None:
        self.topic = topic
        self._machine = machine
        self._namespace = namespace
        self._address = address
        self._group = group
        self._folder = machine.folder / "clients"
        self._folder.mkdir()
        self._running: dict[str, tuple[Process, asyncio.Task[int]]] = {}
        self._kinds: dict[str, str] = {}
        self._known: dict[str, list[list[Any]]] = {}
        self._read_up_to: dict[str, int] = {}
        self._looked_at: dict[str, int] = {}
        self._seen: dict[str, set[str]] = {"consume": set(), "read": set()}

    # --- processes ---

    async def start(self, kind: str, name: str) -> None:
        """kind: publish, consume or read. Each name is used once."""
        assert name not in self._kinds
        self._kinds[name] = kind
        command = [sys.executable, str(CLIENTS), kind, name, self._address, self.topic, str(self._path(name))]
        process = await self.command(command, log=self._folder / f"{name}.log")
        self._running[name] = (process, asyncio.create_task(process.wait()))

    async def command(self, command: list[str], *, log: Path) -> Process:
        """Starts something that resolves names as the pods do."""
        scratch = self._folder / "scratch"
        scratch.mkdir(exist_ok=True)
        binds = self._machine.name_files(self._namespace)
        environment = {"PATH": os.environ["PATH"], "POSTBUS_ADDRESS": self._address, "COLUMNS": "200"}
        return await Process.start(script(command, environment, binds, scratch=scratch), log)

    async def stop(self, *names: str) -> None:
        """Each finishes what it has under way, and must end well."""
        for name in names:
            self._running[name][0].send(signal.SIGTERM)
        for name in names:
            process, ended = self._running.pop(name)
            done, _ = await asyncio.wait([ended], timeout=STOP_S)
            if not done:
                process.kill()
            code = await ended
            assert code == 0, f"{name} ended with {code}:\n{self.log(name)}"

    def running(self, kind: str) -> list[str]:
        return [name for name in self._running if self._kinds[name] == kind]

    def check_alive(self) -> None:
        """A client that ended by itself is a failure of the bus."""
        for name, (_, ended) in self._running.items():
            assert not ended.done(), f"{name} ended with {ended.result()}:\n{self.log(name)}"

    async def close(self) -> None:
        """Ends what runs, at the end of a run that failed."""
        for process, _ in self._running.values():
            process.kill()
        await asyncio.gather(*(ended for _, ended in self._running.values()))

    def log(self, name: str) -> str:
        """The end of what a client printed."""
        return (self._folder / f"{name}.log").read_text(errors="replace")[-3000:]

    # --- what they saw ---

    def published(self) -> list[list[Any]]:
        """All lines of all publishers so far, each behind its publisher's name; see `clients.publish`."""
        publishers = [name for name, kind in self._kinds.items() if kind == "publish"]
        return [[name, *line] for name in publishers for line in self._lines(name)]

    def answered(self) -> int:
        """How many publishes have been answered."""
        return sum(len(self._lines(name)) for name, kind in self._kinds.items() if kind == "publish")

    def pauses(self, begin: float, end: float) -> Pauses:
        """Between two moments."""
        lines = [line for line in self.published() if line[4] >= begin and line[3] <= end]
        acknowledged = sorted(line[4] for line in lines if line[5] is not None and line[4] <= end)
        sent = sorted(line[3] for line in lines if line[3] >= begin)
        moments = [begin, *acknowledged, end]
        return Pauses(
            acknowledged=len(acknowledged),
            failed=sum(line[5] is None for line in lines),
            longest_s=max((b - a for a, b in itertools.pairwise(moments)), default=0.0),
            slowest_s=max((line[4] - line[3] for line in lines), default=0.0),
            publisher_held_s=max((b - a for a, b in itertools.pairwise(sent)), default=0.0),
        )

    def count(self, kind: str) -> int:
        """How many there were in all."""
        return sum(one == kind for one in self._kinds.values())

    def seen_by_all(self) -> int:
        """How many records both the group and those who read alone have seen."""
        for name, kind in self._kinds.items():
            if kind != "publish":
                lines = self._lines(name)
                for line in lines[self._looked_at.get(name, 0) :]:
                    if line[0] == "got":
                        self._seen[kind].update(line[3])
                self._looked_at[name] = len(lines)
        return len(self._seen["consume"] & self._seen["read"])

    def got(self) -> int:
        """How many records the group has seen, repeats included."""
        return sum(
            len(line[3])
            for name, kind in self._kinds.items()
            if kind == "consume"
            for line in self._lines(name)
            if line[0] == "got"
        )

    def events(self) -> Iterator[Event]:
        """All that the clients noted; what happened to whom at the same time is in no order, as nobody could tell."""
        for line in self.published():
            name, number, key, _, _, partition, offset = line
            ok = partition is not None
            yield Sent(
                name,
                f"{name} {number}",
                Outcome.OK if ok else Outcome.UNKNOWN,
                lane=key,
                number=number,
                place=Place(self.topic, partition) if ok else None,
                offset=offset if ok else None,
            )
        for name, kind in self._kinds.items():
            if kind != "publish":
                yield from self._seen_by(name, self._group if kind == "consume" else "")

    def _seen_by(self, name: str, group: str) -> Iterator[Event]:
        for line in self._lines(name):
            match line:
                case ["at", partition, offset]:
                    yield Positioned(name, Place(self.topic, partition), offset)
                case ["got", partition, base, values]:
                    for index, value in enumerate(values):
                        yield Polled(name, Place(self.topic, partition), base + index, value, group)
                case ["done", partition, base, end] if group:
                    yield Acknowledged(group, Place(self.topic, partition), base, end)

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.jsonl"

    def _lines(self, name: str) -> list[list[Any]]:
        """All that it has written so far; read once."""
        known = self._known.setdefault(name, [])
        path = self._path(name)
        if path.exists():
            with path.open("rb") as file:
                file.seek(self._read_up_to.get(name, 0))
                data = file.read()
            whole = data[: data.rfind(b"\n") + 1]
            self._read_up_to[name] = self._read_up_to.get(name, 0) + len(whole)
            known += [json.loads(line) for line in whole.splitlines()]
        return known
