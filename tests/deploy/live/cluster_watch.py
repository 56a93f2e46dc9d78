"""What the bus says of itself, asked again and again: who leads, what is in sync, who is which version.

Asks pods by their addresses, past all names, so that it sees what a client with trouble resolving would not.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc
from machine import Machine
from postbus.v1 import cluster_pb2, cluster_pb2_grpc

INTERVAL_S = 0.1
CALL_TIMEOUT_S = 2.0
OPTIONS = (("grpc.use_local_subchannel_pool", 1),)


@dataclass(frozen=True, slots=True)
class Sample:
    """One answer. lacking: partitions without a leader or with fewer in sync than there are replicas."""

    at: float
    nodes: dict[int, str]  # node id -> version
    racks: dict[int, str]
    holders: frozenset[int]  # nodes that hold replicas
    lacking: tuple[str, ...]

    @property
    def is_whole(self) -> bool:
        return not self.lacking


class ClusterWatch:
    """The pods of one StatefulSet."""

    def __init__(self, machine: Machine, namespace: str, name: str) -> None:
        self.samples: list[Sample] = []
        self._machine = machine
        self._namespace = namespace
        self._name = name

    def addresses(self) -> dict[int, str]:
        """Node id -> address, of the pods that run."""
        found = {}
        for pod in self._machine.pods.values():
            metadata = pod["metadata"]
            owner = metadata.get("ownerReferences", [{}])[0]
            if metadata["namespace"] != self._namespace or owner.get("kind") != "StatefulSet":
                continue
            if owner["name"] == self._name and pod["status"].get("podIP"):
                found[int(metadata["labels"]["apps.kubernetes.io/pod-index"])] = pod["status"]["podIP"]
        return found

    async def run(self) -> None:
        """For ever."""
        while True:
            for _, address in sorted(self.addresses().items()):
                with contextlib.suppress(grpc.aio.AioRpcError):
                    self.samples.append(await self._ask(address))
                    break
            await asyncio.sleep(INTERVAL_S)

    async def _ask(self, address: str) -> Sample:
        async with grpc.aio.insecure_channel(f"{address}:7070", options=OPTIONS) as channel:
            stub: Any = cluster_pb2_grpc.ClusterServiceStub(channel)
            asked_at = time.monotonic()
            seen = await stub.GetMetadata(cluster_pb2.GetMetadataRequest(), timeout=CALL_TIMEOUT_S)
        partitions = [(topic.name, one) for topic in seen.topics for one in topic.partitions]
        return Sample(
            asked_at,
            {node.node_id: node.version for node in seen.nodes},
            {node.node_id: node.rack for node in seen.nodes},
            frozenset(node for _, one in partitions for node in one.replica_node_ids),
            tuple(
                f"{topic}/{one.partition}"
                for topic, one in partitions
                if not one.HasField("leader_node_id") or len(one.isr_node_ids) < len(one.replica_node_ids)
            ),
        )

    async def until(self, holds: Callable[[Sample], object], timeout_s: float, what: str) -> Sample:
        """The first answer from now on of which that holds."""
        begin = time.monotonic()
        seen = len(self.samples)
        while time.monotonic() < begin + timeout_s:
            for sample in self.samples[seen:]:
                if sample.at >= begin and holds(sample):
                    return sample
            seen = len(self.samples)
            await asyncio.sleep(INTERVAL_S / 2)
        last = self.samples[-1] if self.samples else None
        raise AssertionError(f"{what}: not within {timeout_s:g} s; last seen: {last}")

    def before(self, moment: float) -> Sample | None:
        """The last answer before a moment."""
        return next((sample for sample in reversed(self.samples) if sample.at <= moment), None)
