"""TopicService: topics, their settings, partitions and offsets. Any node serves it.

What changes the cluster goes to the controller, what a leader has to say is asked of it, and what one partition can not
tell holds up no other.
"""

import contextlib
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from random import Random
from typing import TypeVar

from google.protobuf.message import Message
from postbus.v1 import topic_pb2

from broker import errors
from broker.clock import Clock
from broker.controller.commands import AddPartitions, Command, CreateTopic, DeleteTopic, UpdateTopic
from broker.controller.metadata_log import MetadataLog
from broker.controller.state import ClusterState, Topic
from broker.controller.topic_config import TopicDefaults, as_proto, effective
from broker.errors import PostbusError
from broker.replication.partition import Partition
from broker.replication.partitions import PartitionedTopic, Partitions
from broker.services import positions, requests
from broker.services.adapter import Call
from broker.services.paging import page
from broker.services.partition_client import PartitionClient
from broker.services.publishing import timestamp
from broker.services.together import together
from broker.stubs import partition_calls_pb2

M = TypeVar("M", bound=Message)

# A caller's time that is left for the way back.
_OWN_SHARE = 0.9
_TIMEOUT_S_MAX = 30.0


class TopicService:
    """Manages topics."""

    def __init__(
        self,
        *,
        metadata_log: MetadataLog,
        partitions: Partitions,
        client: PartitionClient,
        clock: Clock,
        random: Random,
        defaults: TopicDefaults,
    ) -> None:
        self._metadata_log = metadata_log
        self._partitions = partitions
        self._client = client
        self._clock = clock
        self._random = random
        self._defaults = defaults

    async def create_topic(self, request: topic_pb2.CreateTopicRequest, call: Call) -> topic_pb2.CreateTopicResponse:
        """CreateTopic: answers when each partition has a leader and this node knows it."""
        command = CreateTopic(
            name=request.name,
            topic_id=self._random.randbytes(16).hex(),
            now_us=self._clock.wall_us(),
            partition_count=request.partition_count,
            replication_factor=request.replication_factor,
            config=request.config,
            labels=dict(request.labels),
            seed=self._random.getrandbits(31),
        )
        state = await self._carry_out(command, call, validate_only=request.validate_only)
        return topic_pb2.CreateTopicResponse(topic=self._described(state.topics[request.name]))

    async def _carry_out(self, command: Command, call: Call, *, validate_only: bool = False) -> ClusterState:
        if validate_only:
            return self._metadata_log.preview(command)
        return (await self._metadata_log.execute(command, timeout_s=_time_for(call))).after

    async def get_topic(self, request: topic_pb2.GetTopicRequest, call: Call) -> topic_pb2.GetTopicResponse:
        """GetTopic."""
        return topic_pb2.GetTopicResponse(topic=self._described(self._existing("name", request.name)))

    async def list_topics(self, request: topic_pb2.ListTopicsRequest, call: Call) -> topic_pb2.ListTopicsResponse:
        """ListTopics: by name."""
        topics = self._metadata_log.state.topics
        names = sorted(
            name
            for name, topic in topics.items()
            if name.startswith(request.prefix) and (request.include_internal or not topic.internal)
        )
        shown, token = page(names, page_size=request.page_size, page_token=request.page_token)
        return topic_pb2.ListTopicsResponse(
            topics=[self._described(topics[name]) for name in shown], next_page_token=token
        )

    async def update_topic(self, request: topic_pb2.UpdateTopicRequest, call: Call) -> topic_pb2.UpdateTopicResponse:
        """UpdateTopic: the fields of the mask."""
        self._existing("name", request.name)
        command = UpdateTopic(
            name=request.name,
            paths=tuple(request.update_mask.paths),
            config=request.config,
            labels=dict(request.labels),
            etag=request.etag,
        )
        state = await self._carry_out(command, call)
        return topic_pb2.UpdateTopicResponse(topic=self._described(state.topics[request.name]))

    async def delete_topic(self, request: topic_pb2.DeleteTopicRequest, call: Call) -> topic_pb2.DeleteTopicResponse:
        """DeleteTopic: with its records and committed offsets."""
        self._existing("name", request.name)
        await self._carry_out(DeleteTopic(name=request.name, topic_id=request.topic_id), call)
        return topic_pb2.DeleteTopicResponse()

    async def add_partitions(
        self, request: topic_pb2.AddPartitionsRequest, call: Call
    ) -> topic_pb2.AddPartitionsResponse:
        """AddPartitions."""
        self._existing("name", request.name)
        command = AddPartitions(
            name=request.name,
            partition_count=request.partition_count,
            now_us=self._clock.wall_us(),
            seed=self._random.getrandbits(31),
        )
        state = await self._carry_out(command, call)
        return topic_pb2.AddPartitionsResponse(topic=self._described(state.topics[request.name]))

    async def list_partitions(
        self, request: topic_pb2.ListPartitionsRequest, call: Call
    ) -> topic_pb2.ListPartitionsResponse:
        """ListPartitions: by number, with what each node says of its copies."""
        led = self._led(request.topic)
        # Padded, so that the order of the names is that of the numbers.
        names = [f"{partition.number:010d}" for partition in led.partitions]
        shown, token = page(names, page_size=request.page_size, page_token=request.page_token)
        partitions = [led.partitions[int(name)] for name in shown]
        copies: dict[int, list[int]] = {}
        for partition in partitions:
            for node_id in partition.state.replicas if partition.state is not None else ():
                copies.setdefault(node_id, []).append(partition.number)
        facts = await self._client.describe(led.topic_id, copies)
        return topic_pb2.ListPartitionsResponse(
            partitions=[_described_partition(partition, facts) for partition in partitions],
            next_page_token=token,
        )

    async def delete_records(
        self, request: topic_pb2.DeleteRecordsRequest, call: Call
    ) -> topic_pb2.DeleteRecordsResponse:
        """DeleteRecords: at the leaders; each partition has its own outcome."""
        led = self._led(request.topic)
        if request.before.WhichOneof("at") is None:
            raise errors.invalid_field("before", "is required: say what is to go")
        positions.check_start("before", request.before)
        chosen = self._chosen(led, request.partitions)
        timeout_s = _time_for(call)

        async def delete(partition: Partition) -> topic_pb2.DeletedRecords:
            deleted = topic_pb2.DeletedRecords(partition=partition.number)
            try:
                before = await positions.resolve_start(partition, request.before, self._clock, timeout_s=timeout_s)
                if before > partition.high_watermark:
                    raise positions.out_of_range(partition, before)
                deleted.log_start_offset = await self._client.trim(led.topic_id, partition, before, timeout_s=timeout_s)
                if not positions.is_here(partition):
                    # What was read through this node before is forgotten here too.
                    with contextlib.suppress(PostbusError):
                        await partition.fresh_high_watermark(timeout_s)
            except PostbusError as error:
                deleted.failure.CopyFrom(error.failure())
                deleted.log_start_offset = partition.log.log_start_offset
            return deleted

        return topic_pb2.DeleteRecordsResponse(partitions=await self._each(chosen, delete))

    async def list_offsets(self, request: topic_pb2.ListOffsetsRequest, call: Call) -> topic_pb2.ListOffsetsResponse:
        """ListOffsets: resolves a place in each partition; the ends are the leaders'."""
        led = self._led(request.topic)
        positions.check_start("at", request.at)
        chosen = self._chosen(led, request.partitions)
        timeout_s = _time_for(call)

        async def look(partition: Partition) -> topic_pb2.PartitionOffsets:
            found = topic_pb2.PartitionOffsets(partition=partition.number)
            try:
                end = await positions.latest(partition, timeout_s)
                if request.HasField("at"):
                    wanted = await positions.resolve_start(partition, request.at, self._clock, timeout_s=timeout_s)
                    if not partition.log.log_start_offset <= wanted <= max(end, partition.high_watermark):
                        raise positions.out_of_range(partition, wanted)
                    found.offset = wanted
            except PostbusError as error:
                found.failure.CopyFrom(error.failure())
            found.log_start_offset = partition.log.log_start_offset
            found.high_watermark = partition.high_watermark
            return found

        return topic_pb2.ListOffsetsResponse(partitions=await self._each(chosen, look))

    async def _each(self, chosen: list[Partition], act: Callable[[Partition], Awaitable[M]]) -> list[M]:
        return await together(
            [partial(act, partition) for partition in chosen], at_once_max=self._client.settings.calls_at_once_max
        )

    # --- shapes ---

    def _existing(self, field: str, name: str) -> Topic:
        requests.check_name(field, name)
        topic = self._metadata_log.state.topics.get(name)
        if topic is None:
            raise errors.topic_not_found(name)
        return topic

    def _led(self, name: str) -> PartitionedTopic:
        requests.check_name("topic", name)
        return self._partitions.topic(name)

    def _chosen(self, led: PartitionedTopic, numbers: Iterable[int]) -> list[Partition]:
        wanted = list(numbers)
        if len(set(wanted)) != len(wanted):
            raise errors.invalid_field("partitions", "names a partition twice")
        return [led.partition(number) for number in wanted] or list(led.partitions)

    def _described(self, topic: Topic) -> topic_pb2.Topic:
        config = topic_pb2.TopicConfig.FromString(topic.config)
        holds = effective(config, replication_factor=topic.replication_factor, defaults=self._defaults)
        return topic_pb2.Topic(
            name=topic.name,
            topic_id=topic.topic_id,
            partition_count=topic.partition_count,
            replication_factor=topic.replication_factor,
            config=config,
            effective_config=as_proto(holds),
            create_time=timestamp(topic.create_time_us),
            etag=topic.etag,
            labels=dict(topic.labels),
            internal=topic.internal,
        )


