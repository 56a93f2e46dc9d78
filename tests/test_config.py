"""Settings: where they come from, which wins, and what is said when one is wrong."""

from pathlib import Path

import pytest

from broker import config


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for setting in config.describe_settings():
        monkeypatch.delenv(setting.env, raising=False)
    monkeypatch.delenv(config.CONFIG_ENV, raising=False)


def _file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "postbus.toml"
    path.write_text(text)
    return path


def test_without_anything_a_node_has_the_documented_defaults() -> None:
    settings = config.load()
    assert (settings.node_id, settings.host, settings.client_port, settings.http_port) == (1, "127.0.0.1", 7070, 7072)
    assert settings.data_dir == Path("postbus-data")
    assert (settings.record_bytes_max, settings.batch_bytes_max) == (2**20, 3 * 2**20)
    assert (settings.topic_partitions, settings.topic_retention_seconds) == (6, 7 * 86400)
    assert settings.topic_retention_bytes is None


def test_a_vanished_peer_is_found_within_20_s_by_default() -> None:
    settings = config.load()
    assert settings.keepalive_ping_seconds + settings.keepalive_timeout_seconds <= 20


def test_a_flag_wins_over_the_environment_that_over_the_file_that_over_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _file(tmp_path, 'client_port = 1\nhttp_port = 1\nrack = "file"\n')
    monkeypatch.setenv("POSTBUS_CLIENT_PORT", "2")
    monkeypatch.setenv("POSTBUS_HTTP_PORT", "2")
    settings = config.load({"client_port": "3", "rack": None}, config_path=path)
    assert (settings.client_port, settings.http_port, settings.rack, settings.node_id) == (3, 2, "file", 1)


def test_the_environment_can_name_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(config.CONFIG_ENV, str(_file(tmp_path, "node_id = 7")))
    assert config.load().node_id == 7


def test_an_empty_variable_is_as_good_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTBUS_NODE_ID", "")
    assert config.load().node_id == 1


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("tail_bytes_max", "16MiB", 16 * 2**20),
        ("tail_bytes_max", "1.5 mb", 1_500_000),
        ("tail_bytes_max", "123", 123),
        ("topic_retention_seconds", "2d", 172_800.0),
        ("topic_retention_seconds", "250ms", 0.25),
        ("topic_retention_seconds", "90", 90.0),
        ("topic_retention_seconds", "off", None),
        ("topic_retention_bytes", "10GiB", 10 * 2**30),
        ("topic_retention_bytes", "unlimited", None),
        ("http_port", "off", None),
        ("http_port", "0", 0),
        ("metrics_per_partition", "no", False),
        ("data_dir", "/var/lib/postbus", Path("/var/lib/postbus")),
    ],
)
def test_values_may_be_typed_with_units(name: str, text: str, value: object) -> None:
    assert getattr(config.load({name: text}), name) == value


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ({"node_id": "0"}, "node_id (from flag --node-id): input should be greater than or equal to 1, not '0'"),
        (
            {"client_port": "70000"},
            "client_port (from flag --client-port): input should be less than or equal to 65535",
        ),
        ({"tail_bytes_max": "5 parsecs"}, "tail_bytes_max (from flag --tail-bytes-max): should be a number, with"),
        ({"log_level": "loud"}, "log_level (from flag --log-level): input should be 'debug', 'info', 'warning'"),
        ({"advertised_endpoint": "bus"}, "advertised_endpoint (from flag --advertised-endpoint): should be host:port"),
        ({"host": " "}, "host (from flag --host): should be an address"),
        ({"topic_retention_seconds": "0"}, "topic_retention_seconds (from flag --topic-retention-seconds): input"),
        ({"topics": "1"}, "topics (from flag --topics): there is no such setting"),
        (
            {"record_bytes_max": "4MiB"},
            "record_bytes_max may not exceed batch_bytes_max: such a record would fit no batch "
            "(record_bytes_max from flag --record-bytes-max)",
        ),
        ({"batch_bytes_max": "6MiB"}, "message_receive_bytes_max should exceed batch_bytes_max by 64 KiB"),
    ],
)
def test_a_wrong_setting_is_named_in_one_line_with_where_it_came_from(flags: dict[str, str], line: str) -> None:
    with pytest.raises(config.ConfigError) as refused:
        config.load(flags)
    assert str(refused.value).startswith(line)
    assert "\n" not in str(refused.value)


def test_each_of_several_wrong_settings_has_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTBUS_READER_THREADS", "many")
    path = _file(tmp_path, "node_id = -1\nretention = 5\n")
    with pytest.raises(config.ConfigError) as refused:
        config.load(config_path=path)
    lines = sorted(str(refused.value).splitlines())
    assert len(lines) == 3
    assert lines[0].startswith(f"node_id (from file {path}): ")
    assert lines[1].startswith("reader_threads (from environment variable POSTBUS_READER_THREADS): ")
    assert lines[2] == f"retention (from file {path}): there is no such setting"


