"""A node without its sockets: everything that decides, replicates, coordinates and forwards, put together.

Builds the layers below the servicers on a store, a transport, a clock and a source of randomness that are handed in,
so that the simulator runs the very same node. Owns the order in which they begin and end, and what a node does once it
knows the cluster's image: adopt logs that nobody knows, delete those of topics that went, be ready. It serves nobody
by itself: `node` does.
"""

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random

import structlog
from postbus.v1 import topic_pb2

from broker import __version__, errors
from broker.clock import ClusterClock
from broker.controller.commands import AdoptLogs, CreateCluster, CreateTopic, PartitionId, RegisterNode, Rules
from broker.controller.controller import Controller, ControllerSettings
from broker.controller.metadata_log import MetadataLog, MetadataLogSettings
from broker.controller.producer_ids import ProducerIds
from broker.controller.quorum_watch import QuorumWatch
from broker.controller.session import NodeSession, SessionSettings
from broker.controller.state import NOBODY, ClusterState, difference
from broker.controller.topic_config import TopicDefaults
from broker.errors import PostbusError, Reason
from broker.groups import peer_calls
from broker.groups.client import CoordinatorClient
from broker.groups.coordinators import GROUPS_TOPIC, Coordinators
from broker.groups.driver import CoordinatorSettings
from broker.groups.watches import Watches
from broker.peers.calls import Calls, CallsSettings
from broker.peers.links import PeerId, Transport
from broker.peers.lone import LoneTransport
from broker.raft import storage as raft_storage
from broker.raft.messages import Loaded, RaftSettings
from broker.raft.node import RaftNode
from broker.replication.partition import Partition
from broker.replication.partitions import Partitions
from broker.replication.settings import ReplicationSettings
from broker.services.forwarding import Forwarding, ForwardingSettings
from broker.services.group_topics import GroupTopics
from broker.services.partition_calls import PartitionCalls
from broker.services.partition_client import PartitionClient
from broker.services.publishing import Publishing
from broker.storage.store import LogStore

log = structlog.get_logger(__name__)

CUT_OFF_RETRY_AFTER_MS = 1000
_PRODUCER_EPOCH_MAX = 2**31 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class BusSettings:
    """What a node is and its bounds, layer by layer."""

    client_endpoint: str = ""  # host:port that clients are told
    peer_endpoint: str = ""  # host:port that other nodes are told
    rack: str = ""
    peers: Mapping[int, str] = field(default_factory=dict)  # the founding voters and where they listen, by node id
    groups_replication_factor: int = 3  # or as many as there are nodes
    groups_partition_count: int = 6
    partitions_max: int = 10_000
    batch_records_max: int = 100_000
    defaults: TopicDefaults = field(default_factory=TopicDefaults)
    raft: RaftSettings = field(default_factory=RaftSettings)
    metadata_log: MetadataLogSettings = field(default_factory=MetadataLogSettings)
    controller: ControllerSettings = field(default_factory=ControllerSettings)
    session: SessionSettings = field(default_factory=SessionSettings)
    replication: ReplicationSettings = field(default_factory=ReplicationSettings)
    coordinator: CoordinatorSettings = field(default_factory=CoordinatorSettings)
    forwarding: ForwardingSettings = field(default_factory=ForwardingSettings)
    calls: CallsSettings = field(default_factory=CallsSettings)
    retry_s: float = 0.2  # between two tries of what a node does once at its start
    cut_off_s: float = 3.0  # how long whoever publishes is let wait for a controller that does not answer
    full_disk_hand_over_s: float = 2.0  # between two looks at what a full disk refused
    hand_over_s: float = 3.0  # how long a node that stops waits for others to lead
    settle_s: float = 0.5  # of that, how long it waits until all that it appended is committed


