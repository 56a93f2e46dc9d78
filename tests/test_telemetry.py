"""Logs in one format, and metrics under the names that dashboards use."""

import asyncio
import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog
from prometheus_client.parser import text_string_to_metric_families

from broker.clock import ManualClock
from broker.samples import ControllerSample, GroupSample, NodeSample, PartitionSample
from broker.telemetry import EventLoopLag, Metrics, configure_logging


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def _partition(**changes: object) -> PartitionSample:
    values: dict[str, object] = {
        "topic": "orders",
        "partition": 0,
        "log_start_offset": 3,
        "end_offset": 10,
        "high_watermark": 9,
        "size_bytes": 700,
        "leader": True,
        "in_sync_replicas": 1,
        "replicas": 1,
    }
    return PartitionSample(**(values | changes))  # type: ignore[arg-type]


async def _samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    text = (await metrics.exposition()).decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


class TestLogs:
    def test_json_is_one_object_a_line_with_the_documented_fields(self) -> None:
        stream = io.StringIO()
        configure_logging(level="info", log_format="json", node_id=4, stream=stream)
        structlog.get_logger().info("topic created", topic="orders", partitions=6)
        (line,) = stream.getvalue().splitlines()
        event = json.loads(line)
        assert event.pop("ts").endswith("Z")
        assert event == {"level": "info", "event": "topic created", "node_id": 4, "topic": "orders", "partitions": 6}

    def test_auto_is_json_where_nobody_looks(self) -> None:
        stream = io.StringIO()
        configure_logging(level="info", log_format="auto", node_id=1, stream=stream)
        structlog.get_logger().info("node ready")
        assert json.loads(stream.getvalue())["event"] == "node ready"

    def test_console_is_for_people(self) -> None:
        stream = io.StringIO()
        configure_logging(level="info", log_format="console", node_id=1, stream=stream)
        structlog.get_logger().info("node ready", duration_ms=3)
        assert "node ready" in stream.getvalue() and "duration_ms=3" in stream.getvalue()
        assert not stream.getvalue().startswith("{")

    def test_below_the_level_nothing_is_written(self) -> None:
        stream = io.StringIO()
        configure_logging(level="warning", log_format="json", node_id=1, stream=stream)
        structlog.get_logger().info("node ready")
        assert stream.getvalue() == ""

    def test_what_libraries_log_comes_in_the_same_format_with_its_traceback(self) -> None:
        stream = io.StringIO()
        configure_logging(level="info", log_format="json", node_id=1, stream=stream)
        try:
            raise RuntimeError("broken")
        except RuntimeError:
            logging.getLogger("asyncio").exception("task %s failed", "x")
        logging.getLogger("asyncio").info("chatter")
        (line,) = stream.getvalue().splitlines()
        event = json.loads(line)
        assert (event["event"], event["logger"], event["level"]) == ("task x failed", "asyncio", "error")
        assert "RuntimeError: broken" in event["exception"]


