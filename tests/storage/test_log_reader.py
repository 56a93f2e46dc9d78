"""Searches in the index against naive ones, gaps between batches included (compaction leaves some)."""

from collections.abc import Iterator, Sequence
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.storage import envelope
from broker.storage.batch import StoredBatch
from broker.storage.engine import Engine, Op
from broker.storage.log_reader import READ_BATCHES_MAX, Indexed, LogReader
from broker.storage.log_state import BATCHES, INDEX, data_families, offset_key

LOG_IDS = count(10, 10)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    engine = Engine.open(tmp_path_factory.mktemp("reader") / "db", data_families(memtable_bytes=1 << 20))
    yield engine
    engine.close()


def put_log(engine: Engine, batches: list[tuple[int, int, int]]) -> LogReader:
    """Writes batches (base offset, record count, append time) as a log would, between two neighbours."""
    log_id = next(LOG_IDS)
    ops: list[Op] = []
    for number in (log_id - 1, log_id, log_id + 1):
        mine = batches if number == log_id else [(0, 1000, 0)]
        for position, (base_offset, record_count, time_us) in enumerate(mine):
            batch = b"%d" % base_offset
            value, crc = envelope.encode(
                batch, base_offset=base_offset, record_count=record_count, append_time_us=time_us
            )
            entry = envelope.encode_entry(
                record_count=record_count,
                size_bytes=len(value),
                crc=crc,
                append_time_us=time_us,
                leader_epoch=0,
                position=position,
            )
            ops.append(("put", BATCHES, offset_key(number, base_offset), value))
            ops.append(("put", INDEX, offset_key(number, base_offset), entry))
    engine.write(ops)
    return LogReader(engine, log_id)


@settings(deadline=None)
@given(shape=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 3), st.integers(0, 2)), max_size=20), data=st.data())
def test_searches_find_what_a_scan_would(
    engine: Engine, shape: list[tuple[int, int, int]], data: st.DataObject
) -> None:
    batches: list[tuple[int, int, int]] = []
    offset = time_us = 0
    for gap, record_count, step_us in shape:
        time_us += step_us
        batches.append((offset + gap, record_count, time_us))
        offset += gap + record_count
    reader = put_log(engine, batches)
    for at in range(offset + 2):
        before = [batch for batch in batches if batch[0] <= at]
        found = reader.last_at_or_before(at)
        assert (found and found.base_offset) == (before[-1][0] if before else None)
        holding = [batch[0] for batch in before if batch[0] + batch[1] > at]
        found = reader.batch_at(at)
        assert (found and found.base_offset) == (holding[0] if holding else None)
    begin = data.draw(st.integers(0, offset + 1))
    end = data.draw(st.integers(0, offset + 1))
    for since_us in range(time_us + 2):
        later = [b for b in batches if b[0] + b[1] > begin and b[0] < end and b[2] >= since_us]
        found = reader.first_where(
            lambda entry, since_us=since_us: entry.append_time_us >= since_us, begin=begin, end=end
        )
        assert (found and found.base_offset) == (later[0][0] if later and begin < end else None)
    read = reader.read(begin, end_offset=end, max_bytes=1 << 20)
    expected = [b[0] for b in batches if b[0] + b[1] > begin and b[0] < end] if begin < end else []
    assert [batch.base_offset for batch in read] == expected
    assert [bytes(batch.batch) for batch in read] == [b"%d" % base for base in expected]


def test_one_read_holds_a_bounded_number_of_batches(engine: Engine) -> None:
    """However small they are, other readers get their turn."""
    batches = [(offset, 1, offset) for offset in range(READ_BATCHES_MAX + 100)]
    reader = put_log(engine, batches)
    found = reader.read(50, end_offset=len(batches), max_bytes=1 << 30)
    assert [batch.base_offset for batch in found] == list(range(50, 50 + READ_BATCHES_MAX))


def test_every_single_record_is_found_by_its_time(engine: Engine) -> None:
    reader = put_log(engine, [(offset, 1, offset * 10) for offset in range(70)])
    for offset in range(70):
        found = reader.first_where(lambda entry, at=offset * 10: entry.append_time_us >= at, begin=0, end=70)
        assert found is not None
        assert found.base_offset == offset


@pytest.mark.parametrize("becomes", ["rewritten", "gone"])
def test_a_batch_that_changes_between_index_and_read_is_looked_up_again(engine: Engine, becomes: str) -> None:
    """Compaction writes while readers read: that is no damage."""
    reader = put_log(engine, [(0, 10, 1), (10, 10, 2)])
    key = offset_key(reader._log_id, 0)
    fetch, calls = reader.fetch, 0

    def fetch_late(wanted: Sequence[Indexed]) -> list[StoredBatch]:
        nonlocal calls
        calls += 1
        if calls == 1:
            value, crc = envelope.encode(b"less", base_offset=0, record_count=1, span=10, append_time_us=1)
            entry = envelope.encode_entry(
                record_count=1,
                span=10,
                size_bytes=len(value),
                crc=crc,
                append_time_us=1,
                leader_epoch=0,
                position=0,
            )
            if becomes == "gone":
                engine.write([("delete", BATCHES, key), ("delete", INDEX, key)])
            else:
                engine.write([("put", BATCHES, key, value), ("put", INDEX, key, entry)])
        return fetch(wanted)

    reader.fetch = fetch_late  # type: ignore[method-assign]
    found = [bytes(batch.batch) for batch in reader.read(0, end_offset=20, max_bytes=1 << 20)]
    assert found == ([b"10"] if becomes == "gone" else [b"less", b"10"])
    assert calls == 2
