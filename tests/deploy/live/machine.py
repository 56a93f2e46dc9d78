"""What all nodes of a run share: images, addresses, the folder of the run, names, and the log of what happened.

Owns the nameserver, which follows Services and pods as the cluster's DNS does, and the run's notes with their times on
the clock that all processes of the machine share.
"""

import asyncio
import ipaddress
import itertools
import socket
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import names
from api import Api
from pod_process import Bind
from pod_spec import Image, Unsupported

Object = dict[str, Any]

NETWORKS = range(70, 100)  # 127.70.0.0 and so on: each run has one for itself


@dataclass(frozen=True, slots=True)
class Note:
    """Something that happened to a pod."""

    at: float  # time.monotonic
    pod: str
    what: str
    detail: str = ""


class Machine:
    """The one under all nodes."""

    def __init__(self, folder: Path, api: Api, images: dict[str, Image]) -> None:
        self.folder = folder
        self.api = api
        self.images = images
        self.notes: list[Note] = []
        self.pods: dict[str, Object] = {}
        self._services: dict[str, Object] = {}
        self.names: dict[str, list[str]] = {}
        self._socket = _free_network()
        self.nameserver: str = self._socket.getsockname()[0]
        # Never used twice, so that each restart of a pod has another one.
        self._addresses = iter(ipaddress.ip_network(f"{self.nameserver}/16", strict=False).hosts())
        next(self._addresses)
        for name in ("names", "pods", "logs", "volumes"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        self._hosts = folder / "hosts"
        self._hosts.write_text("127.0.0.1 localhost\n")

    def note(self, pod: str, what: str, detail: str = "") -> None:
        """Now."""
        self.notes.append(Note(time.monotonic(), pod, what, detail))
        with (self.folder / "notes.log").open("a") as log:
            log.write(f"{datetime.now(UTC).isoformat(timespec='milliseconds')} {pod} {what} {detail}\n")

    def address(self) -> str:
        """One that no pod had."""
        return str(next(self._addresses))

    def image(self, name: str) -> Image:
        """By the name in a pod's spec."""
        if name not in self.images:
            raise Unsupported(f"no image {name}; there are {sorted(self.images)}")
        return self.images[name]

    def name_files(self, namespace: str) -> list[Bind]:
        """What makes names resolve in a container of this namespace."""
        path = self.folder / "names" / namespace
        path.write_text(names.resolv_conf(self.nameserver, namespace))
        return [Bind(path, "/etc/resolv.conf"), Bind(self._hosts, "/etc/hosts")]

    async def keep_names(self) -> None:
        """Answers for ever."""
        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: _Nameserver(self), sock=self._socket
        )
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._follow_services())
                tasks.create_task(self._follow_pods())
        finally:
            transport.close()

    async def _follow_services(self) -> None:
        async for services in self.api.follow("/api/v1/services"):
            self._services = services
            self.names = names.records(services.values(), self.pods.values())

    async def _follow_pods(self) -> None:
        async for pods in self.api.follow("/api/v1/pods"):
            self.pods = pods
            self.names = names.records(self._services.values(), pods.values())


class _Nameserver(asyncio.DatagramProtocol):
    """DNS over UDP; all answers are small."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._turns = itertools.count()
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        if (said := names.answer(data, self._machine.names, turn=next(self._turns))) is not None:
            self._transport.sendto(said, addr)


def _free_network() -> socket.socket:
    """Port 53 of the first address of a network that no other run has."""
    for number in NETWORKS:
        one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            one.bind((f"127.{number}.0.1", 53))
            return one
        except OSError:
            one.close()
    raise OSError("port 53 can't be had on any of 127.70.0.1 to 127.99.0.1")
