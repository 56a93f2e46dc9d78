"""The simulation is tested: known mistakes are put back, and each must be found within a bounded number of seeds.

A few that are found at once run by default; all of them with POSTBUS_SIM_MUTANTS=1 (`make simulate-mutants`).
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import test_raft_core_simulation as raft_walk
from test_raft_core_simulation import walk

from broker.raft import core as raft_core
from broker.raft import log as raft_log
from broker.raft.core import RaftCore
from broker.raft.messages import HardState, Ready

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


def commits_old_terms(patch: pytest.MonkeyPatch) -> None:
    def commit(self: RaftCore) -> None:
        voters = self.configuration.voters()
        matches = sorted((self.progress[voter].match for voter in voters), reverse=True)
        index = matches[len(voters) // 2]
        if index > self.log.commit:
            self.log.commit_to(index)

    patch.setattr(RaftCore, "_commit_what_a_majority_has", commit)


def counts_itself_before_fsync(patch: pytest.MonkeyPatch) -> None:
    append = RaftCore._append

    def mutated(self: RaftCore, **options: Any) -> int:
        index = append(self, **options)
        self.progress[self.me.node_id].match = index
        return index

    patch.setattr(RaftCore, "_append", mutated)


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


def fsync_counts_across_terms(patch: pytest.MonkeyPatch) -> None:
    """The ABA of etcd: what was saved in an earlier term counts for entries that replaced it."""

    def mutated(self: RaftCore, ready: Ready) -> None:
        if self.role is raft_core.Role.LEADER and ready.entries and (mine := self.progress.get(self.me.node_id)):
            mine.match = max(mine.match, ready.entries[-1].index)
            self._commit_what_a_majority_has()

    patch.setattr(RaftCore, "advance", mutated)


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
    from broker.raft import progress

    accepted = progress.Progress.accepted

    def mutated(self: progress.Progress, index: int, *, first_index: int) -> None:
        snapshot, offset = self.snapshot, self.snapshot_offset
        was = self.pace
        accepted(self, index, first_index=first_index)
        if was is progress.Pace.SNAPSHOT and self.pace is progress.Pace.PROBE:
            self.pace, self.snapshot, self.snapshot_offset = was, snapshot, offset

    patch.setattr(progress.Progress, "accepted", mutated)


@mutants(
    Mutant("votes for anybody", votes_for_anybody, walk, 5, quick=True),
    Mutant("appends without looking back", appends_without_looking_back, walk, 20, quick=True),
    Mutant("a deposed leader stays", a_deposed_leader_stays, walk, 20, quick=True),
    Mutant("vote not saved", vote_not_saved, wild, 60),
    Mutant("answers before fsync", answers_before_fsync, wild, 60),
    Mutant("counts itself before fsync", counts_itself_before_fsync, wild, 200),
    Mutant("commits entries of old terms", commits_old_terms, wild, 200),
    Mutant("old appends cut the log", old_appends_cut_the_log, wild, 100),
    Mutant("a new disk keeps the seat", a_new_disk_keeps_the_seat, walk, 60),
    Mutant("fsync counts across terms", fsync_counts_across_terms, wild, 300),
    Mutant("several changes of members at once", several_changes_at_once, wild, 300),
    Mutant("images are not followed up", images_are_not_followed_up, walk, 60),
)
def test_raft_mutants_are_found(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistake in Raft breaks an invariant, or keeps the cluster from settling."""
    hunt(mutant, monkeypatch)
