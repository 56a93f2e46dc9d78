"""KEDA's external scaler: how many members a group could use, from its lag. Any node answers.

What is committed the group's coordinator says, how far partitions go their leaders do, in this order: what is committed
and published meanwhile makes the lag larger, never smaller than it was. If one of them does not say, the answer is
UNAVAILABLE, upon which KEDA leaves the replicas as they are: a zero for want of knowledge would stop them all. Nothing
is kept between two questions, so that it makes no difference which node is asked next.
"""

import asyncio
import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Final

from postbus.v1 import group_pb2, subscriber_pb2

from broker import errors
from broker.clock import Clock
from broker.errors import PostbusError, Reason
from broker.groups.client import CoordinatorClient
from broker.replication.partitions import PartitionedTopic, Partitions
from broker.services import positions
from broker.services.adapter import Call, ServerStream
from broker.services.catch_up import CatchUp
from broker.services.partition_client import PartitionClient
from broker.services.requests import parse
from broker.services.scaler_trigger import Backlog, Trigger, parse_trigger
from broker.services.together import together
from broker.stubs import externalscaler_pb2 as pb
from broker.stubs import partition_calls_pb2 as calls_pb2

# Of the time there is: the rest is for the way back, and those who are asked say why they don't know.
_OWN_SHARE: Final = 0.9


@dataclass(frozen=True, slots=True)
class ScalerSettings:
    """Bounds."""

    answer_s: float = 5.0
    """How long an election is waited out; KEDA asks again."""
    poll_s: float = 2.0
    """How often a stream's group is looked at: nothing tells of records that other nodes lead."""
    streams_max: int = 100
    """Each costs a look every `poll_s`."""


