"""Compose files, the systemd unit and the configuration files start nodes that are what they say."""

import asyncio
import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from broker_process import BrokerProcess
from postbus.v1 import cluster_pb2, cluster_pb2_grpc
from programs import ROOT, tool

from broker.config import describe_settings, load

DEPLOY = ROOT / "deploy"
UNIT = DEPLOY / "systemd" / "postbus.service"
# What a unit of a network service that only needs its own folder can reach; 10 is no protection at all.
EXPOSURE_TENTHS_MAX = 15


def services(file: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((DEPLOY / file).read_text())["services"]
    return found


def settings_of(service: dict[str, Any]) -> Any:
    """As a node of the image has them."""
    names = {setting.env: setting.name for setting in describe_settings()}
    image = dict(re.findall(r"\b(POSTBUS_\w+)=(\S+)", (DEPLOY / "Containerfile").read_text()))
    environment = {**image, **service["environment"]}
    return load({names[variable]: str(value) for variable, value in environment.items()})


def stop_seconds() -> float:
    settings = load()
    return settings.handover_timeout_seconds + settings.drain_grace_seconds + settings.shutdown_timeout_seconds


# --- Compose ---


@pytest.mark.parametrize("file", ["compose.yaml", "compose-cluster.yaml"])
def test_compose_files_keep_to_the_specification(file: str) -> None:
    check = [tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", str(DEPLOY / file)]
    subprocess.run(check, check=True, timeout=60)


def test_the_compose_file_of_one_node_publishes_its_ports_and_keeps_its_data() -> None:
    service = services("compose.yaml")["postbus"]
    settings = settings_of(service)
    assert settings.host == "0.0.0.0"
    assert {int(port.rpartition(":")[2]) for port in service["ports"]} == {settings.client_port, settings.http_port}
    assert f"data:{settings.data_dir}" in service["volumes"]


def test_the_compose_file_of_three_nodes_is_one_cluster() -> None:
    nodes = {name: settings_of(service) for name, service in services("compose-cluster.yaml").items()}
    assert len({node.peers for node in nodes.values()}) == 1 == len({node.cluster_id for node in nodes.values()})
    for name, node in nodes.items():
        assert node.peer_endpoint(7071) == f"{name}:7071" and node.advertised_endpoint == f"{name}:7070"
        assert node.peer_endpoints[node.node_id] == f"{name}:7071"
    published = [port for service in services("compose-cluster.yaml").values() for port in service["ports"]]
    assert len(set(published)) == 6 and all(port.startswith("127.0.0.1:") for port in published)
    assert len({volume for service in services("compose-cluster.yaml").values() for volume in service["volumes"]}) == 3


@pytest.mark.parametrize("file", ["compose.yaml", "compose-cluster.yaml"])
def test_a_container_has_time_to_stop(file: str) -> None:
    for service in services(file).values():
        assert float(service["stop_grace_period"].removesuffix("s")) > stop_seconds()


@contextlib.asynccontextmanager
async def as_processes(folder: Path) -> AsyncIterator[dict[str, BrokerProcess]]:
    """The services of the Compose file with their environment, each on a loopback address in place of its name."""
    found = services("compose-cluster.yaml")
    addresses = {name: f"127.77.0.{number}" for number, name in enumerate(found, 1)}
    nodes: dict[str, BrokerProcess] = {}
    try:
        for name, service in found.items():
            node = nodes[name] = BrokerProcess(folder / name)
            for variable, value in service["environment"].items():
                node.environment[variable] = re.sub("|".join(addresses), lambda found: addresses[found[0]], str(value))
            node.environment["POSTBUS_HOST"] = addresses[name]
            node.port = 7070
            node.http_port = 7072
            await node.start(wait=False)
        for node in nodes.values():
            await node.until_ready()
        yield nodes
    finally:
        await asyncio.gather(*(node.close() for node in nodes.values()))


async def test_the_environment_of_the_compose_file_makes_three_nodes_one_cluster(tmp_path: Path) -> None:
    async with as_processes(tmp_path) as nodes:
        address = nodes["postbus-2"].environment["POSTBUS_ADVERTISED_ENDPOINT"]
        async with grpc.aio.insecure_channel(address) as channel:
            stub = cluster_pb2_grpc.ClusterServiceStub(channel)
            answer = await stub.GetMetadata(cluster_pb2.GetMetadataRequest(), timeout=30)
        assert answer.cluster_id == "compose"
        endpoints = {node.node_id: node.endpoint for node in answer.nodes}
        assert endpoints == {number: f"127.77.0.{number}:7070" for number in (1, 2, 3)}


# --- configuration files ---


def test_the_configuration_files_of_three_nodes_are_one_cluster() -> None:
    nodes = [load({}, config_path=DEPLOY / "cluster" / f"node{number}.toml") for number in (1, 2, 3)]
    assert [node.node_id for node in nodes] == [1, 2, 3]
    assert len({node.peers for node in nodes}) == 1 == len({node.cluster_id for node in nodes})
    ports = [port for node in nodes for port in (node.client_port, node.peer_port_wanted, node.http_port)]
    assert len(set(ports)) == 9 and len({node.data_dir for node in nodes}) == 3


# --- systemd ---


def unit(setting: str) -> str:
    found = re.findall(rf"^{setting}=(.*)$", UNIT.read_text(), re.MULTILINE)
    assert len(found) == 1, setting
    return str(found[0])


@pytest.fixture
def checkable(tmp_path: Path) -> Path:
    """The unit as systemd's own checks want it: with a program that exists."""
    program = tmp_path / "postbus"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace("/opt/postbus/bin/postbus", str(program)))
    return copy


def test_systemd_finds_nothing_wrong_with_the_unit(checkable: Path) -> None:
    verify = [tool("systemd-analyze"), "verify", "--man=no", str(checkable)]
    checked = subprocess.run(verify, capture_output=True, text=True, timeout=60, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")


def test_the_unit_is_hardened(checkable: Path) -> None:
    analyze = [tool("systemd-analyze"), "security", "--offline=true", "--no-pager"]
    rated = subprocess.run(
        [*analyze, f"--threshold={EXPOSURE_TENTHS_MAX}", str(checkable)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert rated.returncode == 0, rated.stdout


def test_systemd_gives_a_node_time_to_stop() -> None:
    assert float(unit("TimeoutStopSec")) > stop_seconds()


def test_the_command_of_the_unit_starts_a_node_from_its_configuration_file(tmp_path: Path) -> None:
    """As deploy/README.md writes the file, but for ports, and folders that belong to the test."""
    written = re.search(r"node\.toml[^\n]*\n(.*?)^EOF$", (DEPLOY / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert written is not None
    assert f'data_dir = "/var/lib/{unit("StateDirectory")}"' in written[1]
    config = tmp_path / "node.toml"
    data_dir = tmp_path / "data"
    config.write_text(
        written[1].replace("/var/lib/postbus", str(data_dir)).replace("0.0.0.0", "127.0.0.1")
        + "client_port = 0\nhttp_port = 0\n"
    )
    command = shlex.split(unit("ExecStart"))
    assert command[0] == "/opt/postbus/bin/postbus" and "/etc/postbus/node.toml" in command
    command[0] = str(Path(sys.executable).parent / "postbus")
    command[command.index("/etc/postbus/node.toml")] = str(config)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("POSTBUS_")}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, cwd=tmp_path) as node:
        try:
            assert node.stderr is not None
            ready = next(json.loads(line) for line in node.stderr if '"node_ready"' in line)
            assert ready["data"] == "new" and (data_dir / "FORMAT").exists()
            # MemoryDenyWriteExecute: nothing that it loaded wants memory that can be written and executed.
            assert " rwx" not in Path(f"/proc/{node.pid}/maps").read_text()
            node.send_signal(signal.SIGTERM)
            assert node.wait(60) == 0
        finally:
            node.kill()
