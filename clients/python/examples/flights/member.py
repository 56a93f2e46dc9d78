"""A member of the group that counts flights. Its work: a line in a file for each flight, before it acknowledges.

usage: member.py ADDRESS GROUP TOPIC FILE
"""

import asyncio
import signal
import sys
from pathlib import Path

from postbus import Client


async def main(address: str, group: str, topic: str, path: Path) -> None:
    """Counts until SIGTERM, then leaves the group in good order."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with Client(address) as client, client.subscribe(topic, group=group) as flights:
        with path.open("wb", buffering=1024 * 1024) as work:
            reading = asyncio.create_task(count(flights.batches(), work))
            await asyncio.wait([reading, asyncio.create_task(stop.wait())], return_when=asyncio.FIRST_COMPLETED)
            if reading.done():
                reading.result()
            reading.cancel()


async def count(batches, work) -> None:
    """The work is done, and out of this process, before the next batch is asked for: that acknowledges this one."""
    async for batch in batches:
        work.writelines(b"%d\t%d\t%b\n" % (record.partition, record.offset, record.value) for record in batch.records)
        work.flush()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3], Path(sys.argv[4])))