class Bus:
    """One node's inside. On the loop only, but for `load`."""

    def __init__(
        self,
        settings: BusSettings,
        *,
        store: LogStore,
        loaded: Loaded,
        transport: Transport | None,
        clock: ClusterClock,
        random: Random,
        on_fatal: Callable[[Exception], None],
        published: Callable[[str, int, int], None] = lambda topic, records, size: None,
    ) -> None:
        """Before the transport listens. transport: None for a node without peers. loaded: what `load` gave.

        on_fatal: this node can't go on; the process must end. published: topic, records and bytes, for metrics.
        """
        identity = store.identity
        self.node_id = identity.node_id
        self.settings = settings
        self.store = store
        self.clock = clock
        self._random = random
        self._image_listeners: list[Callable[[ClusterState, ClusterState], None]] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._settled = False  # what a start leaves to be done is done
        links = transport or LoneTransport()
        self._transport = transport
        me = PeerId(self.node_id, identity.store_id)
        self.calls = Calls(links, clock=clock, node_id=me.node_id, store_id=me.store_id, settings=settings.calls)
        self.metadata_log = MetadataLog(
            node_id=self.node_id,
            calls=self.calls,
            clock=clock,
            random=random,
            rules=Rules(
                defaults=settings.defaults,
                partitions_max=settings.partitions_max,
                expected_nodes=max(1, len(settings.peers)),
            ),
            on_fatal=on_fatal,
            settings=settings.metadata_log,
        )
        self.raft = RaftNode(
            me=me,
            cluster_id=identity.cluster_id,
            bootstrap_voters=tuple(sorted(settings.peers)) or (self.node_id,),
            loaded=loaded,
            committer=store.meta.committer,
            transport=links,
            clock=clock,
            random=random,
            settings=settings.raft,
            on_apply=self.metadata_log.applied,
            on_leading=self.metadata_log.leading,
            on_snapshot=self.metadata_log.restored,
        )
        self.metadata_log.attach(self.raft)
        self.quorum = QuorumWatch(
            metadata_log=self.metadata_log,
            raft=self.raft,
            calls=self.calls,
            node_id=self.node_id,
            peer_endpoints=settings.peers,
        )
        self.controller = Controller(
            node_id=self.node_id,
            metadata_log=self.metadata_log,
            raft=self.raft,
            calls=self.calls,
            clock=clock,
            settings=settings.controller,
        )
        self.session = NodeSession(
            registration=RegisterNode(
                node_id=self.node_id,
                store_id=identity.store_id,
                client_endpoint=settings.client_endpoint,
                peer_endpoint=settings.peer_endpoint,
                rack=settings.rack,
                version=__version__,
                unclean=store.recovery.unclean,
            ),
            metadata_log=self.metadata_log,
            calls=self.calls,
            clock=clock,
            disk_full=lambda: store.disk_full,
            settings=settings.session,
        )
        links.add_lost_listener(self.session.on_peer_lost)
        links.add_lost_listener(self.controller.on_peer_lost)
        self.partitions = Partitions(
            store=store,
            clock=clock,
            defaults=settings.defaults,
            node_id=self.node_id,
            session=self.session if transport is not None else None,
            transport=transport,
            calls=self.calls,
            random=random,
            settings=settings.replication,
        )
        self._build_groups()
        self._build_publishing(published)
        self.metadata_log.add_listener(self._followed)
        self.metadata_log.add_active_listener(self._became_active)
        self.session.add_listener(self.partitions.session_changed)

    @staticmethod
    def load(store: LogStore) -> Loaded:
        """What the store has of the metadata log. Blocks. Raises StoreCorrupt."""
        return raft_storage.load(store.meta.engine)

    def _build_groups(self) -> None:
        call_later = asyncio.get_running_loop().call_later

        def new_id() -> str:
            return self._random.randbytes(12).hex()

        self.coordinators = Coordinators(
            self._groups_partitions,
            GroupTopics(self.partitions, self.clock),
            clock=self.clock,
            call_later=call_later,
            node_id=self.node_id,
            settings=self.settings.coordinator,
            new_member_id=new_id,
        )
        self._watches = Watches(self.coordinators, call_later=call_later)
        peer_calls.serve(self.calls, self.coordinators, self._watches)
        self.groups = CoordinatorClient(
            self.coordinators,
            self._watches,
            self.calls,
            clock=self.clock,
            call_later=call_later,
            new_id=new_id,
            quorum_problem=self.quorum.problem,
        )

    def _build_publishing(self, published: Callable[[str, int, int], None]) -> None:
        store, clock = self.store, self.clock
        self.partition_client = PartitionClient(self.calls, clock=clock)
        self.partition_calls = PartitionCalls(
            partitions=self.partitions,
            has_room=lambda: store.committer.has_room,
            wait_for_room=store.wait_for_room,
            barrier=store.barrier,
            still_leads=self.partitions.still_leads,
        )
        self.partition_calls.serve(self.calls)
        self.forwarding = Forwarding(
            calls=self.calls,
            node_id=self.node_id,
            clock=clock,
            random=self._random,
            endpoint_of=self.client_endpoint_of,
            is_gone=self._is_gone,
            still_leads=self.partitions.still_leads,
            published=published,
            settings=self.settings.forwarding,
        )
        self.producer_ids = ProducerIds(self.metadata_log)
        self.publishing = Publishing(
            partitions=self.partitions,
            clock=clock,
            batch_records_max=self.settings.batch_records_max,
            producer_exists=self.producer_ids.handed_out,
            node_id=self.node_id,
            look_up=self.partition_client.find_request,
            grown_us=self._grown_us,
        )

    # --- life ---

    def start(self) -> None:
        """Takes part: in elections, in the cluster, in replication. The transport may listen from now on."""
        if self._transport is not None:
            self.clock.expect_others()
            for node_id, endpoint in self.settings.peers.items():
                if node_id != self.node_id:
                    self._transport.set_address(node_id, endpoint)
        self.raft.start()
        self.session.start()
        self.quorum.start()
        self._begin(self._settle())
        if self._transport is not None:
            self._begin(self._watch_controllers())
            self._begin(self._watch_disk())

    def add_image_listener(self, listener: Callable[[ClusterState, ClusterState], None]) -> None:
        """`listener(old, new)` after each change of the cluster's image, once partitions and groups follow it."""
        self._image_listeners.append(listener)

    @property
    def state(self) -> ClusterState:
        """The cluster's image, as this node has it."""
        return self.metadata_log.state

    @property
    def knows(self) -> bool:
        """The image here holds all that was decided before this node started."""
        return self._settled

    @property
    def ready(self) -> bool:
        """The cluster counts on this node, and it is in sync with all that it has a replica of."""
        return not self.not_ready

    @property
    def not_ready(self) -> str:
        """Why not; empty if it is."""
        if not self.session.broker_epoch:
            problem = self.metadata_log.quorum_problem()
            return "waiting for a controller" + (f": {problem}" if problem else "")
        if not self.session.unfenced or not self._settled:
            return "registered; waiting for the controller to count on this node"
        behind = sum(
            self.node_id in partition.replicas
            and self.node_id not in partition.isr
            and partition.leader != NOBODY  # of one without a leader there is nothing to catch up with
            for _, _, partition in self.state.partitions()
        )
        if behind:
            return f"catching up with {behind} partitions"
        if self.node_id not in self.state.nodes or GROUPS_TOPIC not in self.state.topics:
            return "waiting for the groups topic"
        return ""

    async def hand_over(self) -> None:
        """Before a stop: lets others lead what this node leads, so that nobody notices. As far as it goes in time."""
        if self._transport is None or not self.session.broker_epoch:
            return
        try:
            async with asyncio.timeout(self.settings.hand_over_s):
                led = [partition for partition in self._led() if partition.has_followers]
                self.coordinators.flush()  # what they have decided is appended before nothing is any more
                for partition in led:
                    partition.pause()
                with contextlib.suppress(TimeoutError):  # the next leader commits what is not committed now
                    async with asyncio.timeout(self.settings.settle_s):
                        for partition in led:
                            await partition.settled()
                await self.session.hand_over(timeout_s=self.settings.hand_over_s)
                if self.metadata_log.active:
                    await self.raft.transfer_leadership()
        except (TimeoutError, PostbusError) as error:
            log.warning("hand_over_failure", error=str(error) or "not in time", action="others take over by themselves")
        finally:
            for partition in self._led():
                partition.resume()

    async def close(self) -> None:
        """Ends everything, in the opposite order; the store is closed after it, the transport's listening before."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.groups.close()
        self._watches.close()
        await self.coordinators.close()
        self.forwarding.close()
        await self.session.close()
        await self.partitions.close()
        await self.controller.close()
        await self.quorum.close()
        await self.metadata_log.close()
        await self.raft.close()
        await self.calls.close()

    # --- what the services ask ---

    def client_endpoint_of(self, node_id: int) -> str:
        """host:port for clients; empty if it is not known."""
        node = self.state.nodes.get(node_id)
        return node.client_endpoint if node is not None else ""

    async def init_producer(self, producer_id: int, epoch: int) -> tuple[int, int]:
        """A new id (for 0), or the next epoch of one that holds `epoch`. Raises PostbusError."""
        if not producer_id:
            return await self.producer_ids.take(), 0
        if not self.producer_ids.handed_out(producer_id):
            raise errors.invalid_field("id", f"{producer_id} was never handed out; 0 asks for a new id")
        if epoch >= _PRODUCER_EPOCH_MAX:
            raise errors.invalid_field("epoch", f"{epoch} is the last one; ask for a new id")
        return producer_id, await self.producer_ids.next_epoch(producer_id, epoch)

    # --- the image ---

    def _followed(self, old: ClusterState, new: ClusterState) -> None:
        """The cluster's image changed: partitions first, then who reads them."""
        changes = difference(old, new)
        if self._transport is not None:
            for _, node in changes.nodes:
                # What the operator configured wins: it may lead through something that the node does not know of.
                if node is not None and node.node_id not in (self.node_id, *self.settings.peers) and node.peer_endpoint:
                    self._transport.set_address(node.node_id, node.peer_endpoint)
        self.partitions.follow(old, new)
        self.coordinators.follow()
        self.coordinators.topics_changed(
            deleted=[topic.topic_id for topic in changes.deleted],
            changed=[topic.name for topic in changes.created] + [topic.name for _, topic in changes.changed],
        )
        for before, after in changes.nodes:
            if before is not None and not before.fenced and (after is None or after.fenced):
                self._watches.node_fenced(before.node_id)
        if changes.created or changes.deleted or changes.changed:
            self.partition_calls.topics_changed()
            self.publishing.topics_changed()
            self.forwarding.topics_changed()
        if changes.nodes:
            self.forwarding.nodes_changed()
        for listener in tuple(self._image_listeners):
            listener(old, new)

    def _groups_partitions(self) -> list[Partition]:
        topic = self.partitions.internal(GROUPS_TOPIC)
        return topic.partitions if topic is not None else []

    def _led(self) -> list[Partition]:
        """Those of the broker's own topics, too."""
        topics = self.partitions.every_topic()
        return [partition for topic in topics for partition in topic.partitions if partition.leading]

    def _is_gone(self, node_id: int) -> bool:
        node = self.state.nodes.get(node_id)
        return node is None or node.fenced

    def _grown_us(self, topic_name: str) -> int:
        topic = self.state.topics.get(topic_name)
        return topic.grown_us if topic is not None else 0

    async def _watch_controllers(self) -> None:
        """Who publishes through a node that is cut off is told why, soon: through another one it may go on."""
        while True:
            await asyncio.sleep(self.settings.retry_s)
            if self.session.silence_s > self.settings.cut_off_s:
                why = self.metadata_log.quorum_problem() or "no controller answers"
                self.forwarding.give_up_all(
                    PostbusError(
                        Reason.ERROR_REASON_NO_LEADER,
                        f"node {self.node_id} is cut off: {why}",
                        retry_after_ms=CUT_OFF_RETRY_AFTER_MS,
                    )
                )

    async def _watch_disk(self) -> None:
        """What is refused for want of room here goes to who has some. Where nothing is published nothing moves."""
        while True:
            await asyncio.sleep(self.settings.full_disk_hand_over_s)
            short = [partition for partition in self._led() if partition.lacked_room]
            for partition in short:
                partition.lacked_room = False
            moved = [PartitionId(one.topic_id, one.number) for one in short if one.isr_count > 1]
            if not moved or not self.store.disk_full:
                continue
            log.warning("full_disk_hand_over", partitions=len(moved))
            try:
                await self.session.hand_over(moved)
            except PostbusError as error:
                log.warning("hand_over_failure", error=error.message, action="it is tried again when more is refused")

    # --- what is done once ---

    def _begin(self, work: "asyncio._CoroutineLike[None]") -> None:
        self._tasks = [task for task in self._tasks if not task.done()]
        self._tasks.append(asyncio.get_running_loop().create_task(work))

    async def _settle(self) -> None:
        """Once this node is registered its image holds all that was decided before: what it lacks, is not."""
        registered = asyncio.Event()
        self.session.add_listener(lambda: registered.set() if self.session.broker_epoch else None)
        await registered.wait()
        if self.store.recovery.unclean:
            self.store.clear_unclean()
        unknown = [log_id for log_id in self.store.log_ids() if log_id >= self.state.next_log_id]
        while unknown:
            try:
                await self._adopt(unknown)
                break
            except PostbusError as error:
                log.warning("logs_adoption_failure", error=error.message)
                await asyncio.sleep(self.settings.retry_s)
        # A crash may come between the end of a topic and that of its logs.
        known = {partition.log_id for _, _, partition in self.state.partitions() if self.node_id in partition.replicas}
        for log_id in self.store.log_ids():
            if log_id not in known:
                self.store.delete_log(log_id)
        self._settled = True

    async def _adopt(self, log_ids: list[int]) -> None:
        """Logs whose numbers were never handed out are what is left after the metadata was lost: they stay."""
        topic_ids = {log_id: self._random.randbytes(16).hex() for log_id in log_ids}
        await self.metadata_log.execute(
            AdoptLogs(
                node_id=self.node_id,
                topic_ids=topic_ids,
                now_us=self.clock.wall_us(),
                leader_epoch=1 + max(self.store.log(log_id).last_epoch for log_id in log_ids),
            )
        )
        log.warning(
            "logs_adopted",
            count=len(log_ids),
            why="the metadata that named their topics was lost",
            action="each is a topic recovered-<number> now; read what you need, then delete it",
        )

    def _became_active(self, active: bool) -> None:
        if active:
            self._begin(self._found())

    async def _found(self) -> None:
        """The active controller makes what every cluster has, if it is missing."""
        while self.metadata_log.active:
            state = self.metadata_log.decided
            try:
                if not state.cluster_id:
                    await self.metadata_log.execute(
                        CreateCluster(cluster_id=self.store.identity.cluster_id, now_us=self.clock.wall_us())
                    )
                elif GROUPS_TOPIC in state.topics:
                    return
                elif any(not node.fenced for node in state.nodes.values()):
                    await self._make_groups_topic()
            except PostbusError as error:
                log.debug("founding_waits", error=error.message)
            await asyncio.sleep(self.settings.retry_s / 10)

    async def _make_groups_topic(self) -> None:
        config = topic_pb2.TopicConfig(cleanup_policy=topic_pb2.CLEANUP_POLICY_COMPACT)
        node_count = max(len(self.metadata_log.decided.nodes), len(self.settings.peers))
        await self.metadata_log.execute(
            CreateTopic(
                name=GROUPS_TOPIC,
                topic_id=self._random.randbytes(16).hex(),
                now_us=self.clock.wall_us(),
                partition_count=self.settings.groups_partition_count,
                replication_factor=min(self.settings.groups_replication_factor, node_count),
                config=config,
                internal=True,
                seed=self._random.getrandbits(32),
            )
        )
