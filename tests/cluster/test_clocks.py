"""Wall clocks that jump while records are published with request ids and a group reads them: nobody notices."""

from pathlib import Path

import pytest
from cluster import running
from wall_clock import HOUR_S, YEAR_S, WallClocks
from workload import Workload

pytestmark = pytest.mark.timeout(240)

SOON = {"POSTBUS_RETENTION_INTERVAL_SECONDS": "0.2", "POSTBUS_COMPACTION_INTERVAL_SECONDS": "0.2"}


@pytest.mark.parametrize(
    "jumps", [(HOUR_S, -HOUR_S, 10 * YEAR_S), pytest.param((-20 * YEAR_S, 100 * YEAR_S), marks=pytest.mark.slow)]
)
async def test_a_clock_that_jumps(tmp_path: Path, jumps: tuple[int, ...]) -> None:
    """That of a leader and that of the active controller, forth and back; retention runs all the while."""
    clocks = WallClocks(tmp_path)

    async def trouble(work: Workload) -> None:
        cluster = work.cluster
        for ahead_s in jumps:
            for victim in (await cluster.leader("compared"), await cluster.controller()):
                for now_s in (ahead_s, 0):
                    await work.under_way()
                    clocks.set(victim, now_s)
                    work.fault(f"node {victim}'s clock is {now_s:+d} s ahead")
                    await work.acknowledged(20)
                assert cluster.is_running(victim)

    async with running(tmp_path, clocks=clocks, environment=SOON) as cluster:
        await Workload(cluster).run(trouble, faults=4 * len(jumps))
