"""The chart, rendered: what `helm template` makes of values, each set of them once; and the values that are tried.

Also the environment that a pod of it finds, as the kubelet would put it together.
"""

import functools
import json
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml
from programs import ROOT, tool

CHART: Final = ROOT / "deploy" / "helm" / "postbus"
NAMESPACE: Final = "bus"
ZONE: Final = "topology.kubernetes.io/zone"
INDEX: Final = "apps.kubernetes.io/pod-index"
Values = Mapping[str, Any]
_REFERENCE: Final = re.compile(r"\$\$|\$\(([A-Za-z_][A-Za-z0-9_.-]*)\)")

MONITORING: Final = {name: {"enabled": True} for name in ("serviceMonitor", "prometheusRule", "dashboards")}
MATRIX: Final[dict[str, dict[str, Any]]] = {
    "defaults": {},
    "one node": {"replicas": 1, "voters": 1},
    "five voters": {"replicas": 5, "voters": 5},
    "observers": {"replicas": 7, "clusterId": "orders-eu"},
    "nothing kept": {"persistence": {"enabled": False}},
    "monitoring": MONITORING,
    "load balancer": {
        "service": {
            "type": "LoadBalancer",
            "port": 443,
            "loadBalancerClass": "example.org/internal",
            "loadBalancerSourceRanges": ["10.0.0.0/8"],
            "externalTrafficPolicy": "Local",
            "annotations": {"example.org/scheme": "internal"},
            "labels": {"exposed": "yes"},
        },
        "grpcService": {"enabled": False},
    },
    "node port": {"service": {"type": "NodePort", "nodePort": 30070}},
    "everything else": {
        **MONITORING,
        "fullnameOverride": "bus",
        "clusterDomain": "example.internal",
        "listenAddress": "::",
        "labels": {"team": "platform", "cost-center": "42"},
        "annotations": {"example.org/owner": "platform"},
        "podLabels": {"sidecar.istio.io/inject": "false"},
        "podAnnotations": {"example.org/scrape": "true"},
        "image": {"repository": "registry.example.org/postbus", "digest": "sha256:" + "0" * 64},
        "imagePullSecrets": [{"name": "registry"}],
        "config": {
            "log_level": "debug",
            "reader_threads": 4,
            "metrics_per_partition": False,
            "compaction_dirty_share_min": 0.25,
            "tail_bytes_max": 134217728,
            "wal_bytes_max": "128MiB",
            "catch_up_bytes_per_second": "off",
            "drain_grace_seconds": "1min",
        },
        "persistence": {"size": "1Ti", "storageClass": "fast", "labels": {"backup": "yes"}, "whenScaled": "Delete"},
        "networkPolicy": {
            "clients": [{"namespaceSelector": {"matchLabels": {"uses": "bus"}}}],
            "monitoring": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}],
        },
        "serviceAccount": {"name": "nobody", "annotations": {"example.org/a": "b"}},
        "topologySpread": {"zones": "DoNotSchedule", "hosts": "DoNotSchedule"},
        "nodeSelector": {"disk": "nvme"},
        "tolerations": [{"key": "dedicated", "operator": "Exists"}],
        "affinity": {
            "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {
                    "nodeSelectorTerms": [{"matchExpressions": [{"key": "disk", "operator": "Exists"}]}]
                }
            }
        },
        "priorityClassName": "high",
        "runtimeClassName": "gvisor",
        "extraEnv": [{"name": "MALLOC_ARENA_MAX", "value": "2"}],
        "extraVolumes": [{"name": "extra", "emptyDir": {}}],
        "extraVolumeMounts": [{"name": "extra", "mountPath": "/extra"}],
    },
    "as little as possible": {
        "preStopSeconds": 0,
        "networkPolicy": {"enabled": False},
        "podDisruptionBudget": {"enabled": False},
        "serviceAccount": {"create": False},
        "topologySpread": {"zones": "", "hosts": ""},
        "persistence": {"storageClass": "-"},
        "grpcService": {"enabled": False},
    },
}


@dataclass(frozen=True, slots=True)
class Release:
    """What Helm would apply."""

    objects: tuple[dict[str, Any], ...]

    def all(self, kind: str) -> list[dict[str, Any]]:
        return [each for each in self.objects if each["kind"] == kind]

    def one(self, kind: str, name: str = "") -> dict[str, Any]:
        """The only one of its kind, or of those the one that is called so."""
        found = [each for each in self.all(kind) if not name or each["metadata"]["name"] == name]
        assert len(found) == 1, [each["metadata"]["name"] for each in self.all(kind)]
        return found[0]

    @property
    def pod(self) -> dict[str, Any]:
        """The nodes' pod template."""
        template: dict[str, Any] = self.one("StatefulSet")["spec"]["template"]
        return template

    @property
    def container(self) -> dict[str, Any]:
        (container,) = self.pod["spec"]["containers"]
        return dict(container)

    def environment(self, ordinal: int, *, zone: str = "") -> dict[str, str]:
        """What the container of that pod is given, as the kubelet resolves it."""
        name = f"{self.one('StatefulSet')['metadata']['name']}-{ordinal}"
        fields = {
            "metadata.name": name,
            "status.podIP": f"10.0.0.{ordinal}",
            f"metadata.labels['{INDEX}']": str(ordinal),
            f"metadata.labels['{ZONE}']": zone,
        }
        found: dict[str, str] = {}
        for each in self.container["env"]:
            match each.get("valueFrom"):
                case None:
                    value = expand(each["value"], found)
                case {"fieldRef": {"fieldPath": path}}:
                    value = fields[path]
                case {"configMapKeyRef": {"name": config_map, "key": key}}:
                    value = self.one("ConfigMap", config_map)["data"][key]
                case other:
                    raise AssertionError(other)
            found[each["name"]] = value
        return found


def expand(text: str, environment: Mapping[str, str]) -> str:
    """What Kubernetes makes of $(NAME) and $$ in values of variables, commands and arguments."""
    return _REFERENCE.sub(lambda found: "$" if found[0] == "$$" else environment.get(found[1], found[0]), text)


def render(values: Values | None = None, *, chart: Path = CHART, release: str = "postbus") -> Release:
    """The release, tests included; shared, so to be left as it is. Fails with what Helm says."""
    return _render(json.dumps(values or {}), chart, release)


def text_of(values: Values) -> str:
    """The same as YAML."""
    return _helm_template(json.dumps(values), CHART, "postbus").stdout


def refusal(values: Values) -> str:
    """What Helm says of values that it does not take."""
    done = _helm_template(json.dumps(values), CHART, "postbus")
    assert done.returncode != 0, "Helm took them"
    return done.stderr


@functools.cache
def _render(values: str, chart: Path, release: str) -> Release:
    done = _helm_template(values, chart, release)
    assert done.returncode == 0, done.stderr
    # The loader in C takes a fortieth of the time, and dashboards are long.
    return Release(tuple(each for each in yaml.load_all(done.stdout, Loader=yaml.CSafeLoader) if each))


@functools.cache
def _helm_template(values: str, chart: Path, release: str) -> "subprocess.CompletedProcess[str]":
    command = [tool("helm"), "template", release, str(chart), "--namespace", NAMESPACE, "--values", "-"]
    return subprocess.run(command, input=values, capture_output=True, text=True, timeout=60, check=False)
