"""The pure cores, put together in any order that a network, disks and a controller may bring about.

A model of three replicas whose logs are lists, with one controller; every message may come late or not at all, every
write may be lost until it is fsynced. After each step the invariants of replication hold (see the class).
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from broker.replication.follower import (
    Ask,
    Diverging,
    FollowedPartition,
    Reset,
    Truncate,
    check_fetch,
)
from broker.replication.leader import IsrSettings, LedPartition, Proposal, Registered, Replicas

NODES = (1, 2, 3)
Entry = tuple[int, int]  # (leader epoch, which)


@dataclass
class ListLog:
    """A log of one-record batches."""

    entries: list[Entry] = field(default_factory=list)
    durable_end_offset: int = 0
    log_start_offset: int = 0

    @property
    def end_offset(self) -> int:
        return len(self.entries)

    @property
    def last_epoch(self) -> int:
        return self.entries[-1][0] if self.entries else -1

    def end_offset_for_epoch(self, epoch: int) -> tuple[int, int]:
        known = [number for number, _ in self.entries if number <= epoch]
        if not known:
            return -1, 0
        return known[-1], len(known)

    def cut(self, end_offset: int) -> None:
        del self.entries[end_offset:]
        self.durable_end_offset = min(self.durable_end_offset, end_offset)


@dataclass
class Feed:
    session: int
    next_offset: int


@dataclass
class Node:
    """One life of a replica."""

    node_id: int
    log: ListLog
    broker_epoch: int
    alive: bool = True
    seen: int = 0  # index of the image
    led: LedPartition | None = None
    followed: FollowedPartition | None = None
    feeds: dict[int, Feed] = field(default_factory=dict)


@dataclass(frozen=True)
class Image:
    leader: int
    state: Replicas
    fenced: frozenset[int] = frozenset()
    broker_epochs: tuple[int, ...] = (1, 2, 3)

    def registered(self) -> dict[int, Registered]:
        return {
            node_id: Registered(self.broker_epochs[node_id - 1], may_join=node_id not in self.fenced)
            for node_id in NODES
        }


@dataclass
class Request:
    """An AlterPartition on its way."""

    sender: Node
    proposal: Proposal
    answered: bool = False


class Replication(RuleBasedStateMachine):
    """I2, I3: nothing committed is missing, durably, from the leader or any member of ISR and ELR. I4: what is
    committed at an offset never differs. I5: a leader that is not stale counts everyone whom the controller counts.
    I9: epochs only grow. I10: nothing committed is ever truncated.
    """

    min_insync = 2
    breaks_rule = ""  # for mutants

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.written = 0
        self.session = 0
        self.broker_epoch = 10
        self.committed: list[Entry] = []
        self.images = [Image(1, Replicas(NODES, NODES, (), 1, 1))]
        self.nodes = {node_id: Node(node_id, ListLog(), node_id, seen=-1) for node_id in NODES}
        self.up: dict[int, list[object]] = {node_id: [] for node_id in NODES}  # by follower
        self.down: dict[int, list[object]] = {node_id: [] for node_id in NODES}
        self.requests: list[Request] = []
        for node in self.nodes.values():
            self.sees(node, 0)

    @property
    def image(self) -> Image:
        return self.images[-1]

    def put(self, image: Image) -> None:
        """I9 of the controller; what it may not do is not this model's business."""
        self.images.append(image)

    # --- the controller

    def changed(self, isr: tuple[int, ...], *, leader: int | None = None, image: Image | None = None) -> Image:
        """The image with this ISR, and with whoever leads then."""
        before = image or self.image
        state = before.state
        left = [node_id for node_id in (*state.isr, *state.elr) if node_id not in isr]
        elr = tuple(dict.fromkeys(left)) if len(isr) < self.min_insync else ()
        leader = before.leader if leader is None else leader
        if leader not in isr:
            candidates = [node_id for node_id in (*isr, *elr) if node_id not in before.fenced]
            leader = candidates[0] if candidates else 0
            if leader and leader not in isr:
                isr, elr = (leader,), tuple(node_id for node_id in elr if node_id != leader)
        epoch = state.leader_epoch + (leader != before.leader)
        return replace(
            before,
            leader=leader,
            state=replace(state, isr=isr, elr=elr, leader_epoch=epoch, partition_epoch=state.partition_epoch + 1),
        )

    def fence_now(self, node_id: int) -> None:
        image = replace(self.image, fenced=self.image.fenced | {node_id})
        isr = tuple(member for member in image.state.isr if member != node_id)
        self.put(self.changed(isr, image=image))

    @rule(node_id=st.sampled_from(NODES))
    def fence(self, node_id: int) -> None:
        """It was silent for too long, as far as the controller can tell."""
        if node_id not in self.image.fenced:
            self.fence_now(node_id)

    @rule(node_id=st.sampled_from(NODES))
    def unfence(self, node_id: int) -> None:
        node = self.nodes[node_id]
        registered = self.image.broker_epochs[node_id - 1] == node.broker_epoch
        if node.alive and registered and node_id in self.image.fenced:
            image = replace(self.image, fenced=self.image.fenced - {node_id})
            self.put(self.changed(image.state.isr, image=image) if not image.leader else image)

    @rule(node_id=st.sampled_from(NODES))
    def prefer(self, node_id: int) -> None:
        """Another member of the ISR leads."""
        if node_id in self.image.state.isr and node_id not in self.image.fenced:
            self.put(self.changed(self.image.state.isr, leader=node_id))

    # --- proposals

    @rule(node_id=st.sampled_from(NODES))
    def propose(self, node_id: int) -> None:
        node = self.nodes[node_id]
        if node.alive and node.led is not None:
            registered = self.images[node.seen].registered()
            proposal = node.led.propose(end_offset=node.log.end_offset, registered=registered, now_s=self.now_s)
            if proposal is not None:
                self.requests.append(Request(node, proposal))

    @precondition(lambda self: self.requests)
    @rule(at=st.integers(0, 5), answer=st.booleans())
    def decide(self, at: int, answer: bool) -> None:
        """The controller's compare-and-set; its answer may be lost, and its question may be an old one."""
        request = self.requests.pop(at % len(self.requests))
        proposal, image = request.proposal, self.image
        node, led = request.sender, request.sender.led
        epochs = {node_id: image.broker_epochs[node_id - 1] for node_id in NODES}
        fits = (
            image.leader == node.node_id
            and epochs[node.node_id] == node.broker_epoch
            and image.state.leader_epoch == proposal.leader_epoch
            and image.state.partition_epoch == proposal.partition_epoch
        )
        good = all(epochs[n] == epoch and n not in image.fenced for n, epoch in proposal.isr)
        if fits and good:
            self.put(self.changed(proposal.members))
        if request.answered or not node.alive or led is None or led.leader_epoch != proposal.leader_epoch:
            return
        if not answer:
            led.unanswered(proposal, now_s=self.now_s)
        elif fits and good:
            led.accepted(proposal, self.image.state, now_s=self.now_s)
        else:
            led.refused(proposal, outdated=not fits, now_s=self.now_s)
        self.advance(node)

    @precondition(lambda self: self.requests)
    @rule(at=st.integers(0, 5))
    def times_out(self, at: int) -> None:
        """The leader gives up waiting; the question is still under way."""
        request = self.requests[at % len(self.requests)]
        led = request.sender.led
        request.answered = True
        if led is not None and led.leader_epoch == request.proposal.leader_epoch:
            led.unanswered(request.proposal, now_s=self.now_s)

    # --- nodes

    @rule(node_id=st.sampled_from(NODES), step=st.booleans())
    def see(self, node_id: int, step: bool) -> None:
        """A node hears what the controller decided: the next thing, or all of it at once."""
        node = self.nodes[node_id]
        if node.alive and node.seen < len(self.images) - 1:
            self.sees(node, node.seen + 1 if step else len(self.images) - 1)

    def sees(self, node: Node, index: int) -> None:
        before, image = self.images[max(node.seen, 0)], self.images[index]
        fresh = node.seen < 0 or before.state.leader_epoch != image.state.leader_epoch
        node.seen = index
        if not fresh:
            if node.led is not None:
                node.led.changed(image.state, now_s=self.now_s)
                self.advance(node)
            return
        if node.led is not None:
            for follower in node.feeds:
                self.up[follower].clear()
                self.down[follower].clear()
        node.led, node.followed, node.feeds = None, None, {}
        self.up[node.node_id].clear()
        self.down[node.node_id].clear()
        if image.leader == node.node_id:
            # A node that comes back leads in a new epoch only.
            if image.broker_epochs[node.node_id - 1] == node.broker_epoch:
                node.led = LedPartition(
                    node.node_id,
                    image.state,
                    min_insync_replicas=self.min_insync,
                    start_offset=node.log.end_offset,
                    durable_offset=node.log.durable_end_offset,
                    high_watermark=0,
                    settings=IsrSettings(proposal_retry_ms=0),
                    now_s=self.now_s,
                )
        elif image.leader:
            node.followed = FollowedPartition(leader_id=image.leader, leader_epoch=image.state.leader_epoch)

    @rule(node_id=st.sampled_from(NODES))
    def crash(self, node_id: int) -> None:
        """What was not fsynced is gone."""
        node = self.nodes[node_id]
        if node.alive:
            node.alive = False
            node.log.cut(node.log.durable_end_offset)
            self.drop_links(node)

    @rule(node_id=st.sampled_from(NODES))
    def restart(self, node_id: int) -> None:
        """A new life: registered anew, fenced at first, knowing the image up to there."""
        if self.nodes[node_id].alive:
            return
        self.broker_epoch += 1
        epochs = list(self.image.broker_epochs)
        epochs[node_id - 1] = self.broker_epoch
        self.put(replace(self.image, broker_epochs=tuple(epochs)))
        if node_id not in self.image.fenced:
            self.fence_now(node_id)
        node = self.nodes[node_id] = Node(node_id, self.nodes[node_id].log, self.broker_epoch, seen=-1)
        self.sees(node, len(self.images) - 1)

    def drop_links(self, node: Node) -> None:
        """All of them break."""
        for other in self.nodes.values():
            if other.feeds.pop(node.node_id, None) and other.led is not None:
                other.led.lost(node.node_id, now_s=self.now_s)
            if node.feeds.pop(other.node_id, None) is not None:
                self.silence(other)
        self.silence(node)

    def silence(self, node: Node) -> None:
        self.up[node.node_id].clear()
        self.down[node.node_id].clear()
        if node.followed is not None:
            node.followed.silence()

    @rule(node_id=st.sampled_from(NODES))
    def break_link(self, node_id: int) -> None:
        """Of a follower to its leader."""
        node = self.nodes[node_id]
        for other in self.nodes.values():
            if other.feeds.pop(node_id, None) and other.led is not None:
                other.led.lost(node_id, now_s=self.now_s)
        self.silence(node)

    @rule(seconds=st.sampled_from([0.06, 6.0]))
    def time_passes(self, seconds: float) -> None:
        self.now_s += seconds

    @rule(node_id=st.sampled_from(NODES))
    def append(self, node_id: int) -> None:
        node = self.nodes[node_id]
        if node.alive and node.led is not None:
            self.written += 1
            node.log.entries.append((node.led.leader_epoch, self.written))

    @rule(node_id=st.sampled_from(NODES), count=st.integers(1, 5))
    def fsync(self, node_id: int, count: int) -> None:
        node = self.nodes[node_id]
        if node.alive:
            log = node.log
            log.durable_end_offset = min(log.end_offset, log.durable_end_offset + count)
            self.advance(node)

    # --- links

    @rule(node_id=st.sampled_from(NODES))
    def ask(self, node_id: int) -> None:
        node = self.nodes[node_id]
        if node.alive and node.followed is not None and not node.followed.session:
            self.session += 1
            self.up[node_id].append((node.broker_epoch, node.followed.ask(node.log, session=self.session)))

    @rule(node_id=st.sampled_from(NODES))
    def report(self, node_id: int) -> None:
        node = self.nodes[node_id]
        if node.alive and node.followed is not None and node.followed.session:
            self.up[node_id].append((node.followed.session, node.log.durable_end_offset))

    @rule(node_id=st.sampled_from(NODES))
    def serve(self, node_id: int) -> None:
        """The leader takes the next message of this follower."""
        follower = self.nodes[node_id].followed
        if not self.up[node_id] or follower is None:
            return
        leader = self.nodes[follower.leader_id]
        if not leader.alive or leader.led is None or leader.led.leader_epoch != follower.leader_epoch:
            return
        first, second = self.up[node_id].pop(0)  # type: ignore[misc]
        if isinstance(second, Ask):
            self.serve_ask(leader, leader.led, node_id, first, second)
        elif (feed := leader.feeds.get(node_id)) is not None and feed.session == first:
            leader.led.progressed(
                node_id,
                durable_offset=second,
                written_offset=second,
                end_offset=leader.log.end_offset,
                now_s=self.now_s,
            )
        self.advance(leader)

    def serve_ask(self, leader: Node, led: LedPartition, node_id: int, broker_epoch: int, ask: Ask) -> None:
        leader.feeds.pop(node_id, None)
        diverging = check_fetch(leader.log, fetch_offset=ask.fetch_offset, last_epoch=ask.last_epoch)
        if diverging is not None and self.breaks_rule != "never truncates":
            self.down[node_id].append((ask.session, diverging, [], 0))
            return
        leader.feeds[node_id] = Feed(ask.session, ask.fetch_offset)
        led.fetched(
            node_id,
            broker_epoch=broker_epoch,
            durable_offset=ask.durable_offset,
            end_offset=leader.log.end_offset,
            now_s=self.now_s,
        )
        self.down[node_id].append((ask.session, None, [], led.high_watermark))

    @rule(node_id=st.sampled_from(NODES), count=st.integers(0, 4))
    def feed(self, node_id: int, count: int) -> None:
        """The leader sends the next batches."""
        for leader in self.nodes.values():
            feed = leader.feeds.get(node_id)
            if feed is not None and leader.alive and leader.led is not None:
                batches = leader.log.entries[feed.next_offset : feed.next_offset + count]
                feed.next_offset += len(batches)
                self.down[node_id].append((feed.session, None, batches, leader.led.high_watermark))

    @rule(node_id=st.sampled_from(NODES))
    def receive(self, node_id: int) -> None:
        node = self.nodes[node_id]
        if not node.alive or not self.down[node_id]:
            return
        session, diverging, batches, high_watermark = self.down[node_id].pop(0)  # type: ignore[misc]
        followed = node.followed
        if followed is None or followed.session != session:
            return
        act = followed.answered(node.log, log_start_offset=0, high_watermark=high_watermark, diverging=diverging)
        if act is None:
            node.log.entries.extend(batches)
            return
        end_offset = act.end_offset if isinstance(act, Truncate) else 0
        if self.breaks_rule == "truncates to the high watermark":
            end_offset = followed.high_watermark(node.log)
        assert isinstance(act, Reset) or end_offset < node.log.end_offset, "no progress"
        for offset in range(end_offset, min(node.log.end_offset, len(self.committed))):
            assert node.log.entries[offset] != self.committed[offset], f"I10: {node_id} truncates offset {offset}"
        node.log.cut(end_offset)

    # --- what is promised

    def advance(self, node: Node) -> None:
        led = node.led
        if led is None:
            return
        led.local(durable_offset=node.log.durable_end_offset, written_offset=node.log.end_offset)
        if self.breaks_rule == "watermark over the committed ISR":
            led._waits = [follower for follower in led.followers.values() if follower.node_id in led.isr]
        if led.advance():
            for offset in range(led.high_watermark):
                entry = node.log.entries[offset]
                if offset < len(self.committed):
                    assert self.committed[offset] == entry, f"I4 at offset {offset}"
                else:
                    self.committed.append(entry)

    @invariant()
    def committed_is_kept(self) -> None:
        image = self.image
        count = len(self.committed)
        for node_id in {image.leader, *image.state.isr, *image.state.elr} - {0}:
            log = self.nodes[node_id].log
            assert log.durable_end_offset >= count and log.entries[:count] == self.committed, f"I2, I3: node {node_id}"

    @invariant()
    def the_leader_counts_everyone(self) -> None:
        state = self.image.state
        for node in self.nodes.values():
            if node.led is not None and node.alive and node.led.leader_epoch == state.leader_epoch:
                assert node.led.maximal_isr >= {*state.isr, *state.elr}, f"I5: node {node.node_id}"
                assert node.led.partition_epoch <= state.partition_epoch


