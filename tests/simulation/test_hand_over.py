"""A node that stops: others lead before it goes, whatever holds up a single partition."""

from typing import Any

from sim_cluster import Cluster
from sim_loop import SimLoop
from sim_seeds import run_seed

from broker.storage.batch import NewBatch


def test_what_can_not_be_committed_now_holds_up_no_hand_over() -> None:
    """A partition has too few replicas in sync for what was appended last: all are handed over all the same."""

    async def scenario(loop: SimLoop) -> None:
        cluster = Cluster(loop)
        cluster.start()
        await cluster.ready()
        await cluster.create_topic("orders", min_insync_replicas=2)
        await cluster.create_topic("strict", min_insync_replicas=3)
        everybody = {1, 2, 3}
        await cluster.until(
            "all in sync",
            lambda: all(set(cluster.partition_state(topic).isr) == everybody for topic in ("orders", "strict")),
        )
        leader = cluster.leader("strict")
        lost = next(node_id for node_id in sorted(everybody - {leader, cluster.controller_id}))
        cluster.machine(lost).kill()
        strict = cluster.partition(leader, "strict")
        cluster.node(leader).process.run(strict.append, NewBatch(batch=b"x", record_count=1))
        await cluster.until("one less", lambda: lost not in cluster.partition_state("strict").isr)
        assert strict.local is not None and strict.high_watermark < strict.local.end_offset
        await cluster.ask(leader, _hand_over)
        led = {topic.name for topic, _, state in cluster.state.partitions() if state.leader == leader}
        assert not led
        assert cluster.state.nodes[leader].stopping

    run_seed(scenario, 3)


async def _hand_over(node: Any) -> None:
    await node.bus.hand_over()
