"""A live broker, the Go and Node clients built once a session, and programs under test as child processes.

Nothing here waits for a length of time: a test waits for a line that a program prints, for its end, or for the broker's
word. Every wait has a bound. Only processes started here are ended here, each by its own id.
"""

import asyncio
import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator
from pathlib import Path
from typing import Any, Self

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from postbus.v1 import (
    group_pb2,
    group_pb2_grpc,
    record_pb2,
    subscriber_pb2,
    subscriber_pb2_grpc,
    topic_pb2,
    topic_pb2_grpc,
)

ROOT = Path(__file__).parents[2]
# The harness of real processes, which tests import by path.
sys.path[:0] = [str(ROOT / "tests/cluster"), str(ROOT / "tests/chaos")]

from cluster import Cluster  # noqa: E402

WAIT_S = 60.0
BUILD_S = 600.0
GO_MINIMUM = (1, 24)
NODE_MINIMUM = (18, 0)


class Program:
    """A child process: its lines of standard output as they come, and its end."""

    def __init__(
        self, *command: str | Path, log: Path, cwd: Path | None = None, news: threading.Condition | None = None
    ) -> None:
        self.name = " ".join(map(str, command))
        self._log = log
        with log.open("ab") as stderr:
            self._child = subprocess.Popen(
                command,
                cwd=cwd,
                env={name: value for name, value in os.environ.items() if not name.startswith("POSTBUS_")},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )
        self.lines: list[str] = []
        self._news = news or threading.Condition()
        self._reading = threading.Event()
        self._reading.set()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._child.poll() is None:
            self._child.send_signal(signal.SIGCONT)
            self._child.kill()
        self._child.wait()
        self._reading.set()
        self._reader.join(WAIT_S)
        with contextlib.suppress(BrokenPipeError):
            self._child.stdin.close()
        self._child.stdout.close()

    def say(self, lines: Iterable[str]) -> None:
        """Writes lines to its standard input."""
        try:
            self._child.stdin.writelines(line + "\n" for line in lines)
            self._child.stdin.flush()
        except BrokenPipeError:
            pytest.fail(f"{self.name} ended, with {self.wait()}\n{self.errors()}")

    def finish_input(self) -> None:
        """Ends its standard input."""
        self._child.stdin.close()

    def stop_reading(self) -> None:
        """Lets its standard output fill up, until it blocks there; its end lets the rest be read."""
        self._reading.clear()

    def wait(self) -> int:
        """Waits for its end; returns its exit code, with all its lines in `lines`."""
        try:
            code = self._child.wait(WAIT_S)
        except subprocess.TimeoutExpired:
            pytest.fail(f"it should have ended\n{self.errors()}")
        self._reader.join(WAIT_S)
        return code

    def send(self, number: signal.Signals) -> None:
        """Sends a signal."""
        self._child.send_signal(number)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Asks it to end; returns its exit code."""
        self._child.send_signal(number)
        return self.wait()

    def kill(self) -> None:
        """Ends it without asking; `lines` has all that it wrote in full."""
        self._child.kill()
        self._child.wait()
        self._reading.set()
        self._reader.join(WAIT_S)

    def call_at_end(self, act: Callable[[], object]) -> None:
        """Waits for its end, however long that takes, and then acts."""
        self._child.wait()
        act()

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._child.poll() is None

    def errors(self) -> str:
        """The end of its standard error."""
        return self._log.read_text(errors="replace")[-3000:]

    def _read(self) -> None:
        for line in self._child.stdout:
            if line.endswith("\n"):
                with self._news:
                    self.lines.append(line.rstrip("\n"))
                    self._news.notify_all()
            self._reading.wait()
        with self._news:
            self._news.notify_all()


class Programs:
    """The programs of one test; called, it starts one more."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stack = contextlib.ExitStack()
        self._started: list[Program] = []
        self._news = threading.Condition()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def __call__(self, *command: str | Path, cwd: Path | None = None) -> Program:
        log = self._folder / f"program-{len(self._started)}.log"
        program = self._stack.enter_context(Program(*command, log=log, cwd=cwd, news=self._news))
        self._started.append(program)
        return program

    def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        """Waits until what the programs have printed so far satisfies `condition`."""
        with self._news:
            if self._news.wait_for(condition, WAIT_S):
                return
            said = [
                f"\n{p.name}: {'runs' if p.running else 'ended'}, {len(p.lines)} lines\n{p.errors()}"
                for p in self._started
            ]
            pytest.fail(f"waited for {what}{''.join(said)}")


