"""A whole node and a client that can say anything: what every test of conformance stands on.

One node serves the session, alone or as one of three, so that each test also shows that those before it left the broker
well: an error in the broker's log fails the test during which it was written. Requests go out as messages or as raw
bytes.
"""

import asyncio
import contextlib
import dataclasses
import functools
import itertools
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
import structlog
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2, status_pb2
from postbus.v1 import (
    cluster_pb2,
    cluster_pb2_grpc,
    error_pb2,
    group_pb2,
    publisher_pb2,
    record_pb2,
    subscriber_pb2,
    topic_pb2,
)

from broker import config
from broker.node import Node

CALL_TIMEOUT_S = 10.0

# As proto/postbus/v1/error.proto documents them, written out again so that a slip in the broker's table shows.
CODES = {
    "TOPIC_NOT_FOUND": "NOT_FOUND",
    "PARTITION_NOT_FOUND": "NOT_FOUND",
    "GROUP_NOT_FOUND": "NOT_FOUND",
    "OFFSET_OUT_OF_RANGE": "OUT_OF_RANGE",
    "PRECONDITION_NOT_MET": "FAILED_PRECONDITION",
    "PRODUCER_FENCED": "FAILED_PRECONDITION",
    "PRODUCER_UNKNOWN": "ABORTED",
    "SEQUENCE_GAP": "FAILED_PRECONDITION",
    "DUPLICATE_SEQUENCE": "ALREADY_EXISTS",
    "PREDECESSOR_FAILED": "ABORTED",
    "ASSIGNMENT_LOST": "ABORTED",
    "PROCESSING_TIMEOUT": "ABORTED",
    "MEMBER_REPLACED": "FAILED_PRECONDITION",
    "DISK_FULL": "RESOURCE_EXHAUSTED",
    "QUOTA_EXCEEDED": "RESOURCE_EXHAUSTED",
    "INVALID_FIELD": "INVALID_ARGUMENT",
    "UNKNOWN_FIELD": "INVALID_ARGUMENT",
    "TOO_LARGE": "INVALID_ARGUMENT",
    "EXISTS": "ALREADY_EXISTS",
    "GROUP_NOT_EMPTY": "FAILED_PRECONDITION",
    "GROUP_KIND_MISMATCH": "FAILED_PRECONDITION",
    "DRAINING": "UNAVAILABLE",
    "TIMEOUT": "DEADLINE_EXCEEDED",
}
RETRIABLE = {"DISK_FULL", "QUOTA_EXCEEDED", "DRAINING"}

