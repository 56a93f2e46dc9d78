"""What is known of a node's state at scrape time, and how Prometheus is shown it.

Owns the values that are handed over, and the names of their series. Taking the values is the business of whoever owns
the state (`vitals`), on the event loop; making series of them takes long where partitions are many, so that it happens
in a thread, on values that nobody changes any more. It never asks anybody for anything.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, exposition
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector


@dataclass(frozen=True, slots=True)
class PartitionSample:
    """A partition of which this node has a replica."""

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
    replication_lag: int = 0  # records that the follower furthest behind lacks, where this node leads


@dataclass(frozen=True, slots=True)
class GroupSample:
    """A group that this node coordinates."""

    group: str
    members: int
    lag: tuple[tuple[str, int], ...]  # (topic, records), over all partitions of the topic
    rebalances: int = 0  # since the group was made, whoever coordinated it


@dataclass(frozen=True, slots=True)
class NodeSample:
    """A node of the cluster, as the image here has it."""

    node_id: int
    fenced: bool
    draining: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ControllerSample:
    """The cluster as this node knows it."""

    active: bool  # it is the controller
    known: bool = True  # it knows who is
    session_valid: bool = True  # the controller answers it
    term: int = 0
    metadata_index: int = 0
    topics: int = 0
    offline_partitions: int = 0
    under_replicated_partitions: int = 0
    below_min_insync_partitions: int = 0
    reassigning_partitions: int = 0
    voters: int = 1
    voters_unreachable: int = 0
    nodes: tuple[NodeSample, ...] = ()
    leaders: int = 0  # partitions that this node leads
    replicas: int = 0  # partitions that it has a copy of
    replicas_behind: int = 0  # of these, not in sync
    replicas_damaged: int = 0  # of these, with a part that can't be read
    follower_lags: tuple[tuple[int, int], ...] = ()  # (node, records it lacks of what this node leads)
    peers: tuple[tuple[int, bool], ...] = ()  # (node, whether there is a connection)


@dataclass(frozen=True, slots=True)
class TopicSample:
    """What was counted of a topic."""

    topic: str
    records_published: int
    bytes_published: int
    records_delivered: int
    bytes_delivered: int


@dataclass(frozen=True, slots=True)
class RequestSample:
    """How long requests took."""

    rpc: str
    code: str
    buckets: list[tuple[str, float]]  # (upper edge, requests up to it)
    total_seconds: float


@dataclass(frozen=True, slots=True)
class Samples:
    """Everything, at one moment."""

    topics: tuple[TopicSample, ...]
    requests: tuple[RequestSample, ...]
    failures: Mapping[str, int]  # by code
    partitions: tuple[PartitionSample, ...]
    groups: tuple[GroupSample, ...]
    controller: ControllerSample | None
    per_partition: bool


def render(samples: Samples) -> bytes:
    """In Prometheus' text format."""
    return exposition.generate_latest(_Given(samples))


# --- series -----------------------------------------------------------------------------------------------------------


def _families(samples: Samples) -> Iterator[Metric]:
    yield from _of_topics(samples.topics)
    yield from _of_requests(samples)
    if samples.per_partition:
        yield from _of_partitions(samples.partitions)
    yield from _of_groups(samples.groups)
    if samples.controller is not None:
        yield from _of_controller(samples.controller)
        yield from _of_nodes(samples.controller)


def _of_topics(topics: Iterable[TopicSample]) -> Iterator[Metric]:
    for name, text in (
        ("records_published", "Records appended."),
        ("bytes_published", "Bytes of the batches appended, as sent."),
        ("records_delivered", "Records sent to subscribers."),
        ("bytes_delivered", "Bytes of the batches sent to subscribers."),
    ):
        family = CounterMetricFamily(f"postbus_{name}", text, labels=("topic",))
        for sample in topics:
            family.add_metric((sample.topic,), getattr(sample, name))
        yield family


def _of_requests(samples: Samples) -> Iterator[Metric]:
    durations = HistogramMetricFamily(
        "postbus_request_duration_seconds",
        "Time from a unary call, or a request on a publish stream, to its answer.",
        labels=("rpc", "code"),
    )
    for sample in samples.requests:
        durations.add_metric((sample.rpc, sample.code), buckets=sample.buckets, sum_value=sample.total_seconds)
    failures = CounterMetricFamily(
        "postbus_requests_failed",
        "Calls, streams and requests on publish streams that ended with another code than OK.",
        labels=("code",),
    )
    for code, count in samples.failures.items():
        failures.add_metric((code,), count)
    yield from (durations, failures)