class SmallIsr(Replication):
    """One replica in sync is enough."""

    min_insync = 1


@pytest.mark.parametrize("machine", [Replication, SmallIsr])
def test_the_invariants_hold_whatever_happens_in_whatever_order(machine: type[Replication]) -> None:
    """I2, I3, I4, I5, I9, I10."""
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=40, stateful_step_count=100, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


def all_ask(model: Replication, *node_ids: int) -> None:
    for node_id in node_ids:
        model.see(node_id, False)
        model.ask(node_id)
        model.serve(node_id)
        model.receive(node_id)


def all_report(model: Replication, *node_ids: int) -> None:
    for node_id in node_ids:
        model.fsync(node_id, 5)
        model.report(node_id)
        model.serve(node_id)


def watermark_and_a_lost_answer(model: Replication) -> None:
    """Node 2 joins the ISR, the leader never hears so, and goes on."""
    model.fence(2)
    model.fence(3)
    model.see(1, False)
    model.unfence(2)
    model.see(1, False)
    all_ask(model, 2)
    model.propose(1)
    model.decide(0, False)
    model.append(1)
    model.fsync(1, 1)


def election_of_a_replica_without_the_tail(model: Replication) -> None:
    """KIP-101: node 2 has a record that the next leader lacks, and a high watermark that lags."""
    all_ask(model, 2, 3)
    model.append(1)
    model.append(1)
    for node_id in (2, 3):
        model.feed(node_id, 2)
        model.receive(node_id)
    model.fsync(1, 2)
    model.fsync(2, 2)
    model.append(1)
    model.feed(2, 1)
    model.receive(2)
    for node_id in (2, 3):
        all_report(model, node_id) if node_id == 3 else model.report(node_id)
        model.serve(node_id)
    assert len(model.committed) == 2
    model.prefer(3)
    model.see(3, False)
    all_ask(model, 2, 1)
    model.append(3)
    all_ask(model, 2, 1)
    for node_id in (1, 2):
        model.feed(node_id, 1)
        model.receive(node_id)
    model.fsync(3, 1)
    all_report(model, 1, 2)


