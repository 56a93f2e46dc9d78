"""What `postbus dev` keeps, and which ports it takes."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.cli import dev_folder
from broker.cli.dev_folder import DevError, Ports, hold, plan
from broker.config import load


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Ports that others have; nothing else on this machine counts."""
    ports: set[int] = set()
    monkeypatch.setattr(dev_folder, "_is_free", lambda port: port not in ports)
    return ports


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """On a port of its own."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield listening


def test_the_first_start_takes_the_usual_ports(tmp_path: Path, taken: set[int]) -> None:
    planned = plan(tmp_path / "c", nodes=3, client_port=None)
    assert planned.ports == {1: Ports(7070, 7071, 7072), 2: Ports(7080, 7081, 7082), 3: Ports(7090, 7091, 7092)}
    assert planned.addresses == ["localhost:7070", "localhost:7080", "localhost:7090"]
    assert planned.created and planned.founders == 3


def test_where_others_have_them_it_takes_the_next_ones(tmp_path: Path, taken: set[int]) -> None:
    taken.add(7081)
    assert plan(tmp_path, nodes=3, client_port=None).ports[1].client == 7170
    assert plan(tmp_path / "2", nodes=1, client_port=None).ports[1].client == 7070


def test_the_next_start_is_the_same_cluster(tmp_path: Path, taken: set[int]) -> None:
    first = plan(tmp_path, nodes=3, client_port=8000)
    again = plan(tmp_path, nodes=3, client_port=None)
    assert (again.cluster_id, again.ports, again.founders) == (first.cluster_id, first.ports, 3)
    assert not again.created
    assert plan(tmp_path, nodes=3, client_port=9000).ports[3].client == 9020
    assert plan(tmp_path, nodes=3, client_port=None).ports[3].client == 9020


def test_a_fourth_node_joins_those_that_founded_it(tmp_path: Path, taken: set[int]) -> None:
    plan(tmp_path, nodes=3, client_port=None)
    four = plan(tmp_path, nodes=4, client_port=None)
    assert four.ports[4] == Ports(7100, 7101, 7102) and four.founders == 3
    flags = four.flags(4)
    assert flags[flags.index("--peers") + 1] == "1@127.0.0.1:7071,2@127.0.0.1:7081,3@127.0.0.1:7091"
    assert set(plan(tmp_path, nodes=3, client_port=None).ports) == {1, 2, 3}


def test_its_flags_are_settings_that_work_together(tmp_path: Path, taken: set[int]) -> None:
    planned = plan(tmp_path, nodes=2, client_port=None)
    for node_id in (1, 2):
        flags = planned.flags(node_id)
        pairs = zip(flags[::2], flags[1::2], strict=True)
        settings = load({name.removeprefix("--").replace("-", "_"): value for name, value in pairs})
        assert settings.peer_endpoint(1) == f"127.0.0.1:{planned.ports[node_id].peer}"


def test_a_folder_is_held_by_one(tmp_path: Path) -> None:
    descriptor = hold(tmp_path / "c")
    with pytest.raises(DevError, match="runs already"):
        hold(tmp_path / "c")
    os.close(descriptor)
    os.close(hold(tmp_path / "c"))


def test_free_ports_differ_and_are_kept(tmp_path: Path) -> None:
    planned = plan(tmp_path, nodes=4, client_port=0)
    ports = [port for each in planned.ports.values() for port in (each.client, each.peer, each.http)]
    assert len(set(ports)) == 12
    assert plan(tmp_path, nodes=5, client_port=None).ports.items() > planned.ports.items()


def test_a_port_that_is_taken_is_named_with_its_node(tmp_path: Path, listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    with pytest.raises(DevError, match=rf"port {port}, for node 1, is taken"):
        plan(tmp_path, nodes=1, client_port=port - 1 if port % 2 else port)


@pytest.mark.parametrize(
    ("nodes", "client_port", "says"), [(2, None, "3 nodes founded"), (3, 65530, "there is no port")]
)
def test_what_can_not_be_is_refused(
    tmp_path: Path, taken: set[int], nodes: int, client_port: int | None, says: str
) -> None:
    plan(tmp_path, nodes=3, client_port=None)
    with pytest.raises(DevError, match=says):
        plan(tmp_path, nodes=nodes, client_port=client_port)


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path, taken: set[int]) -> None:
    (tmp_path / "letters").write_text("dear")
    with pytest.raises(DevError, match="not empty"):
        plan(tmp_path, nodes=3, client_port=None)
    assert [each.name for each in tmp_path.iterdir()] == ["letters"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"cluster_id": "x"}', '{"cluster_id": 1, "founders": 1, "ports": 3}'])
def test_a_damaged_file_is_named(tmp_path: Path, taken: set[int], text: str) -> None:
    (tmp_path / "dev.json").write_text(text)
    with pytest.raises(DevError, match=r"dev\.json can't be understood"):
        plan(tmp_path, nodes=3, client_port=None)
