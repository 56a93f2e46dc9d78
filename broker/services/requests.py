"""Checks that hold for every request, whatever it asks: it parses, and holds nothing that this broker would ignore.

A setting that the broker does not know is refused by name (api.md: unknown request fields), so that nobody believes
in a setting that has no effect. Records and batches are exempt: here they are opaque bytes and stored as they are.
"""

from collections.abc import Iterator
from typing import Final, TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError, Message
from google.protobuf.unknown_fields import UnknownFieldSet

from broker import errors
from broker.controller import names

M = TypeVar("M", bound=Message)

# Names of topics and groups have one rule, wherever they occur.
check_name = names.check_name

DURATION_SECONDS_MAX: Final = 10 * 365 * 86400
# Of requests that carry no records: a few bytes make an object each, and each is looked at by itself, so that the
# six megabytes that gRPC lets in would hold up everybody for seconds.
REQUEST_BYTES_MAX: Final = 1024 * 1024
ELEMENTS_MAX: Final = 10_000


def parse(message_type: type[M], data: bytes, *, bytes_max: int = REQUEST_BYTES_MAX) -> M:
    """The message, without any check beyond its size and its syntax."""
    if len(data) > bytes_max:
        raise errors.too_large(
            "request", f"has {len(data)} bytes, at most {bytes_max} are allowed; send it in parts", limit=bytes_max
        )
    try:
        return message_type.FromString(data)
    except DecodeError as error:
        raise errors.invalid_field(
            "request", f"the bytes are not a {message_type.DESCRIPTOR.full_name}; regenerate your stubs"
        ) from error


def parse_checked(message_type: type[M], data: bytes) -> M:
    """The message; raises for unknown fields and unknown enum values anywhere in it."""
    request = parse(message_type, data)
    refuse_unknown(request)
    return request


def refuse_unknown(message: Message, prefix: str = "") -> None:
    """Raises UNKNOWN_FIELD with the path of the first unknown field or enum value; TOO_LARGE for endless lists."""
    for path in _unknown_paths(message, prefix):
        raise errors.unknown_field(path)


def has_unknown_fields(message: Message) -> bool:
    """Whether the message itself (not those inside) has some; cheap enough for hot paths."""
    return len(UnknownFieldSet(message)) > 0


def _unknown_paths(message: Message, prefix: str) -> Iterator[str]:
    unknown = UnknownFieldSet(message)
    for index in range(len(unknown)):
        yield f"{prefix}field {unknown[index].field_number}"
    for field, value in message.ListFields():
        path = f"{prefix}{field.name}"
        if field.is_repeated and len(value) > ELEMENTS_MAX:
            raise errors.too_large(
                path,
                f"has {len(value)} elements, at most {ELEMENTS_MAX} are allowed; send them in parts",
                limit=ELEMENTS_MAX,
            )
        if field.enum_type is not None:
            known = field.enum_type.values_by_number
            for number in value if field.is_repeated else (value,):
                if number not in known:
                    yield f"{path} = {number}"
        elif field.message_type is not None and not field.message_type.GetOptions().map_entry:
            if field.message_type.full_name == "postbus.v1.RecordBatch":
                continue
            if field.is_repeated:
                for index, item in enumerate(value):
                    yield from _unknown_paths(item, f"{path}[{index}].")
            else:
                yield from _unknown_paths(value, f"{path}.")


def refuse_repeated_fields(data: bytes, prefix: str = "") -> None:
    """Raises if a field number occurs twice at the top level of a message whose fields are all singular.

    The bytes view of a message and the message itself disagree there: an embedded message merges, bytes take the
    last. `data` is known to parse.
    """
    seen: set[int] = set()
    for number, _, _ in _fields(data, prefix):
        if number in seen:
            raise errors.invalid_field(f"{prefix}field {number}", "occurs twice in one message")
        seen.add(number)


def field_bytes(data: bytes, wanted: int) -> bytes | None:
    """The bytes of the embedded message with that field number, as they came; None if there is none."""
    for number, begin, end in _fields(data, ""):
        if number == wanted:
            return data[begin:end]
    return None


def _fields(data: bytes, prefix: str) -> Iterator[tuple[int, int, int]]:
    """Number, begin and end of the value of each field; for embedded messages without their length."""
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        number, wire_type = tag >> 3, tag & 7
        begin = position
        if wire_type == 0:
            _, position = _varint(data, position)
        elif wire_type == 1:
            position += 8
        elif wire_type == 5:
            position += 4
        elif wire_type == 2:
            length, begin = _varint(data, position)
            position = begin + length
        else:
            raise errors.invalid_field(f"{prefix}field {number}", "groups are not used in proto3")
        yield number, begin, position


def _varint(data: bytes, position: int) -> tuple[int, int]:
    result = shift = 0
    while True:
        byte = data[position]
        position += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result, position
        shift += 7


def check_label(field: str, text: str, *, chars_max: int) -> None:
    """Free text that is shown to people: bounded and printable."""
    if len(text) > chars_max:
        raise errors.too_large(field, f"has {len(text)} characters, at most {chars_max} are allowed", limit=chars_max)
    if not text.isprintable():
        raise errors.invalid_field(field, f"{_shown(text)} holds control characters")


def check_offset(field: str, offset: int) -> None:
    """Offsets are never negative."""
    if offset < 0:
        raise errors.invalid_field(field, f"{offset} is negative; offsets begin at 0")


def seconds(field: str, duration: Duration, *, minimum: float = 0.0, maximum: float = DURATION_SECONDS_MAX) -> float:
    """A google.protobuf.Duration in seconds, within bounds."""
    if abs(duration.nanos) >= 1_000_000_000 or duration.seconds * duration.nanos < 0:
        raise errors.invalid_field(field, "is no duration: nanos have the sign of seconds and are below a second")
    value = duration.seconds + duration.nanos / 1e9
    if not minimum <= value <= maximum:
        raise errors.invalid_field(field, f"{value:g} s is not within {minimum:g} to {maximum:g} s")
    return value


def _shown(name: str) -> str:
    return ascii(name if len(name) <= 40 else name[:40] + "…")
