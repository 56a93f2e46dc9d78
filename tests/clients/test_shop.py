"""The shop's three services are started, stopped, killed, stalled and upgraded one at a time; none notices another."""

import json
import signal
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from postbus import Client

pytestmark = pytest.mark.timeout(900)  # the first Go build of a machine; a warm run takes seconds

SHOP = Path(__file__).parents[2] / "clients/python/examples/shop"
CUSTOMERS = 17
ROUND = 30
# What somebody else published to `orders`.
STRAYS = [b"not JSON", b"{}", b"7"]


@pytest.fixture(scope="session")
def shipping(go: str, build, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipping service, built."""
    program = tmp_path_factory.mktemp("shop") / "shipping"
    build([go, "build", "-o", program, "."], cwd=SHOP / "shipping")
    return program


class Shop:
    """Starts the services, and is their checkout."""

    def __init__(self, broker, run, shipping: Path) -> None:
        self._address = ["--address", broker.address]
        self._run = run
        self._shipping = shipping
        self.checkout: list[dict] = []

    def orders(self, release: str):
        """Starts the orders service."""
        return self._run(sys.executable, SHOP / "orders.py", *self._address, "--release", release)

    def billing(self, *arguments: str):
        """Starts the billing service."""
        return self._run(sys.executable, SHOP / "billing.py", *self._address, *arguments)

    def shipping(self, release: str):
        """Starts the shipping service."""
        return self._run(self._shipping, *self._address, "--release", release)

    def customers_order(self, count: int, **more: str) -> list[str]:
        """The checkout's next lines."""
        first = len(self.checkout)
        for number in range(first, first + count):
            order = {
                "order_id": f"order-{number:04}",
                "customer": f"customer-{number % CUSTOMERS}",
                "item": ["lamp", "desk", "chair"][number % 3],
                "quantity": 1 + number % 4,
                "unit_price_cents": 995 + 10 * number,
            }
            self.checkout.append(order | more)
        return [json.dumps(order) for order in self.checkout[first:]]

    @property
    def placed(self) -> set[str]:
        """The ids of all orders so far."""
        return {order["order_id"] for order in self.checkout}

    def invoices(self) -> dict[str, dict]:
        """What must have been billed: numbers and balances go by customer, in the order of their orders."""
        count: dict[str, int] = {}
        balance: dict[str, int] = {}
        expected = {}
        for order in self.checkout:
            customer = order["customer"]
            amount = order["quantity"] * order["unit_price_cents"]
            count[customer] = count.get(customer, 0) + 1
            balance[customer] = balance.get(customer, 0) + amount
            expected[order["order_id"]] = {
                "order_id": order["order_id"],
                "customer": customer,
                "number": f"{customer}/{count[customer]}",
                "amount_cents": amount,
                "balance_cents": balance[customer],
            }
        return expected

    def shipments(self) -> dict[str, dict]:
        """What must have been shipped."""
        expected = {}
        for order in self.checkout:
            parcel = f"{order['quantity']} x {order['item']} for {order['customer']}"
            note = {"gift_note": order["gift_note"]} if "gift_note" in order else {}
            expected[order["order_id"]] = {"order_id": order["order_id"], "parcel": parcel, **note}
        return expected


def events(broker, topic: str) -> Iterator[dict]:
    """Everything in a topic, without the strays."""
    for records in broker.records(topic).values():
        for record in records:
            if record.value not in STRAYS:
                yield json.loads(record.value)


def by_order(found: Iterable[dict]) -> dict[str, dict]:
    """Events by order id; what came twice must be the same, word for word."""
    known: dict[str, dict] = {}
    for event in found:
        assert known.setdefault(event["order_id"], event) == event
    return known


def test_services_come_and_go_and_nothing_is_lost(own_broker, run, shipping: Path) -> None:
    """Each order is billed once and shipped once by content; a rebuilt billing has the state of the one that ran."""
    broker = own_broker
    for topic in ("orders", "invoices", "shipments"):
        broker.create_topic(topic)
    shop = Shop(broker, run, shipping)

    # Orders are accepted while nobody else exists. What is none stops neither this service nor the readers.
    orders = shop.orders("v1")
    orders.say(["not JSON", "{}", *shop.customers_order(ROUND)])
    with Client.sync(broker.address) as client:
        client.publish_many("orders", STRAYS).result()
    run.wait_until(lambda: shop.placed == set(orders.lines), "orders without readers")

    # Shipping catches up without billing, billing without shipping having waited for it.
    parcels = shop.shipping("v1")
    run.wait_until(lambda: shop.placed == set(parcels.lines), "shipping without billing")
    bills = shop.billing()
    run.wait_until(lambda: shop.placed == set(bills.lines), "billing what came before it")

    # Billing is killed in the middle; the others go on.
    orders.say(shop.customers_order(ROUND))
    run.wait_until(lambda: len(bills.lines) > ROUND, "billing at work")
    bills.kill()
    orders.say(shop.customers_order(ROUND))
    run.wait_until(lambda: shop.placed == set(orders.lines), "orders without billing")
    run.wait_until(lambda: shop.placed == set(parcels.lines), "shipping without billing again")
    killed, bills = bills, shop.billing()
    run.wait_until(lambda: shop.placed == {*killed.lines, *bills.lines}, "billing after its kill")

    # Shipping stalls; the others do not slow down.
    parcels.send(signal.SIGSTOP)
    shipped = len(parcels.lines)
    orders.say(shop.customers_order(ROUND))
    run.wait_until(lambda: shop.placed == set(orders.lines), "orders while shipping stalls")
    run.wait_until(lambda: shop.placed == {*killed.lines, *bills.lines}, "billing while shipping stalls")
    assert len(parcels.lines) == shipped
    parcels.send(signal.SIGCONT)
    run.wait_until(lambda: shop.placed == set(parcels.lines), "shipping after its stall")

    # Shipping is killed at work, and comes back upgraded, before anyone writes the new field.
    lines = shop.customers_order(ROUND)
    orders.say(lines)
    run.wait_until(lambda: len(parcels.lines) > shipped + ROUND, "shipping at work")
    parcels.kill()
    old_parcels, parcels = parcels, shop.shipping("v2")

    # Orders is killed and upgraded in the middle; the checkout repeats what it had sent.
    accepted = len(orders.lines)
    more = shop.customers_order(ROUND)
    orders.say(more)
    run.wait_until(lambda: len(orders.lines) > accepted, "orders at work")
    orders.kill()
    orders = shop.orders("v2")
    orders.say(lines + more)

    # The bus itself is killed; everyone waits and goes on.
    run.wait_until(lambda: len(orders.lines) > 0, "the new orders at work")
    broker.kill()
    broker.start()
    orders.say(shop.customers_order(ROUND, gift_note="with love"))
    orders.finish_input()
    assert orders.wait() == 0, orders.errors()
    run.wait_until(lambda: shop.placed == {*old_parcels.lines, *parcels.lines}, "all shipped")
    run.wait_until(lambda: shop.placed == {*killed.lines, *bills.lines}, "all billed")
    assert parcels.stop() == 0, parcels.errors()
    assert bills.stop() == 0, bills.errors()

    # An operator rewinds both groups by mistake: all is delivered again, and nobody is billed or shipped to twice.
    for group in ("billing", "shipping"):
        broker.rewind(group, "orders")
    parcels, bills = shop.shipping("v2"), shop.billing()
    run.wait_until(lambda: shop.placed == set(parcels.lines) == set(bills.lines), "everything again")
    assert parcels.stop() == 0, parcels.errors()
    assert bills.stop() == 0, bills.errors()

    assert sorted(event["order_id"] for event in events(broker, "orders")) == sorted(shop.placed)
    assert by_order(events(broker, "invoices")) == shop.invoices()
    assert by_order(events(broker, "shipments")) == shop.shipments()
    assert len(list(events(broker, "shipments"))) == len(shop.placed), "request ids keep repetitions out of the log"

    rebuilt = shop.billing("--rebuild")
    assert rebuilt.wait() == 0, rebuilt.errors()
    assert by_order(map(json.loads, rebuilt.lines)) == shop.invoices()
    again = shop.billing("--rebuild")
    assert again.wait() == 0, again.errors()
    assert again.lines == rebuilt.lines
