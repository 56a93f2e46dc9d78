"""The simulator itself: what it promises to the simulations."""

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from sim_disk import SimCommitter, SimDisk, SimEngine, SimMark
from sim_loop import Deadlock, Livelock, Process, SimLoop
from sim_network import SimNetwork, SimTransport

from broker.peers.links import Link, PeerId


def simulate(main: Callable[[SimLoop], Coroutine[Any, Any, Any]], seed: int = 1) -> SimLoop:
    loop = SimLoop(seed)
    loop.simulate(main(loop))
    assert not loop.errors, loop.errors
    return loop


def test_time_jumps_and_hours_take_no_time() -> None:
    """Sleeping costs nothing, and ends at the moment it says."""

    async def main(loop: SimLoop) -> None:
        await asyncio.sleep(36_000)
        assert loop.time() == 36_000

    simulate(main)


def test_a_wait_for_nothing_is_a_deadlock() -> None:
    """A future that nobody can ever complete does not hang the tests."""

    async def main(loop: SimLoop) -> None:
        await loop.create_future()

    with pytest.raises(Deadlock):
        simulate(main)


def test_spinning_is_found() -> None:
    """Code that never lets time pass does not hang the tests."""

    async def main(loop: SimLoop) -> None:
        while True:  # noqa: ASYNC110 - this is the mistake
            await asyncio.sleep(0)

    with pytest.raises(Livelock):
        simulate(main)


def test_a_killed_process_runs_nothing_more() -> None:
    """Neither its tasks nor their `finally`; and what another process waits for is not touched."""
    done: list[str] = []

    async def worker() -> None:
        try:
            await asyncio.sleep(1)
            done.append("slept")
        finally:
            done.append("finally")

    async def main(loop: SimLoop) -> None:
        victim, other = Process(loop, "victim"), Process(loop, "other")
        victim.spawn(worker())
        task = other.spawn(worker())
        await asyncio.sleep(0.5)
        victim.kill()
        await task
        assert done == ["slept", "finally"]

    simulate(main)


def test_a_paused_process_catches_up() -> None:
    """What became due meanwhile runs when it goes on, and its clock shows the time that passed."""

    async def main(loop: SimLoop) -> None:
        process = Process(loop, "paused")
        woken: list[tuple[float, float]] = []

        async def sleeper() -> None:
            await asyncio.sleep(1)
            woken.append((loop.now, process.monotonic()))

        process.spawn(sleeper())
        await asyncio.sleep(0.5)
        process.pause()
        await asyncio.sleep(9.5)
        assert not woken
        process.resume()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert woken == [(10.0, 10.0)]

    simulate(main)


def test_clocks_run_at_their_own_rates() -> None:
    """A process with a fast clock wakes early by the others' time."""

    async def main(loop: SimLoop) -> None:
        fast = Process(loop, "fast", clock_rate=2.0, clock_offset_s=500.0)

        async def sleeper() -> None:
            assert loop.time() == fast.monotonic() == 500.0
            await asyncio.sleep(10)
            assert loop.time() == 510.0

        await fast.spawn(sleeper())
        assert loop.time() == 5.0

    simulate(main)


class Recorder:
    """A link handler that notes what it is told."""

    def __init__(self, received: list[bytes] | None = None) -> None:
        self.messages: list[bytes] = [] if received is None else received
        self.closed_count = 0
        self.writable_count = 0

    def received(self, message: bytes) -> None:
        self.messages.append(message)

    def writable(self) -> None:
        self.writable_count += 1

    def closed(self) -> None:
        self.closed_count += 1


