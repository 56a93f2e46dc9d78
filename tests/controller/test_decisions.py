"""What may be done to the cluster, as tables: a command on an image gives records, or an error that names the field."""

from typing import Any

import pytest
from google.protobuf import duration_pb2
from images import NOW_US, RULES, create, joined, partition, run, step
from postbus.v1 import error_pb2, topic_pb2

from broker.controller import image
from broker.controller.commands import (
    AddPartitions,
    AdoptLogs,
    Command,
    CreateCluster,
    DeleteTopic,
    FenceNodes,
    RaiseProducerEpoch,
    ReserveProducerIds,
    Rules,
    UpdateTopic,
)
from broker.controller.decisions import LABELS_BYTES_MAX, LABELS_MAX, decide
from broker.controller.state import ClusterState
from broker.controller.topic_config import TopicConfig, TopicDefaults
from broker.errors import PostbusError

ONE = joined(1)
THREE = joined(1, 2, 3)


def refusal(state: ClusterState, command: Command, *, rules: Rules = RULES) -> PostbusError:
    with pytest.raises(PostbusError) as refused:
        decide(state, command, rules=rules)
    return refused.value


def seconds(value: float) -> duration_pb2.Duration:
    whole = int(value)
    return duration_pb2.Duration(seconds=whole, nanos=round((value - whole) * 1e9))


ORDERS = run(ONE, create())


class TestCluster:
    def test_a_cluster_begins_once(self) -> None:
        state = run(ClusterState(), CreateCluster(cluster_id="c1", now_us=NOW_US))
        assert (state.cluster_id, state.create_time_us, state.index) == ("c1", NOW_US, 1)
        assert decide(state, CreateCluster(cluster_id="c2", now_us=NOW_US), rules=RULES).records == []


