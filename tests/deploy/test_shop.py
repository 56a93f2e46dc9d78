"""The shop as it is deployed: what its manifests say holds, and what they run does what a shop does.

Its services run as processes of this machine, with the commands and the environment of their containers.
"""

import asyncio
import itertools
import json
import re
import subprocess
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from broker_process import BrokerProcess
from postbus import Client
from programs import ROOT, tool
from shop_programs import (
    SHOP,
    Image,
    Pods,
    Program,
    build_services,
    build_shipping,
    containers,
    deployment,
    environment,
    manifests,
    probe,
    request,
)

from broker.errors import PostbusError
from broker.services.scaler_trigger import parse_trigger

pytestmark = pytest.mark.timeout(900)  # a machine's first Go build takes minutes

SERVICES = ("orders", "billing", "shipping")
PLAIN = ("config", "topics", *SERVICES)


# --- the manifests


@pytest.mark.parametrize("version", ["1.31", "1.35", "1.37"])
def test_kubernetes_takes_every_object(version: str) -> None:
    """Unknown and misspelt fields included."""
    files = [str(SHOP / f"{name}.yaml") for name in PLAIN]
    command = [tool("kubernetes-validate"), "--strict", "-k", version, *files]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    told = done.stdout + done.stderr
    assert done.returncode == 0 and "WARN" not in told, told
    assert told.count("passed") == len(manifests(*PLAIN))


def test_kustomize_is_told_of_all_but_what_needs_keda() -> None:
    resources = yaml.safe_load((SHOP / "kustomization.yaml").read_text())["resources"]
    assert sorted(resources) == sorted(f"{name}.yaml" for name in PLAIN)
    others = {path.name for path in SHOP.glob("*.yaml")} - set(resources)
    assert others == {"kustomization.yaml", "scaledobject.yaml"}


@pytest.mark.parametrize("workload", [*map(deployment, SERVICES), *manifests("topics")], ids=lambda each: each["kind"])
def test_containers_have_no_more_rights_than_they_need(workload: dict[str, Any]) -> None:
    """Not root, nothing to write to, no token, bounded memory; time to finish that is longer than finishing takes."""
    pod = workload["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is pod["enableServiceLinks"] is False
    assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] == 10001
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in containers(workload):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["requests"].keys() == {"cpu", "memory"}
        assert "memory" in container["resources"]["limits"]
        assert environment(container)["POSTBUS_ADDRESS"]
    if workload["kind"] == "Deployment":
        assert pod["terminationGracePeriodSeconds"] == 30


@pytest.mark.parametrize("name", SERVICES)
def test_selectors_ports_and_probes_fit(name: str) -> None:
    """And the port that the service is told to listen on is the one that is named."""
    workload = deployment(name)
    labels = workload["spec"]["template"]["metadata"]["labels"]
    assert workload["spec"]["selector"]["matchLabels"] == labels
    (container,) = containers(workload)
    (port,) = container["ports"]
    assert environment(container)["SHOP_LISTEN"] == f"0.0.0.0:{port['containerPort']}"
    for kind in ("livenessProbe", "readinessProbe"):
        assert container[kind]["httpGet"]["port"] == port["name"]
    for each in manifests(name):
        if each["kind"] == "Service":
            assert each["spec"]["selector"] == labels
            assert each["spec"]["ports"][0]["targetPort"] == port["name"]
        if each["kind"] == "PodDisruptionBudget":
            assert each["spec"]["selector"]["matchLabels"] == labels


@pytest.mark.parametrize("scaled", manifests("scaledobject"), ids=lambda each: each["metadata"]["name"])
def test_triggers_are_what_the_bus_takes(scaled: dict[str, Any]) -> None:
    """They scale a Deployment that is there by the lag of the group that it is; and no replicas are set besides."""
    name = scaled["spec"]["scaleTargetRef"]["name"]
    assert "replicas" not in deployment(name)["spec"], "an apply would undo what KEDA did"
    (trigger,) = scaled["spec"]["triggers"]
    assert trigger["type"] in {"external", "external-push"}
    assert trigger["metadata"]["scalerAddress"] == environment(containers(deployment(name))[0])["POSTBUS_ADDRESS"]
    parsed = parse_trigger(trigger["metadata"])
    assert (parsed.group, parsed.topic) == (name, "orders")
    assert scaled["spec"]["minReplicaCount"] <= scaled["spec"]["maxReplicaCount"]


