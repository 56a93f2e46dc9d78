"""What other nodes ask of the partitions that this node leads, for their own clients: publish, look up a request,
trim, describe, say how far they are.

Parts from one node for one partition are appended in the order in which they arrive, without a gap in the numbers of
their round; what is refused for now ends the round, so that nothing overtakes it. The receiving node has validated the
batch and speaks to the client; here only the log decides.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Final

from broker.errors import PostbusError, Reason
from broker.peers.calls import Calls, to_peer
from broker.peers.links import PeerId
from broker.replication.partition import Partition, Published, Role
from broker.replication.partitions import Partitions
from broker.services import placing
from broker.services.adapter import from_storage
from broker.services.forwarding import PUBLISH
from broker.services.publish_route import RETRY_AFTER_MS, Verdict, verdict_of
from broker.storage.batch import NewBatch
from broker.storage.errors import StorageError
from broker.stubs import partition_calls_pb2 as calls_pb2

FIND_REQUEST: Final = "partition.find_request"
TRIM: Final = "partition.trim"
DESCRIBE: Final = "partition.describe"
ENDS: Final = "partition.ends"


@dataclass(slots=True)
class _Door:
    """Where parts from one node for one partition come in."""

    lock: asyncio.Lock
    life: int = 0
    round: int = -1
    number: int = 0  # of the next part of the round


class PartitionCalls:
    """The answers."""

    def __init__(
        self,
        *,
        partitions: Partitions,
        has_room: Callable[[], bool],
        wait_for_room: Callable[[], Awaitable[None]],
        barrier: Callable[[], Awaitable[None]],
        still_leads: Callable[[Partition], Awaitable[bool]],
    ) -> None:
        """has_room, wait_for_room, barrier: of the node's append queue. still_leads: whether nobody else leads it."""
        self._partitions = partitions
        self._has_room = has_room
        self._wait_for_room = wait_for_room
        self._barrier = barrier
        self._still_leads = still_leads
        self._doors: dict[tuple[int, str, int], _Door] = {}

    def serve(self, calls: Calls) -> None:
        """Takes the questions."""
        calls.handle(PUBLISH, self.publish)
        calls.handle(FIND_REQUEST, self.find_request)
        calls.handle(TRIM, self.trim)
        calls.handle(DESCRIBE, self.describe)
        calls.handle(ENDS, self.ends)

    async def publish(self, peer: PeerId, payload: bytes) -> bytes:
        """ "partition.publish"."""
        part = calls_pb2.PublishPart.FromString(payload)
        try:
            partition = self._led(part.topic_id, part.partition)
            door = self._door(peer.node_id, part)
            # First come, first served: who waits here is not overtaken.
            async with door.lock:
                placed = await self._enter(door, partition, part)
                if placed is None:
                    if not await self._still_leads(partition):
                        raise _not_leader(partition)
                    placed = await self._enter(door, partition, part, confirmed=True)
                    assert placed is not None
            if placed:
                await until_safe(partition, max(one.end_offset for one in placed), part.acks)
        except (PostbusError, StorageError) as error:
            refusal = error if isinstance(error, PostbusError) else from_storage(error)
            return calls_pb2.PublishPartAnswer(error=to_peer(refusal).SerializeToString()).SerializeToString()
        return calls_pb2.PublishPartAnswer(ranges=_ranges(placed)).SerializeToString()

    async def _enter(
        self, door: _Door, partition: Partition, part: calls_pb2.PublishPart, *, confirmed: bool = False
    ) -> list[Published] | None:
        """None: it would be refused, which is to be confirmed first."""
        if not self._has_room():
            await self._wait_for_room()
        if part.request_id and placing.ids_missing(partition):
            await partition.load_request_ids()
        # From here to the append nothing waits.
        self._check_turn(door, partition, part)
        try:
            placed = placing.place(
                partition,
                NewBatch(
                    batch=part.batch,
                    record_count=part.record_count,
                    codec=part.codec,
                    request_id=part.request_id,
                    record_indexes=tuple(part.record_indexes),
                    producer_id=part.producer_id,
                    producer_epoch=part.producer_epoch,
                    producer_sequence=part.producer_sequence,
                ),
                end_offset=part.end_offset if part.HasField("end_offset") else None,
            )
        except PostbusError as error:
            if not confirmed and placing.is_to_be_confirmed(partition, error):
                return None
            if verdict_of(error) is Verdict.REFUSED and not error.kind.retriable:
                door.number += 1  # it blocks nothing
            raise
        door.number += 1
        return placed

    def _check_turn(self, door: _Door, partition: Partition, part: calls_pb2.PublishPart) -> None:
        if door.life != part.sender_life or part.round > door.round:
            door.life, door.round, door.number = part.sender_life, part.round, 0
        if partition.role is not Role.LEADER or partition.leader_epoch != part.leader_epoch:
            raise _not_leader(partition)
        if (part.round, part.number) != (door.round, door.number):
            raise PostbusError(
                Reason.ERROR_REASON_NO_LEADER,
                f"{partition.topic}/{partition.number}: an earlier record comes first; nothing was appended, publish"
                " it again",
                retry_after_ms=RETRY_AFTER_MS,
            )

    def _door(self, node_id: int, part: calls_pb2.PublishPart) -> _Door:
        key = (node_id, part.topic_id, part.partition)
        door = self._doors.get(key)
        if door is None:
            door = self._doors[key] = _Door(asyncio.Lock())
        return door

    async def find_request(self, peer: PeerId, payload: bytes) -> bytes:
        """ "partition.find_request": answers once what was found is safe."""
        question = calls_pb2.FindRequest.FromString(payload)
        answer = calls_pb2.FindRequestAnswer()
        for number in question.partitions:
            partition = self._led(question.topic_id, number)
            if placing.ids_missing(partition):
                await partition.load_request_ids()
            error = partition.writable_error()
            if error is not None:
                raise error
            found = placing.find(partition, question.request_id)
            if found:
                await until_safe(partition, max(part.end_offset for part in found), 0)
                answer.found.add(partition=number, ranges=_ranges(found))
        return answer.SerializeToString()

    async def trim(self, peer: PeerId, payload: bytes) -> bytes:
        """ "partition.trim": durable when it is answered."""
        question = calls_pb2.TrimPartition.FromString(payload)
        partition = self._led(question.topic_id, question.partition)
        assert partition.local is not None
        before = min(question.before_offset, partition.high_watermark)
        if before > partition.local.log_start_offset:
            partition.local.trim(before)
            partition.trimmed()
        await self._barrier()
        return calls_pb2.TrimPartitionAnswer(log_start_offset=partition.local.log_start_offset).SerializeToString()

    async def describe(self, peer: PeerId, payload: bytes) -> bytes:
        """ "partition.describe": every copy that is here."""
        question = calls_pb2.DescribePartitions.FromString(payload)
        answer = calls_pb2.DescribePartitionsAnswer()
        topic = self._partitions.find(question.topic_id)
        for number in question.partitions:
            if topic is None or number >= len(topic.partitions):
                continue
            partition = topic.partitions[number]
            local = partition.local
            if local is None:
                continue
            answer.replicas.add(
                partition=number,
                leader_epoch=partition.leader_epoch,
                leads=partition.role is Role.LEADER,
                log_start_offset=local.log_start_offset,
                end_offset=local.end_offset,
                durable_end_offset=local.durable_end_offset,
                high_watermark=partition.high_watermark,
                size_bytes=local.size_bytes,
            )
        return answer.SerializeToString()

    async def ends(self, peer: PeerId, payload: bytes) -> bytes:
        """ "partition.ends": of those that this node can speak for, at once."""
        question = calls_pb2.FindEnds.FromString(payload)
        answer = calls_pb2.FindEndsAnswer()
        topic = self._partitions.find(question.topic_id)
        known = topic.partitions if topic is not None else ()
        led = [known[number] for number in question.partitions if number < len(known) and known[number].leading]
        ends = await asyncio.gather(*(partition.fresh_high_watermark(0) for partition in led), return_exceptions=True)
        for partition, end in zip(led, ends, strict=True):
            if isinstance(end, int):
                start = partition.log.log_start_offset
                answer.ends.add(partition=partition.number, log_start_offset=start, high_watermark=end)
            elif not isinstance(end, PostbusError):  # after which it is asked again
                raise end
        return answer.SerializeToString()

    def topics_changed(self) -> None:
        """Topics may have gone: their doors go too."""
        self._doors = {key: door for key, door in self._doors.items() if self._partitions.find(key[1]) is not None}

    def _led(self, topic_id: str, number: int) -> Partition:
        topic = self._partitions.find(topic_id)
        if topic is None or number >= len(topic.partitions):
            # The asker knows it: this node is behind, or the topic went and the asker will hear of it.
            raise PostbusError(
                Reason.ERROR_REASON_NO_LEADER,
                "the node that should lead the partition does not know it; try again",
                retry_after_ms=RETRY_AFTER_MS,
            )
        partition = topic.partitions[number]
        if partition.role is not Role.LEADER:
            raise _not_leader(partition)
        return partition


async def until_safe(partition: Partition, end_offset: int, acks: int) -> None:
    """Returns when the log up to `end_offset` is as safe as `acks` asks; raises what `when_safe` tells."""
    safe: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def done(error: PostbusError | None) -> None:
        if safe.done():
            return
        if error is None:
            safe.set_result(None)
        else:
            safe.set_exception(error)

    partition.when_safe(end_offset, acks, done)
    await safe


def _not_leader(partition: Partition) -> PostbusError:
    return PostbusError(
        Reason.ERROR_REASON_NOT_LEADER,
        f"{partition.topic}/{partition.number} is led by another node, or in another epoch; nothing was appended",
        metadata={"leader_node_id": partition.leader_id or 0, "leader_epoch": partition.leader_epoch},
    )


def _ranges(placed: Iterable[Published]) -> list[calls_pb2.PlacedRange]:
    return [
        calls_pb2.PlacedRange(
            base_offset=part.base_offset,
            record_count=part.record_count,
            record_indexes=part.record_indexes,
            append_time_us=part.append_time_us,
            duplicate=part.duplicate,
        )
        for part in placed
    ]
