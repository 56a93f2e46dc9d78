"""What the life of a node does to what it holds."""

import pytest
from images import create, joined, partition, register, run, started, step
from postbus.v1 import error_pb2

from broker.controller.commands import (
    DrainNode,
    ElectLeaders,
    FenceNodes,
    PartitionName,
    RemoveNode,
    Rules,
    StopNode,
    UndrainNode,
    UnfenceNode,
    UpdateTopic,
)
from broker.controller.decisions import decide
from broker.controller.state import ClusterState
from broker.controller.topic_config import TopicConfig
from broker.errors import PostbusError

THREE = run(joined(1, 2, 3), create(partition_count=6))


def refusal(state: ClusterState, command: object) -> PostbusError:
    with pytest.raises(PostbusError) as refused:
        decide(state, command, rules=Rules())  # type: ignore[arg-type]
    return refused.value


def leaders(state: ClusterState) -> list[int]:
    return [partition.leader for partition in state.topics["orders"].partitions]


class TestRegistration:
    def test_a_node_begins_fenced_with_the_index_of_its_entry_as_epoch(self) -> None:
        state = run(ClusterState(index=41), register(7, rack="b"))
        node = state.nodes[7]
        assert (node.broker_epoch, node.fenced, node.rack, node.peer_endpoint) == (42, True, "b", "n7:7071")

    def test_a_restart_is_a_new_life_and_what_was_in_sync_has_to_be_proved_again(self) -> None:
        state = run(THREE, register(1))
        assert state.nodes[1].broker_epoch > THREE.nodes[1].broker_epoch
        for before, after in zip(THREE.topics["orders"].partitions, state.topics["orders"].partitions, strict=True):
            assert 1 not in after.isr and after.leader not in (0, 1)
            assert (after.leader_epoch > before.leader_epoch) == (before.leader == 1)

    def test_two_nodes_with_the_same_id_are_told_so(self) -> None:
        error = refusal(THREE, register(1, store_id="another"))
        assert error.reason == error_pb2.ERROR_REASON_PRECONDITION_NOT_MET
        assert "two nodes with the same id 1" in error.message and "n1:7071" in error.message

    def test_a_disk_that_was_lost_counts_for_nothing(self) -> None:
        alone = run(THREE, FenceNodes(node_ids=(2, 3)), FenceNodes(node_ids=(1,)))
        assert set(partition(alone).elr) == {1, 2, 3}
        state = started(alone, 1, store_id="new")
        assert set(partition(state).elr) == {2, 3} and leaders(state) == [0] * 6
        assert set(leaders(started(state, 2))) == {2}

    def test_a_node_that_lost_records_is_not_elected_on_what_it_has_left(self) -> None:
        alone = run(THREE, FenceNodes(node_ids=(2, 3)), FenceNodes(node_ids=(1,)))
        state = started(alone, 1, unclean=True)
        assert state.nodes[1].unclean and leaders(state) == [0] * 6
        assert partition(state).last_leader == partition(alone).last_leader

    def test_a_node_keeps_being_drained_across_restarts(self) -> None:
        state = run(THREE, DrainNode(node_id=2), register(2))
        assert state.nodes[2].draining


class TestFencing:
    def test_who_is_silent_leads_nothing_and_nobody_waits_for_it(self) -> None:
        state = run(THREE, FenceNodes(node_ids=(1,)))
        assert state.nodes[1].fenced
        assert all(1 not in each.isr and each.leader in (2, 3) for each in state.topics["orders"].partitions)
        assert set(leaders(state)) == {2, 3}, "what it led goes to both of the others"
        assert state.index == THREE.index + 1, "all in one entry"
        assert step(state, FenceNodes(node_ids=(1, 9)))[1].records == []

    def test_the_last_ones_in_sync_stay_eligible_and_lead_when_they_are_back(self) -> None:
        state = run(THREE, FenceNodes(node_ids=(1,)))
        assert partition(state).elr == ()
        state = run(state, FenceNodes(node_ids=(2,)))
        assert (partition(state).isr, partition(state).elr) == ((3,), (2,)), "1 missed what 2 and 3 acknowledged"
        state = run(state, FenceNodes(node_ids=(3,)))
        assert (partition(state).leader, partition(state).isr) == (0, ())
        assert sorted(partition(state).elr) == [2, 3]
        assert leaders(started(state, 1)) == [0] * 6
        state = started(state, 2)
        assert (partition(state).leader, partition(state).isr, partition(state).elr) == (2, (2,), (3,))

    def test_only_a_life_that_is_known_is_unfenced(self) -> None:
        state = run(THREE, register(1))
        stale = UnfenceNode(node_id=1, broker_epoch=THREE.nodes[1].broker_epoch)
        assert refusal(state, stale).reason == error_pb2.ERROR_REASON_PRECONDITION_NOT_MET
        epoch = state.nodes[1].broker_epoch
        assert not run(state, UnfenceNode(node_id=1, broker_epoch=epoch)).nodes[1].fenced


