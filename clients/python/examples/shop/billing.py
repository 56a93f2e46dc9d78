"""The billing service: event-sourced. Its ledger is made from `orders` and from nothing else.

    python billing.py              reads `orders` as the group "billing", publishes to `invoices`
    python billing.py --rebuild    makes the ledger from the first order on, prints the invoices and ends

An order is acknowledged after its invoice is durable. If it comes again (a kill between the two), the ledger knows it
and the same invoice goes out once more, word for word: whoever reads invoices takes one of an order id. SIGTERM lets it
finish: nothing more is taken, what is in hand is billed and acknowledged, and the others get its partitions.

Nobody calls it, but somebody may watch over it (--listen): /healthz says that it is not stuck, /readyz that it knows
the orders so far and takes new ones.
"""

import argparse
import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Coroutine
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, TypeVar

from postbus import Client

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Invoice:
    """What a customer owes for one order, and in all."""

    order_id: str
    customer: str
    number: str
    amount_cents: int
    balance_cents: int


@dataclass(slots=True)
class Ledger:
    """Every invoice, as a function of the orders alone: equal logs give equal ledgers.

    Numbers and balances go by customer. A customer's orders share a key, hence a partition, hence an order; how
    partitions interleave makes no difference.
    """

    invoices: dict[str, Invoice] = field(default_factory=dict)
    latest: dict[str, Invoice] = field(default_factory=dict)
    next_offset: dict[int, int] = field(default_factory=dict)

    def bill(self, partition: int, offset: int, value: bytes) -> Invoice | None:
        """The invoice for the order at this offset; one that is known, here or elsewhere, is not billed anew.

        None if it is no order: anybody may publish anything, and one such record must not stop the others.
        """
        self.next_offset[partition] = max(offset + 1, self.next_offset.get(partition, 0))
        try:
            event = json.loads(value)
            order_id, customer = event["order_id"], event["customer"]
            amount = event["quantity"] * event["unit_price_cents"]
        except (ValueError, KeyError, TypeError):
            print(f"orders/{partition}@{offset} is no order; passed over", file=sys.stderr)
            return None
        if order_id not in self.invoices:
            before = self.latest.get(customer)
            count = int(before.number.rpartition("/")[2]) if before else 0
            invoice = Invoice(
                order_id=order_id,
                customer=customer,
                number=f"{customer}/{count + 1}",
                amount_cents=amount,
                balance_cents=amount + (before.balance_cents if before else 0),
            )
            self.invoices[order_id] = self.latest[customer] = invoice
        return self.invoices[order_id]


class Life:
    """What those outside want to know, and may say."""

    def __init__(self) -> None:
        self.ready = False
        self.stopping = asyncio.Event()

    async def stopped_before(self, work: Coroutine[Any, Any, T]) -> T | None:
        """What the work gives; None, and the work is given up, if it is to stop first."""
        task, stop = asyncio.ensure_future(work), asyncio.ensure_future(self.stopping.wait())
        try:
            await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
            return None if stop.done() else task.result()
        finally:
            task.cancel()
            stop.cancel()


async def serve(client: Client, life: Life) -> None:
    """Bills orders as a member of the group, until it is to stop."""
    ledger = Ledger()
    await life.stopped_before(replay(client, ledger))
    if life.stopping.is_set():
        return
    async with client.subscribe("orders", group="billing", ack="manual", batch_records_max=100) as orders:
        life.ready = True
        while (batch := await life.stopped_before(orders.get_batch())) is not None:
            known = ledger.next_offset.get(batch.partition, 0)
            if batch.base_offset > known:  # another member billed here while we ran
                await replay(client, ledger, partition=batch.partition, start=known, stop=batch.base_offset)
            billed = [ledger.bill(batch.partition, record.offset, record.value) for record in batch]
            invoices = [invoice for invoice in billed if invoice is not None]
            deliveries = [
                await client.publish("invoices", json.dumps(asdict(invoice)), key=invoice.customer)
                for invoice in invoices
            ]
            for delivery in deliveries:
                await delivery
            await batch.ack()  # only now: a kill before this line costs nothing but doing it again
            for invoice in invoices:
                print(invoice.order_id, flush=True)
        life.ready = False


async def replay(
    client: Client, ledger: Ledger, *, partition: int | None = None, start: int = 0, stop: int | str = "latest"
) -> None:
    """Puts old orders into the ledger: all of them, or a part of one partition. Publishes nothing."""
    part = {} if partition is None else {"partitions": [partition], "positions": {("orders", partition): start}}
    async with client.subscribe("orders", stop=stop, **part) as orders:
        async for record in orders:
            ledger.bill(record.partition, record.offset, record.value)


async def rebuild(client: Client) -> None:
    """Prints the ledger as the log tells it."""
    ledger = Ledger()
    await replay(client, ledger)
    for order_id in sorted(ledger.invoices):
        print(json.dumps(asdict(ledger.invoices[order_id])))


async def answer(life: Life, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One HTTP request: /readyz, or anything else."""
    with contextlib.suppress(OSError, asyncio.TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
        no = b" /readyz" in head and not life.ready
        writer.write(b"HTTP/1.1 %s\r\nContent-Length: 0\r\n\r\n" % (b"503 Not Yet" if no else b"200 OK"))
    writer.close()


async def run(options: argparse.Namespace) -> None:
    """Until SIGINT or SIGTERM."""
    life = Life()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, life.stopping.set)
    async with contextlib.AsyncExitStack() as stack:
        if options.listen:
            host, _, port = options.listen.rpartition(":")
            server = await asyncio.start_server(partial(answer, life), host, int(port))
            stack.callback(server.close)
        client = await stack.enter_async_context(Client(options.address))
        if options.rebuild:
            await life.stopped_before(rebuild(client))
        else:
            await serve(client, life)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--address", default=os.environ.get("POSTBUS_ADDRESS", "localhost:7070"), help="any node of the bus, or several"
    )
    parser.add_argument(
        "--listen", default=os.environ.get("SHOP_LISTEN", ""), help="host:port for /healthz and /readyz; empty: nowhere"
    )
    parser.add_argument("--rebuild", action="store_true", help="print the ledger as the log tells it, and end")
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
