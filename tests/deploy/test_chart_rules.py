"""The chart's objects are what Kubernetes takes, in several versions, and what those who run it advise."""

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from chart_rendering import CHART, MATRIX, MONITORING, render, text_of
from programs import tool

# The oldest that Chart.yaml takes, the first that tells a pod its zone, the newest.
KUBERNETES = ("1.31", "1.35", "1.37")
# Kinds that Kubernetes itself does not know, whose shape is checked here.
CUSTOM = {"ServiceMonitor", "PrometheusRule"}
MATRIX_NAMES = sorted(MATRIX)

# What kube-score advises and the chart does otherwise, with the reason.
OTHERWISE = {
    "container-image-pull-policy": "Always asks the registry at every start, and a node must start without it",
    "container-ephemeral-storage-request-and-limit": "the root is read-only and /tmp bounded; a limit would count an"
    " emptyDir of data, too",
    "statefulset-has-host-podantiaffinity": "topology spread says so with less",
    "pod-networkpolicy": "nodes may call out: names and peers; the test's pod serves nothing",
    "service-type": "NodePort only where it is asked for",
}


def run(*command: str, text: str = "") -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, input=text, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("name", MATRIX_NAMES)
def test_helm_finds_nothing_to_complain_about(name: str) -> None:
    done = run(tool("helm"), "lint", "--strict", str(CHART), "--values", "-", text=json.dumps(MATRIX[name]))
    assert done.returncode == 0 and "[WARNING]" not in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("version", KUBERNETES)
def test_kubernetes_takes_every_object(version: str, tmp_path: Path) -> None:
    """Unknown and misspelt fields included, which the API server would drop."""
    texts = {
        json.dumps(each) for name in MATRIX_NAMES for each in render(MATRIX[name]).objects if each["kind"] not in CUSTOM
    }
    file = tmp_path / "objects.yaml"
    file.write_text("\n---\n".join(sorted(texts)))
    done = run(tool("kubernetes-validate"), "--strict", "-k", version, str(file))
    told = done.stdout + done.stderr
    # It only warns of what it knows no schema for.
    assert done.returncode == 0 and "WARN" not in told, told
    assert told.count("passed") == len(texts) > len(MATRIX)


def test_kubernetes_validate_would_say_so(tmp_path: Path) -> None:
    """A check that passes everything checks nothing."""
    wrong = render().one("StatefulSet")
    file = tmp_path / "wrong.yaml"
    file.write_text(yaml.safe_dump({**wrong, "spec": {**wrong["spec"], "replica": 3}}))
    done = run(tool("kubernetes-validate"), "--strict", "-k", KUBERNETES[0], str(file))
    assert done.returncode != 0 and "replica" in done.stdout + done.stderr


def test_objects_of_the_prometheus_operator_have_its_shape() -> None:
    """Fields as monitoring.coreos.com/v1 has them; the values are checked by promtool and elsewhere."""
    release = render(MONITORING)
    monitor, rule = release.one("ServiceMonitor"), release.one("PrometheusRule")
    assert monitor["apiVersion"] == rule["apiVersion"] == "monitoring.coreos.com/v1"
    assert monitor["spec"].keys() == {"selector", "namespaceSelector", "endpoints"}
    for endpoint in monitor["spec"]["endpoints"]:
        assert endpoint.keys() == {"port", "path", "interval", "scrapeTimeout", "relabelings"}
        assert all(each.keys() <= {"sourceLabels", "targetLabel", "replacement"} for each in endpoint["relabelings"])
    assert rule["spec"].keys() == {"groups"}
    for group in rule["spec"]["groups"]:
        assert {"name", "rules"} <= group.keys() <= {"name", "rules", "interval", "labels", "limit"}
        for each in group["rules"]:
            assert each.keys() <= {"alert", "record", "expr", "for", "keep_firing_for", "labels", "annotations"}
            assert isinstance(each["expr"], str)


@pytest.mark.parametrize("name", MATRIX_NAMES)
def test_kube_score_advises_nothing_that_is_not_answered(name: str) -> None:
    disregarded = {"as little as possible": {"pod-networkpolicy", "statefulset-has-poddisruptionbudget"}}
    advice = kube_score(text_of(MATRIX[name]))
    assert advice - OTHERWISE.keys() <= disregarded.get(name, set()), advice


def test_kube_score_would_say_so() -> None:
    values = {"securityContext": {"privileged": True, "readOnlyRootFilesystem": False}}
    assert {"container-security-context-privileged", "container-security-context-readonlyrootfilesystem"} <= kube_score(
        text_of(values)
    )


def kube_score(manifests: str) -> set[str]:
    """The checks that some object fails."""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(manifests)
        file.flush()
        done = run(
            tool("kube-score"),
            "score",
            file.name,
            "--ignore-container-cpu-limit",  # throttled nodes miss heartbeats
            "--enable-optional-test=container-seccomp-profile",
            "--enable-optional-test=container-ports-check",
            "--kubernetes-version=v1.31",
            "--output-format=json",
        )
    scored: list[dict[str, Any]] = json.loads(done.stdout)
    assert scored, done.stderr
    # Grades: 10 is all good, 0 for what does not apply.
    return {
        check["check"]["id"]
        for each in scored
        for check in each["checks"]
        if not check["skipped"] and check["grade"] < 10
    }
