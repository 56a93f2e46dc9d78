"""All partitions of all topics, by topic and number: follows the cluster's image.

Owns the objects, and that they come and go with their topics and replicas; the records themselves are storage's. Owns
the drivers of replication too: who feeds, who pulls, who asks for changes of the ISR, who reads elsewhere.
"""

from collections.abc import Iterator
from random import Random

from postbus.v1 import topic_pb2

from broker import errors
from broker.clock import Clock
from broker.controller.state import ClusterState, NodeState, PartitionState, Topic, difference
from broker.controller.topic_config import EffectiveConfig, TopicDefaults, effective
from broker.peers.calls import Calls
from broker.peers.links import Transport
from broker.replication.damages import Damages
from broker.replication.feeder import Feeder
from broker.replication.isr_changes import IsrChanges, LoneSession, Session
from broker.replication.leader import Registered
from broker.replication.partition import Partition, Shared
from broker.replication.puller import Puller
from broker.replication.remote_buffers import RemoteBuffers
from broker.replication.remote_log import RemoteLog, RemoteReads
from broker.replication.settings import ReplicationSettings
from broker.replication.succession import Succession
from broker.storage.log import PartitionLog
from broker.storage.store import LogStore


class PartitionedTopic:
    """One topic and its partitions, led here or not."""

    def __init__(self, topic: Topic, config: EffectiveConfig) -> None:
        self.name = topic.name
        self.topic_id = topic.topic_id
        self.internal = topic.internal
        self.config = config
        self.partitions: list[Partition] = []

    def partition(self, number: int) -> Partition:
        """By number; raises PARTITION_NOT_FOUND."""
        if not 0 <= number < len(self.partitions):
            raise errors.partition_not_found(self.name, number, len(self.partitions))
        return self.partitions[number]


