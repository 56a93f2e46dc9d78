"""What a pod's spec means for its processes: environment, command, folders to mount. Pure.

Refuses, by name, what this kubelet does not do, so that no test passes on something that was silently left out.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Object = dict[str, Any]

_REFERENCE = re.compile(r"\$\$|\$\(([A-Za-z_.-][A-Za-z0-9_.-]*)\)")
_SUBSCRIPT = re.compile(r"metadata\.(labels|annotations)\['([^']+)'\]")
_UNITS = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


class Unsupported(Exception):  # noqa: N818 - named for what it says
    """The spec asks for something that this kubelet does not do."""


class NotYet(Exception):  # noqa: N818 - named for what it says
    """Something that the pod needs is not there; perhaps later."""


@dataclass(frozen=True, slots=True)
class Image:
    """What a container image would bring along.

    path: folders with its programs, in front of the machine's. shown: folders that its programs need.
    """

    entrypoint: tuple[str, ...]
    path: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    folder: str = "/"
    shown: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Mount:
    """A volume at its place in a container. source: a path below the volume's own folder, "" for all of it."""

    volume: str
    target: str
    source: str = ""
    read_only: bool = False


def expand(text: str, known: Mapping[str, str]) -> str:
    """`$(NAME)` becomes its value, `$$` becomes `$`; a name that is not known stays as it is written."""

    def replace(found: re.Match[str]) -> str:
        return "$" if found[1] is None else known.get(found[1], found[0])

    return _REFERENCE.sub(replace, text)


def environment(
    container: Object,
    pod: Object,
    config_maps: Mapping[str, Mapping[str, str]],
    image: Image,
    *,
    pod_ip: str,
    host_ip: str,
) -> dict[str, str]:
    """All variables of a container. Raises NotYet for a ConfigMap or key that is missing, and Unsupported."""
    given: dict[str, str] = {}
    for source in container.get("envFrom", ()):
        if "configMapRef" not in source:
            raise Unsupported(f"envFrom {sorted(source)}")
        wanted = source["configMapRef"]
        if wanted["name"] not in config_maps and not wanted.get("optional"):
            raise NotYet(f"no ConfigMap {wanted['name']}")
        prefix = source.get("prefix", "")
        given.update({prefix + key: value for key, value in config_maps.get(wanted["name"], {}).items()})
    for variable in container.get("env", ()):
        name = variable["name"]
        if "valueFrom" in variable:
            value = _value_from(variable["valueFrom"], container, pod, config_maps, pod_ip=pod_ip, host_ip=host_ip)
            if value is None:
                continue
        else:
            value = expand(variable.get("value", ""), given)
        given[name] = value
    path = ":".join([*image.path, "/usr/local/bin", "/usr/bin", "/bin"])
    return {"PATH": path, "HOSTNAME": pod["metadata"]["name"], "HOME": "/", **image.environment, **given}


def _value_from(
    source: Object,
    container: Object,
    pod: Object,
    config_maps: Mapping[str, Mapping[str, str]],
    *,
    pod_ip: str,
    host_ip: str,
) -> str | None:
    if "fieldRef" in source:
        return field_of(pod, source["fieldRef"]["fieldPath"], pod_ip=pod_ip, host_ip=host_ip)
    if "configMapKeyRef" in source:
        wanted = source["configMapKeyRef"]
        value = config_maps.get(wanted["name"], {}).get(wanted["key"])
        if value is None and not wanted.get("optional"):
            raise NotYet(f"no key {wanted['key']} in ConfigMap {wanted['name']}")
        return value
    if "resourceFieldRef" in source:
        wanted = source["resourceFieldRef"]
        kind, _, resource = wanted["resource"].partition(".")
        amount = quantity(container.get("resources", {}).get(kind, {}).get(resource, "0"))
        return str(int(-(-amount // quantity(wanted.get("divisor", "1") or "1"))))
    raise Unsupported(f"valueFrom {sorted(source)}")


def field_of(pod: Object, path: str, *, pod_ip: str, host_ip: str) -> str:
    """A field for the downward API. A label or annotation that is not there is empty."""
    metadata = pod["metadata"]
    if found := _SUBSCRIPT.fullmatch(path):
        return str(metadata.get(found[1], {}).get(found[2], ""))
    match path:
        case "metadata.name" | "metadata.namespace" | "metadata.uid":
            return str(metadata[path.partition(".")[2]])
        case "spec.nodeName" | "spec.serviceAccountName":
            return str(pod["spec"].get(path.partition(".")[2], ""))
        case "status.podIP" | "status.podIPs":
            return pod_ip
        case "status.hostIP":
            return host_ip
    raise Unsupported(f"fieldRef {path}")


def quantity(text: str) -> float:
    """A resource quantity: "100m", "1Gi", "2"."""
    text = str(text)
    for unit, factor in _UNITS.items():
        if text.endswith(unit):
            return float(text.removesuffix(unit)) * factor
    return float(text.removesuffix("m")) / 1000 if text.endswith("m") else float(text)


def command(container: Object, image: Image, variables: Mapping[str, str]) -> list[str]:
    """What to run: the image's entrypoint, unless the container has a command of its own, and its arguments."""
    program = [expand(part, variables) for part in container.get("command", ())] or list(image.entrypoint)
    return program + [expand(part, variables) for part in container.get("args", ())]


def mounts(container: Object) -> list[Mount]:
    """In the order in which one may hide another: outer folders first."""
    found = [
        Mount(one["name"], one["mountPath"].rstrip("/"), one.get("subPath", ""), one.get("readOnly", False))
        for one in container.get("volumeMounts", ())
    ]
    return sorted(found, key=lambda one: one.target.count("/"))


def config_files(volume: Object, data: Mapping[str, str]) -> dict[str, str]:
    """Path in the volume -> content. Raises NotYet for a key that is not there."""
    items = volume.get("items")
    if items is None:
        return dict(data)
    if lacking := [one["key"] for one in items if one["key"] not in data]:
        raise NotYet(f"no key {lacking[0]} in ConfigMap {volume['name']}")
    return {one["path"]: data[one["key"]] for one in items}


def user_of(pod: Object, container: Object) -> tuple[int, int] | None:
    """User and group that the container asks for; None: whoever runs this."""
    context = {**pod["spec"].get("securityContext", {}), **container.get("securityContext", {})}
    user = context.get("runAsUser")
    return None if user is None else (user, context.get("runAsGroup", 0))


def config_maps_of(spec: Object) -> set[str]:
    """The names of all ConfigMaps that a pod's spec mentions."""
    names: set[str] = set()
    for container in (*spec.get("initContainers", ()), *spec["containers"]):
        names |= {one["configMapRef"]["name"] for one in container.get("envFrom", ()) if "configMapRef" in one}
        for variable in container.get("env", ()):
            if reference := variable.get("valueFrom", {}).get("configMapKeyRef"):
                names.add(reference["name"])
    return names | {one["configMap"]["name"] for one in spec.get("volumes", ()) if "configMap" in one}
