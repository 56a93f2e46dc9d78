"""SIGKILL while topics, records and groups come and go: what was answered holds after the restart, and nothing else.

Each worker is alone with its names, so it knows after each answer what must be; where an answer was lost it knows the
two states that may be, looks which it is, and goes on from there.
"""

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from broker_process import BrokerProcess
from bus import CALL_TIMEOUT_S, RETRIED, Bus, Recorder
from google.protobuf.message import Message
from postbus.v1 import group_pb2, publisher_pb2, record_pb2, subscriber_pb2, topic_pb2
from subscribers import Member

SEED = 42
KILLS = 3
OPERATIONS_MIN = 60
ENVIRONMENT = {"POSTBUS_DISK_FREE_MIN_BYTES": "16MiB", "POSTBUS_MEMBER_RESUME_AFTER_NODE_LOSS_SECONDS": "0.2"}


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[BrokerProcess]:
    process = BrokerProcess(tmp_path / "data", environment=ENVIRONMENT)
    yield process
    await process.close()


class Churn:
    """What all workers share: the connection, and a count of what was answered."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.stop = asyncio.Event()
        self.done = 0
        self.lost_answers = 0
        self.recorder = Recorder()

    async def once(self, method: object, request: Message) -> Message | None:
        """A call; None: its answer was lost."""
        await self.bus.broker.ready.wait()
        self.recorder.sent(1)
        try:
            answer: Message = await method(request, timeout=CALL_TIMEOUT_S, wait_for_ready=True)  # type: ignore[operator]
        except grpc.aio.AioRpcError as error:
            if error.code() not in RETRIED:
                raise
            self.lost_answers += 1
            return None
        finally:
            self.recorder.sent(-1)
        self.done += 1
        return answer

    async def find(self, name: str) -> topic_pb2.Topic | None:
        """The topic as it is."""
        try:
            answer = await self.bus.until_done(self.bus.topics.GetTopic, topic_pb2.GetTopicRequest(name=name))
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return None
            raise
        found: topic_pb2.Topic = answer.topic
        return found


async def topics_come_and_go(churn: Churn, name: str, seed: int) -> None:
    """Create, publish, delete, again by the same name: never an old record in a new topic."""
    chance = random.Random(f"{name} {seed}")
    topics = churn.bus.topics
    round_number = 0
    while not churn.stop.is_set():
        round_number += 1
        count = chance.randrange(1, 4)
        created = await churn.once(
            topics.CreateTopic,
            topic_pb2.CreateTopicRequest(name=name, partition_count=count, labels={"round": str(round_number)}),
        )
        found = await churn.find(name)
        if created is None and found is None:
            continue
        assert found is not None, f"{name} was created, and is not there"
        assert (found.partition_count, found.labels["round"]) == (count, str(round_number))
        offsets = await churn.bus.until_done(topics.ListOffsets, topic_pb2.ListOffsetsRequest(topic=name))
        assert [part.high_watermark for part in offsets.partitions] == [0] * count, f"{name} has old records"
        request = publisher_pb2.PublishRequest(topic=name, partition=0, request_id=f"{name} {round_number}")
        request.batch.records.add(value=b"%d" % round_number)
        answer = await churn.bus.until_done(churn.bus.publisher.Publish, request)
        assert answer.ranges[0].base_offset == 0, f"{name} has old records"
        deleted = await churn.once(topics.DeleteTopic, topic_pb2.DeleteTopicRequest(name=name))
        after = await churn.find(name)
        if deleted is None and after is not None:
            await churn.bus.until_done(topics.DeleteTopic, topic_pb2.DeleteTopicRequest(name=name))
            after = await churn.find(name)
        assert after is None, f"{name} was deleted, and is there"


async def records_are_deleted(churn: Churn, name: str) -> None:
    """Log starts never go back, and what stays stays."""
    await churn.bus.until_done(churn.bus.topics.CreateTopic, topic_pb2.CreateTopicRequest(name=name, partition_count=1))
    end = start = 0
    while not churn.stop.is_set():
        request = publisher_pb2.PublishRequest(topic=name, request_id=f"{end}")
        for number in range(end, end + 5):
            request.batch.records.add(value=b"%d" % number)
        await churn.bus.until_done(churn.bus.publisher.Publish, request)
        end += 5
        before = subscriber_pb2.StartPosition(offset=end - 2)
        deleted = await churn.once(
            churn.bus.topics.DeleteRecords, topic_pb2.DeleteRecordsRequest(topic=name, before=before)
        )
        offsets = await churn.bus.until_done(churn.bus.topics.ListOffsets, topic_pb2.ListOffsetsRequest(topic=name))
        (found,) = offsets.partitions
        assert found.log_start_offset in ((end - 2,) if deleted is not None else (start, end - 2))
        assert found.high_watermark == end
        start = found.log_start_offset
        fetched = await churn.bus.until_done(
            churn.bus.subscriber.Fetch,
            subscriber_pb2.FetchRequest(
                topic=name, positions=[record_pb2.Position(topic=name, partition=0, offset=start)]
            ),
        )
        values = [int(record.value) for batch in fetched.batches for record in batch.batch.records]
        assert values == list(range(start, end)), "a record above the log start went, or one below it came back"


async def offsets_are_committed(churn: Churn, group: str, topic: str, end_offset: int) -> None:
    """Settings and offsets of a group without members: what was answered is what is read."""
    committed = 0
    await churn.bus.until_done(
        churn.bus.groups.CreateGroup,
        group_pb2.CreateGroupRequest(name=group, config=group_pb2.GroupConfig(start_at=_latest())),
    )
    while not churn.stop.is_set():
        wanted = (committed + 7) % (end_offset + 1)
        position = record_pb2.Position(topic=topic, partition=0, offset=wanted)
        place = group_pb2.Assignment(position=position)
        answer = await churn.once(
            churn.bus.groups.CommitOffsets, group_pb2.CommitOffsetsRequest(group=group, offsets=[place])
        )
        found = await churn.bus.until_done(
            churn.bus.groups.GetCommittedOffsets, group_pb2.GetCommittedOffsetsRequest(group=group)
        )
        now = found.offsets[0].offset if found.offsets else 0
        assert now in ((wanted,) if answer is not None else (committed, wanted))
        committed = now
        described = await churn.bus.until_done(churn.bus.groups.GetGroup, group_pb2.GetGroupRequest(name=group))
        assert described.group.config.start_at == _latest()


async def members_come_and_go(churn: Churn, group: str, topic: str, seed: int) -> None:
    """Members join, get their partitions, and leave, while others stay."""
    number = 0
    while not churn.stop.is_set():
        number += 1
        member = Member(
            churn.bus, churn.recorder, f"{group}-{number}", group, [topic], seed=seed, resumes=number % 2 == 0
        )
        running = asyncio.create_task(member.run())
        try:
            await churn.recorder.until(lambda: bool(member.assigned))  # noqa: B023 - awaited within the turn
            await member.leave()
            await running
        finally:
            running.cancel()
        churn.done += 1


async def test_metadata_survives_kills(broker: BrokerProcess) -> None:
    """Topics, log starts, group settings and offsets are as answered; two restarts in a row show the same."""
    await broker.start()
    bus = Bus(broker)
    churn = Churn(bus)
    await bus.until_done(bus.topics.CreateTopic, topic_pb2.CreateTopicRequest(name="stays", partition_count=4))
    request = publisher_pb2.PublishRequest(topic="stays", partition=0, request_id="all")
    request.batch.records.extend(record_pb2.Record(value=b"%d" % number) for number in range(50))
    await bus.until_done(bus.publisher.Publish, request)
    chance = random.Random(SEED)
    in_flight_at_kills = 0
    async with asyncio.TaskGroup() as tasks:
        workers = [
            *(tasks.create_task(topics_come_and_go(churn, f"topic-{number}", SEED)) for number in range(3)),
            tasks.create_task(records_are_deleted(churn, "trimmed")),
            tasks.create_task(offsets_are_committed(churn, "outside", "stays", 50)),
            *(tasks.create_task(members_come_and_go(churn, "churning", "stays", number)) for number in range(2)),
        ]
        for _ in range(KILLS):
            wanted = churn.done + chance.choice((5, 30, 60))
            await churn.recorder.until(lambda: churn.done >= wanted and churn.recorder.in_flight > 0)  # noqa: B023
            in_flight_at_kills += churn.recorder.in_flight
            await broker.kill()
            await broker.start()
        churn.stop.set()
        await asyncio.wait(workers)
    assert churn.done >= OPERATIONS_MIN and in_flight_at_kills >= KILLS, "too little happened to prove anything"
    found = churn.recorder.history.check(groups=())
    assert not [anomaly for anomaly in found if anomaly.kind in {"non-monotonic poll", "inconsistent offset"}]
    before = await _everything(bus)
    await broker.kill()
    await broker.start()
    assert await _everything(bus) == before
    await bus.channel.close()


async def _everything(bus: Bus) -> list[bytes]:
    """All that is to survive, as bytes."""
    topics = await bus.until_done(bus.topics.ListTopics, topic_pb2.ListTopicsRequest(include_internal=True))
    seen: list[Message] = [*topics.topics]
    for name in [topic.name for topic in topics.topics if not topic.internal]:
        seen += [await bus.until_done(bus.topics.ListOffsets, topic_pb2.ListOffsetsRequest(topic=name))]
    groups = await bus.until_done(bus.groups.ListGroups, group_pb2.ListGroupsRequest())
    for group in groups.groups:
        described = await bus.until_done(bus.groups.GetGroup, group_pb2.GetGroupRequest(name=group.name))
        seen += [described.group.config, *described.group.offsets]
    return [message.SerializeToString(deterministic=True) for message in seen]


def _latest() -> subscriber_pb2.StartPosition:
    return subscriber_pb2.StartPosition(edge=subscriber_pb2.LOG_EDGE_LATEST)
