"""Questions between nodes under faults: each ends once and in time, and what is said of it is true."""

import asyncio
import random
from collections import Counter

import pytest
from sim_loop import SimLoop
from sim_machines import FaultPlan, Machine, Nemesis, endpoint
from sim_network import SimNetwork
from sim_seeds import check_replays, run_seed, seeds

from broker.errors import PostbusError, draining
from broker.peers.calls import Calls, PeerUnreachable

DURATION_S = 60.0
TIMEOUT_S = 1.5


class Asker:
    """One node's program: asks others at random and answers them."""

    def __init__(self, machine: Machine, facts: "Facts") -> None:
        self.machine = machine
        self.facts = facts
        process = machine.process
        assert process is not None
        transport = machine.transport
        for node_id in (1, 2, 3):
            transport.set_address(node_id, endpoint(node_id))
        self.calls = Calls(transport, clock=process, node_id=machine.node_id, store_id=machine.me.store_id)
        self.calls.handle("work", self._work)
        transport.start()
        process.spawn(self._ask(machine.random_for("ask")))

    async def _work(self, peer: object, payload: bytes) -> bytes:
        self.facts.started[payload] += 1
        order = payload.split(b" ")
        stream = (b" ".join(order[:2]), self.machine.starts_count, self.machine.node_id)
        assert self.facts.order.get(stream, -1) < int(order[2]), "calls started out of order"
        self.facts.order[stream] = int(order[2])
        if order[3] == b"slow":
            await asyncio.sleep(0.2)
        if order[3] == b"refused":
            raise draining()
        return payload

    async def _ask(self, draw: random.Random) -> None:
        number = 0
        while True:
            await asyncio.sleep(draw.expovariate(20))
            for _ in range(draw.randint(1, 3)):
                number += 1
                to = draw.choice((1, 2, 3))
                kind = draw.choice((b"quick", b"slow", b"refused"))
                who = b"%d>%d %d" % (self.machine.node_id, to, self.machine.starts_count)
                payload = b"%b %d %b" % (who, number, kind)
                future = self.calls.start_call(to, "work", payload, timeout_s=TIMEOUT_S)
                assert self.machine.process is not None
                self.machine.process.spawn(self._outcome(future, payload, kind))

    async def _outcome(self, future: "asyncio.Future[bytes]", payload: bytes, kind: bytes) -> None:
        facts, begin = self.facts, asyncio.get_running_loop().time()
        facts.asked += 1
        try:
            assert await future == payload
            facts.ended["answered"] += 1
            assert facts.started[payload] == 1
        except PostbusError as error:
            assert kind == b"refused"
            assert error.reason_name == "DRAINING"
            facts.ended["refused"] += 1
        except PeerUnreachable as error:
            facts.ended[f"unreachable, sent={error.sent}"] += 1
            if not error.sent:
                facts.never_sent.append(payload)
        except TimeoutError:
            facts.ended["timeout"] += 1
        took_s = asyncio.get_running_loop().time() - begin
        if self.machine.process is not None and not facts.pauses:
            assert took_s <= TIMEOUT_S + 0.1, f"{payload!r} took {took_s}"


class Facts:
    """What the nodes did, all together."""

    def __init__(self) -> None:
        self.started: Counter[bytes] = Counter()
        self.order: dict[tuple[bytes, int, int], int] = {}
        self.ended: Counter[str] = Counter()
        self.never_sent: list[bytes] = []
        self.asked = 0
        self.pauses = True


async def calls_under_faults(loop: SimLoop) -> Facts:
    network, facts = SimNetwork(loop), Facts()
    machines = [Machine(loop, network, number, lambda m: Asker(m, facts), cluster_id="c") for number in (1, 2, 3)]
    for machine in machines:
        machine.start()
    nemesis = Nemesis(loop, network, machines, FaultPlan(), leader=lambda: 1)
    await nemesis.run(DURATION_S)
    await asyncio.sleep(10)
    assert all(facts.started[payload] == 0 for payload in facts.never_sent), "said not sent, and was started"
    assert max(facts.started.values()) == 1
    before = facts.ended["answered"]
    await asyncio.sleep(5)
    assert facts.ended["answered"] > before + 50, "the faults are over, and calls do not get through"
    assert facts.ended["answered"] > 300, facts.ended
    assert facts.ended["unreachable, sent=True"] > 3, facts.ended
    assert facts.ended["unreachable, sent=False"] > 3, facts.ended
    assert sum(nemesis.faults.values()) > 20, nemesis.faults
    return facts


@pytest.mark.parametrize("seed", seeds(1))
def test_calls_tell_the_truth(seed: int) -> None:
    """A call ends once, in time; "not sent" means that its handler never ran; order is kept; errors travel whole."""
    run_seed(calls_under_faults, seed, to_be_replayed=True)


def test_calls_replay() -> None:
    """The same seed gives the same trace."""
    check_replays(calls_under_faults, seeds(1)[0])
