"""`postbus serve`, as a process: what it says, how it ends, and why it does not start."""

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
from postbus.v1 import subscriber_pb2

SERVE = (sys.executable, "-m", "broker.cli.main", "serve")


def serve(*flags: str) -> "subprocess.CompletedProcess[str]":
    """A serve that is expected to end by itself."""
    return subprocess.run([*SERVE, *flags], capture_output=True, text=True, timeout=30, check=False)


def failure(done: "subprocess.CompletedProcess[str]") -> str:
    """What it logged about not starting."""
    assert "Traceback" not in done.stderr
    event = json.loads(done.stderr.splitlines()[-1])
    assert event["event"] == "start_failure"
    return str(event["error"])


def test_ready_tells_the_ports_and_what_is_there(start_broker: Callable[..., Any], tmp_path: Path) -> None:
    """Port 0 becomes the real port in node_ready; so do the state of the data and the counts."""
    broker = start_broker()
    assert broker.ready["client_port"] > 0
    assert broker.ready["http_port"] is None
    assert broker.ready["data"] == "new"
    assert broker.end() == 0
    again = start_broker("--http-port", "0")
    assert again.ready["http_port"] > 0
    assert (again.ready["data"], again.ready["clean_stop_before"]) == ("recovered", True)


def test_a_person_is_told_how_to_publish_and_subscribe(tmp_path: Path) -> None:
    """In the console format the two commands are printed, and they work as printed."""
    process = subprocess.Popen(
        [*SERVE, "--data-dir", str(tmp_path), "--client-port", "0", "--http-port", "off", "--log-format", "console"],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        commands = []
        for line in process.stderr:
            if " publish " in line or " subscribe " in line:
                commands.append(line.strip().split())
            if "Ctrl-C" in line:
                break
        publish, subscribe = commands
        subprocess.run(publish, check=True, capture_output=True, timeout=30)
        read = subprocess.run([*subscribe, "--until-end"], check=True, capture_output=True, timeout=30)
        assert read.stdout == b"hello\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    finally:
        process.kill()


def test_a_second_signal_ends_it_at_once(start_broker: Callable[..., Any]) -> None:
    """A client that does not leave holds up the first stop for the grace, but not the second."""
    broker = start_broker("--drain-grace-seconds", "10min")
    with grpc.insecure_channel(broker.address) as channel:
        create = channel.unary_unary("/postbus.v1.TopicService/CreateTopic", None, None)
        create(b"\x0a\x01t")
        never = threading.Event()

        def requests() -> Iterator[bytes]:
            start = subscriber_pb2.SubscribeStart(topics=[subscriber_pb2.TopicSelector(topic="t")])
            yield subscriber_pb2.SubscribeRequest(start=start).SerializeToString()
            never.wait(60)

        answers = channel.stream_stream("/postbus.v1.SubscriberService/Subscribe", None, None)(requests())
        next(answers)  # it has started
        broker.tell(signal.SIGTERM)
        for answer in answers:
            if subscriber_pb2.SubscribeResponse.FromString(answer).HasField("draining"):
                break
        assert broker.end(signal.SIGTERM) == 128 + signal.SIGTERM
        never.set()


def test_a_port_in_use_is_an_error_in_a_line(start_broker: Callable[..., Any], tmp_path: Path) -> None:
    """Exit code 1, naming the port and the flag."""
    broker = start_broker()
    done = serve("--data-dir", str(tmp_path / "other"), "--client-port", str(broker.port), "--http-port", "off")
    assert done.returncode == 1
    assert f":{broker.port}" in failure(done)
    assert "--client-port" in failure(done)


def test_a_data_directory_in_use_names_the_process(start_broker: Callable[..., Any], tmp_path: Path) -> None:
    """Exit code 1, before anything is written."""
    broker = start_broker()
    done = serve("--data-dir", str(broker.data_dir), "--client-port", "0", "--http-port", "off")
    assert done.returncode == 1
    assert f"process {broker.pid}" in failure(done)


def test_a_lost_store_names_the_doctor(start_broker: Callable[..., Any]) -> None:
    """Exit code 1; what was acknowledged is not silently forgotten."""
    broker = start_broker()
    assert broker.end() == 0
    (broker.data_dir / "meta.mark").unlink()
    done = serve("--data-dir", str(broker.data_dir), "--client-port", "0", "--http-port", "off")
    assert done.returncode == 1
    assert "postbus doctor --accept-loss" in failure(done)


def test_wrong_settings_are_named_with_where_they_came_from(tmp_path: Path) -> None:
    """Exit code 2, one line for each."""
    done = serve("--client-port", "x", "--log-level", "loud", "--data-dir", str(tmp_path))
    assert done.returncode == 2
    first, second = done.stderr.splitlines()
    assert "client_port (from flag --client-port)" in first
    assert "log_level (from flag --log-level)" in second
    assert serve("--no-such-flag").returncode == 2
    assert serve("--client-po", "1").returncode == 2


def test_help_lists_every_setting() -> None:
    """Each with its flag, and without the command-line framework, which would cost a start a tenth of a second."""
    from broker.config import describe_settings

    done = subprocess.run(
        [sys.executable, "-X", "importtime", *SERVE[1:], "--help"],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    listed = done.stdout.split()
    assert [setting.flag for setting in describe_settings() if setting.flag not in listed] == []
    assert "broker.config" in done.stderr
    assert "typer" not in done.stderr


def test_a_start_imports_nothing_that_draws(tmp_path: Path) -> None:
    """Neither the command-line framework nor rich, which would cost every start a tenth of its time."""
    (tmp_path / "file").touch()
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *SERVE[1:], "--data-dir", str(tmp_path / "file" / "data")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time")}
    assert "structlog.dev" in imported and "broker.node" in imported
    assert [name for name in imported if name.startswith(("rich.", "typer", "pygments"))] == []
