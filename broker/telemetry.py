"""What a node says about itself: logs and metrics.

Owns the log set-up and the metrics' names. It never decides anything, and knows no other layer: what lives in objects
(offsets, lag) is asked for at scrape time through sources handed in by the node. Sources run on the event loop, which
owns that state; only the rendering of what they gave happens in a thread, so that a scrape doesn't hold up a publish.
"""

import asyncio
import logging
import sys
from bisect import bisect_left
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from math import inf
from typing import Any, Final, TextIO

import structlog
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    exposition,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from broker.clock import Clock, SystemClock

EXPOSITION_CONTENT_TYPE: Final = exposition.CONTENT_TYPE_LATEST

# From a group commit on a fast disk to a timeout.
_REQUEST_SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_FSYNC_SECONDS: Final = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5)
_LAG_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5)


# --- logs -------------------------------------------------------------------------------------------------------------


def configure_logging(*, level: str, log_format: str, node_id: int, stream: TextIO | None = None) -> None:
    """Sets up structlog, and hands it what libraries log through `logging`.

    level: debug, info, warning or error. log_format: json (one object a line), console, or auto: console on a
    terminal. Event names are nouns with fields: log.info("node ready", duration_ms=312).
    """
    stream = stream if stream is not None else sys.stderr
    number = logging.getLevelNamesMapping()[level.upper()]
    as_json = log_format == "json" or (log_format == "auto" and not stream.isatty())
    processors: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="ts" if as_json else "timestamp"),
    ]
    if as_json:
        processors += [_node_id(node_id), structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    else:
        processors += [structlog.dev.ConsoleRenderer(colors=stream.isatty())]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(file=stream),
        cache_logger_on_first_use=True,
    )
    root = logging.getLogger()
    root.handlers[:] = [_ToStructlog()]
    # Libraries are chatty below warnings; debug shows them too.
    root.setLevel(number if number <= logging.DEBUG else max(number, logging.WARNING))


def _node_id(node_id: int) -> Callable[[Any, str, Any], Any]:
    def add(_logger: Any, _method: str, event: Any) -> Any:
        event.setdefault("node_id", node_id)
        return event

    return add


class _ToStructlog(logging.Handler):
    """Hands a library's log record to structlog, so that a node writes one format."""

    def emit(self, record: logging.LogRecord) -> None:
        structlog.get_logger().log(
            record.levelno, record.getMessage(), logger=record.name, exc_info=record.exc_info or None
        )


# --- metrics ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PartitionSample:
    """A partition as it is at scrape time."""

    topic: str
    partition: int
    log_start_offset: int
    end_offset: int
    high_watermark: int
    size_bytes: int
    leader: bool  # led by this node
    in_sync_replicas: int
    replicas: int
    damaged: bool = False  # a part of the copy here can't be read


@dataclass(frozen=True, slots=True)
class GroupSample:
    """A group that this node coordinates, at scrape time."""

    group: str
    members: int
    lag: tuple[tuple[str, int], ...]  # (topic, records), over all partitions of the topic


@dataclass(frozen=True, slots=True)
class ControllerSample:
    """The cluster as this node's controller sees it."""

    active: bool
    offline_partitions: int
    topics: int


PartitionSource = Callable[[], Iterable[PartitionSample]]
GroupSource = Callable[[], Iterable[GroupSample]]
ControllerSource = Callable[[], ControllerSample]


class TopicMetrics:
    """Counts of one topic, as plain numbers: the library's counters cost more than all else about a small record."""

    __slots__ = ("bytes_delivered", "bytes_published", "records_delivered", "records_published")

    def __init__(self) -> None:
        self.records_published = self.bytes_published = 0
        self.records_delivered = self.bytes_delivered = 0

    def published(self, records: int, size_bytes: int) -> None:
        """A batch was appended."""
        self.records_published += records
        self.bytes_published += size_bytes

    def delivered(self, records: int, size_bytes: int) -> None:
        """A batch was handed to a subscriber's stream."""
        self.records_delivered += records
        self.bytes_delivered += size_bytes


