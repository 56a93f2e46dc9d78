"""Idempotence by request id: found inside the window, never evicted there, bounded."""

import pytest

from broker.clock import ManualClock
from broker.storage.request_ids import EXPIRED_AT_ONCE_MAX, RequestIdsFull, RequestIdTable, RequestPart

SECOND_US = 1_000_000
WINDOW_US = 100 * SECOND_US


class Log:
    """A table and the log that it belongs to, whose append times come from clocks that may be wrong."""

    def __init__(self, *, request_ids_max: int = 200_000) -> None:
        self.clock = ManualClock()
        self.table = RequestIdTable(
            monotonic=self.clock.monotonic, window_us=WINDOW_US, request_ids_max=request_ids_max
        )
        self.end_offset = 0

    def append(self, request_id: bytes, *, wall_jump_s: int = 0) -> RequestPart:
        part = RequestPart(self.end_offset, 1, self.clock.wall_us() + wall_jump_s * SECOND_US, ())
        self.end_offset += 1
        self.table.passed(part.append_time_us)
        self.table.add(request_id, part)
        return part


def test_a_request_is_found_until_the_window_has_passed() -> None:
    log = Log()
    part = log.append(b"a")
    log.clock.advance(100)
    assert log.table.find(b"a") == (part,)
    log.clock.advance(1)
    assert log.table.find(b"a") == ()
    assert len(log.table) == 0


def test_parts_add_up_and_the_newest_keeps_all_of_them() -> None:
    log = Log()
    first = log.append(b"a")
    log.clock.advance(50)
    log.append(b"b")
    log.clock.advance(30)
    second = log.append(b"a")
    log.clock.advance(95)
    assert log.table.find(b"a") == (first, second)
    assert log.table.find(b"b") == ()


def test_at_the_bound_new_ids_are_refused_and_known_ones_are_not() -> None:
    log = Log(request_ids_max=2)
    log.append(b"a")
    log.clock.advance(10)
    log.append(b"b")
    log.clock.advance(40)
    with pytest.raises(RequestIdsFull) as refusal:
        log.table.check_room(b"c")
    assert refusal.value.retry_after_us == 50 * SECOND_US
    log.table.check_room(b"a")
    assert log.table.find(b"a")
    log.clock.advance(51)
    log.table.check_room(b"c")  # a has left the window


def test_a_longer_window_counts_from_now_on() -> None:
    log = Log()
    part = log.append(b"a")
    log.table.window_us = 10 * WINDOW_US
    log.clock.advance(900)
    assert log.table.find(b"a") == (part,)


def test_ids_that_leave_the_window_together_are_forgotten_bit_by_bit() -> None:
    """None is found any more, at once; to forget them all in one step would hold up the node."""
    log = Log()
    count = 3 * EXPIRED_AT_ONCE_MAX
    for number in range(count):
        log.append(b"%d" % number)
    log.clock.advance(101)
    assert log.table.find(b"%d" % (count - 1)) == ()
    assert len(log.table) == count - EXPIRED_AT_ONCE_MAX - 1
    part = log.append(b"%d" % (count - 1))
    assert log.table.find(b"%d" % (count - 1)) == (part,)
    for _ in range(2):
        log.table.expire()
    assert len(log.table) == 1


def test_ids_outside_the_window_take_no_room() -> None:
    log = Log(request_ids_max=2 * EXPIRED_AT_ONCE_MAX)
    for number in range(2 * EXPIRED_AT_ONCE_MAX):
        log.append(b"%d" % number)
    log.clock.advance(101)
    for number in range(2 * EXPIRED_AT_ONCE_MAX):
        log.table.check_room(b"new %d" % number)
        log.append(b"new %d" % number)


@pytest.mark.parametrize("wall_jump_s", [3600, -3600])
def test_a_wall_clock_that_jumps_makes_no_id_old(wall_jump_s: int) -> None:
    """Neither the own one nor that of a leader whose records are replicated here: a retry a second later is known."""
    log = Log()
    part = log.append(b"a")
    log.clock.advance(1)
    log.append(b"b", wall_jump_s=max(0, wall_jump_s))
    log.table.expire()
    assert log.table.find(b"a") == (part,)
    read = RequestIdTable(monotonic=log.clock.monotonic, window_us=WINDOW_US)
    read.passed(part.append_time_us)
    log_time_us = read.log_time_us(log.clock.wall_us() + wall_jump_s * SECOND_US)
    assert log_time_us <= part.append_time_us
    read.add_all([(b"a", part)], log_time_us=log_time_us)
    assert read.find(b"a") == (part,)


def test_a_replica_that_catches_up_keeps_no_more_than_a_window() -> None:
    """Records of hours come within seconds, and leave room at the pace at which they were appended."""
    log = Log()
    for second in range(0, 3600, 10):
        log.append(b"%d" % second, wall_jump_s=second)
    log.table.expire()
    assert 10 <= len(log.table) <= 11


def test_of_what_is_read_the_oldest_beyond_the_bound_are_left_out() -> None:
    """A leader had refused them if they had been inside the window."""
    clock = ManualClock()
    table = RequestIdTable(monotonic=clock.monotonic, window_us=WINDOW_US, request_ids_max=2)
    parts = [(b"%d" % number, RequestPart(number, 1, clock.wall_us(), ())) for number in range(3)]
    table.add_all(parts, log_time_us=clock.wall_us())
    assert not table.find(b"0")
    assert table.find(b"1")
    assert table.find(b"2")