class ExternalScaler:
    """Serves `externalscaler.ExternalScaler`."""

    def __init__(
        self,
        *,
        coordinator: CoordinatorClient,
        client: PartitionClient,
        partitions: Partitions,
        clock: Clock,
        settings: ScalerSettings | None = None,
    ) -> None:
        self.settings = settings or ScalerSettings()
        self.catch_up: CatchUp | None = None  # None: what is not known here does not exist
        self._coordinator = coordinator
        self._client = client
        self._partitions = partitions
        self._clock = clock
        self._draining = asyncio.Event()
        self._streams = 0

    # --- the RPCs ---

    async def is_active(self, data: bytes, call: Call) -> bytes:
        """IsActive."""
        trigger = parse_trigger(parse(pb.ScaledObjectRef, data).scalerMetadata)
        backlog = await self._backlog(trigger, self._patience_s(call))
        return pb.IsActiveResponse(result=trigger.is_active(backlog)).SerializeToString()

    async def stream_is_active(self, data: bytes, stream: ServerStream) -> None:
        """StreamIsActive: tells when the group becomes active. Ends with any error; the caller comes again."""
        trigger = parse_trigger(parse(pb.ScaledObjectRef, data).scalerMetadata)
        if self._streams >= self.settings.streams_max:
            raise PostbusError(
                Reason.ERROR_REASON_QUOTA_EXCEEDED,
                f"this node has {self._streams} StreamIsActive streams open, as many as it may; use the trigger type"
                " `external`, which asks instead",
                retry_after_ms=5000,
            )
        self._streams += 1
        try:
            was_active = False
            while not self._draining.is_set():
                is_active = trigger.is_active(await self._backlog(trigger, self.settings.answer_s))
                if is_active and not was_active:
                    await stream.write(pb.IsActiveResponse(result=True).SerializeToString())
                was_active = is_active
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self.settings.poll_s):
                        await self._draining.wait()
            raise errors.draining()
        finally:
            self._streams -= 1

    async def get_metric_spec(self, data: bytes, call: Call) -> bytes:
        """GetMetricSpec: of the trigger alone, so that a ScaledObject may be there before its topic."""
        trigger = parse_trigger(parse(pb.ScaledObjectRef, data).scalerMetadata)
        spec = pb.MetricSpec(
            metricName=trigger.metric_name,
            targetSize=trigger.lag_threshold,
            targetSizeFloat=trigger.lag_threshold,
        )
        return pb.GetMetricSpecResponse(metricSpecs=[spec]).SerializeToString()

    async def get_metrics(self, data: bytes, call: Call) -> bytes:
        """GetMetrics."""
        request = parse(pb.GetMetricsRequest, data)
        trigger = parse_trigger(request.scaledObjectRef.scalerMetadata, "scaledObjectRef.scalerMetadata")
        if request.metricName not in ("", trigger.metric_name):
            raise errors.invalid_field("metricName", f"this trigger's metric is {trigger.metric_name!r}")
        value = trigger.metric(await self._backlog(trigger, self._patience_s(call)))
        metric = pb.MetricValue(metricName=trigger.metric_name, metricValue=value, metricValueFloat=value)
        return pb.GetMetricsResponse(metricValues=[metric]).SerializeToString()

    def end_streams(self) -> None:
        """The node goes."""
        self._draining.set()

    # --- what is behind ---

    async def _backlog(self, trigger: Trigger, timeout_s: float) -> Backlog:
        """Raises NOT_FOUND errors, NO_LEADER in time, and INVALID_FIELD if nothing says which topics are meant."""
        deadline = self._clock.monotonic() + timeout_s * _OWN_SHARE
        look = partial(self._look, trigger, deadline)
        try:
            async with asyncio.timeout(timeout_s):
                return await (look() if self.catch_up is None else self.catch_up.again(look))
        except TimeoutError:
            raise PostbusError(
                Reason.ERROR_REASON_NO_LEADER,
                f"the lag of group {trigger.group!r} was not known within {timeout_s:.1f} s; try again",
                retry_after_ms=1000,
            ) from None

    async def _look(self, trigger: Trigger, deadline: float) -> Backlog:
        named = self._partitions.topic(trigger.topic) if trigger.topic else None
        try:
            group = await self._coordinator.get_group(trigger.group, timeout_s=self._left_s(deadline))
        except PostbusError as error:
            if error.reason != Reason.ERROR_REASON_GROUP_NOT_FOUND or named is None:
                raise
            group = group_pb2.Group(name=trigger.group)  # its first member creates it
        read = self._read_by(group, trigger)
        topics = [named] if named is not None else read
        if not topics:
            raise errors.invalid_field(
                "scalerMetadata.topic",
                f'is required: group {trigger.group!r} has read nothing yet; for example topic: "orders"',
            )
        return _sum([await self._backlog_of(topic, group, trigger, deadline) for topic in topics])

    def _read_by(self, group: group_pb2.Group, trigger: Trigger) -> list[PartitionedTopic]:
        """Raises TOPIC_NOT_FOUND, PARTITION_NOT_FOUND for what only the coordinator knows: left out, it were no lag."""
        topics: dict[str, PartitionedTopic] = {}
        for offset in group.offsets:
            if trigger.topic not in ("", offset.topic):
                continue
            topic = topics.setdefault(offset.topic, self._partitions.topic(offset.topic))
            topic.partition(offset.partition)
        return [topics[name] for name in sorted(topics)]

    async def _backlog_of(
        self, topic: PartitionedTopic, group: group_pb2.Group, trigger: Trigger, deadline: float
    ) -> Backlog:
        """Of all partitions that the topic has now: those that were added while nobody was a member count too."""
        committed = {
            offset.partition: offset.offset
            for offset in group.offsets
            if offset.topic == topic.name and offset.HasField("offset")
        }
        start = subscriber_pb2.StartPosition(edge=trigger.start)
        if group.config.HasField("start_at"):
            start = group.config.start_at
        if committed:
            # The group knows the topic: what has no place in it was added later, and is read from its beginning.
            start = subscriber_pb2.StartPosition(edge=subscriber_pb2.LOG_EDGE_EARLIEST)
        ends = await self._client.ends(topic.topic_id, topic.partitions, timeout_s=self._left_s(deadline))

        new = sorted(ends.keys() - committed.keys())
        starts = await together(
            [partial(self._starting_place, topic, ends[number], start, deadline) for number in new],
            at_once_max=self._client.settings.calls_at_once_max,
        )
        places: dict[int, int | None] = {**committed, **dict(zip(new, starts, strict=True))}
        return _sum(_behind(places[number], ends[number]) for number in ends)

    async def _starting_place(
        self,
        topic: PartitionedTopic,
        ends: calls_pb2.PartitionEnds,
        start: subscriber_pb2.StartPosition,
        deadline: float,
    ) -> int | None:
        """Where a member would begin; None: at the end, wherever that will be then."""
        which = start.WhichOneof("at")
        if which == "edge" and start.edge == subscriber_pb2.LOG_EDGE_LATEST:
            return None
        if which is None or which == "edge":
            return ends.log_start_offset
        partition = topic.partition(ends.partition)
        return await positions.resolve_start(partition, start, self._clock, timeout_s=self._left_s(deadline))

    def _left_s(self, deadline: float) -> float:
        return max(deadline - self._clock.monotonic(), 0.0)

    def _patience_s(self, call: Call) -> float:
        return min(max(call.timeout_s, 0.0) * _OWN_SHARE, self.settings.answer_s)


def _behind(place: int | None, ends: calls_pb2.PartitionEnds) -> Backlog:
    """Of one partition; place: where the group goes on, None: nowhere yet."""
    if place is None:
        return Backlog(partitions=1, places_open=True)
    # What retention took can't be read any more.
    unread = max(ends.high_watermark - max(place, ends.log_start_offset), 0)
    return Backlog(unread=unread, partitions=1, partitions_with_lag=int(unread > 0))


def _sum(parts: Iterable[Backlog]) -> Backlog:
    parts = list(parts)
    return Backlog(
        unread=sum(part.unread for part in parts),
        partitions=sum(part.partitions for part in parts),
        partitions_with_lag=sum(part.partitions_with_lag for part in parts),
        places_open=any(part.places_open for part in parts),
    )
