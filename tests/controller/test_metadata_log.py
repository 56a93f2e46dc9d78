"""Commands become entries, in one order; what is told is committed and applied here, and nothing is done twice."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from images import RULES, create, joined
from postbus.v1 import error_pb2

from broker.clock import ClusterClock, ManualClock
from broker.controller.command_codec import encode_command
from broker.controller.commands import (
    AddPartitions,
    AlterPartition,
    DeleteTopic,
    ElectLeaders,
    Member,
    PartitionName,
    RegisterNode,
    ReserveProducerIds,
)
from broker.controller.image import to_snapshot
from broker.controller.metadata_log import EXECUTE, MetadataLog, MetadataLogSettings, replay
from broker.controller.producer_ids import ProducerIds
from broker.controller.session import NodeSession
from broker.controller.state import ClusterState, MetadataError
from broker.errors import PostbusError
from broker.peers.calls import PeerUnreachable
from broker.peers.links import PeerId
from broker.raft.messages import NotLeader
from broker.stubs.controller_pb2 import ControllerAnswer

START = joined(1)


class FakeRaft:
    """Commits when a test says so."""

    def __init__(self, node: "Node", *, index: int) -> None:
        self.node = node
        self.leader_id: int | None = 1
        self.index = index
        self.proposed: list[tuple[int, bytes]] = []
        self.entries: list[tuple[int, bytes]] = []
        self.snapshots: list[tuple[int, bytes]] = []
        self.refuses = False
        self.auto = True

    def propose(self, data: bytes) -> int:
        if self.refuses:
            raise NotLeader(None)
        self.index += 1
        self.proposed.append((self.index, data))
        if self.auto:
            asyncio.get_running_loop().call_soon(self.commit)
        return self.index

    def take_snapshot(self, index: int, data: bytes) -> None:
        self.snapshots.append((index, data))

    def commit(self, count: int | None = None) -> None:
        while self.proposed and count != 0:
            self.apply(*self.proposed.pop(0))
            count = None if count is None else count - 1

    def apply(self, index: int, data: bytes) -> None:
        self.entries.append((index, data))
        self.node.log.applied(index, data)

    def lose(self) -> list[tuple[int, bytes]]:
        """Leadership goes; what was proposed may or may not come back."""
        left, self.proposed = self.proposed, []
        self.leader_id = None
        self.node.log.leading(None)
        return left


class FakeCalls:
    """Another node's answers are written by the test."""

    def __init__(self) -> None:
        self.handlers: dict[str, Callable[[PeerId, bytes], Awaitable[bytes]]] = {}
        self.asked: list[tuple[int, str, bytes, asyncio.Future[bytes]]] = []
        self.asked_twice = asyncio.Event()

    def handle(self, method: str, handler: Callable[[PeerId, bytes], Awaitable[bytes]]) -> None:
        self.handlers[method] = handler

    def start_call(self, node_id: int, method: str, payload: bytes, *, timeout_s: float) -> "asyncio.Future[bytes]":
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.asked.append((node_id, method, payload, future))
        if len(self.asked) == 2:
            self.asked_twice.set()
        return future


class Node:
    count = 0

    def __init__(self, *, leads: bool = True, **settings: Any) -> None:
        Node.count += 1
        self.calls = FakeCalls()
        self.clock = ManualClock()
        self.fatal: list[Exception] = []
        self.log = MetadataLog(
            node_id=1,
            calls=self.calls,
            clock=self.clock,
            random=random.Random(Node.count),
            rules=RULES,
            on_fatal=self.fatal.append,
            settings=MetadataLogSettings(**{"retry_s": 0.0, **settings}),
        )
        self.raft = FakeRaft(self, index=START.index)
        self.log.attach(self.raft)
        self.log.restored(START.index, to_snapshot(START).SerializeToString())
        if leads:
            self.log.leading(1)
        else:
            self.raft.leader_id = 2

    async def start(self, *commands: Any, **options: Any) -> list["asyncio.Task[Any]"]:
        tasks = [asyncio.create_task(self.log.execute(command, **options)) for command in commands]
        await turns()
        return tasks


async def turns(count: int = 6) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_a_command_answers_with_the_images_before_and_after() -> None:
    node = Node()
    executed = await node.log.execute(create("a", partition_count=2))
    assert (executed.before, executed.after) == (START, node.log.state)
    assert executed.after.topics["a"].log_ids == (1, 2)
    assert executed.after.index == START.index + 1


