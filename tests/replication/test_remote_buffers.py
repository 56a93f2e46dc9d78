"""What is kept of partitions that are read through their leaders: one budget for all of them."""

from broker.replication.remote_buffers import RemoteBuffers
from broker.storage.batch import StoredBatch
from broker.storage.envelope import encode


def batches(*offsets: int, size: int = 1000) -> list[StoredBatch]:
    """One record each; `size` bytes and a little more."""
    return [
        StoredBatch.of_envelope(encode(bytes(size), base_offset=offset, record_count=1, append_time_us=1)[0])
        for offset in offsets
    ]


def test_what_was_not_read_for_longest_goes_first() -> None:
    """However many partitions are read, the budget holds."""
    kept = RemoteBuffers(bytes_max=3500, partition_bytes_max=2500)
    for log_id in (1, 2, 3):
        kept.keep(log_id, batches(7))
    assert kept.find(1, 7) is not None
    kept.keep(4, batches(7))
    assert [kept.find(log_id, 7) is not None for log_id in (1, 2, 3, 4)] == [True, False, True, True]
    for log_id in range(100):
        kept.keep(log_id, batches(0, 1))
        assert 0 < kept.size_bytes <= 3500
    assert len(kept) == 1


def test_a_run_of_reads_is_kept_up_to_its_end() -> None:
    """The oldest of a partition goes; a read that does not go on from there replaces what was kept."""
    kept = RemoteBuffers(bytes_max=100_000, partition_bytes_max=2500)
    kept.keep(1, batches(0))
    kept.keep(1, batches(1, 2))
    assert kept.find(1, 0) is None
    assert [batch.base_offset for batch in kept.find(1, 2) or ()] == [1, 2]
    kept.keep(1, batches(9))
    assert kept.find(1, 2) is None and kept.find(1, 9) is not None and kept.find(1, 10) is None


def test_nothing_is_left_of_what_is_dropped() -> None:
    """And a batch that is too large for the budget is kept alone: its next reader is the same one."""
    kept = RemoteBuffers(bytes_max=2500, partition_bytes_max=2500)
    kept.keep(1, batches(0))
    kept.keep(2, batches(0, size=9000))
    assert kept.find(1, 0) is None and kept.find(2, 0) is not None
    kept.drop(2)
    kept.drop(3)
    assert (len(kept), kept.size_bytes) == (0, 0)
