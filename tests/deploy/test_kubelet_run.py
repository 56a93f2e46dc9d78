"""What the live run judges by, without a control plane: its own checks must be able to fail."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent / "live"))

from cluster_watch import ClusterWatch, Sample
from keda import Scale
from load import Load
from machine import Note
from stage import Stage
from steps import committed, one_at_a_time

# --- one at a time


def stage(notes: list[tuple[float, str, str]], lacking: dict[float, tuple[str, ...]]) -> Stage:
    """One on which that happened."""
    found: Any = object.__new__(Stage)
    found.machine = SimpleNamespace(notes=[Note(at, pod, what) for at, pod, what in notes])
    found.watch = object.__new__(ClusterWatch)
    found.watch.samples = [Sample(at, {}, {}, frozenset(), names) for at, names in sorted(lacking.items())]
    stage_found: Stage = found
    return stage_found


ROLLED = [
    (2.0, "postbus-2", "stopping"),
    (3.0, "postbus-2", "ready"),
    (4.0, "postbus-1", "stopping"),
    (5.0, "postbus-1", "ready"),
]


def test_a_rolling_restart_passes() -> None:
    """One after the other, all in sync before each; what others do is no matter."""
    notes = [(1.0, "postbus-3", "stopping"), *ROLLED, (4.5, "orders-7d-x", "stopping")]
    one_at_a_time(stage(notes, {1.9: (), 2.5: ("t/0",), 3.9: ()}), 1.5, {1, 2})


@pytest.mark.parametrize(
    ("notes", "lacking", "why"),
    [
        ([(2.0, "postbus-2", "stopping"), (2.1, "postbus-1", "stopping")], {1.9: ()}, "were away"),
        (ROLLED, {1.9: (), 3.9: ("t/0",)}, "lacked"),
        (ROLLED, {5.0: ()}, "lacked"),
        (ROLLED[:2], {1.9: ()}, "stopped were"),
        ([*ROLLED, (6.0, "postbus-1", "stopping")], {1.9: (), 5.9: ()}, "stopped were"),
    ],
)
def test_other_restarts_do_not(notes: list[Any], lacking: dict[float, Any], why: str) -> None:
    """Two away at once, one too early, nobody knows, one left out, one twice."""
    with pytest.raises(AssertionError, match=why):
        one_at_a_time(stage(notes, lacking), 1.5, {1, 2})


# --- pauses


def load(folder: Path, lines: list[list[Any]]) -> Load:
    """One whose publisher wrote that."""
    machine: Any = SimpleNamespace(folder=folder)
    found = Load(machine, "bus", "address", "t", "readers")
    found._kinds["p"] = "publish"
    (folder / "clients/p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '[9, "cut off')
    return found


def test_pauses_are_those_of_the_stretch(tmp_path: Path) -> None:
    """From its beginning to its end, an answer that never came included; a line that is not whole is left."""
    found = load(
        tmp_path,
        [
            [0, "k", 0.0, 0.1, 0, 0],
            [1, "k", 1.0, 1.1, 0, 1],
            [2, "k", 1.2, 1.9, 0, 2],
            [3, "k", 2.0, 2.05, None, "Timeout()"],
        ],
    )
    assert found.answered() == 4
    pauses = found.pauses(1.0, 3.0)
    assert (pauses.acknowledged, pauses.failed) == (2, 1)
    assert pauses.longest_s == pytest.approx(1.1)
    assert pauses.slowest_s == pytest.approx(0.7)
    assert pauses.publisher_held_s == pytest.approx(0.8)


def test_committed_offsets_are_compared_by_partition() -> None:
    """As the command prints them."""
    said = json.dumps({"offsets": [{"topic": "t", "partition": 1, "offset": 7}]})
    assert committed(said) == {("t", 1): 7}


# --- scaling


def replicas(scale: Scale, now: float, metric: float, before: int, *, active: bool = True) -> int:
    return scale.replicas(now, active=active, metric=metric, target=50, before=before)


def test_replicas_follow_the_lag_within_bounds() -> None:
    """Rounded up; one at least while there is anything to do; a wish is forgotten after a while."""
    scale = Scale(0, 20)
    assert replicas(scale, 0, 1, 0) == 1
    assert replicas(scale, 1, 101, 1) == 3
    assert replicas(scale, 2, 5000, 3) == 20
    assert replicas(scale, 11, 60, 20) == 20
    assert replicas(scale, 13, 60, 20) == 2


def test_idle_consumers_go_after_a_while_and_none_comes_for_nothing() -> None:
    """KEDA's cool-down; from zero only what is active starts any."""
    scale = Scale(0, 20)
    assert replicas(scale, 0, 0, 0, active=False) == 0
    assert replicas(scale, 1, 10, 0) == 1
    assert replicas(scale, 5, 0, 1, active=False) == 1
    assert replicas(scale, 12, 0, 1, active=False) == 0
    assert replicas(Scale(2, 5), 0, 0, 2, active=False) == 2