async def test_nothing_is_told_before_it_is_committed() -> None:
    node = Node()
    node.raft.auto = False
    told: list[int] = []
    node.log.add_listener(lambda old, new: told.append(new.index))
    (task,) = await node.start(create("a"))
    assert (task.done(), told, node.log.state) == (False, [], START)
    node.raft.commit()
    assert told == [START.index + 1], "listeners know before the caller goes on"
    await task


async def test_a_command_sees_what_was_decided_before_it_though_not_committed_yet() -> None:
    node = Node()
    node.raft.auto = False
    first, second, other = await node.start(create("a"), create("a", topic_id="2"), create("b"))
    assert second.done() and second.exception().reason == error_pb2.ERROR_REASON_EXISTS
    node.raft.commit()
    assert (await first).after.topics["a"].log_ids[-1] < (await other).after.topics["b"].log_ids[0]


async def test_what_is_so_already_is_answered_only_once_that_is_committed() -> None:
    node = Node()
    await node.log.execute(create("a", partition_count=1))
    node.raft.auto = False
    grow = AddPartitions(name="a", partition_count=4)
    first, again = await node.start(grow, grow)
    assert len(node.raft.proposed) == 1 and not again.done()
    node.raft.commit()
    executed = await again
    assert executed.before == executed.after == (await first).after


async def test_listeners_hear_every_change_in_order_and_nothing_of_raft_s_own_entries() -> None:
    node = Node()
    told: list[tuple[int, int]] = []

    def listen(old: ClusterState, new: ClusterState) -> None:
        told.append((old.index, new.index))

    node.log.add_listener(listen)
    await node.log.execute(create("a"))
    node.raft.index += 1
    node.raft.apply(node.raft.index, b"")
    await node.log.execute(DeleteTopic(name="a"))
    node.log.remove_listener(listen)
    await node.log.execute(create("a"))
    begin = START.index
    assert told == [(begin, begin + 1), (begin + 2, begin + 3)]


async def test_a_preview_keeps_nothing() -> None:
    node = Node()
    await node.log.execute(create("a", partition_count=2))
    assert node.log.preview(create("b", partition_count=2)).topics["b"].log_ids == (3, 4)
    with pytest.raises(PostbusError):
        node.log.preview(create("a", topic_id="other"))
    assert set(node.log.state.topics) == {"a"} and len(node.raft.entries) == 1


async def test_a_caller_that_gives_up_changes_nothing_for_others() -> None:
    node = Node()
    node.raft.auto = False
    gone, other = await node.start(create("a"), create("b"))
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    node.raft.commit()
    assert set((await other).after.topics) == {"a", "b"}


async def test_the_log_and_a_snapshot_with_the_rest_of_it_give_the_same_image() -> None:
    node = Node(snapshot_entries=3)
    for number in range(7):
        await node.log.execute(create(f"t{number}"))
    assert [index - START.index for index, _ in node.raft.snapshots] == [3, 6]
    index, snapshot = node.raft.snapshots[-1]
    assert replay(snapshot, [entry for entry in node.raft.entries if entry[0] > index]) == node.log.state
    with pytest.raises(MetadataError):
        replay(b"\xff\xff", [])


async def test_an_entry_that_makes_no_sense_stops_the_node() -> None:
    node = Node()
    node.raft.apply(START.index + 1, b"\xff\xff\xff")
    assert isinstance(node.fatal[0], MetadataError)
    assert not node.log.active
    node.raft.apply(START.index + 2, b"")
    assert node.log.state == START, "and nothing after it is applied"


