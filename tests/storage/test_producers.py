"""Idempotence by sequence: every outcome of correctness.md section 6, and that it survives saving."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.storage.producers import (
    DuplicateTooOld,
    ProducerBatch,
    ProducerFenced,
    ProducerTable,
    ProducerUnknown,
    SequenceGap,
)


def batch(sequence: int, time_us: int = 0) -> ProducerBatch:
    return ProducerBatch(sequence, sequence * 10, sequence * 10 + 10, time_us)


def table_with(last: int, *, epoch: int = 3, high_watermark: int = 1 << 60) -> ProducerTable:
    table = ProducerTable()
    table.high_watermark = high_watermark
    for sequence in range(last + 1):
        assert table.check(7, epoch, sequence) is None
        table.record(7, epoch, batch(sequence))
    return table


def test_the_next_sequence_is_new() -> None:
    assert table_with(4).check(7, 3, 5) is None


def test_a_known_batch_is_a_duplicate_with_its_offsets() -> None:
    table = table_with(9)
    for sequence in range(5, 10):
        assert table.check(7, 3, sequence) == batch(sequence)


def test_older_than_the_window_is_known_to_be_a_duplicate_without_offsets() -> None:
    with pytest.raises(DuplicateTooOld):
        table_with(9).check(7, 3, 4)


def test_a_gap_names_the_sequence_that_is_missing() -> None:
    with pytest.raises(SequenceGap) as refusal:
        table_with(4).check(7, 3, 6)
    assert refusal.value.expected_sequence == 5


def test_a_lower_epoch_is_fenced() -> None:
    with pytest.raises(ProducerFenced) as refusal:
        table_with(4).check(7, 2, 5)
    assert refusal.value.current_epoch == 3


def test_a_new_epoch_starts_at_sequence_0() -> None:
    table = table_with(4)
    with pytest.raises(SequenceGap) as refusal:
        table.check(7, 4, 5)
    assert refusal.value.expected_sequence == 0
    assert table.check(7, 4, 0) is None
    table.record(7, 4, batch(0))
    with pytest.raises(ProducerFenced):
        table.check(7, 3, 5)


def test_an_unknown_producer_may_only_begin() -> None:
    table = ProducerTable()
    with pytest.raises(ProducerUnknown):
        table.check(8, 0, 1)
    assert table.check(8, 0, 0) is None


def test_every_batch_above_the_high_watermark_is_remembered() -> None:
    table = table_with(19, high_watermark=80)
    for sequence in range(3, 20):  # 8 batches are below it; the last five of those, and all above
        assert table.check(7, 3, sequence) == batch(sequence)
    with pytest.raises(DuplicateTooOld):
        table.check(7, 3, 2)


def test_the_least_recently_used_producer_is_forgotten_at_the_bound() -> None:
    table = ProducerTable(producers_max=2)
    assert table.record(1, 0, batch(0)) == []
    assert table.record(2, 0, batch(0)) == []
    assert table.record(1, 0, batch(1)) == []
    assert table.record(3, 0, batch(0)) == [2]
    assert table.check(1, 0, 2) is None
    with pytest.raises(ProducerUnknown):
        table.check(2, 0, 1)


def test_silent_producers_expire() -> None:
    table = ProducerTable()
    table.record(1, 0, batch(0, time_us=10))
    table.record(2, 0, batch(0, time_us=20))
    assert table.expire(20) == [1]
    assert len(table) == 1


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 5)), max_size=40))
def test_what_is_saved_answers_like_the_original(steps: list[tuple[int, int]]) -> None:
    """Producers that publish and take new epochs: a loaded table gives the same outcomes."""
    table = ProducerTable()
    table.high_watermark = 1 << 60
    epochs: dict[int, int] = {}
    sequences: dict[int, int] = {}
    for time_us, (producer_id, action) in enumerate(steps):
        if action == 0 and producer_id in epochs:
            epochs[producer_id] += 1
            sequences[producer_id] = 0
        epochs.setdefault(producer_id, 0)
        sequence = sequences.get(producer_id, 0)
        assert table.check(producer_id, epochs[producer_id], sequence) is None
        table.record(producer_id, epochs[producer_id], batch(sequence, time_us))
        sequences[producer_id] = sequence + 1
    loaded = ProducerTable()
    loaded.load(iter([(producer_id, table.encode(producer_id)) for producer_id in sorted(epochs)]))

    def outcome(of: ProducerTable, *call: int) -> object:
        try:
            return of.check(*call)
        except Exception as refusal:
            return repr(refusal)

    for producer_id, epoch in epochs.items():
        for sequence in range(sequences[producer_id] + 2):
            for asked in (epoch - 1, epoch, epoch + 1):
                assert outcome(loaded, producer_id, asked, sequence) == outcome(table, producer_id, asked, sequence)
    assert list(loaded._producers) == list(table._producers)


def test_damaged_state_is_refused() -> None:
    good = table_with(2).encode(7)
    for bad in (good[:-1], good[:3], b"", b"\x09" + good[1:]):
        with pytest.raises(ValueError):
            ProducerTable().load(iter([(7, bad)]))
