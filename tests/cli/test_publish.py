"""`postbus publish`, as a process against a real broker: what it publishes, exactly once, and what it says."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

POSTBUS = (sys.executable, "-m", "broker.cli.main")


def numbers(first: int, last: int) -> str:
    """A number a line, both included."""
    return "".join(f"{number}\n" for number in range(first, last + 1))


def test_values_and_lines_become_records(cli: Any, bus: Any, topic: str) -> None:
    """Arguments, or lines of standard input of which the last may lack its end; empty lines are records too."""
    assert "published 2 records" in cli.ok("publish", topic, "one", "-p", "1", "two", "-p", "1")
    assert "published 3 records" in cli.ok("publish", topic, "-p", "1", stdin="three\n\nfive")
    assert bus.values(topic) == ["one", "two", "three", "", "five"]


def test_one_record_is_told_with_its_offset(cli: Any, topic: str) -> None:
    """Where it went, in words and as JSON."""
    assert "partition 2, offset 0" in cli.ok("publish", topic, "x", "--partition", "2")
    told = json.loads(cli.ok("publish", topic, "y", "--partition", "2", "-o", "json"))
    assert told["partitions"] == [{"partition": 2, "base_offset": 1, "end_offset": 2, "records": 1, "duplicate": False}]


def test_key_field_and_headers_travel_with_each_line(cli: Any, topic: str) -> None:
    """Equal keys go to one partition; numbers make keys too; the line itself is published verbatim."""
    flights = ['{"tailnum": "N1", "n": 1}', '{"tailnum":  "N2"}', '{"tailnum": "N1", "n": 2}', '{"tailnum": 7}']
    cli.ok("publish", topic, "--key-field", "tailnum", "-H", "source=test", stdin="\n".join(flights) + "\n\n")
    shown = cli.ok("subscribe", topic, "-e", "-f", r"%k|%h|%s|%p\n").splitlines()
    expected = sorted(f"{json.loads(line)['tailnum']}|source=test|{line}" for line in flights)
    assert sorted(line.rpartition("|")[0] for line in shown) == expected
    of_n1 = [line.split("|") for line in shown if line.startswith("N1|")]
    assert of_n1[0][3] == of_n1[1][3]
    assert [json.loads(line)["n"] for _, _, line, _ in of_n1] == [1, 2]


def test_a_malformed_line_ends_it_with_its_number(cli: Any, bus: Any, topic: str) -> None:
    """What stands before it is published, and the advice is followed to the letter by the next run."""
    text = '{"k": 1}\n{"k": 2}\nnonsense\n{"x": 3}\n[]\n{"k": 4}\n'
    done = cli("publish", topic, "--key-field", "k", stdin=text)
    assert done.code == 1
    assert "line 3 can't be published: it is not JSON" in done.err
    assert "--from-line 3" in done.err
    done = cli("publish", topic, "--key-field", "k", "--from-line", "3", "--skip-invalid", stdin=text)
    assert done.code == 0
    assert "line 4 left out: it has no field 'k'" in done.err
    assert "3 malformed lines left out" in done.out
    assert sorted(json.loads(value)["k"] for value in bus.values(topic)) == [1, 2, 4]


def test_a_line_too_large_is_malformed(cli: Any, inside: Any, bus: Any, topic: str) -> None:
    """The limit is the topic's own, and is found before anything of that line is sent."""
    inside.ok("topic", "alter", topic, "--config", "max_record_bytes=1KiB")
    done = cli("publish", topic, stdin="a\n" + "x" * 1100 + "\nb\n")
    assert done.code == 1
    assert "line 2 can't be published" in done.err
    assert bus.values(topic) == ["a"]


def test_a_request_id_makes_a_run_repeatable(cli: Any, bus: Any, topic: str) -> None:
    """The same command twice appends once."""
    first = cli.ok("publish", topic, "--request-id", "run-1", "--key-field", "k", stdin='{"k":1}\n{"k":2}\n{"k":3}\n')
    again = cli.ok("publish", topic, "--request-id", "run-1", "--key-field", "k", stdin='{"k":1}\n{"k":2}\n{"k":3}\n')
    assert "there already" not in first
    assert "there already" in again
    assert len(bus.values(topic)) == 3


def test_compression_is_invisible(cli: Any, bus: Any, topic: str) -> None:
    """What went in compressed comes out as it was."""
    cli.ok("publish", topic, "--compression", "zstd", "-p", "0", stdin=numbers(1, 2000))
    assert bus.values(topic) == numbers(1, 2000).split()


