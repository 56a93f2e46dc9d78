"""The tracker between deliveries and the committed offset."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.errors import PostbusError, Reason
from broker.groups.ack_tracker import AckTracker

FENCE = 7


def tracker_with(*batches: tuple[int, int], start: int = 0) -> AckTracker:
    tracker = AckTracker(start_offset=start, fence=FENCE)
    for base, end in batches:
        tracker.sent(base, end, record_count=end - base, size_bytes=10 * (end - base), now=0.0)
    return tracker


def test_batches_echoed_in_order_move_the_offset() -> None:
    """Each echo commits to its end and frees its share of the window."""
    tracker = tracker_with((0, 5), (5, 9))
    assert (tracker.outstanding_records, tracker.outstanding_bytes) == (9, 90)
    assert tracker.acknowledge(0, 5, fence=FENCE, now=1.0)
    assert (tracker.commit_offset, tracker.outstanding_records) == (5, 4)
    assert not tracker.all_done()
    assert tracker.acknowledge(5, 9, fence=FENCE, now=1.0)
    assert (tracker.commit_offset, tracker.outstanding_records, tracker.outstanding_bytes) == (9, 0, 0)
    assert tracker.all_done()


def test_a_later_batch_waits_for_an_earlier_one() -> None:
    """Out of order, nothing is committed until the prefix is whole."""
    tracker = tracker_with((0, 5), (5, 9))
    tracker.acknowledge(5, 9, fence=FENCE, now=1.0)
    assert tracker.commit_offset == 0
    tracker.acknowledge(0, 5, fence=FENCE, now=1.0)
    assert tracker.commit_offset == 9


def test_offsets_without_records_need_no_acknowledgement() -> None:
    """Gaps between batches, and at a batch's end, are passed over."""
    tracker = AckTracker(start_offset=0, fence=FENCE)
    tracker.sent(3, 10, record_count=2, size_bytes=20, now=0.0)
    tracker.sent(15, 20, record_count=5, size_bytes=50, now=0.0)
    tracker.acknowledge(3, 10, fence=FENCE, now=0.0)
    assert tracker.commit_offset == 15
    tracker.passed(30)
    assert tracker.commit_offset == 15
    tracker.acknowledge(15, 20, fence=FENCE, now=0.0)
    assert tracker.commit_offset == 30
    tracker.passed(35)
    assert tracker.commit_offset == 35


def test_an_older_fence_is_merely_stale() -> None:
    """To be told in-band: ASSIGNMENT_LOST, and nothing changes."""
    tracker = tracker_with((0, 5))
    with pytest.raises(PostbusError) as error:
        tracker.acknowledge(0, 500, fence=FENCE - 1, now=0.0)
    assert error.value.reason == Reason.ERROR_REASON_ASSIGNMENT_LOST
    assert tracker.commit_offset == 0


@pytest.mark.parametrize(
    ("base", "end", "fence"), [(0, 6, FENCE), (-1, 3, FENCE), (4, 3, FENCE), (0, 5, FENCE + 1), (90, 99, FENCE)]
)
def test_what_was_never_delivered_is_refused(base: int, end: int, fence: int) -> None:
    """Beyond the end, before the start, backwards, or under a fence never given: INVALID_FIELD, nothing changes."""
    tracker = tracker_with((0, 5))
    with pytest.raises(PostbusError) as error:
        tracker.acknowledge(base, end, fence=fence, now=0.0)
    assert error.value.reason == Reason.ERROR_REASON_INVALID_FIELD
    assert (tracker.commit_offset, tracker.outstanding_records) == (0, 5)


def test_waiting_runs_from_the_last_advance_while_something_is_out() -> None:
    """The processing timeout's clock: starts with the first delivery, again with each news, stops when all is done."""
    tracker = AckTracker(start_offset=0, fence=FENCE)
    assert tracker.waiting_since is None
    tracker.sent(0, 5, record_count=5, size_bytes=1, now=10.0)
    tracker.sent(5, 9, record_count=4, size_bytes=1, now=20.0)
    assert tracker.waiting_since == 10.0
    tracker.acknowledge(6, 7, fence=FENCE, now=30.0)
    assert tracker.waiting_since == 30.0
    assert not tracker.acknowledge(6, 7, fence=FENCE, now=40.0)
    assert tracker.waiting_since == 30.0
    tracker.acknowledge(0, 9, fence=FENCE, now=50.0)
    assert tracker.waiting_since is None


@given(st.data())
@settings(max_examples=300)
def test_any_order_of_acknowledgements_equals_the_naive_model(data) -> None:
    """Against a set of offsets: prefix, window and completion agree after every step."""
    start = data.draw(st.integers(0, 3))
    tracker = AckTracker(start_offset=start, fence=FENCE)
    sent: set[int] = set()
    acked: set[int] = set()
    end = start
    for _ in range(data.draw(st.integers(1, 40))):
        if end == start or data.draw(st.booleans()):
            base = end + data.draw(st.integers(0, 3))
            end = base + data.draw(st.integers(1, 8))
            tracker.sent(base, end, record_count=end - base, size_bytes=3 * (end - base), now=0.0)
            sent |= set(range(base, end))
        else:
            low = data.draw(st.integers(start, end))
            high = data.draw(st.integers(low, end))
            news = tracker.acknowledge(low, high, fence=FENCE, now=0.0)
            fresh = (set(range(low, high)) & sent) - acked
            assert news == bool(fresh)
            acked |= fresh
        left = sent - acked
        assert tracker.all_done() == (not left)
        assert tracker.outstanding_records == len(left)
        assert tracker.outstanding_bytes == 3 * len(left)
        # All below is done; a hole before the first record that is left may or may not be passed over.
        assert not {offset for offset in left if offset < tracker.commit_offset}
        first_left = min(left, default=end)
        assert not {offset for offset in sent if tracker.commit_offset <= offset < first_left}


def test_many_batches_leave_nothing_behind() -> None:
    """What is done is forgotten: memory follows what is out, not what was ever sent."""
    tracker = AckTracker(start_offset=0, fence=FENCE)
    for number in range(20_000):
        tracker.sent(number, number + 1, record_count=1, size_bytes=1, now=0.0)
        if number >= 100:
            tracker.acknowledge(number - 100, number - 99, fence=FENCE, now=0.0)
    assert tracker.outstanding_records == 100
    assert len(tracker._sent) < 2_000
