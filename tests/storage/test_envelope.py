"""What is stored comes back the same, and damage never passes for data."""

import contextlib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from broker.storage import envelope
from broker.storage.envelope import EnvelopeDamaged

U31 = st.integers(0, 2**31 - 1)
U63 = st.integers(0, 2**63 - 1)
INDEXES = st.lists(st.integers(0, 99_999), unique=True, max_size=50).map(lambda found: tuple(sorted(found)))
HEADERS = st.fixed_dictionaries(
    {
        "base_offset": U63,
        "record_count": st.integers(1, 2**32 - 1),
        "append_time_us": U63,
        "leader_epoch": U31,
        "codec": st.integers(0, 255),
        "producer_id": U63,
        "producer_epoch": U31,
        "producer_sequence": U63,
        "request_id": st.binary(max_size=envelope.REQUEST_ID_BYTES_MAX),
    }
)


@given(header=HEADERS, batch=st.binary(max_size=300), indexes=INDEXES)
def test_an_envelope_round_trips(header: dict[str, int], batch: bytes, indexes: tuple[int, ...]) -> None:
    value, crc = envelope.encode(batch, **header, record_indexes=envelope.encode_indexes(indexes))
    found = envelope.decode(value)
    assert value[found.batch_begin :] == batch
    assert found.record_indexes == indexes
    assert found.crc == crc
    assert {name: getattr(found, name) for name in header} == header


@given(batch=st.binary(max_size=200), data=st.data())
def test_any_changed_byte_is_noticed(batch: bytes, data: st.DataObject) -> None:
    value, _ = envelope.encode(batch, base_offset=7, record_count=3, append_time_us=9, request_id=b"id")
    at = data.draw(st.integers(0, len(value) - 1))
    flipped = bytearray(value)
    flipped[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(EnvelopeDamaged):
        envelope.decode(bytes(flipped))


@given(cut=st.integers(0, 400), batch=st.binary(min_size=200, max_size=400))
def test_a_cut_envelope_is_noticed(cut: int, batch: bytes) -> None:
    value, _ = envelope.encode(batch, base_offset=7, record_count=3, append_time_us=9)
    with pytest.raises(EnvelopeDamaged):
        envelope.decode(value[: min(cut, len(value) - 1)])


@given(st.binary(max_size=200))
def test_noise_is_refused_and_never_crashes(noise: bytes) -> None:
    with pytest.raises(EnvelopeDamaged):
        envelope.decode(noise)


@given(
    header=HEADERS,
    indexes=INDEXES,
    size=st.integers(0, 2**32 - 1),
    crc=st.integers(0, 2**32 - 1),
    position=st.integers(-(2**63), 2**63 - 1),
)
def test_an_index_entry_round_trips(
    header: dict[str, int], indexes: tuple[int, ...], size: int, crc: int, position: int
) -> None:
    fields = {name: value for name, value in header.items() if name not in ("base_offset", "codec")}
    if not fields["producer_id"]:
        fields["producer_epoch"] = fields["producer_sequence"] = 0
    value = envelope.encode_entry(
        **fields, size_bytes=size, crc=crc, position=position, record_indexes=envelope.encode_indexes(indexes)
    )
    found = envelope.decode_entry(value)
    assert (found.size_bytes, found.crc, found.position, found.record_indexes) == (size, crc, position, indexes)
    assert {name: getattr(found, name) for name in fields} == fields


@given(st.binary(max_size=120))
def test_a_damaged_index_entry_never_crashes(noise: bytes) -> None:
    with contextlib.suppress(EnvelopeDamaged):
        envelope.decode_entry(b"\x01" + noise)


@given(INDEXES)
@example(())
@example((0,))
@example((255, 511))
@example((0, 300, 99_999))
def test_record_indexes_round_trip(indexes: tuple[int, ...]) -> None:
    assert envelope.decode_indexes(envelope.encode_indexes(indexes)) == indexes


def test_neighbouring_indexes_cost_a_byte_each() -> None:
    assert len(envelope.encode_indexes(range(0, 3000, 3))) == 1001
