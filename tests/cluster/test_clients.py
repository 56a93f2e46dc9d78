"""What the clients of these tests do while no node is there."""

import asyncio
from pathlib import Path

from broker_process import BrokerProcess
from cluster import Cluster, ClusterBus


async def test_clients_try_again_once_any_node_serves(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    cluster.nodes = {number: BrokerProcess(tmp_path / str(number)) for number in (1, 2)}
    bus = ClusterBus(cluster)
    waiting = asyncio.create_task(bus.until_ready())
    for _ in range(5):
        await asyncio.sleep(0)
    assert not waiting.done()
    cluster.nodes[2].ready.set()
    await asyncio.wait_for(waiting, 10)
    await bus.close()