@pytest.mark.parametrize(
    ("script", "rule_broken"),
    [
        (watermark_and_a_lost_answer, "watermark over the committed ISR"),
        (election_of_a_replica_without_the_tail, "truncates to the high watermark"),
        (election_of_a_replica_without_the_tail, "never truncates"),
    ],
)
def test_what_other_systems_got_wrong_is_not_so_here(script: Callable[[Replication], None], rule_broken: str) -> None:
    """Nothing committed is lost; and with the rule broken it would be, or the test would prove nothing."""
    model = SmallIsr()
    script(model)
    model.committed_is_kept()
    assert model.committed or script is watermark_and_a_lost_answer
    mutant = SmallIsr()
    mutant.breaks_rule = rule_broken

    def run() -> None:
        script(mutant)
        mutant.committed_is_kept()

    with pytest.raises(AssertionError, match="I"):
        run()


def test_a_leader_with_nothing_in_common_makes_the_follower_begin_anew() -> None:
    """Its log begins in a later epoch than the follower ever saw."""
    leader, follower = ListLog([(5, 1), (5, 2)], 2), ListLog([(1, 9)], 1)
    diverging = check_fetch(leader, fetch_offset=1, last_epoch=1)
    assert diverging == Diverging(-1, 0)
    followed = FollowedPartition(leader_id=1, leader_epoch=5)
    followed.ask(follower, session=1)
    assert followed.answered(follower, log_start_offset=0, high_watermark=0, diverging=diverging) == Reset(0)
    assert not followed.session and not followed.matched


