"""The simulation is tested: known mistakes are put back, and each must be found within a bounded number of seeds.

A few that are found at once run by default; all of them with POSTBUS_SIM_MUTANTS=1 (`make simulate-mutants`).
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import test_named_scenarios as scenarios
import test_raft_core_simulation as raft_walk
from sim_seeds import run_seed
from test_cluster_simulation import cluster_under_faults
from test_raft_core_simulation import walk
from test_raft_simulation import raft_under_faults

from broker.controller import partition_decisions
from broker.controller.session import NodeSession
from broker.raft import core as raft_core
from broker.raft import log as raft_log
from broker.raft import node as raft_node
from broker.raft import progress
from broker.raft.core import RaftCore
from broker.raft.messages import HardState, Ready
from broker.replication import follower, leader, partition, partitions, succession
from broker.replication.leader import LedPartition

ALL = os.environ.get("POSTBUS_SIM_MUTANTS") == "1"


@dataclass(frozen=True, slots=True)
class Mutant:
    """A mistake, and how to find it."""

    name: str
    """The mistake, in words."""
    put_in: Callable[[pytest.MonkeyPatch], None]
    find: Callable[[int], Any]
    """Runs a seed; raises if something is wrong."""
    seeds_max: int
    quick: bool = False
    """Found so soon that it belongs to the default run."""


def mutants(*found_by: Mutant) -> Any:
    return pytest.mark.parametrize(
        "mutant",
        [
            pytest.param(
                mutant,
                id=mutant.name.replace(" ", "-"),
                marks=() if mutant.quick or ALL else pytest.mark.skip(reason="make simulate-mutants"),
            )
            for mutant in found_by
        ],
    )


def hunt(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant.put_in(monkeypatch)
    for seed in range(1, mutant.seeds_max + 1):
        try:
            mutant.find(seed)
        except Exception as error:
            print(f"{mutant.name}: seed {seed}: {str(error)[:300]}")
            return
    pytest.fail(f"{mutant.name}: not found in {mutant.seeds_max} seeds")


# --- Raft.


def wild(seed: int) -> Any:
    """Seeds with many elections."""
    return walk(4 * (seed // 2) + 2 + seed % 2)


def nodes(seed: int) -> None:
    """Whole nodes with their driver."""
    run_seed(raft_under_faults, seed)


def commits_old_terms(patch: pytest.MonkeyPatch) -> None:
    def commit(self: RaftCore) -> None:
        voters = self.configuration.voters()
        matches = sorted((self.progress[voter].match for voter in voters), reverse=True)
        index = matches[len(voters) // 2]
        if index > self.log.commit:
            self.log.commit_to(index)

    patch.setattr(RaftCore, "_commit_what_a_majority_has", commit)


def sends_and_applies_before_fsync(patch: pytest.MonkeyPatch) -> None:
    pending = raft_node._Pending
    patch.setattr(raft_node, "_Pending", lambda ready, durable: pending(ready, True))


def vote_not_saved(patch: pytest.MonkeyPatch) -> None:
    ready = RaftCore.ready

    def mutated(self: RaftCore) -> Ready | None:
        given = ready(self)
        if given is not None and given.hard_state is not None:
            return replace(given, hard_state=HardState(given.hard_state.term, 0, given.hard_state.commit))
        return given

    patch.setattr(RaftCore, "ready", mutated)


def answers_before_fsync(patch: pytest.MonkeyPatch) -> None:
    def pump(self: raft_walk.Node) -> None:
        assert self.core is not None
        while (ready := self.core.ready()) is not None:
            if ready.messages:
                early = replace(ready, committed=(), restored=None, entries=())
                self.finish(early)
            self.flying.append(replace(ready, messages=()))
            while self.flying and not self.flying[0].must_save:
                self.finish(self.flying.popleft())

    patch.setattr(raft_walk.Node, "pump", pump)


def votes_for_anybody(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(raft_log.RaftLog, "is_up_to_date", lambda self, last_index, last_term: True)


def appends_without_looking_back(patch: pytest.MonkeyPatch) -> None:
    merge = raft_log.RaftLog.merge

    def mutated(self: raft_log.RaftLog, prev_index: int, prev_term: int, entries: Any) -> bool:
        known = self.term_at(prev_index)
        return merge(self, prev_index, prev_term if known is None else known, entries)

    patch.setattr(raft_log.RaftLog, "merge", mutated)


def old_appends_cut_the_log(patch: pytest.MonkeyPatch) -> None:
    """Replaces the log behind what an append brings, even where nothing differs."""

    def mutated(self: raft_log.RaftLog, prev_index: int, prev_term: int, entries: Any) -> bool:
        if self.term_at(prev_index) != prev_term:
            return False
        if entries and entries[0].index <= self.last_index and entries[0].index > self.commit:
            self._truncate(entries[0].index)
        if entries and entries[0].index == self.last_index + 1:
            self.append(entries)
        return True

    patch.setattr(raft_log.RaftLog, "merge", mutated)


def a_new_disk_keeps_the_seat(patch: pytest.MonkeyPatch) -> None:
    """KAFKA-14077: a voter that lost its disk goes on as the voter that it was."""
    patch.setattr(RaftCore, "_counts", lambda self, sender: self.configuration.seat(sender.node_id) is not None)
    patch.setattr(RaftCore, "_all_are_fresh", lambda self: True)
    step = RaftCore.step

    def mutated(self: RaftCore, message: Any) -> None:
        step(self, replace(message, to_store=""))

    patch.setattr(RaftCore, "step", mutated)


def several_changes_at_once(patch: pytest.MonkeyPatch) -> None:
    def mutated(self: RaftCore, change: Any, node_id: int = 0) -> int:
        self._check_leads()
        if node_id == self.me.node_id:
            raise raft_core.ChangeRefused("itself")
        return self._append(configuration=change(self.configuration))

    patch.setattr(RaftCore, "_change", mutated)


def a_deposed_leader_stays(patch: pytest.MonkeyPatch) -> None:
    """Answers of an old term are not told from those of this one, and a newer term does not end the leadership."""
    follow = RaftCore._follow

    def mutated(self: RaftCore, term: int, *, leader_id: int) -> None:
        if self.role is raft_core.Role.LEADER and term > self.term:
            self.term = term
            return
        follow(self, term, leader_id=leader_id)

    patch.setattr(RaftCore, "_follow", mutated)


def images_are_not_followed_up(patch: pytest.MonkeyPatch) -> None:
    """A member that got an image which the log has moved away from since is never sent a newer one."""
    accepted = progress.Progress.accepted

    def mutated(self: progress.Progress, index: int, *, first_index: int) -> None:
        snapshot, offset = self.snapshot, self.snapshot_offset
        was = self.pace
        accepted(self, index, first_index=first_index)
        if was is progress.Pace.SNAPSHOT and self.pace is progress.Pace.PROBE:
            self.pace, self.snapshot, self.snapshot_offset = was, snapshot, offset

    patch.setattr(progress.Progress, "accepted", mutated)


@pytest.mark.timeout(600)
@mutants(
    Mutant("votes for anybody", votes_for_anybody, walk, 5, quick=True),
    Mutant("appends without looking back", appends_without_looking_back, walk, 20, quick=True),
    Mutant("a deposed leader stays", a_deposed_leader_stays, walk, 20, quick=True),
    Mutant("vote not saved", vote_not_saved, wild, 60),
    Mutant("answers before fsync", answers_before_fsync, wild, 60),
    Mutant("sends and applies before fsync", sends_and_applies_before_fsync, nodes, 10),
    Mutant("commits entries of old terms", commits_old_terms, wild, 200),
    Mutant("old appends cut the log", old_appends_cut_the_log, wild, 100),
    Mutant("a new disk keeps the seat", a_new_disk_keeps_the_seat, walk, 60),
    Mutant("several changes of members at once", several_changes_at_once, wild, 300),
    Mutant("images are not followed up", images_are_not_followed_up, walk, 60),
)
def test_raft_mutants_are_found(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistake in Raft breaks an invariant, or keeps the cluster from settling."""
    hunt(mutant, monkeypatch)


