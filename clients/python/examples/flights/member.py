"""A member of the group that counts flights. Its work: a line in a file for each flight.

usage: member.py ADDRESS GROUP TOPIC FILE
"""

import asyncio
import json
import signal
import sys
from pathlib import Path

from postbus import Client

STEP = 50


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
    """All the work on a batch is done, and out of this process, before the next is asked for: that acknowledges it.

    It looks at the order of each aircraft, and writes in steps, so that a kill finds this
    process in the middle of a batch.
    """
    last: dict[str, str] = {}
    async for batch in batches:
        for number, record in enumerate(batch.records, 1):
            flight = json.loads(record.value)
            tailnum = flight["tailnum"]
            in_order = tailnum is None or flight["scheduled"] >= last.get(tailnum, "")
            last[tailnum] = flight["scheduled"]
            work.write(b"%d\t%d\t%d\t%b\n" % (record.partition, record.offset, in_order, record.value))
            if number % STEP == 0:
                work.flush()
        work.flush()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3], Path(sys.argv[4])))
