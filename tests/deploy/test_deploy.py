"""What ships beside the broker speaks of things that exist: metrics, settings, ports."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from broker.config import PEER_PORT, describe_settings, load
from broker.samples import ControllerSample, GroupSample, PartitionSample
from broker.telemetry import Metrics

DEPLOY = Path(__file__).parents[2] / "deploy"
# Labels that a scrape adds.
SCRAPE_LABELS = {"job", "instance", "le"}


@pytest.fixture
async def exposed() -> dict[str, set[str]]:
    """Every series that a node exposes, with its labels."""
    metrics = Metrics(version="1")
    metrics.topic("orders").published(1, 1)
    metrics.topic("orders").delivered(1, 1)
    metrics.publishes_refused.labels("DISK_FULL").inc()
    metrics.request("PublisherService/Publish", "OK", 0.001)
    metrics.fsync_seconds.labels("data").observe(0.001)
    metrics.set_sources(
        partitions=lambda: [PartitionSample("orders", 0, 0, 1, 1, 1, True, 1, 1)],
        groups=lambda: [GroupSample("billing", 1, (("orders", 1),))],
        controller=lambda: ControllerSample(active=True, offline_partitions=0, topics=1),
    )
    series: dict[str, set[str]] = {"up": set()}
    for family in text_string_to_metric_families((await metrics.exposition()).decode()):
        for sample in family.samples:
            series.setdefault(sample.name, set()).update(sample.labels)
    return series


def dashboard() -> Any:
    return json.loads((DEPLOY / "grafana" / "postbus.json").read_text())


def rules() -> list[Any]:
    groups = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def expressions() -> list[str]:
    panels = [target["expr"] for panel in dashboard()["panels"] for target in panel.get("targets", ())]
    return panels + [rule["expr"] for rule in rules()]


@pytest.mark.parametrize("expression", expressions())
def test_every_expression_asks_for_series_and_labels_that_exist(expression: str, exposed: dict[str, set[str]]) -> None:
    names = re.findall(r"\b(?:postbus|process|python)_\w+|\bup\b", expression)
    assert names
    # Linux alone tells of its processes.
    assert {name for name in names if not name.startswith("process_")} <= exposed.keys()
    labels = set(re.findall(r"(\w+)(?:=~|!=|=)\"", expression))
    for group in re.findall(r"(?:by|on) \(([^)]*)\)", expression):
        labels |= {label.strip() for label in group.split(",")}
    assert labels <= SCRAPE_LABELS.union(*(exposed.get(name, set()) for name in names))
    assert expression.count("(") == expression.count(")")
    assert expression.count("{") == expression.count("}")


def test_what_has_to_be_watched_has_an_alert() -> None:
    text = " ".join(rule["expr"] for rule in rules())
    for name in (
        "postbus_topic_partition_under_replicated",
        "postbus_controller_offline_partitions",
        "postbus_controller_active",
        "postbus_event_loop_lag_seconds_bucket",
        "postbus_group_lag",
        "postbus_fsync_duration_seconds_bucket",
        "postbus_disk_free_bytes",
    ):
        assert name in text


def test_every_alert_says_what_is_wrong_and_how_bad() -> None:
    for rule in rules():
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"].keys() == {"summary", "description"}


def test_panels_have_ids_of_their_own_and_do_not_overlap() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells


def test_image_and_compose_file_set_settings_that_exist() -> None:
    environment = dict(re.findall(r"\b(POSTBUS_\w+)=(\S+)", (DEPLOY / "Containerfile").read_text()))
    service = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["postbus"]
    environment |= service["environment"]
    names = {setting.env: setting.name for setting in describe_settings()}
    settings = load({names[variable]: value for variable, value in environment.items()})
    assert settings.host == "0.0.0.0"
    ports = {int(port.rpartition(":")[2]) for port in service["ports"]}
    assert ports == {settings.client_port, settings.http_port}
    exposed = re.search(r"^EXPOSE (.*)$", (DEPLOY / "Containerfile").read_text(), re.MULTILINE)
    assert exposed is not None
    assert {int(port) for port in exposed[1].split()} == ports | {PEER_PORT}
    assert f"data:{settings.data_dir}" in service["volumes"]


def test_the_compose_file_of_three_nodes_is_one_cluster() -> None:
    services = yaml.safe_load((DEPLOY / "compose-cluster.yaml").read_text())["services"]
    names = {setting.env: setting.name for setting in describe_settings()}
    image = dict(re.findall(r"\b(POSTBUS_\w+)=(\S+)", (DEPLOY / "Containerfile").read_text()))
    nodes = {
        name: load({names[variable]: str(value) for variable, value in {**image, **service["environment"]}.items()})
        for name, service in services.items()
    }
    assert len({node.peers for node in nodes.values()}) == 1 == len({node.cluster_id for node in nodes.values()})
    for name, node in nodes.items():
        assert node.peer_endpoint(7071) == f"{name}:7071" and node.advertised_endpoint == f"{name}:7070"
        assert node.peer_endpoints[node.node_id] == f"{name}:7071"
    published = [port for service in services.values() for port in service["ports"]]
    assert len(set(published)) == 6 and all(port.startswith("127.0.0.1:") for port in published)
    assert len({volume for service in services.values() for volume in service["volumes"]}) == 3


def test_the_configuration_files_of_three_nodes_are_one_cluster() -> None:
    nodes = [load({}, config_path=DEPLOY / "cluster" / f"node{number}.toml") for number in (1, 2, 3)]
    assert [node.node_id for node in nodes] == [1, 2, 3]
    assert len({node.peers for node in nodes}) == 1 == len({node.cluster_id for node in nodes})
    ports = [port for node in nodes for port in (node.client_port, node.peer_port_wanted, node.http_port)]
    assert len(set(ports)) == 9 and len({node.data_dir for node in nodes}) == 3


@pytest.mark.parametrize("file", ["compose.yaml", "compose-cluster.yaml"])
def test_a_container_has_time_to_stop(file: str) -> None:
    settings = load()
    for service in yaml.safe_load((DEPLOY / file).read_text())["services"].values():
        grace_seconds = float(service["stop_grace_period"].removesuffix("s"))
        steps = (settings.handover_timeout_seconds, settings.drain_grace_seconds, settings.shutdown_timeout_seconds)
        assert grace_seconds > sum(steps)
