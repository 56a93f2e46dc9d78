"""Which seeds a run takes: a few by default, more with POSTBUS_SIM_SEEDS, exactly one with POSTBUS_SIM_SEED."""

import os
from collections.abc import Callable
from typing import Any

import pytest
from sim_loop import SimLoop


def seeds(default_count: int) -> list[int]:
    """In the default run always the same ones: a change that breaks one of them breaks it for everybody."""
    one = os.environ.get("POSTBUS_SIM_SEED")
    if one is not None:
        return [int(one)]
    first = int(os.environ.get("POSTBUS_SIM_FIRST_SEED", "1"))
    return list(range(first, first + int(os.environ.get("POSTBUS_SIM_SEEDS", default_count))))


# Runs that `check_replays` needs to do only once more, by scenario and seed: digest and length of the trace.
_replayed: dict[tuple[Callable[[SimLoop], Any], int], tuple[str, int]] = {}


def run_seed(scenario: Callable[[SimLoop], Any], seed: int, *, to_be_replayed: bool = False) -> tuple[SimLoop, Any]:
    """Runs `scenario(loop)` to its end. A failure tells the seed and what happened last."""
    loop = SimLoop(seed)
    try:
        result = loop.simulate(scenario(loop))
        assert not loop.errors, "\n".join(loop.errors[:5])
        if to_be_replayed:
            _replayed[scenario, seed] = (loop.trace.digest, loop.trace.count)
        return loop, result
    except BaseException as error:
        last = "\n".join(list(loop.trace.lines)[-40:])
        error.add_note(f"\n{last}\n\nreplay with: POSTBUS_SIM_SEED={seed} (at {loop.now:.3f} s)")
        raise


def check_replays(scenario: Callable[[SimLoop], Any], seed: int) -> None:
    """The same seed twice gives the same trace; an earlier test may have made the first run."""
    if (scenario, seed) not in _replayed:
        run_seed(scenario, seed, to_be_replayed=True)
    digest, count = _replayed[scenario, seed]
    second, _ = run_seed(scenario, seed)
    if digest != second.trace.digest:
        pytest.fail(f"seed {seed}: two runs differ, of {count} and {second.trace.count} lines")