class TestLostLeadership:
    async def test_an_entry_that_survives_it_is_told_as_done_once(self) -> None:
        node = Node()
        node.raft.auto = False
        (task,) = await node.start(ReserveProducerIds(count=5))
        (left,) = node.raft.lose()
        await turns()
        assert not task.done()
        node.raft.apply(*left)
        executed = await task
        assert (executed.before.next_producer_id, executed.after.next_producer_id) == (1, 6)

    async def test_the_next_controller_is_asked_with_the_same_number(self) -> None:
        node = Node()
        node.raft.auto = False
        (task,) = await node.start(ReserveProducerIds(count=5))
        (left,) = node.raft.lose()
        node.raft.leader_id = 2
        await turns(20)
        asked_of, method, payload, answer = node.calls.asked[0]
        assert (asked_of, method) == (2, EXECUTE)
        # There, the entry of the first try is known.
        other = Node()
        other.raft.apply(*left)
        found = ControllerAnswer.FromString(await other.calls.handlers[EXECUTE](PeerId(1, "x"), payload))
        assert (found.index, found.changed) == (left[0], True)
        assert not other.raft.proposed, "and is not made again"
        answer.set_result(found.SerializeToString())
        node.raft.apply(*left)
        assert (await task).after.next_producer_id == 6

    async def test_when_time_is_over_the_outcome_is_said_to_be_unknown(self) -> None:
        node = Node()
        node.raft.auto = False
        (task,) = await node.start(create("a"), timeout_s=5)
        node.raft.lose()
        await turns()
        node.clock.advance(6)
        await turns(20)
        assert task.exception().reason == error_pb2.ERROR_REASON_TIMEOUT

    async def test_a_command_that_found_no_controller_was_not_carried_out(self) -> None:
        node = Node()
        node.raft.lose()
        node.log.quorum_problem = lambda: "2 of 3 controllers unreachable: 2 (x), 3 (y)"
        (task,) = await node.start(create("a"), timeout_s=5)
        node.clock.advance(6)
        await turns(20)
        error = task.exception()
        assert (error.reason, error.message) == (
            error_pb2.ERROR_REASON_NO_LEADER,
            "2 of 3 controllers unreachable: 2 (x), 3 (y)",
        )

    async def test_a_controller_that_is_handing_over_is_waited_out(self) -> None:
        node = Node()
        node.raft.refuses = True
        (task,) = await node.start(create("a"))
        await turns(20)
        assert not task.done()
        node.raft.refuses = False
        assert (await task).after.topics

    async def test_a_new_term_begins_with_what_was_applied(self) -> None:
        node = Node()
        node.raft.auto = False
        await node.start(create("a"))
        node.raft.lose()
        node.raft.leader_id = 1
        node.log.leading(2)
        assert "a" not in node.log.decided.topics


class TestElsewhere:
    async def test_who_asks_reads_what_it_wrote(self) -> None:
        node, controller = Node(leads=False), Node()
        (task,) = await node.start(create("a"))
        _, _, payload, answer = node.calls.asked[0]
        answer.set_result(await controller.calls.handlers[EXECUTE](PeerId(1, "x"), payload))
        await turns()
        assert not task.done(), "it is not applied here yet"
        node.raft.apply(*controller.raft.entries[0])
        executed = await task
        assert executed.after is node.log.state and "a" not in executed.before.topics

    async def test_its_own_entry_is_known_though_the_answer_is_lost(self) -> None:
        node, controller = Node(leads=False), Node()
        (task,) = await node.start(create("a"))
        _, _, payload, answer = node.calls.asked[0]
        await controller.calls.handlers[EXECUTE](PeerId(1, "x"), payload)
        answer.set_exception(PeerUnreachable(2, "gone", sent=True))
        await turns()
        node.raft.apply(*controller.raft.entries[0])
        assert "a" in (await task).after.topics

    async def test_refusals_and_outcomes_are_the_controller_s(self) -> None:
        node, controller = Node(leads=False), Node()
        elect = ElectLeaders(partitions=(PartitionName("nothing", 0),))
        (task,) = await node.start(elect)
        _, _, payload, answer = node.calls.asked[0]
        answer.set_result(await controller.calls.handlers[EXECUTE](PeerId(1, "x"), payload))
        (outcome,) = (await task).outcomes
        assert outcome.error is not None and outcome.error.reason == error_pb2.ERROR_REASON_TOPIC_NOT_FOUND
        (task,) = await node.start(DeleteTopic(name="nothing"))
        node.calls.asked[1][3].set_exception(PostbusError(error_pb2.ERROR_REASON_TOPIC_NOT_FOUND, "no"))
        with pytest.raises(PostbusError, match="no"):
            await task

    async def test_a_refusal_after_a_try_that_was_lost_says_nothing_of_that(self) -> None:
        """It may still be on its way: whoever counts on its not being carried out is told that it is not known."""
        node, controller = Node(leads=False, retry_s=0.001), Node()
        session = NodeSession(
            registration=RegisterNode(node_id=1, store_id="store-1", peer_endpoint="here"),
            metadata_log=node.log,
            calls=node.calls,  # type: ignore[arg-type]
            clock=ClusterClock(node.clock),
        )
        session.broker_epoch = 1
        change = AlterPartition(topic_id="nothing", partition=0, leader_epoch=1, partition_epoch=1, isr=(Member(1, 1),))
        for tries in (1, 2):
            node.calls.asked.clear()
            asking = asyncio.create_task(session.alter_partitions([change]))
            await turns()
            if tries == 2:
                node.calls.asked[0][3].set_exception(PeerUnreachable(2, "gone", sent=True))
                await asyncio.wait_for(node.calls.asked_twice.wait(), 5)
            _, _, payload, answer = node.calls.asked[-1]
            answer.set_result(await controller.calls.handlers[EXECUTE](PeerId(1, "x"), payload))
            (result,) = await asking
            assert result.state is None
            assert (result.error is None) == (tries == 2)

    async def test_a_controller_that_hangs_is_left_for_its_successor(self) -> None:
        node = Node(leads=False, retry_s=0.001)
        (task,) = await node.start(create("a"))
        node.raft.leader_id = 3
        await asyncio.wait_for(node.calls.asked_twice.wait(), 5)
        assert [asked[0] for asked in node.calls.asked] == [2, 3]
        assert node.calls.asked[0][3].cancelled()
        assert node.calls.asked[0][2] == node.calls.asked[1][2], "the same command with the same number"
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def test_who_is_not_the_controller_says_so(self) -> None:
        node = Node(leads=False)
        with pytest.raises(PostbusError) as refused:
            await node.calls.handlers[EXECUTE](PeerId(2, "x"), encode_command(create("a")))
        assert refused.value.reason == error_pb2.ERROR_REASON_NOT_LEADER

    async def test_a_snapshot_tells_what_was_carried_out(self) -> None:
        """A node that was far behind finds its command in it, but not the images around it."""
        node, controller = Node(leads=False), Node(snapshot_entries=2)
        (task,) = await node.start(create("a"))
        await controller.calls.handlers[EXECUTE](PeerId(1, "x"), node.calls.asked[0][2])
        await controller.log.execute(create("b"))
        node.log.restored(*controller.raft.snapshots[0])
        executed = await task
        assert executed.before is executed.after is node.log.state


