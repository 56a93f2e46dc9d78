"""What `postbus dev` makes of what the nodes say."""

from fake_cluster import FakeCluster, State
from postbus.v1 import topic_pb2

from broker.cli.dev_view import Process, view

PROCESSES = {number: Process("running", f"localhost:{7060 + 10 * number}", 100 + number) for number in (1, 2, 3)}


def _described() -> list[topic_pb2.PartitionDescription]:
    partition = topic_pb2.PartitionDescription(partition=0, leader_node_id=1, high_watermark=90, log_start_offset=10)
    partition.replicas.add(node_id=1, end_offset=100)
    partition.replicas.add(node_id=2, end_offset=60)
    partition.replicas.add(node_id=3, unknown=True)
    return [partition]


def test_it_shows_leaders_in_sync_replicas_lag_and_the_controller() -> None:
    shown = view(PROCESSES, FakeCluster().metadata, {"orders": _described()})
    assert shown.controller == 1 and shown.complete and shown.answered
    assert [(node.role, node.leads, node.in_sync, node.holds, node.lag) for node in shown.nodes] == [
        ("controller", 2, 3, 3, 0),
        ("voter", 1, 3, 3, 40),
        ("voter", 0, 3, 3, None),
    ]
    (topic,) = shown.topics
    assert (topic.name, topic.leaders, topic.in_sync, topic.replicas) == ("orders", "1 2", 6, 6)
    assert (topic.records, topic.lag) == (80, 40)


def test_a_dead_process_says_so_whatever_the_cluster_thinks_of_it() -> None:
    metadata = FakeCluster().metadata
    processes = {**PROCESSES, 2: Process("dead", "localhost:7080", None)}
    shown = view(processes, metadata, {})
    assert shown.nodes[1].state == "dead" and not shown.complete
    metadata.nodes[2].state = State.NODE_STATE_FENCED
    assert view(processes, metadata, {}).nodes[2].state == "fenced"


def test_a_node_that_the_cluster_does_not_know_yet_is_joining() -> None:
    processes = {**PROCESSES, 4: Process("running", "localhost:7100", 104)}
    assert view(processes, FakeCluster().metadata, {}).nodes[3].state == "joining"


def test_while_nobody_answers_the_last_topics_stay() -> None:
    before = view(PROCESSES, FakeCluster().metadata, {"orders": _described()})
    shown = view(PROCESSES, None, {}, before=before)
    assert not shown.answered and not shown.complete
    assert shown.topics == before.topics
    assert shown.lines() == ["no node answers"]


def test_nodes_that_are_only_starting_need_not_answer() -> None:
    starting = {node_id: Process("starting", each.address, each.pid) for node_id, each in PROCESSES.items()}
    assert view(starting, None, {}).lines() == []


def test_a_partition_without_a_leader_is_seen() -> None:
    metadata = FakeCluster().metadata
    metadata.topics[0].partitions[1].ClearField("leader_node_id")
    metadata.topics[0].partitions[1].isr_node_ids[:] = [2]
    shown = view(PROCESSES, metadata, {})
    assert "topic orders: leaders 1 -, 4 of 6 replicas in sync" in shown.lines()


def test_lines_do_not_change_with_every_record() -> None:
    lines = view(PROCESSES, FakeCluster().metadata, {}).lines()
    assert view(PROCESSES, FakeCluster().metadata, {"orders": _described()}).lines() == lines


def test_many_partitions_and_topics_stay_readable() -> None:
    metadata = FakeCluster().metadata
    for number in range(2, 100):
        metadata.topics[0].partitions.add(partition=number, leader_node_id=1)
    for number in range(30):
        metadata.topics.add(name=f"t{number:02}")
    shown = view(PROCESSES, metadata, {})
    assert shown.topics[0].leaders == "1 2" + " 1" * 10 + " and 88 more"
    assert (len(shown.topics), shown.topics_hidden) == (20, 11)
