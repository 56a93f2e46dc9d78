"""What befalls nodes that are pods: names that lead nowhere yet or elsewhere, volumes and settings of others, signals.

Real processes, known to each other and to clients by name alone, at another address after each start.
"""

import asyncio
import signal
import sys
from pathlib import Path

import pytest
from broker_process import BrokerEnded
from named_nodes import CLIENT_PORT, NamedNode, NamedNodes, in_namespace, named_nodes
from postbus import Client

pytestmark = pytest.mark.timeout(240)

AGAIN_S = 15.0  # to find a node at its new address; gRPC alone takes 30 s and more
PAUSE_S = 10.0  # between two acknowledgements while all nodes move: it was 13 s and more on a quiet machine
STOP_S = 40.0  # as long as Kubernetes would wait, nearly

# Publishes to each partition in turn, by names, and tells after each acknowledgement.
PUBLISHER = """
import asyncio, sys
from postbus import Client

async def main():
    async with Client(sys.argv[1]) as client:
        await client.topics.create("t", partition_count=3, exist_ok=True)
        async with client.publisher() as publisher:
            number = 0
            while True:
                await (await publisher.publish("t", b"%d" % number, partition=number % 3))
                print(number, flush=True)
                number += 1
                await asyncio.sleep(0.02)

asyncio.run(main())
"""


# Fills a topic and begins to read it, with a publish stream open beside; tells when the first record has come.
READER = """
import asyncio, sys
from postbus import Client

async def main():
    async with Client(sys.argv[1]) as client:
        await client.topics.create("t", partition_count=1, exist_ok=True)
        async with client.publisher() as publisher:
            for _ in range(100):
                await (await publisher.publish("t", bytes(200_000), partition=0))
            async with client.subscribe("t") as records:
                async for record in records:
                    print(record.offset, flush=True)
                    await asyncio.sleep(60)

asyncio.run(main())
"""


async def until_ready(nodes: NamedNodes) -> None:
    """All of them."""
    await asyncio.gather(*(node.until_ready() for node in nodes.nodes.values()))


async def started(nodes: NamedNodes) -> None:
    """All of them, where their names lead."""
    nodes.resolve(*nodes.nodes)
    for node in nodes.nodes.values():
        await node.start(wait=False)
    await until_ready(nodes)


async def until_connected(nodes: NamedNodes) -> None:
    """Until every node has a connection with every other one, and counts on it."""
    async with asyncio.timeout(AGAIN_S):
        for node in nodes.nodes.values():
            while not _has_all(await node.http("/metrics")):  # noqa: ASYNC110 - it has no event for it
                await asyncio.sleep(0.05)


def _has_all(answer: tuple[int, str]) -> bool:
    lines = answer[1].splitlines()
    connected = [line for line in lines if line.startswith("postbus_peer_connected{")]
    fenced = [line for line in lines if line.startswith("postbus_node_fenced{")]
    return (
        len(connected) == 2
        and len(fenced) == 3
        and all(line.endswith(" 1.0") for line in connected)
        and all(line.endswith(" 0.0") for line in fenced)
    )


async def until_not_ready_says(node: NamedNode, *texts: str) -> None:
    """/healthz/ready gives this reason; the node lives all the while, and must not be restarted for it."""
    async with asyncio.timeout(60):
        while True:
            code, why = await node.http("/healthz/ready")
            if code == 503 and all(text in why for text in texts):
                break
            await asyncio.sleep(0.05)
    assert (await node.http("/healthz/live"))[0] == 200


# --- names ------------------------------------------------------------------------------------------------------------


async def test_names_that_lead_nowhere_yet_are_waited_for(tmp_path: Path) -> None:
    """Each node says which in its log and at /healthz/ready, and goes on when they do."""
    async with named_nodes(tmp_path) as nodes:
        for node in nodes.nodes.values():
            await node.start(wait=False)
        first = nodes.nodes[1]
        await until_not_ready_says(first, "2 of 3 controllers unreachable", "node 2: ", "node 3: ", "resol")
        await first.until_logged('"peer_unreachable"')
        await first.until_logged('"node_not_ready"')
        nodes.resolve(1, 2, 3)
        async with asyncio.timeout(AGAIN_S):
            await until_ready(nodes)


