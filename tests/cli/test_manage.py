"""`postbus topic`, `group` and `cluster` against a real broker."""

import json
import subprocess
import sys
from typing import Any

import pytest
import yaml

# Ctrl-C at the moment when a module is looked for.
INTERRUPTED = """
import os, signal, sys
_, module, address = sys.argv
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == module:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
from broker.cli.main import main
sys.argv = ["postbus", "--address", address, "topic", "list"]
exit(main())
"""


@pytest.mark.parametrize("module", ["typer", "broker.cli.topics", "uvloop", "postbus.client"])
def test_ctrl_c_while_a_command_loads(cli: Any, module: str) -> None:
    """Never a traceback, and nothing about coroutines."""
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, module, cli.address], check=False, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr in ("", "postbus: interrupted\n")


def test_a_topic_from_creation_to_deletion(inside: Any, bus: Any) -> None:
    """create, describe, alter, add-partitions, trim, delete: each is seen by the next."""
    flags = ("--partitions", "2", "--retention", "12h", "--config", "cleanup_policy=delete", "--label", "team=a=b")
    assert "would create" in inside.ok("topic", "create", "life", *flags, "--dry-run")
    assert "created topic life with 2 partitions" in inside.ok("topic", "create", "life", *flags)
    again = inside("topic", "create", "life")
    assert (again.code, again.out) == (1, "")
    assert "exists already" in again.err
    assert "there was already" in inside.ok("topic", "create", "life", "--if-not-exists")

    inside.ok("topic", "alter", "life", "--retention-bytes", "1GiB", "--reset", "retention_time")
    inside.ok("topic", "add-partitions", "life", "3")
    bus.publish("life", [b"%d" % number for number in range(10)], partition=2)
    (gone,) = inside.json("topic", "trim", "life", "--before", "4", "-p", "2")
    assert gone == {"partition": 2, "old_start_offset": 0, "start_offset": 4, "records": 4, "failure": ""}

    described = yaml.safe_load(inside.ok("topic", "describe", "life", "-o", "yaml"))
    assert described == inside.json("topic", "describe", "life")
    assert described["labels"] == {"team": "a=b"}
    assert described["config"]["retention_bytes"] == 2**30
    assert "retention_time" not in described["config"]
    assert described["effective_config"]["retention_time"] == 7 * 86400
    assert (described["partition_count"], described["records"]) == (3, 6)
    assert [each["log_start_offset"] for each in described["partitions"]] == [0, 0, 4]

    refused = inside("topic", "delete", "life")
    assert refused.code == 2
    assert "--yes" in refused.err
    assert inside.ok("topic", "delete", "life", "--yes") == "deleted topic life\n"
    assert inside("topic", "describe", "life").code == 3


def test_lists_are_tables_json_or_yaml(inside: Any, bus: Any, topic: str) -> None:
    """Of the same topics; --output may stand before or behind the command."""
    assert topic in inside.ok("topic", "list")
    found = json.loads(inside.ok("-o", "json", "topic", "list", "--prefix", topic))
    assert [each["name"] for each in found] == [topic]
    assert yaml.safe_load(inside.ok("topic", "list", "--prefix", topic, "-o", "yaml")) == found


def test_a_group_is_described_moved_and_deleted(inside: Any, cli: Any, bus: Any, topic: str) -> None:
    """With its lag; a dry run moves nothing; members are in the way."""
    bus.publish(topic, [b"x"] * 10)
    reading = cli.start("subscribe", topic, "--group", "movers", "--client-id", "me")
    for _ in range(10):
        reading.line()
    text = inside.ok("group", "describe", "movers")
    assert "me" in text
    assert f"{topic}/0,1,2" in text
    assert inside("group", "delete", "movers", "--yes").code == 1
    reading.interrupt()
    reading.finish()

    assert bus.lag("movers") == 0
    assert "would move" in inside.ok("group", "reset", "movers", "--to", "earliest", "--dry-run")
    assert bus.lag("movers") == 0
    moved = inside.json("group", "reset", "movers", "--shift", "-3", "-p", "0")
    assert moved == [{"topic": topic, "partition": 0, "old_offset": 10, "new_offset": 7}]
    assert bus.lag("movers") == 3
    assert "movers" in inside.ok("group", "list")
    inside.ok("group", "delete", "movers", "--yes")
    assert inside("group", "describe", "movers").code == 3


def test_cluster_info_names_nodes_and_features(inside: Any, shared_broker: Any) -> None:
    """What a person looks at first."""
    assert shared_broker.address in inside.ok("cluster", "info")
    info = inside.json("cluster", "info")
    assert info["nodes"][0]["state"] == "active"
    assert "ordered-groups" in info["features"]["features"]


def test_the_command_explains_itself(cli: Any) -> None:
    """Help names the exit codes and the commands, and completion is there."""
    text = cli.ok("--help")
    for word in ("topic", "publish", "subscribe", "group", "cluster", "doctor", "serve", "--install-completion"):
        assert word in text
    assert "3 not found" in text
    assert cli("topic", "frobnicate").code == 2
