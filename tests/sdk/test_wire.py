"""What the SDK encodes by hand is what Protobuf would have written."""

from hypothesis import given
from hypothesis import strategies as st
from postbus import wire
from postbus.v1 import publisher_pb2, record_pb2

payloads = st.one_of(st.binary(max_size=40), st.integers(0, 20_000).map(bytes))
numbers = st.one_of(st.integers(0, 300), st.integers(0, 2**63 - 1))


@given(
    key=st.none() | payloads,
    value=st.none() | payloads,
    headers=st.lists(st.tuples(st.text(max_size=10), payloads), max_size=3),
    event_time_us=st.integers(-(2**63), 2**63 - 1) | st.just(0),
)
def test_any_record(key: bytes | None, value: bytes | None, headers: list, event_time_us: int) -> None:
    """Absent and empty fields, long ones, negative times."""
    expected = record_pb2.RecordBatch(
        records=[
            record_pb2.Record(
                key=key,
                value=value,
                headers=[record_pb2.Header(name=name, value=content) for name, content in headers],
                event_time_us=event_time_us,
            )
        ]
    ).SerializeToString(deterministic=True)
    assert wire.record(key=key, value=value, headers=headers, event_time_us=event_time_us) == expected


@given(key=payloads, value=payloads)
def test_the_fast_ways_give_the_same(key: bytes, value: bytes) -> None:
    """Key and value, and value alone."""
    assert wire.keyed(key, value) == wire.record(key=key, value=value, headers=(), event_time_us=0)
    alone = wire.record(key=None, value=value, headers=(), event_time_us=0)
    assert wire.VALUE_ONLY[len(value)] + value == alone
    assert wire.values_only([value, value]) == alone * 2


@given(
    correlation_id=st.integers(1, 2**64 - 1),
    topic=st.text(min_size=1, max_size=249),
    partition=st.integers(0, 2**31 - 1),
    values=st.lists(payloads, min_size=1, max_size=5),
    acks=st.integers(0, 3),
    producer_id=numbers,
    epoch=st.integers(0, 2**31 - 1),
    sequence=numbers,
)
def test_a_request(correlation_id, topic, partition, values, acks, producer_id, epoch, sequence) -> None:  # noqa: PLR0917
    """Every number, zero included."""
    expected = publisher_pb2.PublishStreamRequest(
        correlation_id=correlation_id,
        publish=publisher_pb2.PublishRequest(
            topic=topic,
            partition=partition,
            batch=record_pb2.RecordBatch(records=[record_pb2.Record(value=value) for value in values]),
            acks=acks,
            producer=publisher_pb2.ProducerSequence(id=producer_id, epoch=epoch, sequence=sequence),
        ),
    ).SerializeToString(deterministic=True)
    written = wire.stream_request(
        correlation_id=correlation_id,
        head=wire.request_head(topic=topic, partition=partition),
        batch=wire.values_only(values),
        tail=wire.request_tail(acks=acks, producer_id=producer_id, producer_epoch=epoch, sequence=sequence),
    )
    assert written == expected


@given(codec=st.integers(1, 4), compressed=payloads, count=st.integers(0, 100_000), size=st.integers(0, 2**32 - 1))
def test_a_compressed_batch(codec: int, compressed: bytes, count: int, size: int) -> None:
    """Codec, payload, and what it will be."""
    written = wire.compressed_batch(codec=codec, compressed=compressed, record_count=count, uncompressed_bytes=size)
    assert record_pb2.RecordBatch.FromString(written) == record_pb2.RecordBatch(
        compression=codec, compressed_records=compressed, record_count=count, uncompressed_bytes=size
    )


@given(data=st.binary(max_size=60))
def test_walking_over_rubbish_ends_in_value_error(data: bytes) -> None:
    """Any bytes: fields, or ValueError; never an endless loop or another error."""
    try:
        for number, value in wire.fields(data):
            assert isinstance(number, int)
            assert isinstance(value, int | bytes)
    except ValueError:
        pass
