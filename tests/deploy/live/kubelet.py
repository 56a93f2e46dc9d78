"""A kubelet small enough to read: one node, whose pods are processes of this machine.

Registers its node and keeps it alive, runs what the scheduler binds to it (`pod_runner`), and reports. It can be told
to fall silent, as if its machine had lost the network, and to lose its power.
"""

import asyncio
from datetime import UTC, datetime
from typing import Any

from api import STRATEGIC, ApiError
from machine import Machine
from pod_runner import PodRunner

Object = dict[str, Any]

RENEW_S = 2.0
CAPACITY = {"cpu": "8", "memory": "32Gi", "pods": "50", "ephemeral-storage": "100Gi"}


class Kubelet:
    """One node. `run` is its life."""

    def __init__(self, machine: Machine, name: str, zone: str) -> None:
        self.machine = machine
        self.name = name
        self.zone = zone
        self.address = machine.address()
        self.runners: dict[str, PodRunner] = {}
        self.heard = asyncio.Event()  # set unless it is silent
        self.heard.set()
        self.registered = False
        self._bound: dict[str, Object] = {}

    async def run(self) -> None:
        """Until it is cancelled; whatever it started ends then."""
        try:
            await self._register()
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._stay_alive())
                tasks.create_task(self._follow())
        finally:
            for runner in self.runners.values():
                runner.kill()
            await asyncio.gather(*(runner.ended() for runner in self.runners.values()))

    # --- trouble on request ---

    def fall_silent(self) -> None:
        """Its processes go on; it neither hears nor says anything."""
        self.heard.clear()

    def lose_power(self) -> None:
        """It is gone, with all that ran on it."""
        self.heard.clear()
        for runner in self.runners.values():
            runner.kill()
        self.runners.clear()

    async def come_back(self) -> None:
        """The network, or the power, is back."""
        self.heard.set()
        await self._say_ready()
        self._reconcile()
        for runner in self.runners.values():
            runner.report()

    # --- the node ---

    async def _register(self) -> None:
        node: Object = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {
                "name": self.name,
                "labels": {
                    "kubernetes.io/hostname": self.name,
                    "kubernetes.io/os": "linux",
                    "kubernetes.io/arch": "amd64",
                    "topology.kubernetes.io/zone": self.zone,
                    "topology.kubernetes.io/region": "here",
                },
            },
        }
        await self.machine.api.create("/api/v1/nodes", node)
        await self._say_ready()
        self.registered = True

    async def _say_ready(self) -> None:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        condition = {"type": "Ready", "status": "True", "reason": "KubeletReady", "lastHeartbeatTime": now}
        status = {
            "capacity": CAPACITY,
            "allocatable": CAPACITY,
            "conditions": [condition],
            "addresses": [{"type": "InternalIP", "address": self.address}],
            "nodeInfo": {"kubeletVersion": "v1.36.0-processes", "operatingSystem": "linux"}
            | dict.fromkeys(
                (
                    *("machineID", "systemUUID", "bootID", "kernelVersion", "osImage", "containerRuntimeVersion"),
                    *("kubeProxyVersion", "architecture"),
                ),
                "",
            ),
        }
        await self.machine.api.patch(f"/api/v1/nodes/{self.name}/status", {"status": status}, STRATEGIC)

    async def _stay_alive(self) -> None:
        leases = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
        made = False
        while True:
            await self.heard.wait()
            now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
            # The controllers give up after this long without news, by their own setting.
            spec = {"holderIdentity": self.name, "leaseDurationSeconds": 8, "renewTime": now}
            try:
                if made:
                    await self.machine.api.patch(f"{leases}/{self.name}", {"spec": spec})
                else:
                    await self.machine.api.create(leases, {"metadata": {"name": self.name}, "spec": spec})
                    made = True
                await self._say_ready()
            except ApiError as error:
                if error.status == 404 and made:
                    made = False
                elif error.status == 409:
                    made = True
            await asyncio.sleep(RENEW_S)

    # --- its pods ---

    async def _follow(self) -> None:
        async for pods in self.machine.api.follow("/api/v1/pods", fieldSelector=f"spec.nodeName={self.name}"):
            self._bound = pods
            self._reconcile()

    def _reconcile(self) -> None:
        """What runs becomes what is bound here."""
        if not self.heard.is_set():
            return
        for uid, pod in self._bound.items():
            runner = self.runners.get(uid)
            if runner is None:
                runner = self.runners[uid] = PodRunner(self.machine, pod, host_ip=self.address, heard=self.heard)
                runner.start()
            runner.pod = pod
            if "deletionTimestamp" in pod["metadata"]:
                runner.stop(float(pod["metadata"].get("deletionGracePeriodSeconds", 30)))
        for uid in [uid for uid in self.runners if uid not in self._bound]:
            runner = self.runners[uid]
            runner.removed()
            if runner.is_over:
                del self.runners[uid]
