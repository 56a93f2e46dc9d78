"""A peer that says nothing any more: no FIN, no RST, no answer to a ping."""

import asyncio
import signal
import sys
from pathlib import Path

from postbus import Client, Event

from broker.config import load
from broker.node import Node

MEMBER = """
import asyncio, sys
from postbus import Client

async def main():
    async with Client(sys.argv[1]) as client:
        async with client.subscribe("t", group="g", on_event=lambda event: print(event.kind, flush=True)) as records:
            async for record in records:
                pass

asyncio.run(main())
"""


async def test_the_partitions_of_a_peer_that_fell_silent_pass_on(tmp_path: Path) -> None:
    """It is stopped, not killed: its host still acknowledges packets, but nobody answers the broker's pings."""
    settings = load(
        {
            "data_dir": str(tmp_path / "data"),
            "client_port": "0",
            "http_port": "off",
            "disk_free_min_bytes": "0",
            "drain_grace_seconds": "0",
            "keepalive_ping_seconds": "1",
            "keepalive_timeout_seconds": "1",
        }
    )
    node = Node(settings)
    address = f"127.0.0.1:{(await node.start()).client_port}"
    member = await asyncio.create_subprocess_exec(sys.executable, "-c", MEMBER, address, stdout=asyncio.subprocess.PIPE)
    try:
        async with Client(address) as client:
            await client.topics.create("t", partition_count=4)
            assert member.stdout is not None
            async with asyncio.timeout(60):
                while b"assigned" not in await member.stdout.readline():
                    pass
            all_mine = asyncio.Event()

            def on_event(event: Event) -> None:
                if len(subscription.assignment) == 4:
                    all_mine.set()

            subscription = client.subscribe("t", group="g", on_event=on_event)
            async with subscription:
                reading = asyncio.create_task(subscription.get())
                async with asyncio.timeout(60):
                    while len((await client.groups.get("g")).members) < 2:
                        await asyncio.wait({reading}, timeout=0.05)
                    assert not all_mine.is_set()
                    member.send_signal(signal.SIGSTOP)
                    await all_mine.wait()
                assert len((await client.groups.get("g")).members) == 1
                reading.cancel()
    finally:
        member.kill()
        await member.wait()
        await node.stop()
