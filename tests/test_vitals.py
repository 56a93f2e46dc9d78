"""What a node's metrics show of the cluster's image, and of the machine."""

from math import inf
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from broker.controller.state import ClusterState, PartitionState, Topic, difference
from broker.telemetry import Metrics
from broker.vitals import Counts, Vitals, memory_limit_bytes

ME = 1


def state(
    isr: tuple[int, ...], *, leader: int = ME, epoch: int = 1, version: int = 1, elr: tuple[int, ...] = ()
) -> Any:
    return PartitionState(
        log_id=1, replicas=(1, 2, 3), isr=isr, elr=elr, leader=leader, leader_epoch=epoch, partition_epoch=version
    )


def counted(before: PartitionState, after: PartitionState, *, knows: bool = True) -> dict[str, float]:
    """What a node counts of this change."""
    metrics = Metrics(version="1")
    committer = SimpleNamespace(append_queue_bytes_max=1)
    store: Any = SimpleNamespace(committer=committer, meta=SimpleNamespace(committer=committer))
    bus: Any = SimpleNamespace(knows=knows, node_id=ME)
    counts = Counts(ready=lambda: True, subscriptions=lambda: 0, publish_streams=lambda: 0)
    vitals = Vitals(metrics, store=store, bus=bus, transport=None, counts=counts, disk_free_min_bytes=0)
    images = [
        ClusterState(topics={"t": Topic("t", "id", (partition,), 3, b"", (), 0)}, topic_names={"id": "t"})
        for partition in (before, after)
    ]
    vitals.followed(difference(*images))
    names = {
        "shrink": ("postbus_isr_changes_total", {"kind": "shrink"}),
        "expand": ("postbus_isr_changes_total", {"kind": "expand"}),
        "elections": ("postbus_leader_elections_total", {}),
        "unclean": ("postbus_unclean_elections_total", {}),
    }
    found = {name: metrics.registry.get_sample_value(series, labels) for name, (series, labels) in names.items()}
    return {name: value for name, value in found.items() if value}


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (state((1, 2, 3)), state((1, 2), version=2), {"shrink": 1}),
        (state((1, 2)), state((1, 2, 3), version=2), {"expand": 1}),
        (state((2, 1), leader=2), state((1,), epoch=2, version=2), {"elections": 1, "shrink": 1}),
        (state((2,), leader=0, elr=(1,)), state((1,), epoch=2, version=2), {"elections": 1, "shrink": 1, "expand": 1}),
        (
            state((2,), leader=0),
            state((1,), epoch=2, version=2),
            {"elections": 1, "unclean": 1, "shrink": 1, "expand": 1},
        ),
        # Several changes that come as one: it may have been in sync in between.
        (state((2,), leader=2), state((1, 2), epoch=3, version=4), {"elections": 1, "expand": 1}),
        (state((1, 2, 3), leader=2), state((1, 2), leader=2, version=2), {}),
    ],
    ids=["shrinks", "expands", "elected", "elected_from_elr", "unclean", "after_an_absence", "another_leads"],
)
def test_each_change_counts_where_the_partition_is_led(
    before: PartitionState, after: PartitionState, expected: dict[str, float]
) -> None:
    """Once in the cluster; and never while a start replays an earlier life."""
    assert counted(before, after) == expected
    assert counted(before, after, knows=False) == {}


@pytest.mark.parametrize(
    ("own", "files", "limit"),
    [
        ("0::/\n", {"memory.max": "268435456\n"}, 2.0**28),
        ("0::/system.slice/postbus.service\n", {"system.slice/postbus.service/memory.max": "1024\n"}, 1024.0),
        ("0::/\n", {"memory.max": "max\n"}, inf),
        ("5:memory:/a\n0::/\n", {"memory/a/memory.limit_in_bytes": "4096\n"}, 4096.0),
        ("5:memory:/\n", {"memory/memory.limit_in_bytes": "9223372036854771712\n"}, inf),
        ("", {}, inf),
    ],
    ids=["container", "unit", "none", "version_1", "version_1_none", "no_groups"],
)
def test_the_memory_limit_is_that_of_the_own_control_group(
    tmp_path: Path, own: str, files: dict[str, str], limit: float
) -> None:
    """Of either version, in a container or not."""
    (tmp_path / "own").write_text(own)
    for name, text in files.items():
        (tmp_path / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / name).write_text(text)
    assert memory_limit_bytes(tmp_path / "groups", tmp_path / "own") == limit
    assert memory_limit_bytes(tmp_path / "groups", tmp_path / "missing") == inf
