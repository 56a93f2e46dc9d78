"""What a node's metrics show of its bus: sampled each second, counted as the image changes, and asked for at a scrape.

Owns what each of these numbers is taken from. It changes nothing but metrics, and decides nothing; names and texts are
in `telemetry` and `samples`. Sources run at each scrape on the event loop, so they look at each partition once.
"""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Final

import structlog

from broker.bus import Bus
from broker.controller.state import NOBODY, Difference
from broker.peers.grpc_transport import GrpcTransport
from broker.replication.partition import Partition
from broker.samples import ControllerSample, GroupSample, NodeSample, PartitionSample
from broker.storage import disk_watch
from broker.storage.store import LogStore
from broker.telemetry import Metrics

log = structlog.get_logger(__name__)

SAMPLE_INTERVAL_S: Final = 1.0
LAG_INTERVAL_S: Final = 5.0
_CGROUPS: Final = Path("/sys/fs/cgroup")
_OWN_CGROUP: Final = Path("/proc/self/cgroup")


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What the servicers and the node say of themselves."""

    ready: Callable[[], bool]
    subscriptions: Callable[[], int]
    publish_streams: Callable[[], int]


class Vitals:
    """Of one node. On the loop only."""

    def __init__(
        self,
        metrics: Metrics,
        *,
        store: LogStore,
        bus: Bus,
        transport: GrpcTransport | None,
        counts: Counts,
        disk_free_min_bytes: int,
    ) -> None:
        """transport: None for a node without peers. disk_free_min_bytes: the setting, to be told of."""
        self._metrics = metrics
        self._store = store
        self._bus = bus
        self._transport = transport
        self._counts = counts
        self._disk_free_min_bytes = disk_free_min_bytes
        self._refusing = False
        self._damages = self._scrubbed = 0
        self._stalls = dict.fromkeys(("data", "meta"), 0)
        self._committers = {"data": store.committer, "meta": store.meta.committer}
        for database, committer in self._committers.items():
            committer.on_flush = metrics.fsync_seconds.labels(database).observe
            metrics.write_stalls.labels(database)
        metrics.append_queue_limit_bytes.set(store.committer.append_queue_bytes_max)
        metrics.memory_limit_bytes.set(memory_limit_bytes())
        metrics.set_sources(partitions=self._partitions, groups=self._groups, controller=self._controller)

    async def run(self) -> None:
        """Samples until it is cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._run_samples())
            tasks.create_task(self._run_lags())

    async def _run_samples(self) -> None:
        while True:
            self._sample()
            await asyncio.sleep(SAMPLE_INTERVAL_S)

    async def _run_lags(self) -> None:
        """A scrape can't wait for other nodes: what it says of them is as old as this at most."""
        while True:
            await self._bus.coordinators.refresh_lags()
            await asyncio.sleep(LAG_INTERVAL_S)

    def followed(self, changes: Difference) -> None:
        """The cluster's image changed. Each change counts on one node: the one that leads the partition now."""
        metrics, me = self._metrics, self._bus.node_id
        for topic in changes.deleted:
            metrics.forget_topic(topic.name)
        if not self._bus.knows:
            return  # an earlier life is being replayed
        for change in changes.partitions:
            before, after = change.before, change.after
            if before is None or after.leader != me:
                continue
            if after.leader_epoch != before.leader_epoch:
                metrics.elections.inc()
                # Not where several changes came as one, as after an absence: who was in sync in between is not known.
                known = after.partition_epoch == before.partition_epoch + 1
                if known and me not in (*before.isr, *before.elr):
                    metrics.unclean_elections.inc()
            if set(before.isr) - set(after.isr):
                metrics.isr_changes.labels("shrink").inc()
            if set(after.isr) - set(before.isr):
                metrics.isr_changes.labels("expand").inc()

    # --- each second ---

    def _sample(self) -> None:
        """What metrics hold of the moment; and what an operator should not have to find there, in the log."""
        store, metrics = self._store, self._metrics
        metrics.append_queue_bytes.set(store.committer.queued_bytes)
        metrics.tail_bytes.set(store.tail_bytes)
        metrics.subscriptions_open.set(self._counts.subscriptions())
        metrics.publish_streams_open.set(self._counts.publish_streams())
        metrics.disk_free_bytes.set(store.disk_free_bytes)
        metrics.disk_size_bytes.set(disk_watch.size_bytes(store.path))
        metrics.publishing_refused.set(int(store.disk_full))
        metrics.ready.set(int(self._counts.ready()))
        found = self._bus.partitions.damages.found_count
        metrics.log_damages.inc(found - self._damages)
        self._damages = found
        metrics.scrubbed_bytes.inc(store.scrubbed_bytes - self._scrubbed)
        self._scrubbed = store.scrubbed_bytes
        for database, committer in self._committers.items():
            metrics.write_stalls.labels(database).inc(committer.stalls_count - self._stalls[database])
            self._stalls[database] = committer.stalls_count
        if store.disk_full != self._refusing:
            self._refusing = store.disk_full
            disk = {"free_bytes": store.disk_free_bytes, "disk_free_min_bytes": self._disk_free_min_bytes}
            if self._refusing:
                log.warning("disk_shortage", **disk, action="publishing is refused until there is room")
            else:
                log.info("disk_room", **disk, action="publishing goes on")

    # --- at a scrape ---

    def _controller(self) -> ControllerSample:
        bus = self._bus
        state, me = bus.state, bus.node_id
        offline = under_replicated = below_min = reassigning = replicas = behind = damaged = 0
        leaders = 0
        lags: dict[int, int] = {}
        for topic in bus.partitions.every_topic():
            min_insync = topic.config.min_insync_replicas
            for one in topic.partitions:
                leaders += one.leading
                damaged += one.damaged
                for node_id, lag in _lags(one):
                    lags[node_id] = lags.get(node_id, 0) + lag
                partition = one.state
                if partition is None:
                    continue
                offline += partition.leader == NOBODY
                under_replicated += len(partition.isr) < len(partition.replicas)
                below_min += len(partition.isr) < min_insync
                reassigning += partition.reassigning
                if me in partition.replicas:
                    replicas += 1
                    behind += me not in partition.isr
        return ControllerSample(
            active=bus.metadata_log.active,
            known=bus.metadata_log.controller_id is not None,
            session_valid=bus.session.session_valid,
            term=bus.raft.term,
            metadata_index=state.index,
            topics=sum(not topic.internal for topic in state.topics.values()),
            offline_partitions=offline,
            under_replicated_partitions=under_replicated,
            below_min_insync_partitions=below_min,
            reassigning_partitions=reassigning,
            voters=bus.quorum.voters_count,
            voters_unreachable=bus.quorum.unreachable_count,
            nodes=tuple(
                NodeSample(node.node_id, node.fenced, node.draining or node.stopping) for node in state.nodes.values()
            ),
            leaders=leaders,
            replicas=replicas,
            replicas_behind=behind,
            replicas_damaged=damaged,
            follower_lags=tuple(lags.items()),
            peers=tuple(
                (node_id, connected)
                for node_id, connected in (self._transport.peers if self._transport is not None else {}).items()
                if node_id in state.nodes  # addresses of those that were removed stay
            ),
        )

    def _partitions(self) -> Iterator[PartitionSample]:
        state = self._bus.state
        for topic in self._bus.partitions:
            known = state.topic_by_id(topic.topic_id)
            if known is None:
                continue
            for partition, replicated in zip(topic.partitions, known.partitions, strict=False):
                if partition.local is not None:
                    yield PartitionSample(
                        topic=topic.name,
                        partition=partition.number,
                        log_start_offset=partition.local.log_start_offset,
                        end_offset=partition.local.end_offset,
                        high_watermark=partition.high_watermark,
                        size_bytes=partition.local.size_bytes,
                        leader=partition.leading,
                        in_sync_replicas=len(replicated.isr),
                        replicas=len(replicated.replicas),
                        damaged=partition.damaged,
                        replication_lag=max((lag for _, lag in _lags(partition)), default=0),
                    )

    def _groups(self) -> Iterator[GroupSample]:
        for name, members, lag, rebalances in self._bus.coordinators.samples():
            yield GroupSample(group=name, members=members, lag=tuple(lag.items()), rebalances=rebalances)


def _lags(partition: Partition) -> Iterator[tuple[int, int]]:
    """Of each follower, by node, of a partition that this node leads."""
    if partition.local is not None:
        for node_id, offset in partition.followers_offsets:
            yield node_id, max(partition.local.end_offset - max(offset, partition.local.log_start_offset), 0)


def memory_limit_bytes(cgroups: Path = _CGROUPS, own: Path = _OWN_CGROUP) -> float:
    """The control group's, of either version; infinite if there is none, or none to be seen."""
    limit = inf
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return limit
    for line in lines:
        controllers, path = line.split(":", 2)[1:]
        if controllers and "memory" not in controllers.split(","):
            continue
        base, name = (cgroups / "memory", "memory.limit_in_bytes") if controllers else (cgroups, "memory.max")
        # In a container the own group is the root of what is seen.
        for folder in (base / path.lstrip("/"), base):
            try:
                text = (folder / name).read_text().strip()
            except OSError:
                continue
            # Version 1 says "none" by a number near the largest there is.
            if text.isdecimal() and int(text) < 2**60:
                limit = min(limit, float(text))
    return limit
