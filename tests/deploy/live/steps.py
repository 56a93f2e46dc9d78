"""The life of a release, step by step: what an operator does, and what must hold meanwhile.

Each step gets the stage as the one before left it: all nodes in sync, publishing and consuming under way. It returns
what was asserted, in words; what it costs in pauses is measured around it by `run`.
"""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from api import ApiError
from shop_steps import rolled_shop, scaled_by_lag
from stage import CHART, GROUP, NAMESPACE, RELEASE, TOPIC, Stage

PARTITIONS = 6
ROLL_S = 300.0
# What a stop, a drain or an upgrade may cost.
GRACEFUL_PAUSE_S = 0.5
# Copying all there is to another node, on the same disk and cores that publish.
MOVING_PAUSE_S = 1.0
# What a kill may cost (bench/README.md: a second, three at worst).
KILL_PAUSE_S = 3.0


@dataclass(frozen=True, slots=True)
class Step:
    """pause_max_s: the longest time without an acknowledgement; None: nothing is published for some of it."""

    name: str
    does: Callable[[Stage], Awaitable[str]]
    pause_max_s: float | None


async def install(stage: Stage) -> str:
    """From nothing to a first record."""
    begin = time.monotonic()
    await stage.helm(
        "install", RELEASE, str(CHART), *stage.settings(), "--create-namespace", "--wait", "--timeout", "6m"
    )
    ready_s = time.monotonic() - begin
    await stage.helm("test", RELEASE, "--timeout", "2m")
    sample = await stage.watch.until(lambda one: len(one.nodes) == 3 and one.is_whole, 60, "three nodes in sync")
    racks = {node: stage.kubelets[stage.node_of(node)].zone for node in sample.nodes}
    assert sample.racks == racks, f"racks are {sample.racks}, zones {racks}"
    assert len({stage.node_of(node) for node in sample.nodes}) == 3, "two pods are on one node"
    await stage.postbus("topic", "create", TOPIC, "--partitions", str(PARTITIONS))
    await stage.load.start("publish", "publisher-1")
    for number in (1, 2, 3):
        await stage.load.start("consume", f"consumer-1-{number}")
    await stage.load.start("read", "reader-1")
    await until_flowing(stage)
    return (
        f"ready after {ready_s:.0f} s; `helm test` published and subscribed; a pod on each node, whose zone is its rack"
    )


async def changed_setting(stage: Stage) -> str:
    """A rolling restart."""
    begin = time.monotonic()
    await stage.upgrade(config__retention_interval_seconds="77s")
    await stage.until_ready(1, 2, 3)
    one_at_a_time(stage, begin, {1, 2, 3})
    return "each pod restarted once, one at a time, each only when the last was back in every ISR"


async def another_version(stage: Stage) -> str:
    """The same with other code."""
    begin = time.monotonic()
    await stage.upgrade(image__tag=stage.versions[1])
    await stage.until_ready(1, 2, 3)
    one_at_a_time(stage, begin, {1, 2, 3})
    seen = await stage.watch.until(lambda one: set(one.nodes.values()) == {stage.versions[1]}, 10, "the new version")
    return f"{stage.versions[0]} to {stage.versions[1]}, as above; all {len(seen.nodes)} nodes say so"


async def three_to_five_and_back(stage: Stage) -> str:
    """Observers join, get their share, and leave: 5 for good, 4 for a rest."""
    begin = time.monotonic()
    for number in (4, 5):
        await stage.add_node(number)
    await stage.upgrade(replicas="5")
    await stage.watch.until(lambda one: len(one.nodes) == 5, 60, "five nodes")
    await stage.postbus("cluster", "rebalance")
    await stage.watch.until(
        lambda one: one.holders == {1, 2, 3, 4, 5} and one.is_whole, ROLL_S, "all five hold records"
    )
    for number in (5, 4):
        await stage.postbus("cluster", "drain", str(number), "--move-replicas")
    await stage.watch.until(lambda one: one.holders == {1, 2, 3} and one.is_whole, ROLL_S, "4 and 5 hold nothing")
    await stage.upgrade(replicas="3")
    await stage.until(lambda: not stage.pod(4) and not stage.pod(5), 120, "pods 4 and 5 are gone")
    await forget(stage, 5)
    await stage.until_ready(1, 2, 3)
    stopped = {note.pod for note in stage.notes(begin) if note.what == "stopping"}
    assert stopped == {f"{RELEASE}-4", f"{RELEASE}-5"}, f"stopped were {stopped}"
    return "all five held replicas after `rebalance`; 4 and 5 none after `drain --move-replicas`; 1 to 3 never stopped"


