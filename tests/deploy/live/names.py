"""Which names resolve to which pods, and how that is said: the cluster's DNS, without its socket. Pure.

A headless Service gives its pods names of their own. A Service with a cluster address stands for its ready pods, all of
them, in an order by turns: nothing here forwards to a virtual address, so a client goes to the first. Endpoint slices
can't be used: the API server refuses loopback addresses in them.
"""

import struct
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

Object = dict[str, Any]

DOMAIN = "cluster.local"
TTL_S = 5  # as CoreDNS has it for Kubernetes' names

_HEADER = struct.Struct("!HHHHHH")
_ANSWER = struct.Struct("!HHHIH")
_TYPE_A, _CLASS_IN = 1, 1
_NAME_ERROR, _FORMAT_ERROR = 3, 1


def records(services: Iterable[Object], pods: Iterable[Object]) -> dict[str, list[str]]:
    """Full name -> addresses."""
    known = [pod for pod in pods if _address(pod)]
    found: dict[str, list[str]] = defaultdict(list)
    for service in services:
        for address, name in _endpoints(service, known):
            found[f"{name}.{service['metadata']['namespace']}.svc.{DOMAIN}"].append(address)
    return dict(found)


def resolv_conf(nameserver: str, namespace: str) -> str:
    """As a kubelet writes it, so that names in the same namespace can be short."""
    return (
        f"nameserver {nameserver}\nsearch {namespace}.svc.{DOMAIN} svc.{DOMAIN} {DOMAIN}\noptions ndots:5 timeout:2\n"
    )


def answer(query: bytes, known: Mapping[str, list[str]], *, turn: int = 0) -> bytes | None:
    """To one DNS question. None: that was none. turn: which of several addresses comes first."""
    if len(query) < _HEADER.size:
        return None
    number, flags, questions, *_ = _HEADER.unpack_from(query)
    if flags & 0x8000 or questions != 1:
        return None
    said = 0x8400 | flags & 0x0100  # an answer, of who knows; recursion as was wished
    try:
        name, end = _name(query)
        kind, kind_class = struct.unpack_from("!HH", query, end)
    except (IndexError, struct.error, UnicodeDecodeError):
        return _HEADER.pack(number, said | _FORMAT_ERROR, 0, 0, 0, 0)
    question = query[_HEADER.size : end + 4]
    addresses = known.get(name.lower())
    if addresses is None:
        return _HEADER.pack(number, said | _NAME_ERROR, 1, 0, 0, 0) + question
    if (kind, kind_class) != (_TYPE_A, _CLASS_IN):
        return _HEADER.pack(number, said, 1, 0, 0, 0) + question
    turned = addresses[turn % len(addresses) :] + addresses[: turn % len(addresses)]
    answers = b"".join(
        # The name is the one at offset 12: the question's.
        _ANSWER.pack(0xC00C, _TYPE_A, _CLASS_IN, TTL_S, 4) + bytes(int(part) for part in address.split("."))
        for address in turned
    )
    return _HEADER.pack(number, said, 1, len(turned), 0, 0) + question + answers


def _name(query: bytes) -> tuple[str, int]:
    """The question's, and where it ends. Names in questions are never compressed."""
    labels, at = [], _HEADER.size
    while length := query[at]:
        if length > 63 or at + 1 + length > len(query):
            raise IndexError(length)
        labels.append(query[at + 1 : at + 1 + length].decode("ascii"))
        at += 1 + length
    return ".".join(labels), at + 1


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
