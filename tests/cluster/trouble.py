"""Trouble of every kind by chance, from a seed: one fault after the other, for as long as is asked.

Each fault leaves the cluster whole again before the next, except that some come in pairs; what is tried is that clients
notice nothing but a pause, whatever happens in which order.
"""

import asyncio
import random
import shutil
from collections.abc import Awaitable, Callable

from proxy import Way
from wall_clock import HOUR_S, YEAR_S
from workload import Workload

FEW, SOME = 5, 20  # requests acknowledged meanwhile


class Chaos:
    """The faults that can be had, and who draws among them."""

    def __init__(self, work: Workload, seed: int) -> None:
        self._work = work
        self._cluster = work.cluster
        self._chance = random.Random(seed)
        self.kinds: dict[str, int] = {}

    async def run(self, seconds: float) -> None:
        """Fault after fault until the time is over; each kind at least once if there is time."""
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        faults: list[Callable[[], Awaitable[None]]] = [
            self._kill_one,
            self._kill_two,
            self._kill_all,
            self._stop,
            self._stand_still,
            self._isolate,
            self._cut,
            self._slow,
            self._wipe,
            self._set_clock,
        ]
        waiting: list[Callable[[], Awaitable[None]]] = []
        while loop.time() < until:
            if not waiting:
                waiting = self._chance.sample(faults, len(faults))
            fault = waiting.pop()
            await self._work.under_way()
            await fault()
            name = fault.__name__.removeprefix("_")
            self.kinds[name] = self.kinds.get(name, 0) + 1
            await self._cluster.until_in_sync()
            await self._work.acknowledged(FEW)

    def _one(self) -> int:
        return self._chance.choice(sorted(self._cluster.nodes))

    async def _kill_one(self) -> None:
        victim = self._one()
        await self._cluster.kill(victim)
        self._work.fault(f"SIGKILL of node {victim}")
        await self._work.acknowledged(self._chance.choice((0, FEW, SOME)))
        await self._cluster.start()

    async def _kill_two(self) -> None:
        victims = self._chance.sample(sorted(self._cluster.nodes), 2)
        await self._cluster.kill(*victims)
        self._work.fault(f"SIGKILL of nodes {victims}")
        await self._cluster.start()

    async def _kill_all(self) -> None:
        await self._cluster.kill(*self._cluster.nodes)
        self._work.fault("SIGKILL of all nodes")
        await self._cluster.start()

    async def _stop(self) -> None:
        victim = self._one()
        await self._cluster.stop(victim)
        self._work.fault(f"SIGTERM of node {victim}")
        await self._cluster.start()

    async def _stand_still(self) -> None:
        victim = self._one()
        self._cluster.pause(victim)
        self._work.fault(f"SIGSTOP of node {victim}")
        await self._work.acknowledged(SOME)
        self._cluster.go_on(victim)

    async def _isolate(self) -> None:
        victim, way = self._one(), self._chance.choice((Way.NONE, Way.ONLY_BACK, Way.ONLY_FORTH))
        self._cluster.isolate(victim, way)
        self._work.fault(f"node {victim} cut off, {way.value}")
        await self._work.acknowledged(SOME)
        if self._chance.random() < 0.5:
            await self._cluster.kill(victim)
            self._work.fault(f"SIGKILL of node {victim}, which is cut off")
        self._cluster.heal()
        await self._cluster.start()

    async def _cut(self) -> None:
        here, there = self._chance.sample(sorted(self._cluster.nodes), 2)
        way = self._chance.choice((Way.NONE, Way.ONLY_BACK, Way.ONLY_FORTH))
        self._cluster.cut(here, there, way)
        self._work.fault(f"the link from {here} to {there} cut, {way.value}")
        await self._work.acknowledged(SOME)
        self._cluster.heal()

    async def _slow(self) -> None:
        victim = self._one()
        for ends, link in self._cluster.links.items():
            if victim in ends:
                link.delay_s = self._chance.choice((0.005, 0.05))
        self._work.fault(f"node {victim} far away")
        await self._work.acknowledged(SOME)
        for link in self._cluster.links.values():
            link.delay_s = 0.0

    async def _set_clock(self) -> None:
        victim, ahead_s = self._one(), self._chance.choice((HOUR_S, -HOUR_S, 10 * YEAR_S, -10 * YEAR_S))
        clocks = self._cluster.clocks
        assert clocks is not None
        clocks.set(victim, ahead_s)
        self._work.fault(f"clock of node {victim} {ahead_s:+d} s")
        await self._work.acknowledged(SOME)
        if self._chance.random() < 0.5:
            await self._cluster.kill(victim)
            self._work.fault(f"SIGKILL of node {victim}, whose clock is wrong")
            await self._cluster.start()
            await self._cluster.until_in_sync()
            await self._work.acknowledged(FEW)
        clocks.set(victim, 0)

    async def _wipe(self) -> None:
        victim = self._one()
        await self._cluster.kill(victim)
        shutil.rmtree(self._cluster.nodes[victim].folder)
        self._work.fault(f"disk of node {victim} wiped")
        await self._work.acknowledged(FEW)
        await self._cluster.start()
