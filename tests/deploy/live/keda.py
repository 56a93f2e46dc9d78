"""What KEDA does with the answers of an external scaler, for one ScaledObject: replicas of a Deployment follow a lag.

Activation and cool-down are KEDA's, the rest is what the HorizontalPodAutoscaler makes of the metric. Only times are
shorter than KEDA's: it asks each second, and forgets a higher wish after ten.
"""

import asyncio
import contextlib
import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
from api import Api, ApiError

from broker.stubs import externalscaler_pb2, externalscaler_pb2_grpc

INTERVAL_S = 1.0
COOL_DOWN_S = 10.0
ANSWER_S = 8.0


@dataclass(frozen=True, slots=True)
class Look:
    """What was answered once, and what followed."""

    at: float
    active: bool
    metric: float
    replicas: int


@dataclass(slots=True)
class Scale:
    """How many replicas, from what was answered; pure."""

    least: int
    most: int
    _wishes: deque[tuple[float, int]] = field(default_factory=deque)
    _active_at: float = float("-inf")

    def replicas(self, now: float, *, active: bool, metric: float, target: float, before: int) -> int:
        """For as long as the next answer takes. before: how many there are."""
        self._wishes.append((now, math.ceil(metric / target)))
        while self._wishes[0][0] < now - COOL_DOWN_S:
            self._wishes.popleft()
        if active:
            self._active_at = now
        elif before == 0 or now >= self._active_at + COOL_DOWN_S:
            return self.least
        return max(1, self.least, min(self.most, max(wish for _, wish in self._wishes)))


class Keda:
    """One ScaledObject with one external trigger. `run` is its life."""

    def __init__(self, api: Api, scaled: dict[str, Any], namespace: str, address: Callable[[str], str]) -> None:
        """address: host:port of the scaler's name -> host:port to connect to."""
        self.looks: list[Look] = []
        self.refused = 0
        spec = scaled["spec"]
        (trigger,) = spec["triggers"]
        metadata = dict(trigger["metadata"])
        self._api = api
        self._scaler = metadata.pop("scalerAddress")
        self._address = address
        self._path = f"/apis/apps/v1/namespaces/{namespace}/deployments/{spec['scaleTargetRef']['name']}/scale"
        self._scale = Scale(spec["minReplicaCount"], spec["maxReplicaCount"])
        self._reference = externalscaler_pb2.ScaledObjectRef(
            name=scaled["metadata"]["name"], namespace=namespace, scalerMetadata=metadata
        )

    async def run(self) -> None:
        """For ever. What is not answered leaves the replicas as they are."""
        while True:
            try:
                await self._look()
            except (grpc.aio.AioRpcError, ApiError, OSError):
                self.refused += 1
            await asyncio.sleep(INTERVAL_S)

    async def _look(self) -> None:
        async with grpc.aio.insecure_channel(self._address(self._scaler)) as channel:
            stub: Any = externalscaler_pb2_grpc.ExternalScalerStub(channel)
            active = (await stub.IsActive(self._reference, timeout=ANSWER_S)).result
            (spec,) = (await stub.GetMetricSpec(self._reference, timeout=ANSWER_S)).metricSpecs
            request = externalscaler_pb2.GetMetricsRequest(scaledObjectRef=self._reference, metricName=spec.metricName)
            (value,) = (await stub.GetMetrics(request, timeout=ANSWER_S)).metricValues
        now = time.monotonic()
        before = (await self._api.get(self._path))["spec"].get("replicas", 0)
        replicas = self._scale.replicas(
            now, active=active, metric=value.metricValueFloat, target=spec.targetSizeFloat, before=before
        )
        if replicas != before:
            await self._api.patch(self._path, {"spec": {"replicas": replicas}})
        self.looks.append(Look(now, active, value.metricValueFloat, replicas))


@contextlib.asynccontextmanager
async def scaling(keda: Keda) -> Any:
    """Runs it meanwhile."""
    task = asyncio.create_task(keda.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
