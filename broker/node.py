"""One node: the only place that builds things and hands them to each other.

Starts in the order of the layers and stops in the opposite one: first nobody new is let in, then those inside are
told and given time, then what was decided becomes durable, then files close.
"""

import asyncio
import contextlib
import os
import secrets
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import grpc
import structlog
from postbus.v1 import topic_pb2

from broker import __version__
from broker.clock import Clock, SystemClock
from broker.config import Settings
from broker.controller import metadata_log
from broker.controller.decisions import AdoptLogs, CreateCluster, CreateTopic, Rules
from broker.controller.metadata_log import MetadataLog
from broker.controller.producer_ids import ProducerIds
from broker.controller.state import ClusterState, difference
from broker.controller.topic_config import TopicDefaults
from broker.errors import invalid_field
from broker.groups.coordinator import GroupCoordinator
from broker.groups.driver import CoordinatorSettings
from broker.http import HttpServer, Readiness
from broker.replication.partitions import Partitions
from broker.services.adapter import Adapter
from broker.services.admission import Admission, AdmissionSettings
from broker.services.cluster import ClusterService, NodeFacts
from broker.services.group_topics import GroupTopics
from broker.services.groups import GroupService
from broker.services.publisher import PublisherService, PublisherSettings
from broker.services.publishing import Publishing
from broker.services.registration import Health, enable_reflection, register
from broker.services.subscribe_start import SubscriberSettings
from broker.services.subscriber import SubscriberService
from broker.services.subscription import Surroundings
from broker.services.topics import TopicService
from broker.storage.maintenance import MaintenanceSettings
from broker.storage.store import LogStore, RecoveryReport, StorageSettings
from broker.telemetry import (
    ControllerSample,
    EventLoopLag,
    GroupSample,
    Metrics,
    PartitionSample,
)

log = structlog.get_logger(__name__)

GROUPS_TOPIC: Final = "__groups"
FATAL_EXIT_CODE: Final = 70
PRODUCER_EPOCH_MAX: Final = 2**31 - 1


class AddressInUse(Exception):  # noqa: N818 - named for what happened
    """Somebody else listens there."""


@dataclass(frozen=True, slots=True)
class Started:
    """What a start did, to be told."""

    client_port: int
    http_port: int | None
    seconds: float
    recovery: RecoveryReport
    topics: int
    partitions: int
    records: int


