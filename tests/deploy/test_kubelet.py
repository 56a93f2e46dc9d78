"""The live run's kubelet, without a control plane: what it makes of a pod's spec, and how it counts, names and starts.

What these promise is what the live run relies on: a mistake here would let a chart pass that no cluster would run.
"""

import os
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent / "live"))

from names import answer, records, resolv_conf
from pod_process import Bind, Process, script
from pod_spec import (
    Image,
    NotYet,
    Unsupported,
    command,
    config_files,
    config_maps_of,
    environment,
    expand,
    mounts,
    quantity,
    user_of,
)
from pod_status import ContainerState, phase, pod_status
from probes import BackOff, ProbeCount, port_of

IMAGE = Image(entrypoint=("postbus",), path=("/opt/bin",), environment={"POSTBUS_DATA_DIR": "/data"})
POD: dict[str, Any] = {
    "metadata": {
        "name": "bus-1",
        "namespace": "shop",
        "uid": "u-1",
        "labels": {"apps.kubernetes.io/pod-index": "1", "app": "bus"},
    },
    "spec": {"nodeName": "here", "hostname": "bus-1", "subdomain": "bus-headless", "containers": []},
}


def variables(*env: dict[str, Any], maps: dict[str, dict[str, str]] | None = None, **container: Any) -> dict[str, str]:
    return environment(
        {"env": list(env), **container}, POD, maps or {}, IMAGE, pod_ip="127.70.0.9", host_ip="127.70.0.2"
    )


def field_ref(name: str, path: str) -> dict[str, Any]:
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}


# --- environment and command ---


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("$(A):1", "x:1"),
        ("$$(A)", "$(A)"),
        ("$(B)", "$(B)"),
        ("$(A)$(A)", "xx"),
        ("$A", "$A"),
        ("a$$b", "a$b"),
    ],
)
def test_references_are_expanded_as_kubernetes_does(text: str, expected: str) -> None:
    """Known names are replaced, unknown ones stay, `$$` is a dollar."""
    assert expand(text, {"A": "x"}) == expected


def test_a_variable_sees_those_before_it() -> None:
    """The advertised address is made of the pod's name and address, which the downward API gives."""
    found = variables(
        {"name": "EARLY", "value": "$(POD_IP)"},
        field_ref("POD_IP", "status.podIP"),
        field_ref("NODE_ID", "metadata.labels['apps.kubernetes.io/pod-index']"),
        field_ref("RACK", "metadata.labels['topology.kubernetes.io/zone']"),
        {"name": "ENDPOINT", "value": "$(POD_IP):7070"},
    )
    assert found["ENDPOINT"] == "127.70.0.9:7070"
    assert found["EARLY"] == "$(POD_IP)"
    assert found["NODE_ID"] == "1"
    assert found["RACK"] == ""


def test_an_image_brings_variables_that_the_pod_may_replace() -> None:
    """And its programs come first."""
    assert variables()["POSTBUS_DATA_DIR"] == "/data"
    assert variables({"name": "POSTBUS_DATA_DIR", "value": "/else"})["POSTBUS_DATA_DIR"] == "/else"
    assert variables()["PATH"].startswith("/opt/bin:")


def test_config_maps_are_waited_for_unless_optional() -> None:
    """A missing map or key is "not yet", never an empty value."""
    key = {"configMapKeyRef": {"name": "id", "key": "cluster"}}
    assert variables({"name": "C", "valueFrom": key}, maps={"id": {"cluster": "abc"}})["C"] == "abc"
    with pytest.raises(NotYet):
        variables({"name": "C", "valueFrom": key}, maps={"id": {}})
    with pytest.raises(NotYet):
        variables(envFrom=[{"configMapRef": {"name": "all"}}])
    optional = {"configMapKeyRef": {"name": "id", "key": "cluster", "optional": True}}
    assert "C" not in variables({"name": "C", "valueFrom": optional})
    assert (
        variables(envFrom=[{"prefix": "P_", "configMapRef": {"name": "all"}}], maps={"all": {"x": "1"}})["P_x"] == "1"
    )


def test_resources_are_given_as_numbers() -> None:
    """Limits through the downward API, rounded up to the divisor."""
    source = {"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Mi"}}
    found = variables({"name": "M", "valueFrom": source}, resources={"limits": {"memory": "1.5Gi"}})
    assert found["M"] == "1536"
    assert quantity("250m") == 0.25