class TestUncleanElections:
    LOST = run(THREE, FenceNodes(node_ids=(1, 2)), FenceNodes(node_ids=(3,)))
    ORPHANED = started(started(LOST, 1, store_id="new"), 2, store_id="new")

    def test_nobody_leads_who_lacks_records(self) -> None:
        assert leaders(self.ORPHANED) == [0] * 6

    def test_unless_the_topic_says_so_and_then_it_is_counted(self) -> None:
        allow = UpdateTopic(name="orders", paths=("config",), config=TopicConfig(unclean_leader_election=True))
        state, decision = step(self.ORPHANED, allow)
        assert set(leaders(state)) <= {1, 2} and len(decision.unclean) == 6
        assert partition(state).elr == (), "what 3 has, and its leader has not, is lost"
        early = run(THREE, allow)
        early = run(early, FenceNodes(node_ids=(1, 2)), FenceNodes(node_ids=(3,)))
        assert set(leaders(started(early, 1, store_id="new"))) == {1}

    def test_or_an_operator_does(self) -> None:
        elect = ElectLeaders(partitions=(PartitionName("orders", 0),), unclean=True)
        state, decision = step(self.ORPHANED, elect)
        assert decision.unclean == (("orders", 0),)
        assert leaders(state)[0] in (1, 2) and leaders(state)[1:] == [0] * 5

    def test_who_led_last_is_chosen_before_others(self) -> None:
        state = run(THREE, FenceNodes(node_ids=(1,)), FenceNodes(node_ids=(2,)), FenceNodes(node_ids=(3,)))
        for node_id in (1, 2, 3):
            state = started(state, node_id, unclean=True)
        elect = ElectLeaders(partitions=(PartitionName("orders", 0),), unclean=True)
        assert partition(run(state, elect)).leader == 3


class TestStopping:
    def test_others_lead_and_nobody_waits(self) -> None:
        stop = StopNode(node_id=1, broker_epoch=THREE.nodes[1].broker_epoch)
        state, decision = step(THREE, stop)
        assert decision.outcomes == ()
        assert state.nodes[1].stopping and not state.nodes[1].fenced
        assert all(1 not in each.isr and each.leader in (2, 3) for each in state.topics["orders"].partitions)

    def test_the_last_one_in_sync_leads_to_the_end_and_says_so(self) -> None:
        state = run(THREE, FenceNodes(node_ids=(2, 3)))
        state, decision = step(state, StopNode(node_id=1, broker_epoch=state.nodes[1].broker_epoch))
        assert leaders(state) == [1] * 6
        assert [outcome.partition for outcome in decision.outcomes if outcome.error] == [0, 1, 2, 3, 4, 5]

    def test_a_node_that_stops_is_not_unfenced_again(self) -> None:
        epoch = THREE.nodes[1].broker_epoch
        state = run(THREE, StopNode(node_id=1, broker_epoch=epoch), FenceNodes(node_ids=(1,)))
        assert step(state, UnfenceNode(node_id=1, broker_epoch=epoch))[1].records == []

    def test_an_earlier_life_stops_nothing(self) -> None:
        state = started(THREE, 1)
        stale = StopNode(node_id=1, broker_epoch=THREE.nodes[1].broker_epoch)
        assert refusal(state, stale).reason == error_pb2.ERROR_REASON_PRECONDITION_NOT_MET


class TestDraining:
    FOUR = run(joined(1, 2, 3, 4), create(partition_count=8))

    def test_it_leads_nothing_and_gets_nothing_new(self) -> None:
        state = run(self.FOUR, DrainNode(node_id=1))
        assert 1 not in leaders(state)
        assert any(1 in each.isr for each in state.topics["orders"].partitions), "its replicas stay in sync"
        more = run(state, create("more"))
        assert all(1 not in each.replicas for each in more.topics["more"].partitions)
        assert not run(state, UndrainNode(node_id=1)).nodes[1].draining

    def test_with_its_replicas_each_finds_another_place(self) -> None:
        state = run(self.FOUR, DrainNode(node_id=1, move_replicas=True))
        assert 1 not in leaders(state)
        for each in state.topics["orders"].partitions:
            assert 1 not in each.target and len(each.target) == 3
            if 1 in each.replicas:
                assert each.removing == (1,) and len(each.adding) == 1

    def test_without_enough_other_nodes_replicas_can_not_move(self) -> None:
        error = refusal(THREE, DrainNode(node_id=1, move_replicas=True))
        assert (error.reason, error.field) == (error_pb2.ERROR_REASON_INVALID_FIELD, "move_replicas")
        assert "3 copies" in error.message and "2 other nodes" in error.message

    def test_what_does_not_exist_is_named(self) -> None:
        for command in (DrainNode(node_id=9), UndrainNode(node_id=9), RemoveNode(node_id=9)):
            assert refusal(THREE, command).field == "node_id"

    def test_a_node_goes_for_good_only_empty_and_silent(self) -> None:
        state = joined(5, state=THREE)
        assert "at work" in refusal(state, RemoveNode(node_id=5)).message
        gone = run(state, FenceNodes(node_ids=(5,)), RemoveNode(node_id=5))
        assert 5 not in gone.nodes
        held = run(state, FenceNodes(node_ids=(1,)))
        assert "copies of 6 partitions" in refusal(held, RemoveNode(node_id=1)).message
