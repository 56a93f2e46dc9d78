"""The orders service: takes orders from the checkout, one JSON object a line, and publishes OrderPlaced events.

    python orders.py < checkout.ndjson

It knows the bus and nobody else: whether billing or shipping run, it never learns. An order is accepted (its id is
printed) once the event is durable. The order's id is the request id of its event, so the checkout may send an order
again, to this process or to the next, and it is placed once. Written with generated stubs: this is all it takes.
"""

import argparse
import json
import os
import signal
import sys
import time

import grpc

from postbus.v1 import publisher_pb2, publisher_pb2_grpc, record_pb2

# Release v2 knows one field more. Readers of v1 events go on reading v2 events.
FIELDS = {
    "v1": ("order_id", "customer", "item", "quantity", "unit_price_cents"),
    "v2": ("order_id", "customer", "item", "quantity", "unit_price_cents", "gift_note"),
}
# The same request may be sent again, because it has a request id.
AGAIN = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


def main() -> None:
    """Publishes an event for each line until the checkout closes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--address", default=os.environ.get("POSTBUS_ADDRESS", "localhost:7070"), help="any node of the bus"
    )
    parser.add_argument("--release", choices=FIELDS, default="v1", help="which code is deployed")
    options = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit(0))

    with grpc.insecure_channel(options.address) as channel:
        bus = publisher_pb2_grpc.PublisherServiceStub(channel)
        for line in sys.stdin.buffer:
            try:
                event = order_placed(line, options.release)
            except (ValueError, KeyError, TypeError) as error:
                # What is accepted here has readers who can't ask back.
                print(f"no order, not accepted ({error!r}): {line!r}", file=sys.stderr)
                continue
            publish(bus, event)
            print(event["order_id"], flush=True)


def order_placed(line: bytes, release: str) -> dict[str, object]:
    """The event for a line. Raises ValueError, KeyError and TypeError."""
    order = json.loads(line)
    required = {name: order[name] for name in FIELDS["v1"]}
    return required | {name: order[name] for name in FIELDS[release] if name in order}


def publish(bus: publisher_pb2_grpc.PublisherServiceStub, event: dict[str, object]) -> None:
    """Returns when the event is in the log, once, however many tries that took."""
    # A customer's orders stay in order: they share a key, and so a partition.
    record = record_pb2.Record(key=str(event["customer"]).encode(), value=json.dumps(event).encode())
    request = publisher_pb2.PublishRequest(
        topic="orders",
        batch=record_pb2.RecordBatch(records=[record]),
        request_id=f"order-{event['order_id']}",
    )
    while True:
        try:
            bus.Publish(request, timeout=10)
            return
        except grpc.RpcError as error:  # noqa: PERF203 - tries are a loop
            if error.code() not in AGAIN:
                raise
            print(f"{error.details()}; trying again", file=sys.stderr)
            time.sleep(1)


if __name__ == "__main__":
    main()
