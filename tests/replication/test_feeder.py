"""What a follower is sent when it is no longer in its leader's memory."""

import asyncio
from typing import Any

from broker.clock import ManualClock
from broker.peers.links import PeerId
from broker.replication.feeder import Feeder
from broker.replication.settings import ReplicationSettings
from broker.storage.batch import StoredBatch
from broker.storage.envelope import encode
from broker.stubs import replication_pb2

LOG_ID = 7


class Disk:
    """A log of one batch, which is not in memory. Reading takes a turn of the loop, in which it comes to be written."""

    log_start_offset = 0
    end_offset = 1
    written_end_offset = 0

    def __init__(self, batch: StoredBatch) -> None:
        self.reads = 0
        self._batch = batch
        self.on_written: Any = None

    def end_offset_for_epoch(self, epoch: int) -> Any:
        return None

    def read_tail_envelopes(self, offset: int, **bounds: int) -> None:
        return None

    def written(self) -> None:
        self.written_end_offset = 1
        self.on_written()

    async def read_envelopes(self, offset: int, *, end_offset: int, max_bytes: int) -> list[StoredBatch]:
        self.reads += 1
        await asyncio.sleep(0)
        if not self.written_end_offset:
            self.written()
        await asyncio.sleep(0)
        return [self._batch] if end_offset > offset else []


class Led:
    """The partition, led here; node 2 follows."""

    log_id = LOG_ID
    leader_epoch = 1
    leading = True
    high_watermark = replicated_offset = 0

    def __init__(self, local: Disk) -> None:
        self.local = local
        self.feeds: list[Any] = []
        local.on_written = self.progressed

    def progressed(self) -> None:
        """As Partition does."""
        for feed in self.feeds:
            if feed.waits_for_disk:
                feed.waits_for_disk = False
                feed.wake()

    def follower_in_sync(self, node_id: int) -> bool:
        return True

    def follower_may_fetch(self, node_id: int, *, partition_epoch: int) -> bool:
        return True

    def follower_fetched(self, node_id: int, **facts: int) -> None: ...

    def follower_lost(self, node_id: int) -> None: ...


class Network:
    """Transport and link in one: what is sent is kept."""

    has_room = True
    peer = PeerId(2, "store-2")

    def __init__(self) -> None:
        self.sent: list[replication_pb2.PullResponse] = []

    def serve(self, service: str, accept: Any) -> None:
        self.accept = accept

    def send(self, message: bytes) -> None:
        self.sent.append(replication_pb2.PullResponse.FromString(message))

    def close(self) -> None: ...


async def test_what_comes_to_be_written_while_it_is_looked_for_is_sent() -> None:
    """Neither in memory nor written yet: it waits for the disk, however the two meet, and for no further append."""
    envelope, _ = encode(b"x", base_offset=0, record_count=1, append_time_us=1, leader_epoch=1)
    for writes_before_read in (False, True):
        disk = Disk(StoredBatch.of_envelope(envelope))
        partition, network = Led(disk), Network()
        feeder = Feeder(
            transport=network,  # type: ignore[arg-type]
            clock=ManualClock(),
            settings=ReplicationSettings(),
            partitions={LOG_ID: partition},  # type: ignore[dict-item]
        )
        link = network.accept(network)
        if writes_before_read:
            disk.written()
        start = replication_pb2.PullStart(log_id=LOG_ID, leader_epoch=1, session=1, fetch_offset=0, last_epoch=-1)
        link.received(
            replication_pb2.PullRequest(broker_epoch=5, starts=[start], credit_bytes=1000).SerializeToString()
        )
        for _ in range(10):
            await asyncio.sleep(0)
        if not disk.written_end_offset:
            disk.written()
        for _ in range(10):
            await asyncio.sleep(0)
        assert [bytes(one) for sent in network.sent for part in sent.partitions for one in part.envelopes] == [envelope]
        await feeder.close()
