"""The shop's containers as processes of this machine: the manifests' commands and environment, and nothing else.

What an image would bring along is installed into a folder; a pod's addresses are replaced by ports on 127.0.0.1. Every
wait has a bound and an event to wait for, but for probes, which ask again.
"""

import asyncio
import contextlib
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import yaml
from broker_process import WAIT_S
from programs import ROOT, tool

SHOP = ROOT / "deploy/shop"


def manifests(*names: str) -> list[dict[str, Any]]:
    """The objects in these files."""
    return [each for name in names for each in yaml.safe_load_all((SHOP / f"{name}.yaml").read_text())]


def deployment(name: str) -> dict[str, Any]:
    """One of the three."""
    (found,) = (each for each in manifests(name) if each["kind"] == "Deployment")
    return found


def containers(workload: dict[str, Any]) -> list[dict[str, Any]]:
    """Of a Deployment or a Job."""
    return list(workload["spec"]["template"]["spec"]["containers"])


@dataclass(frozen=True)
class Image:
    """Both images in one: programs in a folder, and what they import."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        """What a container begins with."""
        return {
            "PATH": f"{self.folder / 'bin'}:{Path(sys.executable).parent}:/usr/bin:/bin",
            "PYTHONPATH": str(self.folder),
            "PYTHONUNBUFFERED": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
        }


def build_services(folder: Path) -> Image:
    """orders and billing, as their wheel installs them."""
    source = ROOT / "clients/python/examples/shop"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*install, "--target", str(folder), str(source)], check=True, timeout=300)
    return Image(folder)


def build_shipping(image: Image) -> None:
    """shipping, beside them."""
    program = image.folder / "bin/postbus-shop-shipping"
    source = ROOT / "clients/python/examples/shop/shipping"
    subprocess.run(["nice", tool("go"), "build", "-o", str(program), "."], cwd=source, check=True, timeout=900)


@dataclass
class Program:
    """A container's process: its lines as they come, and its end."""

    name: str
    process: asyncio.subprocess.Process
    port: int
    lines: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    _news: asyncio.Event = field(default_factory=asyncio.Event)
    _reading: list["asyncio.Task[None]"] = field(default_factory=list)

    def read(self) -> None:
        """Begins to."""
        for stream, lines in ((self.process.stdout, self.lines), (self.process.stderr, self.errors)):
            assert stream is not None
            self._reading.append(asyncio.create_task(self._read(stream, lines)))

    async def _read(self, stream: asyncio.StreamReader, lines: list[str]) -> None:
        async for line in stream:
            lines.append(line.decode().rstrip())
            self._news.set()
        self._news.set()

    async def until(self, came: Callable[[], bool]) -> None:
        """Returns when what was printed so far is enough; it must not end before."""
        try:
            async with asyncio.timeout(WAIT_S):
                while not came():
                    assert not all(task.done() for task in self._reading), "it ended"
                    self._news.clear()
                    await self._news.wait()
        except (TimeoutError, AssertionError) as error:
            error.add_note(f"{self.name}: {len(self.lines)} lines, and {self.errors[-20:]}")
            raise

    async def until_lines(self, count: int) -> None:
        """Returns when it has printed so many."""
        await self.until(lambda: len(self.lines) >= count)

    async def until_printed(self, wanted: set[str]) -> None:
        """Returns when its lines are these, in whatever order and however often."""
        await self.until(lambda: set(self.lines) == wanted)

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Its exit code, with all its lines in `lines`."""
        self.process.send_signal(number)
        return await self.end()

    async def end(self) -> int:
        """The same, of one that ends by itself."""
        async with asyncio.timeout(WAIT_S):
            code = await self.process.wait()
            await asyncio.gather(*self._reading)
        return code

    async def kill(self) -> None:
        """If it runs still."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        await self.end()


class Pods:
    """Starts containers; ends those that run when the test is over."""

    def __init__(self, image: Image, bus: str) -> None:
        self._image = image
        self._bus = bus
        self._started: list[Program] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for program in self._started:
            await program.kill()

    async def start(self, container: dict[str, Any], **replaced: str) -> Program:
        """A container of the manifests; `replaced` are values of its environment."""
        port = free_port()
        replaced = {"POSTBUS_ADDRESS": self._bus, "SHOP_LISTEN": f"127.0.0.1:{port}", **replaced}
        given = environment(container)
        environ = self._image.environment | given | {name: replaced[name] for name in replaced if name in given}
        # The image of the bus has an entrypoint; those of the shop are told what to run.
        command = container.get("command", ["postbus"]) + container.get("args", [])
        pipe = asyncio.subprocess.PIPE
        null = asyncio.subprocess.DEVNULL
        process = await asyncio.create_subprocess_exec(*command, env=environ, stdin=null, stdout=pipe, stderr=pipe)
        program = Program(container["name"], process, port)
        program.read()
        self._started.append(program)
        return program

    async def ready(self, name: str, **replaced: str) -> Program:
        """A Deployment's one container, once its own readiness probe says so."""
        (container,) = containers(deployment(name))
        program = await self.start(container, **replaced)
        async with asyncio.timeout(WAIT_S):
            while await probe(program, container["readinessProbe"]) != 200:
                assert program.process.returncode is None, program.errors
                await asyncio.sleep(0.05)
        return program


def environment(container: dict[str, Any]) -> dict[str, str]:
    """As the manifests have it; of what the kubelet knows, a pod's address."""
    (config,) = (each for each in manifests("config") if each["kind"] == "ConfigMap")
    found: dict[str, str] = {}
    for source in container.get("envFrom", []):
        assert source == {"configMapRef": {"name": config["metadata"]["name"]}}
        found |= config["data"]
    for variable in container.get("env", []):
        if "value" in variable:
            found[variable["name"]] = variable["value"]
        else:
            assert variable["valueFrom"] == {"fieldRef": {"fieldPath": "status.podIP"}}
            found[variable["name"]] = "127.0.0.1"
    return found


async def probe(program: Program, asked: dict[str, Any]) -> int:
    """The status of an HTTP probe; 0: nobody answers."""
    status, _ = await request(program.port, "GET", asked["httpGet"]["path"])
    return status


async def request(port: int, method: str, path: str, body: str = "") -> tuple[int, str]:
    """Status and body of one HTTP request; 0: nobody answers, or not to the end."""
    data = body.encode()
    head = f"{method} {path} HTTP/1.1\r\nHost: shop\r\nConnection: close\r\nContent-Length: {len(data)}\r\n\r\n"
    try:
        async with asyncio.timeout(WAIT_S):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(head.encode() + data)
                line = await reader.readline()
                await reader.readuntil(b"\r\n\r\n")
                return int(line.split()[1]), (await reader.read()).decode()
            finally:
                writer.close()
    except (OSError, asyncio.IncompleteReadError, IndexError):
        return 0, ""


def free_port() -> int:
    """Of this moment."""
    with socket.create_server(("127.0.0.1", 0)) as bound:
        return int(bound.getsockname()[1])