class Bus:
    """What tests ask of a bus at an address. `address` is what programs are given."""

    address: str

    def create_topic(self, name: str, *, partitions: int = 6) -> None:
        """Creates a topic."""
        with grpc.insecure_channel(self.address) as channel:
            request = topic_pb2.CreateTopicRequest(name=name, partition_count=partitions)
            topic_pb2_grpc.TopicServiceStub(channel).CreateTopic(request, timeout=WAIT_S)

    def rewind(self, group: str, topic: str) -> None:
        """Moves the committed offsets of a group without members back to the first record."""
        to = subscriber_pb2.StartPosition(edge=subscriber_pb2.LOG_EDGE_EARLIEST)
        with grpc.insecure_channel(self.address) as channel:
            request = group_pb2.ResetOffsetsRequest(group=group, topic=topic, to=to)
            group_pb2_grpc.GroupServiceStub(channel).ResetOffsets(request, timeout=WAIT_S)

    def records(self, topic: str) -> dict[int, list[record_pb2.Record]]:
        """Everything in a topic now, by partition, in order."""
        start = subscriber_pb2.SubscribeStart(
            topics=[
                subscriber_pb2.TopicSelector(
                    topic=topic, stop_at=subscriber_pb2.StopPosition(edge=subscriber_pb2.LOG_EDGE_LATEST)
                )
            ]
        )
        found: dict[int, list[record_pb2.Record]] = {}
        done = threading.Event()

        def requests() -> Iterator[subscriber_pb2.SubscribeRequest]:
            yield subscriber_pb2.SubscribeRequest(start=start)
            done.wait(WAIT_S)  # half-closing would end the subscription

        with grpc.insecure_channel(self.address) as channel:
            stub = subscriber_pb2_grpc.SubscriberServiceStub(channel)
            try:
                for response in stub.Subscribe(requests(), timeout=WAIT_S):
                    for delivered in response.batches:
                        found.setdefault(delivered.delivery.partition, []).extend(delivered.batch.records)
            finally:
                done.set()
        return found

    def watch(self, topic: str, until: Callable[[list[record_pb2.Record]], bool]) -> list[record_pb2.Record]:
        """Follows a topic from its beginning until its records satisfy `until`; returns them."""
        start = subscriber_pb2.SubscribeStart(topics=[subscriber_pb2.TopicSelector(topic=topic)])
        found: list[record_pb2.Record] = []
        done = threading.Event()

        def requests() -> Iterator[subscriber_pb2.SubscribeRequest]:
            yield subscriber_pb2.SubscribeRequest(start=start)
            done.wait(WAIT_S)

        with grpc.insecure_channel(self.address) as channel:
            call = subscriber_pb2_grpc.SubscriberServiceStub(channel).Subscribe(requests(), timeout=WAIT_S)
            try:
                for response in call:
                    for delivered in response.batches:
                        found.extend(delivered.batch.records)
                    if until(found):
                        return found
            except grpc.RpcError as error:
                pytest.fail(f"{topic} has {len(found)} records, and then: {error.details()}")
            finally:
                done.set()
                call.cancel()
        pytest.fail(f"the subscription to {topic} ended after {len(found)} records")


class Broker(Bus):
    """`postbus serve` as a child, on ports and a data directory that it keeps across restarts."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._client_port, self._http_port = _free_ports(2)
        self._program: Program | None = None
        self.address = f"127.0.0.1:{self._client_port}"

    def start(self) -> None:
        """Starts it and waits until it serves."""
        self._program = Program(
            sys.executable, "-m", "broker.cli.main", "serve",
            "--data-dir", self._folder / "data",
            "--client-port", str(self._client_port),
            "--http-port", str(self._http_port),
            log=self._folder / "broker.log", cwd=self._folder,
        )  # fmt: skip
        with grpc.insecure_channel(self.address, [("grpc.initial_reconnect_backoff_ms", 100)]) as channel:
            request = health_pb2.HealthCheckRequest()
            call = health_pb2_grpc.HealthStub(channel).Watch(request, timeout=WAIT_S, wait_for_ready=True)
            threading.Thread(target=self._program.call_at_end, args=(call.cancel,), daemon=True).start()
            try:
                for answer in call:
                    if answer.status == health_pb2.HealthCheckResponse.SERVING:
                        return
            except grpc.RpcError as error:
                pytest.fail(f"the broker does not serve: {error.details()}\n{self._program.errors()}")

    def kill(self) -> None:
        """kill -9."""
        self._program.kill()

    def stop(self) -> None:
        """Ends it as a supervisor would."""
        if self._program is not None:
            with self._program:
                if self._program.running:
                    self._program.stop()


class Nodes:
    """Three brokers that are one bus: the harness of tests/cluster, on a loop of its own beside the test's thread."""

    def __init__(self, folder: Path) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._cluster = Cluster(folder)

    def start(self) -> None:
        """Starts those that do not run; returns when all replicas are in sync."""
        self._do(self._cluster.start())
        self._do(self._cluster.until_in_sync())

    def kill(self, number: int) -> None:
        """kill -9."""
        self._do(self._cluster.kill(number))

    def close(self) -> None:
        """Ends them, and the loop."""
        try:
            self._do(self._cluster.close())
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(WAIT_S)
            self._loop.close()

    def node(self, number: int) -> Bus:
        """The bus through one node."""
        bus = Bus()
        bus.address = self._cluster.nodes[number].target
        return bus

    def all(self, *numbers: int) -> Bus:
        """The bus through whichever of these nodes is there, the first of them first."""
        bus = Bus()
        bus.address = "ipv4:" + ",".join(self._cluster.nodes[number].target for number in numbers)
        return bus

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            asyncio.run_coroutine_threadsafe(work, self._loop).result(2 * WAIT_S)
        except Exception as error:
            error.add_note(self._cluster.log())
            raise


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A broker that tests share: each uses topics and groups of its own, and leaves it running."""
    yield from _live(tmp_path_factory.mktemp("broker"))


@pytest.fixture
def own_broker(tmp_path: Path) -> Iterator[Broker]:
    """A broker with an empty store, for one test to do with as it likes."""
    yield from _live(tmp_path)


def _live(folder: Path) -> Iterator[Broker]:
    live = Broker(folder)
    try:
        live.start()
        yield live
    finally:
        live.stop()


@pytest.fixture(scope="session")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """Three nodes that tests share, and leave running."""
    yield from _live_nodes(tmp_path_factory.mktemp("nodes"))


@pytest.fixture
def own_nodes(tmp_path: Path) -> Iterator[Nodes]:
    """Three nodes for one test to do with as it likes."""
    yield from _live_nodes(tmp_path)


def _live_nodes(folder: Path) -> Iterator[Nodes]:
    live = Nodes(folder)
    try:
        live.start()
        yield live
    finally:
        live.close()


@pytest.fixture
def topic(request: pytest.FixtureRequest) -> str:
    """The name of a topic, and of a group, that no other test uses."""
    return re.sub(r"[^a-z0-9]+", "-", request.node.name).strip("-")


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Programs]:
    """Starts programs, and ends those that still run when the test is over."""
    with Programs(tmp_path) as programs:
        yield programs


@pytest.fixture(scope="session")
def go() -> str:
    """The Go command."""
    return _toolchain("go", ["version"], GO_MINIMUM)


@pytest.fixture(scope="session")
def build() -> Callable[..., None]:
    """Runs a build command; the test fails with what it said if it fails."""
    return _build


@pytest.fixture(scope="session")
def go_clients(go: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the programs of clients/go: publisher, subscriber, bench."""
    folder = tmp_path_factory.mktemp("go")
    _build([go, "build", "-o", f"{folder}/", "./examples/...", "./bench"], cwd=ROOT / "clients/go")
    return folder


