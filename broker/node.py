"""One node: the only place that builds things and hands them to each other.

Starts in the order of the layers and stops in the opposite one: first others take over what this node leads, then
nobody new is let in, then those inside are told and given time, then what was decided becomes durable, then files
close. What needs no sockets is put together in `bus`.
"""

import asyncio
import contextlib
import os
import sys
import time
from dataclasses import dataclass
from functools import partial
from random import Random, SystemRandom
from typing import Any, Final

import grpc
import structlog

from broker import __version__
from broker.bus import Bus, BusSettings
from broker.clock import Clock, ClusterClock, SystemClock
from broker.config import Settings
from broker.controller.controller import ControllerSettings
from broker.controller.metadata_log import MetadataLogSettings
from broker.controller.session import SessionSettings
from broker.controller.state import NOBODY, ClusterState, difference
from broker.controller.topic_config import TopicDefaults
from broker.errors import PostbusError, Reason
from broker.groups.driver import CoordinatorSettings
from broker.http import HttpServer, Readiness
from broker.peers.calls import CallsSettings
from broker.peers.grpc_transport import GrpcTransport, PeerAddressInUse, PeerSettings
from broker.peers.identity import Identity as PeerIdentity
from broker.peers.links import PeerId
from broker.raft.messages import RaftSettings
from broker.replication.leader import IsrSettings
from broker.replication.settings import ReplicationSettings
from broker.services.adapter import Adapter
from broker.services.admission import Admission, AdmissionSettings
from broker.services.cluster import ClusterService, NodeFacts
from broker.services.external_scaler import ExternalScaler
from broker.services.groups import GroupService
from broker.services.publisher import PublisherService, PublisherSettings
from broker.services.registration import Health, enable_reflection, register, service_health
from broker.services.subscribe_start import SubscriberSettings
from broker.services.subscriber import MEMBER_ACKNOWLEDGE, SubscriberService
from broker.services.subscription import Surroundings
from broker.services.topics import TopicService
from broker.storage.compaction import CompactionSettings
from broker.storage.errors import StoreCorrupt
from broker.storage.maintenance import MaintenanceSettings
from broker.storage.scrub import ScrubSettings
from broker.storage.store import LogStore, RecoveryReport, StorageSettings, rebuilds
from broker.telemetry import EventLoopLag, Metrics
from broker.vitals import Counts, Vitals

log = structlog.get_logger(__name__)

FATAL_EXIT_CODE: Final = 70
READY_CHECK_S: Final = 0.01
STARTING_RETRY_AFTER_MS: Final = 200
HEALTH_INTERVAL_S: Final = 1.0
NOT_READY_LOG_S: Final = 5.0


class AddressInUse(Exception):  # noqa: N818 - named for what happened
    """Somebody else listens there."""


@dataclass(frozen=True, slots=True)
class Started:
    """What a start did, to be told."""

    client_port: int
    http_port: int | None
    peer_port: int | None
    seconds: float
    recovery: RecoveryReport
    topics: int
    partitions: int
    records: int