class TestCreateTopic:
    def test_what_is_not_said_is_the_default(self) -> None:
        topic = ORDERS.topics["orders"]
        assert topic.log_ids == (1, 2, 3, 4, 5, 6)
        assert (topic.replication_factor, topic.create_time_us, topic.internal) == (1, NOW_US, False)
        assert ORDERS.partition_count == 6

    @pytest.mark.parametrize(("node_count", "factor"), [(1, 1), (2, 2), (3, 3), (5, 3)])
    def test_by_default_there_are_three_copies_or_as_many_as_nodes(self, node_count: int, factor: int) -> None:
        state = run(joined(*range(1, node_count + 1)), create())
        assert state.topics["orders"].replication_factor == factor

    def test_a_topic_is_not_made_with_fewer_copies_because_nodes_are_late(self) -> None:
        """While a cluster starts, not all of its nodes have registered."""
        rules = Rules(expected_nodes=3)
        for state in (ONE, joined(1, 2), ClusterState()):
            for factor in (0, 3):
                error = refusal(state, create(replication_factor=factor), rules=rules)
                assert (error.reason, error.kind.retriable) == (error_pb2.ERROR_REASON_NOT_ENOUGH_REPLICAS, True)
        assert run(ONE, create(replication_factor=1), rules=rules).topics

    def test_a_copy_may_be_on_a_node_that_is_away_but_then_it_is_not_in_sync(self) -> None:
        state = run(THREE, FenceNodes(node_ids=(2,)), create(partition_count=3))
        for state_of_one in state.topics["orders"].partitions:
            assert sorted(state_of_one.replicas) == [1, 2, 3]
            assert sorted(state_of_one.isr) == [1, 3]
            assert state_of_one.leader == state_of_one.replicas[0] in (1, 3)

    def test_without_any_node_at_work_there_is_no_topic(self) -> None:
        state = run(ONE, FenceNodes(node_ids=(1,)))
        assert refusal(state, create()).reason == error_pb2.ERROR_REASON_NOT_ENOUGH_REPLICAS

    def test_asked_for_again_after_a_failover_it_is_there(self) -> None:
        assert decide(ORDERS, create(), rules=RULES).records == []

    def test_what_is_said_holds(self) -> None:
        config = TopicConfig(retention_bytes=5)
        state = run(ONE, create(partition_count=2, config=config, labels={"b": "2", "a": "1"}))
        topic = state.topics["orders"]
        assert (topic.partition_count, topic.labels) == (2, (("a", "1"), ("b", "2")))
        assert TopicConfig.FromString(topic.config) == config

    @pytest.mark.parametrize("name", ["a", "A.b_c-9", "...", "_x", "x" * 249])
    def test_names_that_topics_may_have(self, name: str) -> None:
        assert name in run(ONE, create(name)).topics

    @pytest.mark.parametrize(
        "name",
        ["", ".", "..", "a/b", "a b", "ä", "a\n", "\x00", "a\x7f", "orders\n", "x" * 250, "__groups", "__", "名"],
    )
    def test_names_that_topics_may_not_have(self, name: str) -> None:
        error = refusal(ONE, create(name))
        assert (error.reason, error.field) == (error_pb2.ERROR_REASON_INVALID_FIELD, "name")

    def test_the_broker_s_own_topics_have_its_names(self) -> None:
        state = run(ONE, create("__groups", internal=True))
        assert state.topics["__groups"].internal
        assert refusal(ONE, create("a/b", internal=True)).field == "name"

    def test_a_name_is_taken_once(self) -> None:
        error = refusal(ORDERS, create(topic_id="another"))
        assert (error.reason, error.resource) == (error_pb2.ERROR_REASON_EXISTS, ("topic", "orders"))

    def test_a_wrong_request_for_a_taken_name_is_told_what_is_wrong(self) -> None:
        """Whether a request is valid doesn't depend on what exists."""
        assert refusal(ORDERS, create(partition_count=-1)).field == "partition_count"

    @pytest.mark.parametrize("count", [-1, 1001, 2**31 - 1, -(2**31)])
    def test_partitions_are_1_to_1000(self, count: int) -> None:
        error = refusal(ONE, create(partition_count=count))
        assert (error.reason, error.field) == (error_pb2.ERROR_REASON_INVALID_FIELD, "partition_count")
        assert "1 to 1000" in error.message

    def test_a_node_has_so_many_partitions_and_no_more(self) -> None:
        rules = Rules(partitions_max=10)
        state = run(ONE, create("a", partition_count=6), rules=rules)
        error = refusal(state, create("b", partition_count=5), rules=rules)
        assert (error.reason, error.metadata["limit"]) == (error_pb2.ERROR_REASON_TOO_LARGE, "10")
        state = run(state, create("b", partition_count=4), rules=rules)
        state = run(state, DeleteTopic(name="a"), create("c", partition_count=6), rules=rules)
        assert state.partition_count == 10

    @pytest.mark.parametrize("factor", [2, 3, -1])
    def test_one_node_holds_one_copy(self, factor: int) -> None:
        error = refusal(ONE, create(replication_factor=factor))
        assert (error.reason, error.field) == (error_pb2.ERROR_REASON_INVALID_FIELD, "replication_factor")

    @pytest.mark.parametrize(
        ("labels", "reason"),
        [
            ({str(n): "" for n in range(LABELS_MAX + 1)}, error_pb2.ERROR_REASON_TOO_LARGE),
            ({"a": "x" * LABELS_BYTES_MAX}, error_pb2.ERROR_REASON_TOO_LARGE),
            ({"a": "ä" * (LABELS_BYTES_MAX // 2)}, error_pb2.ERROR_REASON_TOO_LARGE),
            ({"": "x"}, error_pb2.ERROR_REASON_INVALID_FIELD),
        ],
    )
    def test_labels_are_bounded(self, labels: dict[str, str], reason: int) -> None:
        error = refusal(ONE, create(labels=labels))
        assert (error.reason, error.field) == (reason, "labels")
        assert refusal(ORDERS, UpdateTopic(name="orders", paths=("labels",), labels=labels)).reason == reason


INVALID = error_pb2.ERROR_REASON_INVALID_FIELD
UNKNOWN = error_pb2.ERROR_REASON_UNKNOWN_FIELD
WRONG_CONFIGS: list[tuple[str, TopicConfig, int]] = [
    ("retention_time", TopicConfig(retention_time=seconds(-1)), INVALID),
    ("retention_time", TopicConfig(retention_time=duration_pb2.Duration(nanos=-1)), INVALID),
    ("retention_time", TopicConfig(retention_time=duration_pb2.Duration(seconds=1, nanos=-1)), INVALID),
    ("retention_time", TopicConfig(retention_time=duration_pb2.Duration(nanos=2_000_000_000)), INVALID),
    ("retention_time", TopicConfig(retention_time=duration_pb2.Duration(nanos=1)), INVALID),
    ("retention_time", TopicConfig(retention_time=duration_pb2.Duration(seconds=2**62)), INVALID),
    ("retention_bytes", TopicConfig(retention_bytes=-1), INVALID),
    ("cleanup_policy", TopicConfig(cleanup_policy=99), UNKNOWN),  # type: ignore[arg-type]
    ("min_insync_replicas", TopicConfig(min_insync_replicas=0), INVALID),
    ("min_insync_replicas", TopicConfig(min_insync_replicas=-1), INVALID),
    ("min_insync_replicas", TopicConfig(min_insync_replicas=2), INVALID),
    ("durability", TopicConfig(durability=99), UNKNOWN),  # type: ignore[arg-type]
    ("max_record_bytes", TopicConfig(max_record_bytes=0), INVALID),
    ("max_record_bytes", TopicConfig(max_record_bytes=2**20 + 1), INVALID),
    ("max_record_bytes", TopicConfig(max_record_bytes=2000, max_batch_bytes=1000), INVALID),
    ("max_batch_bytes", TopicConfig(max_batch_bytes=-5), INVALID),
    ("max_batch_bytes", TopicConfig(max_batch_bytes=3 * 2**20 + 1), INVALID),
    ("deduplication_window", TopicConfig(deduplication_window=seconds(-1)), INVALID),
    ("deduplication_window", TopicConfig(deduplication_window=seconds(8 * 86400)), INVALID),
]


class TestConfig:
    @pytest.mark.parametrize(("field", "config", "reason"), WRONG_CONFIGS)
    def test_what_can_not_hold_is_refused_by_name(self, field: str, config: TopicConfig, reason: int) -> None:
        """On creation and on update alike."""
        update = UpdateTopic(name="orders", paths=("config",), config=config)
        for state, command in ((ONE, create(config=config)), (ORDERS, update)):
            error = refusal(state, command)
            assert (error.reason, error.field) == (reason, f"config.{field}")

    @pytest.mark.parametrize(
        "config",
        [
            TopicConfig(),
            TopicConfig(retention_time=seconds(0), retention_bytes=0),
            TopicConfig(retention_time=seconds(0.001)),
            TopicConfig(retention_time=seconds(100 * 366 * 86400)),
            TopicConfig(cleanup_policy=topic_pb2.CLEANUP_POLICY_DELETE),
            TopicConfig(min_insync_replicas=1),
            TopicConfig(durability=topic_pb2.DURABILITY_REPLICATED),
            TopicConfig(max_batch_bytes=1000),
            TopicConfig(max_record_bytes=1000, max_batch_bytes=1000),
            TopicConfig(deduplication_window=seconds(0)),
            TopicConfig(unclean_leader_election=True),
            TopicConfig(cleanup_policy=topic_pb2.CLEANUP_POLICY_COMPACT),
            TopicConfig(cleanup_policy=topic_pb2.CLEANUP_POLICY_COMPACT_AND_DELETE),
        ],
    )
    def test_what_can_hold_is_taken(self, config: TopicConfig) -> None:
        assert run(ONE, create(config=config)).topics

    def test_in_sync_replicas_may_be_as_many_as_there_are_copies(self) -> None:
        config = TopicConfig(min_insync_replicas=3)
        assert run(THREE, create(config=config)).topics
        error = refusal(THREE, create(config=config, replication_factor=2))
        assert error.field == "config.min_insync_replicas"


class TestUpdateTopic:
    def update(self, *paths: str, **values: Any) -> UpdateTopic:
        return UpdateTopic(name="orders", paths=paths, **values)

    def test_only_what_the_mask_names_changes(self) -> None:
        before = run(ONE, create(config=TopicConfig(retention_bytes=5, min_insync_replicas=1), labels={"a": "1"}))
        config = TopicConfig(retention_bytes=7, max_batch_bytes=9)
        after = run(before, self.update("config.retention_bytes", config=config, labels={"b": "2"}))
        topic = after.topics["orders"]
        assert TopicConfig.FromString(topic.config) == TopicConfig(retention_bytes=7, min_insync_replicas=1)
        assert topic.labels == (("a", "1"),)
        topic = run(after, self.update("labels", labels={"b": "2"})).topics["orders"]
        assert topic.labels == (("b", "2"),)

    def test_a_named_field_that_is_unset_goes_back_to_the_default(self) -> None:
        config = TopicConfig(retention_time=seconds(5), retention_bytes=5)
        state = run(ONE, create(config=config), self.update("config.retention_time"))
        assert TopicConfig.FromString(state.topics["orders"].config) == TopicConfig(retention_bytes=5)

    def test_zero_is_a_value(self) -> None:
        state = run(ORDERS, self.update("config.retention_bytes", config=TopicConfig(retention_bytes=0)))
        assert TopicConfig.FromString(state.topics["orders"].config).HasField("retention_bytes")

    def test_the_whole_configuration_can_be_named(self) -> None:
        state = run(
            ONE,
            create(config=TopicConfig(retention_bytes=5)),
            self.update("config", config=TopicConfig(max_batch_bytes=9)),
        )
        assert TopicConfig.FromString(state.topics["orders"].config) == TopicConfig(max_batch_bytes=9)

    def test_a_change_that_changes_nothing_writes_nothing(self) -> None:
        assert decide(ORDERS, self.update("labels", "config.retention_time"), rules=RULES).records == []

    @pytest.mark.parametrize("path", ["", "name", "partition_count", "config.", "config.nothing", "labels.a", "etag"])
    def test_a_mask_that_names_something_else_is_refused(self, path: str) -> None:
        assert refusal(ORDERS, self.update("labels", path)).field == "update_mask"

    def test_a_mask_is_required(self) -> None:
        assert refusal(ORDERS, self.update()).field == "update_mask"

    def test_an_etag_protects_from_changes_by_others(self) -> None:
        etag = ORDERS.topics["orders"].etag
        changed = run(ORDERS, self.update("labels", labels={"a": "1"}, etag=etag))
        error = refusal(changed, self.update("labels", labels={"a": "2"}, etag=etag))
        assert error.reason == error_pb2.ERROR_REASON_PRECONDITION_NOT_MET
        assert error.metadata["etag"] == changed.topics["orders"].etag != etag


class TestAddPartitions:
    def test_new_partitions_have_new_logs(self) -> None:
        state = run(ORDERS, create("other", partition_count=1), AddPartitions(name="orders", partition_count=8))
        assert state.topics["orders"].log_ids == (1, 2, 3, 4, 5, 6, 8, 9)
        assert state.partition_count == 9

    def test_as_many_as_there_are_changes_nothing(self) -> None:
        assert decide(ORDERS, AddPartitions(name="orders", partition_count=6), rules=RULES).records == []

    @pytest.mark.parametrize("count", [5, 0, -1, 1001])
    def test_partitions_never_become_fewer_or_too_many(self, count: int) -> None:
        assert refusal(ORDERS, AddPartitions(name="orders", partition_count=count)).field == "partition_count"


class TestDeleteTopic:
    def test_a_topic_created_again_shares_nothing_with_the_one_before(self) -> None:
        state = run(ORDERS, DeleteTopic(name="orders"))
        assert (state.topics, state.topic_names, state.partition_count) == ({}, {}, 0)
        again = run(state, create(topic_id="another")).topics["orders"]
        assert again.log_ids == (7, 8, 9, 10, 11, 12)
        assert again.etag != ORDERS.topics["orders"].etag

    def test_only_the_topic_that_was_meant_is_deleted(self) -> None:
        error = refusal(ORDERS, DeleteTopic(name="orders", topic_id="another"))
        assert error.reason == error_pb2.ERROR_REASON_TOPIC_NOT_FOUND
        assert not run(ORDERS, DeleteTopic(name="orders", topic_id="id-of-orders")).topics


@pytest.mark.parametrize(
    "command",
    [
        UpdateTopic(name="nothing", paths=("labels",)),
        AddPartitions(name="nothing", partition_count=3),
        DeleteTopic(name="nothing"),
    ],
)
def test_what_does_not_exist_is_not_found(command: Command) -> None:
    error = refusal(ORDERS, command)
    assert (error.reason, error.resource) == (error_pb2.ERROR_REASON_TOPIC_NOT_FOUND, ("topic", "nothing"))


@pytest.mark.parametrize(
    "command",
    [
        UpdateTopic(name="__groups", paths=("labels",)),
        AddPartitions(name="__groups", partition_count=60),
        DeleteTopic(name="__groups"),
    ],
)
def test_requests_do_not_change_the_broker_s_own_topics(command: Command) -> None:
    state = run(ONE, create("__groups", internal=True))
    assert refusal(state, command).field == "name"


def test_blocks_of_producer_ids_never_overlap() -> None:
    first = run(ONE, ReserveProducerIds(count=1000))
    second = run(first, ReserveProducerIds(count=1000))
    assert (first.next_producer_id, second.next_producer_id) == (1001, 2001)


class TestProducerEpochs:
    IDS = run(ONE, ReserveProducerIds(count=9))

    def test_whoever_holds_the_latest_gets_the_next_and_fences_all_others(self) -> None:
        state = run(self.IDS, RaiseProducerEpoch(producer_id=5, epoch=0))
        assert state.producer_epochs == {5: 1}
        error = refusal(state, RaiseProducerEpoch(producer_id=5, epoch=0))
        assert (error.reason, error.metadata["producer_epoch"]) == (error_pb2.ERROR_REASON_PRODUCER_FENCED, "1")
        assert run(state, RaiseProducerEpoch(producer_id=5, epoch=1)).producer_epochs == {5: 2}

    @pytest.mark.parametrize(("producer_id", "epoch", "field"), [(0, 0, "id"), (10, 0, "id"), (5, 1, "epoch")])
    def test_what_was_never_given_out_is_refused(self, producer_id: int, epoch: int, field: str) -> None:
        assert refusal(self.IDS, RaiseProducerEpoch(producer_id=producer_id, epoch=epoch)).field == field

    def test_no_epoch_is_given_twice_though_few_are_remembered(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(image, "PRODUCER_EPOCHS_MAX", 2)
        state = self.IDS
        given: set[tuple[int, int]] = set()
        for producer_id in (1, 1, 2, 3, 4, 1, 5, 2, 6, 1):
            # Someone who holds an epoch from long ago, unless that is known to be fenced.
            held = state.producer_epochs.get(producer_id, 0)
            state = run(state, RaiseProducerEpoch(producer_id=producer_id, epoch=held))
            epoch = state.producer_epochs[producer_id]
            assert (producer_id, epoch) not in given
            given.add((producer_id, epoch))
            assert len(state.producer_epochs) <= 2


class TestMinInsyncReplicas:
    def test_nobody_stays_eligible_when_fewer_are_enough(self) -> None:
        """From then on records are acknowledged without them."""
        state = run(THREE, create(partition_count=1), FenceNodes(node_ids=(2, 3)))
        assert (partition(state).isr, sorted(partition(state).elr)) == ((1,), [2, 3])
        lower = UpdateTopic(name="orders", paths=("config",), config=TopicConfig(min_insync_replicas=1))
        assert partition(run(state, lower)).elr == ()

    def test_nobody_becomes_eligible_when_more_are_needed(self) -> None:
        state = run(THREE, create(partition_count=1), FenceNodes(node_ids=(2,)))
        higher = UpdateTopic(name="orders", paths=("config",), config=TopicConfig(min_insync_replicas=3))
        assert partition(run(state, higher)).elr == ()


def test_logs_that_were_found_become_topics_of_the_node_that_has_them() -> None:
    adopt = AdoptLogs(node_id=1, topic_ids={7: "seven"}, now_us=NOW_US)
    state = run(ONE, adopt)
    assert partition(state, topic="recovered-7").leader == 1
    assert state.next_log_id == 8
    later = run(run(ONE, FenceNodes(node_ids=(1,))), adopt)
    assert partition(later, topic="recovered-7").leader == 0
    assert partition(joined(1, state=later), topic="recovered-7").leader == 1


def test_deciding_changes_nothing() -> None:
    before, records = ORDERS, decide(ORDERS, DeleteTopic(name="orders"), rules=RULES).records
    assert records and "orders" in before.topics
    assert step(before, DeleteTopic(name="orders"))[0].topics == {}


def test_defaults_come_from_the_node_s_settings() -> None:
    rules = Rules(defaults=TopicDefaults(partition_count=2, batch_bytes_max=100, record_bytes_max=50))
    assert run(ONE, create(), rules=rules).topics["orders"].partition_count == 2
    error = refusal(ONE, create(config=TopicConfig(max_batch_bytes=101)), rules=rules)
    assert error.field == "config.max_batch_bytes"
    two_copies = Rules(defaults=TopicDefaults(replication_factor=2))
    assert run(THREE, create(), rules=two_copies).topics["orders"].replication_factor == 2