def _time_for(call: Call) -> float:
    return min(max(call.timeout_s * _OWN_SHARE, 0.0), _TIMEOUT_S_MAX)


def _described_partition(
    partition: Partition, facts: dict[tuple[int, int], partition_calls_pb2.ReplicaFacts]
) -> topic_pb2.PartitionDescription:
    """facts: by (node, partition), of those that answered."""
    state = partition.state
    described = topic_pb2.PartitionDescription(
        partition=partition.number,
        leader_node_id=partition.leader_id,
        leader_epoch=max(partition.leader_epoch, 0),
        log_start_offset=partition.log.log_start_offset,
        high_watermark=partition.high_watermark,
    )
    leader = facts.get((partition.leader_id or 0, partition.number))
    if leader is not None:
        described.log_start_offset = max(leader.log_start_offset, described.log_start_offset)
        described.high_watermark = max(leader.high_watermark, described.high_watermark)
        described.size_bytes = leader.size_bytes
    for node_id in state.replicas if state is not None else ():
        assert state is not None
        copy = facts.get((node_id, partition.number))
        described.replicas.add(
            node_id=node_id,
            in_sync=node_id in state.isr,
            eligible=node_id in state.elr,
            reassigning=node_id in state.adding or node_id in state.removing,
            end_offset=copy.end_offset if copy is not None else 0,
            durable_end_offset=copy.durable_end_offset if copy is not None else 0,
            unknown=copy is None,
        )
    return described
