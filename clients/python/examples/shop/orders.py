"""The orders service: takes orders from the checkout and publishes OrderPlaced events. An order is one line of JSON.

    python orders.py < checkout.ndjson       from standard input, until it ends
    python orders.py --listen 0.0.0.0:8080   over HTTP: POST /orders; GET /healthz

It knows the bus and nobody else: whether billing or shipping run, it never learns. An order is accepted (its id is
printed, or answered) once the event is durable. The order's id is the request id of its event, so the checkout may send
an order again, to this process or to another, and it is placed once. SIGTERM lets it finish what it has begun. Written
with generated stubs: this is all it takes.
"""

import argparse
import json
import os
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import BinaryIO

import grpc

from postbus.v1 import publisher_pb2, publisher_pb2_grpc, record_pb2

# Release v2 knows one field more. Readers of v1 events go on reading v2 events.
FIELDS = {
    "v1": ("order_id", "customer", "item", "quantity", "unit_price_cents"),
    "v2": ("order_id", "customer", "item", "quantity", "unit_price_cents", "gift_note"),
}
# The same request may be sent again, because it has a request id.
AGAIN = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
NO_ORDER = (ValueError, KeyError, TypeError)
# Of the HTTP side: how long the bus may be away, what one request may hold, how many at once.
PATIENCE_S = 10.0
BODY_BYTES_MAX = 1024 * 1024
REQUESTS_MAX = 32


class Orders:
    """Makes events of orders, and publishes them."""

    def __init__(self, channel: grpc.Channel, release: str) -> None:
        self._bus = publisher_pb2_grpc.PublisherServiceStub(channel)
        self._release = release

    def event(self, line: bytes) -> dict[str, object]:
        """The event for a line. Raises NO_ORDER: what is accepted has readers who can't ask back."""
        order = json.loads(line)
        required = {name: order[name] for name in FIELDS["v1"]}
        return required | {name: order[name] for name in FIELDS[self._release] if name in order}

    def publish(self, event: dict[str, object], patience_s: float = float("inf")) -> None:
        """Returns when the event is in the log, once, however many tries that took."""
        # A customer's orders stay in order: they share a key, and so a partition.
        record = record_pb2.Record(key=str(event["customer"]).encode(), value=json.dumps(event).encode())
        request = publisher_pb2.PublishRequest(
            topic="orders",
            batch=record_pb2.RecordBatch(records=[record]),
            request_id=f"order-{event['order_id']}",
        )
        deadline = time.monotonic() + patience_s
        while True:
            try:
                self._bus.Publish(request, timeout=10)
                return
            except grpc.RpcError as error:  # noqa: PERF203 - tries are a loop
                if error.code() not in AGAIN or time.monotonic() > deadline:
                    raise
                print(f"{error.details()}; trying again", file=sys.stderr)
                time.sleep(1)


def take_lines(orders: Orders, lines: BinaryIO) -> None:
    """Until they end, or SIGTERM comes: then at once, or after the order in hand."""
    busy, stopping = False, False

    def stop(*_: object) -> None:
        nonlocal stopping
        stopping = True
        if not busy:
            sys.exit(0)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    for line in lines:
        busy = True
        try:
            event = orders.event(line)
        except NO_ORDER as error:
            print(f"no order, not accepted ({error!r}): {line!r}", file=sys.stderr)
        else:
            orders.publish(event)
            print(event["order_id"], flush=True)
        busy = False
        if stopping:
            return


class Server(ThreadingHTTPServer):
    """A thread for each request; its end waits for those that are under way."""

    daemon_threads = False

    def __init__(self, listen: str, orders: Orders) -> None:
        host, _, port = listen.rpartition(":")
        self.orders = orders
        self.places = threading.BoundedSemaphore(REQUESTS_MAX)
        super().__init__((host, int(port)), Handler)


class Handler(BaseHTTPRequestHandler):
    """POST /orders, an order a line: all of them, or as many as the answer names."""

    server: Server
    timeout = 10

    def do_GET(self) -> None:
        """It takes requests. Whether the bus is there it finds out with each order."""
        self._answer(200 if self.path == "/healthz" else 404, "")

    def do_POST(self) -> None:
        """The ids of what is durable, one a line; 400 and none if one of them is no order."""
        length = self.headers.get("Content-Length", "")
        if self.path != "/orders":
            self._answer(404, "orders go to /orders\n")
        elif not length.isdecimal() or int(length) > BODY_BYTES_MAX:
            self._answer(413, f"say how long it is, at most {BODY_BYTES_MAX} bytes\n")
        elif not self.server.places.acquire(blocking=False):
            self._answer(503, "too many at once; send it again\n")
        else:
            try:
                self._place(self.rfile.read(int(length)).splitlines())
            finally:
                self.server.places.release()

    def _place(self, lines: list[bytes]) -> None:
        try:
            events = [self.server.orders.event(line) for line in lines]
        except NO_ORDER as error:
            self._answer(400, f"no order, nothing is accepted: {error!r}\n")
            return
        placed: list[str] = []
        for event in events:
            try:
                self.server.orders.publish(event, PATIENCE_S)
            except grpc.RpcError as error:
                self._answer(503, "".join(placed), f"{error.details()}; send it again")
                return
            placed.append(f"{event['order_id']}\n")
            print(event["order_id"], flush=True)
        self._answer(200, "".join(placed))

    def _answer(self, status: int, body: str, why: str = "") -> None:
        if why:
            print(why, file=sys.stderr)
        self.send_response(status)
        self.send_header("Content-Length", str(len(body.encode())))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_request(self, *_: object) -> None:
        """The ids are log enough."""


def serve(orders: Orders, listen: str) -> None:
    """Until SIGTERM: then nothing new, and what was begun is done."""
    with Server(listen, orders) as server:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: threading.Thread(target=server.shutdown).start())
        server.serve_forever()


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--address", default=os.environ.get("POSTBUS_ADDRESS", "localhost:7070"), help="any node of the bus"
    )
    parser.add_argument(
        "--listen", default=os.environ.get("SHOP_LISTEN", ""), help="host:port for HTTP; empty: standard input"
    )
    parser.add_argument(
        "--release", choices=FIELDS, default=os.environ.get("SHOP_RELEASE", "v1"), help="which code is deployed"
    )
    options = parser.parse_args()
    with grpc.insecure_channel(options.address) as channel:
        orders = Orders(channel, options.release)
        if options.listen:
            serve(orders, options.listen)
        else:
            take_lines(orders, sys.stdin.buffer)


if __name__ == "__main__":
    main()
