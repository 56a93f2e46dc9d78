"""The partitions that this node leads, by topic and number: follows the cluster's image.

Owns the objects, and that they come and go with their topics; the records themselves are storage's.
"""

from collections.abc import Iterator
from typing import Final

from postbus.v1 import topic_pb2

from broker import errors
from broker.clock import Clock
from broker.controller.state import ClusterState, Topic, difference
from broker.controller.topic_config import EffectiveConfig, TopicDefaults, effective
from broker.replication.partition import Partition, Published
from broker.storage.store import LogStore

# A publisher without keys stays on a partition for so many bytes, then the next one has its turn.
STICKY_BYTES: Final = 64 * 1024


class LedTopic:
    """One topic and its partitions."""

    def __init__(self, topic: Topic, config: EffectiveConfig) -> None:
        self.name = topic.name
        self.topic_id = topic.topic_id
        self.config = config
        self.partitions: list[Partition] = []
        self._sticky = 0
        self._sticky_bytes = 0
        self._loaded_count = 0

    def partition(self, number: int) -> Partition:
        """By number; raises PARTITION_NOT_FOUND."""
        if not 0 <= number < len(self.partitions):
            raise errors.partition_not_found(self.name, number, len(self.partitions))
        return self.partitions[number]

    def sticky_partition(self, size_bytes: int) -> int:
        """Where the next keyless records go: one partition for a while, so that batches stay whole, then the next."""
        chosen = self._sticky
        self._sticky_bytes += size_bytes
        if self._sticky_bytes >= STICKY_BYTES:
            self._sticky_bytes = 0
            self._sticky = (chosen + 1) % len(self.partitions)
        return chosen

    @property
    def request_ids_loaded(self) -> bool:
        """Whether deduplication by request id knows what was appended before this process started."""
        return self._loaded_count == len(self.partitions)

    async def load_request_ids(self) -> None:
        """Reads them from the index; needed once, before the first publish with a request id."""
        partitions = list(self.partitions)
        for partition in partitions:
            await partition.log.load_request_ids()
        self._loaded_count = len(partitions)

    def find_request(self, request_id: bytes, *, now_us: int) -> list[Published]:
        """The parts of an earlier try within the window, wherever they are; empty if there was none.

        All partitions are asked, because partitions may have been added between two tries.
        """
        return [
            Published(
                partition.number,
                part.base_offset,
                part.record_count,
                part.record_indexes,
                part.append_time_us,
                True,
            )
            for partition in self.partitions
            for part in partition.log.request_ids.find(request_id, now_us=now_us)
        ]


class Partitions:
    """All topics of this node."""

    def __init__(self, *, store: LogStore, clock: Clock, defaults: TopicDefaults) -> None:
        self._store = store
        self._clock = clock
        self._defaults = defaults
        self._by_name: dict[str, LedTopic] = {}
        self._by_id: dict[str, LedTopic] = {}

    def follow(self, old: ClusterState, new: ClusterState) -> None:
        """Makes partitions, changes settings and deletes as the images differ. Storage deletes in the background."""
        changes = difference(old, new)
        for topic in changes.deleted:
            if topic.topic_id in self._by_id:
                self._delete(topic)
        for topic in changes.created:
            if topic.internal:
                continue  # its log is written by its owner alone, and nobody else reads it
            led = LedTopic(topic, self._effective(topic))
            self._by_name[topic.name] = self._by_id[topic.topic_id] = led
            self._grow(led, topic)
        for _, topic in changes.changed:
            if topic.internal:
                continue
            led = self._by_id[topic.topic_id]
            led.config = self._effective(topic)
            self._grow(led, topic)

    def _grow(self, led: LedTopic, topic: Topic) -> None:
        for number in range(len(led.partitions), topic.partition_count):
            led.partitions.append(
                Partition(
                    topic=topic.name,
                    topic_id=topic.topic_id,
                    number=number,
                    log=self._store.create_log(topic.log_ids[number]),
                    clock=self._clock,
                )
            )
        for partition in led.partitions:
            partition.acks_when_written = led.config.acks_when_written
            partition.log.wants_written = led.config.acks_when_written
            partition.log.request_ids.window_us = led.config.deduplication_window_us
            partition.log.retention_us = led.config.retention_time_us
            partition.log.retention_bytes = led.config.retention_bytes

    def _delete(self, topic: Topic) -> None:
        led = self._by_id.pop(topic.topic_id)
        if self._by_name.get(topic.name) is led:
            del self._by_name[topic.name]
        for partition in led.partitions:
            partition.delete()
            self._store.delete_log(partition.log.log_id)

    def _effective(self, topic: Topic) -> EffectiveConfig:
        config = topic_pb2.TopicConfig.FromString(topic.config)
        return effective(config, replication_factor=topic.replication_factor, defaults=self._defaults)

    def topic(self, name: str) -> LedTopic:
        """By name; raises TOPIC_NOT_FOUND."""
        led = self._by_name.get(name)
        if led is None:
            raise errors.topic_not_found(name)
        return led

    def find(self, topic_id: str) -> LedTopic | None:
        """By id."""
        return self._by_id.get(topic_id)

    def find_name(self, name: str) -> LedTopic | None:
        """By name."""
        return self._by_name.get(name)

    def __iter__(self) -> Iterator[LedTopic]:
        return iter(list(self._by_id.values()))