def _of_partitions(partitions: Iterable[PartitionSample]) -> Iterator[Metric]:
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
    lag = family("replication_lag", "Records that the follower furthest behind lacks; where this node leads.")
    for sample in partitions:
        labels = (sample.topic, str(sample.partition))
        start.add_metric(labels, sample.log_start_offset)
        end.add_metric(labels, sample.end_offset)
        watermark.add_metric(labels, sample.high_watermark)
        size.add_metric(labels, sample.size_bytes)
        leader.add_metric(labels, int(sample.leader))
        in_sync.add_metric(labels, sample.in_sync_replicas)
        under_replicated.add_metric(labels, int(sample.in_sync_replicas < sample.replicas))
        damaged.add_metric(labels, int(sample.damaged))
        if sample.leader:
            lag.add_metric(labels, sample.replication_lag)
    yield from (start, end, watermark, size, leader, in_sync, under_replicated, damaged, lag)


def _of_groups(groups: Iterable[GroupSample]) -> Iterator[Metric]:
    members = GaugeMetricFamily("postbus_group_members", "Members of a group.", labels=("group",))
    rebalances = CounterMetricFamily(
        "postbus_group_rebalances",
        "Changes of a group's members or topics since the group was made, whoever coordinated it.",
        labels=("group",),
    )
    lag = GaugeMetricFamily(
        "postbus_group_lag", "Records that a group has not committed yet.", labels=("group", "topic")
    )
    for sample in groups:
        members.add_metric((sample.group,), sample.members)
        rebalances.add_metric((sample.group,), sample.rebalances)
        for topic, records in sample.lag:
            lag.add_metric((sample.group, topic), records)
    yield from (members, rebalances, lag)


def _of_controller(sample: ControllerSample) -> Iterator[Metric]:
    for name, text, value in (
        ("active", "1 on the active controller.", int(sample.active)),
        ("known", "1 while this node knows who the active controller is.", int(sample.known)),
        ("term", "Raft's term: it grows with each election of a controller, tried or won.", sample.term),
        ("metadata_index", "How far this node has applied the metadata log.", sample.metadata_index),
        ("topics", "Topics, without the broker's own.", sample.topics),
        ("offline_partitions", "Partitions without a leader.", sample.offline_partitions),
        (
            "under_replicated_partitions",
            "Partitions with a replica that is not in sync.",
            sample.under_replicated_partitions,
        ),
        (
            "below_min_insync_partitions",
            "Partitions with fewer replicas in sync than min_insync_replicas: nothing can be published to them.",
            sample.below_min_insync_partitions,
        ),
        ("reassigning_partitions", "Partitions whose replicas are being moved.", sample.reassigning_partitions),
        ("voters", "Nodes that vote for a controller.", sample.voters),
        (
            "voters_unreachable",
            "Voters that can't be reached: as the active controller sees it or, without one, this node.",
            sample.voters_unreachable,
        ),
    ):
        yield GaugeMetricFamily(f"postbus_controller_{name}", text, value=value)


def _of_nodes(sample: ControllerSample) -> Iterator[Metric]:
    yield GaugeMetricFamily(
        "postbus_node_session_valid",
        "1 while the controller answers this node, so that it may lead.",
        value=int(sample.session_valid),
    )
    yield GaugeMetricFamily("postbus_node_leaders", "Partitions that this node leads.", value=sample.leaders)
    yield GaugeMetricFamily("postbus_node_replicas", "Partitions that this node has a copy of.", value=sample.replicas)
    yield GaugeMetricFamily(
        "postbus_node_replicas_behind", "Copies on this node that are not in sync.", value=sample.replicas_behind
    )
    yield GaugeMetricFamily(
        "postbus_node_replicas_damaged",
        "Copies on this node of which a part can't be read.",
        value=sample.replicas_damaged,
    )
    fenced = GaugeMetricFamily(
        "postbus_node_fenced", "1 for a node that the cluster does not count on.", labels=("node_id",)
    )
    draining = GaugeMetricFamily(
        "postbus_node_draining", "1 for a node that was taken out of use, or stops.", labels=("node_id",)
    )
    for node in sample.nodes:
        fenced.add_metric((str(node.node_id),), int(node.fenced))
        draining.add_metric((str(node.node_id),), int(node.draining))
    lag = GaugeMetricFamily(
        "postbus_follower_lag", "Records that another node lacks of what this one leads.", labels=("node_id",)
    )
    for node_id, records in sample.follower_lags:
        lag.add_metric((str(node_id),), records)
    connected = GaugeMetricFamily(
        "postbus_peer_connected", "1 while there is a connection with another node.", labels=("node_id",)
    )
    for node_id, is_connected in sample.peers:
        connected.add_metric((str(node_id),), int(is_connected))
    yield from (fenced, draining, lag, connected)


class _Given(CollectorRegistry):
    """A registry of what was collected already."""

    def __init__(self, samples: Samples) -> None:
        super().__init__(auto_describe=False)
        self.register(_Collected(samples))


class _Collected(Collector):
    def __init__(self, samples: Samples) -> None:
        self._samples = samples

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterable[Metric]:
        return _families(self._samples)