def test_hadolint_finds_nothing() -> None:
    subprocess.run([tool("hadolint"), str(SHOP / "Containerfile")], check=True, timeout=60)


def test_every_key_of_a_trigger_is_documented() -> None:
    """And no other, with the default that holds."""
    text = (ROOT / "deploy/README.md").read_text().partition("## Autoscaling")[2].partition("\n## ")[0]
    table = dict(re.findall(r"^\| `(\w+)` \| ([^|]*) \|", text, re.MULTILINE))
    for key in table:
        with pytest.raises(PostbusError, match=rf"scalerMetadata\.{key}: '/' "):
            parse_trigger({"group": "g", key: "/"})
    with pytest.raises(PostbusError) as refused:
        parse_trigger({"group": "g", "other": ""})
    assert set(re.findall(r"\b[a-z]+[A-Z]?\w*", refused.value.message)) >= table.keys()
    defaults = {key: value.strip("`") for key, value in table.items() if value.startswith("`") or value.isdecimal()}
    assert parse_trigger({"group": "g"} | defaults) == parse_trigger({"group": "g"})
    assert len(table) == 7


def test_images_are_built_for_every_program() -> None:
    """Each image that a manifest names and this folder builds has a target whose programs it runs."""
    built = (SHOP / "Containerfile").read_text()
    scripts = (ROOT / "clients/python/examples/shop/pyproject.toml").read_text()
    for name, image in (("orders", "postbus-shop"), ("billing", "postbus-shop"), ("shipping", "postbus-shop-shipping")):
        (container,) = containers(deployment(name))
        assert container["image"] == f"{image}:0.1.0"
        assert f"-t {container['image']} ." in built
        assert f'{container["command"][0]} = "' in scripts or f"-o /{container['command'][0]} ." in built


# --- what they run


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """The Python services, installed."""
    return build_services(tmp_path_factory.mktemp("shop"))


@pytest.fixture(scope="module")
def whole_image(image: Image) -> Image:
    """With shipping."""
    build_shipping(image)
    return image


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[BrokerProcess]:
    """A bus, on a folder and a port that it keeps."""
    process = BrokerProcess(tmp_path / "data", environment={"POSTBUS_DISK_FREE_MIN_BYTES": "1MiB"})
    await process.start()
    yield process
    await process.close()


def an_order(number: int) -> str:
    return json.dumps(
        {
            "order_id": f"order-{number:05}",
            "customer": f"customer-{number % 41}",
            "item": "lamp",
            "quantity": 1 + number % 3,
            "unit_price_cents": 995,
        }
    )


def ids(count: int) -> set[str]:
    return {f"order-{number:05}" for number in range(count)}


async def create_topics(broker: BrokerProcess) -> None:
    """As the Job does, in less time."""
    async with Client(broker.target) as client:
        for topic in ("orders", "invoices", "shipments"):
            await client.topics.create(topic, partition_count=6)


async def order(program: Program, lines: list[str]) -> None:
    """A checkout that sends its orders again until they are accepted."""
    async with asyncio.timeout(120):
        while True:
            status, body = await request(program.port, "POST", "/orders", "\n".join(lines))
            if status == 200:
                assert body.split() == [json.loads(line)["order_id"] for line in lines]
                return
            assert status in {0, 503}, body
            await asyncio.sleep(0.05)


async def read(broker: BrokerProcess, topic: str) -> Counter[str]:
    """How often each order is in a topic."""
    async with Client(broker.target) as client, client.subscribe(topic, until_end=True) as records:
        return Counter([json.loads(record.value)["order_id"] async for record in records])