def test_what_is_not_done_is_refused_by_name() -> None:
    """A secret, an unknown field."""
    with pytest.raises(Unsupported, match="secretKeyRef"):
        variables({"name": "S", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}})
    with pytest.raises(Unsupported, match=r"spec\.host"):
        variables(field_ref("F", "spec.host"))


def test_a_command_replaces_the_entrypoint_and_arguments_do_not() -> None:
    """As Docker's two words are mapped."""
    assert command({"args": ["serve", "$(X)"]}, IMAGE, {"X": "1"}) == ["postbus", "serve", "1"]
    assert command({"command": ["sh"], "args": ["-c", "true"]}, IMAGE, {}) == ["sh", "-c", "true"]


def test_mounts_come_outer_folders_first() -> None:
    """So that none hides another."""
    found = mounts(
        {"volumeMounts": [{"name": "b", "mountPath": "/a/b/"}, {"name": "a", "mountPath": "/a", "readOnly": True}]}
    )
    assert [(one.target, one.read_only) for one in found] == [("/a", True), ("/a/b", False)]


def test_config_files_and_their_maps() -> None:
    """All keys, or those that are listed, under the names that are listed."""
    assert config_files({"name": "c"}, {"node.toml": "x"}) == {"node.toml": "x"}
    assert config_files({"name": "c", "items": [{"key": "a", "path": "b"}]}, {"a": "1", "z": "2"}) == {"b": "1"}
    with pytest.raises(NotYet):
        config_files({"name": "c", "items": [{"key": "a", "path": "b"}]}, {})
    spec = {
        "containers": [{"envFrom": [{"configMapRef": {"name": "one"}}]}],
        "volumes": [{"name": "v", "configMap": {"name": "two"}}, {"name": "e", "emptyDir": {}}],
    }
    assert config_maps_of(spec) == {"one", "two"}


def test_a_containers_user_wins_over_the_pods() -> None:
    """None, if nobody asks for one."""
    pod = {"spec": {"securityContext": {"runAsUser": 1, "runAsGroup": 2}}}
    assert user_of(pod, {}) == (1, 2)
    assert user_of(pod, {"securityContext": {"runAsUser": 3}}) == (3, 2)
    assert user_of({"spec": {}}, {}) is None


# --- probes ---


def test_a_probe_counts_results_in_a_row() -> None:
    """Three failures make it fail, one success makes it pass; what is between resets the count."""
    count = ProbeCount.of({}, passing=True)
    assert [count.note(ok) for ok in (False, False, True, False, False, False)] == [False] * 5 + [True]
    assert count.passing is False
    assert count.note(True) and count.passing


def test_a_probe_that_never_passed_fails_at_its_threshold_only() -> None:
    """A startup probe's long threshold is what lets a recovery take its time."""
    count = ProbeCount.of({"failureThreshold": 60})
    for _ in range(59):
        count.note(False)
    assert count.passing is None
    count.note(False)
    assert count.passing is False


def test_restarts_wait_longer_and_longer() -> None:
    """At once, then 10 s, 20 s, to five minutes; a container that ran well begins anew."""
    back_off = BackOff()
    assert [back_off.after(1) for _ in range(8)] == [0, 10, 20, 40, 80, 160, 300, 300]
    assert back_off.after(700) == 0


def test_probe_ports_go_by_name_or_number() -> None:
    """As in a Service."""
    container = {"ports": [{"name": "http", "containerPort": 7072}]}
    assert [port_of(container, port) for port in ("http", 80, "81")] == [7072, 80, 81]


# --- names ---


def service(name: str, **spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": "shop"}, "spec": {"selector": {"app": "bus"}, **spec}}


def pod(name: str, address: str, *, ready: bool = True, going: bool = False, **metadata: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "namespace": "shop", "labels": {"app": "bus"}, **metadata}
        | ({"deletionTimestamp": "now"} if going else {}),
        "spec": {"hostname": name, "subdomain": "bus-headless"},
        "status": {
            "phase": "Running",
            "podIP": address,
            "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
        },
    }


def test_a_headless_service_names_pods_that_are_not_ready() -> None:
    """Peers must find each other before anybody is ready; clients must not be sent there."""
    services = [service("bus"), service("bus-headless", clusterIP="None", publishNotReadyAddresses=True)]
    pods = [pod("bus-1", "127.70.0.3"), pod("bus-2", "127.70.0.4", ready=False), pod("bus-3", "127.70.0.5", going=True)]
    known = records(services, pods)
    assert known["bus-2.bus-headless.shop.svc.cluster.local"] == ["127.70.0.4"]
    assert known["bus-3.bus-headless.shop.svc.cluster.local"] == ["127.70.0.5"]
    assert known["bus-headless.shop.svc.cluster.local"] == ["127.70.0.3", "127.70.0.4", "127.70.0.5"]
    assert known["bus.shop.svc.cluster.local"] == ["127.70.0.3"]