async def test_a_node_is_found_again_at_its_new_address(tmp_path: Path) -> None:
    """Its name leads to the old one for a while, and nowhere for another; the others see it within seconds."""
    async with named_nodes(tmp_path) as nodes:
        await started(nodes)
        node = nodes.nodes[2]
        await node.kill()
        nodes.move(2)
        await node.start(wait=False)
        nodes.forget(2)
        async with asyncio.timeout(AGAIN_S):
            await node.until_ready()  # it finds them
        nodes.resolve(2)
        await until_connected(nodes)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["stopped", "killed"])
async def test_nobody_loses_nodes_that_all_move_one_after_the_other(tmp_path: Path, how: str) -> None:
    """Twice, so that no address is one that a client, or another node, has heard of before."""
    async with named_nodes(tmp_path) as nodes:
        await started(nodes)
        command = in_namespace(nodes.hosts, sys.executable, "-c", PUBLISHER, nodes.targets)
        publisher = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        try:
            await acknowledged(publisher, 30)
            for number in (1, 2, 3) * 2:
                node = nodes.nodes[number]
                if how == "killed":
                    await node.kill()
                else:
                    assert await node.stop() == 0
                nodes.move(number)
                await node.start(wait=False)
                await acknowledged(publisher, 5)
                nodes.resolve(number)
                await acknowledged(publisher, 5)
                await node.until_ready()
                await until_connected(nodes)
                await acknowledged(publisher, 30)
        finally:
            publisher.kill()
            await publisher.wait()


async def acknowledged(publisher: asyncio.subprocess.Process, count: int) -> None:
    """So many more, without a pause that somebody would have to look into."""
    assert publisher.stdout is not None
    for _ in range(count):
        async with asyncio.timeout(PAUSE_S):
            assert await publisher.stdout.readline()


# --- whose it is ------------------------------------------------------------------------------------------------------


async def test_a_new_node_with_another_cluster_s_id_is_told_so(tmp_path: Path) -> None:
    """At /healthz/ready and in its log, by those whom it asks; they go on, and so does it with the right id."""
    async with named_nodes(tmp_path) as nodes:
        nodes.resolve(1, 2, 3)
        stranger = nodes.nodes[3]
        await stranger.start(wait=False, POSTBUS_CLUSTER_ID="production")
        for number in (1, 2):
            await nodes.nodes[number].start(wait=False)
        await until_not_ready_says(stranger, "node 3 belongs to cluster production, node 1 to named")
        await nodes.nodes[1].until_logged("node 3 belongs to cluster production")
        await until_not_ready_says(nodes.nodes[1], "production")  # whoever looks at the others learns it, too
        assert await stranger.stop() == 0

        # The volume is that cluster's now, and stays so: it may hold what somebody wants back.
        with pytest.raises(BrokerEnded) as ended:
            await stranger.start()
        assert "exit code 1" in str(ended.value) and "belongs to cluster 'production'" in str(ended.value)
        stranger.folder = tmp_path / "another volume"
        await stranger.start(wait=False)
        await until_ready(nodes)


async def test_a_node_with_peers_and_without_a_cluster_s_id_does_not_start(tmp_path: Path) -> None:
    """It would make up one of its own, and wait for ever."""
    async with named_nodes(tmp_path) as nodes:
        node = nodes.nodes[1]
        with pytest.raises(BrokerEnded, match="exit code 2") as ended:
            await node.start(POSTBUS_CLUSTER_ID="")
        assert "peers need a cluster_id" in str(ended.value)
        assert not node.folder.exists()


# --- signals ----------------------------------------------------------------------------------------------------------


async def ends(node: NamedNode) -> int:
    """The exit code, within what an operator waits for."""
    async with asyncio.timeout(STOP_S):
        return await node.wait()


async def test_a_node_that_was_just_started_can_be_stopped(tmp_path: Path) -> None:
    """While it still imports, opens its data, or waits for the other founders: exit code 0 and nothing harmed."""
    async with named_nodes(tmp_path) as nodes:
        node = nodes.nodes[1]
        for text in ("", '"node_starting"', '"peer_unreachable"'):
            await node.start(wait=False)
            if text:
                await node.until_logged(text)
            else:
                await until_python(node)
            node.signal(signal.SIGTERM)
            assert await ends(node) == 0, node.log()
            assert "Traceback" not in node.log()
        assert node.log().count('"node_stopped"') == 2
        await started(nodes)