class _Durations:
    """A histogram as plain numbers: one for each (rpc, code)."""

    __slots__ = ("counts", "total_seconds")

    def __init__(self) -> None:
        self.counts = [0] * (len(_REQUEST_SECONDS) + 1)
        self.total_seconds = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(_REQUEST_SECONDS, seconds)] += 1
        self.total_seconds += seconds

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative, as the exposition wants them."""
        sums = list(accumulate(self.counts))
        edges = (*_REQUEST_SECONDS, inf)
        return [(floatToGoString(edge), count) for edge, count in zip(edges, sums, strict=True)]  # type: ignore[no-untyped-call]


class Metrics:
    """All metrics of a node, in a registry of their own: two nodes in one process don't meet."""

    def __init__(self, *, version: str, per_partition: bool = True) -> None:
        # One more series for each counter, that nobody asks for.
        disable_created_metrics()  # type: ignore[no-untyped-call]  # the library's
        self.registry = CollectorRegistry(auto_describe=False)
        self._topics: dict[str, TopicMetrics] = {}
        self._requests: dict[tuple[str, str], _Durations] = {}

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"postbus_{name}", text, labels, registry=self.registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"postbus_{name}", text, labels, registry=self.registry)

        self.publishes_refused = counter("publishes_refused", "Publish requests that failed, by reason.", "reason")
        self.fsync_seconds = Histogram(
            "postbus_fsync_duration_seconds",
            "Time of one fsync of the write-ahead log, by database (data, meta).",
            ("database",),
            buckets=_FSYNC_SECONDS,
            registry=self.registry,
        )
        self.event_loop_lag_seconds = Histogram(
            "postbus_event_loop_lag_seconds",
            "How late the event loop woke up, sampled.",
            buckets=_LAG_SECONDS,
            registry=self.registry,
        )
        self.append_queue_bytes = gauge("append_queue_bytes", "Bytes that wait for the disk.")
        self.tail_bytes = gauge("tail_bytes", "Bytes of recent batches in memory.")
        self.subscriptions_open = gauge("subscriptions_open", "Subscribe streams that are open.")
        self.publish_streams_open = gauge("publish_streams_open", "Publish streams that are open.")
        self.disk_free_bytes = gauge("disk_free_bytes", "Free bytes on the disk that holds the data.")
        self.publishing_refused = gauge("publishing_refused", "1 while publishing is refused for want of disk space.")
        self.log_damages = counter("log_damages", "Copies of partitions that were found to be damaged.")
        self.ready = gauge("ready", "1 while the node is ready.")
        gauge("build_info", "Always 1; the version is in the label.", "version").labels(version).set(1)
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self._live = _LiveState(self._topics, self._requests, per_partition=per_partition)

    def topic(self, name: str) -> TopicMetrics:
        """The counters of a topic that exists. Never call it with a name that a client made up."""
        found = self._topics.get(name)
        if found is None:
            found = self._topics[name] = TopicMetrics()
        return found

    def forget_topic(self, name: str) -> None:
        """The topic went: so do its series."""
        self._topics.pop(name, None)

    def request(self, rpc: str, code: str, duration_seconds: float) -> None:
        """A call, or a request on a stream, was answered. `rpc` is "PublisherService/Publish", `code` "OK"."""
        durations = self._requests.get((rpc, code))
        if durations is None:
            durations = self._requests[rpc, code] = _Durations()
        durations.observe(duration_seconds)

    def set_sources(
        self,
        *,
        partitions: PartitionSource | None = None,
        groups: GroupSource | None = None,
        controller: ControllerSource | None = None,
    ) -> None:
        """Hands in who to ask at scrape time; called on the event loop, so they should be quick."""
        self._live.partitions = partitions or self._live.partitions
        self._live.groups = groups or self._live.groups
        self._live.controller = controller or self._live.controller

    async def exposition(self) -> bytes:
        """All metrics in Prometheus' text format. Call it on the event loop."""
        families = self._live.sample()
        return await asyncio.to_thread(self._render, families)

    def _render(self, families: list[Metric]) -> bytes:
        return exposition.generate_latest(self.registry) + exposition.generate_latest(_Given(families))