async def test_only_so_many_commands_wait_to_be_committed() -> None:
    node = Node(proposals_max=2)
    node.raft.auto = False
    first, second, third = await node.start(create("a"), create("b"), create("c"))
    assert third.done() and third.exception().reason == error_pb2.ERROR_REASON_QUOTA_EXCEEDED
    node.raft.commit()
    await asyncio.gather(first, second)


async def test_only_so_many_commands_are_remembered() -> None:
    node = Node(commands_remembered=3)
    for number in range(9):
        await node.log.execute(create(f"t{number}"))
    assert len(node.log._remembered) == 3


async def test_whoever_waits_for_an_entry_is_woken_by_it() -> None:
    node = Node()
    waiting = asyncio.create_task(node.log.wait_applied(START.index + 2, timeout_s=5))
    assert await node.log.wait_applied(START.index, timeout_s=0)
    assert not await node.log.wait_applied(START.index + 1, timeout_s=0)
    for index in (1, 2):
        node.raft.apply(START.index + index, b"")
    assert await waiting


async def test_once_closed_nothing_is_executed() -> None:
    node = Node()
    await node.log.close()
    with pytest.raises(PostbusError) as refused:
        await node.log.execute(create("a"))
    assert refused.value.reason == error_pb2.ERROR_REASON_DRAINING


async def test_a_registration_is_repeated_without_a_second_life() -> None:
    node = Node()
    command = RegisterNode(node_id=2, store_id="two")
    payload = encode_command(command, command_id=77)
    first = await node.calls.handlers[EXECUTE](PeerId(2, "two"), payload)
    again = await node.calls.handlers[EXECUTE](PeerId(2, "two"), payload)
    assert first == again
    assert node.log.state.nodes[2].broker_epoch == ControllerAnswer.FromString(first).index


async def test_producer_ids_are_given_once_across_blocks_nodes_and_callers() -> None:
    node = Node()
    ids, others = ProducerIds(node.log, block_ids=3), ProducerIds(node.log, block_ids=3)
    taken = await asyncio.gather(*(ids.take() for _ in range(8)), *(others.take() for _ in range(4)))
    assert len(set(taken)) == 12
    assert all(ids.handed_out(producer_id) for producer_id in taken)
    assert not ids.handed_out(0) and not ids.handed_out(max(taken) + 3)
    assert await ids.next_epoch(taken[0], 0) == 1
    assert await ids.next_epoch(taken[0], 1) == 2
