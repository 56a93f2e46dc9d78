"""Who leads and where replicas are: what leaders and operators ask for, an outcome for each partition."""

from dataclasses import replace

import pytest
from images import create, joined, partition, run, started, step
from postbus.v1 import error_pb2

from broker.controller.commands import (
    AlterPartition,
    AlterPartitions,
    CancelReassignments,
    Command,
    DrainNode,
    ElectLeaders,
    FenceNodes,
    HandOver,
    Member,
    PartitionId,
    PartitionName,
    Reassignment,
    ReassignPartitions,
    ReportDamage,
    RestorePreferred,
    SetThrottle,
    StopNode,
    UpdateTopic,
)
from broker.controller.decisions import Decision
from broker.controller.state import ClusterState
from broker.controller.topic_config import TopicConfig
from broker.errors import PostbusError

FIVE = joined(1, 2, 3, 4, 5)
ID = "id-of-orders"


def placed(state: ClusterState, *replica_lists: tuple[int, ...], topic: str = "orders") -> ClusterState:
    """A topic whose replicas are there."""
    state = run(state, create(topic, partition_count=len(replica_lists), replication_factor=len(replica_lists[0])))
    state = run(state, *(move(number, *replicas, topic=topic) for number, replicas in enumerate(replica_lists)))
    for number in range(len(replica_lists)):
        state = caught_up(state, number, topic=topic)
    return run(state, ElectLeaders())


def move(number: int, *replicas: int, topic: str = "orders") -> ReassignPartitions:
    return ReassignPartitions(reassignments=(Reassignment(topic=topic, partition=number, replicas=replicas),))


def alter(state: ClusterState, number: int, *isr: int, topic: str = "orders") -> AlterPartitions:
    before = partition(state, number, topic)
    return AlterPartitions(
        node_id=before.leader,
        broker_epoch=state.nodes[before.leader].broker_epoch,
        changes=(
            AlterPartition(
                topic_id=f"id-of-{topic}",
                partition=number,
                leader_epoch=before.leader_epoch,
                partition_epoch=before.partition_epoch,
                isr=tuple(Member(node_id, state.nodes[node_id].broker_epoch) for node_id in isr),
            ),
        ),
    )


def damage(state: ClusterState, node_id: int, *numbers: int) -> ReportDamage:
    return ReportDamage(
        node_id=node_id,
        broker_epoch=state.nodes[node_id].broker_epoch,
        partitions=tuple(PartitionId(ID, number) for number in numbers),
    )


def caught_up(state: ClusterState, number: int = 0, topic: str = "orders") -> ClusterState:
    """All replicas are in sync, as their leader says."""
    return run(state, alter(state, number, *partition(state, number, topic).replicas, topic=topic))


def errors(decision: Decision) -> list[int | None]:
    return [None if outcome.error is None else outcome.error.reason for outcome in decision.outcomes]


