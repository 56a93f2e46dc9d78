"""What `publish` publishes: the text of arguments and lines, checked and turned into records. Pure."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from postbus import NewRecord
from postbus.records import to_bytes, to_headers
from postbus.v1 import record_pb2

BulkRecord = bytes | tuple[bytes, bytes] | NewRecord
# Tags and lengths of a field of a record, at most.
_FIELD_BYTES: Final = 12


class Malformed(ValueError):  # noqa: N818 - named for what it is
    """A line can't be published; the text says why."""


@dataclass(frozen=True, slots=True)
class RecordMaker:
    """Turns a line into a record.

    key: of all records. key_field: the field of each line, a JSON object, whose value is its key.
    json_lines: each line must be JSON.
    """

    key: bytes | None
    key_field: str
    json_lines: bool
    headers: Sequence[tuple[str, bytes]]
    record_bytes_max: int

    def record(self, line: bytes) -> BulkRecord:
        """Raises Malformed."""
        key = self.key
        if self.key_field or self.json_lines:
            try:
                data = json.loads(line)
            except ValueError as error:
                raise Malformed(f"it is not JSON ({error})") from None
            if self.key_field:
                key = self._key(data)
        record = self._record(line, key)
        rough_bytes = len(line) + len(key or b"") + 2 * _FIELD_BYTES
        if self.headers:
            rough_bytes += sum(len(name) + len(value) + 3 * _FIELD_BYTES for name, value in self.headers)
        # Near the limit what counts is the record as it will be on the wire.
        if rough_bytes > self.record_bytes_max:
            size_bytes = message(record).ByteSize()
            if size_bytes > self.record_bytes_max:
                raise Malformed(f"it has {size_bytes:,} bytes, and the topic takes {self.record_bytes_max:,}")
        return record

    def _record(self, line: bytes, key: bytes | None) -> BulkRecord:
        if self.headers:
            return NewRecord(line, key=key, headers=self.headers)
        return line if key is None else (key, line)

    def _key(self, data: object) -> bytes:
        if not isinstance(data, dict):
            raise Malformed("it is JSON, but not an object with fields")
        if self.key_field not in data:
            raise Malformed(f"it has no field {self.key_field!r}")
        value = data[self.key_field]
        text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
        try:
            return text.encode()
        except UnicodeEncodeError as error:
            raise Malformed(f"its {self.key_field!r} is text that UTF-8 can't hold ({error.reason})") from None


def message(record: BulkRecord) -> record_pb2.Record:
    """As the API has it."""
    if isinstance(record, bytes):
        return record_pb2.Record(value=record)
    if isinstance(record, tuple):
        return record_pb2.Record(key=record[0], value=record[1])
    assert record.value is not None, "there are no tombstones here"
    return record_pb2.Record(
        key=None if record.key is None else to_bytes(record.key, "key"),
        value=to_bytes(record.value, "value"),
        headers=[record_pb2.Header(name=name, value=value) for name, value in to_headers(record.headers)],
    )
