"""The shop's life on the same control plane: three Deployments that are rolled, and scaled by how far they are behind.

The manifests are those of `deploy/shop`; only the address on which a pod listens is its own, because here all pods
share one network.
"""

import asyncio
import contextlib
import json
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from zlib import crc32

import yaml
from keda import Keda, scaling
from pod_spec import Image
from shop_programs import build_services, build_shipping, manifests
from stage import Stage

NAMESPACE = "shop"
FILES = ("config", "topics", "orders", "billing", "shipping")
DEPLOYMENTS = ("orders", "billing", "shipping")
PARTITIONS = 6
BACKLOG = 1200


async def rolled_shop(stage: Stage) -> str:
    """Deployed, ordered from, and restarted in the middle of it."""
    await stage.kubectl("create", "namespace", NAMESPACE)
    await stage.kubectl("apply", "-f", str(write_manifests(stage.folder / "shop.yaml")))
    await stage.kubectl("-n", NAMESPACE, "wait", "--for=condition=complete", "job/shop-topics", "--timeout=120s")
    await until_rolled_out(stage)
    async with checkout(stage, first=0) as accepted:
        await stage.until(lambda: len(accepted) > 50, 60, "orders are accepted")
        await stage.kubectl("-n", NAMESPACE, "rollout", "restart", *(f"deployment/{name}" for name in DEPLOYMENTS))
        await until_rolled_out(stage)
        count = len(accepted)
        await stage.until(lambda: len(accepted) > count + 50, 60, "orders are accepted")
    await until_shipped(stage, accepted)
    await until_in(stage, "invoices", accepted)
    return f"{len(accepted)} orders, all Deployments restarted meanwhile: each order placed once, billed and shipped"


async def scaled_by_lag(stage: Stage) -> str:
    """The bus tells KEDA how many members a group could use."""
    (scaled,) = (one for one in manifests("scaledobject") if one["metadata"]["name"] == "shipping")
    await stage.kubectl(
        "-n", NAMESPACE, "patch", "configmap", "shop", "--type=merge", "-p", '{"data": {"SHOP_DELAY": "100ms"}}'
    )
    await stage.kubectl("-n", NAMESPACE, "rollout", "restart", "deployment/shipping")
    await until_rolled_out(stage)
    keda = Keda(stage.api, scaled, NAMESPACE, lambda name: service_address(stage, name))
    async with scaling(keda):
        await stage.until(lambda: keda.looks and keda.looks[-1].replicas == 0, 60, "nothing to do, nobody there")
        await stage.until(lambda: not ready_pods(stage, "shipping"), 90, "nobody is there")
    # All of it is there before KEDA looks again, so that how fast the machine is makes no difference.
    ids = [f"late-{number:05}" for number in range(BACKLOG)]
    for first in range(0, BACKLOG, 50):
        await place(stage, ids[first : first + 50])
    begin = time.monotonic()
    async with scaling(keda):
        await stage.until(lambda: ready_pods(stage, "shipping") == PARTITIONS, 120, "a member for each partition")
        grown_s = time.monotonic() - begin
        await until_shipped(stage, ids)
        shipped_s = time.monotonic() - begin
        await stage.until(lambda: keda.looks[-1].replicas == 0, 120, "all done, nobody there")
        await stage.until(lambda: not ready_pods(stage, "shipping"), 90, "nobody is there")
        await place(stage, ["last"])
        await until_shipped(stage, ["last"])
    shipped = {log.name for log in (stage.folder / "logs").glob("shop_shipping-*.log") if "late-" in log.read_text()}
    assert len(shipped) == PARTITIONS, f"only {len(shipped)} members shipped anything"
    most = max(look.replicas for look in keda.looks)
    assert most == PARTITIONS, f"at most {most} replicas, with {PARTITIONS} partitions"
    return (
        f"0 members without orders; {BACKLOG} at once: {PARTITIONS}, one a partition, not {BACKLOG // 50},"
        f" ready after {grown_s:.0f} s, each of which shipped; all done after {shipped_s:.0f} s; then 0, and 1 again"
    )


# --- images and manifests


def build_images(stage: Stage) -> None:
    """Both of the shop's, in one folder. Before the first step: a compiler would take the processor from what runs."""
    built = build_services(stage.folder / "images/shop")
    build_shipping(built)
    image = Image(
        entrypoint=(),
        path=(str(built.folder / "bin"), str(Path(sys.executable).parent)),
        environment={name: value for name, value in built.environment.items() if name != "PATH"},
        shown=(sys.base_prefix, sys.prefix),
    )
    for name in ("postbus-shop", "postbus-shop-shipping"):
        stage.images[f"{name}:0.1.0"] = image
    # The bus' own image goes by the manifests' tag as well, whatever this tree's version is.
    stage.images.setdefault("postbus:0.1.0", stage.images[f"postbus:{stage.versions[0]}"])