class Pair:
    """Two nodes, one link."""

    def __init__(self, loop: SimLoop, *, clusters: tuple[str, str] = ("c", "c")) -> None:
        self.loop = loop
        self.network = SimNetwork(loop)
        self.processes = [Process(loop, "one"), Process(loop, "two")]
        self.transports = [
            SimTransport(self.network, process, PeerId(number, f"s{number}"), cluster_id=cluster)
            for number, (process, cluster) in enumerate(zip(self.processes, clusters, strict=True), start=1)
        ]
        self.lost: list[int] = []
        self.accepted: list[tuple[Link, Recorder]] = []
        for transport in self.transports:
            transport.set_address(1, "node-1:7071")
            transport.set_address(2, "node-2:7071")
            transport.start()
        self.transports[0].add_lost_listener(self.lost.append)
        self.transports[1].serve("raft", self._accept)
        self.connect()

    def connect(self) -> None:
        self.client = Recorder()
        self.link = self.processes[0].run(self.transports[0].connect, 2, "raft", self.client)

    def _accept(self, link: Link) -> Recorder:
        self.accepted.append((link, Recorder()))
        return self.accepted[-1][1]

    def send(self, *messages: bytes) -> None:
        for message in messages:
            self.processes[0].run(self.link.send, message)


def test_links_keep_order_and_know_their_peers() -> None:
    """Messages sent before the link is up arrive in order; both ends learn who the other is."""

    async def main(loop: SimLoop) -> None:
        pair = Pair(loop)
        sent = [b"%d" % number for number in range(200)]
        pair.send(*sent)
        await asyncio.sleep(5)
        link, handler = pair.accepted[0]
        assert handler.messages == sent
        assert (link.peer, pair.link.peer) == (PeerId(1, "s1"), PeerId(2, "s2"))
        pair.processes[1].run(link.close)
        await asyncio.sleep(1)
        assert (pair.client.closed_count, handler.closed_count, pair.lost) == (1, 1, [])

    simulate(main)


def test_a_short_cut_delays_and_a_long_one_breaks() -> None:
    """What piled up in a cut that heals arrives; by keepalive both ends give the link up."""

    async def main(loop: SimLoop) -> None:
        pair = Pair(loop)
        pair.send(b"a")
        await asyncio.sleep(1)
        pair.network.cut(1, 2)
        pair.send(b"b", b"c")
        await asyncio.sleep(1)
        handler = pair.accepted[0][1]
        assert handler.messages == [b"a"]
        pair.network.heal(1, 2)
        await asyncio.sleep(1)
        assert handler.messages == [b"a", b"b", b"c"]
        pair.network.cut(1, 2)
        pair.send(b"d")
        await asyncio.sleep(5)
        assert handler.messages == [b"a", b"b", b"c"]
        assert (handler.closed_count, pair.client.closed_count) == (1, 1)
        pair.connect()
        await asyncio.sleep(5)
        assert pair.client.closed_count == 1
        pair.network.heal_all()
        pair.connect()
        pair.send(b"e")
        await asyncio.sleep(1)
        assert pair.accepted[-1][1].messages == [b"e"]

    simulate(main)


def test_a_killed_process_is_noticed_at_once_a_dead_machine_by_keepalive() -> None:
    """The kernel of a killed process resets its links; a machine without power does nothing."""

    async def main(loop: SimLoop) -> None:
        for machine, after in ((False, 0.1), (True, 3.0)):
            pair = Pair(loop)
            await asyncio.sleep(1)
            pair.processes[1].kill()
            pair.network.died(pair.processes[1], 2, machine=machine)
            await asyncio.sleep(0.05)
            assert pair.client.closed_count == (0 if machine else 1)
            await asyncio.sleep(after)
            assert (pair.client.closed_count, pair.lost) == (1, [2])
            pair.connect()
            await asyncio.sleep(0.1)
            assert pair.client.closed_count == 1

    simulate(main)


def test_a_half_broken_link_allows_a_second_one() -> None:
    """The end that does not know yet keeps its link while the other connects again."""

    async def main(loop: SimLoop) -> None:
        pair = Pair(loop)
        await asyncio.sleep(1)
        assert pair.network.break_links(1, 2, half=True) == 1
        await asyncio.sleep(0.1)
        pair.connect()
        await asyncio.sleep(0.1)
        assert len(pair.accepted) == 2
        assert sum(handler.closed_count for _, handler in pair.accepted) + pair.client.closed_count <= 1
        await asyncio.sleep(5)
        assert pair.accepted[0][1].closed_count == 1
        assert pair.accepted[1][1].closed_count == 0

    simulate(main)