class Node:
    """A whole bus in one process, or one of several that are."""

    def __init__(self, settings: Settings, *, clock: Clock | None = None) -> None:
        self._settings = settings
        self._clock = ClusterClock(clock or SystemClock())
        self._ready = Readiness(False, "starting")
        self.metrics = Metrics(version=__version__, per_partition=settings.metrics_per_partition)
        self._lag = EventLoopLag(self.metrics)
        self._endpoint = ""
        self._store: LogStore
        self._stack = contextlib.AsyncExitStack()
        self._tasks: list[asyncio.Task[None]] = []
        self._at_exit = False

    # --- start ---

    async def start(self) -> Started:
        """Opens the data and serves; returns once the node is ready. Raises storage's errors or AddressInUse.

        Nothing is open then, nor when it is cancelled.
        """
        begin = time.monotonic()
        try:
            return await self._start(begin)
        except BaseException:
            await self._stack.aclose()
            raise

    async def _start(self, begin: float) -> Started:
        settings = self._settings
        is_clustered = settings.peer_port_wanted is not None
        for database, why in rebuilds(settings.data_dir).items():
            log.warning(
                "store_rebuild",
                database=database,
                error=why,
                action="what can be read of it is copied into a new one, which takes as long as reading all of it",
            )
        store = self._store = await LogStore.open(
            settings.data_dir,
            storage_settings(settings),
            self._clock.ages,
            self._fatal,
            node_id=settings.node_id,
            cluster_id=settings.cluster_id,
            on_maintenance_error=lambda error: log.warning("maintenance_failure", error=str(error)),
        )
        self._stack.push_async_callback(store.close)
        if is_clustered:
            self._clock.expect_others()  # the store's upkeep goes on while the rest is loaded
        for loss in store.recovery.losses:
            log.error("data_lost", loss=str(loss), action="the other nodes have it; this one refills")
        for rebuilt in store.recovery.rebuilt:
            log.warning(
                "store_rebuilt",
                database=rebuilt.database,
                error=rebuilt.why,
                seconds=round(rebuilt.seconds, 3),
                copied_bytes=rebuilt.salvaged.bytes_count,
                damaged_logs=len(rebuilt.salvaged.damaged),
                set_aside=rebuilt.set_aside,
                action="damaged logs are made anew from other copies; an only copy stays as it is",
            )
        loaded = await asyncio.to_thread(Bus.load, store)
        client_port = self._bind_clients()
        transport = self._transport = None
        if is_clustered:
            identity = PeerIdentity(store.identity.cluster_id, PeerId(settings.node_id, store.identity.store_id))
            transport = self._transport = GrpcTransport(
                identity,
                clock=self._clock,
                settings=PeerSettings(
                    ping_s=settings.peer_ping_seconds, ping_timeout_s=settings.peer_ping_timeout_seconds
                ),
            )
        defaults = TopicDefaults.of(settings)
        bus = self._bus = Bus(
            bus_settings(settings, defaults, client_endpoint=self._endpoint),
            store=store,
            loaded=loaded,
            transport=transport,
            clock=self._clock,
            random=Random(SystemRandom().getrandbits(128)),
            on_fatal=self._fatal,
            published=lambda topic, records, size: self.metrics.topic(topic).published(records, size),
        )
        self._stack.push_async_callback(bus.close)
        self._make_services(defaults)
        self._vitals = Vitals(
            self.metrics,
            store=store,
            bus=bus,
            transport=transport,
            counts=Counts(
                ready=lambda: self._ready.ready,
                subscriptions=lambda: self._subscriber.subscription_count,
                publish_streams=lambda: self._publisher.stream_count,
            ),
            disk_free_min_bytes=settings.disk_free_min_bytes,
        )
        bus.add_image_listener(self._followed)
        peer_port = None
        if transport is not None:
            transport.unwelcome = bus.raft.why_unwelcome
            assert settings.peer_port_wanted is not None
            try:
                peer_port = await transport.start(settings.host, settings.peer_port_wanted)
            except PeerAddressInUse as error:
                raise AddressInUse(
                    f"cannot listen on {settings.host}:{settings.peer_port_wanted} for other nodes: another process"
                    " does, or the address is not this machine's; choose another with --peer-port or --host"
                ) from error
            self._stack.push_async_callback(transport.stop)
        http_port = await self._serve_http()
        await self._serve_clients()
        bus.start()
        self._lag.start()
        self._stack.push_async_callback(self._lag.stop)
        self._tasks += [asyncio.create_task(self._vitals.run()), asyncio.create_task(self._show_health())]
        try:
            await self._until_ready()
        except asyncio.CancelledError:
            await self._bus.hand_over()  # the cluster may count on this node already
            raise
        self._ready = Readiness(True)
        await self._health.set(serving=True)
        return Started(
            client_port=client_port,
            http_port=http_port,
            peer_port=peer_port,
            seconds=time.monotonic() - begin,
            recovery=store.recovery,
            topics=sum(1 for _ in bus.partitions),
            partitions=sum(len(topic.partitions) for topic in bus.partitions),
            records=sum(
                partition.high_watermark - partition.log.log_start_offset
                for topic in bus.partitions
                for partition in topic.partitions
                if partition.local is not None
            ),
        )

    async def _until_ready(self) -> None:
        """The controller counts on this node, and it is in sync. Nobody is let wait without a word."""
        told, tell_at = "", self._clock.monotonic() + NOT_READY_LOG_S
        while why := self._bus.not_ready:
            if self._transport is not None and not self._bus.session.broker_epoch:
                why = "; ".join((why, *(f"node {peer}: {said}" for peer, said in self._transport.problems.items())))
            self._ready = Readiness(False, why)
            now = self._clock.monotonic()
            if now >= tell_at and why != told:
                log.warning("node_not_ready", why=why)
                told, tell_at = why, now + NOT_READY_LOG_S
            await asyncio.sleep(READY_CHECK_S)
        await self._bus.coordinators.settled()

    def _make_services(self, defaults: TopicDefaults) -> None:
        settings, clock, bus = self._settings, self._clock, self._bus
        self._publisher = PublisherService(
            publishing=bus.publishing,
            forwarding=bus.forwarding,
            has_room=lambda: self._store.committer.has_room,
            wait_for_room=self._store.wait_for_room,
            init_producer=bus.init_producer,
            answered=partial(self.metrics.request, "PublisherService/PublishStream"),
            refused=lambda code, reason: self.metrics.request_failed("PublisherService/PublishStream", code, reason),
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
                partitions=bus.partitions,
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
            coordinator=bus.groups,
        )
        bus.calls.handle(MEMBER_ACKNOWLEDGE, self._subscriber.acknowledge_for_peer)
        self._topics = TopicService(
            metadata_log=bus.metadata_log,
            partitions=bus.partitions,
            client=bus.partition_client,
            clock=clock,
            random=Random(SystemRandom().getrandbits(128)),
            defaults=defaults,
        )
        self._groups = GroupService(
            coordinator=bus.groups,
            partitions=bus.partitions,
            clock=clock,
            node_id=settings.node_id,
            heartbeat_wait_s=settings.heartbeat_interval_seconds,
            session_timeout_s=settings.session_timeout_seconds,
            processing_timeout_s=settings.processing_timeout_seconds,
        )
        self._scaler = ExternalScaler(
            coordinator=bus.groups, client=bus.partition_client, partitions=bus.partitions, clock=clock
        )
        self._cluster = ClusterService(
            metadata_log=bus.metadata_log,
            quorum=bus.raft,
            silences_s=bus.quorum.silences_s,
            voters=bus.controller,
            calls=bus.calls,
            client=bus.partition_client,
            facts=NodeFacts(
                node_id=settings.node_id,
                version=__version__,
                record_bytes_max=settings.record_bytes_max,
                batch_bytes_max=settings.batch_bytes_max,
                message_receive_bytes_max=settings.message_receive_bytes_max,
            ),
        )

    def _bind_clients(self) -> int:
        """Takes the client port, so that it can be told; nobody is served before `_serve_clients`."""
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
        return port

    async def _serve_clients(self) -> None:
        register(
            self._server,
            Adapter(observe=self.metrics.request, failed=self.metrics.request_failed, closed=self._closed),
            publisher=self._publisher,
            subscriber=self._subscriber,
            topics=self._topics,
            groups=self._groups,
            cluster=self._cluster,
            scaler=self._scaler,
        )
        self._health = Health(self._server)
        enable_reflection(self._server)
        await self._health.set(serving=False)
        await self._server.start()
        self._stack.push_async_callback(self._stop_serving)

    def _closed(self, rpc: str) -> PostbusError | None:
        """Before it knows the cluster's image a node would say of what is there that it is not."""
        if self._bus.knows or rpc.startswith("ClusterService/"):
            return None
        return PostbusError(
            Reason.ERROR_REASON_NO_LEADER,
            f"this node is starting: {self._bus.not_ready}",
            retry_after_ms=STARTING_RETRY_AFTER_MS,
        )

    async def _stop_serving(self) -> None:
        """gRPC's stop tells the last callers CANCELLED; the end of the process, which resets connections, does not."""
        if not self._at_exit:
            # With a grace, clients are told by a GOAWAY that cancels nothing; without calls it takes no time.
            await self._server.stop(0.5)

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
        """The cluster's image changed, and partitions and groups have followed: those who read them are next."""
        changes = difference(old, new)
        self._vitals.followed(changes)
        if changes.created or changes.deleted or changes.changed:
            self._subscriber.topics_changed()
        self._cluster.changed()

    def _fatal(self, error: Exception) -> None:
        """The disk failed: what it holds is unknown, and nothing more may be acknowledged."""
        action = "start it again once the disk is well"
        if isinstance(error, StoreCorrupt):
            action = "the next start copies what can be read of the damaged database into a new one"
        log.critical("disk_failure", error=str(error), action=f"the process ends; {action}")
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(FATAL_EXIT_CODE)

    async def _show_health(self) -> None:
        """A lost quorum shows service by service; readiness stays, so that reads go on through this node."""
        while True:
            if self._ready.ready:
                bus = self._bus
                await self._health.show(
                    service_health(
                        has_controller=bus.metadata_log.controller_id is not None,
                        session_valid=bus.session.session_valid,
                        leaderless=any(partition.leader == NOBODY for _, _, partition in bus.state.partitions()),
                    )
                )
            await asyncio.sleep(HEALTH_INTERVAL_S)

    # --- stop ---

    async def stop(self, *, at_exit: bool = False) -> None:
        """Drains and closes. What was acknowledged is safe whether or not this is called.

        at_exit: the process ends right after it.
        """
        self._at_exit = at_exit
        grace_s = self._settings.drain_grace_seconds
        self._ready = Readiness(False, "draining")
        await self._health.set(serving=False)
        await self._bus.hand_over()
        self._publisher.drain(grace_s)
        self._subscriber.drain(grace_s)
        self._cluster.end_streams()
        self._scaler.end_streams()
        await self._until_streams_end(grace_s)
        self._publisher.end_streams()
        self._subscriber.end_streams()
        await self._until_streams_end(1.0)
        for task in self._tasks:
            task.cancel()
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