def test_wrong_arguments_and_missing_topics_have_their_codes(inside: Any) -> None:
    """2 for usage, 3 for not found, 4 where nobody answers; never a traceback."""
    for code, arguments in (
        (2, ("publish", "t", "x", "--key", "a", "--key-field", "b")),
        (2, ("publish", "t", "x", "--timeout", "soon")),
        (4, ("publish", "t", "x", "--address", "127.0.0.1:1")),
    ):
        done = inside(*arguments)
        assert done.code == code, done
        assert "Traceback" not in done.err
    done = inside("publish", "nowhere", "x")
    assert done.code == 3
    assert "postbus topic create nowhere" in done.err


def test_lines_that_were_never_taken_are_not_passed_over(cli: Any, bus: Any, topic: str) -> None:
    """When the publisher refuses all of a chunk, the advice is to go on with the first line of it."""
    done = cli("publish", topic, "-p", "99", stdin=numbers(1, 10))
    assert done.code == 3
    assert done.err.endswith("go on with --from-line 1\n")
    cli.ok("publish", topic, "-p", "0", "--from-line", "1", stdin=numbers(1, 10))
    assert bus.values(topic) == numbers(1, 10).split()


def test_a_name_that_is_not_text_is_refused(cli: Any) -> None:
    """A shell hands over any bytes."""
    done = cli("publish", os.fsdecode(b"\xff"), "x")
    assert (done.code, done.out) == (2, "")
    assert done.err == "postbus: b'\\xff' is not UTF-8, and can't be a name\n"


def test_a_closed_standard_input_is_empty(cli: Any, topic: str) -> None:
    """`<&-` is no crash."""
    told = subprocess.run(
        ["sh", "-c", 'exec "$@" <&-', "sh", *POSTBUS, "-a", cli.address, "publish", topic],
        check=True,
        capture_output=True,
    )
    assert told.stdout.startswith(b"published 0 records")
    assert told.stderr == b""


def test_create_makes_the_topic(cli: Any, bus: Any) -> None:
    """Twice is as good as once."""
    cli.ok("publish", "made-by-publish", "a", "--create", "-k", "k")
    cli.ok("publish", "made-by-publish", "b", "--create", "-k", "k")
    assert bus.values("made-by-publish") == ["a", "b"]


def test_ctrl_c_says_what_is_acknowledged_and_where_to_go_on(cli: Any, bus: Any, topic: str) -> None:
    """In the middle of an endless input; what is in the log is exactly what was said."""
    publishing = cli.start("publish", topic, "-p", "0", stdin=True)
    publishing.write(numbers(1, 5000))
    bus.wait_for(topic, 5000)
    publishing.interrupt()
    done = publishing.finish()
    assert done.code == 130
    assert "5,000 records are acknowledged" in done.err
    assert "--from-line 5001" in done.err
    cli.ok("publish", topic, "-p", "0", "--from-line", "5001", stdin=numbers(1, 6000))
    assert bus.values(topic) == numbers(1, 6000).split()


def test_a_broker_killed_in_the_middle_loses_and_repeats_nothing(
    start_broker: Callable[..., Any], tools: Callable[[Any], Any]
) -> None:
    """SIGKILL, a while without it, start again: the input is in the log exactly once and in order."""
    broker = start_broker()
    cli, bus = tools(broker)
    bus.create("t", 1)
    publishing = cli.start("publish", "t", "--batch-bytes", "4KiB", stdin=True)
    publishing.write(numbers(1, 20_000))
    bus.wait_for("t", 1000)
    broker.end(signal.SIGKILL)
    publishing.write(numbers(20_001, 30_000))
    publishing.wait_for("waiting for the broker")
    broker.start()
    publishing.wait_for("the broker is back")
    publishing.write(numbers(30_001, 40_000))
    broker.end(signal.SIGKILL)
    broker.start()
    done = publishing.finish()
    assert done.code == 0, done
    assert "published 40,000 records" in done.out
    assert bus.values("t") == numbers(1, 40_000).split()


def test_a_broker_that_stays_away_ends_it_in_time(
    start_broker: Callable[..., Any], tools: Callable[[Any], Any]
) -> None:
    """Exit code 4 after --timeout; what was acknowledged before is told."""
    broker = start_broker()
    cli, bus = tools(broker)
    bus.create("t", 1)
    publishing = cli.start("publish", "t", "--timeout", "1s", stdin=True)
    publishing.write(numbers(1, 100))
    bus.wait_for("t", 100)
    broker.end(signal.SIGKILL)
    publishing.write(numbers(101, 200))
    done = publishing.finish()
    assert done.code == 4, done
    assert "--from-line 101" in done.err
    assert "published 100 records" in done.err
