"""Channels to the cluster: any address will do, and the next one is tried when one fails.

Owns the list of addresses, one lazily made channel for each, and which one is in use. Decides nothing about what is
repeated on streams: publisher and subscription do that themselves. Unary calls are repeated here, because for them
the API's rule by code alone is enough.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, Protocol, TypeVar, cast

import grpc
import grpc.aio

from postbus import errors
from postbus.v1 import cluster_pb2

PORT_DEFAULT: Final = 7070
MESSAGE_BYTES_MAX: Final = 32 * 1024 * 1024
RETRY_DELAY_MIN: Final = 0.05
RETRY_DELAY_MAX: Final = 2.0
MOVING_DELAY: Final = 0.5
RENEWAL_INTERVAL: Final = 1.0

CHANNEL_OPTIONS: Final[Mapping[str, int]] = {
    "grpc.max_receive_message_length": MESSAGE_BYTES_MAX,
    "grpc.max_send_message_length": MESSAGE_BYTES_MAX,
    # The broker allows a ping every 10 s without calls; oftener would end the connection (too_many_pings).
    "grpc.keepalive_time_ms": 25_000,
    "grpc.keepalive_timeout_ms": 10_000,
    "grpc.keepalive_permit_without_calls": 1,
    "grpc.http2.max_pings_without_data": 0,
    # A broker that restarts is found again within a fraction of a second, not after gRPC's growing back-off.
    "grpc.initial_reconnect_backoff_ms": 100,
    "grpc.min_reconnect_backoff_ms": 1_000,
    "grpc.max_reconnect_backoff_ms": 1_000,
    "grpc.enable_retries": 0,
    # Connections of one process stay apart: a client that closes never disturbs another's.
    "grpc.use_local_subchannel_pool": 1,
    "grpc.http2.lookahead_bytes": 1024 * 1024,
    "grpc.http2.max_frame_size": 1024 * 1024,
    "grpc.optimization_target": 0,
}


class Message(Protocol):
    """A Protobuf message, as far as calls need to know."""

    def SerializeToString(self) -> bytes: ...  # noqa: N802 - Protobuf's name


ResponseT = TypeVar("ResponseT")


def parse_addresses(addresses: str | Iterable[str]) -> tuple[str, ...]:
    """host:port each, from one text (commas between) or several; the port may be left out."""
    listed = addresses.split(",") if isinstance(addresses, str) else [str(address) for address in addresses]
    found = [address.strip() for address in listed if address.strip()]
    if not found:
        raise errors.InvalidArgument("no address given: name at least one as host:port", field="addresses")
    complete: list[str] = []
    for address in found:
        if "://" in address:
            raise errors.InvalidArgument(f"{address!r} is not an address: write host:port", field="addresses")
        # Brackets keep the colons of an IPv6 address apart from the port's.
        has_port = ":" in address.rpartition("]")[2]
        port = address.rpartition(":")[2] if has_port else ""
        # gRPC takes such a number modulo 65536, and asks somebody else.
        if port.isdecimal() and not 0 < int(port) <= 65535:
            raise errors.InvalidArgument(f"{address!r} has no port from 1 to 65535", field="addresses")
        complete.append(address if has_port else f"{address}:{PORT_DEFAULT}")
    return tuple(dict.fromkeys(complete))


def backoff(attempt: int) -> float:
    """Seconds to wait before try `attempt` (from 1): doubling, bounded, spread so that clients don't come at once."""
    delay: float = min(RETRY_DELAY_MAX, RETRY_DELAY_MIN * 2 ** min(attempt - 1, 10))
    return delay * random.uniform(0.6, 1.0)


