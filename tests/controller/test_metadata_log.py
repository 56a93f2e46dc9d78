"""Commands become records, in one order; what is told is durable, and what is durable comes back."""

import asyncio
import contextlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from postbus.v1 import error_pb2

from broker.controller.decisions import (
    AddPartitions,
    CreateTopic,
    DeleteTopic,
    ReserveProducerIds,
    Rules,
    UpdateTopic,
)
from broker.controller.metadata_log import MetadataLog, load
from broker.controller.producer_ids import ProducerIds
from broker.controller.state import ClusterState, MetadataError
from broker.errors import PostbusError


def create(name: str, topic_id: str = "") -> CreateTopic:
    return CreateTopic(name=name, topic_id=topic_id or f"id-of-{name}", now_us=1, partition_count=2)


def open_log(meta: Any, *, snapshot_records: int = 1000) -> MetadataLog:
    return MetadataLog(load(meta), meta, rules=Rules(), snapshot_records=snapshot_records)


async def started(log: MetadataLog, *commands: Any) -> list["asyncio.Task[Any]"]:
    """Runs until every command waits for the disk (or was refused)."""
    tasks = [asyncio.create_task(log.execute(command)) for command in commands]
    await asyncio.sleep(0)
    return tasks


async def test_a_command_answers_with_the_images_before_and_after(meta: Any) -> None:
    log = open_log(meta)
    executed = await log.execute(create("a"))
    assert executed.before == ClusterState()
    assert executed.after.topics["a"].log_ids == (1, 2)
    assert log.state is executed.after


async def test_nothing_is_told_before_it_is_durable(slow_meta: Any) -> None:
    log = open_log(slow_meta)
    told: list[int] = []
    log.add_listener(lambda old, new: told.append(new.index))
    (task,) = await started(log, create("a"))
    assert (task.done(), told, log.state.index) == (False, [], 0)
    slow_meta.flush()
    assert (told, log.state.index) == ([1], 1), "listeners know before the caller goes on"
    await task


async def test_a_command_sees_what_was_decided_before_it_though_not_durable_yet(slow_meta: Any) -> None:
    log = open_log(slow_meta)
    first, second, other = await started(log, create("a", "1"), create("a", "2"), create("b"))
    assert second.done() and second.exception().reason == error_pb2.ERROR_REASON_EXISTS
    slow_meta.flush()
    assert (await first).after.topics["a"].topic_id == "1"
    assert (await other).after.topics["b"].log_ids == (3, 4)


async def test_what_is_so_already_is_answered_only_once_that_is_durable(slow_meta: Any) -> None:
    """Otherwise a crash could take back what was answered."""
    log = open_log(slow_meta)
    told: list[int] = []
    log.add_listener(lambda old, new: told.append(new.index))
    grow = AddPartitions(name="a", partition_count=4)
    create_task, first, again = await started(log, create("a"), grow, grow)
    slow_meta.flush(1)
    await create_task
    assert not first.done() and not again.done()
    slow_meta.flush()
    executed = await again
    assert executed.before == executed.after == (await first).after
    assert told == [1, 2], "and nobody is told twice"


async def test_listeners_hear_every_change_in_order(meta: Any) -> None:
    log = open_log(meta)
    told: list[tuple[int, int]] = []

    def listen(old: ClusterState, new: ClusterState) -> None:
        told.append((old.index, new.index))

    log.add_listener(listen)
    await log.execute(create("a"))
    await log.execute(DeleteTopic(name="a"))
    log.remove_listener(listen)
    await log.execute(create("a"))
    assert told == [(0, 1), (1, 2)]


async def test_a_caller_that_gives_up_changes_nothing_for_others(slow_meta: Any) -> None:
    log = open_log(slow_meta)
    gone, other = await started(log, create("a"), create("b"))
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    slow_meta.flush()
    assert set((await other).after.topics) == {"a", "b"}


async def test_a_preview_keeps_nothing(meta: Any) -> None:
    log = open_log(meta)
    await log.execute(create("a"))
    assert log.preview(create("b")).topics["b"].log_ids == (3, 4)
    with pytest.raises(PostbusError):
        log.preview(create("a"))
    assert set(log.state.topics) == {"a"}
    assert meta.submitted_count == 1


async def test_a_refused_command_writes_nothing(meta: Any) -> None:
    log = open_log(meta)
    with pytest.raises(PostbusError):
        await log.execute(create("a/b"))
    assert meta.submitted_count == 0


async def test_a_restart_finds_what_was_durable_and_nothing_else(slow_meta: Any) -> None:
    log = open_log(slow_meta)
    tasks = await started(log, create("a"), create("b"), create("c"))
    slow_meta.flush(2)
    again = load(slow_meta.after_crash())
    assert set(again.state.topics) == {"a", "b"}
    assert again.state == (await tasks[1]).after
    slow_meta.flush()
    await asyncio.gather(*tasks)


