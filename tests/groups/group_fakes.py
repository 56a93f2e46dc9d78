"""Replicated logs and topics in memory, as groups need them."""

import asyncio
from collections.abc import Callable, Sequence
from itertools import count
from types import SimpleNamespace

from postbus.v1 import record_pb2, subscriber_pb2

from broker import errors
from broker.errors import PostbusError
from broker.groups.calls import Topic
from broker.storage.batch import NewBatch, StoredBatch
from broker.storage.envelope import encode_indexes


class SharedLog:
    """One partition of the groups topic, as all nodes have it. `sync_by_itself` off: nothing is safe before `sync`."""

    def __init__(self, number: int = 0) -> None:
        self.number = number
        self.leader_id: int | None = 1
        self.leader_epoch = 0
        self.end_offset = 0
        self.high_watermark = 0
        self.sync_by_itself = True
        self.refusal: PostbusError | None = None  # of appends
        self.unwritable: PostbusError | None = None
        self.appends = 0
        self.records: list[tuple[int, bytes, bytes | None]] = []  # offset, key, value
        self.views: dict[int, FakePartition] = {}

    def on(self, node_id: int) -> "FakePartition":
        """The partition as that node sees it."""
        if node_id not in self.views:
            self.views[node_id] = FakePartition(self, node_id)
        return self.views[node_id]

    def sync(self, offset: int | None = None) -> None:
        """Makes all up to an offset safe; None: all."""
        self.high_watermark = max(self.high_watermark, self.end_offset if offset is None else offset)
        self.wake()

    def move(self, leader_id: int | None, *, keep: int | None = None) -> None:
        """Another leader, or the same one anew. keep: of what is not safe, so many records survive; None: all."""
        if keep is not None:
            self.end_offset = min(self.end_offset, self.high_watermark + keep)
            self.records = [record for record in self.records if record[0] < self.end_offset]
        self.leader_id = leader_id
        self.leader_epoch += 1
        self.wake()
        if self.sync_by_itself and leader_id is not None:
            asyncio.get_running_loop().call_soon(self.sync)

    def wake(self) -> None:
        """Listeners of all nodes."""
        for view in self.views.values():
            for listener in list(view.listeners):
                listener()

    def compact(self) -> None:
        """Keeps the newest record of each key; deletions go, too."""
        newest = {key: offset for offset, key, _ in self.records}
        self.records = [
            (offset, key, value) for offset, key, value in self.records if newest[key] == offset and value is not None
        ]

    def table(self) -> dict[bytes, bytes]:
        """What compaction would leave."""
        newest = {key: value for _, key, value in self.records}
        return {key: value for key, value in newest.items() if value is not None}


class FakePartition:
    """One node's view of a SharedLog."""

    log_start_offset = 0

    def __init__(self, shared: SharedLog, node_id: int) -> None:
        self.shared = shared
        self.node_id = node_id
        self.number = shared.number
        self.listeners: dict[Callable[[], None], None] = {}
        self.failing: Exception | None = None  # of reads
        self.reads = 0

    @property
    def leader_id(self) -> int | None:
        return self.shared.leader_id

    @property
    def leader_epoch(self) -> int:
        return self.shared.leader_epoch

    @property
    def leading(self) -> bool:
        return self.shared.leader_id == self.node_id

    @property
    def high_watermark(self) -> int:
        return self.shared.high_watermark

    @property
    def end_offset(self) -> int:
        return self.shared.end_offset

    @property
    def local(self) -> "FakePartition":
        return self

    @property
    def log(self) -> "FakePartition":
        return self

    def writable_error(self) -> PostbusError | None:
        return self.shared.unwritable

    def append(self, new: NewBatch) -> SimpleNamespace:
        shared = self.shared
        assert self.leading
        if shared.refusal is not None:
            raise shared.refusal
        records = record_pb2.RecordBatch.FromString(new.batch).records
        assert len(records) == new.record_count
        base_offset = shared.end_offset
        for record in records:
            value = record.value if record.HasField("value") else None
            shared.records.append((shared.end_offset, record.key, value))
            shared.end_offset += 1
        shared.appends += 1
        if shared.sync_by_itself:
            asyncio.get_running_loop().call_soon(shared.sync)
        return SimpleNamespace(base_offset=base_offset)

    async def read(self, offset: int, *, end_offset: int, max_bytes: int) -> list[StoredBatch]:
        """Two batches at most, with gaps where compaction took records."""
        self.reads += 1
        await asyncio.sleep(0)
        if self.failing is not None:
            raise self.failing
        found = [record for record in self.shared.records if offset <= record[0] < end_offset][:8]
        return [_stored(part) for part in (found[:4], found[4:]) if part]

    def add_listener(self, wake: Callable[[], None]) -> None:
        self.listeners[wake] = None

    def remove_listener(self, wake: Callable[[], None]) -> None:
        self.listeners.pop(wake, None)


def _stored(records: list[tuple[int, bytes, bytes | None]]) -> StoredBatch:
    batch = record_pb2.RecordBatch(records=[record_pb2.Record(key=key, value=value) for _, key, value in records])
    base, last = records[0][0], records[-1][0]
    contiguous = last - base + 1 == len(records)
    return StoredBatch(
        base_offset=base,
        end_offset=last + 1,
        record_count=len(records),
        append_time_us=0,
        leader_epoch=0,
        codec=0,
        envelope=batch.SerializeToString(),
        batch_begin=0,
        deltas=b"" if contiguous else encode_indexes([offset - base for offset, _, _ in records]),
    )


class FakeTopics:
    """Topics with a high watermark of 100 everywhere."""

    def __init__(self) -> None:
        self.topics: dict[str, Topic] = {}
        self.resolved: list[tuple[str, int, subscriber_pb2.StartPosition]] = []
        self.failing = False
        self.leads_all = True
        self._ids = count(1)

    def create(self, name: str, partition_count: int) -> Topic:
        self.topics[name] = Topic(name, f"{name}-{next(self._ids)}", partition_count)
        return self.topics[name]

    def by_name(self, name: str) -> Topic | None:
        return self.topics.get(name)

    def by_id(self, topic_id: str) -> Topic | None:
        return next((topic for topic in self.topics.values() if topic.topic_id == topic_id), None)

    async def resolve(self, topic_id: str, partition: int, start: subscriber_pb2.StartPosition) -> int:
        await asyncio.sleep(0)
        if self.failing:
            raise errors.topic_not_found(topic_id)
        self.resolved.append((topic_id, partition, start))
        if start.WhichOneof("at") == "offset":
            return start.offset
        return 100 if start.edge == subscriber_pb2.LOG_EDGE_LATEST else 0

    def high_watermark(self, topic_id: str, partition: int) -> int:
        topic = self.by_id(topic_id)
        if topic is None:
            raise errors.topic_not_found(topic_id)
        if not 0 <= partition < topic.partition_count:
            raise errors.partition_not_found(topic.name, partition, topic.partition_count)
        return 100

    async def fresh_high_watermark(self, topic_id: str, partition: int) -> int:
        await asyncio.sleep(0)
        return self.high_watermark(topic_id, partition)

    async def refresh(self, keys: Sequence[tuple[str, int]]) -> None:
        self.refreshed = list(keys)

    def end_offset(self, topic_id: str, partition: int) -> int | None:
        topic = self.by_id(topic_id)
        led = self.leads_all and topic is not None and 0 <= partition < topic.partition_count
        return 100 if led else None