async def up_again(stage: Stage) -> str:
    """Node 4 finds its claim; node 5, which was removed, begins anew."""
    await stage.upgrade(replicas="5")
    await stage.postbus("cluster", "undrain", "4")
    await stage.postbus("cluster", "rebalance")
    await stage.watch.until(lambda one: {4, 5} <= one.holders and one.is_whole, ROLL_S, "4 and 5 hold records")
    for number in (5, 4):
        await stage.postbus("cluster", "drain", str(number), "--move-replicas")
    await stage.upgrade(replicas="3")
    await stage.until(lambda: not stage.pod(4) and not stage.pod(5), 120, "pods 4 and 5 are gone")
    for number in (4, 5):
        await forget(stage, number)
        await stage.remove_node(number)
    await stage.until_ready(1, 2, 3)
    await stage.watch.until(lambda one: set(one.nodes) == {1, 2, 3}, 30, "4 and 5 are forgotten")
    return (
        "node 4 came back on its claim after `undrain`, node 5 with another volume after `remove-node`; both left again"
    )


async def forget(stage: Stage, number: int) -> None:
    """A node that holds nothing, and its claim."""
    # Kubernetes has no pod any more a moment before the bus has noticed that the node stopped.
    for _ in range(20):
        said = await stage.postbus("cluster", "remove-node", str(number), "--yes", check=False)
        if "is at work" not in said:
            break
        await asyncio.sleep(0.5)
    await stage.watch.until(lambda one: number not in one.nodes, 30, f"{number} is forgotten: {said}")
    await stage.kubectl("-n", NAMESPACE, "delete", "pvc", f"data-{RELEASE}-{number}")


async def drained_nodes(stage: Stage) -> str:
    """Two at once: the budget lets one pod go at a time."""
    begin = time.monotonic()
    names = [stage.node_of(1), stage.node_of(2)]
    options = ("--ignore-daemonsets", "--delete-emptydir-data", "--timeout=300s")
    said = await asyncio.gather(*(stage.kubectl("drain", name, *options) for name in names))
    await stage.until_ready(1, 2, 3)
    assert not {stage.node_of(1), stage.node_of(2)} & set(names), "a pod is still there"
    refused = sum("disruption budget" in text for text in said)
    assert refused, f"no drain had to wait:\n{said}"
    one_at_a_time(stage, begin, {1, 2})
    for name in names:
        await stage.kubectl("uncordon", name)
    await spread(stage)
    return "the budget made one drain wait until the other's pod was back in every ISR elsewhere"


async def deleted_by_force(stage: Stage) -> str:
    """Killed at once."""
    begin = time.monotonic()
    uid = known_uid(stage, 1)
    await stage.kubectl("-n", NAMESPACE, "delete", "pod", f"{RELEASE}-1", "--grace-period=0", "--force")
    await stage.until(lambda: known_uid(stage, 1) not in ("", uid), 60, "a new pod")
    await stage.until_ready(1, 2, 3)
    stopped = {note.pod for note in stage.notes(begin) if note.what == "stopping"}
    assert stopped == {f"{RELEASE}-1"}, stopped
    return "its successor came up on the same volume, and is back in every ISR"


async def two_with_one_ordinal(stage: Stage) -> str:
    """A node that cannot be reached goes on with its pod, which an operator replaces by force."""
    begin = time.monotonic()
    node = stage.node_of(2)
    uid = known_uid(stage, 2)
    stage.kubelets[node].fall_silent()
    await until_unreachable(stage, node)
    await stage.kubectl("-n", NAMESPACE, "delete", "pod", f"{RELEASE}-2", "--grace-period=0", "--force")
    await stage.until(lambda: known_uid(stage, 2) not in ("", uid), 60, "a second pod of ordinal 2")
    refused = await stage.until(
        lambda: [one for one in stage.notes(begin) if one.what == "exit" and one.pod == f"{RELEASE}-2"], 60, "it ends"
    )
    said = (stage.folder / "logs" / f"{NAMESPACE}_{RELEASE}-2_postbus.log").read_text(errors="replace")
    assert "in use by process" in said, f"{refused}\n{said[-2000:]}"
    await stage.kubelets[node].come_back()
    await stage.until_ready(1, 2, 3)
    return (
        "the second refuses to start while the first has the data; the first works on, and once it is gone the second"
    )


