"""Checks that hold for every request: unknown fields are named wherever they hide, repeated ones are refused."""

import pytest
from google.protobuf.duration_pb2 import Duration
from hypothesis import given
from hypothesis import strategies as st
from postbus.v1 import error_pb2, publisher_pb2, record_pb2, subscriber_pb2

from broker.errors import PostbusError
from broker.services import requests
from broker.services.delivery import varint

UNKNOWN = error_pb2.ERROR_REASON_UNKNOWN_FIELD
# Field 9999, a varint, in any message.
STRANGE = b"\xf8\xf0\x04\x01"


def refused(data: bytes, message_type: type = subscriber_pb2.SubscribeRequest) -> PostbusError:
    with pytest.raises(PostbusError) as raised:
        requests.parse_checked(message_type, data)
    assert raised.value.code.name == "INVALID_ARGUMENT"
    return raised.value


def field(number: int, value: bytes) -> bytes:
    """An embedded message or text, encoded."""
    return varint(number << 3 | 2) + varint(len(value)) + value


def test_unknown_fields_are_named_by_their_path() -> None:
    """At the top, inside, and inside a repeated field."""
    assert refused(STRANGE).field == "field 9999"
    start = subscriber_pb2.SubscribeStart(topics=[subscriber_pb2.TopicSelector(topic="t")]).SerializeToString()
    assert refused(field(1, start + STRANGE)).field == "start.field 9999"
    second = field(1, start + field(1, field(1, b"u") + STRANGE))
    assert refused(second).field == "start.topics[1].field 9999"


def test_unknown_enum_values_are_named() -> None:
    """Single and repeated ones: a codec that this version does not know is a setting that would be ignored."""
    start = subscriber_pb2.SubscribeStart(accept_compressions=[1, 77])  # type: ignore[list-item]
    error = refused(subscriber_pb2.SubscribeRequest(start=start).SerializeToString())
    assert (error.reason, error.field) == (UNKNOWN, "start.accept_compressions = 77")
    seek = subscriber_pb2.Seek(to=subscriber_pb2.StartPosition(edge=9))  # type: ignore[arg-type]
    error = refused(subscriber_pb2.SubscribeRequest(seeks=[seek]).SerializeToString())
    assert error.field == "seeks[0].to.edge = 9"


def test_batches_are_exempt() -> None:
    """Records of a later version are stored as they are."""
    data = field(1, b"t") + field(3, field(1, b"\x12\x01v" + STRANGE) + STRANGE)
    request = requests.parse_checked(publisher_pb2.PublishRequest, data)
    assert request.SerializeToString() == data
    assert refused(data + STRANGE, publisher_pb2.PublishRequest).field == "field 9999"


@given(st.binary(max_size=60))
def test_any_bytes_parse_or_are_refused(data: bytes) -> None:
    """The only exception is the client's fault, by name of the message."""
    try:
        requests.parse_checked(subscriber_pb2.SubscribeRequest, data)
    except PostbusError as error:
        assert error.code.name == "INVALID_ARGUMENT"


def test_a_field_that_occurs_twice_is_refused() -> None:
    """The bytes view takes the last, the message itself merges: nobody may depend on which."""
    once = field(1, b"t") + field(3, b"")
    requests.refuse_repeated_fields(once)
    with pytest.raises(PostbusError, match="field 3: occurs twice"):
        requests.refuse_repeated_fields(once + field(3, b"x"))
    with pytest.raises(PostbusError, match=r"publish\.field 1: occurs twice"):
        requests.refuse_repeated_fields(field(1, b"t") * 2, "publish.")


def test_groups_of_old_protobuf_are_refused() -> None:
    """They parse, but nothing here uses them."""
    with pytest.raises(PostbusError, match="groups are not used"):
        requests.refuse_repeated_fields(b"\x0b\x0c")


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1), st.binary(max_size=300), st.binary(max_size=20))
def test_the_bytes_of_an_embedded_message_are_found(number: int, small: int, wanted: bytes, other: bytes) -> None:
    """As they came, whatever wire types stand before it."""
    data = b"\x08" + varint(number) + b"\x1d" + small.to_bytes(4, "little") + b"\x21" + number.to_bytes(8, "little")
    data += field(5, other) + field(2, wanted)
    assert requests.field_bytes(data, 2) == wanted
    assert requests.field_bytes(data, 5) == other
    assert requests.field_bytes(data, 6) is None


@pytest.mark.parametrize(("seconds", "nanos", "expected"), [(0, 0, 0.0), (1, 500_000_000, 1.5), (60, 0, 60.0)])
def test_durations_become_seconds(seconds: int, nanos: int, expected: float) -> None:
    assert requests.seconds("f", Duration(seconds=seconds, nanos=nanos), maximum=60.0) == expected


@pytest.mark.parametrize(
    "duration", [Duration(seconds=-1), Duration(nanos=-1), Duration(seconds=61), Duration(seconds=2**62)]
)
def test_durations_outside_are_refused(duration: Duration) -> None:
    """Negative, too long, and those that no clock can add."""
    with pytest.raises(PostbusError):
        requests.seconds("f", duration, maximum=60.0)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "ä", "a b", "a\n", "x" * 250])
def test_names_that_can_not_be(name: str) -> None:
    with pytest.raises(PostbusError):
        requests.check_name("topic", name)


@pytest.mark.parametrize("name", ["a", "...", "A.b_c-9", "x" * 249])
def test_names_that_can_be(name: str) -> None:
    requests.check_name("topic", name)


def test_labels_are_bounded_and_printable() -> None:
    """They are shown to people."""
    requests.check_label("f", "Zürich 7", chars_max=8)
    for text in ("x" * 9, "a\x1b[2J"):
        with pytest.raises(PostbusError):
            requests.check_label("f", text, chars_max=8)
    assert not requests.has_unknown_fields(record_pb2.Record())