class TestReassignment:
    BEFORE = placed(FIVE, (1, 2, 3))

    def test_it_grows_catches_up_then_shrinks_in_one_record(self) -> None:
        state = run(self.BEFORE, move(0, 4, 2, 5))
        growing = partition(state)
        assert (growing.replicas, growing.adding, growing.removing) == ((4, 2, 5, 1, 3), (4, 5), (1, 3))
        assert (set(growing.isr), growing.leader, growing.target) == ({1, 2, 3}, 1, (4, 2, 5))
        state = run(state, alter(state, 0, 1, 2, 3, 4))
        assert partition(state).reassigning, "5 is not in sync yet"
        state, decision = step(state, alter(state, 0, 1, 2, 3, 4, 5))
        done = partition(state)
        assert (done.replicas, set(done.isr), done.leader) == ((4, 2, 5), {2, 4, 5}, 4)
        assert not done.reassigning and done.leader_epoch == growing.leader_epoch + 1
        assert len(decision.records) == 1

    def test_it_waits_until_what_would_be_left_is_enough(self) -> None:
        """Shrinking to fewer than min_insync_replicas would stop publishing."""
        state = run(self.BEFORE, FenceNodes(node_ids=(2, 3)), move(0, 2, 3, 4))
        state = run(state, alter(state, 0, 1, 4))
        assert partition(state).reassigning and set(partition(state).isr) == {1, 4}

    def test_another_order_or_fewer_replicas_are_so_at_once(self) -> None:
        state = run(self.BEFORE, move(0, 3, 1, 2))
        assert (partition(state).replicas, partition(state).leader) == ((3, 1, 2), 1)
        state = run(self.BEFORE, move(0, 2, 3))
        assert (partition(state).replicas, partition(state).leader) == ((2, 3), 2)
        assert state.topics["orders"].replication_factor == 2

    def test_it_can_be_cancelled(self) -> None:
        state = run(self.BEFORE, move(0, 4, 5))
        state = run(state, alter(state, 0, 1, 2, 3, 4))
        state, decision = step(state, CancelReassignments())
        assert errors(decision) == [None]
        back = partition(state)
        assert (set(back.replicas), set(back.isr), back.leader, back.reassigning) == ({1, 2, 3}, {1, 2, 3}, 1, False)
        assert step(state, CancelReassignments()) == (state, Decision())

    def test_it_is_not_cancelled_when_only_the_new_ones_have_everything(self) -> None:
        state = run(self.BEFORE, move(0, 4, 5))
        state = run(state, alter(state, 0, 1, 4))
        state = run(state, FenceNodes(node_ids=(1,)))
        assert partition(state).isr == (4,)
        _, decision = step(state, CancelReassignments())
        assert errors(decision) == [error_pb2.ERROR_REASON_NOT_ENOUGH_REPLICAS]

    @pytest.mark.parametrize("change", [CancelReassignments(), move(0, 2, 3), move(0, 1, 2, 3)])
    def test_the_only_one_who_may_lead_again_is_never_taken_away(self, change: Command) -> None:
        """Nobody is in sync, and only a replica that was to come has everything: its copy outlives any change."""
        lower = UpdateTopic(name="orders", paths=("config",), config=TopicConfig(min_insync_replicas=1))
        state = run(self.BEFORE, lower, move(0, 4, 5))
        state = run(state, alter(state, 0, 1, 4))
        state = run(state, FenceNodes(node_ids=(1,)), FenceNodes(node_ids=(4,)))
        assert (partition(state).isr, partition(state).elr, partition(state).leader) == ((), (4,), 0)
        state = run(state, change)
        assert 4 in partition(state).replicas and 4 in partition(state).elr
        assert partition(started(state, 4)).leader == 4

    def test_another_target_may_be_chosen_on_the_way(self) -> None:
        state = run(self.BEFORE, move(0, 4, 5), move(0, 1, 2, 5))
        assert (partition(state).target, partition(state).adding) == ((1, 2, 5), (5,))
        assert 4 not in partition(state).replicas
        state = run(self.BEFORE, move(0, 4, 5), move(0, 1, 2, 3))
        assert partition(state).replicas == (1, 2, 3) and not partition(state).reassigning

    @pytest.mark.parametrize(
        ("replicas", "text"),
        [((), "one or more"), ((1, 1), "each once"), ((1, 9), "no node 9"), ((1, 4), "fenced"), ((1, 5), "draining")],
    )
    def test_targets_that_can_not_be(self, replicas: tuple[int, ...], text: str) -> None:
        state = run(self.BEFORE, FenceNodes(node_ids=(4,)), DrainNode(node_id=5))
        after, decision = step(state, move(0, *replicas))
        (outcome,) = decision.outcomes
        assert outcome.error is not None and text in outcome.error.message
        assert after == state

    def test_fewer_copies_than_must_be_in_sync_are_refused(self) -> None:
        two = placed(FIVE, (1, 2, 3), (2, 3, 4))
        _, decision = step(two, move(0, 1))
        assert errors(decision) == [error_pb2.ERROR_REASON_INVALID_FIELD]
        strict = UpdateTopic(name="orders", paths=("config",), config=TopicConfig(min_insync_replicas=3))
        _, decision = step(run(self.BEFORE, strict), move(0, 1, 2))
        assert errors(decision) == [error_pb2.ERROR_REASON_INVALID_FIELD]
        both = ReassignPartitions(
            reassignments=tuple(Reassignment(topic="orders", partition=number, replicas=(3,)) for number in (0, 1))
        )
        state, decision = step(two, both)
        assert errors(decision) == [None, None] and state.topics["orders"].replication_factor == 1

    def test_a_topic_has_more_copies_once_all_partitions_have(self) -> None:
        state = placed(joined(1, 2, 3), (1,), (2,))
        state = run(state, move(0, 1, 2, 3), move(1, 2, 3, 1))
        state = caught_up(state, 0)
        assert state.topics["orders"].replication_factor == 1
        etag = state.topics["orders"].etag
        state = caught_up(state, 1)
        assert state.topics["orders"].replication_factor == 3
        assert state.topics["orders"].etag != etag

    def test_one_wrong_partition_holds_up_no_other(self) -> None:
        both = ReassignPartitions(
            reassignments=(
                Reassignment(topic="orders", partition=7, replicas=(1,)),
                Reassignment(topic="nothing", partition=0, replicas=(1,)),
                Reassignment(topic="orders", partition=0, replicas=(2, 1, 3)),
            ),
            throttle_bytes_per_s=1000,
        )
        state, decision = step(self.BEFORE, both)
        assert errors(decision) == [
            error_pb2.ERROR_REASON_PARTITION_NOT_FOUND,
            error_pb2.ERROR_REASON_TOPIC_NOT_FOUND,
            None,
        ]
        assert partition(state).replicas == (2, 1, 3) and state.throttle_bytes_per_s == 1000
        assert run(state, SetThrottle(bytes_per_s=0)).throttle_bytes_per_s == 0
        with pytest.raises(PostbusError):
            run(state, SetThrottle(bytes_per_s=-1))


