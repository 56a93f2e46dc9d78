"""Records what Prometheus would have of three nodes one of which is killed, and comes back: in node_killed.yaml.

usage: python tests/deploy/rules/record.py   (about twelve minutes; the alerts' own times are in minutes)

The active controller is killed, under load, for long enough that every alert that speaks of it fires, and then started
again. Only series that alerts.yaml asks for are kept, as `promtool test rules` wants them: a value a scrape, "stale"
where a node stopped answering, "_" where nothing is known. Made anew when an alert wants other series.
"""

import asyncio
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import groupby
from math import inf
from pathlib import Path
from typing import Final

import yaml

sys.path.insert(0, str(Path(__file__).parent))

from monitored import Monitored, monitored

FOLDER: Final = Path(__file__).parent
ALERTS: Final = FOLDER.parents[2] / "deploy" / "helm" / "postbus" / "files" / "alerts.yaml"
RECORDED: Final = FOLDER / "node_killed.yaml"
JOB: Final = "postbus"
INTERVAL_S: Final = 15
BEFORE_S: Final = 120
AWAY_S: Final = 390
AFTER_S: Final = 180

Series = tuple[str, tuple[tuple[str, str], ...]]


class Recorder:
    """Scrapes in time, and keeps what an alert asks for."""

    def __init__(self, bus: Monitored, wanted: frozenset[str]) -> None:
        self._bus = bus
        self._wanted = wanted
        self._begin = time.monotonic()
        self.values: dict[Series, list[str]] = {}
        self.count = 0

    async def until(self, second: float) -> None:
        """A scrape each interval, up to this second."""
        while self.count * INTERVAL_S < second:
            await asyncio.sleep(max(0.0, self._begin + self.count * INTERVAL_S - time.monotonic()))
            numbers = list(self._bus.cluster.nodes)
            answers = await asyncio.gather(*(self._bus.scrape(number) for number in numbers))
            for number, answer in zip(numbers, answers, strict=True):
                self._keep(number, answer)
            self.count += 1

    def _keep(self, number: int, answer: dict[Series, float] | None) -> None:
        # As a scrape adds them; the address is not the one of this machine.
        target = (("instance", f"bus-{number}:7072"), ("job", JOB))
        seen = {("up", target): float(answer is not None)}
        for (name, labels), value in (answer or {}).items():
            if name in self._wanted:
                seen[name, (*labels, *target)] = value
        for series, value in seen.items():
            values = self.values.setdefault(series, [])
            values += ["_"] * (self.count - len(values))
            values.append(str(int(value)) if value.is_integer() else "Inf" if value == inf else f"{value:.6g}")
        for series, values in self.values.items():
            if target[0] in series[1] and len(values) == self.count and values[-1:] not in (["stale"], ["_"], []):
                values.append("stale")


async def record() -> None:
    """All of it, to the file."""
    text = ALERTS.read_text()
    wanted = frozenset(re.findall(r"\b(?:postbus|process)_\w+", text))
    with tempfile.TemporaryDirectory() as folder:
        async with monitored(Path(folder)) as bus:
            recorder = Recorder(bus, wanted)
            await recorder.until(BEFORE_S)
            victim = await bus.cluster.controller()
            await bus.cluster.kill(victim)
            killed_s = recorder.count * INTERVAL_S
            await recorder.until(killed_s + AWAY_S)
            await bus.cluster.start()
            started_s = recorder.count * INTERVAL_S
            await bus.cluster.until_in_sync()
            await recorder.until(started_s + AFTER_S)
    told = {
        "interval": f"{INTERVAL_S}s",
        "victim": victim,
        "killed_s": killed_s,
        "started_s": started_s,
        "end_s": (recorder.count - 1) * INTERVAL_S,
    }
    lines = [
        f"# Recorded from three real nodes by record.py; {len(recorder.values)} series.",
        *_dumped(told),
        "series:",
    ]
    for (name, labels), values in sorted(recorder.values.items()):
        shown = ", ".join(f'{label}="{value}"' for label, value in sorted(labels))
        padded = values + ["_"] * (recorder.count - len(values))
        lines += [f"  - series: '{name}{{{shown}}}'", f"    values: '{' '.join(_shortened(padded))}'"]
    RECORDED.write_text("\n".join(lines) + "\n")
    print(f"{RECORDED}: {len(recorder.values)} series, {RECORDED.stat().st_size:,} bytes")


def _dumped(told: dict[str, object]) -> list[str]:
    return yaml.safe_dump(told, sort_keys=False).splitlines()


def _shortened(values: list[str]) -> Iterator[str]:
    """Repetitions as promtool reads them: 1x3 is four times 1, _x3 is three times nothing."""
    for value, group in groupby(values):
        count = len(list(group))
        if count == 1 or value == "stale":
            yield from [value] * count
        else:
            yield f"_x{count}" if value == "_" else f"{value}+0x{count - 1}"


if __name__ == "__main__":
    asyncio.run(record())