@pytest.mark.parametrize("text", ["node_id = ", "[topics]\npartitions = 3", "node_id = 'x"])
def test_a_file_that_is_not_understood_is_refused(tmp_path: Path, text: str) -> None:
    path = _file(tmp_path, text)
    with pytest.raises(config.ConfigError, match=r"postbus\.toml"):
        config.load(config_path=path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(config.ConfigError, match=r"nothing\.toml: No such file"):
        config.load(config_path=tmp_path / "nothing.toml")


def test_settings_do_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        config.load().node_id = 2


def test_every_setting_says_what_help_needs() -> None:
    for setting in config.describe_settings():
        assert setting.help.endswith("."), setting
        assert setting.section and setting.kind
        # What help shows as the default is what one would type to get it.
        if setting.default_text:
            assert getattr(config.load({setting.name: setting.default_text}), setting.name) == setting.default


THREE = {"cluster_id": "flights", "peers": "1@bus-1:7071, 2@bus-2:7071,3@[::1]:7073", "data_dir": "/data"}


def test_peers_are_text_with_commas_or_a_list_in_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoints = {1: "bus-1:7071", 2: "bus-2:7071", 3: "[::1]:7073"}
    assert config.load(THREE).peer_endpoints == endpoints
    listed = 'cluster_id = "flights"\ndata_dir = "/data"\npeers = ["1@bus-1:7071", "2@bus-2:7071", "3@[::1]:7073"]'
    assert config.load(config_path=_file(tmp_path, listed)).peer_endpoints == endpoints
    for name, value in THREE.items():
        monkeypatch.setenv(f"POSTBUS_{name.upper()}", value)
    assert config.load().peer_endpoints == endpoints


@pytest.mark.parametrize(
    ("flags", "port", "endpoint"),
    [
        ({}, None, ""),
        ({"cluster_id": "flights"}, 7071, "127.0.0.1:7071"),
        ({"peer_port": "0"}, 0, "127.0.0.1:9"),
        ({**THREE, "node_id": "3"}, 7073, "[::1]:7073"),
        ({**THREE, "node_id": "4"}, 7071, "127.0.0.1:7071"),
        ({**THREE, "node_id": "3", "peer_port": "7073"}, 7073, "[::1]:7073"),
        ({**THREE, "peer_port": "9000", "advertised_peer_endpoint": "out:7071"}, 9000, "out:7071"),
    ],
)
def test_where_a_node_listens_for_others_and_where_they_are_told_to_reach_it(
    flags: dict[str, str], port: int | None, endpoint: str
) -> None:
    settings = config.load(flags)
    assert settings.peer_port_wanted == port
    if port is not None:
        assert settings.peer_endpoint(port or 9) == endpoint


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (
            {"peers": "bus-1:7071"},
            "peers (from flag --peers): each should be ID@HOST:PORT, such as 1@bus-1:7071; 'bus-1",
        ),
        ({"peers": "0@bus-1:7071"}, "each should be ID@HOST:PORT"),
        ({"peers": "1@bus-1"}, "each should be ID@HOST:PORT"),
        ({"peers": "1@a:1,1@b:1"}, "node 1 is there twice"),
        ({"peers": "1@a:1,2@a:1"}, "two nodes can't both be at a:1"),
        ({"cluster_id": ""}, "peers need a cluster_id"),
        ({"cluster_id": "a b"}, "cluster_id (from flag --cluster-id): string should match pattern"),
        ({"data_dir": None}, "a node with peers needs a data_dir"),
        ({"peer_port": "7072"}, "peer_port is 7072, but peers send others to bus-1:7071 for node 1"),
        ({"peers": "1@10.0.0.1:7071"}, "host is 127.0.0.1, where no other machine connects, but peers say 10.0.0.1"),
        (
            {"advertised_peer_endpoint": "x"},
            "advertised_peer_endpoint (from flag --advertised-peer-endpoint): should be",
        ),
        ({"node_silence_seconds": "1"}, "node_silence_seconds must exceed node_session_seconds"),
        ({"node_heartbeat_interval_seconds": "1"}, "node_session_seconds should be twice node_heartbeat_interval"),
        ({"raft_election_timeout_seconds": "0.1"}, "raft_election_timeout_seconds should be twice raft_heartbeat"),
    ],
)
def test_a_cluster_that_can_not_work_is_refused_before_it_starts(flags: dict[str, str | None], says: str) -> None:
    with pytest.raises(config.ConfigError) as refused:
        config.load({**THREE, **flags})
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_example_of_three_nodes_is_one_cluster() -> None:
    folder = Path(__file__).parent.parent / "deploy" / "cluster"
    nodes = [config.load(config_path=folder / f"node{number}.toml") for number in (1, 2, 3)]
    assert [node.node_id for node in nodes] == [1, 2, 3]
    assert len({node.cluster_id for node in nodes}) == len({node.peers for node in nodes}) == 1
    ports = [port for node in nodes for port in (node.client_port, node.http_port, node.peer_port_wanted)]
    assert len(set(ports)) == 9 and len({node.data_dir for node in nodes}) == 3
    assert all(node.peer_endpoints[node.node_id].endswith(f":{node.peer_port_wanted}") for node in nodes)


@pytest.mark.parametrize(
    ("flags", "endpoint"),
    [
        ({}, "127.0.0.1:9"),
        ({"host": "::1"}, "[::1]:9"),
        ({"advertised_endpoint": "bus.example.org:443"}, "bus.example.org:443"),
    ],
)
def test_clients_are_told_an_endpoint_that_they_can_use(flags: dict[str, str], endpoint: str) -> None:
    assert config.load(flags).endpoint(9) == endpoint


def test_a_node_that_listens_everywhere_does_not_advertise_everywhere() -> None:
    assert not config.load({"host": "0.0.0.0"}).endpoint(9).startswith("0.0.0.0")