class Partitions:
    """All topics."""

    def __init__(
        self,
        *,
        store: LogStore,
        clock: Clock,
        defaults: TopicDefaults,
        node_id: int = 1,
        session: Session | None = None,
        transport: Transport | None = None,
        calls: Calls | None = None,
        random: Random | None = None,
        settings: ReplicationSettings | None = None,
    ) -> None:
        """session: None for a node that is alone for good. transport, calls: None for a node without peers."""
        self.settings = settings or ReplicationSettings()
        self._store = store
        self._clock = clock
        self._defaults = defaults
        self._calls = calls
        self._by_name: dict[str, PartitionedTopic] = {}
        self._by_id: dict[str, PartitionedTopic] = {}
        self._by_log_id: dict[int, Partition] = {}
        self._states: dict[int, PartitionState] = {}  # by log id, while not acted upon
        self._session: Session = session or LoneSession()
        self._broker_epoch = self._session.broker_epoch
        self.remote_buffers = RemoteBuffers(
            bytes_max=self.settings.remote_buffers_bytes, partition_bytes_max=self.settings.remote_buffer_bytes
        )
        # A start replays images of an earlier life. To lead by them, to follow who led then, or to delete what had no
        # place here for a while would destroy what was acknowledged since. So nothing is done before the image holds
        # this life's registration, and so all before it.
        self._may_act = session is None or bool(session.broker_epoch)
        self._isr_changes = IsrChanges(session=self._session, settings=self.settings)
        self.damages = Damages(session=self._session, settings=self.settings)
        self._succession = Succession(calls, known_epoch=self._known_epoch, settings=self.settings)
        self.still_leads = self._succession.still_leads
        """Of a partition that this node leads: nobody else does."""
        feeder = puller = None
        if transport is not None:
            feeder = Feeder(transport=transport, clock=clock, settings=self.settings, partitions=self._by_log_id)
            puller = Puller(
                transport=transport,
                clock=clock,
                random=random or Random(),
                settings=self.settings,
                broker_epoch=lambda: self._session.broker_epoch,
                has_room=lambda: store.committer.has_room,
                wait_for_room=store.wait_for_room,
            )
        if calls is not None:
            RemoteReads(calls, partitions=self._by_log_id, settings=self.settings)
        self._shared = Shared(
            node_id=node_id,
            clock=clock,
            settings=self.settings,
            session=self._session,
            isr_changes=self._isr_changes,
            damages=self.damages,
            succession=self._succession,
            feeder=feeder,
            puller=puller,
            nodes={},
            registered={},
        )

    # --- the image

    def follow(self, old: ClusterState, new: ClusterState) -> None:
        """Makes partitions, changes roles and settings, and deletes, as the images differ.

        Storage deletes in the background.
        """
        changes = difference(old, new)
        if changes.nodes:
            self._shared.nodes = new.nodes
            self._shared.registered = {node_id: _registered(node) for node_id, node in new.nodes.items()}
        if self._shared.feeder is not None:
            self._shared.feeder.throttle.bytes_per_s = new.throttle_bytes_per_s or self.settings.catch_up_bytes_per_s
        for topic in changes.deleted:
            if topic.topic_id in self._by_id:
                self._delete(topic)
        for topic in changes.created:
            made = PartitionedTopic(topic, self._effective(topic))
            self._by_name[topic.name] = self._by_id[topic.topic_id] = made
            self._grow(made, topic)
        for _, topic in changes.changed:
            changed = self._by_id[topic.topic_id]
            changed.config = self._effective(topic)
            self._configure(changed)
            self._grow(changed, topic)
        for change in changes.partitions:
            if change.before is not None:
                found = self._by_id[change.topic.topic_id]
                self._follow(found, found.partitions[change.number], change.after)
        if changes.nodes:
            for partition in self._by_log_id.values():
                partition.nodes_changed()

    def session_changed(self) -> None:
        """This node's session with the controller began, ended, or is another one; again does no harm."""
        registered_anew = self._session.broker_epoch != self._broker_epoch
        self._broker_epoch = self._session.broker_epoch
        if registered_anew and not self._may_act:
            self._act()
        for partition in list(self._by_log_id.values()):
            partition.session_changed()
        if registered_anew and self._shared.puller is not None:
            self._shared.puller.ask_all_again()

    def _act(self) -> None:
        """Takes the roles that the image says."""
        self._may_act = True
        for topic in self.every_topic():
            for partition in topic.partitions:
                self._follow(topic, partition, self._states[partition.log_id])
        self._states.clear()

    async def close(self) -> None:
        """Replicates and reads elsewhere no more; before storage closes."""
        await self._isr_changes.close()
        await self.damages.close()
        await self._succession.close()
        if self._shared.puller is not None:
            await self._shared.puller.close()
        if self._shared.feeder is not None:
            await self._shared.feeder.close()
        for partition in list(self._by_log_id.values()):
            await partition.close()

    def _grow(self, topic: PartitionedTopic, image: Topic) -> None:
        for number in range(len(topic.partitions), image.partition_count):
            state = image.partitions[number]
            partition = Partition(
                topic=topic.name, topic_id=topic.topic_id, number=number, log_id=state.log_id, shared=self._shared
            )
            partition.attach_remote(
                RemoteLog(
                    partition,
                    calls=self._calls,
                    clock=self._clock,
                    buffers=self.remote_buffers,
                    settings=self.settings,
                )
            )
            topic.partitions.append(partition)
            self._by_log_id[state.log_id] = partition
            self._configure_one(topic, partition)
            self._follow(topic, partition, state)

    def _follow(self, topic: PartitionedTopic, partition: Partition, state: PartitionState) -> None:
        def log_of_replica() -> PartitionLog:
            made = self._store.create_log(state.log_id)
            _set_up(made, topic)
            return made

        if not self._may_act:
            self._states[state.log_id] = state
            return
        unassigned = partition.follow(state, log_of_replica=log_of_replica)
        if unassigned is not None:
            self._store.delete_log(unassigned.log_id)

    def _configure(self, topic: PartitionedTopic) -> None:
        for partition in topic.partitions:
            self._configure_one(topic, partition)

    def _configure_one(self, topic: PartitionedTopic, partition: Partition) -> None:
        partition.configure(
            min_insync_replicas=topic.config.min_insync_replicas, acks_when_written=topic.config.acks_when_written
        )
        if partition.local is not None:
            _set_up(partition.local, topic)

    def _delete(self, image: Topic) -> None:
        topic = self._by_id.pop(image.topic_id)
        if self._by_name.get(image.name) is topic:
            del self._by_name[image.name]
        for partition in topic.partitions:
            del self._by_log_id[partition.log_id]
            partition.delete()
            if partition.local is not None:
                self._store.delete_log(partition.log_id)

    def _effective(self, topic: Topic) -> EffectiveConfig:
        config = topic_pb2.TopicConfig.FromString(topic.config)
        return effective(config, replication_factor=topic.replication_factor, defaults=self._defaults)

    # --- who is there

    def topic(self, name: str) -> PartitionedTopic:
        """By name; raises TOPIC_NOT_FOUND, for the broker's own topics too."""
        topic = self._by_name.get(name)
        if topic is None or topic.internal:
            raise errors.topic_not_found(name)
        return topic

    def find(self, topic_id: str) -> PartitionedTopic | None:
        """By id; not the broker's own."""
        return _of_users(self._by_id.get(topic_id))

    def find_name(self, name: str) -> PartitionedTopic | None:
        """By name; not the broker's own."""
        return _of_users(self._by_name.get(name))

    def internal(self, name: str) -> PartitionedTopic | None:
        """One of the broker's own, by name."""
        topic = self._by_name.get(name)
        return topic if topic is not None and topic.internal else None

    def find_log(self, log_id: int) -> Partition | None:
        """By the number of its log."""
        return self._by_log_id.get(log_id)

    def _known_epoch(self, log_id: int) -> int:
        partition = self._by_log_id.get(log_id)
        return -1 if partition is None else partition.leader_epoch

    def every_topic(self) -> list[PartitionedTopic]:
        """The broker's own, too."""
        return list(self._by_id.values())

    def __iter__(self) -> Iterator[PartitionedTopic]:
        return (topic for topic in self.every_topic() if not topic.internal)


def _of_users(topic: PartitionedTopic | None) -> PartitionedTopic | None:
    return None if topic is None or topic.internal else topic


def _registered(node: NodeState) -> Registered:
    return Registered(node.broker_epoch, may_join=not (node.fenced or node.stopping))


def _set_up(local: PartitionLog, topic: PartitionedTopic) -> None:
    config = topic.config
    local.request_ids.window_us = config.deduplication_window_us
    local.retention_us = config.retention_time_us
    local.retention_bytes = config.retention_bytes
    local.may_use_reserve = topic.internal
    local.compacts = config.compacts
