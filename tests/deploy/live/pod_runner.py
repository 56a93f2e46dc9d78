"""The life of one pod: from its volumes to the last of its processes.

Starts containers, probes them, starts them again when they end, stops them in order (preStop, SIGTERM, SIGKILL), and
reports each change through the status subresource. The pod's object is deleted only when nothing of it runs.
"""

import asyncio
import contextlib
import os
import shutil
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pod_spec
from api import STRATEGIC, ApiError
from machine import Machine
from pod_process import Bind, Process, script
from pod_spec import NotYet, Unsupported
from pod_status import ContainerState, pod_status
from probes import BackOff, ProbeCount, port_of

Object = dict[str, Any]

REMOVED_GRACE_S = 1.0  # what a pod has left when its object is gone already
RETRY_S = 0.5


@dataclass(slots=True)
class _Container:
    spec: Object
    state: ContainerState
    process: Process | None = None
    environment: Mapping[str, str] = field(default_factory=dict)


class PodRunner:
    """One pod on one node."""

    def __init__(self, machine: Machine, pod: Object, *, host_ip: str, heard: asyncio.Event) -> None:
        """heard: set while the node can talk to the API server."""
        self.pod = pod
        self.uid: str = pod["metadata"]["uid"]
        self.namespace: str = pod["metadata"]["namespace"]
        self.name: str = pod["metadata"]["name"]
        self.ip = ""
        self._machine = machine
        self._host_ip = host_ip
        self._heard = heard
        self._folder = machine.folder / "pods" / self.uid
        self._volumes: dict[str, Path] = {}
        spec = pod["spec"]
        self._containers = [
            _Container(one, ContainerState(one["name"], one["image"], init))
            for init, ones in ((True, spec.get("initContainers", ())), (False, spec["containers"]))
            for one in ones
        ]
        self._stopping = asyncio.Event()
        self._kill_at = float("inf")
        self._removed = False
        self._task: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()

    # --- for the kubelet ---

    def start(self) -> None:
        """Begins its life."""
        self._task = asyncio.create_task(self._run(), name=self.name)

    def stop(self, grace_s: float) -> None:
        """In order, within the grace; a shorter one than was told before counts."""
        if not self._stopping.is_set():
            self._machine.note(self.name, "stopping", f"{grace_s:g} s")
        self._kill_at = min(self._kill_at, time.monotonic() + grace_s)
        self._stopping.set()

    def removed(self) -> None:
        """Its object is gone, whoever did that: nothing is left to be reported."""
        self._removed = True
        self.stop(REMOVED_GRACE_S)

    def kill(self) -> None:
        """As a power cut does it."""
        if self._task is not None:
            self._task.cancel()
        for one in self._containers:
            if one.process is not None:
                one.process.kill()

    async def ended(self) -> None:
        """Until nothing of it runs."""
        if self._task is not None:
            await asyncio.wait([self._task])

    @property
    def is_over(self) -> bool:
        return self._task is not None and self._task.done()

    def report(self) -> None:
        """Tells the API server how it is, soon."""
        self._changed.set()

    # --- its life ---

    async def _run(self) -> None:
        reporting = asyncio.create_task(self._report())
        living = asyncio.create_task(self._live())
        stop = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait([living, stop], return_when=asyncio.FIRST_COMPLETED)
            if living.done():
                living.result()
                await stop  # over, but kept to be looked at
            else:
                await self._terminate()
                # What is asleep between two starts, or waits for its volumes, has nothing to wait for any more.
                living.cancel()
                await asyncio.wait([living])
            self._machine.note(self.name, "gone")
            await self._farewell()
        except Exception as error:
            self._machine.note(self.name, "broken", repr(error))
            raise
        finally:
            for task in (reporting, living, stop):
                task.cancel()
            for one in self._containers:
                if one.process is not None:
                    one.process.kill()
            await asyncio.gather(reporting, living, stop, return_exceptions=True)
            for one in self._containers:
                if one.process is not None:
                    await one.process.wait()
            await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)

    async def _live(self) -> None:
        """Until all containers are done, which those of most pods never are."""
        self.report()
        await self._until(self._prepare)
        self.ip = self._machine.address()
        self.report()
        for one in self._containers:
            if one.state.init:
                await self._keep(one)
                if one.state.exit_code:
                    self.report()
                    return
        async with asyncio.TaskGroup() as tasks:
            for one in self._containers:
                if not one.state.init:
                    tasks.create_task(self._keep(one))
        self.report()

    async def _until(self, step: Any) -> Any:
        """Again and again while something is not there yet, which the pod's status says."""
        while True:
            try:
                return await step()
            except (NotYet, Unsupported, ApiError) as error:
                for one in self._containers:
                    one.state.waiting = ("ContainerCreating", str(error))
                if isinstance(error, Unsupported):
                    self._machine.note(self.name, "unsupported", str(error))
                self.report()
            await asyncio.sleep(RETRY_S)

    async def _keep(self, one: _Container) -> None:
        """Runs one container for as long as its pod's policy wants it."""
        policy = "OnFailure" if one.state.init else self.pod["spec"].get("restartPolicy", "Always")
        back_off = BackOff()
        while True:
            await self._until(lambda: self._start(one))
            assert one.process is not None
            state, began = one.state, time.monotonic()
            probing = asyncio.create_task(self._probe_all(one))
            try:
                code = await one.process.wait()
            finally:
                probing.cancel()
                await asyncio.wait([probing])
            self._machine.note(self.name, "exit", f"{state.name}: {code} after {time.monotonic() - began:.1f} s")
            state.running = state.ready = state.started = False
            state.finished_at, state.exit_code = _now(), code
            one.process = None
            if self._stopping.is_set() or policy == "Never" or (policy == "OnFailure" and code == 0):
                state.done = True
                self.report()
                return
            state.last_exit_code = code
            state.waiting = ("CrashLoopBackOff", f"exit code {code}")
            self.report()
            await asyncio.sleep(back_off.after(time.monotonic() - began))
            state.restarts += 1

    async def _start(self, one: _Container) -> None:
        spec, pod = one.spec, self.pod
        image = self._machine.image(spec["image"])
        maps = {name: await self._config_map(name) for name in sorted(pod_spec.config_maps_of({"containers": [spec]}))}
        found = {name: data for name, data in maps.items() if data is not None}
        variables = pod_spec.environment(spec, pod, found, image, pod_ip=self.ip, host_ip=self._host_ip)
        scratch = self._folder / f"{spec['name']}-scratch"
        scratch.mkdir(exist_ok=True)
        binds = self._machine.name_files(self.namespace)
        for mount in pod_spec.mounts(spec):
            source = self._volumes[mount.volume]
            binds.append(Bind(source / mount.source if mount.source else source, mount.target, mount.read_only))
        text = script(
            pod_spec.command(spec, image, variables),
            variables,
            # What the run itself needs must not be hidden before it is mounted.
            sorted(binds, key=lambda bind: str(self._machine.folder).startswith(bind.target + "/")),
            scratch=scratch,
            folder=spec.get("workingDir", image.folder),
            user=pod_spec.user_of(pod, spec) if os.geteuid() == 0 else None,
            read_only_root=spec.get("securityContext", {}).get("readOnlyRootFilesystem", False),
            shown=image.shown,
        )
        log = self._machine.folder / "logs" / f"{self.namespace}_{self.name}_{spec['name']}.log"
        one.environment = variables
        one.process = await Process.start(text, log)
        state = one.state
        state.running, state.started_at, state.waiting = True, _now(), ("", "")
        state.started = "startupProbe" not in spec
        state.ready = state.started and "readinessProbe" not in spec
        self._machine.note(self.name, "start", f"{spec['name']} at {self.ip}, process {one.process.pid}")
        self.report()

    # --- probes ---

    async def _probe_all(self, one: _Container) -> None:
        spec, state = one.spec, one.state
        if probe := spec.get("startupProbe"):
            if not await self._until_started(one, probe):
                return
            state.started = True
        state.ready = "readinessProbe" not in spec
        self.report()
        async with asyncio.TaskGroup() as tasks:
            if probe := spec.get("readinessProbe"):
                tasks.create_task(self._watch_readiness(one, probe))
            if probe := spec.get("livenessProbe"):
                tasks.create_task(self._watch_liveness(one, probe))

    async def _until_started(self, one: _Container, probe: Object) -> bool:
        count = ProbeCount.of(probe)
        await asyncio.sleep(probe.get("initialDelaySeconds", 0))
        while True:
            count.note(await self._ask(one, probe))
            if count.passing is not None:
                break
            await asyncio.sleep(probe.get("periodSeconds", 10))
        if not count.passing:
            self._restart(one, "startup probe failed")
        return bool(count.passing)

    async def _watch_readiness(self, one: _Container, probe: Object) -> None:
        count = ProbeCount.of(probe, passing=False)
        await asyncio.sleep(probe.get("initialDelaySeconds", 0))
        while True:
            if count.note(await self._ask(one, probe)):
                one.state.ready = bool(count.passing)
                self._machine.note(self.name, "ready" if one.state.ready else "not ready")
                self.report()
            await asyncio.sleep(probe.get("periodSeconds", 10))

    async def _watch_liveness(self, one: _Container, probe: Object) -> None:
        count = ProbeCount.of(probe, passing=True)
        await asyncio.sleep(probe.get("initialDelaySeconds", 0))
        while not self._stopping.is_set():
            if count.note(await self._ask(one, probe)) and not count.passing:
                self._restart(one, "liveness probe failed")
                return
            await asyncio.sleep(probe.get("periodSeconds", 10))

    def _restart(self, one: _Container, why: str) -> None:
        """Ends the container; `_keep` starts it again."""
        self._machine.note(self.name, "restart", why)
        grace_s = self.pod["spec"].get("terminationGracePeriodSeconds", 30)
        ending = asyncio.create_task(self._end(one, time.monotonic() + grace_s))
        self._ending = ending  # kept, so that it is not collected

    async def _ask(self, one: _Container, probe: Object) -> bool:
        timeout_s = probe.get("timeoutSeconds", 1)
        if "exec" in probe:
            return one.process is not None and await one.process.execute(
                probe["exec"]["command"], one.environment, timeout_s
            )
        try:
            async with asyncio.timeout(timeout_s):
                if "httpGet" in probe:
                    return await self._get(one, probe["httpGet"])
                if "tcpSocket" in probe:
                    port = port_of(one.spec, probe["tcpSocket"]["port"])
                    _, writer = await asyncio.open_connection(self.ip, port)
                    writer.close()
                    return True
        except (OSError, TimeoutError, EOFError, ValueError):
            return False
        raise Unsupported(f"probe {sorted(probe)}")

    async def _get(self, one: _Container, request: Object) -> bool:
        host, port = request.get("host", self.ip), port_of(one.spec, request["port"])
        reader, writer = await asyncio.open_connection(host, port)
        try:
            path = request.get("path", "/")
            writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n".encode())
            status = int((await reader.readline()).split()[1])
            return 200 <= status < 400
        except IndexError:
            return False
        finally:
            writer.close()

    # --- its end ---

    async def _terminate(self) -> None:
        self.report()
        running = [one for one in self._containers if one.process is not None]
        await asyncio.gather(*(self._end(one, None) for one in running))
        self.report()

    async def _end(self, one: _Container, kill_at: float | None) -> None:
        """preStop, SIGTERM, and SIGKILL when the time is up, which for the whole pod may come earlier than thought."""
        process = one.process
        if process is None:
            return

        def left_s() -> float:
            return (self._kill_at if kill_at is None else min(kill_at, self._kill_at)) - time.monotonic()

        over = asyncio.create_task(process.over.wait())
        orders = asyncio.create_task(self._stop_politely(one, process))
        try:
            while not over.done() and left_s() > 0:
                await asyncio.wait([over], timeout=min(0.2, max(left_s(), 0)))
            if not over.done():
                self._machine.note(self.name, "killed", f"{one.state.name}: its grace is over")
                process.kill()
                await over
        finally:
            for task in (over, orders):
                task.cancel()
            await asyncio.gather(over, orders, return_exceptions=True)

    async def _stop_politely(self, one: _Container, process: Process) -> None:
        hook = one.spec.get("lifecycle", {}).get("preStop")
        if hook and not self._removed:
            left_s = max(0.0, min(self._kill_at - time.monotonic(), 3600))
            if "sleep" in hook:
                await asyncio.sleep(hook["sleep"]["seconds"])
            elif "exec" in hook:
                await process.execute(hook["exec"]["command"], one.environment, left_s)
            elif "httpGet" in hook:
                with contextlib.suppress(OSError, EOFError, TimeoutError):
                    async with asyncio.timeout(left_s):
                        await self._get(one, hook["httpGet"])
            else:
                raise Unsupported(f"preStop {sorted(hook)}")
        self._machine.note(self.name, "terminate", one.state.name)
        process.send(signal.SIGTERM)

    async def _farewell(self) -> None:
        """The last status, and the end of the pod's object."""
        while not self._removed:
            await self._heard.wait()
            try:
                await self._say()
                body = {"gracePeriodSeconds": 0, "preconditions": {"uid": self.uid}}
                await self._machine.api.delete(self._path, body)
                return
            except ApiError as error:
                if error.status in (404, 409):
                    return
            await asyncio.sleep(RETRY_S)

    # --- reports ---

    @property
    def _path(self) -> str:
        return f"/api/v1/namespaces/{self.namespace}/pods/{self.name}"

    async def _report(self) -> None:
        while True:
            await self._changed.wait()
            await self._heard.wait()
            self._changed.clear()
            try:
                await self._say()
            except ApiError as error:
                if error.status not in (404, 409):
                    self._changed.set()
                    await asyncio.sleep(RETRY_S)

    async def _say(self) -> None:
        states = [one.state for one in self._containers]
        status = pod_status(self.pod, states, pod_ip=self.ip, host_ip=self._host_ip, now=_now())
        # With the uid, so that it can't be said of the pod's successor.
        body = {"metadata": {"uid": self.uid}, "status": status}
        await self._machine.api.patch(f"{self._path}/status", body, STRATEGIC)

    # --- volumes ---

    async def _prepare(self) -> None:
        """A folder for each volume. Raises NotYet while a claim is not bound or a ConfigMap is missing."""
        group = self.pod["spec"].get("securityContext", {}).get("fsGroup")
        for volume in self.pod["spec"].get("volumes", ()):
            name = volume["name"]
            path = self._folder / "volumes" / name
            if "configMap" in volume:
                wanted = volume["configMap"]
                data = await self._config_map(wanted["name"])
                if data is None and not wanted.get("optional"):
                    raise NotYet(f"no ConfigMap {wanted['name']}")
                path.mkdir(parents=True, exist_ok=True)
                for file, content in pod_spec.config_files(wanted, data or {}).items():
                    (path / file).write_text(content)
            elif "emptyDir" in volume:
                path.mkdir(parents=True, exist_ok=True)
                path.chmod(0o777)
            elif "persistentVolumeClaim" in volume:
                path = await self._claimed(volume["persistentVolumeClaim"]["claimName"])
            else:
                raise Unsupported(f"volume {sorted(volume)}")
            if group is not None and "configMap" not in volume:
                await asyncio.to_thread(_give, path, group)
            self._volumes[name] = path
        self._folder.mkdir(parents=True, exist_ok=True)

    async def _claimed(self, name: str) -> Path:
        claim = await self._machine.api.get(f"/api/v1/namespaces/{self.namespace}/persistentvolumeclaims/{name}")
        if claim["status"].get("phase") != "Bound":
            raise NotYet(f"claim {name} is not bound")
        volume = await self._machine.api.get(f"/api/v1/persistentvolumes/{claim['spec']['volumeName']}")
        return Path(volume["spec"]["hostPath"]["path"])

    async def _config_map(self, name: str) -> dict[str, str] | None:
        try:
            found = await self._machine.api.get(f"/api/v1/namespaces/{self.namespace}/configmaps/{name}")
        except ApiError as error:
            if error.status == 404:
                return None
            raise
        data: dict[str, str] = found.get("data", {})
        return data


def _give(path: Path, group: int) -> None:
    """What `fsGroup` does: the volume belongs to the group, and so will what is made in it."""
    for folder, _, files in os.walk(path):
        os.chown(folder, -1, group)
        os.chmod(folder, os.stat(folder).st_mode | 0o2770)
        for file in files:
            with contextlib.suppress(FileNotFoundError):
                os.chown(os.path.join(folder, file), -1, group)
                os.chmod(os.path.join(folder, file), os.stat(os.path.join(folder, file)).st_mode | 0o660)


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