def write_manifests(path: Path) -> Path:
    """In their namespace, each pod listening on its own address."""
    objects = manifests(*FILES)
    for one in objects:
        one["metadata"]["namespace"] = NAMESPACE
        if one["kind"] == "Deployment":
            for container in one["spec"]["template"]["spec"]["containers"]:
                for variable in container["env"]:
                    if variable["name"] == "SHOP_LISTEN":
                        variable["value"] = "$(POD_IP):8080"
    path.write_text(yaml.safe_dump_all(objects))
    return path


async def until_rolled_out(stage: Stage) -> None:
    """All three."""
    for name in DEPLOYMENTS:
        await stage.kubectl("-n", NAMESPACE, "rollout", "status", f"deployment/{name}", "--timeout=180s")


def ready_pods(stage: Stage, name: str) -> int:
    """Of a Deployment; those that are on their way out don't count."""
    return sum(
        pod["metadata"]["namespace"] == NAMESPACE
        and pod["metadata"]["labels"].get("app.kubernetes.io/name") == name
        and "deletionTimestamp" not in pod["metadata"]
        and any(one["type"] == "Ready" and one["status"] == "True" for one in pod["status"].get("conditions", ()))
        for pod in stage.machine.pods.values()
    )


def service_address(stage: Stage, name: str) -> str:
    """host:port of a ready pod, of a Service's short name with its port. Raises OSError if there is none."""
    host, _, port = name.partition(":")
    addresses = stage.machine.names.get(f"{host}.svc.cluster.local", [])
    if not addresses:
        raise OSError(f"{name} has no address")
    return f"{addresses[int(time.monotonic()) % len(addresses)]}:{port}"


# --- orders


@contextlib.asynccontextmanager
async def checkout(stage: Stage, *, first: int) -> AsyncIterator[list[str]]:
    """Orders, one after the other, sent again until accepted; the list grows with those that are."""
    accepted: list[str] = []

    done = asyncio.Event()

    async def order() -> None:
        number = first
        while not done.is_set():
            one = f"order-{number:05}"
            await place(stage, [one])
            accepted.append(one)
            number += 1
            await asyncio.sleep(0.02)

    task = asyncio.create_task(order())
    try:
        yield accepted
        # The order in hand is finished: nobody could say what became of it.
        done.set()
        await task
    finally:
        task.cancel()
        await asyncio.wait([task])


async def place(stage: Stage, ids: list[str]) -> None:
    """Returns when all of them are durable."""
    lines = [
        json.dumps(
            {
                "order_id": one,
                "customer": f"customer-{crc32(one.encode()) % 41}",
                "item": "lamp",
                "quantity": 1,
                "unit_price_cents": 995,
            }
        )
        for one in ids
    ]
    async with asyncio.timeout(90):
        while True:
            with contextlib.suppress(OSError, EOFError, IndexError):
                if await post(service_address(stage, f"orders.{NAMESPACE}:8080"), "\n".join(lines)) == 200:
                    return
            await asyncio.sleep(0.1)


async def post(address: str, body: str) -> int:
    """To /orders; the status."""
    host, _, port = address.partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        data = body.encode()
        head = f"POST /orders HTTP/1.1\r\nHost: orders\r\nConnection: close\r\nContent-Length: {len(data)}\r\n\r\n"
        writer.write(head.encode() + data)
        return int((await reader.readline()).split()[1])
    finally:
        writer.close()


async def until_shipped(stage: Stage, ids: list[str]) -> None:
    """Each of them, which was placed once."""
    await until_in(stage, "shipments", ids)
    placed = await orders_in(stage, "orders")
    assert all(placed[one] == 1 for one in ids), "an order was placed twice"


async def until_in(stage: Stage, topic: str, ids: list[str]) -> None:
    """Each of these orders is in a topic."""
    deadline = time.monotonic() + 180
    while lacking := set(ids) - (await orders_in(stage, topic)).keys():
        assert time.monotonic() < deadline, f"{len(lacking)} of {len(ids)} orders are not in {topic}"
        await asyncio.sleep(1)


async def orders_in(stage: Stage, topic: str) -> Counter[str]:
    """How often each order is in a topic."""
    printed = await stage.postbus("subscribe", topic, "--from", "earliest", "--until-end")
    found: list[Any] = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    return Counter(one["order_id"] for one in found)
