"""What a node says about itself: logs and metrics.

Owns the log set-up, and the metrics that are counted as things happen. It never decides anything, and knows no other
layer: what lives in objects (offsets, lag) is asked for at scrape time through sources handed in by the node, and is
in `samples`. Sources run on the event loop, which owns that state; all that is made of what they gave is made in a
thread, so that a scrape doesn't hold up a publish.
"""

import asyncio
import logging
import sys
from bisect import bisect_left
from collections.abc import Awaitable, Callable, Iterable
from itertools import accumulate
from math import inf
from typing import Any, Final, TextIO

import grpc
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
from prometheus_client.utils import floatToGoString

from broker.clock import Clock, SystemClock
from broker.errors import KINDS, reason_name
from broker.samples import (
    ControllerSample,
    GroupSample,
    PartitionSample,
    RequestSample,
    Samples,
    TopicSample,
    render,
)

EXPOSITION_CONTENT_TYPE: Final = exposition.CONTENT_TYPE_LATEST
DATABASES: Final = ("data", "meta")
_PUBLISHING: Final = frozenset({"PublisherService/Publish", "PublisherService/PublishStream"})

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

    def sample(self, topic: str) -> TopicSample:
        """As it is now."""
        return TopicSample(
            topic, self.records_published, self.bytes_published, self.records_delivered, self.bytes_delivered
        )


class _Durations:
    """A histogram as plain numbers: one for each (rpc, code)."""

    __slots__ = ("counts", "total_seconds")

    def __init__(self) -> None:
        self.counts = [0] * (len(_REQUEST_SECONDS) + 1)
        self.total_seconds = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(_REQUEST_SECONDS, seconds)] += 1
        self.total_seconds += seconds

    def sample(self, rpc: str, code: str) -> RequestSample:
        """As it is now; cumulative, as the exposition wants it."""
        sums = list(accumulate(self.counts))
        edges = (*_REQUEST_SECONDS, inf)
        buckets = [(floatToGoString(edge), float(count)) for edge, count in zip(edges, sums, strict=True)]  # type: ignore[no-untyped-call]
        return RequestSample(rpc, code, buckets, self.total_seconds)


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
        for reason in KINDS:
            # Series that are there from the start: else the first of each would be no increase.
            self.publishes_refused.labels(reason_name(reason))
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
        for database in DATABASES:
            self.fsync_seconds.labels(database)
        self.append_queue_bytes = gauge("append_queue_bytes", "Bytes that wait for the disk.")
        self.append_queue_limit_bytes = gauge("append_queue_limit_bytes", "As many may; then publishers wait.")
        self.write_stalls = counter(
            "write_stalls", "Writes that RocksDB held up, by database (data, meta).", "database"
        )
        self.tail_bytes = gauge("tail_bytes", "Bytes of recent batches in memory.")
        self.subscriptions_open = gauge("subscriptions_open", "Subscribe streams that are open.")
        self.publish_streams_open = gauge("publish_streams_open", "Publish streams that are open.")
        self.disk_free_bytes = gauge("disk_free_bytes", "Free bytes on the disk that holds the data.")
        self.disk_size_bytes = gauge("disk_size_bytes", "Bytes that the disk that holds the data has.")
        self.memory_limit_bytes = gauge("memory_limit_bytes", "What this process may use; +Inf: there is no limit.")
        self.publishing_refused = gauge("publishing_refused", "1 while publishing is refused for want of disk space.")
        self.scrubbed_bytes = counter("scrubbed_bytes", "Read in the background, to find damage.")
        self.log_damages = counter("log_damages", "Copies of partitions that were found to be damaged.")
        self.elections = counter("leader_elections", "Partitions that this node began to lead.")
        self.unclean_elections = counter(
            "unclean_elections",
            "Partitions that this node began to lead without having been in sync: records are lost.",
        )
        self.isr_changes = counter(
            "isr_changes",
            "Changes (shrink, expand) of the in-sync replicas of partitions that this node leads.",
            "kind",
        )
        for kind in ("shrink", "expand"):
            self.isr_changes.labels(kind)
        self.ready = gauge("ready", "1 while the node is ready.")
        gauge("build_info", "Always 1; the version is in the label.", "version").labels(version).set(1)
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self._failures = dict.fromkeys((code.name for code in grpc.StatusCode if code is not grpc.StatusCode.OK), 0)
        self._per_partition = per_partition
        self._partitions: PartitionSource = tuple
        self._groups: GroupSource = tuple
        self._controller: ControllerSource | None = None

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

    def request_failed(self, rpc: str, code: str, reason: str = "") -> None:
        """A call, a stream, or a request on a stream ended with another code than OK. `reason` is ErrorInfo's."""
        self._failures[code] += 1
        if reason and rpc in _PUBLISHING:
            self.publishes_refused.labels(reason).inc()

    def set_sources(
        self,
        *,
        partitions: PartitionSource | None = None,
        groups: GroupSource | None = None,
        controller: ControllerSource | None = None,
    ) -> None:
        """Hands in who to ask at scrape time; called on the event loop, so they should be quick."""
        self._partitions = partitions or self._partitions
        self._groups = groups or self._groups
        self._controller = controller or self._controller

    async def exposition(self) -> bytes:
        """All metrics in Prometheus' text format. Call it on the event loop."""
        samples = self._sample()
        return await asyncio.to_thread(self._render, samples)

    def _sample(self) -> Samples:
        return Samples(
            topics=tuple(counts.sample(name) for name, counts in self._topics.items()),
            requests=tuple(durations.sample(*labels) for labels, durations in self._requests.items()),
            failures=dict(self._failures),
            partitions=tuple(self._partitions()) if self._per_partition else (),
            groups=tuple(self._groups()),
            controller=self._controller() if self._controller is not None else None,
            per_partition=self._per_partition,
        )

    def _render(self, samples: Samples) -> bytes:
        return exposition.generate_latest(self.registry) + render(samples)


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