METHODS: dict[str, MethodDescriptor] = {
    f"{service.name}/{method.name}": method
    for module in (publisher_pb2, subscriber_pb2, group_pb2, topic_pb2, cluster_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}


@dataclass(frozen=True)
class Refusal:
    """An error as a client sees it, wherever it came: a status, or a Failure inside a message."""

    code: str
    reason: str
    message: str
    field: str = ""
    metadata: dict[str, str] = dataclasses.field(default_factory=dict)
    retriable: bool = False
    outcome_unknown: bool = False
    retry_after: bool = False
    resource: tuple[str, str] = ("", "")

    def expect(self, reason: str, named: str | None = None) -> "Refusal":
        """Asserts the reason, its code and details; `named`: the path of the field, or how it begins with a `*`."""
        assert self.reason == reason, self
        assert self.code == CODES[reason], self
        assert 10 <= len(self.message.encode()) <= 1500, self
        assert "Traceback" not in self.message and "0x" not in self.message, self
        assert self.retriable == (reason in RETRIABLE), self
        assert self.outcome_unknown == (reason == "TIMEOUT"), self
        if self.code == "RESOURCE_EXHAUSTED":
            assert self.retry_after, self
        if self.code == "INVALID_ARGUMENT":
            assert self.field, self
        if named is not None:
            matches = self.field.startswith(named[:-1]) if named.endswith("*") else self.field == named
            assert matches, f"{self.field!r} is not {named!r}: {self}"
        return self


def refusal_of(error: grpc.RpcError) -> Refusal:
    """Reads status, details and trailers; they have to tell the same."""
    assert isinstance(error, grpc.aio.AioRpcError)
    code = error.code().name
    assert code not in {"UNKNOWN", "INTERNAL"}, error
    trailers = dict(error.trailing_metadata() or ())
    packed = trailers.get("grpc-status-details-bin")
    if packed is None:
        return Refusal(code, "", error.details() or "")
    size = sum(len(name) + len(value) * (4 / 3 if name.endswith("-bin") else 1) for name, value in trailers.items())
    assert size < 7500, f"{size} bytes of trailers"
    status = status_pb2.Status.FromString(packed)
    assert status.code == error.code().value[0]
    assert status.message == error.details()
    found: dict[str, Any] = {}
    for detail in status.details:
        name = detail.type_url.rpartition(".")[2]
        found[name] = getattr(error_details_pb2, name).FromString(detail.value)
    info = found["ErrorInfo"]
    assert info.domain == "postbus"
    assert info.reason == trailers["postbus-reason"]
    if code in {"NOT_FOUND", "ALREADY_EXISTS"} and info.reason != "DUPLICATE_SEQUENCE":
        assert found["ResourceInfo"].resource_name, error
    resource = found.get("ResourceInfo", error_details_pb2.ResourceInfo())
    bad = found.get("BadRequest", error_details_pb2.BadRequest()).field_violations
    return Refusal(
        code=code,
        reason=info.reason,
        message=status.message,
        field=bad[0].field if bad else "",
        metadata=dict(info.metadata),
        retriable={"true": True, "false": False}[trailers["postbus-retriable"]],
        outcome_unknown={"true": True, "false": False}[trailers["postbus-outcome-unknown"]],
        retry_after="RetryInfo" in found,
        resource=(resource.resource_type, resource.resource_name),
    )


def refusal_in(failure: error_pb2.Failure) -> Refusal:
    """The same of a Failure inside a message."""
    codes = {code.value[0]: code.name for code in grpc.StatusCode}
    return Refusal(
        code=codes[failure.code],
        reason=error_pb2.ErrorReason.Name(failure.reason).removeprefix("ERROR_REASON_"),
        message=failure.message,
        field=failure.metadata.get("field", ""),
        metadata=dict(failure.metadata),
        retriable=failure.retriable,
        outcome_unknown=failure.outcome_unknown,
        retry_after=failure.HasField("retry_after"),
    )


class Stream:
    """A stream under a test's control."""

    def __init__(self, call: Any, request_type: type[Message], response_type: type[Message]) -> None:
        self.call = call
        self._request_type = request_type
        self._response_type = response_type

    async def send(self, request: Message | bytes | None = None, **fields: Any) -> None:
        """A message, raw bytes, or the fields of a message."""
        message = self._request_type(**fields) if request is None else request
        await self.call.write(message if isinstance(message, bytes) else message.SerializeToString())

    async def read(self) -> Any:
        """The next message; None at the end if that is OK."""
        async with asyncio.timeout(CALL_TIMEOUT_S):
            data = await self.call.read()
        if data is grpc.aio.EOF:
            assert await self.call.code() == grpc.StatusCode.OK, await self.call.details()
            return None
        return self._response_type.FromString(data)

    async def until(self, wanted: Callable[[Any], Any]) -> Any:
        """The first message that is wanted; the others are lost."""
        while (message := await self.read()) is not None:
            if wanted(message):
                return message
        raise AssertionError("the stream ended before what was waited for came")

    async def refusal(self) -> Refusal:
        """How it ends, when it has to end badly."""
        try:
            while (message := await self.read()) is not None:
                pass
        except grpc.RpcError as error:
            return refusal_of(error)
        raise AssertionError(f"the stream ended with OK, last came {message}")

    async def end(self) -> None:
        """Half-closes and reads to the end, which has to be OK."""
        await self.call.done_writing()
        while await self.read() is not None:
            pass


class Bus:
    """A node and a channel to it."""

    def __init__(self, node: Node, port: int, numbers: Iterator[int]) -> None:
        self.node = node
        self.port = port
        self._numbers = numbers
        self._streams: list[Stream] = []
        self.channel = self.connect()

    def connect(self, **options: int) -> grpc.aio.Channel:
        """A connection of its own."""
        merged = {
            "grpc.max_receive_message_length": 17 << 20,
            "grpc.max_send_message_length": 64 << 20,
            "grpc.use_local_subchannel_pool": 1,
            **options,
        }
        return grpc.aio.insecure_channel(f"127.0.0.1:{self.port}", options=list(merged.items()))

    async def close(self) -> None:
        await self.channel.close()

    async def call(self, rpc: str, request: Message | bytes | None = None, **fields: Any) -> Any:
        """A unary call (or the first answers of a server stream, which is then cancelled)."""
        method = METHODS[rpc]
        message = GetMessageClass(method.input_type)(**fields) if request is None else request
        data = message if isinstance(message, bytes) else message.SerializeToString()
        response_type = GetMessageClass(method.output_type)
        if method.server_streaming:
            streaming = self.channel.unary_stream(f"/postbus.v1.{rpc}")(data, timeout=CALL_TIMEOUT_S)
            first = await streaming.read()
            streaming.cancel()
            return response_type.FromString(first)
        return response_type.FromString(
            await self.channel.unary_unary(f"/postbus.v1.{rpc}")(data, timeout=CALL_TIMEOUT_S)
        )

    async def refused(self, rpc: str, request: Message | bytes | None = None, **fields: Any) -> Refusal:
        """The same, of a call that has to fail."""
        try:
            answer = await self.call(rpc, request, **fields)
        except grpc.RpcError as error:
            return refusal_of(error)
        raise AssertionError(f"{rpc} answered {answer}")

    def open(self, rpc: str, *, channel: grpc.aio.Channel | None = None, timeout_s: float | None = 12.0) -> Stream:
        """A bidirectional stream; cancelled when the test ends."""
        method = METHODS[rpc]
        call = (channel or self.channel).stream_stream(f"/postbus.v1.{rpc}")(timeout=timeout_s)
        stream = Stream(call, GetMessageClass(method.input_type), GetMessageClass(method.output_type))
        self._streams.append(stream)
        return stream

    async def subscribe(
        self, topic: str, *, at: Any = None, selector: dict[str, Any] | None = None, **start: Any
    ) -> Stream:
        """A subscription that has begun to be asked for."""
        stream = self.open("SubscriberService/Subscribe")
        selectors = [subscriber_pb2.TopicSelector(topic=topic, start_at=at, **(selector or {}))]
        await stream.send(start=subscriber_pb2.SubscribeStart(topics=selectors, **start))
        return stream

    def end_streams(self) -> None:
        """Cancels what a test left open."""
        for stream in self._streams:
            stream.call.cancel()
        self._streams.clear()

    def name(self, what: str = "topic") -> str:
        """A new name."""
        return f"{what}-{next(self._numbers)}"

    async def topic(self, partitions: int = 1, **fields: Any) -> str:
        """A new topic."""
        name = self.name()
        await self.call("TopicService/CreateTopic", name=name, partition_count=partitions, **fields)
        return name

    async def publish(self, topic: str, *values: bytes, **fields: Any) -> publisher_pb2.PublishResponse:
        """One batch of records without keys."""
        return await self.call("PublisherService/Publish", topic=topic, batch=batch_of(*values), **fields)

    async def assert_well(self) -> None:
        """A good publish is durable and comes back."""
        topic = await self.topic()
        await self.publish(topic, b"well")
        fetched = await self.call("SubscriberService/Fetch", topic=topic)
        assert [record.value for batch in fetched.batches for record in batch.batch.records] == [b"well"]


def batch_of(*values: bytes) -> record_pb2.RecordBatch:
    """Records without keys."""
    return record_pb2.RecordBatch(records=[record_pb2.Record(value=value) for value in values])


def values_of(batches: Iterable[subscriber_pb2.DeliveredBatch]) -> list[bytes]:
    """The values delivered, in order."""
    return [record.value for batch in batches for record in batch.batch.records]


@dataclass(frozen=True)
class Tools:
    """What tests would import, if a folder of tests were a package."""

    methods: dict[str, MethodDescriptor]
    batch_of: Callable[..., record_pb2.RecordBatch]
    values_of: Callable[..., list[bytes]]
    refusal_in: Callable[[error_pb2.Failure], Refusal]
    refusal_of: Callable[[grpc.RpcError], Refusal]


class BrokerLog(logging.Handler):
    """Everything at error level that the broker, asyncio or gRPC said."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.errors: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.errors.append(self.format(record))

    def process(self, _logger: object, method: str, event: dict[str, Any]) -> str:
        if method in {"error", "exception", "critical"}:
            self.errors.append(repr(event))
        raise structlog.DropEvent


@pytest.fixture(scope="session")
def broker_log() -> Iterator[BrokerLog]:
    """Collects errors of the whole session."""
    collected = BrokerLog()
    logging.getLogger().addHandler(collected)
    before = structlog.get_config()
    structlog.configure(
        processors=[structlog.processors.format_exc_info, collected.process], cache_logger_on_first_use=False
    )
    yield collected
    structlog.configure(**before)
    logging.getLogger().removeHandler(collected)


@pytest.fixture(scope="module", autouse=True)
def _from_here_on(broker_log: BrokerLog) -> None:
    """What the tests of other folders logged on purpose, between two files of this one, is not asked about here."""
    broker_log.errors = []


@pytest.fixture(autouse=True)
def _nothing_logged(broker_log: BrokerLog) -> Iterator[None]:
    """No input makes the broker log an error."""
    yield
    errors, broker_log.errors = broker_log.errors, []
    assert not errors, errors


@pytest.fixture(scope="session")
def tools() -> Tools:
    """Functions shared by the tests of this folder."""
    return Tools(METHODS, batch_of, values_of, refusal_in, refusal_of)


StartNode = Callable[..., Any]


def settings_of(folder: Path, flags: dict[str, str]) -> config.Settings:
    """A node's, with small grace and a disk that is never full."""
    small = {
        "data_dir": str(folder),
        "client_port": "0",
        "http_port": "off",
        "drain_grace_seconds": "0.2",
        "disk_free_min_bytes": "0",
        "memtable_bytes": "4MiB",
    }
    return config.load(flags={**small, **flags})


@contextlib.asynccontextmanager
async def lone_node(folder: Path) -> AsyncIterator[tuple[Node, int]]:
    """A node, and its client port."""
    node = Node(settings_of(folder, {"metrics_per_partition": "false"}))
    started = await node.start()
    yield node, started.client_port
    await node.stop()


@contextlib.asynccontextmanager
async def node_of_three(folder: Path, *, bystander: bool) -> AsyncIterator[tuple[Node, int]]:
    """Node 3 of three: it leads a share and follows a share, or, as a bystander, has no topic and no leader."""
    with contextlib.ExitStack() as bound:
        sockets = [bound.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]
        ports = [each.getsockname()[1] for each in sockets]
    peers = ",".join(f"{number}@127.0.0.1:{port}" for number, port in enumerate(ports, start=1))
    nodes = [
        Node(
            settings_of(
                folder / f"node-{number}",
                {
                    "node_id": str(number),
                    "cluster_id": "conformance",
                    "peers": peers,
                    "peer_port": str(port),
                    "topic_replication_factor": "2",
                    "handover_timeout_seconds": "0.1",
                    "metrics_per_partition": "false",
                },
            )
        )
        for number, port in enumerate(ports, start=1)
    ]
    started = await asyncio.gather(*(node.start() for node in nodes))
    async with asyncio.timeout(60):
        while not all(node._bus.ready for node in nodes):  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.02)
        while bystander:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{started[0].client_port}") as channel:
                drain = cluster_pb2.DrainNodeRequest(node_id=3)
                drained = await cluster_pb2_grpc.ClusterServiceStub(channel).DrainNode(drain)
            if not drained.leading_count:
                break
            await asyncio.sleep(0.1)
    yield nodes[2], started[2].client_port
    await asyncio.gather(*(node.stop() for node in nodes))


