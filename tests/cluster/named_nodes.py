"""Nodes as pods have it: known by names alone, each at an address of its own that is another one after every start.

Names are lines of a hosts file that is /etc/hosts in a mount namespace of each process; the file can be changed under
them, and what it does not have does not exist: no name server is asked. Ports are the usual ones. Needs Linux and the
right to make such namespaces; without it the tests are skipped.
"""

import asyncio
import contextlib
import os
import shlex
import subprocess
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from broker_process import BrokerProcess

CLIENT_PORT, PEER_PORT, HTTP_PORT = 7070, 7071, 7072
DOMAIN = "bus-headless.test"
CLUSTER_ID = "named"


def in_namespace(hosts: Path, *command: str) -> tuple[str, ...]:
    """The command, with this file as its /etc/hosts, and no name server."""
    resolver = hosts.with_name("resolv.conf")
    resolver.write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")  # nobody listens there
    mounts = f'mount --bind "$0" /etc/hosts && mount --bind {shlex.quote(str(resolver))} /etc/resolv.conf'
    return ("unshare", "--mount", "sh", "-c", f'{mounts} && exec "$@"', str(hosts), *command)


def skip_without_namespaces(folder: Path) -> None:
    """On machines where only root may."""
    hosts = folder / "probe"
    hosts.write_text("127.0.0.1 localhost\n")
    with contextlib.suppress(OSError):
        if subprocess.run(in_namespace(hosts, "true"), capture_output=True, check=False).returncode == 0:
            return
    pytest.skip("needs the right to make mount namespaces")


class NamedNode(BrokerProcess):
    """One of them."""

    def __init__(self, number: int, folder: Path, hosts: Path, environment: Mapping[str, str]) -> None:
        super().__init__(folder, environment=environment)
        self.number = number
        self.address = ""
        self.port = CLIENT_PORT
        self.launcher = in_namespace(hosts)

    @property
    def name(self) -> str:
        """As others know it."""
        return f"bus-{self.number}.{DOMAIN}"

    @property
    def target(self) -> str:
        """Where it listens now."""
        return f"{self.address}:{CLIENT_PORT}"

    async def start(self, *, wait: bool = True, **environment: str) -> None:
        await super().start(wait=wait, POSTBUS_HOST=self.address, **environment)

    async def http(self, path: str) -> tuple[int, str]:
        """Status and text; 0 if nobody listens."""
        try:
            reader, writer = await asyncio.open_connection(self.address, HTTP_PORT)
        except OSError:
            return 0, ""
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {self.name}\r\n\r\n".encode())
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
        return int(head.split(b" ", 2)[1]), body.decode()


class NamedNodes:
    """Nodes 1 to 3, and the names that can be resolved."""

    def __init__(self, folder: Path) -> None:
        skip_without_namespaces(folder)
        self.hosts = folder / "hosts"
        self._network = f"127.{1 + os.getpid() % 250}"
        self._handed_out = 0
        self._known: dict[str, str] = {}
        names = {number: f"bus-{number}.{DOMAIN}" for number in (1, 2, 3)}
        self.nodes: dict[int, NamedNode] = {}
        for number, name in names.items():
            environment = {
                "POSTBUS_NODE_ID": str(number),
                "POSTBUS_CLUSTER_ID": CLUSTER_ID,
                "POSTBUS_PEERS": ",".join(f"{each}@{names[each]}:{PEER_PORT}" for each in names),
                "POSTBUS_ADVERTISED_ENDPOINT": f"{name}:{CLIENT_PORT}",
                "POSTBUS_ADVERTISED_PEER_ENDPOINT": f"{name}:{PEER_PORT}",
                "POSTBUS_HTTP_PORT": str(HTTP_PORT),
                "POSTBUS_DISK_FREE_MIN_BYTES": "16MiB",
            }
            self.nodes[number] = NamedNode(number, folder / f"node-{number}", self.hosts, environment)
            self.move(number)
        self._write()

    @property
    def targets(self) -> str:
        """For a client that is given names."""
        return ",".join(f"{node.name}:{CLIENT_PORT}" for node in self.nodes.values())

    def move(self, number: int) -> None:
        """The next start is at an address that nobody had; its name still leads to the one before."""
        self._handed_out += 1
        self.nodes[number].address = f"{self._network}.{number}.{self._handed_out}"

    def resolve(self, *numbers: int) -> None:
        """Their names lead to where they are from now on."""
        for number in numbers:
            self._known[self.nodes[number].name] = self.nodes[number].address
        self._write()

    def forget(self, number: int) -> None:
        """Its name leads nowhere."""
        self._known.pop(self.nodes[number].name, None)
        self._write()

    def _write(self) -> None:
        # In place: another file would not be the one that is mounted.
        lines = ["127.0.0.1 localhost", *(f"{address} {name}" for name, address in self._known.items())]
        self.hosts.write_text("\n".join(lines) + "\n")

    async def close(self) -> None:
        """Ends what runs."""
        await asyncio.gather(*(node.close() for node in self.nodes.values()))

    def log(self) -> str:
        """The end of what each logged."""
        return "\n".join(f"--- node {number}\n{node.log()}" for number, node in self.nodes.items())


@contextlib.asynccontextmanager
async def named_nodes(folder: Path, **options: Any) -> AsyncIterator[NamedNodes]:
    """Ended whatever happens; their log goes with what went wrong."""
    nodes = NamedNodes(folder, **options)
    try:
        yield nodes
    except BaseException as error:
        error.add_note(nodes.log())
        raise
    finally:
        await nodes.close()
