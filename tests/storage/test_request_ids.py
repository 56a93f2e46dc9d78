"""Idempotence by request id: found inside the window, never evicted there, bounded."""

import pytest

from broker.storage.request_ids import EXPIRED_AT_ONCE_MAX, RequestIdsFull, RequestIdTable, RequestPart


def part(base_offset: int, time_us: int) -> RequestPart:
    return RequestPart(base_offset, 1, time_us, ())


def test_a_request_is_found_until_the_window_has_passed() -> None:
    table = RequestIdTable(window_us=100)
    table.add(b"a", part(5, 1000))
    assert table.find(b"a", now_us=1100) == (part(5, 1000),)
    assert table.find(b"a", now_us=1101) == ()
    assert len(table) == 0


def test_parts_add_up_and_the_newest_keeps_all_of_them() -> None:
    table = RequestIdTable(window_us=100)
    table.add(b"a", part(5, 1000))
    table.add(b"b", part(6, 1050))
    table.add(b"a", part(7, 1080))
    assert table.find(b"a", now_us=1175) == (part(5, 1000), part(7, 1080))
    assert table.find(b"b", now_us=1175) == ()


def test_at_the_bound_new_ids_are_refused_and_known_ones_are_not() -> None:
    table = RequestIdTable(window_us=100, request_ids_max=2)
    table.add(b"a", part(0, 1000))
    table.add(b"b", part(1, 1010))
    with pytest.raises(RequestIdsFull) as refusal:
        table.check_room(b"c", now_us=1050)
    assert refusal.value.retry_after_us == 50
    table.check_room(b"a", now_us=1050)
    assert table.find(b"a", now_us=1050)
    table.check_room(b"c", now_us=1101)  # a has left the window


def test_a_longer_window_counts_from_now_on() -> None:
    table = RequestIdTable(window_us=100)
    table.add(b"a", part(0, 1000))
    table.window_us = 1000
    assert table.find(b"a", now_us=1900) == (part(0, 1000),)


def test_ids_that_leave_the_window_together_are_forgotten_bit_by_bit() -> None:
    """None is found any more, at once; to forget them all in one step would hold up the node."""
    table = RequestIdTable(window_us=100)
    count = 3 * EXPIRED_AT_ONCE_MAX
    for number in range(count):
        table.add(b"%d" % number, part(number, 1000))
    assert table.find(b"%d" % (count - 1), now_us=1101) == ()
    assert len(table) == count - EXPIRED_AT_ONCE_MAX - 1
    table.add(b"%d" % (count - 1), part(count, 1101))
    assert table.find(b"%d" % (count - 1), now_us=1101) == (part(count, 1101),)
    for _ in range(2):
        table.expire(1101)
    assert len(table) == 1


def test_ids_outside_the_window_take_no_room() -> None:
    table = RequestIdTable(window_us=100, request_ids_max=2 * EXPIRED_AT_ONCE_MAX)
    for number in range(2 * EXPIRED_AT_ONCE_MAX):
        table.add(b"%d" % number, part(number, 1000))
    for number in range(2 * EXPIRED_AT_ONCE_MAX):
        table.check_room(b"new %d" % number, now_us=1101)
        table.add(b"new %d" % number, part(number, 1101))
