"""`postbus cluster` and `topic describe` against three nodes that only answer."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from fake_cluster import FakeCluster, State, refused
from google.protobuf.json_format import MessageToDict
from postbus.v1 import cluster_pb2


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    """All is well in it."""
    fake = FakeCluster()
    fake.start()
    yield fake
    fake.stop()


@pytest.fixture
def run(cluster: FakeCluster, inside_of: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The command, against it."""
    monkeypatch.setattr("broker.cli.cluster.HEALTH_TIMEOUT_SECONDS", 0.2)
    return inside_of(cluster.address)


# --- health ------------------------------------------------------------------------------------------------------


def test_a_cluster_without_a_fault_is_well(run: Any) -> None:
    done = run("cluster", "health")
    assert (done.code, done.err) == (0, "")
    assert "well" in done.out and "3 of 3 at work" in done.out
    assert run.json("cluster", "health") == yaml.safe_load(run.ok("cluster", "health", "-o", "yaml"))


def _dead_node(cluster: FakeCluster) -> None:
    cluster.metadata.nodes[1].state = State.NODE_STATE_FENCED


def _lagging(cluster: FakeCluster) -> None:
    cluster.partition("orders", 1).isr_node_ids.remove(1)


def _silent_voter(cluster: FakeCluster) -> None:
    cluster.quorum.members[2].silence.FromSeconds(20)


def _offline(cluster: FakeCluster) -> None:
    cluster.partition("orders", 0).ClearField("leader_node_id")


def _below_minimum(cluster: FakeCluster) -> None:
    cluster.partition("__groups", 0).isr_node_ids[:] = [1]


def _no_controller(cluster: FakeCluster) -> None:
    cluster.metadata.ClearField("controller_node_id")
    cluster.quorum.Clear()


def _no_quorum(cluster: FakeCluster) -> None:
    cluster.metadata.ClearField("controller_node_id")
    cluster.quorum.ClearField("leader_node_id")
    for member in cluster.quorum.members:
        member.ClearField("silence")
        if member.node_id != 1:
            member.silence.FromSeconds(2)


def _draining(cluster: FakeCluster) -> None:
    cluster.metadata.nodes[2].state = State.NODE_STATE_DRAINING


@pytest.mark.parametrize(
    ("fault", "code", "says"),
    [
        (_dead_node, 1, "1 node is not at work (starting, silent or dead): node 2 (bus-2:7070)"),
        (_draining, 1, "1 node is being drained: node 3"),
        (_lagging, 1, "1 partition has replicas that are not in sync: orders/1"),
        (_silent_voter, 1, "1 of 3 voters say nothing: node 3"),
        (_offline, 4, "1 partition has no leader: orders/0"),
        (_below_minimum, 4, "1 partition has too few in-sync replicas to publish: __groups/0"),
        (_no_controller, 4, "there is no controller"),
        (_no_quorum, 4, "2 of 3 controllers unreachable: node 2 (bus-2:7070), node 3 (bus-3:7070)"),
    ],
)
def test_each_fault_is_named_and_has_its_exit_code(
    run: Any, cluster: FakeCluster, fault: Any, code: int, says: str
) -> None:
    fault(cluster)
    done = run("cluster", "health")
    assert done.code == code
    assert says in done.out
    status = json.loads(run("cluster", "health", "-o", "json").out)["status"]
    assert status == {1: "degraded", 4: "down"}[code]


def test_the_worst_fault_comes_first_and_decides(run: Any, cluster: FakeCluster) -> None:
    for fault in (_dead_node, _offline, _lagging):
        fault(cluster)
    done = run("cluster", "health", "-o", "json")
    assert done.code == 4
    assert [each["level"] for each in json.loads(done.out)["findings"]] == ["down", "degraded", "degraded"]


def test_many_partitions_with_the_same_fault_are_a_line(run: Any, cluster: FakeCluster) -> None:
    (orders, _) = cluster.metadata.topics
    for number in range(2, 50):
        orders.partitions.add(partition=number, replica_node_ids=[1, 2, 3])
    assert (
        "48 partitions have no leader: orders/2, orders/3, orders/4, orders/5, orders/6 and 43 more"
        in run("cluster", "health").out
    )
    found = json.loads(run("cluster", "health", "-o", "json").out)["findings"]
    assert len(found[0]["subjects"]) == 48


def test_a_node_that_waits_for_the_others_is_told_at_once_with_its_reason(run: Any, cluster: FakeCluster) -> None:
    cluster.starting = "1 of 3 controllers unreachable: 3 (bus-3:7071)"
    done = run("cluster", "health")  # the time that it has is 0.2 s here
    assert done.code == 4 and "unreachable: 3 (bus-3:7071)" in done.err


