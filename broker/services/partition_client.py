"""Questions to the leaders of partitions, wherever they are, on behalf of this node's clients.

Owns the patience: an election is waited out within the caller's time, and what is asked about many partitions runs a
bounded number of calls at once. The answers are in partition_calls.py.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from broker.clock import Clock
from broker.errors import PostbusError, Reason
from broker.peers.calls import Calls, PeerUnreachable
from broker.replication.partition import Partition, Published
from broker.replication.partitions import PartitionedTopic
from broker.services.forwarding import published_of
from broker.services.partition_calls import DESCRIBE, ENDS, FIND_REQUEST, TRIM
from broker.services.publish_route import RETRY_AFTER_MS, Verdict, verdict_of
from broker.services.together import together
from broker.stubs import partition_calls_pb2 as calls_pb2


@dataclass(frozen=True, slots=True)
class PartitionClientSettings:
    """Bounds."""

    retry_interval_s: float = 0.05
    calls_at_once_max: int = 32  # of one request over many partitions
    describe_timeout_s: float = 2.0  # what a node does not tell by then is shown as unknown


class PartitionClient:
    """Asks leaders."""

    def __init__(self, calls: Calls, *, clock: Clock, settings: PartitionClientSettings | None = None) -> None:
        self._calls = calls
        self._clock = clock
        self.settings = settings or PartitionClientSettings()

    async def trim(self, topic_id: str, partition: Partition, before_offset: int, *, timeout_s: float) -> int:
        """Deletes the records before an offset, durably; the log start then."""
        question = calls_pb2.TrimPartition(topic_id=topic_id, partition=partition.number, before_offset=before_offset)
        answer = await self._ask_leader(partition, TRIM, question.SerializeToString(), timeout_s=timeout_s)
        return calls_pb2.TrimPartitionAnswer.FromString(answer).log_start_offset

    async def find_request(
        self, topic: PartitionedTopic, partitions: Sequence[Partition], request_id: bytes, timeout_s: float
    ) -> list[Published]:
        """What the logs hold of a request, all of it safe."""

        async def ask(partition: Partition) -> list[Published]:
            question = calls_pb2.FindRequest(
                topic_id=topic.topic_id, partitions=[partition.number], request_id=request_id
            )
            answer = await self._ask_leader(partition, FIND_REQUEST, question.SerializeToString(), timeout_s=timeout_s)
            found = calls_pb2.FindRequestAnswer.FromString(answer).found
            return [part for one in found for part in published_of(one.ranges, one.partition)]

        each = await together(
            [partial(ask, partition) for partition in partitions], at_once_max=self.settings.calls_at_once_max
        )
        return [part for found in each for part in found]

    async def describe(
        self, topic_id: str, copies: Mapping[int, Sequence[int]]
    ) -> dict[tuple[int, int], calls_pb2.ReplicaFacts]:
        """What nodes say of their copies; copies: partitions by node. By (node, partition); unreachable: left out."""

        async def ask(node_id: int, numbers: Sequence[int]) -> list[tuple[tuple[int, int], calls_pb2.ReplicaFacts]]:
            question = calls_pb2.DescribePartitions(topic_id=topic_id, partitions=numbers)
            try:
                answer = await self._calls.call(
                    node_id, DESCRIBE, question.SerializeToString(), timeout_s=self.settings.describe_timeout_s
                )
            except (PeerUnreachable, PostbusError, TimeoutError):
                return []
            replicas = calls_pb2.DescribePartitionsAnswer.FromString(answer).replicas
            return [((node_id, facts.partition), facts) for facts in replicas]

        each = await together(
            [partial(ask, node_id, numbers) for node_id, numbers in sorted(copies.items())],
            at_once_max=self.settings.calls_at_once_max,
        )
        return dict(item for told in each for item in told)

    async def ends(
        self, topic_id: str, partitions: Sequence[Partition], *, timeout_s: float
    ) -> dict[int, calls_pb2.PartitionEnds]:
        """What may be read of partitions of a topic, by number: at least all that was acknowledged before.

        Leaders are asked, each once for all of its partitions. Raises NO_LEADER if one says nothing in time.
        """
        deadline = self._clock.monotonic() + timeout_s
        found: dict[int, calls_pb2.PartitionEnds] = {}
        while True:
            asked: dict[int, list[Partition]] = {}
            for partition in partitions:
                if partition.number not in found and partition.leader_id is not None:
                    asked.setdefault(partition.leader_id, []).append(partition)
            left_s = max(deadline - self._clock.monotonic(), 0.0)
            told = await together(
                [partial(self._ask_ends, topic_id, node_id, asked[node_id], left_s) for node_id in sorted(asked)],
                at_once_max=self.settings.calls_at_once_max,
            )
            for ends in told:
                found.update(ends)
            missing = [partition for partition in partitions if partition.number not in found]
            if not missing:
                return found
            if self._clock.monotonic() + self.settings.retry_interval_s >= deadline:
                raise _unreachable(missing[0], "its leader does not say how far it is")
            await asyncio.sleep(self.settings.retry_interval_s)

    async def _ask_ends(
        self, topic_id: str, node_id: int, partitions: Sequence[Partition], timeout_s: float
    ) -> dict[int, calls_pb2.PartitionEnds]:
        question = calls_pb2.FindEnds(topic_id=topic_id, partitions=[partition.number for partition in partitions])
        try:
            payload = await self._calls.call(node_id, ENDS, question.SerializeToString(), timeout_s=timeout_s)
        except (PeerUnreachable, PostbusError, TimeoutError):
            return {}
        by_number = {partition.number: partition for partition in partitions}
        found: dict[int, calls_pb2.PartitionEnds] = {}
        for ends in calls_pb2.FindEndsAnswer.FromString(payload).ends:
            found[ends.partition] = ends
            by_number[ends.partition].remote_news(
                high_watermark=ends.high_watermark, log_start_offset=ends.log_start_offset
            )
        return found

    async def _ask_leader(self, partition: Partition, method: str, payload: bytes, *, timeout_s: float) -> bytes:
        """Asks whoever leads, again and again until it answers or the time is over. For what may be asked twice."""
        deadline = self._clock.monotonic() + timeout_s
        why: PostbusError | None = None
        while (left_s := deadline - self._clock.monotonic()) > 0:
            leader_id = partition.leader_id
            if leader_id is not None:
                try:
                    return await self._calls.call(leader_id, method, payload, timeout_s=left_s)
                except PostbusError as error:
                    if verdict_of(error) is not Verdict.NOT_APPENDED:
                        raise
                    why = error
                except PeerUnreachable as unreachable:
                    why = _unreachable(partition, f"node {unreachable.node_id} leads it and is not reached")
                except TimeoutError:
                    why = _unreachable(partition, f"node {leader_id} leads it and did not answer in time")
                    break
            if partition.deleted:
                break
            await asyncio.sleep(min(self.settings.retry_interval_s, max(left_s, 0.0)))
        raise why or _unreachable(partition, "nobody leads it now")


def _unreachable(partition: Partition, why: str) -> PostbusError:
    return PostbusError(
        Reason.ERROR_REASON_NO_LEADER,
        f"{partition.topic}/{partition.number}: {why}; try again",
        retry_after_ms=RETRY_AFTER_MS,
    )
