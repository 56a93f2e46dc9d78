"""Wrong values are refused before anything is installed, and the message says what is wrong."""

from typing import Any

import pytest
import yaml
from chart_rendering import CHART, refusal, render
from chart_schema import OF_THE_CHART, config_schema, written

from broker.config import describe_settings

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"replica": 3}, "additional properties 'replica' not allowed"),
    ({"image": {"name": "postbus"}}, "at '/image': additional properties 'name' not allowed"),
    ({"voters": 2}, "at '/voters': value must be one of 1, 3, 5"),
    ({"voters": 4}, "at '/voters': value must be one of 1, 3, 5"),
    ({"voters": "3"}, "at '/voters': value must be one of 1, 3, 5"),
    ({"voters": None}, "missing property 'voters'"),
    ({"replicas": 0}, "at '/replicas': minimum: got 0, want 1"),
    ({"replicas": "3"}, "at '/replicas': got string, want integer"),
    ({"replicas": 2}, "replicas is 2, but voters is 3"),
    ({"replicas": 3, "voters": 5}, "Never scale below the voters"),
    ({"clusterId": "my cluster"}, "at '/clusterId': 'my cluster' does not match pattern"),
    ({"clusterId": "a" * 65}, "at '/clusterId': maxLength: got 65, want 64"),
    ({"image": {"pullPolicy": "Sometimes"}}, "at '/image/pullPolicy': value must be one of 'Always', 'IfNotPresent'"),
    ({"image": {"repository": ""}}, "at '/image/repository': '' does not match pattern"),
    ({"image": {"tag": "a:b"}}, "at '/image/tag': 'a:b' does not match pattern"),
    ({"image": {"tag": 1.1}}, "at '/image/tag': got number, want string"),
    ({"image": {"digest": "sha256:abc"}}, "at '/image/digest': 'sha256:abc' does not match pattern"),
    ({"imagePullSecrets": ["registry"]}, "at '/imagePullSecrets/0': got string, want object"),
    ({"fullnameOverride": "Bus_1"}, "at '/fullnameOverride': 'Bus_1' does not match pattern"),
    ({"fullnameOverride": "a.b"}, "at '/fullnameOverride': 'a.b' does not match pattern"),
    ({"labels": {"a": "x y"}}, "at '/labels/a': 'x y' does not match pattern"),
    ({"labels": {"a": 1}}, "at '/labels/a': got number, want string"),
    ({"labels": {"app.kubernetes.io/name": "x"}}, "label app.kubernetes.io/name is the chart's own"),
    ({"podLabels": {"app.kubernetes.io/component": "x"}}, "label app.kubernetes.io/component is the chart's own"),
    ({"config": {"reader_thread": 4}}, "at '/config': additional properties 'reader_thread' not allowed"),
    ({"config": {"node_id": 4}}, "at '/config': additional properties 'node_id' not allowed"),
    ({"config": {"peers": []}}, "at '/config': additional properties 'peers' not allowed"),
    ({"config": {"reader-threads": 4}}, "at '/config': additional properties 'reader-threads' not allowed"),
    ({"config": {"reader_threads": 0}}, "at '/config/reader_threads': minimum: got 0, want 1"),
    ({"config": {"reader_threads": 1.5}}, "at '/config/reader_threads': got number, want integer"),
    ({"config": {"log_level": "loud"}}, "at '/config/log_level': value must be one of 'debug', 'info'"),
    ({"config": {"drain_grace_seconds": "2 weeks"}}, "at '/config/drain_grace_seconds': '2 weeks' does not match"),
    ({"config": {"drain_grace_seconds": -1}}, "at '/config/drain_grace_seconds': minimum: got -1, want 0"),
    ({"config": {"tail_bytes_max": "64 M"}}, "at '/config/tail_bytes_max': '64 M' does not match pattern"),
    ({"config": {"metrics_per_partition": "no"}}, "at '/config/metrics_per_partition': got string, want boolean"),
    ({"persistence": {"size": "10 GB"}}, "at '/persistence/size': '10 GB' does not match pattern"),
    ({"persistence": {"size": 10}}, "at '/persistence/size': got number, want string"),
    ({"persistence": {"accessModes": ["ReadOnlyMany"]}}, "at '/persistence/accessModes/0': value must be one of"),
    ({"persistence": {"whenScaled": "Keep"}}, "at '/persistence/whenScaled': value must be one of 'Retain', 'Delete'"),
    ({"resources": {"limits": {"memory": "1 GB"}}}, "at '/resources/limits/memory': '1 GB' does not match pattern"),
    ({"resources": {"memory": "1Gi"}}, "at '/resources': additional properties 'memory' not allowed"),
    ({"service": {"type": "ExternalName"}}, "at '/service/type': value must be one of 'ClusterIP', 'NodePort'"),
    ({"service": {"port": 0}}, "at '/service/port': minimum: got 0, want 1"),
    ({"service": {"nodePort": 30000}}, "need service.type NodePort or LoadBalancer"),
    ({"service": {"loadBalancerClass": "x"}}, "need service.type LoadBalancer"),
    ({"networkPolicy": {"clients": {"podSelector": {}}}}, "at '/networkPolicy/clients': got object, want array"),
    ({"podDisruptionBudget": {"maxUnavailable": 0}}, "at '/podDisruptionBudget/maxUnavailable': minimum: got 0"),
    ({"podDisruptionBudget": {"maxUnavailable": 2}}, "could take the majority of 3 voters"),
    ({"topologySpread": {"hosts": "Maybe"}}, "at '/topologySpread/hosts': value must be one of '', 'ScheduleAnyway'"),
    ({"preStopSeconds": "5s"}, "at '/preStopSeconds': got string, want integer"),
    ({"probes": {"liveness": {"path": "/"}}}, "at '/probes/liveness': additional properties 'path' not allowed"),
    ({"probes": {"readiness": None}}, "at '/probes': missing property 'readiness'"),
    ({"extraEnv": [{"name": "POSTBUS_LOG_LEVEL", "value": "debug"}]}, "set log_level in config instead"),
    ({"extraEnv": [{"name": "POD_NAME", "value": "x"}]}, "extraEnv sets POD_NAME, which is the chart's own"),
    ({"extraEnv": [{"value": "x"}]}, "at '/extraEnv/0': missing property 'name'"),
    ({"extraVolumeMounts": [{"name": "x"}]}, "at '/extraVolumeMounts/0': missing property 'mountPath'"),
    ({"extraVolumes": [{"name": "data", "emptyDir": {}}]}, "extraVolumes has data"),
    ({"serviceMonitor": {"interval": "often"}}, "at '/serviceMonitor/interval': 'often' does not match pattern"),
    ({"listenAddress": ""}, "at '/listenAddress': minLength: got 0, want 1"),
]


