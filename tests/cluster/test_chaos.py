"""The long form: `make chaos-cluster`, for POSTBUS_CHAOS_SECONDS, from POSTBUS_CHAOS_SEED."""

import os
from pathlib import Path

import pytest
from cluster import running
from trouble import Chaos
from wall_clock import WallClocks
from workload import Workload

SECONDS = float(os.environ.get("POSTBUS_CHAOS_SECONDS", "60"))
SEED = int(os.environ.get("POSTBUS_CHAOS_SEED", "1"))


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 600)
async def test_anything_at_any_time(tmp_path: Path) -> None:
    """Nothing acknowledged is lost, twice, out of order or different from node to node."""
    often = {"POSTBUS_RETENTION_INTERVAL_SECONDS": "0.5", "POSTBUS_COMPACTION_INTERVAL_SECONDS": "0.5"}
    async with running(tmp_path, proxied=True, clocks=WallClocks(tmp_path), environment=often) as cluster:
        work = Workload(cluster, seed=SEED)
        chaos = Chaos(work, SEED)
        try:
            await work.run(lambda _: chaos.run(SECONDS), faults=max(1, int(SECONDS // 20)))
        finally:
            print(f"seed {SEED}, {SECONDS:g} s: {chaos.kinds}; {work.summary()}")