THROUGH = {
    "alone": lone_node,
    "member": functools.partial(node_of_three, bystander=False),
    "bystander": functools.partial(node_of_three, bystander=True),
}
# What is asked through a bystander too, unless POSTBUS_CONFORMANCE_THROUGH names what all is to be asked through.
THROUGH_A_BYSTANDER = {"test_reading.py", "test_group_reading.py"}
# These speak of a lone node: of its one copy, its one vote, its leadership of everything.
ALONE = {
    "test_settings_that_can_not_hold_make_no_topic_and_change_none",
    "test_a_topic_of_a_shape_that_can_not_be_is_not_made",
    "test_operations_that_can_not_be_are_refused_by_the_field",
    "test_each_partition_of_an_operation_has_its_own_outcome",
    "test_a_partition_is_described_with_its_copies",
    "test_looking_at_the_cluster",
}
CHOSEN = os.environ.get("POSTBUS_CONFORMANCE_THROUGH", "")


@pytest_asyncio.fixture(
    loop_scope="session", scope="session", params=CHOSEN.split(",") if CHOSEN else ["alone", "bystander"]
)
async def shared_bus(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, broker_log: BrokerLog
) -> AsyncIterator[Bus]:
    """The node that most tests talk to: alone, or one of a cluster."""
    async with THROUGH[request.param](tmp_path_factory.mktemp("node")) as (node, port):
        bus = Bus(node, port, itertools.count())
        yield bus
        await bus.close()


