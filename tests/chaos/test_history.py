"""The checker finds each anomaly in a history forged to hold it, and none in those that are merely unlucky."""

import dataclasses

import pytest
from history import (
    Acknowledged,
    Committed,
    Copy,
    Event,
    Floors,
    History,
    Outcome,
    Place,
    Polled,
    Positioned,
    Sent,
    Trimmed,
    report,
)

P0 = Place("t", 0)
P1 = Place("t", 1)


def sent(number: int, *, offset: int | None = None, place: Place = P0, outcome: Outcome = Outcome.OK) -> Sent:
    """Record `number` of publisher p, in lane k; acknowledged at its own number unless said otherwise."""
    if outcome is not Outcome.OK:
        return Sent("p", f"r{number}", outcome, lane="k", number=number)
    return Sent(
        "p", f"r{number}", outcome, lane="k", number=number, place=place, offset=number if offset is None else offset
    )


def polled(number: int, *, offset: int | None = None, place: Place = P0, by: str = "s", group: str = "") -> Polled:
    """Record `number`, at its own number unless said otherwise."""
    return Polled(by, place, number if offset is None else offset, f"r{number}", group)


def start(offset: int = 0, *, place: Place = P0, by: str = "s") -> Positioned:
    return Positioned(by, place, offset)


def kinds(*events: Event, groups: tuple[str, ...] = (), floors: Floors | None = None) -> set[str]:
    """What is wrong with a history of these."""
    found = History(list(events)).check(groups=groups, floors=floors or Floors(operations=0, acknowledgements=0))
    return {anomaly.kind for anomaly in found}


CLEAN: tuple[Event, ...] = (sent(0), sent(1), sent(2), start(), polled(0), polled(1), polled(2))


def test_a_clean_history_is_clean() -> None:
    """Everything acknowledged, read once, in order."""
    assert kinds(*CLEAN) == set()


def test_an_unknown_outcome_may_appear_or_not() -> None:
    """It was appended before the answer was lost, or it was not."""
    unknown = sent(3, outcome=Outcome.UNKNOWN)
    assert kinds(*CLEAN, unknown) == set()
    assert kinds(*CLEAN, unknown, polled(3)) == set()


def test_a_failed_publish_that_nobody_sees_is_fine() -> None:
    """It says that it is not there, and it is not."""
    assert kinds(*CLEAN, sent(3, outcome=Outcome.FAILED)) == set()


def test_a_lost_write() -> None:
    """Acknowledged, and the log goes on without it: at its place is a gap, or another record."""
    assert "lost write" in kinds(sent(0), sent(1), sent(2), start(), polled(0), polled(2))
    assert "lost write" in kinds(sent(0), sent(1), sent(2, offset=1), start(), polled(0), polled(2, offset=1), sent(3))


def test_unseen_at_the_end() -> None:
    """Acknowledged, and the log ends before it; or its place was never told."""
    assert kinds(sent(0), sent(1), start(), polled(0)) == {"unseen"}
    assert kinds(*CLEAN, Sent("p", "x", Outcome.OK)) == {"unseen"}


def test_an_aborted_read() -> None:
    """What failed for certain was read all the same."""
    assert kinds(*CLEAN, sent(3, outcome=Outcome.FAILED), polled(3)) == {"aborted read"}


def test_a_record_that_nobody_sent() -> None:
    """Or one that changed on the way: it is never sent, and the right one is lost."""
    assert kinds(*CLEAN, polled(3)) == {"never sent"}
    torn = dataclasses.replace(polled(1), content="r1 torn")
    assert {"never sent", "lost write"} <= kinds(sent(0), sent(1), sent(2), start(), polled(0), torn, polled(2))


def test_an_inconsistent_offset() -> None:
    """Two records at one place: to two subscribers, or to a publisher and a subscriber."""
    other = (start(by="s2"), polled(0, by="s2"), polled(1, by="s2"), polled(1, offset=2, by="s2"))
    assert "inconsistent offset" in kinds(*CLEAN, *other)
    assert "inconsistent offset" in kinds(sent(0), sent(1), start(), polled(0), polled(1), sent(7, offset=1))


def test_a_duplicate() -> None:
    """One record at two offsets, or in two partitions, or acknowledged where it is not."""
    assert "duplicate" in kinds(*CLEAN, polled(1, offset=3))
    assert "duplicate" in kinds(*CLEAN, start(place=P1), polled(1, offset=0, place=P1))
    assert "duplicate" in kinds(sent(0, offset=5), start(), polled(0, offset=0))


def test_a_publisher_without_an_id_may_be_doubled() -> None:
    """Nothing was promised to it, and its order may break with that."""
    once = dataclasses.replace(sent(0), idempotent=False)
    assert kinds(once, start(), polled(0), polled(0, offset=1)) == set()


def test_a_skipped_poll() -> None:
    """A subscriber passes over what is there; a gap where nothing is known to be does not count."""
    other = (start(by="s2"), polled(0, by="s2"), polled(2, by="s2"))
    assert kinds(*CLEAN, *other) == {"skipped poll"}
    assert kinds(*CLEAN, start(1, by="s2"), polled(2, by="s2")) == {"skipped poll"}
    assert kinds(sent(0), sent(1, offset=5), start(), polled(0), polled(1, offset=5)) == set()