async def test_a_snapshot_replaces_the_entries_that_are_in_it(meta: Any) -> None:
    log = open_log(meta, snapshot_records=3)
    for number in range(7):
        await log.execute(create(f"t{number}"))
    assert len(meta.families["log"]) == 1
    loaded = load(meta.after_crash())
    assert (loaded.state, loaded.replayed_records) == (log.state, 1)


async def test_snapshots_are_taken_though_every_run_is_short(meta: Any) -> None:
    """A node that is killed again and again doesn't gather entries without end."""
    for number in range(9):
        log = open_log(meta, snapshot_records=3)
        await log.execute(create(f"t{number}"))
        meta = meta.after_crash()
        assert len(meta.families["log"]) < 3
    assert len(load(meta).state.topics) == 9


async def test_after_a_clean_stop_there_is_nothing_to_replay(slow_meta: Any) -> None:
    log = open_log(slow_meta)
    (task,) = await started(log, create("a"))
    await log.close()
    await task
    assert not slow_meta.pending and not slow_meta.families["log"]
    assert load(slow_meta).state == log.state
    before = slow_meta.submitted_count
    await open_log(slow_meta).close()
    assert slow_meta.submitted_count == before, "and without changes no snapshot is written"


async def test_a_log_id_is_not_used_again_after_snapshot_and_restart(meta: Any) -> None:
    log = open_log(meta)
    await log.execute(create("a"))
    await log.execute(DeleteTopic(name="a"))
    await log.close()
    again = open_log(meta.after_crash())
    assert (await again.execute(create("a"))).after.topics["a"].log_ids == (3, 4)


@pytest.mark.parametrize("damage", ["gap", "garbage", "snapshot"])
async def test_a_damaged_log_is_refused(meta: Any, damage: str) -> None:
    log = open_log(meta)
    for name in "abc":
        await log.execute(create(name))
    entries = meta.families["log"]
    if damage == "gap":
        del entries[sorted(entries)[1]]
    elif damage == "garbage":
        entries[sorted(entries)[1]] = b"\xff\xff\xff"
    else:
        meta.families["snapshot"][b"image"] = b"\xff\xff\xff"
    with pytest.raises(MetadataError):
        load(meta)


COMMANDS = st.one_of(
    st.builds(create, st.sampled_from("abc"), st.uuids().map(str)),
    st.builds(DeleteTopic, name=st.sampled_from("abc")),
    st.builds(AddPartitions, name=st.sampled_from("abc"), partition_count=st.integers(1, 6)),
    st.builds(
        UpdateTopic,
        name=st.sampled_from("abc"),
        paths=st.just(("labels",)),
        labels=st.dictionaries(st.sampled_from("xy"), st.sampled_from("12")),
    ),
    st.builds(ReserveProducerIds, count=st.integers(1, 9)),
)


@settings(max_examples=80, deadline=None)
@given(
    commands=st.lists(COMMANDS, max_size=20),
    flushes=st.lists(st.integers(0, 3), max_size=20),
    snapshot_records=st.integers(1, 6),
)
def test_whenever_the_node_dies_the_restart_has_exactly_what_was_told(
    new_meta: Any, commands: list[Any], flushes: list[int], snapshot_records: int
) -> None:
    async def scenario() -> None:
        meta = new_meta(auto=False)
        log = open_log(meta, snapshot_records=snapshot_records)
        tasks: list[asyncio.Task[Any]] = []
        for number, command in enumerate(commands):
            tasks += await started(log, command)
            meta.flush(flushes[number] if number < len(flushes) else 0)
            assert load(meta.after_crash()).state == log.state
        for _ in range(len(meta.pending)):
            meta.flush(1)
            assert load(meta.after_crash()).state == log.state
        meta.flush()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(outcome, PostbusError) or outcome.after.index <= log.state.index
        # The same commands one after the other give the same image: waiting for the disk decides nothing.
        other = open_log(new_meta())
        for command in commands:
            with contextlib.suppress(PostbusError):
                await other.execute(command)
        assert other.state == log.state

    asyncio.run(scenario())


async def test_producer_ids_are_given_once_across_blocks_restarts_and_callers(meta: Any) -> None:
    ids = ProducerIds(open_log(meta), block_ids=3)
    given_out = await asyncio.gather(*(ids.take() for _ in range(8)))
    assert given_out == [1, 2, 3, 4, 5, 6, 7, 8]
    again = ProducerIds(open_log(meta.after_crash()), block_ids=3)
    assert await again.take() == 10


async def test_a_producer_id_is_told_only_when_its_block_is_durable(slow_meta: Any) -> None:
    ids = ProducerIds(open_log(slow_meta))
    task = asyncio.create_task(ids.take())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not task.done() and slow_meta.pending
    slow_meta.flush()
    assert await task == 1