def test_names_end_at_the_namespace_the_selector_and_the_pods_end() -> None:
    """What ran to its end has no address; who does not match has no part."""
    done = pod("bus-9", "127.70.0.9")
    done["status"]["phase"] = "Succeeded"
    other = pod("web-1", "127.70.0.8", labels={"app": "web"})
    elsewhere = pod("bus-1", "127.70.0.7", namespace="else")
    known = records([service("bus")], [pod("bus-1", "127.70.0.3"), done, other, elsewhere])
    assert known == {"bus.shop.svc.cluster.local": ["127.70.0.3"]}


def question(name: str, kind: int = 1) -> bytes:
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return struct.pack("!HHHHHH", 77, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!HH", kind, 1)


KNOWN = {"bus.shop.svc.cluster.local": ["127.70.0.3", "127.70.0.4"]}


def said(query: bytes, turn: int = 0) -> tuple[int, int, list[str]]:
    """Number, code and addresses of the answer."""
    reply = answer(query, KNOWN, turn=turn)
    assert reply is not None and reply[12 : 12 + len(query) - 12] == query[12:]
    number, flags, _, count, *_ = struct.unpack_from("!HHHHHH", reply)
    assert flags & 0x8100 == 0x8100
    tail = reply[len(query) :]
    assert len(tail) == 16 * count
    return number, flags & 15, [".".join(map(str, tail[at + 12 : at + 16])) for at in range(0, len(tail), 16)]


def test_known_names_are_answered_by_turns() -> None:
    """In whatever case they are asked for, all addresses, another one first each time."""
    assert said(question("bus.shop.svc.cluster.local")) == (77, 0, ["127.70.0.3", "127.70.0.4"])
    assert said(question("BUS.shop.svc.cluster.local"), turn=3) == (77, 0, ["127.70.0.4", "127.70.0.3"])


def test_what_is_not_there_is_said_so() -> None:
    """An unknown name does not exist; a known one has no IPv6 address, which is another answer."""
    assert said(question("nobody.shop.svc.cluster.local")) == (77, 3, [])
    assert said(question("bus.shop.svc.cluster.local", kind=28)) == (77, 0, [])


@given(st.binary(max_size=80))
def test_no_packet_breaks_the_nameserver(packet: bytes) -> None:
    """It answers, or keeps quiet."""
    reply = answer(packet, KNOWN)
    assert reply is None or reply[:2] == packet[:2]


def test_short_names_are_searched_in_their_namespace() -> None:
    """As in a real pod."""
    assert "search shop.svc.cluster.local svc.cluster.local" in resolv_conf("127.70.0.1", "shop")


# --- status ---


def test_a_pod_is_ready_only_when_all_its_containers_are() -> None:
    """And says since when."""
    states = [
        ContainerState("a", "i", running=True, started_at="t", ready=True),
        ContainerState("b", "i", started_at="t"),
    ]
    status = pod_status(POD, states, pod_ip="127.70.0.9", host_ip="h", now="then")
    ready = {one["type"]: one["status"] for one in status["conditions"]}
    assert (ready["Ready"], status["phase"], status["podIP"]) == ("False", "Running", "127.70.0.9")
    states[1].running = states[1].ready = True
    later = pod_status({**POD, "status": status}, states, pod_ip="127.70.0.9", host_ip="h", now="later")
    since = {one["type"]: one["lastTransitionTime"] for one in later["conditions"]}
    assert (since["Ready"], since["Initialized"]) == ("later", "then")


def test_phases() -> None:
    """Pending, Running, and how it ended; a container that is about to be started again has not ended."""
    assert phase([ContainerState("a", "i")]) == "Pending"
    assert phase([ContainerState("a", "i", running=True)]) == "Running"
    assert phase([ContainerState("a", "i", started_at="t", last_exit_code=1, exit_code=1)]) == "Running"
    assert phase([ContainerState("a", "i", done=True, exit_code=0)]) == "Succeeded"
    assert phase([ContainerState("a", "i", done=True, exit_code=3)]) == "Failed"
    assert phase([ContainerState("i", "i", init=True, done=True, exit_code=1), ContainerState("a", "i")]) == "Failed"


def test_a_container_that_crashed_tells_its_code() -> None:
    """As `kubectl describe` shows it."""
    state = ContainerState("a", "i", last_exit_code=70, exit_code=70, waiting=("CrashLoopBackOff", ""), restarts=2)
    reported = state.report()
    assert reported["state"]["waiting"]["reason"] == "CrashLoopBackOff"
    assert reported["lastState"]["terminated"]["exitCode"] == 70
    assert reported["restartCount"] == 2


# --- containers ---

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mount namespaces need root here")


def can_mount() -> bool:
    done = subprocess.run(
        ["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True, check=False
    )
    return done.returncode == 0


@needs_root
async def test_a_container_sees_its_volumes_and_nobody_else_does(tmp_path: Path) -> None:
    """A place that does not exist on the machine, a file in place of one that does, and a root that is read-only."""
    if not can_mount():
        pytest.skip("this machine allows no mounts")
    data, hosts = tmp_path / "data", tmp_path / "hosts"
    data.mkdir()
    hosts.write_text("127.70.0.3 peer\n")
    (tmp_path / "scratch").mkdir()
    text = script(
        [
            "sh",
            "-c",
            "cat /etc/hosts > /var/lib/none/such/seen; echo $A; touch /usr/x || echo refused; id -u > /tmp/u; exit 7",
        ],
        {"PATH": "/usr/bin:/bin", "A": "it's"},
        [Bind(hosts, "/etc/hosts"), Bind(data, "/var/lib/none/such")],
        scratch=tmp_path / "scratch",
        read_only_root=True,
    )
    process = await Process.start(text, tmp_path / "log")
    assert await process.wait() == 7, (tmp_path / "log").read_text()
    assert (data / "seen").read_text() == "127.70.0.3 peer\n"
    said = (tmp_path / "log").read_text()
    assert "it's" in said and "refused" in said
    assert not os.path.exists("/var/lib/none")  # noqa: ASYNC240
    assert not list((tmp_path / "scratch").iterdir())


@needs_root
async def test_commands_run_in_a_containers_place_within_their_time(tmp_path: Path) -> None:
    """As exec probes and preStop do; a late one counts as failed. Killing ends all of the group."""
    if not can_mount():
        pytest.skip("this machine allows no mounts")
    hosts = tmp_path / "hosts"
    hosts.write_text("127.70.0.3 peer\n")
    (tmp_path / "scratch").mkdir()
    environment = {"PATH": "/usr/bin:/bin"}
    text = script(
        ["sh", "-c", "echo up; sleep 60 & wait"],
        environment,
        [Bind(hosts, "/etc/hosts")],
        scratch=tmp_path / "scratch",
    )
    process = await Process.start(text, tmp_path / "log")
    while (tmp_path / "log").read_text() != "up\n":
        assert await process.execute(["true"], environment, 10)
    assert await process.execute(["grep", "-q", "peer", "/etc/hosts"], environment, 10)
    assert not await process.execute(["grep", "-q", "stranger", "/etc/hosts"], environment, 10)
    assert not await process.execute(["sleep", "60"], environment, 0.05)
    process.kill()
    assert await process.wait() == 128 + 9


@needs_root
async def test_a_container_reaches_its_programs_behind_closed_folders() -> None:
    """An interpreter in somebody's home is there for the container's user; what else is there is not."""
    if not can_mount():
        pytest.skip("this machine allows no mounts")
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        os.chmod(folder, 0o755)
        await reach(Path(folder))


async def reach(tmp_path: Path) -> None:
    """In a folder that is open itself."""
    home = tmp_path / "home"
    (home / "python/bin").mkdir(parents=True)
    (home / "python/bin/hello").write_text("#!/bin/sh\necho hello\n")
    (home / "python/bin/hello").chmod(0o755)
    (home / "secret").write_text("")
    (tmp_path / "scratch").mkdir()
    home.chmod(0o700)
    text = script(
        ["sh", "-c", "hello; id -u; ls $HOME_OF | wc -l"],
        {"PATH": f"{tmp_path}/home/python/bin:/usr/bin:/bin", "HOME_OF": f"{tmp_path}/home"},
        [],
        scratch=tmp_path / "scratch",
        user=(10001, 10001),
        shown=[f"{tmp_path}/home/python"],
    )
    process = await Process.start(text, tmp_path / "log")
    code = await process.wait()
    assert (code, (tmp_path / "log").read_text().split()) == (0, ["hello", "10001", "1"])