async def lost_power(stage: Stage) -> str:
    """A node goes silent with all that ran on it."""
    node, uid = stage.node_of(3), known_uid(stage, 3)
    stage.kubelets[node].lose_power()
    await until_unreachable(stage, node)
    await stage.until(lambda: (pod := stage.pod(3)) and "deletionTimestamp" in pod["metadata"], 60, "it is evicted")
    # Kubernetes can't know that it is dead; its operator says so.
    await stage.kubectl("taint", "node", node, "node.kubernetes.io/out-of-service=lost:NoExecute")
    await stage.until(lambda: known_uid(stage, 3) not in ("", uid), 120, "a pod in its place")
    await stage.until_ready(1, 2, 3)
    assert stage.node_of(3) != node
    await stage.kubectl("taint", "node", node, "node.kubernetes.io/out-of-service-")
    await stage.kubelets[node].come_back()
    await spread(stage)
    return "evicted by Kubernetes, replaced elsewhere, back in every ISR; the other two went on"


async def lost_volume(stage: Stage) -> str:
    """Claim and folder are deleted: the node is refilled."""
    claim = f"/api/v1/namespaces/{NAMESPACE}/persistentvolumeclaims/data-{RELEASE}-1"
    old = (await stage.api.get(claim))["spec"]["volumeName"]
    await stage.kubectl("-n", NAMESPACE, "delete", "pvc", f"data-{RELEASE}-1", "--wait=false")
    await stage.kubectl("-n", NAMESPACE, "delete", "pod", f"{RELEASE}-1")

    async def volume() -> str:
        try:
            return str((await stage.api.get(claim))["spec"].get("volumeName", ""))
        except ApiError:
            return ""

    deadline = time.monotonic() + 120
    while (new := await volume()) in ("", old):
        assert time.monotonic() < deadline, f"no new claim\n{await stage.describe()}"
        pod = stage.pod(1)
        if pod and pod["status"].get("phase") == "Pending" and not new:
            # Made before its old claim was gone, it waits for ever, and is made anew.
            await stage.kubectl("-n", NAMESPACE, "delete", "pod", f"{RELEASE}-1", "--ignore-not-found")
        await asyncio.sleep(1)
    await stage.until_ready(1, 2, 3)
    await stage.until(lambda: not (stage.folder / "volumes" / old).exists(), 60, "the old folder is gone")
    return "its successor began with an empty volume, and is back in every ISR"


async def reinstalled(stage: Stage) -> str:
    """helm uninstall, and install on what it left."""
    map_path = f"/api/v1/namespaces/{NAMESPACE}/configmaps/{RELEASE}-cluster"
    cluster_id = (await stage.api.get(map_path))["data"]["cluster-id"]
    await stage.load.stop(*stage.load.running("publish"))
    await stage.load.stop(*stage.load.running("consume"), *stage.load.running("read"))
    before = await stage.postbus("group", "describe", GROUP, "-o", "json")
    await stage.helm("uninstall", RELEASE, "--wait", "--timeout", "3m")
    await stage.until(lambda: not any(stage.pod(one) for one in (1, 2, 3)), 120, "no pods")
    claims = (await stage.api.get(f"/api/v1/namespaces/{NAMESPACE}/persistentvolumeclaims"))["items"]
    names = {claim["metadata"]["name"] for claim in claims}
    assert {f"data-{RELEASE}-{one}" for one in (1, 2, 3)} <= names, f"claims that are left: {sorted(names)}"
    await stage.helm("install", RELEASE, str(CHART), *stage.settings(), "--wait", "--timeout", "6m")
    assert (await stage.api.get(map_path))["data"]["cluster-id"] == cluster_id
    await stage.until_ready(1, 2, 3)
    after = await stage.postbus("group", "describe", GROUP, "-o", "json")
    assert committed(after) == committed(before), f"committed were\n{before}\nnow\n{after}"
    await stage.load.start("publish", "publisher-2")
    for number in (1, 2, 3):
        await stage.load.start("consume", f"consumer-2-{number}")
    await stage.load.start("read", "reader-2")
    await until_flowing(stage)
    return "the same cluster on the kept claims; committed offsets are as they were; all records are there (see below)"


