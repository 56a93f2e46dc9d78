"""`postbus dev`: its processes, and a whole cluster of them."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from broker.cli import dev_nodes
from broker.cli.dev_nodes import NodeProcess, Phase

# Says what `serve` says; ends by SIGTERM, or as its argument tells it.
SERVE = """
import json, os, signal, sys, time
how = sys.argv[1]
if how == "fails":
    print(json.dumps({"event": "start_failure", "error": "the port is taken"}), file=sys.stderr)
    sys.exit(1)
if how == "usage":
    print("postbus serve: node_id: should be a number", file=sys.stderr)
    sys.exit(2)
if how == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("x" * 2_000_000, file=sys.stderr)
print("no JSON", file=sys.stderr)
print(json.dumps({"event": "node_ready", "seconds": 0.5}), file=sys.stderr, flush=True)
if how == "dies":
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(60)
"""


class Node:
    """A process under test, and what was said of it."""

    def __init__(self, tmp_path: Path, how: str, *, restart: bool = False) -> None:
        self.lines: list[str] = []
        self._news = asyncio.Event()
        self.process = NodeProcess(
            7,
            [how],
            tmp_path / "node.log",
            restart=restart,
            changed=self._changed,
            command=(sys.executable, "-c", SERVE),
        )
        self.running = asyncio.create_task(self.process.run())

    def _changed(self, process: NodeProcess, line: str) -> None:
        assert process is self.process
        self.lines.append(line)
        self._news.set()

    async def until(self, text: str, times: int = 1) -> None:
        while sum(text in line for line in self.lines) < times:
            self._news.clear()
            await self._news.wait()


async def test_a_node_starts_is_ready_and_stops_as_asked(tmp_path: Path) -> None:
    node = Node(tmp_path, "well")
    await node.until("ready in 0.50 s")
    assert node.process.phase is Phase.RUNNING and node.process.pid
    node.process.stop()
    await node.running
    assert node.lines[-2:] == ["node 7 stops", "node 7 stopped"]
    assert "node_ready" in (tmp_path / "node.log").read_text()


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("fails", "node 7 could not start: the port is taken"),
        ("usage", "node 7 could not start: node_id: should be a number"),
    ],
)
async def test_a_node_that_can_not_start_says_why_and_is_not_tried_again(tmp_path: Path, how: str, says: str) -> None:
    node = Node(tmp_path, how, restart=True)
    await node.running
    assert node.lines == ["node 7 starts", says]
    assert not node.process.was_ready


async def test_a_node_that_dies_is_shown_and_left_dead(tmp_path: Path) -> None:
    node = Node(tmp_path, "dies")
    await node.running
    assert node.process.phase is Phase.DEAD and node.process.pid is None
    assert node.lines[-1].startswith("node 7 died: killed by SIGKILL")


async def test_with_restart_it_starts_again_until_it_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dev_nodes, "RESTART_SECONDS", 0)
    node = Node(tmp_path, "dies", restart=True)
    await node.until("starts again", 2)
    node.process.stop()
    await node.running


async def test_a_node_that_does_not_stop_can_be_killed(tmp_path: Path) -> None:
    node = Node(tmp_path, "stubborn")
    await node.until("ready")
    node.process.stop()
    node.process.kill()
    await node.running
    assert node.process.phase is Phase.STOPPED


async def test_a_stop_before_the_process_is_there_is_not_lost(tmp_path: Path) -> None:
    node = Node(tmp_path, "well")
    await node.until("starts")
    node.process.stop()
    await node.running
    assert node.process.phase is Phase.STOPPED


# --- the real thing ----------------------------------------------------------------------------------------------


def _plan(folder: Path) -> Any:
    return json.loads((folder / "dev.json").read_text())


@pytest.fixture
def start_dev(tmp_path: Path) -> Any:
    """Starts three nodes in a folder that is kept; ends what is left."""
    started = []

    def start(make: Callable[..., Any]) -> Any:
        running = make("").start("dev", "--data-dir", str(tmp_path / "c"), "--client-port", "0")
        started.append(running)
        return running

    yield start
    for running in started:
        running.process.kill()
        running.process.wait()


def _until(running: Any, text: str) -> str:
    """Reads lines until one says so."""
    while line := running.line():
        if text in line:
            return str(line)
    raise AssertionError(f"it ended without saying {text!r}: {running.finish()}")


def test_three_nodes_are_one_bus_survive_a_kill_and_are_there_again(
    start_dev: Any, cli_of: Any, tmp_path: Path
) -> None:
    running = start_dev(cli_of)
    named = _until(running, "export POSTBUS_ADDRESS=").split("=")[1].strip()
    guide = _until(running, "Kill one")
    addresses = [f"127.0.0.1:{ports['client']}" for ports in _plan(tmp_path / "c")["ports"].values()]
    assert cli_of(addresses[0])("publish", "greetings", "hello", "--create").code == 0
    os.kill(int(guide.split("kill -9 ")[1].split(".")[0]), signal.SIGKILL)
    _until(running, "node 1 died: killed by SIGKILL")
    _until(running, "12 of 18 replicas in sync")
    second = cli_of("")("dev", "--data-dir", str(tmp_path / "c"), "--client-port", "0")
    assert second.code == 1 and "runs already" in second.err
    assert cli_of(named).ok("subscribe", "greetings", "--count", "1") == "hello\n"
    running.interrupt()
    _until(running, "node 3 stopped")
    assert running.finish().code == 0

    again = start_dev(cli_of)
    _until(again, "Kill one")
    assert cli_of(addresses[2]).ok("subscribe", "greetings", "--count", "1") == "hello\n"
    assert cli_of(addresses[2])("cluster", "health").code == 0
    # Nobody outlives their parent, however it ends.
    children = [int(pid) for pid in _children(again.process.pid)]
    assert len(children) == 3
    again.process.kill()
    for pid in children:
        _wait_gone(pid)


def _children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def _wait_gone(pid: int) -> None:
    """A process that is no child of ours: until the kernel knows it no more."""
    descriptor = os.pidfd_open(pid)
    try:
        import select

        assert select.select([descriptor], [], [], 30)[0]
    finally:
        os.close(descriptor)


def test_a_node_that_can_not_start_ends_all_of_it_with_the_reason(cli_of: Any, tmp_path: Path) -> None:
    done = cli_of("")("dev", "--data-dir", str(tmp_path / "c"), "--client-port", "0", "--set", "reader_threads=0")
    assert done.code == 1
    assert "reader_threads (from flag --reader-threads)" in done.out


def test_wrong_arguments_are_told_before_anything_starts(cli_of: Any, tmp_path: Path) -> None:
    (tmp_path / "letters").touch()
    refused = cli_of("")("dev", "--data-dir", str(tmp_path))
    assert (refused.code, refused.err.count("\n")) == (1, 1) and "not empty" in refused.err
    assert cli_of("")("dev", "--nodes", "0").code == 2
