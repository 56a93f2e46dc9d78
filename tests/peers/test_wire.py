"""Fields joined by hand are what Protobuf makes of them."""

import pytest

from broker.peers import wire
from broker.stubs import peers_pb2, replication_pb2

SIZES = [0, 1, 127, 128, 300, 16_383, 16_384, 2_097_151, 2_097_152]


@pytest.mark.parametrize("size_bytes", SIZES)
def test_a_field_of_any_size_is_encoded_as_protobuf_does(size_bytes: int) -> None:
    value = bytes(size_bytes)
    assert wire.head(wire.FIELD_1, size_bytes) + value == peers_pb2.PeerFrame(messages=[value]).SerializeToString()
    expected = replication_pb2.PulledPartition(envelopes=[value]).SerializeToString()
    assert wire.head(wire.FIELD_3, size_bytes) + value == expected


@pytest.mark.parametrize("size_bytes", SIZES)
def test_a_sole_field_is_found(size_bytes: int) -> None:
    value = b"v" * size_bytes
    assert wire.sole_field(peers_pb2.PeerFrame(messages=[value]).SerializeToString(), wire.FIELD_1) == value


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        peers_pb2.PeerFrame(messages=[b"one", b"two"]).SerializeToString(),
        peers_pb2.PeerFrame(messages=[b"one"], last=True).SerializeToString(),
        peers_pb2.PeerFrame(last=True).SerializeToString(),
        b"\x0a",
        b"\x0a\x05four",
        b"\x0a\xff\xff\xff\xff\xff\x01",
    ],
)
def test_what_is_more_or_less_than_one_field_is_left_to_the_parser(frame: bytes) -> None:
    assert wire.sole_field(frame, wire.FIELD_1) is None