# --- Replication.


def scenario(*stories: Callable[[], None]) -> Callable[[int], None]:
    """One of these named scenarios finds it."""

    def run(seed: int) -> None:
        for story in stories:
            story()

    return run


def cluster(seed: int) -> None:
    """Whole clusters under faults."""
    run_seed(cluster_under_faults, seed)


def truncates_to_its_watermark(patch: pytest.MonkeyPatch) -> None:
    """KIP-101: what a follower does not know to be committed, it cuts off before it follows."""
    step_up = partition.Partition._step_up

    def mutated(self: partition.Partition) -> None:
        step_up(self)
        local = self.local
        if local is not None and self._cutting is None and local.end_offset > self.high_watermark:
            self.cut(follower.Truncate(self.high_watermark))

    patch.setattr(partition.Partition, "_step_up", mutated)


def waits_for_the_committed_isr(patch: pytest.MonkeyPatch) -> None:
    """The high watermark follows the ISR that the controller confirmed, and not who may have been taken in."""
    patch.setattr(LedPartition, "maximal_isr", property(lambda self: frozenset(self.isr)))


def counts_the_leader_before_fsync(patch: pytest.MonkeyPatch) -> None:
    """The high watermark passes what the leader itself has not made durable."""
    append = partition.Partition.append

    def mutated(self: partition.Partition, new: Any) -> Any:
        published = append(self, new)
        assert self._led is not None
        self._led.local(durable_offset=published.end_offset, written_offset=published.end_offset)
        return published

    patch.setattr(partition.Partition, "append", mutated)