class Connections:
    """The channels of one client."""

    def __init__(
        self,
        addresses: str | Iterable[str],
        *,
        credentials: grpc.ChannelCredentials | None = None,
        options: Mapping[str, int | str] | None = None,
        metadata: Sequence[tuple[str, str]] = (),
    ) -> None:
        self.addresses = parse_addresses(addresses)
        self.metadata = tuple(metadata)
        self._credentials = credentials
        self._options = [*{**CHANNEL_OPTIONS, **(options or {})}.items()]
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._made: dict[str, float] = {}
        self._retired: set[grpc.aio.Channel] = set()
        self._closing: set[asyncio.Task[None]] = set()
        # Of other nodes that answered: for when those that were given do not.
        self.learned: tuple[str, ...] = ()
        self._address = self.addresses[0]
        self._closed = False

    @property
    def address(self) -> str:
        """The one in use."""
        return self._address

    @property
    def moving_delay(self) -> float:
        """Seconds to wait after a node said that it goes: with no other to go to, it must be let go first."""
        return RETRY_DELAY_MIN if len(self.addresses) + len(self.learned) > 1 else MOVING_DELAY

    def rotate(self, address: str) -> None:
        """`address` failed: goes on to the next, unless somebody else did so before."""
        if self._address == address:
            known = [*self.addresses, *self.learned]
            place = known.index(address) if address in known else -1
            self._address = known[(place + 1) % len(known)]

    def channel(self, address: str = "") -> grpc.aio.Channel:
        """The channel to an address, or to the one in use."""
        if self._closed:
            raise errors.Closed("the client is closed")
        address = address or self.address
        channel = self._channels.get(address)
        if channel is not None and self._is_stale(address, channel):
            self._part_with(channel)
            channel = None
        if channel is None:
            self._made[address] = time.monotonic()
            if self._credentials is None:
                channel = grpc.aio.insecure_channel(address, options=self._options)
            else:
                channel = grpc.aio.secure_channel(address, self._credentials, options=self._options)
            self._channels[address] = channel
        return channel

    def _is_stale(self, address: str, channel: grpc.aio.Channel) -> bool:
        """A channel that fails asks for its name's address again after half a minute, or two; a new one does at once.

        Where a node is another address after each start, all channels would else lead to where nodes were.
        """
        return (
            time.monotonic() - self._made[address] >= RENEWAL_INTERVAL
            and channel.get_state() is grpc.ChannelConnectivity.TRANSIENT_FAILURE
        )

    def _part_with(self, channel: grpc.aio.Channel) -> None:
        self._retired.add(channel)
        closing = asyncio.get_running_loop().create_task(self._close_later(channel))
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    async def _close_later(self, channel: grpc.aio.Channel) -> None:
        """Its calls have failed, but have not all been told: closed at once, it would cancel whoever waits for them."""
        await asyncio.sleep(RENEWAL_INTERVAL)
        await channel.close()
        self._retired.discard(channel)

    def server_stream(
        self, method: str, request: Message, response: Callable[[bytes], ResponseT]
    ) -> grpc.aio.UnaryStreamCall[bytes, ResponseT]:
        """Asks the address in use, which goes on answering."""
        multi: Any = self.channel().unary_stream(
            f"/postbus.v1.{method}", request_serializer=None, response_deserializer=cast(Any, response)
        )
        metadata = grpc.aio.Metadata(*self.metadata)
        return cast("grpc.aio.UnaryStreamCall[bytes, ResponseT]", multi(request.SerializeToString(), metadata=metadata))

    def stream(
        self, method: str, *, response: Callable[[bytes], ResponseT], address: str = ""
    ) -> grpc.aio.StreamStreamCall[bytes, ResponseT]:
        """Opens a bidirectional stream to an address, or to the one in use; requests are sent as the bytes they are."""
        multi = cast(
            "grpc.aio.StreamStreamMultiCallable[bytes, ResponseT]",
            self.channel(address).stream_stream(
                f"/postbus.v1.{method}",
                request_serializer=None,
                response_deserializer=cast(Any, response),
            ),
        )
        return multi(metadata=grpc.aio.Metadata(*self.metadata))

    async def call(
        self,
        method: str,
        request: Message,
        response: Callable[[bytes], ResponseT],
        *,
        timeout: float,
        retry: bool = True,
    ) -> ResponseT:
        """One unary call: repeated at the next address while the answer is "not now" and time is left.

        retry: False asks once.
        """
        deadline = time.monotonic() + timeout
        payload = request.SerializeToString()
        for attempt in range(1, 1_000_000):
            address = self.address
            unary: Any = self.channel().unary_unary(
                f"/postbus.v1.{method}", request_serializer=None, response_deserializer=cast(Any, response)
            )
            left = max(0.001, deadline - time.monotonic())
            try:
                return cast(
                    ResponseT,
                    await unary(payload, timeout=left, metadata=grpc.aio.Metadata(*self.metadata)),
                )
            except grpc.aio.AioRpcError as rpc_error:
                failure = errors.from_rpc(rpc_error)
            if isinstance(failure, errors.Unavailable) and not failure.reason:
                # gRPC's own words hold the cause ("connection refused") but not where.
                failure.message = f"{address}: {failure.message}"
                self.rotate(address)
            delay = max(backoff(attempt), failure.retry_after or 0.0)
            if not (retry and failure.retriable) or time.monotonic() + delay >= deadline:
                raise failure
            await asyncio.sleep(delay)
        raise AssertionError("the deadline ends the loop")

    async def connect(self, *, timeout: float) -> cluster_pb2.GetServerFeaturesResponse:
        """Finds an address that answers; raises ConnectionFailed, which names each and what it said.

        A refused connection is tried again until `timeout` seconds are over: the broker may just be starting.
        """
        deadline = time.monotonic() + timeout
        said: dict[str, str] = {}
        attempt = 0
        while True:
            attempt += 1
            for _ in self.addresses:
                address = self.address
                left = max(0.05, deadline - time.monotonic())
                try:
                    return await self.call(
                        "ClusterService/GetServerFeatures",
                        cluster_pb2.GetServerFeaturesRequest(),
                        cluster_pb2.GetServerFeaturesResponse.FromString,
                        timeout=left / (len(self.addresses) - len(said)) if len(said) < len(self.addresses) else left,
                        retry=False,
                    )
                except errors.Unsupported as failure:
                    raise errors.ConnectionFailed(
                        f"{address} answers, but not as Postbus does: {failure.message}", code=failure.code
                    ) from failure
                except errors.Timeout:
                    said[address] = "no answer"
                    self.rotate(address)
                except errors.Unavailable as failure:
                    # Of gRPC's chain of reasons the last one is what a person looks for.
                    said[address] = failure.message.removeprefix(f"{address}: ").rpartition("last error: ")[2]
                    self.rotate(address)
            delay = backoff(attempt)
            if time.monotonic() + delay >= deadline:
                raise errors.ConnectionFailed(
                    f"nothing answered within {timeout:g} s, {attempt} tries: "
                    + "; ".join(f"{address} ({words})" for address, words in said.items()),
                    code=grpc.StatusCode.UNAVAILABLE,
                    retriable=True,
                )
            await asyncio.sleep(delay)

    async def close(self) -> None:
        """Closes all channels; what is under way is cancelled."""
        self._closed = True
        for closing in self._closing:
            closing.cancel()
        if self._closing:
            await asyncio.wait(self._closing)
        for channel in (*self._channels.values(), *self._retired):
            await channel.close()
        self._channels.clear()
        self._retired.clear()
