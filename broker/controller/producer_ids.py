"""Producer ids: handed out one by one, reserved in the metadata log a block at a time.

An id is never given twice. What is left of a block when the node stops is lost, which costs nothing: there are 2^63.
"""

import asyncio
from typing import Final

from broker.controller.decisions import ReserveProducerIds
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
        """Whether anyone may hold it. What is left of other blocks counts: it is given to nobody any more."""
        waits = self._next_id <= producer_id < self._end_id
        return 0 < producer_id < self._metadata_log.state.next_producer_id and not waits

    async def take(self) -> int:
        """An id that nobody else has or ever had."""
        async with self._reserving:
            if self._next_id == self._end_id:
                # Durable before the first of the block is told to anyone.
                executed = await self._metadata_log.execute(ReserveProducerIds(count=self._block_ids))
                self._next_id = executed.before.next_producer_id
                self._end_id = executed.after.next_producer_id
            producer_id = self._next_id
            self._next_id += 1
            return producer_id
