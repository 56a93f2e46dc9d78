"""Machines of a simulated cluster, and what goes wrong with them.

Owns their lives: a machine has a disk and at most one running process; it is started, killed, paused, loses its power
or its disk. `Nemesis` does all that at random moments from a seed, and counts each fault where it took effect, so that
a run which proves nothing is known. What the processes do is `boot`'s business.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from sim_disk import SimDisk
from sim_loop import Process, SimLoop
from sim_network import SimNetwork, SimTransport

from broker.peers.links import PeerId

Boot = Callable[["Machine"], Any]
"""boot(machine) starts the program in `machine.process`, whose code runs it; what it returns is `machine.program`."""


class Machine:
    """One node's hardware."""

    def __init__(
        self,
        loop: SimLoop,
        network: SimNetwork,
        node_id: int,
        boot: Boot,
        *,
        cluster_id: str,
        clock_drift: float = 0.02,
    ) -> None:
        self.loop = loop
        self.network = network
        self.node_id = node_id
        self.cluster_id = cluster_id
        self.disk = SimDisk(loop, f"disk{node_id}")
        self.random = loop.random(f"machine {node_id}")
        self.process: Process | None = None
        self.transport: SimTransport
        self.program: Any = None
        self.starts_count = 0
        self.lost_writes = 0
        self._boot = boot
        self._clock_drift = clock_drift
        self._powered = True

    @property
    def me(self) -> PeerId:
        """The node with the disk that it has now."""
        return PeerId(self.node_id, self.disk.store_id)

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.alive

    def start(self) -> None:
        """Starts the program; nothing if it runs."""
        if self.running:
            return
        self.starts_count += 1
        rate = 1 + self.random.uniform(-self._clock_drift, self._clock_drift)
        process = self.process = Process(
            self.loop,
            f"node {self.node_id}.{self.starts_count}",
            clock_rate=rate,
            clock_offset_s=self.random.uniform(10, 10_000),
        )
        self._powered = True
        process.on_exit.append(lambda: self.network.died(process, self.node_id, machine=not self._powered))
        self.transport = SimTransport(
            self.network, process, self.me, cluster_id=self.cluster_id, endpoint=endpoint(self.node_id)
        )
        self.loop.note(f"start {self.node_id}")
        self.program = process.run(self._boot, self)

    def kill(self) -> None:
        """SIGKILL: what was written stays."""
        if self.process is not None and self.process.alive:
            self.loop.note(f"kill {self.node_id}")
            self.process.kill()
        self.program = None

    def cut_power(self) -> None:
        """What was not fsynced is gone, and nobody resets the links."""
        self._powered = False
        self.kill()
        lost = self.disk.cut_power()
        self.lost_writes += lost
        self.loop.note(f"power {self.node_id} lost {lost}")

    def fatal(self, error: Exception) -> None:
        """For `on_fatal`: the process ends itself."""
        self.loop.note(f"fatal {self.node_id}")
        self.kill()

    def random_for(self, purpose: str) -> random.Random:
        """For the program's own draws: another one at each start."""
        return self.loop.random(f"node {self.node_id}.{self.starts_count} {purpose}")


def endpoint(node_id: int) -> str:
    """Where a node listens for its peers."""
    return f"node-{node_id}:7071"


@dataclass(slots=True)
class FaultPlan:
    """What may go wrong, and how often in relation to the others; 0: never."""

    weights: dict[str, float] = field(
        default_factory=lambda: {
            "kill": 3,
            "power_cut": 2,
            "blackout": 0.5,
            "pause": 2,
            "cut_one_way": 2,
            "partition": 2,
            "isolate": 2,
            "heal": 3,
            "break_links": 2,
            "slow_disk": 1.5,
            "sync_error": 0.7,
            "slow_network": 1,
            "wall_jump": 0.5,
            "wipe": 0.7,
        }
    )
    pause_mean_s: float = 0.7
    """Between two faults."""
    down_mean_s: float = 1.0
    """How long a machine stays down."""

    def drawn(self, draw: random.Random) -> "FaultPlan":
        """Another mixture for each seed: faults that are rare together meet more often (swarm testing)."""
        weights = {kind: weight * draw.choice((0, 0.3, 1, 1, 3)) for kind, weight in self.weights.items()}
        weights["kill"] += 1
        return FaultPlan(weights, pause_mean_s=draw.choice((0.3, 0.7, 1.0)), down_mean_s=draw.choice((0.3, 1.0, 3.0)))