def test_no_node_that_answers_is_an_exit_code_of_its_own(inside_of: Any) -> None:
    done = inside_of("127.0.0.1:1")("cluster", "health")
    assert (done.code, done.out) == (4, "")


# --- looking -----------------------------------------------------------------------------------------------------


def test_info_shows_what_each_node_has(run: Any) -> None:
    rows = [line.split() for line in run.ok("cluster", "info").splitlines() if "bus-" in line]
    # node, endpoint, state, voter, leads, holds: orders/0 and __groups/0 are led by 1, orders/1 by 2.
    assert [row[:6] for row in rows] == [
        ["1", "bus-1:7070", "active", "yes", "2", "3"],
        ["2", "bus-2:7070", "active", "yes", "1", "3"],
        ["3", "bus-3:7070", "active", "yes", "0", "3"],
    ]


def test_quorum_shows_who_votes_and_who_is_behind(run: Any) -> None:
    text = run.ok("cluster", "quorum")
    rows = [line.split()[:4] for line in text.splitlines() if "ago" in line]
    assert rows == [
        ["1", "leader", "120", "0"],
        ["2", "voter", "118", "2"],
        ["3", "voter", "120", "0"],
        ["4", "observer", "20", "100"],
    ]
    assert run.json("cluster", "quorum")["members"][0]["silence"] == 0.1


def test_topic_describe_shows_every_replica(run: Any) -> None:
    text = run.ok("topic", "describe", "orders")
    lines = [line.split() for line in text.splitlines()]
    assert ["0", "1", "4", "1,2,3,4", "1,2", "3", "10", "90", "80", "2.0", "KiB"] in lines
    assert ["1", "none", "9", "2", "-", "0", "0", "0", "0", "B"] in lines  # nobody is in sync: that column is empty
    assert ["0", "1", "leader,", "in", "sync", "100", "95", "0"] in lines
    assert ["0", "2", "in", "sync", "90", "90", "10"] in lines
    assert ["0", "3", "eligible", "unknown", "unknown"] in lines
    assert ["0", "4", "moving", "40", "40", "60"] in lines
    described = run.json("topic", "describe", "orders")
    assert described["partitions"][0]["replicas"][2]["unknown"] is True


def test_topic_create_says_how_many_replicas_and_what_stays(run: Any, cluster: FakeCluster) -> None:
    run.ok("topic", "create", "o", "--replication-factor", "2", "--cleanup-policy", "compact-and-delete")
    (request,) = cluster.asked
    assert request.replication_factor == 2
    assert MessageToDict(request.config) == {"cleanupPolicy": "CLEANUP_POLICY_COMPACT_AND_DELETE"}
    assert run("topic", "create", "o", "--cleanup-policy", "burn").code == 2


# --- changing ----------------------------------------------------------------------------------------------------


