"""What Raft saves is there after a restart: on the real engine and its committer."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import pytest
from raft_script import Disk

from broker.peers.links import PeerId
from broker.raft.codec import Undecodable, decode_message, encode_message
from broker.raft.membership import Configuration, Seat
from broker.raft.messages import (
    Append,
    AppendResponse,
    Body,
    Entry,
    Greeting,
    HardState,
    Heartbeat,
    HeartbeatResponse,
    InstallSnapshot,
    InstallSnapshotResponse,
    Loaded,
    Message,
    Ready,
    Snapshot,
    TimeoutNow,
    Vote,
    VoteResponse,
)
from broker.raft.storage import load, save
from broker.storage.committer import Committer
from broker.storage.durable_mark import DurableMark
from broker.storage.engine import Engine
from broker.storage.errors import StoreCorrupt
from broker.storage.log_state import RAFT, meta_families

MEMBERS = Configuration((Seat(1, "s1"), Seat(2, "s2", voter=False, returning=True)), ("gone",))


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[tuple[Engine, Committer]]:
    """The meta database, as a node has it."""

    def fail(error: Exception) -> None:
        raise AssertionError(error)

    engine = Engine.open(path / "meta", meta_families())
    mark = DurableMark(path / "meta.mark")
    committer = Committer(engine, mark, loop=asyncio.get_running_loop(), on_fatal=fail)
    try:
        yield engine, committer
    finally:
        await committer.close()
        mark.close()
        engine.close()


def ready(
    *entries: Entry,
    hard_state: HardState,
    delete_from: int | None = None,
    delete_below: int | None = None,
    snapshot: Snapshot | None = None,
) -> Ready:
    return Ready(hard_state.term, delete_from, delete_below, snapshot, entries, hard_state, (), None, ())


async def saved(committer: Committer, *readies: Ready) -> None:
    """All of them on their way at once; returns when they are durable, which must be told in order."""
    told: list[int] = []
    for number, each in enumerate(readies):
        save(committer, each, on_durable=lambda number=number: told.append(number))
    await committer.barrier()
    assert told == list(range(len(readies)))


async def test_a_new_database_holds_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path) as (engine, _):
        assert load(engine) == Loaded()


async def test_random_histories_come_back_as_they_were_saved(tmp_path: Path) -> None:
    """Appends, suffixes that give way, images of one's own and of a leader: as a model has it, after each restart."""
    random = Random(7)
    model = Disk("model")
    snapshot_index, last_index, term = 0, 0, 1
    steps = {"append": 0, "replace": 0, "compact": 0, "restore": 0}
    for _ in range(6):
        async with opened(tmp_path) as (engine, committer):
            assert load(engine) == model.load()
            for _ in range(40):
                term += random.random() < 0.2
                kind = random.choice(("append", "append", "replace", "compact", "restore"))
                delete_from = delete_below = snapshot = None
                entries: tuple[Entry, ...] = ()
                first = last_index + 1
                if kind == "replace" and last_index > snapshot_index:
                    first = delete_from = random.randint(snapshot_index + 1, last_index)
                elif kind == "compact" and last_index > snapshot_index:
                    snapshot_index = random.randint(snapshot_index + 1, last_index)
                    snapshot = Snapshot(snapshot_index, term, MEMBERS, random.randbytes(50))
                    delete_below = max(0, snapshot_index - 3)
                elif kind == "restore" and random.random() < 0.2:
                    snapshot_index = last_index + random.randint(1, 5)
                    delete_from, first = 0, snapshot_index + 1
                    snapshot = Snapshot(snapshot_index, term, MEMBERS, random.randbytes(50))
                else:
                    kind = "append"
                steps[kind] += 1
                if kind != "compact":
                    entries = tuple(
                        Entry(index, term, random.randbytes(20), MEMBERS if random.random() < 0.1 else None)
                        for index in range(first, first + random.randint(0 if kind == "restore" else 1, 4))
                    )
                    last_index = first + len(entries) - 1
                each = ready(
                    *entries,
                    hard_state=HardState(term, random.randint(0, 3), snapshot_index),
                    delete_from=delete_from,
                    delete_below=delete_below,
                    snapshot=snapshot,
                )
                model.save(each)
                save(committer, each, on_durable=lambda: None)
            await committer.barrier()
            assert load(engine) == model.load()
    assert min(steps.values()) > 3, steps


async def test_saves_under_way_together_are_told_in_order(tmp_path: Path) -> None:
    async with opened(tmp_path) as (engine, committer):
        await saved(committer, *(ready(Entry(index, 1), hard_state=HardState(1, 1, 0)) for index in range(1, 50)))
        assert len(load(engine).entries) == 49


@pytest.mark.parametrize("lost", ["an entry in the middle", "the last entry", "the first entries"])
async def test_a_log_with_a_hole_is_not_taken_for_a_log(tmp_path: Path, lost: str) -> None:
    """A node that forgot what it had promised must not vote."""
    async with opened(tmp_path) as (engine, committer):
        entries = [Entry(index, 1, b"x") for index in range(1, 9)]
        await saved(committer, ready(*entries, hard_state=HardState(1, 1, 8)))
        index = {"an entry in the middle": 4, "the last entry": 8, "the first entries": 1}[lost]
        committer.submit([("delete", RAFT, b"e" + index.to_bytes(8, "big"))], size_bytes=1)
        await committer.barrier()
        with pytest.raises(StoreCorrupt):
            load(engine)


async def test_what_is_no_record_is_not_taken_for_one(tmp_path: Path) -> None:
    async with opened(tmp_path) as (engine, committer):
        committer.submit([("put", RAFT, b"h", b"\xff\xff")], size_bytes=1)
        await committer.barrier()
        with pytest.raises(StoreCorrupt):
            load(engine)


@pytest.mark.parametrize(
    "body",
    [
        Vote(3, 2, pre=True, force=False),
        Vote(0, 0),
        VoteResponse(granted=True, pre=True),
        VoteResponse(granted=False),
        Append(0, 0, 0),
        Append(7, 2, 5, (Entry(8, 3, b"data"), Entry(9, 3), Entry(10, 3, b"", MEMBERS))),
        AppendResponse(0),
        AppendResponse(9, rejected=True, hint_index=4, hint_term=2),
        Heartbeat(0),
        HeartbeatResponse(),
        InstallSnapshot(9, 3, MEMBERS, 2, 6, b"abcd"),
        InstallSnapshotResponse(9, 0),
        TimeoutNow(),
        Greeting(PeerId(4, "s4")),
    ],
    ids=lambda body: type(body).__name__,
)
def test_every_message_survives_the_wire(body: Body) -> None:
    message = Message(to=2, to_store="s2", sender=PeerId(1, "s1"), term=3, fresh=True, body=body)
    data = encode_message(message, cluster_id="c")
    assert decode_message(data, cluster_id="c", node_id=2) == message
    with pytest.raises(Undecodable, match="cluster"):
        decode_message(data, cluster_id="another", node_id=2)
    with pytest.raises(Undecodable, match="for node"):
        decode_message(data, cluster_id="c", node_id=3)


@pytest.mark.parametrize("data", [b"", b"garbage", b"\x0a\x01c", b"\x0a\x01c\x10\x01\x1a\x02s1\x20\x02"])
def test_garbage_is_no_message(data: bytes) -> None:
    """The last is well-formed, but says nothing that is known here."""
    with pytest.raises(Undecodable):
        decode_message(data, cluster_id="c", node_id=2)