def test_a_replica_that_may_have_been_emptied_counts_for_nothing_before_it_asks_again() -> None:
    """It was removed and added again, and the leader saw both at once, as from a snapshot of the image."""
    state = Replicas(replicas=(1, 2, 3), isr=(1, 2, 3), elr=(), leader_epoch=4, partition_epoch=7)
    led = LedPartition(
        1,
        state,
        min_insync_replicas=2,
        start_offset=10,
        durable_offset=10,
        high_watermark=10,
        settings=IsrSettings(),
        now_s=0.0,
    )
    for node_id in (2, 3):
        led.fetched(node_id, broker_epoch=node_id, durable_offset=10, end_offset=10, now_s=0.1)
    registered = {node_id: Registered(node_id, may_join=True) for node_id in NODES}
    assert led.changed(replace(state, isr=(1, 2), partition_epoch=9), now_s=1.0)
    led.progressed(3, durable_offset=10, written_offset=10, end_offset=10, now_s=1.0)  # it was on its way
    assert led.propose(end_offset=10, registered=registered, now_s=1.0) is None
    assert led.replicated_offset == 0
    assert not led.may_fetch(3, partition_epoch=8)
    assert led.may_fetch(3, partition_epoch=9)
    led.fetched(3, broker_epoch=3, durable_offset=10, end_offset=10, now_s=1.1)
    proposal = led.propose(end_offset=10, registered=registered, now_s=1.1)
    assert proposal is not None and proposal.members == NODES