def test_another_cluster_is_refused() -> None:
    """A link between clusters never opens."""

    async def main(loop: SimLoop) -> None:
        pair = Pair(loop, clusters=("c", "d"))
        await asyncio.sleep(1)
        assert (pair.client.closed_count, pair.accepted) == (1, [])
        assert pair.transports[1].refusals == ["cluster c is not d"]

    simulate(main)


def test_a_full_link_says_so() -> None:
    """Beyond the bound there is no room, and `writable` tells when there is again."""

    async def main(loop: SimLoop) -> None:
        pair = Pair(loop)
        pair.network.speed.queue_bytes_max = 100
        pair.send(b"x" * 60)
        assert pair.link.has_room
        pair.send(b"x" * 60)
        assert not pair.link.has_room
        await asyncio.sleep(1)
        assert pair.link.has_room
        assert pair.client.writable_count == 1

    simulate(main)


class Store:
    """One database and a committer on it."""

    def __init__(self, loop: SimLoop, disk: SimDisk) -> None:
        self.process = Process(loop, "store")
        self.fatal: list[Exception] = []
        self.engine = SimEngine(disk, disk.database("data"), self.process)
        self.committer = self.process.run(self._committer, loop)

    def _committer(self, loop: SimLoop) -> SimCommitter:
        return SimCommitter(self.engine, SimMark(self.engine), loop=loop, on_fatal=self.fatal.append)

    def put(self, key: bytes, told: list[bytes]) -> None:
        def submit() -> None:
            self.committer.submit([("put", "f", key, b"v")], size_bytes=10, on_durable=lambda: told.append(key))

        self.process.run(submit)

    def keys(self) -> list[bytes]:
        return [key for key, _ in self.engine.scan("f", b"", b"\xff")]


def test_what_was_told_durable_survives_the_power() -> None:
    """Writes that were not fsynced may go, from some write on; a kill alone loses none that was written."""
    lost_some = False
    for seed in range(30):

        async def main(loop: SimLoop) -> None:
            nonlocal lost_some
            disk = SimDisk(loop, "disk")
            store = Store(loop, disk)
            told: list[bytes] = []
            keys = [b"%03d" % number for number in range(50)]
            for key in keys:
                store.put(key, told)
                await asyncio.sleep(loop.random(f"{key!r}").random() * 0.004)
            store.process.kill()
            written = store.keys()
            assert written == keys[: len(written)]
            disk.cut_power()
            left = Store(loop, disk).keys()
            assert left == keys[: len(left)]
            assert told == keys[: len(told)]
            assert len(told) <= len(left)
            lost_some = lost_some or len(left) < len(written)

        simulate(main, seed)
    assert lost_some


def test_a_failed_fsync_is_fatal() -> None:
    """Nothing is told durable after it."""

    async def main(loop: SimLoop) -> None:
        disk = SimDisk(loop, "disk")
        store = Store(loop, disk)
        told: list[bytes] = []
        store.put(b"a", told)
        await asyncio.sleep(1)
        disk.sync_fails = True
        store.put(b"b", told)
        await asyncio.sleep(1)
        assert (told, len(store.fatal)) == ([b"a"], 1)

    simulate(main)


def test_a_seed_gives_one_trace() -> None:
    """The same seed twice: the same hash. Another seed: another one."""

    async def main(loop: SimLoop) -> None:
        pair = Pair(loop)
        draw: random.Random = loop.random("test")
        for number in range(100):
            pair.send(b"%d" % number)
            await asyncio.sleep(draw.random() * 0.01)
            if draw.random() < 0.1:
                pair.network.break_links(1, 2, half=draw.random() < 0.5)
                pair.connect()

    assert simulate(main, 7).trace.digest == simulate(main, 7).trace.digest != simulate(main, 8).trace.digest