@pytest_asyncio.fixture(loop_scope="session")
async def bus(shared_bus: Bus) -> AsyncIterator[Bus]:
    """The same; what a test leaves open is cancelled, and the broker must be well after it."""
    yield shared_bus
    shared_bus.end_streams()
    await shared_bus.assert_well()


@pytest_asyncio.fixture(loop_scope="session")
async def start_bus(tmp_path: Path, broker_log: BrokerLog) -> AsyncIterator[StartNode]:
    """Starts nodes with settings of their own."""
    running: list[tuple[Node, Bus]] = []

    async def start(**flags: str) -> Bus:
        node = Node(settings_of(tmp_path / f"node-{len(running)}", flags))
        started = await node.start()
        bus = Bus(node, started.client_port, itertools.count())
        running.append((node, bus))
        return bus

    yield start
    for node, bus in running:
        bus.end_streams()
        await bus.close()
        await node.stop()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One loop for the session's node and all that talk to it."""
    here = Path(__file__).parent
    for item in tuple(items):
        if here in item.path.parents and isinstance(item, pytest.Function):
            item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)
            through = item.callspec.params.get("shared_bus") if hasattr(item, "callspec") else None
            elsewhere = not CHOSEN and item.path.name not in THROUGH_A_BYSTANDER
            if through not in {None, "alone"} and (elsewhere or item.originalname in ALONE):
                items.remove(item)
