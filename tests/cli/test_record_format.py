"""How records are printed."""

import pytest
from postbus import Batch
from postbus.v1 import subscriber_pb2

from broker.cli.record_format import BadFormat, formatter, json_lines, values


def batch() -> Batch:
    """One full record, and one with nothing but an offset."""
    message = subscriber_pb2.DeliveredBatch()
    message.delivery.topic = "t"
    message.delivery.partition = 3
    message.delivery.base_offset = 7
    message.delivery.end_offset = 9
    message.append_time.FromMilliseconds(1_700_000_000_123)
    full = message.batch.records.add(key=b"k", value=b"v\xff")
    full.headers.add(name="a", value=b"1")
    full.headers.add(name="b", value=b"2")
    message.batch.records.add()
    return Batch(message)


def test_every_letter_and_escape() -> None:
    """As kcat has them; lengths of what is not there are -1."""
    form = formatter(r"%t %p %o [%k] [%s] %K %S [%h] %T 100%%\t\x41\\\n")
    assert form(batch()).splitlines() == [
        b"t 3 7 [k] [v\xff] 1 2 [a=1,b=2] 1700000000123 100%\tA\\",
        b"t 3 8 [] [] -1 -1 [] 1700000000123 100%\tA\\",
    ]


@pytest.mark.parametrize("text", ["%z", "%", "a\\", "\\q", "\\x4"])
def test_what_means_nothing_is_refused(text: str) -> None:
    """Rather than printed as it is: a typing error should not be found in the output."""
    with pytest.raises(BadFormat):
        formatter(text)


def test_values_and_json() -> None:
    """The default, and the form for programs: a tombstone is null, bytes that are no text are base64."""
    assert values(batch()) == b"v\xff\n\n"
    first, second = json_lines(batch()).splitlines()
    assert b'"value_base64": "dv8="' in first
    assert b'"value": null' in second