class TestMetrics:
    async def test_counters_of_a_topic_add_up_and_go_with_the_topic(self) -> None:
        metrics = Metrics(version="1")
        metrics.topic("orders").published(10, 1000)
        metrics.topic("orders").published(5, 500)
        metrics.topic("orders").delivered(7, 700)
        metrics.topic("other").published(1, 1)
        samples = await _samples(metrics)
        orders = (("topic", "orders"),)
        assert samples["postbus_records_published_total", orders] == 15
        assert samples["postbus_bytes_published_total", orders] == 1500
        assert samples["postbus_records_delivered_total", orders] == 7
        assert samples["postbus_bytes_delivered_total", orders] == 700
        metrics.forget_topic("orders")
        metrics.forget_topic("never seen")
        assert not [name for name, labels in await _samples(metrics) if labels == orders]
        assert (await _samples(metrics))["postbus_records_published_total", (("topic", "other"),)] == 1

    async def test_partitions_are_asked_at_scrape_time(self) -> None:
        metrics = Metrics(version="1")
        now = [_partition(), _partition(partition=1, leader=False, in_sync_replicas=2, replicas=3)]
        metrics.set_sources(partitions=lambda: now)
        samples = await _samples(metrics)
        first, second = ((("partition", number), ("topic", "orders")) for number in "01")
        assert samples["postbus_topic_partition_start_offset", first] == 3
        assert samples["postbus_topic_partition_end_offset", first] == 10
        assert samples["postbus_topic_partition_high_watermark", first] == 9
        assert samples["postbus_topic_partition_size_bytes", first] == 700
        assert samples["postbus_topic_partition_leader", first] == 1
        assert samples["postbus_topic_partition_under_replicated", first] == 0
        assert samples["postbus_topic_partition_leader", second] == 0
        assert samples["postbus_topic_partition_in_sync_replicas", second] == 2
        assert samples["postbus_topic_partition_under_replicated", second] == 1
        now.clear()
        assert ("postbus_topic_partition_end_offset", first) not in await _samples(metrics)

    async def test_series_of_partitions_can_be_switched_off(self) -> None:
        metrics = Metrics(version="1", per_partition=False)
        metrics.set_sources(partitions=lambda: [_partition()])
        assert not [name for name, _ in await _samples(metrics) if "partition_" in name]

    async def test_lag_is_by_group_and_topic(self) -> None:
        metrics = Metrics(version="1")
        metrics.set_sources(groups=lambda: [GroupSample("billing", 3, (("orders", 12), ("refunds", 0)))])
        samples = await _samples(metrics)
        assert samples["postbus_group_members", (("group", "billing"),)] == 3
        assert samples["postbus_group_lag", (("group", "billing"), ("topic", "orders"))] == 12
        assert samples["postbus_group_lag", (("group", "billing"), ("topic", "refunds"))] == 0

    async def test_the_controller_says_whether_it_is_active(self) -> None:
        metrics = Metrics(version="1")
        assert ("postbus_controller_active", ()) not in await _samples(metrics)
        metrics.set_sources(controller=lambda: ControllerSample(active=True, offline_partitions=2, topics=5))
        samples = await _samples(metrics)
        assert samples["postbus_controller_active", ()] == 1
        assert samples["postbus_controller_offline_partitions", ()] == 2
        assert samples["postbus_controller_topics", ()] == 5

    async def test_requests_are_timed_by_rpc_and_code(self) -> None:
        metrics = Metrics(version="1")
        for seconds in (0.001, 0.2):
            metrics.request("PublisherService/Publish", "OK", seconds)
        metrics.request("PublisherService/Publish", "NOT_FOUND", 0.001)
        samples = await _samples(metrics)
        ok = (("code", "OK"), ("rpc", "PublisherService/Publish"))
        assert samples["postbus_request_duration_seconds_count", ok] == 2
        assert samples["postbus_request_duration_seconds_sum", ok] == pytest.approx(0.201)
        assert samples["postbus_request_duration_seconds_bucket", (*ok[:1], ("le", "0.005"), *ok[1:])] == 1

    async def test_what_may_never_happen_is_counted_from_zero(self) -> None:
        """A series that begins with its first event would show no increase by it."""
        metrics = Metrics(version="1")
        samples = await _samples(metrics)
        assert samples["postbus_requests_failed_total", (("code", "DATA_LOSS"),)] == 0
        assert samples["postbus_publishes_refused_total", (("reason", "DISK_FULL"),)] == 0
        assert samples["postbus_isr_changes_total", (("kind", "shrink"),)] == 0
        assert samples["postbus_unclean_elections_total", ()] == samples["postbus_log_damages_total", ()] == 0
        assert samples["postbus_fsync_duration_seconds_count", (("database", "meta"),)] == 0

    async def test_failures_are_counted_by_code_and_refused_publishes_by_reason(self) -> None:
        metrics = Metrics(version="1")
        metrics.request_failed("PublisherService/PublishStream", "RESOURCE_EXHAUSTED", "DISK_FULL")
        metrics.request_failed("SubscriberService/Subscribe", "DATA_LOSS", "LOG_CORRUPT")
        metrics.request_failed("PublisherService/Publish", "CANCELLED")
        samples = await _samples(metrics)
        for code in ("RESOURCE_EXHAUSTED", "DATA_LOSS", "CANCELLED"):
            assert samples["postbus_requests_failed_total", (("code", code),)] == 1
        assert samples["postbus_publishes_refused_total", (("reason", "DISK_FULL"),)] == 1
        assert samples["postbus_publishes_refused_total", (("reason", "LOG_CORRUPT"),)] == 0

    async def test_the_cluster_is_shown_by_node(self) -> None:
        metrics = Metrics(version="1")
        sample = ControllerSample(
            active=False,
            nodes=(NodeSample(1, fenced=False, draining=False), NodeSample(2, fenced=True, draining=True)),
            follower_lags=((2, 40),),
            peers=((2, False),),
        )
        metrics.set_sources(controller=lambda: sample)
        samples = await _samples(metrics)
        one, two = (("node_id", "1"),), (("node_id", "2"),)
        assert (samples["postbus_node_fenced", one], samples["postbus_node_fenced", two]) == (0, 1)
        assert samples["postbus_node_draining", two] == 1
        assert samples["postbus_follower_lag", two] == 40
        assert samples["postbus_peer_connected", two] == 0

    async def test_label_values_are_escaped(self) -> None:
        metrics = Metrics(version='1"\n')
        assert (await _samples(metrics))["postbus_build_info", (("version", '1"\n'),)] == 1

    async def test_two_nodes_in_one_process_do_not_meet(self) -> None:
        one, other = Metrics(version="1"), Metrics(version="1")
        one.subscriptions_open.inc()
        assert (await _samples(one))["postbus_subscriptions_open", ()] == 1
        assert (await _samples(other))["postbus_subscriptions_open", ()] == 0

    async def test_every_name_has_the_prefix_and_a_help_text(self) -> None:
        metrics = Metrics(version="1")
        metrics.set_sources(
            partitions=lambda: [_partition()],
            groups=lambda: [GroupSample("g", 1, (("t", 1),))],
            controller=lambda: ControllerSample(active=True, offline_partitions=0, topics=1),
        )
        families = list(text_string_to_metric_families((await metrics.exposition()).decode()))
        assert len({family.name for family in families}) == len(families)
        for family in families:
            assert family.name.startswith(("postbus_", "process_", "python_")), family.name
            assert family.documentation


async def test_the_loop_s_lag_is_what_passed_beyond_the_interval() -> None:
    """A loop that was held up for 300 ms shows as one sample of 300 ms."""
    metrics = Metrics(version="1")
    clock = ManualClock()
    sampled = asyncio.Event()
    rounds = 0

    async def sleep(seconds: float) -> None:
        nonlocal rounds
        rounds += 1
        if rounds > 1:
            sampled.set()
            await asyncio.Event().wait()
        clock.advance(seconds + 0.3)

    lag = EventLoopLag(metrics, clock=clock, sleep=sleep)
    lag.start()
    await sampled.wait()
    await lag.stop()
    await lag.stop()
    samples = await _samples(metrics)
    assert samples["postbus_event_loop_lag_seconds_count", ()] == 1
    assert samples["postbus_event_loop_lag_seconds_sum", ()] == pytest.approx(0.3)
