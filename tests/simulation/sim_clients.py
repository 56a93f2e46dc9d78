"""Clients of a simulated cluster: they publish and read as users do, and note what they saw.

Owns what a client may conclude: a publish is acknowledged, or refused for certain, or nobody knows. Publishers try
again with the same request id or sequence until they know; those without either never repeat themselves.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from cluster_checker import ClusterChecker
from history import History, Outcome, Place, Polled, Positioned, Sent
from postbus.v1 import publisher_pb2, record_pb2, subscriber_pb2
from sim_cluster import Cluster, Lost, Node, call

from broker.errors import PostbusError

TIMEOUT_S = 4.0
GIVE_UP_S = 20.0


class Clients:
    """All of them, and what they noted."""

    def __init__(self, cluster: Cluster, checker: ClusterChecker) -> None:
        self.cluster = cluster
        self.checker = checker
        self.history = History()
        self.publishing = True
        self.refusals: dict[str, int] = {}
        self.tasks: list[asyncio.Task[None]] = []

    def publish(self, name: str, topic: str, kind: str) -> None:
        """kind: request, producer or plain."""
        publisher = Publisher(self, name, topic, kind, self.cluster.loop.random(f"publisher {name}"))
        self.tasks.append(asyncio.ensure_future(publisher.run()))

    def read(self, name: str, topic: str) -> None:
        reader = Reader(self, name, topic, self.cluster.loop.random(f"reader {name}"))
        self.tasks.append(asyncio.ensure_future(reader.run()))

    def check_tasks(self) -> None:
        """A client that failed is a failure of the run."""
        for task in self.tasks:
            if task.done() and not task.cancelled():
                task.result()

    def caught_up(self) -> bool:
        """Everything acknowledged was read by somebody."""
        seen = {event.content for event in self.history.events if isinstance(event, Polled)}
        return all(
            event.content in seen
            for event in self.history.events
            if isinstance(event, Sent) and event.outcome is Outcome.OK
        )


class Publisher:
    """One request after the other."""

    def __init__(self, clients: Clients, name: str, topic: str, kind: str, draw: random.Random) -> None:
        self._clients = clients
        self._cluster = clients.cluster
        self._name = name
        self._topic = topic
        self._kind = kind
        self._draw = draw
        self._number = 0
        self._lane = 0
        self._producer: tuple[int, int] | None = None
        self._sequences: dict[int, int] = {}

    async def run(self) -> None:
        while True:
            await asyncio.sleep(self._draw.expovariate(15))
            if self._clients.publishing:
                await self._publish()

    async def _publish(self) -> None:
        draw = self._draw
        partitions = self._cluster.state.topics[self._topic].partition_count
        number = draw.randrange(partitions)
        self._number += 1
        contents = [f"{self._name}/{self._number}/{part}" for part in range(draw.choice((1, 1, 2, 5)))]
        batch = record_pb2.RecordBatch(records=[record_pb2.Record(value=content.encode()) for content in contents])
        request = publisher_pb2.PublishRequest(topic=self._topic, partition=number, batch=batch)
        if self._kind == "request":
            request.request_id = f"{self._name}-{self._number}"
        elif self._kind == "producer":
            if self._producer is None and not await self._init_producer():
                return
            assert self._producer is not None
            request.producer.id, request.producer.epoch = self._producer
            request.producer.sequence = self._sequences.get(number, 0)
        outcome, base_offset = await self._until_known(request)
        if outcome is Outcome.OK:
            self._sequences[number] = self._sequences.get(number, 0) + 1
        elif self._kind == "producer":
            # Whether the sequence is used is not known: a new epoch begins at 0.
            self._producer = None
        for part, content in enumerate(contents):
            self._clients.history.note(
                Sent(
                    publisher=self._name,
                    content=content,
                    outcome=outcome,
                    lane=self._lane,
                    number=self._number * 10 + part,
                    place=Place(self._topic, number) if outcome is Outcome.OK else None,
                    offset=base_offset + part if outcome is Outcome.OK else None,
                    idempotent=True,
                )
            )
        if outcome is not Outcome.OK:
            # It may still come, after what is sent next.
            self._lane += 1
        elif base_offset >= 0:
            log_id = self._cluster.state.topics[self._topic].partitions[number].log_id
            self._clients.checker.acknowledged(log_id, base_offset + len(contents))

    async def _until_known(self, request: publisher_pb2.PublishRequest) -> tuple[Outcome, int]:
        data = request.SerializeToString()
        deadline = self._cluster.loop.now + GIVE_UP_S
        doubtful = False
        while True:
            try:
                response = publisher_pb2.PublishResponse.FromString(
                    await self._anywhere(lambda node: node.publisher.publish(data, call(TIMEOUT_S)))
                )
                (placed,) = response.ranges
                return Outcome.OK, placed.base_offset
            except PostbusError as error:
                self._note_refusal(error)
                if error.kind.outcome_unknown:
                    doubtful = True
                elif not error.kind.retriable:
                    return Outcome.UNKNOWN if doubtful else Outcome.FAILED, -1
            except ConnectionRefusedError:
                pass
            except Lost:
                doubtful = True
            if doubtful and self._kind == "plain":
                return Outcome.UNKNOWN, -1
            if self._cluster.loop.now > deadline:
                return Outcome.UNKNOWN if doubtful else Outcome.FAILED, -1
            await asyncio.sleep(self._draw.uniform(0.02, 0.2))

    async def _init_producer(self) -> bool:
        request = publisher_pb2.InitProducerRequest()
        try:
            response = await self._anywhere(lambda node: node.publisher.init_producer(request, call(TIMEOUT_S)))
        except (PostbusError, ConnectionRefusedError, Lost):
            return False
        self._producer, self._sequences = (response.id, response.epoch), {}
        return True

    async def _anywhere(self, request: Callable[[Node], Awaitable[Any]]) -> Any:
        node_id = self._draw.randint(1, len(self._cluster.machines))
        return await self._cluster.ask(node_id, request, timeout_s=TIMEOUT_S)

    def _note_refusal(self, error: PostbusError) -> None:
        self._clients.refusals[error.reason_name] = self._clients.refusals.get(error.reason_name, 0) + 1


class Reader:
    """Reads all partitions of a topic from their beginning, now from this node and now from that."""

    def __init__(self, clients: Clients, name: str, topic: str, draw: random.Random) -> None:
        self._clients = clients
        self._cluster = clients.cluster
        self._name = name
        self._topic = topic
        self._draw = draw

    async def run(self) -> None:
        next_offsets: dict[int, int] = {}
        for number in range(self._cluster.state.topics[self._topic].partition_count):
            next_offsets[number] = 0
            self._clients.history.note(Positioned(self._name, Place(self._topic, number), 0))
        while True:
            await asyncio.sleep(self._draw.expovariate(10))
            request = subscriber_pb2.FetchRequest(topic=self._topic, max_records=self._draw.choice((1, 10, 1000)))
            for number, offset in next_offsets.items():
                request.positions.add(topic=self._topic, partition=number, offset=offset)
            request.max_wait.FromMilliseconds(self._draw.choice((0, 100)))
            node_id = self._draw.randint(1, len(self._cluster.machines))
            try:
                data = await self._cluster.ask(node_id, partial(_fetch, request), timeout_s=TIMEOUT_S)
            except PostbusError as error:
                name = f"read {error.reason_name}"
                self._clients.refusals[name] = self._clients.refusals.get(name, 0) + 1
                continue
            except (ConnectionRefusedError, Lost):
                continue
            response = subscriber_pb2.FetchResponse.FromString(data)
            for delivered in response.batches:
                number, offset = delivered.delivery.partition, delivered.delivery.base_offset
                assert not delivered.offset_deltas, "nothing here is compacted"
                for record in delivered.batch.records:
                    self._clients.history.note(
                        Polled(self._name, Place(self._topic, number), offset, record.value.decode())
                    )
                    offset += 1
                next_offsets[number] = offset
            for position in response.next:
                next_offsets[position.partition] = max(next_offsets[position.partition], position.offset)


async def _fetch(request: subscriber_pb2.FetchRequest, node: Node) -> bytes:
    return await node.subscriber.fetch(request, call(TIMEOUT_S))
