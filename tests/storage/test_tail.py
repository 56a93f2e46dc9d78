"""The tail gives what was appended, as the same objects, within its bound."""

from hypothesis import given
from hypothesis import strategies as st

from broker.storage.batch import StoredBatch
from broker.storage.tail import BATCH_OVERHEAD_BYTES, Tail


def stored(base_offset: int, count: int, size: int = 100) -> StoredBatch:
    return StoredBatch(base_offset, base_offset + count, count, 0, 0, 0, bytes(size), 0)


def test_the_batch_that_holds_the_offset_comes_first_and_is_not_copied() -> None:
    tail = Tail(bytes_max=1_000_000).of_log()
    batches = [stored(0, 10), stored(10, 5), stored(15, 1)]
    for batch in batches:
        tail.add(batch)
    found = tail.read(12, end_offset=16, max_bytes=1_000_000)
    assert found is not None
    assert found[0] is batches[1]
    assert found[1] is batches[2]


def test_at_least_one_batch_and_nothing_at_or_above_the_end() -> None:
    tail = Tail(bytes_max=1_000_000).of_log()
    for base in range(0, 50, 10):
        tail.add(stored(base, 10))
    found = tail.read(0, end_offset=50, max_bytes=1)
    assert found is not None and [batch.base_offset for batch in found] == [0]
    found = tail.read(0, end_offset=30, max_bytes=1_000_000)
    assert found is not None and [batch.base_offset for batch in found] == [0, 10, 20]
    assert tail.read(30, end_offset=30, max_bytes=1) == []


def test_an_empty_tail_does_not_pass_for_an_empty_log() -> None:
    assert Tail(bytes_max=1000).of_log().read(0, end_offset=10, max_bytes=1) is None


def test_the_oldest_of_all_logs_goes_first() -> None:
    node = Tail(bytes_max=3 * (100 + BATCH_OVERHEAD_BYTES))
    first, second = node.of_log(), node.of_log()
    first.add(stored(0, 1))
    second.add(stored(0, 1))
    first.add(stored(1, 1))
    second.add(stored(1, 1))
    assert first.read(0, end_offset=2, max_bytes=1000) is None
    assert second.read(0, end_offset=2, max_bytes=1000) is not None
    second.add(stored(2, 1))
    assert second.read(0, end_offset=3, max_bytes=1000) is None
    assert first.read(1, end_offset=2, max_bytes=1000) is not None


def test_a_closed_log_gives_its_bytes_back_once() -> None:
    node = Tail(bytes_max=10_000)
    gone, kept = node.of_log(), node.of_log()
    for base in range(5):
        gone.add(stored(base, 1))
    kept.add(stored(0, 1))
    gone.close()
    gone.close()
    assert node.size_bytes == kept.size_bytes == 100 + BATCH_OVERHEAD_BYTES
    for base in range(1, 100):
        kept.add(stored(base, 1))
    assert kept.size_bytes == node.size_bytes <= 10_000


@given(
    batches=st.lists(st.tuples(st.integers(1, 5), st.integers(0, 3), st.integers(0, 2000)), max_size=60),
    bound=st.integers(0, 20_000),
    data=st.data(),
)
def test_like_a_list_that_forgets_its_front(
    batches: list[tuple[int, int, int]], bound: int, data: st.DataObject
) -> None:
    """With gaps between batches, any bound and any read."""
    node = Tail(bytes_max=bound)
    tail = node.of_log()
    model: list[StoredBatch] = []
    offset = 0
    for count, gap, size in batches:
        batch = stored(offset, count, size)
        tail.add(batch)
        model.append(batch)
        offset += count + gap
        while sum(len(b.batch) + BATCH_OVERHEAD_BYTES for b in model) > bound:
            model.pop(0)
        assert node.size_bytes <= bound
    begin = data.draw(st.integers(0, offset + 1))
    end = data.draw(st.integers(0, offset + 1))
    max_bytes = data.draw(st.integers(0, 5000))
    found = tail.read(begin, end_offset=end, max_bytes=max_bytes)
    if begin >= end:
        assert found == []
    elif not model or begin < model[0].base_offset:
        assert found is None
    else:
        expected = [b for b in model if b.end_offset > begin and b.base_offset < end]
        assert found is not None
        assert found == expected[: len(found)]
        size = sum(len(b.batch) for b in found)
        assert len(found) == len(expected) or size + len(expected[len(found)].batch) > max_bytes
        assert len(found) <= 1 or size <= max_bytes
        assert bool(found) == bool(expected)


def test_many_evictions_keep_the_lists_short() -> None:
    node = Tail(bytes_max=10 * (100 + BATCH_OVERHEAD_BYTES))
    tail = node.of_log()
    for base in range(20_000):
        tail.add(stored(base, 1))
    assert len(tail._batches) < 3000
    found = tail.read(19_995, end_offset=20_000, max_bytes=10_000)
    assert found is not None and [batch.base_offset for batch in found] == list(range(19_995, 20_000))
