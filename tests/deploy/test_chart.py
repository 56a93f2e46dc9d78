"""What the chart makes of values is a cluster of Postbus: read with the broker's own settings."""

import math
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from chart_rendering import CHART, MATRIX, MONITORING, NAMESPACE, Release, render

from broker import __version__
from broker.cli.serve import STOP_SLACK_SECONDS
from broker.config import CONFIG_ENV, PEER_PORT, Settings, describe_settings, load

MATRIX_NAMES = sorted(MATRIX)
STOP_SETTINGS = ("handover_timeout_seconds", "drain_grace_seconds", "shutdown_timeout_seconds")


def settings_of(
    release: Release, ordinal: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, zone: str = ""
) -> Settings:
    """What the node in that pod goes by."""
    environment = release.environment(ordinal, zone=zone)
    (config_map,) = [
        volume["configMap"]["name"] for volume in release.pod["spec"]["volumes"] if volume["name"] == "config"
    ]
    (mount,) = [each for each in release.container["volumeMounts"] if each["name"] == "config"]
    file = tmp_path / "node.toml"
    file.write_text(release.one("ConfigMap", config_map)["data"]["node.toml"])
    assert environment[CONFIG_ENV] == f"{mount['mountPath']}/node.toml"
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return load(config_path=file)


@pytest.mark.parametrize("name", MATRIX_NAMES)
def test_every_pod_is_a_node_of_one_cluster(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Numbers from the ordinals, one list of founders, addresses that are the pods' own names."""
    release = render(MATRIX[name])
    spec = release.one("StatefulSet")["spec"]
    first = spec["ordinals"]["start"]
    nodes = [
        settings_of(release, ordinal, monkeypatch, tmp_path, zone="z1")
        for ordinal in range(first, first + spec["replicas"])
    ]
    assert [node.node_id for node in nodes] == list(range(1, len(nodes) + 1))
    assert len({node.peers for node in nodes}) == 1 == len({node.cluster_id for node in nodes})
    assert nodes[0].cluster_id and nodes[0].rack == "z1"
    voters = MATRIX[name].get("voters", 3)
    assert sorted(nodes[0].peer_endpoints) == list(range(1, voters + 1))
    headless = release.one("Service", spec["serviceName"])
    fullname = release.one("StatefulSet")["metadata"]["name"]
    domain = f"{headless['metadata']['name']}.{NAMESPACE}.svc.{MATRIX[name].get('clusterDomain', 'cluster.local')}"
    for node in nodes:
        assert node.advertised_endpoint == f"{fullname}-{node.node_id}.{domain}:7070"
        assert node.advertised_peer_endpoint == f"{fullname}-{node.node_id}.{domain}:{PEER_PORT}"
        if node.node_id in node.peer_endpoints:
            assert node.peer_endpoints[node.node_id] == node.advertised_peer_endpoint
        assert node.peer_port_wanted == PEER_PORT and node.host == MATRIX[name].get("listenAddress", "0.0.0.0")


@pytest.mark.parametrize("name", MATRIX_NAMES)
def test_the_environment_holds_only_settings_that_exist(name: str) -> None:
    known = {setting.env for setting in describe_settings()} | {CONFIG_ENV}
    names = [each["name"] for each in render(MATRIX[name]).container["env"]]
    assert {each for each in names if each.startswith("POSTBUS_")} <= known
    assert len(names) == len(set(names))


def test_the_founders_stay_when_nodes_are_added() -> None:
    """Otherwise a node that is added would believe that it founds the cluster."""
    peers = {replicas: render({"replicas": replicas}).environment(1)["POSTBUS_PEERS"] for replicas in (3, 5, 7)}
    assert len(set(peers.values())) == 1 and peers[3].count("@") == 3


def test_a_node_knows_no_rack_where_kubernetes_says_no_zone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert settings_of(render(), 1, monkeypatch, tmp_path).rack == ""


def test_settings_reach_the_node_as_they_were_meant(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whole numbers, large ones, fractions, units, switches."""
    node = settings_of(render(MATRIX["everything else"]), 1, monkeypatch, tmp_path)
    assert node.log_level == "debug" and node.reader_threads == 4 and node.metrics_per_partition is False
    assert node.compaction_dirty_share_min == 0.25 and node.tail_bytes_max == 128 * 2**20 == node.wal_bytes_max
    assert node.catch_up_bytes_per_second is None and node.drain_grace_seconds == 60


def test_a_change_of_settings_restarts_the_pods_and_nothing_else_does() -> None:
    before, same = render(), render({"service": {"port": 7071}, "replicas": 5, "labels": {}})
    after = render({"config": {"log_level": "debug"}})
    assert before.pod == same.pod
    assert before.pod["metadata"]["annotations"] != after.pod["metadata"]["annotations"]
    assert before.pod["spec"] == after.pod["spec"]


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"drain_grace_seconds": 40},
        {"drain_grace_seconds": 0, "handover_timeout_seconds": 0},
        {"handover_timeout_seconds": "2min", "shutdown_timeout_seconds": "1500ms", "drain_grace_seconds": "0.5 min"},
        {"shutdown_timeout_seconds": "1h"},
    ],
)
@pytest.mark.parametrize("pre_stop", [0, 5, 30])
def test_a_pod_has_time_for_all_that_its_node_may_take_to_stop(
    config: dict[str, Any], pre_stop: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """preStop and the node's own three steps fit into the grace, whatever units they are said in."""
    release = render({"config": config, "preStopSeconds": pre_stop})
    node = settings_of(release, 1, monkeypatch, tmp_path)
    steps = pre_stop + sum(getattr(node, name) for name in STOP_SETTINGS) + STOP_SLACK_SECONDS
    grace = release.pod["spec"]["terminationGracePeriodSeconds"]
    assert isinstance(grace, int) and steps < grace <= math.ceil(steps) + 5
    if pre_stop:
        assert release.container["lifecycle"]["preStop"] == {"sleep": {"seconds": pre_stop}}
    else:
        assert "lifecycle" not in release.container


def test_liveness_never_asks_for_the_cluster() -> None:
    container = render().container
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"grpc": 7070, "peer": 7071, "http": 7072}
    assert container["livenessProbe"]["httpGet"] == container["startupProbe"]["httpGet"]
    assert container["livenessProbe"]["httpGet"] == {"path": "/healthz/live", "port": "http"}
    assert container["readinessProbe"]["httpGet"] == {"path": "/healthz/ready", "port": "http"}
    startup = container["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 3600


def selects(selector: dict[str, str], labels: dict[str, str]) -> bool:
    return selector.items() <= labels.items()


@pytest.mark.parametrize("name", MATRIX_NAMES)
def test_selectors_choose_the_nodes_and_not_the_test(name: str) -> None:
    """A test's pod behind the Service would be sent publishes."""
    release = render(MATRIX[name])
    nodes, test = release.pod["metadata"]["labels"], release.one("Pod")["metadata"]["labels"]
    selectors = [service["spec"]["selector"] for service in release.all("Service")]
    selectors += [release.one("StatefulSet")["spec"]["selector"]["matchLabels"]]
    selectors += [budget["spec"]["selector"]["matchLabels"] for budget in release.all("PodDisruptionBudget")]
    selectors += [policy["spec"]["podSelector"]["matchLabels"] for policy in release.all("NetworkPolicy")]
    for selector in selectors:
        assert selects(selector, nodes) and not selects(selector, test)
    other = render(MATRIX[name], release="other")
    assert not any(selects(selector, other.pod["metadata"]["labels"]) for selector in selectors)


@pytest.mark.parametrize("name", ["defaults", "everything else"])
def test_only_nodes_reach_the_peer_port(name: str) -> None:
    release = render(MATRIX[name])
    (rules,) = [policy["spec"]["ingress"] for policy in release.all("NetworkPolicy")]
    by_port = {port["port"]: rule.get("from") for rule in rules for port in rule["ports"]}
    assert all("ports" in rule for rule in rules) and by_port.keys() == {"peer", "grpc", "http"}
    (peer,) = by_port["peer"]
    assert selects(peer["podSelector"]["matchLabels"], release.pod["metadata"]["labels"])
    assert not selects(peer["podSelector"]["matchLabels"], release.one("Pod")["metadata"]["labels"])
    assert peer.keys() == {"podSelector"}  # no namespaceSelector: of this namespace
    chosen = MATRIX[name].get("networkPolicy", {})
    if "clients" in chosen:
        *clients, own = by_port["grpc"]
        assert clients == chosen["clients"]
        # The release's test, and nodes that forward.
        assert selects(own["podSelector"]["matchLabels"], release.one("Pod")["metadata"]["labels"])
        assert by_port["http"] == chosen["monitoring"]
    else:
        assert by_port["grpc"] is by_port["http"] is None


def test_nodes_meet_before_they_are_ready_and_clients_only_meet_ready_ones() -> None:
    release = render()
    services = {service["metadata"]["name"]: service["spec"] for service in release.all("Service")}
    assert services.keys() == {"postbus", "postbus-headless", "postbus-grpc"}
    assert services["postbus-headless"]["publishNotReadyAddresses"] is True
    assert services["postbus-headless"]["clusterIP"] == "None" == services["postbus-grpc"]["clusterIP"]
    assert "publishNotReadyAddresses" not in services["postbus"] | services["postbus-grpc"]
    assert release.one("StatefulSet")["spec"]["podManagementPolicy"] == "Parallel"
    for name in ("postbus", "postbus-grpc"):
        assert [port["targetPort"] for port in services[name]["ports"]] == ["grpc"]


def test_records_outlive_the_release_and_so_does_the_cluster_id() -> None:
    release = render()
    spec = release.one("StatefulSet")["spec"]
    assert spec["persistentVolumeClaimRetentionPolicy"] == {"whenDeleted": "Retain", "whenScaled": "Retain"}
    kept = release.one("ConfigMap", "postbus-cluster")
    annotations = kept["metadata"]["annotations"]
    assert annotations == {"helm.sh/resource-policy": "keep", "postbus/voters": "3"} and kept["immutable"] is True
    others = [each for each in release.objects if each is not kept]
    assert not any("helm.sh/resource-policy" in (each["metadata"].get("annotations") or {}) for each in others)


def test_the_cluster_id_is_the_one_that_is_said() -> None:
    assert render(MATRIX["observers"]).environment(7)["POSTBUS_CLUSTER_ID"] == "orders-eu"


def test_nothing_of_a_claim_changes_with_values_that_may_change() -> None:
    """Kubernetes refuses a StatefulSet whose claims or selector differ from before."""

    def fixed(release: Release) -> list[Any]:
        spec = release.one("StatefulSet")["spec"]
        return [spec[key] for key in ("volumeClaimTemplates", "selector", "serviceName", "podManagementPolicy")]

    changed = {"labels": {"a": "b"}, "annotations": {"a": "b"}, "podLabels": {"c": "d"}, "image": {"tag": "9.9.9"}}
    assert fixed(render()) == fixed(render({**changed, "replicas": 5, "config": {"log_level": "debug"}}))


@pytest.mark.parametrize("name", MATRIX_NAMES)
def test_pods_have_no_rights(name: str) -> None:
    """What the strictest level of Kubernetes' pod security asks for, and no way to its API."""
    release = render(MATRIX[name])
    assert not release.all("Role") and not release.all("ClusterRole") and not release.all("RoleBinding")
    for spec in (release.pod["spec"], release.one("Pod")["spec"]):
        assert spec["automountServiceAccountToken"] is False and spec["enableServiceLinks"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in spec["containers"]:
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False and context["readOnlyRootFilesystem"] is True
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert "memory" in container["resources"]["limits"] and "cpu" in container["resources"]["requests"]
    assert all(account["automountServiceAccountToken"] is False for account in release.all("ServiceAccount"))


def test_the_data_is_where_the_node_looks_for_it() -> None:
    for name, is_claim in (("defaults", True), ("nothing kept", False)):
        release = render(MATRIX[name])
        (mount,) = [each for each in release.container["volumeMounts"] if each["name"] == "data"]
        assert mount["mountPath"] == release.environment(1)["POSTBUS_DATA_DIR"]
        claims = release.one("StatefulSet")["spec"].get("volumeClaimTemplates", [])
        folders = [each for each in release.pod["spec"]["volumes"] if each["name"] == "data"]
        assert [len(claims), len(folders)] == ([1, 0] if is_claim else [0, 1])
    (claim,) = render(MATRIX["as little as possible"]).one("StatefulSet")["spec"]["volumeClaimTemplates"]
    assert claim["spec"]["storageClassName"] == ""


def test_labels_and_annotations_are_on_every_object() -> None:
    release = render(MATRIX["everything else"])
    for each in [*release.objects, release.pod]:
        assert each["metadata"]["labels"]["team"] == "platform", each["metadata"]["name"]
        assert each["metadata"]["annotations"]["example.org/owner"] == "platform"


def test_monitoring_is_off_unless_asked_for() -> None:
    kinds = [each["kind"] for each in render().objects]
    assert not {"ServiceMonitor", "PrometheusRule"} & set(kinds)
    assert {each["metadata"]["name"] for each in render().all("ConfigMap")} == {"postbus-cluster", "postbus-config"}


def test_alerts_and_dashboards_are_the_files_as_they_are() -> None:
    """Braces in annotations and legends are Prometheus' and Grafana's, not Helm's."""
    release = render(MONITORING)
    alerts = yaml.safe_load((CHART / "files" / "alerts.yaml").read_text())
    assert release.one("PrometheusRule")["spec"] == alerts and "{{" in str(alerts)
    files = {path.name: path.read_text() for path in (CHART / "files" / "dashboards").glob("*.json")}
    assert files and release.one("ConfigMap", "postbus-dashboards")["data"] == files


def test_every_node_is_scraped_once_ready_or_not() -> None:
    release = render(MONITORING)
    monitor = release.one("ServiceMonitor")["spec"]
    chosen = [
        service
        for service in release.all("Service")
        if selects(monitor["selector"]["matchLabels"], service["metadata"]["labels"])
    ]
    assert [service["metadata"]["name"] for service in chosen] == ["postbus-headless"]
    (endpoint,) = monitor["endpoints"]
    assert endpoint["port"] in [port["name"] for port in chosen[0]["spec"]["ports"]] and endpoint["path"] == "/metrics"
    assert monitor["namespaceSelector"] == {"matchNames": [NAMESPACE]}


@pytest.mark.parametrize(("values", "job"), [({}, "postbus"), ({"fullnameOverride": "bus"}, "postbus-bus")])
def test_series_are_called_as_the_alerts_expect(values: dict[str, Any], job: str) -> None:
    """One job a release, with "postbus" in it; an instance that stays the same when its pod has another address."""
    (endpoint,) = render({**MONITORING, **values}).one("ServiceMonitor")["spec"]["endpoints"]
    assert endpoint["relabelings"] == [
        {"targetLabel": "job", "replacement": job},
        {"sourceLabels": ["__meta_kubernetes_pod_name"], "targetLabel": "instance"},
    ]
    jobs = set(re.findall(r'job=~"([^"]*)"', (CHART / "files" / "alerts.yaml").read_text()))
    assert jobs and all(re.fullmatch(each, job) for each in jobs)


def test_the_chart_is_of_this_version() -> None:
    """The image that it runs by default is the one that is built from here."""
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == __version__
    assert render().container["image"] == f"postbus:{__version__}"


def test_names_stay_within_what_dns_takes() -> None:
    release = render(release="a" * 53)
    for each in release.objects:
        assert len(each["metadata"]["name"]) <= 63
    assert len(f"{release.one('StatefulSet')['metadata']['name']}-999") <= 63