def test_a_non_monotonic_poll() -> None:
    """Back or again without a new position; with one it is a redelivery."""
    assert kinds(*CLEAN, polled(2)) == {"non-monotonic poll"}
    assert kinds(*CLEAN, polled(0)) == {"non-monotonic poll"}
    assert kinds(*CLEAN, start(1), polled(1), polled(2)) == set()


def test_a_poll_from_nowhere() -> None:
    """A partition that was never begun."""
    assert kinds(sent(0), polled(0)) == {"poll from nowhere"}


def test_a_non_monotonic_send() -> None:
    """Two records of one lane in the wrong order; two lanes, publishers or partitions have none."""
    swapped = (sent(0, offset=1), sent(1, offset=0), start(), polled(1, offset=0), polled(0, offset=1))
    assert kinds(*swapped) == {"non-monotonic send"}
    first, second, *polls = swapped
    assert kinds(dataclasses.replace(first, lane="other"), second, *polls) == set()
    assert kinds(dataclasses.replace(first, publisher="q"), second, *polls) == set()


def test_the_order_of_sending_counts_not_that_of_answers() -> None:
    """Answers may come in any order."""
    assert kinds(sent(1), sent(0), start(), polled(0), polled(1)) == set()


def test_a_commit_too_far() -> None:
    """A committed offset passes a record that nobody had acknowledged yet, even if somebody does so later."""
    acks = (Acknowledged("g", P0, 0, 1), Acknowledged("g", P0, 2, 3))
    assert kinds(*CLEAN, *acks, Committed("g", P0, 1)) == set()
    assert kinds(*CLEAN, *acks, Committed("g", P0, 3)) == {"commit too far"}
    assert kinds(*CLEAN, *acks, Committed("g", P0, 3), Acknowledged("g", P0, 1, 2)) == {"commit too far"}
    assert kinds(*CLEAN, *acks, Acknowledged("other", P0, 1, 2), Committed("g", P0, 3)) == {"commit too far"}
    assert kinds(*CLEAN, *acks, Acknowledged("g", P0, 1, 2), Committed("g", P0, 3)) == set()


def test_what_a_group_missed() -> None:
    """A group got less than there is; another group's reading does not help it."""
    assert kinds(*CLEAN, groups=("g",)) == {"missed by group"}
    members = (start(by="m1"), polled(0, by="m1", group="g"), polled(1, by="m1", group="g"))
    assert kinds(*CLEAN, *members, groups=("g",)) == {"missed by group"}
    assert kinds(*CLEAN, *members, start(2, by="m2"), polled(2, by="m2", group="g"), groups=("g",)) == set()


def test_deleted_records_are_not_missed() -> None:
    """Below what was deleted on request nothing needs to be there; above it everything."""
    left = (sent(0), sent(1), sent(2), start(), polled(2))
    assert kinds(Trimmed(P0, 2), *left) == set()
    assert "lost write" in kinds(Trimmed(P0, 1), *left)


@pytest.mark.parametrize(
    "floors",
    [
        Floors(operations=4),
        Floors(acknowledgements=4),
        Floors(faults=2),
        Floors(polls=4),
    ],
)
def test_a_run_below_a_floor_fails(floors: Floors) -> None:
    """Too few operations, acknowledgements, faults that took effect, or polls prove nothing."""
    history = History(list(CLEAN), faults=["killed"])
    assert history.check(floors=Floors(operations=3, acknowledgements=3, faults=1, polls=3)) == []
    assert [anomaly.kind for anomaly in history.check(floors=floors)] == ["proves nothing"]


def test_an_empty_history_fails() -> None:
    """By default already."""
    assert {anomaly.kind for anomaly in History().check()} == {"proves nothing"}


def test_the_report_names_kinds_and_counts() -> None:
    """And shows a few of each."""
    found = History([*CLEAN, *(polled(number) for number in range(10, 20))]).check()
    lines = report(found).splitlines()
    assert lines[0] == "never sent: 10"
    assert len(lines) == 6


COPIES: tuple[Event, ...] = (*CLEAN, Copy(1, "t", "s"), Copy(2, "t", "s2"), start(by="s2"))


def test_equal_copies_are_clean() -> None:
    """Each node has all of it, wherever it was trimmed to."""
    assert kinds(*COPIES, *(polled(number, by="s2") for number in range(3))) == set()
    trimmed = (Trimmed(P0, 2), Positioned("s2", P0, 2), polled(2, by="s2"))
    assert kinds(*COPIES, *trimmed) == set()


@pytest.mark.parametrize(
    ("second", "wrong"),
    [
        ((polled(0, by="s2"), polled(1, by="s2")), {"diverging replicas"}),  # it lacks the end
        ((polled(0, by="s2"), polled(2, by="s2")), {"diverging replicas", "skipped poll"}),  # and a record in between
        ((), {"diverging replicas"}),  # and everything
        (
            (polled(0, by="s2"), polled(2, offset=1, by="s2"), polled(1, offset=2, by="s2")),
            {"diverging replicas", "inconsistent offset", "duplicate"},
        ),
    ],
)
def test_copies_that_differ(second: tuple[Event, ...], wrong: set[str]) -> None:
    """Though somebody saw everything, in order."""
    assert kinds(*COPIES, *second) == wrong


def test_a_single_copy_proves_nothing() -> None:
    """There must be another one to differ from."""
    assert kinds(*CLEAN, Copy(1, "t", "s")) == {"proves nothing"}