class Node:
    """A whole bus in one process."""

    def __init__(self, settings: Settings, *, clock: Clock | None = None) -> None:
        self._settings = settings
        self._clock = clock or SystemClock()
        self._ready = Readiness(False, "starting")
        self.metrics = Metrics(version=__version__, per_partition=settings.metrics_per_partition)
        self._lag = EventLoopLag(self.metrics)
        self._endpoint = ""
        self._store: LogStore
        self._stack = contextlib.AsyncExitStack()
        self._sampler: asyncio.Task[None] | None = None

    # --- start ---

    async def start(self) -> Started:
        """Opens the data and serves. Raises storage's errors or AddressInUse; nothing is open then."""
        begin = time.monotonic()
        try:
            return await self._start(begin)
        except BaseException:
            await self._stack.aclose()
            raise

    async def _start(self, begin: float) -> Started:
        settings = self._settings
        store = self._store = await LogStore.open(
            settings.data_dir,
            storage_settings(settings),
            self._clock,
            self._fatal,
            on_maintenance_error=lambda error: log.warning("maintenance_failure", error=str(error)),
        )
        self._stack.push_async_callback(store.close)
        defaults = TopicDefaults.of(settings)
        loaded = await asyncio.to_thread(metadata_log.load, store.meta.engine)
        self._metadata_log = MetadataLog(
            loaded,
            store.meta.committer,
            rules=Rules(defaults=defaults, partitions_max=settings.partitions_max),
            snapshot_records=settings.metadata_snapshot_records,
        )
        self._stack.push_async_callback(self._metadata_log.close)
        await self._bootstrap()
        self._partitions = Partitions(store=store, clock=self._clock, defaults=defaults)
        self._partitions.follow(ClusterState(), self._metadata_log.state)
        self._delete_orphans()
        await self._start_groups()
        self._make_services(defaults)
        self._metadata_log.add_listener(self._followed)
        client_port = await self._serve_grpc()
        http_port = await self._serve_http()
        self._lag.start()
        self._stack.push_async_callback(self._lag.stop)
        self._sampler = asyncio.create_task(self._sample())
        self._watch_metrics()
        await self._health.set(serving=True)
        self._ready = Readiness(True)
        return Started(
            client_port=client_port,
            http_port=http_port,
            seconds=time.monotonic() - begin,
            recovery=store.recovery,
            topics=sum(1 for _ in self._partitions),
            partitions=sum(len(led.partitions) for led in self._partitions),
            records=sum(
                partition.high_watermark - partition.log.log_start_offset
                for led in self._partitions
                for partition in led.partitions
            ),
        )

    async def _bootstrap(self) -> None:
        """The first start of all makes the cluster and its internal topic."""
        now_us = self._clock.wall_us()
        if not self._metadata_log.state.cluster_id:
            await self._metadata_log.execute(CreateCluster(cluster_id=secrets.token_hex(11), now_us=now_us))
        await self._adopt_logs(now_us)
        if GROUPS_TOPIC not in self._metadata_log.state.topics:
            for_ever = topic_pb2.TopicConfig()
            for_ever.retention_time.seconds = 0
            await self._metadata_log.execute(
                CreateTopic(
                    name=GROUPS_TOPIC,
                    topic_id=secrets.token_hex(16),
                    now_us=now_us,
                    partition_count=1,
                    config=for_ever,
                    internal=True,
                )
            )

    async def _adopt_logs(self, now_us: int) -> None:
        """Logs whose numbers were never handed out are what is left after the metadata was lost: they stay."""
        unknown = [log_id for log_id in self._store.log_ids() if log_id >= self._metadata_log.state.next_log_id]
        if unknown:
            topic_ids = {log_id: secrets.token_hex(16) for log_id in unknown}
            await self._metadata_log.execute(AdoptLogs(topic_ids=topic_ids, now_us=now_us))
            log.warning(
                "logs_adopted",
                count=len(unknown),
                why="the metadata that named their topics was lost",
                action="each is a topic recovered-<number> now; read what you need, then delete it",
            )

    def _delete_orphans(self) -> None:
        """A crash may come between the end of a topic and that of its logs."""
        known = {log_id for topic in self._metadata_log.state.topics.values() for log_id in topic.log_ids}
        for log_id in self._store.log_ids():
            if log_id not in known:
                self._store.delete_log(log_id)

    async def _start_groups(self) -> None:
        settings = self._settings
        groups_log = self._store.create_log(self._metadata_log.state.topics[GROUPS_TOPIC].log_ids[0])
        # Committed offsets are what lets retention and subscribers make progress when the disk is nearly full.
        groups_log.may_use_reserve = True
        self._coordinator = GroupCoordinator(
            groups_log,
            GroupTopics(self._partitions, self._clock),
            clock=self._clock,
            call_later=asyncio.get_running_loop().call_later,
            settings=CoordinatorSettings(
                member_resume_ms=_ms(settings.member_resume_seconds),
                member_resume_after_restart_ms=_ms(settings.member_resume_after_node_loss_seconds),
                static_member_timeout_ms=_ms(settings.static_member_timeout_seconds),
                session_timeout_ms=_ms(settings.session_timeout_seconds),
                processing_timeout_ms_max=_ms(settings.processing_timeout_seconds_max),
                offset_retention_us=_us(settings.offset_retention_seconds),
                group_members_max=settings.group_members_max,
                groups_max=settings.groups_max,
            ),
            node_id=settings.node_id,
        )
        await self._coordinator.start()
        self._stack.push_async_callback(self._coordinator.close)

    def _make_services(self, defaults: TopicDefaults) -> None:
        settings, clock = self._settings, self._clock
        self._producer_ids = ProducerIds(self._metadata_log)
        self._publisher = PublisherService(
            publishing=Publishing(
                partitions=self._partitions,
                clock=clock,
                batch_records_max=settings.batch_records_max,
                producer_exists=self._producer_ids.handed_out,
            ),
            has_room=lambda: self._store.committer.has_room,
            wait_for_room=self._store.wait_for_room,
            init_producer=self._init_producer,
            published=lambda topic, records, size: self.metrics.topic(topic).published(records, size),
            answered=lambda code, seconds: self.metrics.request("PublisherService/PublishStream", code, seconds),
            clock=clock,
            settings=PublisherSettings(
                timeout_s=settings.publish_timeout_seconds,
                unread_timeout_s=settings.publisher_unread_timeout_seconds,
                stream_requests_max=settings.publish_stream_requests_max,
                stream_bytes_max=settings.publish_stream_bytes_max,
            ),
        )
        self._subscriber = SubscriberService(
            Surroundings(
                partitions=self._partitions,
                clock=clock,
                settings=SubscriberSettings(
                    node_id=settings.node_id,
                    window_records=settings.subscribe_window_records,
                    window_bytes=settings.subscribe_window_bytes,
                    response_bytes_max=settings.message_send_bytes_max,
                    heartbeat_interval_s=settings.heartbeat_interval_seconds,
                    processing_timeout_s=settings.processing_timeout_seconds,
                    processing_timeout_max_s=settings.processing_timeout_seconds_max,
                    fetch_wait_max_s=settings.fetch_wait_seconds_max,
                ),
                delivered=lambda topic, records, size: self.metrics.topic(topic).delivered(records, size),
            ),
            coordinator=self._coordinator,
        )
        self._topics = TopicService(
            metadata_log=self._metadata_log,
            partitions=self._partitions,
            barrier=self._store.barrier,
            clock=clock,
            defaults=defaults,
            node_id=settings.node_id,
        )
        self._groups = GroupService(
            coordinator=self._coordinator,
            partitions=self._partitions,
            node_id=settings.node_id,
            heartbeat_wait_s=settings.heartbeat_interval_seconds,
            session_timeout_s=settings.session_timeout_seconds,
            processing_timeout_s=settings.processing_timeout_seconds,
        )

    async def _init_producer(self, producer_id: int, epoch: int) -> tuple[int, int]:
        if not producer_id:
            return await self._producer_ids.take(), 0
        if not self._producer_ids.handed_out(producer_id):
            raise invalid_field("id", f"{producer_id} was never handed out; 0 asks for a new id")
        if epoch >= PRODUCER_EPOCH_MAX:
            raise invalid_field("epoch", f"{epoch} is the last one; ask for a new id")
        return producer_id, epoch + 1

    async def _serve_grpc(self) -> int:
        settings = self._settings
        server = self._server = grpc.aio.server(
            interceptors=(
                Admission(
                    AdmissionSettings(
                        unary_publish_calls_max=settings.unary_publish_calls_max,
                        unary_calls_max=settings.unary_calls_max,
                        fetch_calls_max=settings.fetch_calls_max,
                        heartbeat_calls_max=settings.heartbeat_calls_max,
                        streams_max=settings.streams_max,
                    )
                ),
            ),
            options=server_options(settings),
        )
        address = f"[{settings.host}]" if ":" in settings.host else settings.host
        try:
            port = server.add_insecure_port(f"{address}:{settings.client_port}")
        except RuntimeError:
            port = 0
        if port == 0:
            raise AddressInUse(
                f"cannot listen on {address}:{settings.client_port}: another process does, or the address is not"
                " this machine's; choose another with --client-port or --host"
            )
        self._endpoint = settings.endpoint(port)
        self._cluster = ClusterService(
            metadata_log=self._metadata_log,
            facts=NodeFacts(
                node_id=settings.node_id,
                endpoint=self._endpoint,
                rack=settings.rack,
                version=__version__,
                record_bytes_max=settings.record_bytes_max,
                batch_bytes_max=settings.batch_bytes_max,
                message_receive_bytes_max=settings.message_receive_bytes_max,
            ),
        )
        register(
            server,
            Adapter(observe=self.metrics.request),
            publisher=self._publisher,
            subscriber=self._subscriber,
            topics=self._topics,
            groups=self._groups,
            cluster=self._cluster,
        )
        self._health = Health(server)
        enable_reflection(server)
        await server.start()
        # With a grace, clients are told by a GOAWAY that cancels nothing; without calls it takes no time.
        self._stack.push_async_callback(server.stop, 0.5)
        return port

    async def _serve_http(self) -> int | None:
        if self._settings.http_port is None:
            return None
        self._http = HttpServer(
            metrics=self.metrics,
            readiness=lambda: self._ready,
            node_id=self._settings.node_id,
            version=__version__,
            endpoint=lambda: self._endpoint,
        )
        try:
            port = await self._http.start(self._settings.host, self._settings.http_port)
        except OSError as error:
            raise AddressInUse(
                f"cannot listen on {self._settings.host}:{self._settings.http_port} for HTTP: {error.strerror};"
                " choose another with --http-port, or off"
            ) from error
        self._stack.push_async_callback(self._http.stop)
        return port

    # --- life ---

    def _followed(self, old: ClusterState, new: ClusterState) -> None:
        """The cluster's image changed: partitions first, then who reads them."""
        self._partitions.follow(old, new)
        changes = difference(old, new)
        self._coordinator.topics_changed(
            deleted=[topic.topic_id for topic in changes.deleted],
            changed=[topic.name for topic in changes.created] + [topic.name for _, topic in changes.changed],
        )
        for topic in changes.deleted:
            self.metrics.forget_topic(topic.name)
        self._subscriber.topics_changed()
        self._cluster.changed()

    def _fatal(self, error: Exception) -> None:
        """The disk failed: what it holds is unknown, and nothing more may be acknowledged."""
        log.critical("disk_failure", error=str(error), action="the process ends; start it again once the disk is well")
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(FATAL_EXIT_CODE)

    async def _sample(self) -> None:
        """What metrics hold of the moment; and what an operator should not have to find there, in the log."""
        fsyncs, refusing = 0.0, False
        while True:
            store, metrics = self._store, self.metrics
            metrics.append_queue_bytes.set(store.committer.queued_bytes)
            metrics.tail_bytes.set(store.tail_bytes)
            metrics.subscriptions_open.set(self._subscriber.subscription_count)
            metrics.publish_streams_open.set(self._publisher.stream_count)
            metrics.disk_free_bytes.set(store.disk_free_bytes)
            metrics.publishing_refused.set(int(store.disk_full))
            if store.disk_full != refusing:
                refusing = store.disk_full
                disk = {"free_bytes": store.disk_free_bytes, "disk_free_min_bytes": self._settings.disk_free_min_bytes}
                if refusing:
                    log.warning("disk_shortage", **disk, action="publishing is refused until there is room")
                else:
                    log.info("disk_room", **disk, action="publishing goes on")
            metrics.ready.set(int(self._ready.ready))
            if store.committer.flush_seconds_total != fsyncs:
                fsyncs = store.committer.flush_seconds_total
                metrics.fsync_seconds.labels("data").observe(store.committer.flush_seconds_last)
            await asyncio.sleep(1.0)

    def _watch_metrics(self) -> None:
        self.metrics.set_sources(
            partitions=self._partition_samples,
            groups=self._group_samples,
            controller=lambda: ControllerSample(
                active=True, offline_partitions=0, topics=sum(1 for _ in self._partitions)
            ),
        )

    def _partition_samples(self) -> Iterator[PartitionSample]:
        for led in self._partitions:
            for partition in led.partitions:
                yield PartitionSample(
                    topic=led.name,
                    partition=partition.number,
                    log_start_offset=partition.log.log_start_offset,
                    end_offset=partition.log.end_offset,
                    high_watermark=partition.high_watermark,
                    size_bytes=partition.log.size_bytes,
                    leader=True,
                    in_sync_replicas=1,
                    replicas=1,
                )

    def _group_samples(self) -> Iterator[GroupSample]:
        for name, members, lag in self._coordinator.samples():
            yield GroupSample(group=name, members=members, lag=tuple(lag.items()))

    # --- stop ---

    async def stop(self) -> None:
        """Drains and closes. What was acknowledged is safe whether or not this is called."""
        grace_s = self._settings.drain_grace_seconds
        self._ready = Readiness(False, "draining")
        await self._health.set(serving=False)
        self._publisher.drain(grace_s)
        self._subscriber.drain(grace_s)
        self._cluster.end_streams()
        await self._until_streams_end(grace_s)
        self._publisher.end_streams()
        self._subscriber.end_streams()
        await self._until_streams_end(1.0)
        if self._sampler is not None:
            self._sampler.cancel()
        await self._stack.aclose()

    async def _until_streams_end(self, timeout_s: float) -> None:
        deadline = self._clock.monotonic() + timeout_s
        while self._clock.monotonic() < deadline:
            if not self._publisher.stream_count and not self._subscriber.subscription_count:
                return
            await asyncio.sleep(0.02)


