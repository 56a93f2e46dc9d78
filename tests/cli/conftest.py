"""A real broker in a process of its own, and the real command: what the tests of the command line stand on."""

import asyncio
import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
from postbus import Client, NewRecord

from broker.cli.main import main

# No package here (tests are imported by path), so the fake's folder has to be named.
sys.path.insert(0, str(Path(__file__).parent))

T = TypeVar("T")

POSTBUS = (sys.executable, "-m", "broker.cli.main")
END_SECONDS = 30


def environment(**extra: str) -> dict[str, str]:
    """Ours without what would configure the command."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("POSTBUS_")}
    return kept | extra


class Broker:
    """`postbus serve` on one data directory; it can be killed and started again on the same port."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.port = 0
        self.ready: dict[str, object] = {}
        self._process: subprocess.Popen[str] | None = None

    def start(self, *flags: str) -> "Broker":
        """Returns once it is ready."""
        self._process = subprocess.Popen(
            [
                *(*POSTBUS, "serve", "--data-dir", str(self.data_dir), "--client-port", str(self.port)),
                *("--http-port", "off", "--log-format", "json", *flags),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        assert self._process.stderr is not None
        said = []
        for line in self._process.stderr:
            said.append(line)
            if '"node_ready"' in line:
                self.ready = json.loads(line)
                self.port = int(str(self.ready["client_port"]))
                # Nobody must block on a full pipe.
                threading.Thread(target=self._process.stderr.read, daemon=True).start()
                return self
        raise AssertionError(f"the broker did not start: {''.join(said)}")

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Its process."""
        assert self._process is not None
        return self._process.pid

    def tell(self, number: signal.Signals) -> None:
        """Sends it one."""
        assert self._process is not None
        self._process.send_signal(number)

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Ends it by a signal; its exit code."""
        assert self._process is not None
        if self._process.poll() is None:
            self._process.send_signal(number)
        return self._process.wait(END_SECONDS)


@dataclass(frozen=True)
class Done:
    """A command that ended."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Cli:
    """The command, against one broker."""

    address: str

    def __call__(self, *arguments: str, stdin: str | bytes | None = None) -> Done:
        """Runs it to its end."""
        return self.start(*arguments, stdin=stdin is not None).finish(stdin)

    def ok(self, *arguments: str, stdin: str | bytes | None = None) -> str:
        """Runs it to its end, which must be a success; what it printed."""
        done = self(*arguments, stdin=stdin)
        assert done.code == 0, done
        return done.out

    def start(self, *arguments: str, stdin: bool = False) -> "Running":
        """Starts it."""
        return Running(
            subprocess.Popen(
                [*POSTBUS, *arguments],
                stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=environment(POSTBUS_ADDRESS=self.address),
            )
        )


@dataclass(frozen=True)
class Inside:
    """The command in this process: half a second faster, for what asks and answers only."""

    address: str

    def __call__(self, *arguments: str) -> Done:
        """Runs it to its end."""
        out, err = io.StringIO(), io.StringIO()
        # As from a script: nobody is there to ask.
        with (
            pytest.MonkeyPatch.context() as patch,
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            open(os.devnull) as nothing,
        ):
            patch.setattr(sys, "stdin", nothing)
            patch.setattr(sys, "argv", ["postbus", *arguments])
            patch.setenv("POSTBUS_ADDRESS", self.address)
            patch.setenv("POSTBUS_OUTPUT", "table")
            code = main()
        return Done(code, out.getvalue(), err.getvalue())

    def ok(self, *arguments: str) -> str:
        """Runs it to its end, which must be a success; what it printed."""
        done = self(*arguments)
        assert done.code == 0, done
        return done.out

    def json(self, *arguments: str) -> Any:
        """What it says as JSON."""
        return json.loads(self.ok(*arguments, "--output", "json"))


class Running:
    """A command under way. Its standard error is read all the time."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self.process = process
        self._said: list[str] = []
        self._news = threading.Condition()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._news:
                self._said.append(line.decode())
                self._news.notify_all()

    def wait_for(self, text: str) -> None:
        """Until it says so on standard error."""
        with self._news:
            assert self._news.wait_for(lambda: text in "".join(self._said), END_SECONDS), self._said

    def write(self, text: str) -> None:
        """Into its standard input."""
        assert self.process.stdin is not None
        self.process.stdin.write(text.encode())
        self.process.stdin.flush()

    def line(self) -> str:
        """The next line of its output."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().decode()

    def interrupt(self) -> None:
        """Ctrl-C."""
        self.process.send_signal(signal.SIGINT)

    def close_output(self) -> None:
        """As `head` does when it has enough."""
        assert self.process.stdout is not None
        self.process.stdout.close()

    def finish(self, stdin: str | bytes | None = None) -> Done:
        """Waits for its end."""
        process = self.process
        data = stdin.encode() if isinstance(stdin, str) else stdin
        try:
            if process.stdin is not None:
                feeder = threading.Thread(target=self._feed, args=(data or b"",), daemon=True)
                feeder.start()
            out = b"" if process.stdout is None or process.stdout.closed else process.stdout.read()
            code = process.wait(END_SECONDS)
        finally:
            process.kill()
        self._listener.join(END_SECONDS)
        return Done(code, out.decode(), "".join(self._said))

    def _feed(self, data: bytes) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(data)
            self.process.stdin.close()
        except BrokenPipeError:
            pass


@dataclass(frozen=True)
class Bus:
    """The same broker through the SDK: faster than the command where the command is not what is tested."""

    address: str

    def create(self, topic: str, partitions: int = 3) -> None:
        """A topic."""
        self._run(lambda client: client.topics.create(topic, partition_count=partitions))

    def publish(self, topic: str, values: list[bytes], *, partition: int = 0, key: str | None = None) -> None:
        """Records."""

        async def work(client: Client) -> None:
            records = [NewRecord(value, key=key) for value in values]
            await (await client.publish_many(topic, records, partition=partition))

        self._run(work)

    def values(self, topic: str) -> list[str]:
        """Of all records, those of a partition in their order."""

        async def work(client: Client) -> list[str]:
            return [record.value.decode() async for record in client.subscribe(topic, until_end=True)]

        return self._run(work)

    def wait_for(self, topic: str, count: int) -> None:
        """Until so many records can be read."""

        async def work(client: Client) -> None:
            subscription = client.subscribe(topic)
            for _ in range(count):
                assert await subscription.get(timeout=END_SECONDS) is not None

        self._run(work)

    def lag(self, group: str) -> int:
        """Of a group."""

        async def work(client: Client) -> int:
            return sum(offset.lag for offset in await client.groups.offsets(group))

        return self._run(work)

    def _run(self, work: Callable[[Client], Coroutine[Any, Any, T]]) -> T:
        async def running() -> T:
            async with Client(self.address) as client:
                return await work(client)

        return asyncio.run(running())


@pytest.fixture(scope="session")
def shared_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """One for all tests that leave it running."""
    broker = Broker(tmp_path_factory.mktemp("bus") / "data").start()
    yield broker
    assert broker.end() == 0


@pytest.fixture
def cli(shared_broker: Broker) -> Cli:
    """The command, against the shared broker."""
    return Cli(shared_broker.address)


@pytest.fixture
def inside(shared_broker: Broker) -> Inside:
    """The command in this process, against the shared broker."""
    return Inside(shared_broker.address)


@pytest.fixture
def cli_of() -> Callable[[str], Cli]:
    """The command, against any address."""
    return Cli


@pytest.fixture
def inside_of() -> Callable[[str], Inside]:
    """The same, against any address."""
    return Inside


@pytest.fixture
def bus(shared_broker: Broker) -> Bus:
    """The shared broker through the SDK."""
    return Bus(shared_broker.address)


@pytest.fixture
def tools() -> Callable[[Broker], tuple[Cli, Bus]]:
    """Command and SDK, against any broker."""
    return lambda broker: (Cli(broker.address), Bus(broker.address))


@pytest.fixture
def start_broker(tmp_path: Path) -> Iterator[Callable[..., Broker]]:
    """Starts brokers of the test's own; ends those that are left."""
    started: list[Broker] = []

    def start(*flags: str, data_dir: Path | None = None) -> Broker:
        broker = Broker(data_dir or tmp_path / "data").start(*flags)
        started.append(broker)
        return broker

    yield start
    for broker in started:
        broker.end(signal.SIGKILL)


@pytest.fixture
def topic(bus: Bus, request: pytest.FixtureRequest) -> str:
    """A new topic with three partitions, named after the test."""
    name = request.node.name.replace("[", "-").replace("]", "")[:200]
    bus.create(name)
    return str(name)
