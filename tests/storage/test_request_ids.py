"""Idempotence by request id: found inside the window, never evicted there, bounded."""

import pytest

from broker.storage.request_ids import RequestIdsFull, RequestIdTable, RequestPart


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
