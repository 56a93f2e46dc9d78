"""How many calls are taken at once: decided before a call's message is received, so that a flood costs no memory.

Unary calls over the bound wait, unread, until another one is done; streams over the bound are refused, because they
may last for ever. A place belongs to the task that gRPC runs for the call, and is given back when that ends, however
it ends.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

import grpc

from broker.errors import PostbusError, Reason
from broker.services.adapter import Handler

_SERVICES: Final = ("/postbus.v1.", "/externalscaler.")
_STREAMS: Final = frozenset({"PublishStream", "Subscribe", "WatchMetadata", "StreamIsActive"})


@dataclass(frozen=True, slots=True)
class AdmissionSettings:
    """How many at once."""

    unary_publish_calls_max: int = 32
    unary_calls_max: int = 256
    fetch_calls_max: int = 1000
    heartbeat_calls_max: int = 10_000
    streams_max: int = 10_000


class Admission(grpc.aio.ServerInterceptor):
    """Looks at each call of what Postbus serves; health and reflection always pass."""

    def __init__(self, settings: AdmissionSettings) -> None:
        self._settings = settings
        self._publishes = asyncio.Semaphore(settings.unary_publish_calls_max)
        self._fetches = asyncio.Semaphore(settings.fetch_calls_max)
        self._heartbeats = asyncio.Semaphore(settings.heartbeat_calls_max)
        self._others = asyncio.Semaphore(settings.unary_calls_max)
        # Those that wait for news by design have bounds of their own, or they would hold up all others.
        self._places = {"Publish": self._publishes, "Fetch": self._fetches, "Heartbeat": self._heartbeats}
        self.streams = 0

    async def intercept_service(
        self,
        continuation: "Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]]",
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "Handler | None":
        """Waits for a place."""
        service, _, method = handler_call_details.method.rpartition("/")
        if service.startswith(_SERVICES):
            if method in _STREAMS:
                if self.streams >= self._settings.streams_max:
                    return self._refusal()
                self.streams += 1
                _when_done(self._stream_done)
            else:
                places = self._places.get(method, self._others)
                await places.acquire()
                _when_done(places.release)
        return await continuation(handler_call_details)

    def _stream_done(self) -> None:
        self.streams -= 1

    def _refusal(self) -> Handler:
        error = PostbusError(
            Reason.ERROR_REASON_QUOTA_EXCEEDED,
            f"this node has {self.streams} open streams, as many as it may: connect to another node, or later",
            retry_after_ms=5000,
        )

        async def refuse(_requests: object, context: Any) -> None:
            await context.abort(error.code, error.message, error.trailers())

        return grpc.stream_stream_rpc_method_handler(refuse)


def _when_done(give_back: Callable[[], None]) -> None:
    task = asyncio.current_task()
    assert task is not None
    task.add_done_callback(lambda _: give_back())