class _LiveState:
    """State that others own, as metrics."""

    def __init__(
        self, topics: dict[str, TopicMetrics], requests: dict[tuple[str, str], _Durations], *, per_partition: bool
    ) -> None:
        self._topics = topics
        self._requests = requests
        self._per_partition = per_partition
        self.partitions: PartitionSource = tuple
        self.groups: GroupSource = tuple
        self.controller: ControllerSource | None = None

    def sample(self) -> list[Metric]:
        return [
            *self._of_topics(),
            *self._of_requests(),
            *self._of_partitions(),
            *self._of_groups(),
            *self._of_controller(),
        ]

    def _of_topics(self) -> Iterator[Metric]:
        for name, text in (
            ("records_published", "Records appended."),
            ("bytes_published", "Bytes of the batches appended, as sent."),
            ("records_delivered", "Records sent to subscribers."),
            ("bytes_delivered", "Bytes of the batches sent to subscribers."),
        ):
            family = CounterMetricFamily(f"postbus_{name}", text, labels=("topic",))
            for topic, counts in self._topics.items():
                family.add_metric((topic,), getattr(counts, name))
            yield family

    def _of_requests(self) -> Iterator[Metric]:
        family = HistogramMetricFamily(
            "postbus_request_duration_seconds",
            "Time from a unary call, or a request on a publish stream, to its answer.",
            labels=("rpc", "code"),
        )
        for labels, durations in self._requests.items():
            family.add_metric(labels, buckets=durations.buckets(), sum_value=durations.total_seconds)
        yield family

    def _of_partitions(self) -> Iterator[Metric]:
        if not self._per_partition:
            return

        def family(name: str, text: str) -> GaugeMetricFamily:
            return GaugeMetricFamily(f"postbus_topic_partition_{name}", text, labels=("topic", "partition"))

        start = family("start_offset", "First offset that is there.")
        end = family("end_offset", "One past the last offset.")
        watermark = family("high_watermark", "End of what may be read.")
        size = family("size_bytes", "Stored bytes.")
        leader = family("leader", "1 where this node leads the partition.")
        in_sync = family("in_sync_replicas", "Replicas in sync.")
        under_replicated = family("under_replicated", "1 where a replica is not in sync.")
        damaged = family("damaged", "1 where a part of the copy on this node can't be read.")
        for sample in self.partitions():
            labels = (sample.topic, str(sample.partition))
            start.add_metric(labels, sample.log_start_offset)
            end.add_metric(labels, sample.end_offset)
            watermark.add_metric(labels, sample.high_watermark)
            size.add_metric(labels, sample.size_bytes)
            leader.add_metric(labels, int(sample.leader))
            in_sync.add_metric(labels, sample.in_sync_replicas)
            under_replicated.add_metric(labels, int(sample.in_sync_replicas < sample.replicas))
            damaged.add_metric(labels, int(sample.damaged))
        yield from (start, end, watermark, size, leader, in_sync, under_replicated, damaged)

    def _of_groups(self) -> Iterator[Metric]:
        members = GaugeMetricFamily("postbus_group_members", "Members of a group.", labels=("group",))
        lag = GaugeMetricFamily(
            "postbus_group_lag", "Records that a group has not committed yet.", labels=("group", "topic")
        )
        for sample in self.groups():
            members.add_metric((sample.group,), sample.members)
            for topic, records in sample.lag:
                lag.add_metric((sample.group, topic), records)
        yield from (members, lag)

    def _of_controller(self) -> Iterator[Metric]:
        if self.controller is None:
            return
        sample = self.controller()
        yield GaugeMetricFamily("postbus_controller_active", "1 on the active controller.", value=int(sample.active))
        yield GaugeMetricFamily(
            "postbus_controller_offline_partitions", "Partitions without a leader.", value=sample.offline_partitions
        )
        yield GaugeMetricFamily("postbus_controller_topics", "Topics, the broker's own included.", value=sample.topics)


class _Given(CollectorRegistry):
    """A registry of what was collected already."""

    def __init__(self, families: list[Metric]) -> None:
        super().__init__(auto_describe=False)
        self.register(_Collected(families))


class _Collected(Collector):
    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterable[Metric]:
        return self._families


class EventLoopLag:
    """Samples how late the event loop wakes up. Owns one task, from `start` to `stop`."""

    def __init__(
        self,
        metrics: Metrics,
        *,
        interval_seconds: float = 0.25,
        clock: Clock | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._histogram = metrics.event_loop_lag_seconds
        self._interval_seconds = interval_seconds
        self._monotonic = (clock or SystemClock()).monotonic
        self._sleep = sleep
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins. Call it once, on the event loop."""
        assert self._task is None
        self._task = asyncio.create_task(self._run(), name="event-loop-lag")

    async def stop(self) -> None:
        """Ends the task and waits for it. Harmless when not started."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def _run(self) -> None:
        while True:
            due = self._monotonic() + self._interval_seconds
            await self._sleep(self._interval_seconds)
            self._histogram.observe(max(0.0, self._monotonic() - due))
