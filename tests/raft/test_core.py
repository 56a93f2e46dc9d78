"""What no exchange of scripted nodes brings about: single messages, late or forged."""

import pytest
from raft_script import LowDice, Script

from broker.peers.links import PeerId
from broker.raft.core import RaftCore, Role
from broker.raft.membership import Configuration, Seat
from broker.raft.messages import (
    Append,
    AppendResponse,
    Entry,
    HardState,
    Heartbeat,
    InstallSnapshot,
    Loaded,
    Message,
    RaftSettings,
    TimeoutNow,
    Vote,
    VoteResponse,
)
from broker.raft.progress import Pace, Progress

MEMBERS = Configuration(tuple(Seat(node_id, f"s{node_id}") for node_id in (1, 2, 3)))


def follower(*, term: int = 1, vote: int = 0, last_index: int = 1) -> RaftCore:
    """Node 3, with `last_index` entries of term 1."""
    entries = tuple(Entry(index, 1, b"x", MEMBERS if index == 1 else None) for index in range(1, last_index + 1))
    loaded = Loaded(HardState(term, vote, 0), None, entries)
    return RaftCore(
        me=PeerId(3, "s3"), bootstrap_voters=(1, 2, 3), loaded=loaded, random=LowDice(), settings=RaftSettings()
    )


def say(core: RaftCore, body: object, *, term: int, node_id: int = 1, store_id: str = "", to_store: str = "s3") -> None:
    """A message of another node."""
    sender = PeerId(node_id, store_id or f"s{node_id}")
    core.step(Message(3, to_store, sender, term, False, body))  # type: ignore[arg-type]


def answers(core: RaftCore) -> list[object]:
    """What it says, once saved."""
    ready = core.ready()
    return [] if ready is None else [message.body for message in ready.messages]


def test_a_vote_given_before_a_restart_is_the_only_one_of_its_term() -> None:
    core = follower(term=2, vote=2)
    say(core, Vote(9, 9), term=2, node_id=1)
    assert answers(core) == [VoteResponse(granted=False)]
    say(core, Vote(9, 9), term=2, node_id=2)
    assert answers(core) == [VoteResponse(granted=True)], "the same again: its answer may have been lost"


def test_no_vote_for_a_log_that_lacks_entries() -> None:
    """By the last term first, then by the length."""
    core = follower(last_index=3)
    say(core, Vote(2, 1), term=2, node_id=1)
    assert answers(core) == [VoteResponse(granted=False)]
    say(core, Vote(3, 1), term=2, node_id=2)
    assert answers(core) == [VoteResponse(granted=True)]


def test_an_image_that_comes_late_takes_nothing_away() -> None:
    """Entries behind it were answered for, and may be what makes them committed."""
    core = follower(last_index=4)
    say(core, InstallSnapshot(2, 1, MEMBERS, 0, 5, b"image"), term=1)
    assert answers(core) == [AppendResponse(index=2)]
    assert (core.log.last_index, core.log.commit) == (4, 2)


def test_an_image_is_put_together_from_one_leader_only() -> None:
    core = follower()
    say(core, InstallSnapshot(9, 1, MEMBERS, 0, 4, b"ab"), term=1, node_id=1)
    say(core, InstallSnapshot(9, 1, MEMBERS, 2, 4, b"cd"), term=2, node_id=2)
    assert core.log.last_index == 1
    say(core, InstallSnapshot(9, 1, MEMBERS, 0, 4, b"CDEF"), term=2, node_id=2)
    ready = core.ready()
    assert ready is not None and ready.restored is not None
    assert ready.restored.data == b"CDEF"


def test_an_append_that_comes_late_takes_nothing_away() -> None:
    core = follower(last_index=4)
    say(core, Append(1, 1, 0, (Entry(2, 1, b"x"),)), term=1)
    assert core.log.last_index == 4
    assert answers(core) == [AppendResponse(index=2)]


def test_commit_goes_no_further_than_what_the_leader_showed() -> None:
    """Entries behind those of the message may be others than the leader's."""
    core = follower(last_index=4)
    say(core, Append(1, 1, 4, (Entry(2, 1, b"x"),)), term=2)
    assert core.log.commit == 2


def test_a_message_for_the_disk_that_was_here_before_is_dropped() -> None:
    core = follower()
    say(core, Heartbeat(0), term=5, to_store="s3-before")
    assert core.term == 1
    assert answers(core) == []


