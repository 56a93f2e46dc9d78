"""Topics as group coordinators ask for them: all of the cluster, whoever leads their partitions.

Names, ids and counts come from this node's image, which is at least as new as the one that made it a coordinator. How
far a partition is only its leader knows.
"""

import asyncio
from collections.abc import Sequence
from typing import Final

from postbus.v1 import subscriber_pb2

from broker import errors
from broker.clock import Clock
from broker.errors import PostbusError
from broker.groups.calls import Topic
from broker.groups.records import PartitionKey
from broker.replication.partition import Partition
from broker.replication.partitions import PartitionedTopic, Partitions
from broker.services import positions

# A leader that does not say within this time how far it is does not say; whoever asked tries again, or does without.
ASK_TIMEOUT_S: Final = 5.0
REFRESH_TIMEOUT_S: Final = 1.0
REFRESH_AT_ONCE: Final = 100


class GroupTopics:
    """Implements `broker.groups.driver.Topics`."""

    def __init__(self, partitions: Partitions, clock: Clock) -> None:
        self._partitions = partitions
        self._clock = clock

    def by_name(self, name: str) -> Topic | None:
        """None: there is none of this name."""
        return _described(self._partitions.find_name(name))

    def by_id(self, topic_id: str) -> Topic | None:
        """None: it was deleted."""
        return _described(self._partitions.find(topic_id))

    async def resolve(self, topic_id: str, number: int, start: subscriber_pb2.StartPosition) -> int:
        """The offset of a place, moved into what is there."""
        partition = self._partition(topic_id, number)
        which = start.WhichOneof("at")
        earliest = which is None or (which == "edge" and start.edge == subscriber_pb2.LOG_EDGE_EARLIEST)
        if earliest and partition.log is partition.local:
            return partition.log.log_start_offset
        # LATEST must not be behind what was acknowledged before somebody asked for it.
        end_offset = await partition.fresh_high_watermark(ASK_TIMEOUT_S)
        if earliest:
            return partition.log.log_start_offset
        if which == "edge":
            return end_offset
        wanted = await positions.resolve_start(partition, start, self._clock)
        return max(min(wanted, end_offset), partition.log.log_start_offset)

    def high_watermark(self, topic_id: str, partition: int) -> int:
        """End of what may be read, as far as it is known here; raises NOT_FOUND errors."""
        return self._partition(topic_id, partition).high_watermark

    async def fresh_high_watermark(self, topic_id: str, partition: int) -> int:
        """The same, of its leader; raises NOT_FOUND errors and NO_LEADER."""
        return await self._partition(topic_id, partition).fresh_high_watermark(ASK_TIMEOUT_S)

    async def refresh(self, keys: Sequence[PartitionKey]) -> None:
        """Asks the leaders of those that this node has no replica in sync of; the others are told anyway."""
        remote = [
            topic.partitions[number]
            for topic_id, number in keys
            if (topic := self._partitions.find(topic_id)) is not None
            and number < len(topic.partitions)
            and topic.partitions[number].log is not topic.partitions[number].local
        ]
        for begin in range(0, len(remote), REFRESH_AT_ONCE):
            await asyncio.gather(*(_refresh(partition) for partition in remote[begin : begin + REFRESH_AT_ONCE]))

    def end_offset(self, topic_id: str, number: int) -> int | None:
        """The log's end, of a partition that this node leads."""
        topic = self._partitions.find(topic_id)
        if topic is None or not 0 <= number < len(topic.partitions):
            return None
        partition = topic.partitions[number]
        return partition.local.end_offset if partition.leading and partition.local is not None else None

    def _partition(self, topic_id: str, number: int) -> Partition:
        topic = self._partitions.find(topic_id)
        if topic is None:
            raise errors.topic_not_found(topic_id)
        return topic.partition(number)


async def _refresh(partition: Partition) -> None:
    try:
        await partition.fresh_high_watermark(REFRESH_TIMEOUT_S)
    except PostbusError:
        return


def _described(topic: PartitionedTopic | None) -> Topic | None:
    return None if topic is None else Topic(topic.name, topic.topic_id, len(topic.partitions))
