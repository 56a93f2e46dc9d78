"""Protobuf fields joined by hand around bytes that stay as they are.

Through messages, each level of nesting copies what it holds twice: once into the message, once out of it. A batch on
its way to two followers is most of what a leader does, so here it is copied once. tests/peers/test_wire.py compares
with Protobuf's own encoding.
"""

from typing import Final

FIELD_1: Final = b"\x0a"
"""Tag of a length-delimited field."""
FIELD_3: Final = b"\x1a"


def head(tag: bytes, size_bytes: int) -> bytes:
    """What comes before the `size_bytes` of a field."""
    encoded = bytearray(tag)
    while size_bytes > 0x7F:
        encoded.append(size_bytes & 0x7F | 0x80)
        size_bytes >>= 7
    encoded.append(size_bytes)
    return bytes(encoded)


def sole_field(message: bytes, tag: bytes) -> bytes | None:
    """What `message` holds if it is that one field and nothing else; None: it may still be in order."""
    if not message.startswith(tag):
        return None
    size_bytes = shift = 0
    at = len(tag)
    for value in message[at : at + 5]:
        at += 1
        size_bytes |= (value & 0x7F) << shift
        if value < 0x80:
            return message[at:] if at + size_bytes == len(message) else None
        shift += 7
    return None