@pytest.fixture(scope="session")
def node_clients() -> tuple[str, Path]:
    """The Node command, and clients/node/examples with its packages installed."""
    node = _toolchain("node", ["--version"], NODE_MINIMUM)
    npm = _toolchain("npm", ["--version"], (0, 0))
    package = ROOT / "clients/node"
    lock, installed = package / "package-lock.json", package / "node_modules/.package-lock.json"
    if not installed.exists() or installed.stat().st_mtime < lock.stat().st_mtime:
        _build([npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"], cwd=package)
    return node, package / "examples"


class Language:
    """How the example programs of one language are started."""

    def __init__(self, publisher: list[str | Path], subscriber: list[str | Path]) -> None:
        self._publisher = publisher
        self._subscriber = subscriber

    def publisher(self, bus: Bus, topic: str) -> list[str | Path]:
        """The publisher of lines from standard input: key, tab, value."""
        return [*self._publisher, "--address", bus.address, "--topic", topic, "--key-delimiter", r"\t"]

    def subscriber(self, bus: Bus, topic: str, *, group: str) -> list[str | Path]:
        """The group subscriber; it prints partition, offset, key and value, separated by tabs."""
        return [*self._subscriber, "--address", bus.address, "--group", group, topic]


@pytest.fixture
def language(request: pytest.FixtureRequest) -> Callable[[str], Language]:
    """The programs of "go" or "node", built when first asked for."""

    def programs(name: str) -> Language:
        if name == "go":
            folder = request.getfixturevalue("go_clients")
            return Language([folder / "publisher"], [folder / "subscriber"])
        node, examples = request.getfixturevalue("node_clients")
        return Language([node, examples / "publisher.js"], [node, examples / "subscriber.js"])

    return programs


def _toolchain(name: str, version_arguments: list[str], minimum: tuple[int, int]) -> str:
    """Skips the test without the tool, except where tools are required (in CI): there it fails."""
    path = shutil.which(name)
    problem = f"{name} is not installed"
    if path is not None:
        said = subprocess.run([path, *version_arguments], capture_output=True, text=True, check=True).stdout
        version = re.search(r"(\d+)\.(\d+)", said)
        if version is not None and (int(version[1]), int(version[2])) >= minimum:
            return path
        problem = f"{name} is too old: {said.strip()}"
    message = f"{problem}; this test needs {name} {minimum[0]}.{minimum[1]} or newer"
    if os.environ.get("CI") == "true" or os.environ.get("POSTBUS_REQUIRE_TOOLCHAINS") == "1":
        pytest.fail(message)
    pytest.skip(message)


def _build(command: list[str | Path], *, cwd: Path) -> None:
    built = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=BUILD_S, check=False)
    if built.returncode != 0:
        pytest.fail(f"{' '.join(map(str, command))} failed:\n{built.stdout[-3000:]}{built.stderr[-3000:]}")
