"""What ships beside the broker speaks of things that exist: settings, ports."""

import re
from pathlib import Path

import pytest
import yaml

from broker.config import PEER_PORT, describe_settings, load

DEPLOY = Path(__file__).parents[2] / "deploy"


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