DOWN_SHARE_MAX: Final = 0.6
_YEAR_S: Final = 365 * 86_400


class Nemesis:
    """Faults at random moments. `faults` counts those that took effect."""

    def __init__(
        self,
        loop: SimLoop,
        network: SimNetwork,
        machines: Sequence[Machine],
        plan: FaultPlan,
        *,
        leader: Callable[[], int | None] = lambda: None,
        may_wipe: Callable[[Machine], bool] = lambda machine: False,
        extra: dict[str, Callable[[random.Random], bool]] | None = None,
    ) -> None:
        """leader: whose isolation hurts most. may_wipe: whether the cluster can bear the loss of this disk now.

        extra: faults of the program under test; each says whether it took effect.
        """
        self.loop = loop
        self.network = network
        self.machines = machines
        self.plan = plan
        self.faults: Counter[str] = Counter()
        self._random = loop.random("nemesis")
        self._leader = leader
        self._may_wipe = may_wipe
        self._actions: dict[str, Callable[[random.Random], bool]] = {
            name: getattr(self, f"_{name}") for name in plan.weights if hasattr(self, f"_{name}")
        } | (extra or {})
        self._tasks: list[Any] = []
        self._calm = False

    async def run(self, duration_s: float) -> None:
        """Does its worst for so long, then `calm`."""
        until = self.loop.now + duration_s
        names = [name for name in self.plan.weights if name in self._actions]
        weights = [self.plan.weights[name] for name in names]
        while True:
            await asyncio.sleep(self._random.expovariate(1 / self.plan.pause_mean_s))
            # Not only between two moments of time, but between any two callbacks.
            await self.loop.steps(self._random.choice((0, 0, 1, 2, 3, 5, 8, 20)))
            if self.loop.now >= until:
                break
            (name,) = self._random.choices(names, weights)
            if self._actions[name](self._random):
                self.loop.note(f"fault {name}")
                self.faults[name] += 1
        self.calm()

    def calm(self) -> None:
        """Everything works again from now on."""
        self._calm = True
        self.loop.note("calm")
        self.network.heal_all()
        self.network.speed.delay_s = 0.001
        for machine in self.machines:
            machine.disk.speed.factor = 1.0
            machine.disk.sync_fails = False
            if machine.process is not None and machine.process.paused:
                machine.process.resume()
            machine.start()

    def _later(self, mean_s: float, action: Callable[[], None]) -> None:
        def unless_calm() -> None:
            if not self._calm:
                action()

        self.loop.call_later(self._random.expovariate(1 / mean_s), unless_calm)

    def _victim(self, draw: random.Random) -> Machine | None:
        """A running machine, the leader a third of the time; nobody while too many are down."""
        running = [machine for machine in self.machines if machine.running]
        if len(self.machines) - len(running) > DOWN_SHARE_MAX * len(self.machines) or not running:
            return None
        leader = self._leader()
        if leader is not None and draw.random() < 0.35:
            for machine in running:
                if machine.node_id == leader:
                    return machine
        return draw.choice(running)

    def _kill(self, draw: random.Random) -> bool:
        machine = self._victim(draw)
        if machine is None:
            return False
        machine.kill()
        self._later(self.plan.down_mean_s, machine.start)
        return True

    def _power_cut(self, draw: random.Random) -> bool:
        machine = self._victim(draw)
        if machine is None:
            return False
        lost_before = machine.lost_writes
        machine.cut_power()
        self.faults["lost_writes"] += machine.lost_writes > lost_before
        self._later(self.plan.down_mean_s, machine.start)
        return True

    def _blackout(self, draw: random.Random) -> bool:
        """The power of all machines."""
        for machine in self.machines:
            lost_before = machine.lost_writes
            machine.cut_power()
            self.faults["lost_writes"] += machine.lost_writes > lost_before
            self._later(0.3, machine.start)
        return True

    def _pause(self, draw: random.Random) -> bool:
        machine = self._victim(draw)
        if machine is None or machine.process is None or machine.process.paused:
            return False
        process = machine.process
        self.loop.note(f"pause {machine.node_id}")
        process.pause()
        self._later(draw.choice((0.1, 1.0, 3.0)), process.resume)
        return True

    def _cut_one_way(self, draw: random.Random) -> bool:
        one, other = draw.sample([machine.node_id for machine in self.machines], 2)
        self.network.cut(one, other)
        self._later(draw.choice((0.1, 1.0, 5.0)), lambda: self.network.heal(one, other))
        return True

    def _partition(self, draw: random.Random) -> bool:
        """Two sides, neither of which hears the other."""
        ids = [machine.node_id for machine in self.machines]
        draw.shuffle(ids)
        count = draw.randint(1, len(ids) - 1)
        for one in ids[:count]:
            for other in ids[count:]:
                self.network.cut(one, other)
                self.network.cut(other, one)
        self._later(2.0, self.network.heal_all)
        return True

    def _isolate(self, draw: random.Random) -> bool:
        """The leader hears nobody, or nobody hears it, or both."""
        leader = self._leader()
        if leader is None:
            return False
        into, out = draw.choice(((True, True), (True, False), (False, True)))
        for machine in self.machines:
            if into:
                self.network.cut(machine.node_id, leader)
            if out:
                self.network.cut(leader, machine.node_id)
        self._later(2.0, self.network.heal_all)
        return True

    def _heal(self, draw: random.Random) -> bool:
        self.network.heal_all()
        return True

    def _break_links(self, draw: random.Random) -> bool:
        one, other = draw.sample([machine.node_id for machine in self.machines], 2)
        return self.network.break_links(one, other, half=draw.random() < 0.4) > 0

    def _slow_disk(self, draw: random.Random) -> bool:
        machine = draw.choice(self.machines)
        machine.disk.speed.factor = draw.choice((5.0, 30.0, 200.0))

        def restore() -> None:
            machine.disk.speed.factor = 1.0

        self._later(2.0, restore)
        return True

    def _slow_network(self, draw: random.Random) -> bool:
        self.network.speed.delay_s = draw.choice((0.01, 0.05, 0.2))

        def restore() -> None:
            self.network.speed.delay_s = 0.001

        self._later(1.5, restore)
        return True

    def _sync_error(self, draw: random.Random) -> bool:
        machine = self._victim(draw)
        if machine is None:
            return False
        machine.disk.sync_fails = True
        process = machine.process
        assert process is not None

        def ended() -> None:
            self._later(self.plan.down_mean_s, machine.start)

        process.on_exit.append(ended)
        return True

    def _wall_jump(self, draw: random.Random) -> bool:
        machine = self._victim(draw)
        if machine is None or machine.process is None:
            return False
        process = machine.process
        others = [other.process for other in self.machines if other is not machine and other.process is not None]
        jump_s = draw.choice((-_YEAR_S, -3600, -100, -5, 5, 100, 3600, 10 * _YEAR_S))
        if abs(jump_s) > 100 and any(abs(other.wall_jump_us) > 0 for other in others if other.alive):
            return False  # a cluster may tell the time for as long as one clock is wrong
        process.wall_jump_us = jump_s * 1_000_000

        def restore() -> None:
            process.wall_jump_us = 0

        self._later(3.0, restore)
        return True

    def _wipe(self, draw: random.Random) -> bool:
        machine = self._victim(draw)
        if machine is None or not self._may_wipe(machine):
            return False
        machine.kill()
        machine.disk.wipe()
        self.loop.note(f"wipe {machine.node_id}")
        self._later(self.plan.down_mean_s, machine.start)
        return True