def follows_images_of_an_earlier_life(patch: pytest.MonkeyPatch) -> None:
    """A node that starts leads and follows by whatever its image says while it is replayed."""
    init = partitions.Partitions.__init__

    def mutated(self: partitions.Partitions, **options: Any) -> None:
        init(self, **options)
        self._may_act = True

    patch.setattr(partitions.Partitions, "__init__", mutated)


def joins_below_the_watermark(patch: pytest.MonkeyPatch) -> None:
    """A follower may join the ISR as soon as it fetches."""
    belongs = LedPartition._belongs

    def mutated(self: LedPartition, node_id: int, *rest: Any) -> bool:
        known = self.followers.get(node_id)
        return belongs(self, node_id, *rest) or (known is not None and known.durable_offset != leader.NOT_FETCHED)

    patch.setattr(LedPartition, "_belongs", mutated)


def ignores_broker_epochs(patch: pytest.MonkeyPatch) -> None:
    """KIP-903: the controller takes members into the ISR whatever life of theirs the leader speaks of."""
    patch.setattr(partition_decisions, "_unfit", lambda node, member, *, joins: "")


def asks_nobody_who_leads(patch: pytest.MonkeyPatch) -> None:
    """A leader whose session is valid takes that for a proof that nobody was put in its place."""

    async def mutated(self: succession.Succession, partition: partition.Partition) -> bool:
        return True

    patch.setattr(succession.Succession, "still_leads", mutated)


def acts_on_a_session_that_is_over(patch: pytest.MonkeyPatch) -> None:
    """A leader that was away for longer than its session goes on as if nothing had been, and asks nobody."""
    asks_nobody_who_leads(patch)
    patch.setattr(NodeSession, "session_valid", property(lambda self: self.broker_epoch > 0))


@pytest.mark.timeout(600)
@mutants(
    Mutant(
        "truncates to its own watermark",
        truncates_to_its_watermark,
        scenario(scenarios.test_nobody_truncates_to_its_own_watermark),
        1,
        quick=True,
    ),
    Mutant(
        "waits for the committed isr alone",
        waits_for_the_committed_isr,
        scenario(scenarios.test_the_watermark_waits_for_who_may_have_been_taken_in),
        1,
        quick=True,
    ),
    Mutant(
        "asks nobody who leads",
        asks_nobody_who_leads,
        scenario(scenarios.test_the_end_of_the_log_is_not_told_from_the_past),
        1,
        quick=True,
    ),
    Mutant(
        "goes on with a session that is over",
        acts_on_a_session_that_is_over,
        scenario(scenarios.test_a_process_that_was_paused_does_not_answer_from_the_past),
        1,
        quick=True,
    ),
    Mutant(
        "takes in whatever life of a node",
        ignores_broker_epochs,
        scenario(scenarios.test_a_late_change_of_the_isr_does_not_revive_a_wiped_replica),
        1,
        quick=True,
    ),
    Mutant("counts the leader before fsync", counts_the_leader_before_fsync, cluster, 5, quick=True),
    Mutant("follows images of an earlier life", follows_images_of_an_earlier_life, cluster, 40),
    Mutant("joins below the watermark", joins_below_the_watermark, cluster, 20),
)
def test_replication_mutants_are_found(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistake in replication breaks an invariant, a client's history, or a named scenario."""
    hunt(mutant, monkeypatch)
