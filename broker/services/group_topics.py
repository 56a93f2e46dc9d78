"""The topics of this node as the group coordinator asks for them."""

from postbus.v1 import subscriber_pb2

from broker import errors
from broker.clock import Clock
from broker.errors import PostbusError
from broker.groups.calls import Topic
from broker.replication.partition import Partition
from broker.replication.partitions import LedTopic, Partitions
from broker.services import positions


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

    async def resolve(self, topic_id: str, partition: int, start: subscriber_pb2.StartPosition) -> int:
        """The offset of a place, moved into what is there."""
        led = self._partition(topic_id, partition)
        wanted = await positions.resolve_start(led, start, self._clock)
        return min(max(wanted, led.log.log_start_offset), led.high_watermark)

    def high_watermark(self, topic_id: str, partition: int) -> int:
        """End of what may be read; raises NOT_FOUND errors."""
        return self._partition(topic_id, partition).high_watermark

    def _partition(self, topic_id: str, partition: int) -> Partition:
        led = self._partitions.find(topic_id)
        if led is None:
            raise _gone(topic_id)
        return led.partition(partition)


def _described(led: LedTopic | None) -> Topic | None:
    return None if led is None else Topic(led.name, led.topic_id, len(led.partitions))


def _gone(topic_id: str) -> PostbusError:
    return errors.topic_not_found(topic_id)
