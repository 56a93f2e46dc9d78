"""A whole node in this process, and stubs on a connection to it."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc
from postbus.v1 import (
    group_pb2_grpc,
    publisher_pb2,
    publisher_pb2_grpc,
    record_pb2,
    subscriber_pb2_grpc,
    topic_pb2,
    topic_pb2_grpc,
)

from broker.node import Node
from broker.replication.partitions import PartitionedTopic


@dataclass
class LiveNode:
    """A node and stubs on a connection to it."""

    node: Node
    channel: grpc.aio.Channel
    port: int

    def __post_init__(self) -> None:
        self.publisher = publisher_pb2_grpc.PublisherServiceStub(self.channel)
        self.subscriber = subscriber_pb2_grpc.SubscriberServiceStub(self.channel)
        self.groups = group_pb2_grpc.GroupServiceStub(self.channel)
        self.topics = topic_pb2_grpc.TopicServiceStub(self.channel)

    def topic(self, name: str) -> PartitionedTopic:
        """A topic as the node's own code sees it."""
        return self.node._bus.partitions.topic(name)

    async def create(self, topic: str, partition_count: int = 1, **config: Any) -> None:
        """A topic."""
        await self.topics.CreateTopic(
            topic_pb2.CreateTopicRequest(
                name=topic, partition_count=partition_count, config=topic_pb2.TopicConfig(**config)
            )
        )

    async def publish(self, topic: str, *values: bytes, partition: int = 0) -> None:
        """One batch."""
        request = publisher_pb2.PublishRequest(topic=topic, partition=partition)
        request.batch.records.extend(record_pb2.Record(value=value) for value in values)
        await self.publisher.Publish(request)


OpenNode = Callable[..., Awaitable[LiveNode]]
