"""What all nodes of a run share: images, addresses, the folder of the run, names, and the log of what happened.

Owns the hosts files, which follow Services and pods as the cluster's DNS would, and the run's notes with their times
on the clock that all processes of the machine share.
"""

import asyncio
import itertools
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import names
from api import Api
from pod_spec import Image, Unsupported

Object = dict[str, Any]

# Every run's pods begin here; addresses are never used twice, so that each restart of a pod has another one.
FIRST_ADDRESS = (127 << 24) + (70 << 16) + 2
RESOLV_CONF = "nameserver 127.70.0.1\noptions timeout:1 attempts:1\n"  # nobody there: what is not in hosts, is not


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
        self._numbers = itertools.count()
        self._resolv = folder / "resolv.conf"
        for name in ("hosts", "pods", "logs", "volumes"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        self._resolv.write_text(RESOLV_CONF)

    def note(self, pod: str, what: str, detail: str = "") -> None:
        """Now."""
        self.notes.append(Note(time.monotonic(), pod, what, detail))

    def address(self) -> str:
        """One that no pod had."""
        value = FIRST_ADDRESS + next(self._numbers)
        return ".".join(str(value >> shift & 255) for shift in (24, 16, 8, 0))

    def image(self, name: str) -> Image:
        """By the name in a pod's spec."""
        if name not in self.images:
            raise Unsupported(f"no image {name}; there are {sorted(self.images)}")
        return self.images[name]

    def hosts(self, namespace: str) -> Path:
        """The hosts file of a namespace, which goes on being kept up to date."""
        path = self.folder / "hosts" / namespace
        if not path.exists():
            self._write(path)
        return path

    @property
    def resolv_conf(self) -> Path:
        return self._resolv

    async def keep_names(self) -> None:
        """For ever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow_services())
            tasks.create_task(self._follow_pods())

    async def _follow_services(self) -> None:
        async for services in self.api.follow("/api/v1/services"):
            self._services = services
            self._write_all()

    async def _follow_pods(self) -> None:
        async for pods in self.api.follow("/api/v1/pods"):
            self.pods = pods
            self._write_all()

    def _write_all(self) -> None:
        for path in (self.folder / "hosts").iterdir():
            self._write(path)

    def _write(self, path: Path) -> None:
        text = names.hosts_file(self._services.values(), self.pods.values(), namespace=path.name).encode()
        if path.exists() and path.read_bytes() == text:
            return
        # In place, because it is mounted, and never empty in between: first over what was there, then cut.
        with path.open("r+b" if path.exists() else "wb", buffering=0) as file:
            file.write(text)
            file.truncate()
