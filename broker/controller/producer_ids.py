"""Producer ids and epochs: ids are handed out one by one, reserved in the metadata log a block at a time.

An id, or an epoch of one, is never given twice. What is left of a block when the node stops is lost, which costs
nothing: there are 2^63.
"""

import asyncio
from typing import Final

from broker.controller.commands import RaiseProducerEpoch, ReserveProducerIds
from broker.controller.metadata_log import MetadataLog

BLOCK_IDS: Final = 1_000


class ProducerIds:
    """Ids from blocks that only this node has."""

    def __init__(self, metadata_log: MetadataLog, *, block_ids: int = BLOCK_IDS) -> None:
        self._metadata_log = metadata_log
        self._block_ids = block_ids
        self._next_id = 0
        self._end_id = 0
        self._reserving = asyncio.Lock()

    def handed_out(self, producer_id: int) -> bool:
        """Whether anyone may hold it, as far as this node knows.

        What is left of other blocks counts: another node may have handed it out.
        """
        waits = self._next_id <= producer_id < self._end_id
        return 0 < producer_id < self._metadata_log.state.next_producer_id and not waits

    async def take(self) -> int:
        """An id that nobody else has or ever had. Raises what `MetadataLog.execute` does."""
        async with self._reserving:
            while self._next_id == self._end_id:
                # Committed before the first of the block is told to anyone. After a snapshot from the controller the
                # block that came of it is not known; then another one is asked for.
                executed = await self._metadata_log.execute(ReserveProducerIds(count=self._block_ids))
                self._next_id = executed.before.next_producer_id
                self._end_id = executed.after.next_producer_id
            producer_id = self._next_id
            self._next_id += 1
            return producer_id

    async def next_epoch(self, producer_id: int, epoch: int) -> int:
        """An epoch of the producer that nobody else has or ever had, for whoever holds its latest, `epoch`.

        Raises PRODUCER_FENCED if that is not the latest any more, and what `MetadataLog.execute` does.
        """
        executed = await self._metadata_log.execute(RaiseProducerEpoch(producer_id=producer_id, epoch=epoch))
        return executed.after.producer_epochs[producer_id]
