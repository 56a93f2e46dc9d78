"""Where replicas go, and what a plan moves."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from images import create, joined, run, step

from broker.controller.commands import AddPartitions, DrainNode, FenceNodes, Reassignment, ReassignPartitions
from broker.controller.placement import load_of
from broker.controller.rebalance import plan_balance, plan_replication
from broker.controller.state import ClusterState

NODES = st.integers(1, 7)


def replica_lists(state: ClusterState, topic: str = "orders") -> list[tuple[int, ...]]:
    return [partition.target for partition in state.topics[topic].partitions]


def spread(counts: Counter[int], nodes: int) -> int:
    """Between who has most and who has least."""
    each = [counts[node_id] for node_id in range(1, nodes + 1)]
    return max(each) - min(each)


@settings(max_examples=150, deadline=None)
@given(nodes=NODES, factor=st.integers(1, 3), first=st.integers(1, 20), more=st.integers(0, 9), seed=st.integers(0, 99))
def test_replicas_and_leaders_are_even_and_no_node_has_two_of_a_partition(
    nodes: int, factor: int, first: int, more: int, seed: int
) -> None:
    state = run(
        joined(*range(1, nodes + 1)),
        create(partition_count=first, replication_factor=min(factor, nodes), seed=seed),
        AddPartitions(name="orders", partition_count=first + more, seed=seed + 1),
    )
    load = load_of(state)
    assert all(len(set(replicas)) == min(factor, nodes) for replicas in replica_lists(state))
    assert spread(load.preferred, nodes) <= 1
    assert spread(load.replicas, nodes) <= 2
    assert [each.leader for each in state.topics["orders"].partitions] == [each[0] for each in replica_lists(state)]


@settings(max_examples=50, deadline=None)
@given(nodes=st.integers(3, 6), seed=st.integers(0, 99))
def test_when_a_node_fails_its_leaders_go_to_all_others(nodes: int, seed: int) -> None:
    per_node = 2 * (nodes - 1)
    state = run(joined(*range(1, nodes + 1)), create(partition_count=nodes * per_node, replication_factor=3, seed=seed))
    after = run(state, FenceNodes(node_ids=(1,)))
    leads = Counter(each.leader for each in after.topics["orders"].partitions)
    assert all(per_node < leads[node_id] <= per_node + 4 for node_id in range(2, nodes + 1)), leads


def test_the_seed_says_where_a_topic_begins_and_nothing_else_does() -> None:
    state = joined(1, 2, 3)
    first = [run(state, create(partition_count=1, seed=seed)).topics["orders"].partitions[0] for seed in range(3)]
    assert {partition.leader for partition in first} == {1, 2, 3}
    assert run(state, create(seed=7)) == run(state, create(seed=7))


@pytest.mark.parametrize("seed", range(5))
def test_racks_share_no_partition_while_there_are_enough(seed: int) -> None:
    racks = dict(zip(range(1, 7), "aabbcc", strict=True))
    state = run(joined(*racks, racks="aabbcc"), create(partition_count=12, replication_factor=3, seed=seed))
    for replicas in replica_lists(state):
        assert {racks[node_id] for node_id in replicas} == {"a", "b", "c"}
    assert spread(load_of(state).replicas, 6) <= 2


def test_small_topics_do_not_pile_up() -> None:
    state = joined(1, 2, 3)
    for number in range(30):
        state = run(state, create(f"t{number}", partition_count=1, replication_factor=1, seed=number * 7))
    assert spread(load_of(state).replicas, 3) <= 1


def test_a_new_node_gets_its_share_with_the_fewest_moves() -> None:
    state = joined(4, state=run(joined(1, 2, 3), create(partition_count=40), create("other", partition_count=8)))
    plan = plan_balance(state)
    before, planned = load_of(state), moved(state, plan)
    after = load_of(planned)
    assert before.replicas[4] == 0 and after.replicas[4] == 36 == 48 * 3 // 4
    assert spread(after.replicas, 4) <= 1 and spread(after.preferred, 4) <= 1
    changed = sum(
        len(set(plan_of.replicas) - set(state.topics[plan_of.topic].partitions[plan_of.partition].target))
        for plan_of in plan
    )
    assert changed == 36, "nothing moves between the others"
    there = [set(each.target) for _, _, each in planned.partitions() if 4 in each.target]
    assert all(len(replicas) == 3 for replicas in there)
    assert plan_balance(planned) == ()


def test_a_node_that_is_away_or_drained_neither_gives_nor_takes() -> None:
    state = joined(4, 5, state=run(joined(1, 2, 3), create(partition_count=9)))
    state = run(state, FenceNodes(node_ids=(4,)), DrainNode(node_id=3))
    for planned in plan_balance(state):
        before = state.topics["orders"].partitions[planned.partition].target
        assert 4 not in planned.replicas and (3 in planned.replicas) == (3 in before)


def test_a_plan_puts_no_two_replicas_into_one_rack() -> None:
    racks = {1: "a", 2: "b", 3: "c", 4: "c"}
    state = joined(4, racks="c", state=run(joined(1, 2, 3, racks="abc"), create(partition_count=12)))
    planned = moved(state, plan_balance(state))
    assert load_of(planned).replicas[4] == 6
    for replicas in replica_lists(planned):
        assert len({racks[node_id] for node_id in replicas}) == 3


def test_topics_from_the_days_of_one_node_are_offered_more_copies_the_brokers_own_first() -> None:
    state = run(joined(1), create("b", partition_count=2), create("__groups", internal=True, partition_count=2))
    state = joined(2, 3, 4, state=state)
    plan = plan_replication(state)
    assert [each.topic for each in plan] == ["__groups", "__groups", "b", "b"]
    assert all(len(each.replicas) == 3 and each.replicas[0] == 1 for each in plan)
    loads = Counter(node_id for each in plan for node_id in each.replicas[1:])
    assert spread(Counter({node_id - 1: count for node_id, count in loads.items()}), 3) <= 1
    assert plan_replication(moved(state, plan)) == ()


def moved(state: ClusterState, plan: tuple[Reassignment, ...]) -> ClusterState:
    after, decision = step(state, ReassignPartitions(reassignments=plan))
    assert all(outcome.error is None for outcome in decision.outcomes)
    return after
