"""Three nodes under a little load whose metrics are there to be scraped: for the recorder and for the tests.

Everything that an operator's graphs show happens in it: publishing, reading, a group, and requests that are refused.
"""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path

_TESTS = Path(__file__).parents[2]
sys.path[:0] = [str(_TESTS / "cluster"), str(_TESTS / "chaos")]

from cluster import Cluster  # noqa: E402 - needs the path
from postbus import Client, PostbusError  # noqa: E402
from prometheus_client.parser import text_string_to_metric_families  # noqa: E402

TOPICS = ("orders", "payments")
GROUP = "billing"
PERIOD_S = 0.05


class Monitored:
    """The nodes, and where their metrics are."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.acknowledged = 0
        self.news = asyncio.Event()

    @property
    def addresses(self) -> list[str]:
        """For clients."""
        return [node.target for node in self.cluster.nodes.values()]

    def http_address(self, number: int) -> str:
        """host:port that is scraped."""
        return f"127.0.0.1:{self.cluster.nodes[number].starts[-1]['http_port']}"

    async def scrape(self, number: int) -> dict[tuple[str, tuple[tuple[str, str], ...]], float] | None:
        """Every series of a node, by name and labels; None if it does not answer."""
        text = await http_get(self.http_address(number), "/metrics")
        if text is None:
            return None
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    async def until_acknowledged(self, count: int) -> None:
        """Until so many more records were."""
        wanted = self.acknowledged + count
        async with asyncio.timeout(60):
            while self.acknowledged < wanted:
                self.news.clear()
                await self.news.wait()


@contextlib.asynccontextmanager
async def monitored(folder: Path) -> AsyncIterator[Monitored]:
    """Three nodes, a publisher, a member of a group, and somebody who asks for what is not there."""
    cluster = Cluster(folder, environment={"POSTBUS_HTTP_PORT": "0"})
    try:
        await cluster.start()
        bus = Monitored(cluster)
        async with Client(bus.addresses) as client:
            for topic in TOPICS:
                await client.topics.create(topic, partition_count=3)
            await cluster.until_in_sync()
            working = [asyncio.create_task(work(client, bus)) for work in (_publish, _read, _ask)]
            try:
                await bus.until_acknowledged(5)
                yield bus
            finally:
                for task in working:
                    task.cancel()
                await asyncio.gather(*working, return_exceptions=True)
    except BaseException as error:
        error.add_note(cluster.log())
        raise
    finally:
        await cluster.close()


async def _publish(client: Client, bus: Monitored) -> None:
    """By stream and by call."""
    number = 0
    async with client.publisher() as publisher:
        while True:
            topic, key = TOPICS[number % len(TOPICS)], b"%d" % number
            try:
                if number % 3:
                    await (await publisher.publish(topic, bytes(200), key=key))
                else:
                    await client.append(topic, [bytes(200)], partition=number % 3)
                bus.acknowledged += 1
                bus.news.set()
            except PostbusError:
                pass  # a node is away
            number += 1
            await asyncio.sleep(PERIOD_S)


async def _read(client: Client, bus: Monitored) -> None:
    while True:
        with contextlib.suppress(PostbusError):
            async with client.subscribe(list(TOPICS), group=GROUP) as records:
                async for _ in records:
                    pass


async def _ask(client: Client, bus: Monitored) -> None:
    """Fetches and looks as consumers without a stream do, and asks for and publishes to what is not there."""
    positions: dict[int, int] = {}
    while True:
        with contextlib.suppress(PostbusError):
            _, positions = await client.fetch(TOPICS[0], positions=positions)
        with contextlib.suppress(PostbusError):
            await client.groups.get(GROUP)
        with contextlib.suppress(PostbusError):
            await client.groups.get("nobody")
        with contextlib.suppress(PostbusError):
            await client.append(TOPICS[0], [b"x"], partition=99)
        await asyncio.sleep(10 * PERIOD_S)


async def http_get(address: str, path: str, *, timeout_s: float = 5.0) -> str | None:
    """What is there; None if nobody answers, or not with 200."""
    host, _, port = address.rpartition(":")
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection(host, int(port))
            try:
                writer.write(f"GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n".encode())
                answer = await reader.read()
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return None
    head, _, body = answer.partition(b"\r\n\r\n")
    return body.decode() if head.split(b" ", 2)[1:2] == [b"200"] else None
