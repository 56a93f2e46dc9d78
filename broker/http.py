"""Health and metrics over HTTP: three GETs for probes and scrapers, on the event loop.

Own code rather than a library, on purpose: a web framework would be the largest dependency of the broker for three
paths without bodies, and Prometheus' own server answers from threads, while the state behind readiness and lag belongs
to the event loop. What it serves is therefore kept tiny: GET and HEAD, one request a connection, a bounded head, a
bounded time for all of it and a bounded number of connections; anything else is refused and the connection closed.
It never serves what clients of the bus need.
"""

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

import structlog

from broker.telemetry import EXPOSITION_CONTENT_TYPE, Metrics

HEAD_BYTES_MAX: Final = 8 * 1024
CONNECTIONS_MAX: Final = 64
REQUEST_TIMEOUT_S: Final = 10.0

_TEXT: Final = "text/plain; charset=utf-8"
_REQUEST_LINE: Final = re.compile(rb"([A-Z]{1,16}) (/[\x21-\x7e]*) HTTP/1\.[01]")
_INDEX: Final = """\
Postbus {version}, node {node_id}

/healthz/live    200 while the process works
/healthz/ready   200 once the node serves, 503 before, while draining and after a failure of its store
/metrics         Prometheus

Clients speak gRPC, on another port: {endpoint}
"""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether the node may be sent work, and why not."""

    ready: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class _Response:
    status: HTTPStatus
    body: bytes
    content_type: str = _TEXT
    allow: str = ""

    def head(self) -> bytes:
        lines = [
            f"HTTP/1.1 {self.status.value} {self.status.phrase}",
            f"Content-Type: {self.content_type}",
            f"Content-Length: {len(self.body)}",
            "Cache-Control: no-store",
            "X-Content-Type-Options: nosniff",
            "Connection: close",
        ]
        if self.allow:
            lines.append(f"Allow: {self.allow}")
        return ("\r\n".join(lines) + "\r\n\r\n").encode()


class _RefusedError(Exception):
    """The request can't be answered with anything but this."""

    def __init__(self, status: HTTPStatus, text: str, *, allow: str = "") -> None:
        super().__init__(text)
        self.response = _Response(status, f"{text}\n".encode(), allow=allow)


class HttpServer:
    """Serves from `start` to `stop`."""

    def __init__(
        self,
        *,
        metrics: Metrics,
        readiness: Callable[[], Readiness],
        node_id: int,
        version: str,
        endpoint: Callable[[], str],
        request_timeout_s: float = REQUEST_TIMEOUT_S,
        connections_max: int = CONNECTIONS_MAX,
    ) -> None:
        """readiness, endpoint (host:port for clients): asked on the event loop with each request."""
        self._metrics = metrics
        self._readiness = readiness
        self._node_id = node_id
        self._version = version
        self._endpoint = endpoint
        self._request_timeout_s = request_timeout_s
        self._connections_max = connections_max
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self, host: str, port: int) -> int:
        """Listens; returns the port, which is a free one where `port` is 0. Raises OSError."""
        self._server = await asyncio.start_server(self._accept, host, port, limit=HEAD_BYTES_MAX)
        bound: int = self._server.sockets[0].getsockname()[1]
        return bound

    async def stop(self) -> None:
        """Closes the port and what is open. Harmless when not started."""
        if self._server is not None:
            self._server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        if self._server is not None:
            await self._server.wait_closed()
            self._server = None

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._connections) >= self._connections_max:
            writer.transport.abort()
            return
        task = asyncio.create_task(self._serve(reader, writer), name="http")
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request, one response. Whoever is slower than the time for all of it is cut off."""
        try:
            async with asyncio.timeout(self._request_timeout_s):
                method, response = await self._answer(reader)
                writer.write(response.head() + (b"" if method == "HEAD" else response.body))
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        except (TimeoutError, OSError, EOFError):
            pass  # too slow, or gone
        finally:
            # Also what a peer that doesn't read has left in the buffer goes.
            writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader) -> tuple[str, _Response]:
        try:
            method, path = await _read_request(reader)
            if method not in ("GET", "HEAD"):
                raise _RefusedError(HTTPStatus.METHOD_NOT_ALLOWED, "only GET and HEAD", allow="GET, HEAD")
        except _RefusedError as refused:
            return "GET", refused.response
        try:
            return method, await self._get(path)
        except Exception:
            # A bug in a source of metrics must not look like a node that hangs.
            log.exception("http request failed", path=path)
            return method, _Response(HTTPStatus.INTERNAL_SERVER_ERROR, b"failed; the node's log says why\n")

    async def _get(self, path: str) -> _Response:
        match path:
            case "/healthz/live":
                return _Response(HTTPStatus.OK, b"live\n")
            case "/healthz/ready":
                readiness = self._readiness()
                if readiness.ready:
                    return _Response(HTTPStatus.OK, b"ready\n")
                return _Response(HTTPStatus.SERVICE_UNAVAILABLE, f"not ready: {readiness.reason}\n".encode())
            case "/metrics":
                return _Response(HTTPStatus.OK, await self._metrics.exposition(), EXPOSITION_CONTENT_TYPE)
            case "/":
                index = _INDEX.format(version=self._version, node_id=self._node_id, endpoint=self._endpoint())
                return _Response(HTTPStatus.OK, index.encode())
        return _Response(HTTPStatus.NOT_FOUND, b"nothing here; / lists what there is\n")


async def _read_request(reader: asyncio.StreamReader) -> tuple[str, str]:
    """Method and path without its query. Raises _RefusedError, EOFError."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.LimitOverrunError:
        raise _RefusedError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"at most {HEAD_BYTES_MAX} bytes") from None
    line, _, headers = head.partition(b"\r\n")
    found = _REQUEST_LINE.fullmatch(line)
    if found is None:
        raise _RefusedError(HTTPStatus.BAD_REQUEST, "not an HTTP/1.1 request")
    for header in headers.split(b"\r\n"):
        name, _, value = header.partition(b":")
        if name.lower() == b"transfer-encoding" or (name.lower() == b"content-length" and value.strip() != b"0"):
            raise _RefusedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "requests have no body here")
    return found[1].decode(), found[2].decode().partition("?")[0]