def bus_settings(settings: Settings, defaults: TopicDefaults, *, client_endpoint: str) -> BusSettings:
    """The settings of everything between storage and the servicers."""
    tick_ms = max(10, _ms(settings.raft_heartbeat_interval_seconds) // 2)
    peer_port = settings.peer_port_wanted
    return BusSettings(
        client_endpoint=client_endpoint,
        peer_endpoint=settings.peer_endpoint(peer_port) if peer_port is not None else "",
        rack=settings.rack,
        peers=settings.peer_endpoints,
        groups_partition_count=settings.groups_partitions,
        groups_replication_factor=settings.groups_replication_factor,
        partitions_max=settings.partitions_max,
        batch_records_max=settings.batch_records_max,
        defaults=defaults,
        raft=RaftSettings(
            tick_ms=tick_ms,
            heartbeat_ticks=2,
            election_ticks=max(2, round(_ms(settings.raft_election_timeout_seconds) / tick_ms)),
        ),
        metadata_log=MetadataLogSettings(snapshot_entries=settings.metadata_snapshot_records),
        controller=ControllerSettings(silence_s=settings.node_silence_seconds, lost_s=settings.node_lost_seconds),
        session=SessionSettings(
            heartbeat_s=settings.node_heartbeat_interval_seconds, session_s=settings.node_session_seconds
        ),
        replication=ReplicationSettings(
            isr=IsrSettings(replica_lag_time_ms=_ms(settings.replica_lag_seconds)),
            credit_bytes=settings.pull_credit_bytes,
            catch_up_credit_bytes=settings.catch_up_credit_bytes,
            catch_up_bytes_per_s=settings.catch_up_bytes_per_second or 0,
        ),
        coordinator=CoordinatorSettings(
            member_resume_ms=_ms(settings.member_resume_seconds),
            member_resume_after_node_loss_ms=_ms(settings.member_resume_after_node_loss_seconds),
            static_member_timeout_ms=_ms(settings.static_member_timeout_seconds),
            session_timeout_ms=_ms(settings.session_timeout_seconds),
            processing_timeout_ms_max=_ms(settings.processing_timeout_seconds_max),
            offset_retention_us=_us(settings.offset_retention_seconds),
            group_members_max=settings.group_members_max,
            groups_max=settings.groups_max,
        ),
        calls=CallsSettings(calls_max=settings.peer_calls_max, bytes_max=settings.peer_calls_bytes_max),
        hand_over_s=settings.handover_timeout_seconds,
    )


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
        maintenance=MaintenanceSettings(
            interval_ms=_ms(settings.retention_interval_seconds),
            compaction=CompactionSettings(
                interval_ms=_ms(settings.compaction_interval_seconds),
                dirty_share_min=settings.compaction_dirty_share_min,
                lag_min_ms=_ms(settings.compaction_lag_seconds_min),
                delete_retention_ms=_ms(settings.compaction_tombstone_seconds),
                bytes_per_s_max=settings.compaction_bytes_per_second,
            ),
            scrub=ScrubSettings(bytes_per_s=settings.scrub_bytes_per_second),
        ),
        replicated=settings.peer_port_wanted is not None,
    )


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


def _us(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * 1_000_000)
