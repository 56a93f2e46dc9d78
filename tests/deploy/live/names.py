"""Which names resolve to which pods: the cluster's DNS as lines of a hosts file. Pure.

A headless Service gives its pods names of their own. A Service with a cluster address stands for its ready pods, all of
them: nothing here forwards to a virtual address, so a client chooses among them. Endpoint slices can't be used: the API
server refuses loopback addresses in them.
"""

from collections.abc import Iterable, Iterator
from typing import Any

Object = dict[str, Any]

DOMAIN = "cluster.local"
_HEAD = "127.0.0.1 localhost\n"


def hosts_file(services: Iterable[Object], pods: Iterable[Object], *, namespace: str) -> str:
    """The whole file, for the pods of one namespace: what is in it goes by its bare name, too."""
    known = [pod for pod in pods if _address(pod)]
    lines = [
        f"{address} {' '.join(_forms(name, service['metadata']['namespace'], namespace))}\n"
        for service in sorted(services, key=lambda one: (one["metadata"]["namespace"], one["metadata"]["name"]))
        for address, name in _endpoints(service, known)
    ]
    return _HEAD + "".join(lines)


def is_ready(pod: Object) -> bool:
    """Whether it gets traffic: not while it goes away, though its process still answers."""
    conditions = pod.get("status", {}).get("conditions", ())
    ready = any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)
    return ready and "deletionTimestamp" not in pod["metadata"]


def _endpoints(service: Object, pods: Iterable[Object]) -> Iterator[tuple[str, str]]:
    spec = service["spec"]
    selector = spec.get("selector")
    if not selector:
        return
    name = service["metadata"]["name"]
    for pod in sorted(pods, key=lambda one: str(one["metadata"]["name"])):
        labels = pod["metadata"].get("labels", {})
        if pod["metadata"]["namespace"] != service["metadata"]["namespace"] or selector.items() - labels.items():
            continue
        if not spec.get("publishNotReadyAddresses") and not is_ready(pod):
            continue
        yield _address(pod), name
        if spec.get("clusterIP") == "None" and pod["spec"].get("subdomain") == name and pod["spec"].get("hostname"):
            yield _address(pod), f"{pod['spec']['hostname']}.{name}"


def _address(pod: Object) -> str:
    status = pod.get("status", {})
    return "" if status.get("phase") in ("Succeeded", "Failed") else str(status.get("podIP", ""))


def _forms(name: str, of: str, seen_from: str) -> list[str]:
    forms = [f"{name}.{of}.svc.{DOMAIN}", f"{name}.{of}.svc", f"{name}.{of}"]
    return [*forms, name] if of == seen_from else forms
