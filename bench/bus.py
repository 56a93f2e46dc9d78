"""A real node as a process of its own, for a measurement."""

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Bus:
    """A running node."""

    address: str
    pid: int
    start_seconds: float
    """From the command to ready."""
    process: "subprocess.Popen[bytes]"


@contextlib.contextmanager
def running(data: Path) -> Iterator[Bus]:
    """`postbus serve` on a free port until the block ends."""
    bus = start(data)
    try:
        yield bus
    finally:
        stop(bus)


def start(data: Path) -> Bus:
    """Starts it and waits until it is ready."""
    command = [sys.executable, "-m", "broker.cli.main", "serve", "--data-dir", str(data), "--client-port", "0"]
    command += ["--http-port", "off", "--log-format", "json", "--log-level", "info", "--drain-grace-seconds", "0"]
    begin = time.perf_counter()
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    assert process.stderr is not None
    seen: list[str] = []
    for line in process.stderr:
        seen.append(line.decode(errors="replace"))
        with contextlib.suppress(json.JSONDecodeError):
            event = json.loads(line)
            if event.get("event") == "node_ready":
                seconds = time.perf_counter() - begin
                return Bus(f"127.0.0.1:{event['client_port']}", process.pid, seconds, process)
    raise SystemExit("the bus did not start:\n" + "".join(seen))


def stop(bus: Bus) -> None:
    """In good order."""
    bus.process.terminate()
    try:
        bus.process.wait(timeout=30)
    except subprocess.TimeoutExpired:
        kill(bus)


def kill(bus: Bus) -> None:
    """As a crash would."""
    bus.process.send_signal(signal.SIGKILL)
    bus.process.wait()
