"""`postbus doctor`, as a process on real data directories, whole and damaged."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from broker.storage import rebuild


def test_a_running_node_is_named_and_left_alone(start_broker: Callable[..., Any], tools: Callable[[Any], Any]) -> None:
    """Looking is fine; verifying needs the node to be stopped."""
    broker = start_broker()
    cli, _ = tools(broker)
    done = cli("doctor", "--data-dir", str(broker.data_dir))
    assert done.code == 0
    assert f"process {broker.pid}" in done.out
    assert cli("doctor", "--data-dir", str(broker.data_dir), "--verify").code == 4
    assert cli("doctor", "--data-dir", str(broker.data_dir / "nothing")).code == 3


def test_every_batch_is_verified_and_damage_is_located(
    start_broker: Callable[..., Any], tools: Callable[[Any], Any]
) -> None:
    """One flipped bit in a stored batch: the records of that batch are named, and no others."""
    broker = start_broker()
    cli, bus = tools(broker)
    bus.create("t", 1)
    for start in range(0, 30, 10):
        bus.publish("t", [b"value-%d" % number * 100 for number in range(start, start + 10)])
    broker.end(signal.SIGKILL)
    look = ("doctor", "--data-dir", str(broker.data_dir), "--verify")
    done = cli(*look)
    assert done.code == 0
    assert "30" in done.out  # and the log has become a blob file, for what follows

    (blob,) = (broker.data_dir / "data").glob("*.blob")
    _flip(blob, b"value-15")
    done = cli(*look, "-o", "json")
    assert done.code == 1
    found = json.loads(done.out)
    assert [(each["topic"], each["offset"], each["end_offset"]) for each in found["damage"]] == [("t", 10, 20)]


def test_a_loss_is_told_and_accepted_only_when_asked(
    start_broker: Callable[..., Any], tools: Callable[[Any], Any]
) -> None:
    """The write-ahead log vanished: 1 without --accept-loss, and afterwards a node starts and the loss is on record."""
    broker = start_broker()
    cli, bus = tools(broker)
    bus.create("t", 1)
    bus.publish("t", [b"gone"])
    broker.end(signal.SIGKILL)
    for wal in (broker.data_dir / "data").glob("*.log"):
        wal.unlink()
    look = ("doctor", "--data-dir", str(broker.data_dir))
    done = cli(*look)
    assert done.code == 1
    assert "does not start" in done.out
    assert cli(*look, "--accept-loss").code == 2  # nobody confirmed
    done = cli(*look, "--accept-loss", "--yes", "-o", "json")
    assert done.code == 0
    (loss,) = json.loads(done.out)["accepted"]
    assert loss["database"] == "data"
    assert loss["recovered_sequence"] < loss["promised_sequence"]
    broker.start()
    assert bus.values("t") == []


def test_what_the_next_start_will_do_is_told(start_broker: Callable[..., Any], tools: Callable[[Any], Any]) -> None:
    """A database that could not be written is copied then; what could not be read stays on record."""
    broker = start_broker()
    cli, bus = tools(broker)
    bus.create("t", 1)
    for start in range(0, 30, 10):
        bus.publish("t", [b"value-%d" % number for number in range(start, start + 10)])
    broker.end(signal.SIGKILL)
    look = ("doctor", "--data-dir", str(broker.data_dir))
    assert cli(*look).code == 0
    data = broker.data_dir / "data"
    (table,) = (file for file in data.glob("*.sst") if b"value-15" in file.read_bytes())
    _flip(table, b"value-15")
    rebuild.request(data, "a compaction met damage")

    done = cli(*look)
    assert done.code == 1
    assert "the next start copies what can be read of data" in done.out
    assert "a compaction met damage" in done.err
    assert cli(*look, "--verify").code == 1

    broker.start()
    broker.end(signal.SIGKILL)
    done = cli(*look, "-o", "json")
    assert done.code == 1
    found = json.loads(done.out)
    assert [each["rebuild"] for each in found["databases"]] == [None, None]
    assert [(each["topic"], each["offset"]) for each in found["damage"]] == [("t", 0)]
    (loss,) = found["losses"]
    assert (broker.data_dir / loss["set_aside"] / "CURRENT").exists()


def _flip(file: Path, at: bytes) -> None:
    data = bytearray(file.read_bytes())
    data[data.index(at)] ^= 1
    file.write_bytes(data)
