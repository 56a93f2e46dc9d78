"""The clients of the live run, each a process that writes what it did and saw, line by line.

usage: clients.py publish|consume|read NAME ADDRESS TOPIC FILE

publish: a record every 5 ms, never waiting for an answer. consume: a member of the group "readers". read: all of the
topic, alone. Each ends on SIGTERM, when what was under way is finished. Times are of the clock that all processes of a
machine share. They use the SDK as a service would; the address is the Service's name.
"""

import asyncio
import json
import signal
import sys
import time
from typing import Any, TextIO

import uvloop
from postbus import Client

GROUP = "readers"
INTERVAL_S = 0.005
KEYS = 48


async def publish(client: Client, name: str, topic: str, out: TextIO, stop: asyncio.Event) -> None:
    """A line for each record: [number, key, sent at, answered at, partition, offset], or an error for the last two."""

    async def follow(number: int, key: str, sent_at: float, delivery: Any) -> None:
        try:
            published = await delivery
            line = [number, key, sent_at, time.monotonic(), published.partition, published.offset]
        except Exception as error:
            line = [number, key, sent_at, time.monotonic(), None, repr(error)]
        out.write(json.dumps(line) + "\n")

    following: set[asyncio.Task[None]] = set()
    async with client.publisher(linger=0) as publisher:
        number, due = 0, time.monotonic()
        while not stop.is_set():
            key = f"key-{number % KEYS}"
            sent_at = time.monotonic()
            delivery = await publisher.publish(topic, f"{name} {number}".encode(), key=key.encode())
            task = asyncio.create_task(follow(number, key, sent_at, delivery))
            following.add(task)
            task.add_done_callback(following.discard)
            number += 1
            # Late because the machine was busy: goes on from now, and doesn't catch up in a burst.
            due = max(due + INTERVAL_S, time.monotonic())
            await asyncio.sleep(due - time.monotonic())
        await asyncio.gather(*following)


async def consume(client: Client, name: str, topic: str, out: TextIO, stop: asyncio.Event, *, group: str) -> None:
    """Lines: ["at", partition, offset], ["got", partition, base, [values]], ["done", partition, base, end]."""

    def hear(event: Any) -> None:
        if event.kind == "assigned":
            out.writelines(json.dumps(["at", partition, offset]) + "\n" for _, partition, offset in event.partitions)
        else:
            out.write(json.dumps(["event", event.kind, time.monotonic(), event.detail]) + "\n")

    if not group:
        # Nobody assigns anything to one who reads alone: all of it is theirs, from the beginning.
        count = (await client.topics.get(topic)).partition_count
        out.writelines(json.dumps(["at", partition, 0]) + "\n" for partition in range(count))
    subscription = client.subscribe(topic, group=group, on_event=hear, client_id=name, heartbeat_interval=1.0)
    async with subscription:
        batches = subscription.batches()
        stopped = asyncio.create_task(stop.wait())
        while True:
            following = asyncio.ensure_future(anext(batches))
            await asyncio.wait([following, stopped], return_when=asyncio.FIRST_COMPLETED)
            if not following.done():
                following.cancel()
                await asyncio.wait([following])
                return
            batch = following.result()
            values = [value.decode() for value in batch.values()]
            out.write(json.dumps(["got", batch.partition, batch.base_offset, values]) + "\n")
            # Asking for the next one is what acknowledges it.
            out.write(json.dumps(["done", batch.partition, batch.base_offset, batch.end_offset]) + "\n")


async def main(kind: str, name: str, address: str, topic: str, path: str) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    with open(path, "a", buffering=1) as out:  # noqa: ASYNC230 - short lines to a local file
        async with Client(address, client_id=name) as client:
            if kind == "publish":
                await publish(client, name, topic, out, stop)
            else:
                await consume(client, name, topic, out, stop, group=GROUP if kind == "consume" else "")


if __name__ == "__main__":
    uvloop.run(main(*sys.argv[1:6]))