async def until_python(node: NamedNode) -> None:
    """Until the process has come as far as the command itself."""
    async with asyncio.timeout(60):
        while not _handles_sigterm(node.pid):  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.001)


def _handles_sigterm(pid: int) -> bool:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("SigCgt:"):
            return bool(int(line.split()[1], 16) >> (signal.SIGTERM - 1) & 1)
    return False


async def test_a_node_that_recovers_can_be_stopped(tmp_path: Path) -> None:
    """What was acknowledged before the crash is there after it."""
    async with named_nodes(tmp_path) as nodes:
        node = nodes.nodes[1]
        node.environment = {name: text for name, text in node.environment.items() if "PEER" not in name} | {
            "POSTBUS_ADVERTISED_ENDPOINT": f"{node.address}:{CLIENT_PORT}"
        }
        await node.start()
        async with Client(node.target) as client:
            await client.topics.create("t", partition_count=1, replication_factor=1)
            for number in range(40):
                await client.append("t", [b"%d" % number + bytes(500_000)], partition=0)
        await node.kill()
        await node.start(wait=False)
        await node.until_logged('"node_starting"')
        node.signal(signal.SIGTERM)
        assert await ends(node) == 0, node.log()
        await node.start()
        async with Client(node.target) as client, client.subscribe("t", until_end=True) as records:
            found = [int(record.value.rstrip(b"\0")) async for record in records]
        assert found == list(range(40))


@pytest.mark.slow
async def test_a_node_that_fills_up_can_be_stopped(tmp_path: Path) -> None:
    """The cluster counts on it, but it is not ready: it hands over, ends with 0, and goes on after the next start."""
    async with named_nodes(tmp_path) as nodes:
        for node in nodes.nodes.values():
            node.environment["POSTBUS_CATCH_UP_BYTES_PER_SECOND"] = "1MiB"
        await started(nodes)
        async with Client(nodes.nodes[1].target) as client:
            await client.topics.create("t", partition_count=1)
            for number in range(20):
                await client.append("t", [b"%d" % number + bytes(500_000)], partition=0)
        node = nodes.nodes[3]
        await node.kill()
        node.folder = tmp_path / "new volume"
        await node.start(wait=False)
        await node.until_logged('"registered"')
        await until_not_ready_says(node, "catching up with")
        node.signal(signal.SIGTERM)
        assert await ends(node) == 0, node.log()
        assert '"hand_over_failure"' not in node.log()
        await node.start()
        async with Client(node.target) as client, client.subscribe("t", until_end=True) as records:
            assert len([record async for record in records]) == 20


async def test_two_signals_while_it_starts_end_it_at_once(tmp_path: Path) -> None:
    """With the second one's number as the exit code, as a shell tells it, unless the first was done by then."""
    async with named_nodes(tmp_path) as nodes:
        node = nodes.nodes[1]
        await node.start(wait=False)
        await node.until_logged('"peer_unreachable"')
        node.signal(signal.SIGTERM)
        await node.until_logged('"node_stopping"')
        if node.running:
            node.signal(signal.SIGTERM)
        assert await ends(node) in (0, 128 + signal.SIGTERM)
        await started(nodes)


async def test_a_client_that_hangs_does_not_keep_a_node(tmp_path: Path) -> None:
    """One that was stopped in the middle of reading: exit code 0 within the grace, and others read on elsewhere."""
    async with named_nodes(tmp_path) as nodes:
        for node in nodes.nodes.values():
            node.environment["POSTBUS_DRAIN_GRACE_SECONDS"] = "0.5"
        await started(nodes)
        node = nodes.nodes[1]
        command = in_namespace(nodes.hosts, sys.executable, "-c", READER, f"{node.name}:{CLIENT_PORT}")
        reader = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        try:
            assert reader.stdout is not None
            assert await reader.stdout.readline()
            reader.send_signal(signal.SIGSTOP)
            node.signal(signal.SIGTERM)
            assert await ends(node) == 0, node.log()
            assert '"stop_timeout"' not in node.log()
        finally:
            reader.kill()
            await reader.wait()
        async with Client(nodes.nodes[2].target) as client, client.subscribe("t", until_end=True) as records:
            assert len([record async for record in records]) == 100