async def test_orders_flow_through_and_a_restarted_bus_is_survived(broker: BrokerProcess, whole_image: Image) -> None:
    """From the checkout to an invoice and a shipment of each order; nobody else restarts; all end well."""
    async with Pods(whole_image, broker.target) as pods:
        (job,) = manifests("topics")
        for container in [*containers(job), containers(job)[0]]:  # done again it changes nothing
            program = await pods.start(container)
            assert await program.end() == 0, program.errors
        orders, billing, shipping = [await pods.ready(name) for name in SERVICES]
        for path, status in (("/nowhere", 404), ("/orders", 400)):
            assert (await request(orders.port, "POST", path, '{"order_id": "x"}'))[0] == status
        await order(orders, [an_order(number) for number in range(50)])
        for reader in (billing, shipping):
            await reader.until_printed(ids(50))

        async def checkout() -> None:
            for first in range(50, 450, 10):
                await order(orders, [an_order(number) for number in range(first, first + 10)])

        ordering = asyncio.create_task(checkout())
        await shipping.until_lines(100)
        assert await broker.stop() == 0
        # Without a bus nobody is restarted, and nobody who only reads stops being ready.
        for name, program in zip(SERVICES, (orders, billing, shipping), strict=True):
            (container,) = containers(deployment(name))
            for kind in ("livenessProbe", "readinessProbe"):
                assert await probe(program, container[kind]) == 200
        await broker.start()
        await ordering
        await broker.kill()
        await broker.start()
        await order(orders, [an_order(number) for number in range(440, 500)])  # some of them again
        for reader in (billing, shipping):
            await reader.until_printed(ids(500))
        assert [await program.stop() for program in (orders, billing, shipping)] == [0, 0, 0]
        assert await read(broker, "orders") == Counter(ids(500))
        assert await read(broker, "shipments") == Counter(ids(500))
        assert (await read(broker, "invoices")).keys() == ids(500)


async def test_a_stop_of_billing_in_the_middle_loses_and_repeats_nothing(broker: BrokerProcess, image: Image) -> None:
    """SIGTERM: what is in hand is finished and acknowledged; who comes next begins exactly there."""
    count = 3000
    async with Pods(image, broker.target) as pods, Client(broker.target) as client:
        await create_topics(broker)
        values = [an_order(number) for number in range(count)]
        keyed = [(json.loads(value)["customer"].encode(), value.encode()) for value in values]
        await (await client.publish_many("orders", keyed))
        done: list[list[str]] = []
        for _ in range(3):
            billing = await pods.ready("billing")
            await billing.until_lines(1)
            assert await billing.stop() == 0, billing.errors
            done.append(billing.lines)
            left = count - sum(map(len, done))
            assert left > 0, "it was not in the middle"
            offsets = await client.groups.offsets("billing")
            assert sum(offset.lag for offset in offsets) == left
        billing = await pods.ready("billing")
        await billing.until_lines(left)
        assert await billing.stop() == 0, billing.errors
        done.append(billing.lines)
        assert Counter(itertools.chain(*done)) == Counter(ids(count)), "what was acknowledged came again, or never"
        assert await read(broker, "invoices") == Counter(ids(count))


async def test_orders_finishes_what_it_has_begun(broker: BrokerProcess, image: Image) -> None:
    """SIGTERM while a request waits for a bus that is away: it is answered, one way or the other, before the end."""
    async with Pods(image, broker.target) as pods:
        await create_topics(broker)
        orders = await pods.ready("orders")
        await broker.kill()
        asked = asyncio.create_task(request(orders.port, "POST", "/orders", an_order(0)))
        await orders.until(lambda: any("trying again" in line for line in orders.errors))
        stopping = asyncio.create_task(orders.stop())
        await broker.start()
        assert await asked == (200, "order-00000\n")
        assert await stopping == 0
        assert await read(broker, "orders") == Counter(ids(1))
