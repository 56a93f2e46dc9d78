"""`postbus subscribe`, as a process against a real broker: what it prints, acknowledges, and how it ends."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any


def numbers(first: int, last: int) -> str:
    """A number a line, both included."""
    return "".join(f"{number}\n" for number in range(first, last + 1))


def values(first: int, last: int) -> list[bytes]:
    """The same as values of records."""
    return numbers(first, last).encode().split()


def test_places_to_begin(cli: Any, bus: Any, topic: str) -> None:
    """earliest, an offset, the last N, a time span, latest."""
    bus.publish(topic, values(0, 99))
    read = ("subscribe", topic, "-p", "0", "--until-end")
    assert cli.ok(*read) == numbers(0, 99)
    assert cli.ok(*read, "--from", "90") == numbers(90, 99)
    assert cli.ok(*read, "--from", "-3") == numbers(97, 99)
    assert cli.ok(*read, "--from", "latest") == ""
    assert cli.ok(*read, "--from", "10", "--count", "2") == numbers(10, 11)


def test_json_holds_every_fact(cli: Any, bus: Any, topic: str) -> None:
    """An object a line; what is not text comes as base64."""
    cli.ok("publish", topic, "-p", "1", "-k", "é", "-H", "a=b", stdin=b"\xff\n")
    (line,) = cli.ok("subscribe", topic, "-e", "-o", "json").splitlines()
    record = json.loads(line)
    assert record.pop("append_time").endswith("Z")
    assert record == {
        "topic": topic,
        "partition": 1,
        "offset": 0,
        "key": "é",
        "value_base64": "/w==",
        "headers": [{"name": "a", "value": "b"}],
    }


def test_a_group_goes_on_where_it_was(cli: Any, bus: Any, topic: str) -> None:
    """What was printed is acknowledged, to the record; the next member gets the rest, and a third one nothing."""
    bus.publish(topic, values(1, 100))
    read = ("subscribe", topic, "--group", topic, "--until-end")
    assert cli.ok(*read, "--count", "40") == numbers(1, 40)
    assert bus.lag(topic) == 60
    assert cli.ok(*read) == numbers(41, 100)
    assert cli.ok(*read) == ""
    assert bus.lag(topic) == 0


def test_ctrl_c_in_a_group_says_and_commits_what_was_read(cli: Any, bus: Any, topic: str) -> None:
    """Exit code 130; the group stands exactly behind what was printed."""
    bus.publish(topic, values(1, 3))
    reading = cli.start("subscribe", topic, "--group", topic)
    assert [reading.line() for _ in range(3)] == ["1\n", "2\n", "3\n"]
    reading.interrupt()
    done = reading.finish()
    assert done.code == 130
    assert "interrupted; read 3 records" in done.err
    assert bus.lag(topic) == 0


def test_a_reader_that_has_enough_is_no_error(cli: Any, bus: Any, topic: str) -> None:
    """As `| head`: while there is more to write, and while there is nothing more to write."""
    bus.publish(topic, values(1, 100_000))
    for start in ("earliest", "-1"):
        reading = cli.start("subscribe", topic, "--from", start)
        reading.line()
        reading.close_output()
        done = reading.finish()
        assert (done.code, done.err) == (0, "")


def test_what_a_broken_pipe_did_not_take_is_not_acknowledged(cli: Any, bus: Any, topic: str) -> None:
    """The next member gets it."""
    bus.publish(topic, values(1, 100_000))
    reading = cli.start("subscribe", topic, "--group", topic)
    first = reading.line()
    reading.close_output()
    assert (first, reading.finish().code) == ("1\n", 0)
    rest = cli.ok("subscribe", topic, "--group", topic, "--until-end")
    assert rest.endswith("\n100000\n")


def test_a_broker_killed_in_the_middle_is_waited_for(
    start_broker: Callable[..., Any], tools: Callable[[Any], Any]
) -> None:
    """Without a group, each record comes once and in order."""
    broker = start_broker()
    cli, bus = tools(broker)
    bus.create("t", 1)
    bus.publish("t", values(1, 1000))
    reading = cli.start("subscribe", "t", "--count", "2000")
    got = [reading.line() for _ in range(1000)]
    broker.end(signal.SIGKILL)
    reading.wait_for("waiting for the broker")
    broker.start()
    reading.wait_for("the broker is back")
    bus.publish("t", values(1001, 2000))
    done = reading.finish()
    assert done.code == 0
    assert "".join(got) + done.out == numbers(1, 2000)


def test_output_that_can_not_be_written_ends_it_with_a_line(cli: Any, bus: Any, topic: str) -> None:
    """A full disk behind standard output: nothing that was not written is acknowledged."""
    bus.publish(topic, values(1, 10))
    for arguments in (("subscribe", topic, "-e", "--group", topic), ("topic", "list")):
        with open("/dev/full", "wb") as full:
            done = subprocess.run(
                [sys.executable, "-m", "broker.cli.main", "-a", cli.address, *arguments],
                check=False,
                stdout=full,
                stderr=subprocess.PIPE,
            )
        assert (done.returncode, done.stderr) == (1, b"postbus: No space left on device\n")
    assert bus.lag(topic) == 10


def test_wrong_arguments_and_missing_topics_have_their_codes(inside: Any) -> None:
    """2 for usage, 3 for not found; never a traceback."""
    for code, arguments in (
        (2, ("t", "--format", "%z")),
        (2, ("t", "--from", "yesterday")),
        (3, ("nowhere",)),
    ):
        done = inside("subscribe", *arguments)
        assert done.code == code, done
        assert "Traceback" not in done.err