STEPS = (
    Step("helm install, helm test, first records", install, None),
    Step("helm upgrade: a changed setting", changed_setting, GRACEFUL_PAUSE_S),
    Step("helm upgrade: another version", another_version, GRACEFUL_PAUSE_S),
    Step("from three to five, rebalance, and back", three_to_five_and_back, MOVING_PAUSE_S),
    Step("to five and back once more", up_again, MOVING_PAUSE_S),
    Step("kubectl drain of two nodes at once", drained_nodes, GRACEFUL_PAUSE_S),
    Step("a pod deleted by force", deleted_by_force, KILL_PAUSE_S),
    Step("two pods with one ordinal", two_with_one_ordinal, KILL_PAUSE_S),
    Step("a node that loses its power", lost_power, KILL_PAUSE_S),
    Step("a lost volume", lost_volume, MOVING_PAUSE_S),
    Step("the shop: three Deployments, rolled", rolled_shop, GRACEFUL_PAUSE_S),
    Step("the shop: consumers scaled by their lag", scaled_by_lag, GRACEFUL_PAUSE_S),
    Step("helm uninstall, helm install on the kept claims", reinstalled, None),
)


# --- what they share ---


async def until_flowing(stage: Stage) -> None:
    """Records are acknowledged, and reach the group."""
    before = stage.load.got()
    answered = stage.load.answered()
    await stage.until(lambda: stage.load.answered() > answered + 100, 60, "records are acknowledged")
    await stage.until(lambda: stage.load.got() > before + 100, 60, "records reach the group")


async def spread(stage: Stage) -> None:
    """A pod on each node again: Kubernetes doesn't move those that run, which are together now where there was room."""
    while len({stage.node_of(one) for one in (1, 2, 3)}) < 3:
        shared = next(one for one in (1, 2, 3) if stage.node_of(one) in {stage.node_of(two) for two in range(1, one)})
        uid = known_uid(stage, shared)
        await stage.kubectl("-n", NAMESPACE, "delete", "pod", f"{RELEASE}-{shared}")
        await stage.until(lambda uid=uid, shared=shared: known_uid(stage, shared) not in ("", uid), 60, "a new pod")
        await stage.until_ready(1, 2, 3)


async def until_unreachable(stage: Stage, node: str) -> None:
    """Kubernetes noticed, and keeps new pods away."""

    async def taints() -> list[str]:
        found = await stage.api.get(f"/api/v1/nodes/{node}")
        return [taint["key"] for taint in found["spec"].get("taints", ())]

    deadline = time.monotonic() + 90
    while "node.kubernetes.io/unreachable" not in await taints():
        assert time.monotonic() < deadline, f"{node} still counts as there"
        await asyncio.sleep(0.2)


def one_at_a_time(stage: Stage, begin: float, ordinals: set[int]) -> None:
    """Each of them stopped once, and only while all others were ready and every replica was in sync."""
    away: set[str] = set()
    stopped: list[str] = []
    for note in stage.notes(begin):
        if note.what == "stopping":
            assert not away, f"{note.pod} was stopped while {away} were away"
            sample = stage.watch.before(note.at)
            assert sample is not None and sample.is_whole, (
                f"{note.pod} was stopped while {sample and sample.lacking} lacked"
            )
            away.add(note.pod)
            stopped.append(note.pod)
        elif note.what == "ready":
            away.discard(note.pod)
    assert sorted(stopped) == [f"{RELEASE}-{one}" for one in sorted(ordinals)], f"stopped were {stopped}"


def known_uid(stage: Stage, ordinal: int) -> str:
    """Of the pod that the API server has; empty: none."""
    pod = stage.pod(ordinal)
    return str(pod["metadata"]["uid"]) if pod else ""


def committed(described: str) -> dict[tuple[str, int], int]:
    """Offsets by partition, from what `postbus group describe -o json` printed."""
    return {(one["topic"], one["partition"]): one["offset"] for one in json.loads(described)["offsets"]}
