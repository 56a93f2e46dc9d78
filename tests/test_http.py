"""Health and metrics over HTTP: right answers, and no client that can hold or harm the node."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from broker.http import HEAD_BYTES_MAX, HttpServer, Readiness
from broker.telemetry import Metrics


class Node:
    """A server, and what it is told about the node."""

    def __init__(self, **options: Any) -> None:
        self.readiness = Readiness(True)
        self.endpoint = "127.0.0.1:7070"
        self.metrics = Metrics(version="1.2.3")
        self.server = HttpServer(
            metrics=self.metrics,
            readiness=lambda: self.readiness,
            node_id=1,
            version="1.2.3",
            endpoint=lambda: self.endpoint,
            **options,
        )
        self.port = 0

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def raw(self, request: bytes, *, eof: bool = False) -> bytes:
        """Sends bytes and reads until the server closes."""
        reader, writer = await self.connect()
        received = b""
        with contextlib.suppress(ConnectionError):
            writer.write(request)
            if eof:
                writer.write_eof()
            while chunk := await reader.read(65536):
                received += chunk
        writer.close()
        return received

    async def get(self, path: str, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
        answer = await self.raw(f"{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        head, _, body = answer.partition(b"\r\n\r\n")
        status, *lines = head.decode().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines)
        return int(status.split()[1]), headers, body


@pytest.fixture
async def start() -> AsyncIterator[Callable[..., Any]]:
    nodes: list[Node] = []

    async def start(**options: Any) -> Node:
        node = Node(**options)
        node.port = await node.server.start("127.0.0.1", 0)
        nodes.append(node)
        return node

    yield start
    for node in nodes:
        await node.server.stop()


async def accepted(node: Node, count: int) -> None:
    """Returns when the server has taken so many connections; connect() returns when the kernel has."""
    while len(node.server._connections) < count:  # noqa: ASYNC110 - nothing tells of it, on purpose
        await asyncio.sleep(0)


async def test_a_live_node_says_so_though_it_is_not_ready(start: Any) -> None:
    node = await start()
    node.readiness = Readiness(False, "starting")
    assert (await node.get("/healthz/live"))[0] == 200


async def test_readiness_is_asked_each_time_and_says_why_not(start: Any) -> None:
    node = await start()
    assert (await node.get("/healthz/ready"))[::2] == (200, b"ready\n")
    node.readiness = Readiness(False, "draining")
    assert (await node.get("/healthz/ready"))[::2] == (503, b"not ready: draining\n")


async def test_metrics_come_in_prometheus_format(start: Any) -> None:
    node = await start()
    node.metrics.topic("orders").published(3, 300)
    status, headers, body = await node.get("/metrics")
    assert status == 200
    assert headers["Content-Type"].startswith("text/plain; version=")
    assert int(headers["Content-Length"]) == len(body)
    assert b'postbus_records_published_total{topic="orders"} 3.0' in body


async def test_the_index_says_what_there_is_and_where_clients_go(start: Any) -> None:
    _, _, body = await (await start()).get("/")
    for text in (b"/healthz/live", b"/healthz/ready", b"/metrics", b"127.0.0.1:7070", b"1.2.3"):
        assert text in body


async def test_a_query_does_not_matter(start: Any) -> None:
    assert (await (await start()).get("/healthz/live?verbose=1"))[0] == 200


async def test_head_is_get_without_the_body(start: Any) -> None:
    status, headers, body = await (await start()).get("/healthz/live", "HEAD")
    assert (status, headers["Content-Length"], body) == (200, "5", b"")


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /nothing HTTP/1.1\r\n\r\n", 404),
        (b"GET /healthz/live/ HTTP/1.1\r\n\r\n", 404),
        (b"GET /../etc/passwd HTTP/1.1\r\n\r\n", 404),
        (b"POST / HTTP/1.1\r\n\r\n", 405),
        (b"DELETE /metrics HTTP/1.1\r\n\r\n", 405),
        (b"GET / HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello", 413),
        (b"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", 413),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * HEAD_BYTES_MAX + b"\r\n\r\n", 431),
        (b"x" * (HEAD_BYTES_MAX + 100), 431),
        (b"GET http://elsewhere/ HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/2\r\n\r\n", 400),
        (b"GET /\r\n\r\n", 400),
        (b"GET /\xff HTTP/1.1\r\n\r\n", 400),
        (b"get / http/1.1\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 400),  # TLS, by mistake
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),  # a gRPC client on the wrong port
        (b"\r\n\r\n", 400),
        (b"\x00" * 100 + b"\r\n\r\n", 400),
    ],
)
async def test_what_is_not_one_of_the_three_gets_is_refused(start: Any, request_bytes: bytes, status: int) -> None:
    node = await start()
    answer = await node.raw(request_bytes)
    assert answer.startswith(f"HTTP/1.1 {status} ".encode())
    assert (await node.get("/healthz/live"))[0] == 200


async def test_a_connection_serves_one_request(start: Any) -> None:
    answer = await (await start()).raw(b"GET /healthz/live HTTP/1.1\r\n\r\n" * 2)
    assert answer.count(b"HTTP/1.1 200") == 1


async def test_a_client_that_goes_in_the_middle_leaves_nothing(start: Any) -> None:
    node = await start()
    assert await node.raw(b"GET / HT", eof=True) == b""
    assert (await node.get("/healthz/live"))[0] == 200


async def test_a_client_that_never_finishes_its_request_is_cut_off(start: Any) -> None:
    node = await start(request_timeout_s=0.05)
    assert await node.raw(b"GET / HTTP/1.1\r\nX: ") == b""


async def test_a_client_that_never_reads_its_answer_is_cut_off(start: Any) -> None:
    node = await start(request_timeout_s=0.05)
    node.endpoint = "x" * 30_000_000
    _reader, writer = await node.connect()
    writer.transport.pause_reading()
    writer.write(b"GET / HTTP/1.1\r\n\r\n")
    await accepted(node, 1)
    await asyncio.wait(node.server._connections, timeout=10)
    assert not [task for task in node.server._connections if not task.done()]
    writer.transport.abort()


async def test_connections_are_bounded_and_free_up(start: Any) -> None:
    node = await start(connections_max=2)
    held = [await node.connect() for _ in range(2)]
    await accepted(node, 2)
    assert await node.raw(b"GET / HTTP/1.1\r\n\r\n") == b""
    for _, writer in held:
        writer.close()
    await asyncio.wait(set(node.server._connections), timeout=10)
    assert (await node.get("/healthz/live"))[0] == 200


async def test_a_bug_in_a_source_of_metrics_is_an_answer_and_not_a_hang(start: Any) -> None:
    node = await start()

    def broken() -> Any:
        raise RuntimeError("a bug")

    node.metrics.set_sources(partitions=broken)
    assert (await node.get("/metrics"))[0] == 500
    assert (await node.get("/healthz/live"))[0] == 200


async def test_stopping_closes_what_is_open(start: Any) -> None:
    node = await start()
    reader, writer = await node.connect()
    await accepted(node, 1)
    await node.server.stop()
    with contextlib.suppress(ConnectionError):
        assert await reader.read() == b""
    writer.close()
    with pytest.raises(OSError, match=r"refused|Connect"):
        await node.connect()
    await node.server.stop()


async def test_a_port_that_is_taken_is_an_error(start: Any) -> None:
    node = await start()
    with pytest.raises(OSError, match="in use"):
        await Node().server.start("127.0.0.1", node.port)