@pytest.mark.parametrize(("values", "message"), WRONG, ids=[str(values)[:60] for values, _ in WRONG])
def test_a_wrong_value_is_refused_by_name(values: dict[str, Any], message: str) -> None:
    assert message in refusal(values)


def test_a_part_of_another_chart_may_have_a_condition_and_globals() -> None:
    render({"enabled": True, "global": {"imageRegistry": "x"}})


def test_the_schema_knows_the_settings_of_this_broker() -> None:
    """Otherwise: .venv/bin/python tests/deploy/chart_schema.py."""
    assert written()["$defs"]["config"] == config_schema()


def test_only_settings_that_exist_are_the_charts_own() -> None:
    assert {setting.name for setting in describe_settings()} >= OF_THE_CHART


def test_every_value_has_a_default_a_place_in_the_schema_and_cannot_be_removed() -> None:
    """A value that `null` removed would otherwise break a template somewhere, and not by name."""
    schema = written()

    def compare(place: str, rule: dict[str, Any], values: dict[str, Any]) -> None:
        while "$ref" in rule:
            rule = schema["$defs"][rule["$ref"].rpartition("/")[2]]
        if rule.get("additionalProperties") is not False or place in ("/config", "/resources"):
            return
        optional = {"enabled", "global"} if not place else {"initialDelaySeconds"}
        assert rule["properties"].keys() - optional == values.keys() - optional | set(rule["required"]) - optional
        assert set(rule["required"]) >= values.keys(), place
        for name, value in values.items():
            if isinstance(value, dict):
                compare(f"{place}/{name}", rule["properties"][name], value)

    compare("", schema, yaml.safe_load((CHART / "values.yaml").read_text()))
