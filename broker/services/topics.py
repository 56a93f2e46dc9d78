"""TopicService: topics, their settings, partitions and offsets."""

import secrets
from collections.abc import Awaitable, Callable, Iterable

from postbus.v1 import topic_pb2

from broker import errors
from broker.clock import Clock
from broker.controller.decisions import AddPartitions, Command, CreateTopic, DeleteTopic, UpdateTopic
from broker.controller.metadata_log import MetadataLog
from broker.controller.state import ClusterState, Topic
from broker.controller.topic_config import TopicDefaults, as_proto, effective
from broker.errors import PostbusError
from broker.replication.partition import Partition
from broker.replication.partitions import LedTopic, Partitions
from broker.services import positions, requests
from broker.services.adapter import Call
from broker.services.paging import page
from broker.services.publishing import timestamp


class TopicService:
    """Manages topics."""

    def __init__(
        self,
        *,
        metadata_log: MetadataLog,
        partitions: Partitions,
        barrier: Callable[[], Awaitable[None]],
        clock: Clock,
        defaults: TopicDefaults,
        node_id: int,
    ) -> None:
        self._metadata_log = metadata_log
        self._partitions = partitions
        self._barrier = barrier
        self._clock = clock
        self._defaults = defaults
        self._node_id = node_id

    async def create_topic(self, request: topic_pb2.CreateTopicRequest, call: Call) -> topic_pb2.CreateTopicResponse:
        """CreateTopic: answers when it can be published to."""
        command = CreateTopic(
            name=request.name,
            topic_id=secrets.token_hex(16),
            now_us=self._clock.wall_us(),
            partition_count=request.partition_count,
            replication_factor=request.replication_factor,
            config=request.config,
            labels=dict(request.labels),
        )
        state = await self._carry_out(command, validate_only=request.validate_only)
        return topic_pb2.CreateTopicResponse(topic=self._described(state.topics[request.name]))

    async def _carry_out(self, command: Command, *, validate_only: bool = False) -> ClusterState:
        if validate_only:
            return self._metadata_log.preview(command)
        return (await self._metadata_log.execute(command)).after

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
        state = await self._carry_out(command)
        return topic_pb2.UpdateTopicResponse(topic=self._described(state.topics[request.name]))

    async def delete_topic(self, request: topic_pb2.DeleteTopicRequest, call: Call) -> topic_pb2.DeleteTopicResponse:
        """DeleteTopic: with its records and committed offsets."""
        self._existing("name", request.name)
        await self._carry_out(DeleteTopic(name=request.name, topic_id=request.topic_id))
        return topic_pb2.DeleteTopicResponse()

    async def add_partitions(
        self, request: topic_pb2.AddPartitionsRequest, call: Call
    ) -> topic_pb2.AddPartitionsResponse:
        """AddPartitions."""
        self._existing("name", request.name)
        state = await self._carry_out(AddPartitions(name=request.name, partition_count=request.partition_count))
        return topic_pb2.AddPartitionsResponse(topic=self._described(state.topics[request.name]))

    async def list_partitions(
        self, request: topic_pb2.ListPartitionsRequest, call: Call
    ) -> topic_pb2.ListPartitionsResponse:
        """ListPartitions: by number."""
        led = self._led(request.topic)
        # Padded, so that the order of the names is that of the numbers.
        names = [f"{partition.number:010d}" for partition in led.partitions]
        shown, token = page(names, page_size=request.page_size, page_token=request.page_token)
        return topic_pb2.ListPartitionsResponse(
            partitions=[self._described_partition(led.partitions[int(name)]) for name in shown],
            next_page_token=token,
        )

    async def delete_records(
        self, request: topic_pb2.DeleteRecordsRequest, call: Call
    ) -> topic_pb2.DeleteRecordsResponse:
        """DeleteRecords: each partition has its own outcome."""
        led = self._led(request.topic)
        if request.before.WhichOneof("at") is None:
            raise errors.invalid_field("before", "is required: say what is to go")
        positions.check_start("before", request.before)
        chosen = self._chosen(led, request.partitions)
        response = topic_pb2.DeleteRecordsResponse()
        for partition in chosen:
            deleted = response.partitions.add(partition=partition.number)
            try:
                before = await positions.resolve_start(partition, request.before, self._clock)
                if before > partition.high_watermark:
                    raise positions.out_of_range(partition, before)
                if before > partition.log.log_start_offset:
                    partition.log.trim(before)
                    partition.trimmed()
            except PostbusError as error:
                deleted.failure.CopyFrom(error.failure())
            deleted.log_start_offset = partition.log.log_start_offset
        await self._barrier()
        return response

    async def list_offsets(self, request: topic_pb2.ListOffsetsRequest, call: Call) -> topic_pb2.ListOffsetsResponse:
        """ListOffsets: resolves a place in each partition."""
        led = self._led(request.topic)
        positions.check_start("at", request.at)
        response = topic_pb2.ListOffsetsResponse()
        for partition in self._chosen(led, request.partitions):
            found = response.partitions.add(partition=partition.number)
            if request.HasField("at"):
                try:
                    wanted = await positions.resolve_start(partition, request.at, self._clock)
                    if not partition.log.log_start_offset <= wanted <= partition.high_watermark:
                        raise positions.out_of_range(partition, wanted)
                    found.offset = wanted
                except PostbusError as error:
                    found.failure.CopyFrom(error.failure())
            found.log_start_offset = partition.log.log_start_offset
            found.high_watermark = partition.high_watermark
        return response

    # --- shapes ---

    def _existing(self, field: str, name: str) -> Topic:
        requests.check_name(field, name)
        topic = self._metadata_log.state.topics.get(name)
        if topic is None:
            raise errors.topic_not_found(name)
        return topic

    def _led(self, name: str) -> LedTopic:
        requests.check_name("topic", name)
        return self._partitions.topic(name)

    def _chosen(self, led: LedTopic, numbers: Iterable[int]) -> list[Partition]:
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

    def _described_partition(self, partition: Partition) -> topic_pb2.PartitionDescription:
        return topic_pb2.PartitionDescription(
            partition=partition.number,
            leader_node_id=self._node_id,
            leader_epoch=partition.leader_epoch,
            replicas=[
                topic_pb2.ReplicaDescription(
                    node_id=self._node_id,
                    in_sync=True,
                    end_offset=partition.log.end_offset,
                    durable_end_offset=partition.log.durable_end_offset,
                )
            ],
            log_start_offset=partition.log.log_start_offset,
            high_watermark=partition.high_watermark,
            size_bytes=partition.log.size_bytes,
        )
