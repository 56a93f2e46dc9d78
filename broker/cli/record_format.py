r"""How `subscribe` prints records: kcat's format letters, or JSON lines. Pure: records in, bytes out.

%t topic, %p partition, %o offset, %k key, %s value, %K and %S their lengths (-1: there is none), %h headers
(name=value, commas between), %T append time in milliseconds since 1970, %% a percent sign; \n \t \r \0 \\ \xHH.
"""

import base64
import json
import re
from collections.abc import Callable, Iterable
from typing import Any, Final

from postbus import Batch, Record

Formatter = Callable[[Batch], bytes]

_ESCAPES: Final = {"n": b"\n", "t": b"\t", "r": b"\r", "0": b"\0", "\\": b"\\", "a": b"\a"}
_TOKEN: Final = re.compile(r"%(.?)|\\(x[0-9a-fA-F]{2}|.?)|[^%\\]+", re.DOTALL)


class BadFormat(ValueError):  # noqa: N818 - named for what it is
    """A format has a letter or escape that means nothing."""


def values(batch: Batch) -> bytes:
    """The default: each value on a line of its own."""
    return b"\n".join([*batch.values(), b""])


def json_lines(batch: Batch) -> bytes:
    """A JSON object each; what is not UTF-8 as base64 under key_base64, value_base64."""
    return b"".join([json.dumps(_facts(record), ensure_ascii=False).encode() + b"\n" for record in batch])


def formatter(text: str) -> Formatter:
    """Prints each record as `text` says. Raises BadFormat."""
    parts = [_part(found) for found in _TOKEN.finditer(text)]

    def format_batch(batch: Batch) -> bytes:
        return b"".join([part if isinstance(part, bytes) else part(record) for record in batch for part in parts])

    return format_batch


def _part(found: "re.Match[str]") -> bytes | Callable[[Record], bytes]:
    token, letter, escape = found[0], found[1], found[2]
    if letter is not None:
        if letter == "%":
            return b"%"
        if letter not in _LETTERS:
            raise BadFormat(f"{token!r} means nothing; there are: {' '.join('%' + each for each in _LETTERS)} %%")
        return _LETTERS[letter]
    if escape is not None:
        if escape.startswith("x") and len(escape) == 3:
            return bytes([int(escape[1:], 16)])
        if escape not in _ESCAPES:
            raise BadFormat(f"{token!r} means nothing; there are: \\n \\t \\r \\0 \\a \\\\ \\xHH")
        return _ESCAPES[escape]
    return token.encode(errors="surrogateescape")


def _value_length(record: Record) -> bytes:
    return b"-1" if record.is_tombstone else b"%d" % len(record.value)


def _key_length(record: Record) -> bytes:
    return b"-1" if record.key is None else b"%d" % len(record.key)


def _headers(record: Record) -> bytes:
    return b",".join([name.encode() + b"=" + value for name, value in record.headers])


_LETTERS: Final[dict[str, Callable[[Record], bytes]]] = {
    "t": lambda record: record.topic.encode(),
    "p": lambda record: b"%d" % record.partition,
    "o": lambda record: b"%d" % record.offset,
    "k": lambda record: record.key or b"",
    "s": lambda record: record.value,
    "K": _key_length,
    "S": _value_length,
    "h": _headers,
    "T": lambda record: b"%d" % round(record.append_time.timestamp() * 1000),
}


def _facts(record: Record) -> dict[str, Any]:
    return {
        "topic": record.topic,
        "partition": record.partition,
        "offset": record.offset,
        "append_time": record.append_time.isoformat(timespec="microseconds").replace("+00:00", "Z"),
        **_payload("key", record.key),
        **_payload("value", None if record.is_tombstone else record.value),
        "headers": _header_facts(record.headers),
    }


def _header_facts(headers: Iterable[tuple[str, bytes]]) -> list[dict[str, Any]]:
    return [{"name": name, **_payload("value", value)} for name, value in headers]


def _payload(name: str, payload: bytes | None) -> dict[str, str | None]:
    if payload is None:
        return {name: None}
    try:
        return {name: payload.decode()}
    except UnicodeDecodeError:
        return {f"{name}_base64": base64.b64encode(payload).decode()}
