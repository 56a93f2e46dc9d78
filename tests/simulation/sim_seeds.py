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


def run_seed(scenario: Callable[[SimLoop], Any], seed: int) -> tuple[SimLoop, Any]:
    """Runs `scenario(loop)` to its end. A failure tells the seed and what happened last."""
    loop = SimLoop(seed)
    try:
        result = loop.simulate(scenario(loop))
        assert not loop.errors, "\n".join(loop.errors[:5])
        return loop, result
    except BaseException as error:
        last = "\n".join(list(loop.trace.lines)[-40:])
        error.add_note(f"\n{last}\n\nreplay with: POSTBUS_SIM_SEED={seed} (at {loop.now:.3f} s)")
        raise


def check_replays(scenario: Callable[[SimLoop], Any], seed: int) -> None:
    """The same seed twice gives the same trace."""
    first, _ = run_seed(scenario, seed)
    second, _ = run_seed(scenario, seed)
    if first.trace.digest != second.trace.digest:
        at = min(first.trace.count, second.trace.count)
        pytest.fail(f"seed {seed}: two runs differ, of {first.trace.count} and {second.trace.count} lines (to {at})")
