"""The stage of the live run: a control plane, nodes, images, and what its steps do to them.

Owns everything that was started, from `Stage.open` to its end, and says of each step how long publishing paused. Knows
nothing of the order of the steps, nor what is right.
"""

import asyncio
import contextlib
import os
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import image_folders
from api import ApiError
from cluster_watch import ClusterWatch
from control_plane import ControlPlane
from image_folders import ROOT
from kubelet import Kubelet
from load import Load
from machine import Machine, Note
from names import is_ready
from pod_spec import Image
from volumes import Provisioner

Object = dict[str, Any]

NAMESPACE = "bus"
RELEASE = "postbus"
TOPIC = "load"
GROUP = "readers"
ZONES = ("zone-a", "zone-b")
ADDRESS = f"{RELEASE}.{NAMESPACE}.svc.cluster.local:7070"
CHART = ROOT / "deploy/helm/postbus"
COMMAND_TIMEOUT_S = 400.0


class CommandError(AssertionError):
    """A command of the operator did not work."""


class Stage:
    """Everything that the steps use."""

    def __init__(self, plane: ControlPlane, folder: Path, versions: tuple[str, str]) -> None:
        self.plane = plane
        self.api = plane.api
        self.folder = folder
        self.versions = versions
        self.images: dict[str, Image] = {}
        self.machine = Machine(folder, plane.api, self.images)
        self.watch = ClusterWatch(self.machine, NAMESPACE, RELEASE)
        self.load = Load(self.machine, NAMESPACE, ADDRESS, TOPIC, GROUP)
        self.kubelets: dict[str, Kubelet] = {}
        self.values: dict[str, str] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls, plane: ControlPlane, folder: Path, *, versions: tuple[str, str], revision: str
    ) -> AsyncIterator["Stage"]:
        """revision: of the first version's code; "" for that of the tree."""
        stage = cls(plane, folder, versions)
        for version, code in zip(versions, (revision, ""), strict=True):
            stage.images[f"postbus:{version}"] = image_folders.make(
                folder / "images" / version, version=version, revision=code
            )
        stage.values = {"image.tag": versions[0], "listenAddress": "$(POD_IP)"}
        try:
            await stage._until_served()
            stage._begin("names", stage.machine.keep_names())
            stage._begin("volumes", Provisioner(plane.api, folder / "volumes").run())
            stage._begin("watch", stage.watch.run())
            for number in (1, 2, 3):
                await stage.add_node(number)
            yield stage
        finally:
            await stage.load.close()
            for task in stage._tasks.values():
                task.cancel()
            await asyncio.gather(*stage._tasks.values(), return_exceptions=True)

    async def _until_served(self) -> None:
        """The API server makes its own namespaces after it is up."""
        while True:
            with contextlib.suppress(ApiError):
                await self.api.get("/api/v1/namespaces/kube-node-lease")
                await self.api.get("/api/v1/namespaces/default")
                return
            await asyncio.sleep(0.2)

    def _begin(self, name: str, life: Any) -> None:
        self._tasks[name] = asyncio.create_task(life, name=name)

    def check(self) -> None:
        """Nothing that should live for ever has ended."""
        for name, task in self._tasks.items():
            if task.done():
                raise AssertionError(f"{name} ended: {task.exception()!r}")
        broken = [note for note in self.machine.notes if note.what in ("broken", "unsupported")]
        assert not broken, broken
        self.load.check_alive()

    # --- nodes ---

    async def add_node(self, number: int) -> Kubelet:
        """In one of two zones, by turns."""
        name = f"node-{number}"
        kubelet = self.kubelets[name] = Kubelet(self.machine, name, ZONES[(number - 1) % 2])
        self._begin(name, kubelet.run())
        await self.until(lambda: kubelet.registered, 30, f"{name} is registered")
        return kubelet

    async def remove_node(self, number: int) -> None:
        """Ends its kubelet, and forgets it."""
        name = f"node-{number}"
        task = self._tasks.pop(name)
        task.cancel()
        await asyncio.wait([task])
        await self.api.delete(f"/api/v1/nodes/{name}")

    # --- commands of an operator ---

    async def run(self, *command: str, check: bool = True, timeout_s: float = COMMAND_TIMEOUT_S) -> str:
        """On the operator's machine; what it printed."""
        environment = {**os.environ, "KUBECONFIG": str(self.plane.kubeconfig), "HELM_NAMESPACE": NAMESPACE}
        process = await asyncio.create_subprocess_exec(
            *command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, cwd=ROOT
        )
        try:
            async with asyncio.timeout(timeout_s):
                out, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
        text = out.decode(errors="replace")
        if check and process.returncode:
            raise CommandError(f"{' '.join(command)}: exit code {process.returncode}\n{text}")
        return text

    async def kubectl(self, *arguments: str, check: bool = True) -> str:
        return await self.run("kubectl", *arguments, check=check)

    async def helm(self, *arguments: str) -> str:
        tool = ROOT / ".tools/bin/helm"
        return await self.run(str(tool) if tool.exists() else "helm", *arguments)

    async def upgrade(self, **changed: str) -> None:
        """Values by their names with __ for a dot; returns when Kubernetes has rolled all of it out."""
        self.values |= {name.replace("__", "."): value for name, value in changed.items()}
        await self.helm("upgrade", RELEASE, str(CHART), *self.settings(), "--wait", "--timeout", "6m")

    def settings(self) -> list[str]:
        return [
            part
            for name, value in self.values.items()
            for part in ("--set-string" if name == "image.tag" else "--set", f"{name}={value}")
        ]

    async def postbus(self, *arguments: str, check: bool = True) -> str:
        """`postbus` with the names of the cluster."""
        log = self.folder / "clients" / f"postbus-{time.monotonic_ns()}.log"
        program = self.folder / "images" / self.versions[1] / "bin/postbus"
        process = await self.load.command([str(program), *arguments], log=log)
        async with asyncio.timeout(COMMAND_TIMEOUT_S):
            code = await process.wait()
        text = log.read_text(errors="replace")
        if check and code:
            raise CommandError(f"postbus {' '.join(arguments)}: exit code {code}\n{text}")
        return text

    # --- what is there ---

    def pod(self, ordinal: int) -> Object | None:
        """As the API server has it."""
        wanted = f"{RELEASE}-{ordinal}"
        for pod in self.machine.pods.values():
            if pod["metadata"]["name"] == wanted and pod["metadata"]["namespace"] == NAMESPACE:
                return pod
        return None

    def node_of(self, ordinal: int) -> str:
        """Where its pod is; empty: nowhere."""
        pod = self.pod(ordinal)
        return str(pod["spec"].get("nodeName", "")) if pod else ""

    def notes(self, begin: float) -> list[Note]:
        """Of the bus' pods."""
        return [note for note in self.machine.notes if note.at >= begin and _is_node(note.pod)]

    async def until(self, holds: Any, timeout_s: float, what: str) -> Any:
        """Asked again and again, because the machine's processes have no event for it."""
        deadline = time.monotonic() + timeout_s
        while True:
            if found := holds():
                return found
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {timeout_s:g} s: {what}\n{await self.describe()}")
            self.check()
            await asyncio.sleep(0.05)

    async def until_ready(self, *ordinals: int, timeout_s: float = 180) -> None:
        """Their pods are ready, none is on its way out, and every partition has all its replicas in sync."""

        def ready() -> bool:
            return all((pod := self.pod(one)) is not None and is_ready(pod) for one in ordinals)

        await self.until(ready, timeout_s, f"pods {ordinals} ready")
        await self.watch.until(lambda sample: sample.is_whole, timeout_s, "all replicas in sync")

    async def describe(self) -> str:
        """For people: pods, and what happened last."""
        pods = await self.kubectl("get", "pods", "-A", "-o", "wide", check=False)
        notes = "\n".join(f"{note.at:.1f} {note.pod} {note.what} {note.detail}" for note in self.machine.notes[-25:])
        return f"{pods}\n{notes}"


def _is_node(pod: str) -> bool:
    return pod.startswith(f"{RELEASE}-") and pod.removeprefix(f"{RELEASE}-").isdecimal()