def server_options(settings: Settings) -> list[tuple[str, Any]]:
    """gRPC's own. Without a bound on the windows, a flood of small streams took gigabytes within seconds."""
    return [
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", settings.message_receive_bytes_max),
        ("grpc.max_send_message_length", settings.message_send_bytes_max),
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", 1024 * 1024),
        ("grpc.keepalive_time_ms", _ms(settings.keepalive_ping_seconds)),
        ("grpc.keepalive_timeout_ms", _ms(settings.keepalive_timeout_seconds)),
        # The ping's own deadline, a minute by default, is what finds a host that is stopped rather than gone.
        ("grpc.http2.ping_timeout_ms", _ms(settings.keepalive_timeout_seconds)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", _ms(settings.keepalive_client_ping_seconds_min)),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", _ms(settings.keepalive_client_ping_seconds_min)),
    ]


def storage_settings(settings: Settings) -> StorageSettings:
    """Storage's part of the settings."""
    return StorageSettings(
        append_queue_bytes_max=settings.append_queue_bytes_max,
        tail_bytes_max=settings.tail_bytes_max,
        memtable_bytes=settings.memtable_bytes,
        wal_bytes_max=settings.wal_bytes_max,
        reader_threads=settings.reader_threads,
        disk_free_min_bytes=settings.disk_free_min_bytes,
        disk_reserve_bytes=settings.disk_free_min_bytes // 4,
        disk_check_interval_ms=_ms(settings.disk_check_interval_seconds),
        request_ids_max=settings.request_ids_max,
        producers_max=settings.producers_max,
        producer_expiry_ms=_ms(settings.producer_expiry_seconds),
        maintenance=MaintenanceSettings(interval_ms=_ms(settings.retention_interval_seconds)),
    )


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


def _us(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * 1_000_000)