class TestLeadership:
    BEFORE = placed(joined(1, 2, 3), (1, 2, 3), (2, 3, 1), (3, 1, 2))

    def test_leadership_never_shows_in_the_etag(self) -> None:
        after = run(self.BEFORE, FenceNodes(node_ids=(1,)))
        assert after.topics["orders"].etag == self.BEFORE.topics["orders"].etag

    def test_a_node_can_hand_over_what_it_leads(self) -> None:
        state, decision = step(self.BEFORE, HandOver(node_id=1, partitions=(PartitionId(ID, 0), PartitionId(ID, 1))))
        assert errors(decision) == [None, None]
        assert (partition(state).leader, set(partition(state).isr)) == (2, {1, 2, 3})
        alone = run(self.BEFORE, FenceNodes(node_ids=(2, 3)))
        _, decision = step(alone, HandOver(node_id=1))
        assert errors(decision) == [error_pb2.ERROR_REASON_NOT_ENOUGH_REPLICAS] * 3

    def test_nobody_counts_on_a_damaged_copy(self) -> None:
        state, decision = step(self.BEFORE, damage(self.BEFORE, 1, 0, 1))
        assert errors(decision) == [None, None]
        assert [(each.leader, each.isr) for each in state.topics["orders"].partitions] == [
            (2, (2, 3)),
            (2, (2, 3)),
            (3, (3, 1, 2)),
        ]
        again, decision = step(state, damage(state, 1, 0))
        assert errors(decision) == [None]
        assert partition(again) == replace(partition(state), partition_epoch=partition(state).partition_epoch + 1)

    def test_what_a_leader_asked_for_before_the_damage_was_known_is_refused(self) -> None:
        state = run(self.BEFORE, alter(self.BEFORE, 0, 1, 2))
        joining = alter(state, 0, 1, 2, 3)
        state, decision = step(run(state, damage(state, 3, 0)), joining)
        assert errors(decision) == [error_pb2.ERROR_REASON_PRECONDITION_NOT_MET]
        assert partition(state).isr == (1, 2)

    def test_the_last_whole_copy_counts_even_if_it_is_damaged(self) -> None:
        alone = run(self.BEFORE, FenceNodes(node_ids=(2, 3)))
        state, decision = step(alone, damage(alone, 1, 0))
        assert errors(decision) == [error_pb2.ERROR_REASON_NOT_ENOUGH_REPLICAS]
        assert partition(state) == partition(alone)

    def test_an_eligible_copy_takes_the_place_of_a_damaged_one(self) -> None:
        state = run(self.BEFORE, alter(self.BEFORE, 0, 1))
        assert set(partition(state).elr) == {2, 3}
        state = run(state, damage(state, 1, 0))
        assert (partition(state).leader, partition(state).isr, partition(state).elr) == (2, (2,), (3,))

    def test_damage_found_in_an_earlier_life_is_refused(self) -> None:
        state = run(self.BEFORE, FenceNodes(node_ids=(1,)))
        report = damage(state, 1, 0)
        with pytest.raises(PostbusError) as refused:
            step(state, replace(report, broker_epoch=report.broker_epoch - 1))
        assert refused.value.reason == error_pb2.ERROR_REASON_PRECONDITION_NOT_MET

    def test_leadership_is_never_handed_to_who_is_about_to_go(self) -> None:
        """Two draining nodes would hand it to each other for ever."""
        state = run(self.BEFORE, FenceNodes(node_ids=(3,)), DrainNode(node_id=1), DrainNode(node_id=2))
        leader = partition(state).leader
        after, decision = step(state, HandOver(node_id=leader))
        assert partition(after).leader == leader
        assert errors(decision)[0] == error_pb2.ERROR_REASON_NOT_ENOUGH_REPLICAS

    def test_preferred_leaders_are_elected_where_they_are_in_sync(self) -> None:
        state = run(self.BEFORE, HandOver(node_id=1), HandOver(node_id=2))
        state, decision = step(state, ElectLeaders())
        assert errors(decision) == [None] * 3
        assert [each.leader for each in state.topics["orders"].partitions] == [1, 2, 3]
        away = run(self.BEFORE, FenceNodes(node_ids=(1,)))
        _, decision = step(away, ElectLeaders(partitions=(PartitionName("orders", 0),)))
        assert errors(decision) == [error_pb2.ERROR_REASON_NOT_ENOUGH_REPLICAS]

    def test_an_unclean_election_of_everything_is_refused(self) -> None:
        with pytest.raises(PostbusError) as refused:
            step(self.BEFORE, ElectLeaders(unclean=True))
        assert refused.value.field == "partitions"

    def test_leadership_is_given_back_a_few_at_a_time_the_brokers_own_first(self) -> None:
        state = placed(self.BEFORE, (1, 2, 3), (1, 3, 2), topic="later")
        state = run(state, create("__groups", internal=True, partition_count=1, replication_factor=3))
        state = run(state, HandOver(node_id=1), HandOver(node_id=2))
        preferred = partition(state, 0, "__groups").replicas[0]
        if partition(state, 0, "__groups").leader == preferred:
            state = run(state, HandOver(node_id=preferred, partitions=(PartitionId("id-of-__groups", 0),)))
        restore = RestorePreferred(node_ids=(1, 2, 3), limit=2)
        once = run(state, restore)
        assert partition(once, 0, "__groups").leader == preferred

        def away(state: ClusterState) -> int:
            return sum(each.leader != each.replicas[0] for _, _, each in state.partitions())

        assert away(once) == away(state) - 2
        assert away(run(state, *[restore] * 10)) == 0
        assert step(state, RestorePreferred(node_ids=(), limit=9))[1].records == []

    def test_leadership_is_not_given_back_to_who_is_about_to_go(self) -> None:
        state = run(self.BEFORE, DrainNode(node_id=1))
        assert step(state, RestorePreferred(node_ids=(1, 2, 3), limit=9))[1].records == []

    def test_a_stopping_node_joins_no_isr(self) -> None:
        state = run(self.BEFORE, StopNode(node_id=1, broker_epoch=self.BEFORE.nodes[1].broker_epoch))
        _, decision = step(state, alter(state, 0, 1, 2, 3))
        assert errors(decision) == [error_pb2.ERROR_REASON_NOT_ENOUGH_REPLICAS]

    def test_a_delayed_request_brings_nobody_back_from_an_earlier_life(self) -> None:
        """Its disk may have been lost since (KIP-903); and the leader is told that nothing was done."""
        away = run(self.BEFORE, FenceNodes(node_ids=(3,)))
        late = alter(away, 0, 1, 2, 3)
        _, decision = step(started(away, 3, store_id="new"), late)
        assert errors(decision) == [error_pb2.ERROR_REASON_NOT_ENOUGH_REPLICAS]

    def test_what_a_deposed_leader_asks_for_is_refused_with_the_leader(self) -> None:
        late = alter(self.BEFORE, 0, 1)
        state = run(self.BEFORE, HandOver(node_id=1))
        _, decision = step(state, late)
        (outcome,) = decision.outcomes
        assert outcome.error is not None and outcome.error.reason == error_pb2.ERROR_REASON_NOT_LEADER
        assert outcome.error.metadata["leader_node_id"] == "2"