@pytest.mark.parametrize("stranger", [PeerId(2, "other"), PeerId(9, "s9")])
def test_votes_of_strangers_do_not_count(stranger: PeerId) -> None:
    """Of another disk under a member's id, or of nobody's: neither as a vote nor by their term."""
    core = follower()
    for _ in range(4):
        core.tick()
    assert core.role is Role.PRE_CANDIDATE
    say(core, VoteResponse(granted=True, pre=True), term=2, node_id=stranger.node_id, store_id=stranger.store_id)
    say(core, VoteResponse(granted=False), term=9, node_id=stranger.node_id, store_id=stranger.store_id)
    assert (core.role, core.term) == (Role.PRE_CANDIDATE, 1)
    say(core, VoteResponse(granted=True, pre=True), term=2, node_id=2)
    assert core.role is Role.CANDIDATE
    say(core, VoteResponse(granted=True), term=2, node_id=stranger.node_id, store_id=stranger.store_id)
    assert core.role is Role.CANDIDATE
    say(core, VoteResponse(granted=True), term=2, node_id=1)
    assert core.role is Role.LEADER


def test_a_late_grant_of_an_earlier_question_does_not_count() -> None:
    core = follower(term=1)
    for _ in range(4):
        core.tick()
    say(core, VoteResponse(granted=True, pre=True), term=2, node_id=2)
    assert (core.role, core.term) == (Role.CANDIDATE, 2)
    for _ in range(10):
        core.tick()
    assert (core.role, core.term) == (Role.PRE_CANDIDATE, 2)
    say(core, VoteResponse(granted=True, pre=True), term=2, node_id=1)
    assert (core.role, core.term) == (Role.PRE_CANDIDATE, 2)


def test_an_answer_for_entries_that_were_never_sent_counts_for_nothing() -> None:
    script = Script()
    script.run("formed 1 2 3")
    core = script.core("1")
    core.step(Message(1, "s1", PeerId(2, "s2"), 1, False, AppendResponse(index=99)))
    assert core.progress[2].match == 1
    assert core.log.commit == 1


def test_while_the_member_is_heard_another_disk_under_its_id_gets_no_seat() -> None:
    script = Script()
    script.run("formed 1 2 3")
    core = script.core("1")
    core.step(Message(1, "", PeerId(2, "copy"), 1, False, Vote(0, 0, pre=True)))
    assert core.configuration == MEMBERS
    for _ in range(3):
        script.run("tick 1 2")
        script.run("deliver 1->3")
        script.run("deliver 3->1")
    for _ in range(3):
        script.run("tick 1 2")
        script.run("deliver 1->3")
        script.run("deliver 3->1")
    core.step(Message(1, "", PeerId(2, "copy"), 1, False, Vote(0, 0, pre=True)))
    seat = core.configuration.seat(2)
    assert seat is not None and (seat.store_id, seat.voter, seat.returning) == ("copy", False, True)


def test_no_vote_for_a_longer_log_of_an_earlier_term() -> None:
    core = follower(last_index=2)
    say(core, Append(2, 1, 0, (Entry(3, 2, b"y"),)), term=2, node_id=2)
    answers(core)
    core.peer_lost(2)
    say(core, Vote(9, 1), term=3, node_id=1)
    assert answers(core) == [VoteResponse(granted=False)]


def test_an_fsync_of_an_earlier_term_does_not_count_for_what_replaced_it() -> None:
    """Leader, deposed, overwritten and leader again before its first write ended: etcd's ABA."""
    script = Script()
    script.run("formed 1 2 3")
    core = script.core("1")

    def hear(body: object, *, term: int, node_id: int = 2) -> None:
        core.step(Message(1, "s1", PeerId(node_id, f"s{node_id}"), term, False, body))  # type: ignore[arg-type]

    core.propose(b"first")
    first = core.ready()
    hear(Append(1, 1, 1, (Entry(2, 2, b""), Entry(3, 2, b"second"))), term=2)
    second = core.ready()
    hear(TimeoutNow(), term=2)
    assert core.ready() is not None
    hear(VoteResponse(granted=True), term=3)
    third = core.ready()
    assert core.role is Role.LEADER
    assert first is not None and second is not None and third is not None
    hear(AppendResponse(index=3), term=3)
    core.advance(first)
    core.advance(second)
    assert core.progress[1].match == 0
    hear(AppendResponse(index=4), term=3)
    assert core.log.commit == 1
    core.advance(third)
    assert core.log.commit == 4


def test_a_change_of_members_that_gives_way_is_undone() -> None:
    core = follower(last_index=2)
    fourth = Configuration((*MEMBERS.seats, Seat(4, "s4", voter=False)))
    say(core, Append(2, 1, 1, (Entry(3, 1, b"", fourth),)), term=1)
    assert core.configuration == fourth
    say(core, Append(2, 1, 1, (Entry(3, 2, b"x"),)), term=2, node_id=2)
    assert core.configuration == MEMBERS


def test_a_refusal_that_is_out_of_date_changes_nothing() -> None:
    progress = Progress("s2", next=6, heard_tick=0)
    progress.accepted(5, first_index=1)
    assert not progress.rejected(4, may_equal=2)
    assert (progress.pace, progress.next) == (Pace.REPLICATE, 6)
    assert progress.rejected(6, may_equal=5)
    assert (progress.pace, progress.next) == (Pace.PROBE, 6)
    assert not progress.rejected(9, may_equal=2)
    assert progress.next == 6
