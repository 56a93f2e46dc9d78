"""The metadata log on the real engine and its committer."""

import asyncio
from pathlib import Path

from broker.controller.decisions import CreateCluster, CreateTopic, Rules
from broker.controller.metadata_log import MetadataLog, load
from broker.storage.committer import Committer
from broker.storage.durable_mark import DurableMark
from broker.storage.engine import Engine, FamilyOptions


def create(name: str) -> CreateTopic:
    return CreateTopic(name=name, topic_id=f"id-of-{name}", now_us=1, partition_count=2)


async def test_on_rocksdb_a_restart_brings_everything_back(tmp_path: Path) -> None:
    """With and without a snapshot at the end."""

    def fail(error: Exception) -> None:
        raise AssertionError(error)

    families = {"log": FamilyOptions(), "snapshot": FamilyOptions()}
    states = []
    for run in range(3):
        engine = Engine.open(tmp_path / "meta", families)
        mark = DurableMark(tmp_path / "meta.mark")
        committer = Committer(engine, mark, loop=asyncio.get_running_loop(), on_fatal=fail)
        log = MetadataLog(load(engine), committer, rules=Rules(), snapshot_records=4)
        if states:
            assert log.state == states[-1]
        await log.execute(CreateCluster(cluster_id="c", now_us=1))
        await asyncio.gather(*(log.execute(create(f"run-{run}-{number}")) for number in range(6)))
        if run == 1:
            await log.close()
        states.append(log.state)
        await committer.close()
        mark.close()
        engine.close()
    assert len(states[-1].topics) == 18