def test_drain_waits_until_the_node_leads_nothing(
    run: Any, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.cli.cluster_changes.LOOK_AGAIN_SECONDS", 0)
    done = run("cluster", "drain", "2")
    assert (done.code, done.out) == (0, "drained node 2: it leads 0 partitions and holds 3 replicas\n")
    assert done.err.splitlines() == ["node 2 leads 4, holds 9 replicas", "node 2 leads 1, holds 9 replicas"]
    assert {request.move_replicas for request in cluster.asked} == {False}


def test_drain_of_replicas_waits_for_them_too(run: Any, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.cli.cluster_changes.LOOK_AGAIN_SECONDS", 0)
    assert "holds 0 replicas" in run.ok("cluster", "drain", "2", "--move-replicas")
    assert [request.move_replicas for request in cluster.asked] == [True] * 4


def test_drain_that_takes_too_long_says_so_and_goes_on(run: Any, cluster: FakeCluster) -> None:
    done = run("cluster", "drain", "2", "--timeout", "0")
    assert done.code == 4
    assert "not drained within 0; it goes on" in done.err
    assert run("cluster", "drain", "2", "--no-wait").code == 0


def test_changes_ask_for_what_was_said(run: Any, cluster: FakeCluster) -> None:
    for arguments, request in (
        (("undrain", "2"), cluster_pb2.UndrainNodeRequest(node_id=2)),
        (("add-voter", "4"), cluster_pb2.AddVoterRequest(node_id=4)),
        (("remove-voter", "3"), cluster_pb2.RemoveVoterRequest(node_id=3)),
        (("remove-node", "3", "--yes"), cluster_pb2.RemoveNodeRequest(node_id=3)),
    ):
        assert run.ok("cluster", *arguments)
        assert cluster.asked.pop() == request


def test_what_can_not_be_taken_back_asks_first(run: Any, cluster: FakeCluster) -> None:
    for arguments in (("remove-node", "3"), ("elect", "orders/0", "--unclean"), ("elect", "--unclean", "--yes")):
        assert run("cluster", *arguments).code == 2
    assert cluster.asked == []


def test_elect_tells_which_partitions_it_failed_for(run: Any, cluster: FakeCluster) -> None:
    assert run.ok("cluster", "elect") == "elected: 2 partitions\n"
    cluster.failing["orders", 1] = refused("nobody is in sync")
    done = run("cluster", "elect", "orders/0", "orders/1")
    assert done.code == 1
    assert "elected: 1 partition" in done.out and "orders/1   nobody is in sync" in done.out
    assert [(each.topic, each.partition) for each in cluster.asked[-1].partitions] == [("orders", 0), ("orders", 1)]
    data = json.loads(run("cluster", "elect", "orders/1", "-o", "json").out)
    assert data == [{"topic": "orders", "partition": 1, "failure": "nobody is in sync"}]


def test_reassign_moves_where_it_was_told_to(run: Any, cluster: FakeCluster) -> None:
    run.ok("cluster", "reassign", "orders/0=3,1,2", "orders/1=1", "--throttle", "2MiB", "--dry-run")
    (request,) = cluster.asked
    assert [(each.partition.partition, list(each.replica_node_ids)) for each in request.reassignments] == [
        (0, [3, 1, 2]),
        (1, [1]),
    ]
    assert (request.throttle_bytes_per_second, request.validate_only) == (2 * 2**20, True)


@pytest.mark.parametrize("wrong", [(), ("orders=1",), ("orders/0=1,x",), ("orders/0=",), ("orders/x=1",)])
def test_reassign_refuses_what_it_does_not_understand(run: Any, cluster: FakeCluster, wrong: tuple[str, ...]) -> None:
    assert run("cluster", "reassign", *wrong).code == 2
    assert cluster.asked == []


def test_a_plan_can_be_shown_kept_and_carried_out(run: Any, cluster: FakeCluster, tmp_path: Path) -> None:
    move = cluster_pb2.PlannedMove(old_replica_node_ids=[1, 2, 3], new_replica_node_ids=[4, 2, 3], size_bytes=2**20)
    move.partition.topic, move.partition.partition = "orders", 0
    swap = cluster_pb2.PlannedMove(old_replica_node_ids=[1, 2], new_replica_node_ids=[2, 1])
    swap.partition.topic, swap.partition.partition = "orders", 1
    cluster.moves = [move, swap]
    shown = run.ok("cluster", "rebalance", "--dry-run", "--raise-replication")
    assert "orders/0   1,2,3     4,2,3  1.0 MiB" in shown and "leader only" in shown
    assert "would move 2 partitions, 1 replica to copy" in shown
    assert cluster.asked[-1].validate_only and cluster.asked[-1].raise_replication
    plan = tmp_path / "plan.json"
    plan.write_text(run.ok("cluster", "rebalance", "--dry-run", "-o", "json"))
    run.ok("cluster", "reassign", "--plan", str(plan))
    assert [list(each.replica_node_ids) for each in cluster.asked[-1].reassignments] == [[4, 2, 3], [2, 1]]
    for text in ("[{}]", "{", '{"a": 1}'):
        plan.write_text(text)
        assert run("cluster", "reassign", "--plan", str(plan)).code == 2
    cluster.moves = []
    assert run.ok("cluster", "rebalance") == "all nodes have their share\n"


def test_moves_under_way_are_shown_and_cancelled(run: Any, cluster: FakeCluster) -> None:
    assert run.ok("cluster", "reassignments") == "nothing moves\n"
    progress = cluster_pb2.ReassignmentProgress(adding_node_ids=[4], removing_node_ids=[1], lag=1234)
    progress.target.partition.topic, progress.target.partition.partition = "orders", 0
    progress.target.replica_node_ids[:] = [4, 2, 3]
    cluster.under_way = [progress]
    assert ["orders/0", "4,2,3", "4", "1", "1234"] in [
        line.split() for line in run.ok("cluster", "reassignments").splitlines()
    ]
    assert run.ok("cluster", "cancel", "orders/0") == "cancelled: 1 partition\n"


def test_a_refusal_is_one_line(run: Any, cluster: FakeCluster) -> None:
    cluster.refusal = refused("node 3 is the last voter")
    done = run("cluster", "remove-voter", "3")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("postbus: node 3 is the last voter") and done.err.count("\n") == 1
