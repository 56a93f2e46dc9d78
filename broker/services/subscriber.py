"""SubscriberService: Subscribe, Fetch and Acknowledge. Streams are in subscription.py and group_session.py."""

import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain

from postbus.v1 import record_pb2, subscriber_pb2

from broker import errors
from broker.errors import PostbusError, Reason
from broker.groups.calls import CommitEntry
from broker.groups.client import CoordinatorClient
from broker.peers.calls import PeerUnreachable
from broker.peers.links import PeerId
from broker.replication.partition import Partition
from broker.replication.partitions import PartitionedTopic
from broker.services import delivery, positions, publish_route, requests, subscribe_start
from broker.services.adapter import Call, ServerStream
from broker.services.delivery import Buffer, DeliveryLimits, Piece
from broker.services.group_session import GroupSession, Memberships, assignment_lost, check_delivery
from broker.services.subscribe_start import RESPONSE_BYTES_DEFAULT, RESPONSE_BYTES_MIN
from broker.services.subscription import CHUNKS_PER_RESPONSE_MAX, Subscription, Surroundings, log_corrupt
from broker.services.together import together
from broker.storage.batch import StoredBatch
from broker.storage.errors import LogCorrupt, OffsetOutOfRange, StorageError

FETCH_RECORDS_DEFAULT = 10_000
# Between nodes, for the member's stream is on one of them.
MEMBER_ACKNOWLEDGE = "member.acknowledge"
# A caller without patience of its own is told so late that nobody coordinates the group.
ACKNOWLEDGE_S_MAX = 30.0


class SubscriberService:
    """Reads topics, alone or as a member of a group."""

    def __init__(self, surroundings: Surroundings, *, coordinator: CoordinatorClient) -> None:
        self.surroundings = surroundings
        self._coordinator = coordinator
        self._memberships = Memberships()
        self._subscriptions: set[Subscription] = set()
        self._draining: record_pb2.Draining | None = None

    @property
    def subscription_count(self) -> int:
        """Open streams."""
        return len(self._subscriptions)

    async def subscribe(self, stream: ServerStream) -> None:
        """Subscribe: until the client leaves or something ends it."""
        if self._draining is not None:
            raise errors.draining()
        opening = _Opening(stream)
        stream.start_reading(opening.receive, half_closed=opening.half_close, failed=opening.fail)
        start = await opening.start(self.surroundings.settings.start_timeout_s)
        if self._draining is not None:
            raise errors.draining()
        requests.refuse_unknown(start)
        if start.ByteSize() != start.start.ByteSize() + _header_bytes(start):
            raise errors.invalid_field("start", "comes alone in the first message; send the rest in the next ones")
        plan = subscribe_start.check(start.start, self.surroundings.settings)
        await self.surroundings.look_for(
            (
                name,
                chain(selector.partitions, (position.partition for position in selector.positions)),
            )
            for name, selector in plan.selectors.items()
        )
        subscription = (
            GroupSession(stream, plan, self.surroundings, coordinator=self._coordinator, memberships=self._memberships)
            if plan.group
            else Subscription(stream, plan, self.surroundings)
        )
        self._subscriptions.add(subscription)
        try:
            await subscription.run(lambda: opening.connect(subscription))
        finally:
            self._subscriptions.discard(subscription)

    async def fetch(self, request: subscriber_pb2.FetchRequest, call: Call) -> bytes:
        """Fetch: a long poll. What was acknowledged before it is in the answer, or behind an answer that is full."""
        if self._draining is not None:
            raise errors.draining()
        plan = await self._plan_fetch(request, call)
        deadline = self.surroundings.clock.monotonic() + plan.wait_s
        while True:
            changed = _Changed(plan.topic.partitions)
            try:
                if self.surroundings.partitions.find(plan.topic.topic_id) is None:
                    raise errors.topic_not_found(plan.topic.name)
                full = await self._read_fetch(plan)
                left_s = deadline - self.surroundings.clock.monotonic()
                if not (full or plan.ends_known) and (not plan.ends_asked or left_s > 0):
                    await self._ask_ends(plan)
                    await self._read_fetch(plan)
                chunks = plan.chunks
                left_s = deadline - self.surroundings.clock.monotonic()
                if not chunks and left_s <= 0 and plan.trouble is not None:
                    raise plan.trouble
                if chunks or left_s <= 0 or self._draining is not None:
                    return b"".join([*chunks, self._fetch_end(plan)])
                await changed.wait(left_s)
            finally:
                changed.stop()

    async def _plan_fetch(self, request: subscriber_pb2.FetchRequest, call: Call) -> "_FetchPlan":
        requests.check_name("topic", request.topic)
        if request.group:
            raise errors.unknown_field("group", "this version has ordered groups only, which need Subscribe")
        topic = self.surroundings.partitions.topic(request.topic)
        max_bytes = request.max_bytes or RESPONSE_BYTES_DEFAULT
        bytes_max = self.surroundings.settings.response_bytes_max
        if not RESPONSE_BYTES_MIN <= max_bytes <= bytes_max:
            raise errors.invalid_field("max_bytes", f"{max_bytes} is not within {RESPONSE_BYTES_MIN} and {bytes_max}")
        wait_s = 0.0
        if request.HasField("max_wait"):
            wait_s = requests.seconds("max_wait", request.max_wait, maximum=self.surroundings.settings.fetch_wait_max_s)
        places: dict[int, int] = {}
        for index, position in enumerate(request.positions):
            subscribe_start.check_position(f"positions[{index}]", position, topic=request.topic)
            topic.partition(position.partition)
            if position.partition in places:
                raise errors.invalid_field(f"positions[{index}].partition", f"{position.partition} is named twice")
            places[position.partition] = position.offset
        positions.check_start("start_at", request.start_at)
        leader_wait_s = min(self.surroundings.settings.leader_wait_s, max(call.timeout_s * 0.9, 0.0))
        places = await self._find_places(topic, places, request.start_at, timeout_s=leader_wait_s)
        # Where to go on is part of the answer, twice a partition.
        room = max(max_bytes - 2 * len(topic.partitions) * (len(topic.name) + 40), RESPONSE_BYTES_MIN // 2)
        # An answer that comes after the caller gave up is wasted: leave a tenth of the time for the way back.
        return _FetchPlan(
            topic=topic,
            places=places,
            wait_s=min(wait_s, max(call.timeout_s * 0.9, 0.0)),
            records_max=request.max_records or FETCH_RECORDS_DEFAULT,
            end_wait_s=min(self.surroundings.settings.end_wait_s, max(call.timeout_s * 0.5, 0.0)),
            limits=DeliveryLimits(
                codecs=subscribe_start.check_codecs("accept_compressions", request.accept_compressions),
                response_bytes_max=room,
                batch_records_max=0,
            ),
        )

    async def _find_places(
        self, topic: PartitionedTopic, places: dict[int, int], start: subscriber_pb2.StartPosition, *, timeout_s: float
    ) -> dict[int, int]:
        """Where to read: the places that were named, all of which must exist, or where `start` says."""

        async def ask(partition: Partition) -> None:
            at = places.get(partition.number)
            if at is None:
                found[partition.number] = await positions.resolve_start(
                    partition, start, self.surroundings.clock, timeout_s=timeout_s
                )
            else:
                await positions.make_sure(partition, at, timeout_s=timeout_s)

        found = dict(places)
        chosen = [topic.partitions[number] for number in places] or list(topic.partitions)
        unknown: list[Partition] = []
        for partition in chosen:
            at = places.get(partition.number)
            if at is None and (known := positions.known_start(partition, start)) is not None:
                found[partition.number] = known
            elif at is None or not positions.holds(partition, at):
                unknown.append(partition)
        if places:
            # The answer says where the others begin.
            unknown += [each for each in topic.partitions if each.number not in places and not positions.is_here(each)]
        await together(
            [partial(ask, partition) for partition in unknown],
            at_once_max=self.surroundings.settings.places_at_once_max,
        )
        policy = subscriber_pb2.OUT_OF_RANGE_POLICY_FAIL
        return {
            partition.number: positions.within_range(partition, found[partition.number], policy) for partition in chosen
        }

    async def _ask_ends(self, plan: "_FetchPlan") -> None:
        """All that is known here was read: there may be more, acknowledged by leaders elsewhere."""
        plan.ends_asked = True
        client, timeout_s = self.surroundings.partition_client, plan.end_wait_s
        at_end = [each for each in plan.rotated() if plan.places[each.number] >= each.high_watermark]
        deadline = asyncio.get_running_loop().time() + timeout_s
        try:
            await together(
                [partial(each.fresh_high_watermark, timeout_s) for each in at_end if each.leading],
                at_once_max=self.surroundings.settings.places_at_once_max,
            )
            elsewhere = [partition for partition in at_end if not partition.leading]
            if elsewhere and client is not None:
                ends = await client.ends(plan.topic.topic_id, elsewhere, timeout_s=timeout_s)
                for partition in elsewhere:
                    end = ends[partition.number].high_watermark
                    await positions.until_known(partition, end, deadline=deadline)
        except PostbusError as error:
            plan.trouble = error  # what is known here is there all the same
        else:
            plan.ends_known, plan.trouble = True, None

    async def _read_fetch(self, plan: "_FetchPlan") -> bool:
        """Reads on from each partition in turn, and moves the places. True: the answer is full."""
        chunks, limits = plan.chunks, plan.limits
        for partition in plan.rotated():
            room = limits.response_bytes_max - plan.size_bytes
            if room < RESPONSE_BYTES_MIN // 2 or plan.records >= plan.records_max:
                return True
            at = plan.places[partition.number]
            end = partition.high_watermark
            if at >= end:
                continue
            here = positions.is_here(partition)
            try:
                read = await _read(partition, at, end, room)
            except PostbusError as error:
                if not error.kind.retriable:
                    raise
                plan.trouble = error  # the others may have something
                continue
            if not read and here:
                plan.places[partition.number] = end  # compaction left nothing there
            for stored in read:
                # A record limit cuts the range, so that batches are sliced to it.
                stop = min(end, delivery.end_after(stored, at, plan.records_max - plan.records))
                cut = delivery.pieces(stored, first_offset=at, end_offset=stop, limits=limits)
                while (piece := _next_piece(cut, after_others=bool(chunks))) is not None:
                    parts, length = delivery.encode(piece, partition=partition, stored=stored, fence=0)
                    if chunks and plan.size_bytes + length > limits.response_bytes_max:
                        return True
                    chunks += parts
                    plan.size_bytes += length
                    at = piece.end_offset
                    plan.places[partition.number] = at
                    plan.records += piece.record_count
                    self.surroundings.delivered(partition.topic, piece.record_count, len(piece.batch))
                    if len(chunks) >= CHUNKS_PER_RESPONSE_MAX:
                        return True
                if at < stop and not delivery.has_records(stored, at, stop):
                    at = plan.places[partition.number] = stop
                if at < stop or plan.records >= plan.records_max or plan.size_bytes >= limits.response_bytes_max:
                    return True
        return False

    def _fetch_end(self, plan: "_FetchPlan") -> bytes:
        """Where to go on: every partition, new ones from EARLIEST."""
        response = subscriber_pb2.FetchResponse()
        for partition in plan.topic.partitions:
            at = plan.places.get(partition.number, partition.log.log_start_offset)
            response.next.add(topic=partition.topic, partition=partition.number, offset=at)
            response.progress.add(
                topic=partition.topic,
                partition=partition.number,
                next_offset=at,
                high_watermark=partition.high_watermark,
            )
        return response.SerializeToString()

    async def acknowledge(
        self, request: subscriber_pb2.AcknowledgeRequest, call: Call
    ) -> subscriber_pb2.AcknowledgeResponse:
        """Acknowledge: outside the stream, durable when it answers."""
        requests.check_name("group", request.group)
        if request.lease_extensions:
            raise errors.unknown_field("lease_extensions", "this version has ordered groups only")
        if request.nacks:
            raise errors.unknown_field("nacks", "send them on the Subscribe stream of the member")
        if not request.member_id:
            raise errors.invalid_field("member_id", "is required: `started` tells it")
        if not request.acks:
            raise errors.invalid_field("acks", "is empty")
        for index, ack in enumerate(request.acks):
            check_delivery(f"acks[{index}]", ack)
        if self._memberships.find(request.group, request.member_id) is None:
            elsewhere = await self._acknowledge_elsewhere(request, min(call.timeout_s * 0.9, ACKNOWLEDGE_S_MAX))
            if elsewhere is not None:
                return elsewhere
        return await self._acknowledge_here(request)

    async def acknowledge_for_peer(self, _peer: PeerId, payload: bytes) -> bytes:
        """Acknowledge, from another node: the member's stream is here."""
        request = subscriber_pb2.AcknowledgeRequest.FromString(payload)
        return (await self._acknowledge_here(request)).SerializeToString()

    async def _acknowledge_elsewhere(
        self, request: subscriber_pb2.AcknowledgeRequest, timeout_s: float
    ) -> subscriber_pb2.AcknowledgeResponse | None:
        """What was delivered only the node of the member's stream knows. None: there is no such node."""
        node_id = await self._coordinator.member_node(request.group, request.member_id, timeout_s=timeout_s)
        if node_id in {0, self.surroundings.settings.node_id}:
            return None
        try:
            answer = await self._coordinator.ask_node(
                node_id, MEMBER_ACKNOWLEDGE, request.SerializeToString(), timeout_s=timeout_s
            )
        except (PeerUnreachable, TimeoutError) as error:
            raise PostbusError(
                Reason.ERROR_REASON_NO_LEADER,
                f"node {node_id}, which holds the member's stream, does not answer; try again",
                retry_after_ms=500,
            ) from error
        return subscriber_pb2.AcknowledgeResponse.FromString(answer)

    async def _acknowledge_here(self, request: subscriber_pb2.AcknowledgeRequest) -> subscriber_pb2.AcknowledgeResponse:
        response = subscriber_pb2.AcknowledgeResponse()
        for index, ack in enumerate(request.acks):
            try:
                offset = await self._acknowledge(request.group, request.member_id, ack, f"acks[{index}]")
                response.report.committed.add(topic=ack.topic, partition=ack.partition, offset=offset)
            except PostbusError as error:
                if error.reason != Reason.ERROR_REASON_ASSIGNMENT_LOST:
                    raise
                response.report.rejected.add(delivery=ack, failure=error.failure())
        return response

    async def _acknowledge(self, group: str, member_id: str, ack: subscriber_pb2.Delivery, field: str) -> int:
        member = self._memberships.find(group, member_id)
        topic = self.surroundings.partitions.find_name(ack.topic)
        if member is None or topic is None:
            raise assignment_lost(ack)
        if isinstance(member, GroupSession):
            return await member.acknowledge_now(ack, field)
        tracker = member.trackers.get((topic.topic_id, ack.partition))
        if tracker is None:
            raise assignment_lost(ack)
        now = self.surroundings.clock.monotonic()
        tracker.acknowledge(ack.base_offset, ack.end_offset, fence=ack.fence, now=now)
        entry = CommitEntry(topic.topic_id, ack.partition, tracker.commit_offset, tracker.fence)
        outcome = (await self._coordinator.commit(group, member_id, [entry]))[0]
        if outcome is not None:
            raise outcome
        return entry.offset

    # --- the node ---

    def topics_changed(self) -> None:
        """Partitions came, or topics went."""
        for subscription in self._subscriptions:
            subscription.topics_changed()

    def drain(self, grace_s: float) -> None:
        """Tells all streams that the node is going; new ones are refused."""
        self._draining = record_pb2.Draining()
        self._draining.grace.FromMilliseconds(round(grace_s * 1000))
        for subscription in self._subscriptions:
            subscription.drain(self._draining)

    def end_streams(self) -> None:
        """After the grace."""
        for subscription in self._subscriptions:
            subscription.end()


@dataclass(slots=True)
class _FetchPlan:
    topic: PartitionedTopic
    places: dict[int, int]
    wait_s: float
    records_max: int
    limits: DeliveryLimits
    end_wait_s: float
    trouble: PostbusError | None = None  # why a partition could not be read, or how far it is not known
    ends_asked: bool = False
    ends_known: bool = False  # all that was acknowledged before the call may be read here
    # The answer so far.
    chunks: list[Buffer] = field(default_factory=list)
    size_bytes: int = 0
    records: int = 0

    def rotated(self) -> list[Partition]:
        """The partitions to read, another one first each time, so that a full answer starves none."""
        numbers = sorted(self.places)
        turn = sum(self.places.values()) % len(numbers) if numbers else 0
        return [self.topic.partitions[number] for number in numbers[turn:] + numbers[:turn]]


class _Opening:
    """The reader's side until the subscription exists, and the wire to it from then on."""

    def __init__(self, stream: ServerStream) -> None:
        self._first: asyncio.Future[subscriber_pb2.SubscribeRequest] = asyncio.get_running_loop().create_future()
        self._subscription: Subscription | None = None
        self._connected = asyncio.Event()
        self._half_closed = False
        self._failure: Exception | None = None

    async def receive(self, data: bytes) -> None:
        if not self._first.done():
            self._first.set_result(requests.parse(subscriber_pb2.SubscribeRequest, data))
            return
        # Commands wait until the subscription has begun: they name partitions that it must know.
        await self._connected.wait()
        assert self._subscription is not None
        await self._subscription.receive(data)

    async def start(self, timeout_s: float) -> subscriber_pb2.SubscribeRequest:
        try:
            async with asyncio.timeout(timeout_s):
                request = await self._first
        except TimeoutError:
            raise errors.invalid_field("start", f"no message came within {timeout_s:g} s; send `start` first") from None
        if not request.HasField("start"):
            raise errors.invalid_field("start", "is required in the first message")
        return request

    def half_close(self) -> None:
        self._half_closed = True
        if not self._first.done():
            self._first.set_exception(errors.invalid_field("start", "the stream was closed before `start` was sent"))
        if self._subscription is not None:
            self._subscription.half_close()

    def fail(self, error: Exception) -> None:
        self._failure = error
        if not self._first.done():
            self._first.set_exception(error)
        if self._subscription is not None:
            self._subscription.fail(error)

    def connect(self, subscription: Subscription) -> None:
        self._subscription = subscription
        self._connected.set()
        if self._half_closed:
            subscription.half_close()
        if self._failure is not None:
            subscription.fail(self._failure)


class _Changed:
    """Wakes when any of some partitions has more to read."""

    def __init__(self, partitions: Sequence[Partition]) -> None:
        self._event = asyncio.Event()
        self._partitions = list(partitions)
        for partition in self._partitions:
            partition.add_listener(self._event.set)

    async def wait(self, timeout_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._event.wait()

    def stop(self) -> None:
        for partition in self._partitions:
            partition.remove_listener(self._event.set)


def _next_piece(cut: Iterator[Piece], *, after_others: bool) -> Piece | None:
    """None: no more. A record that fits no answer is an error of its own, once what comes before it was answered."""
    try:
        return next(cut, None)
    except PostbusError:
        if after_others:
            return None
        raise


async def _read(partition: Partition, offset: int, end_offset: int, max_bytes: int) -> list[StoredBatch]:
    source = partition.log
    try:
        stored = source.read_tail(offset, end_offset=end_offset, max_bytes=max_bytes)
        if not stored:
            stored = await source.read(offset, end_offset=end_offset, max_bytes=max_bytes)
    except OffsetOutOfRange:
        raise positions.out_of_range(partition, offset) from None
    except LogCorrupt as error:
        if await partition.another_copy(source):
            return await _read(partition, offset, end_offset, max_bytes)
        raise log_corrupt(partition, error) from error
    except StorageError as error:
        if partition.deleted:
            raise errors.topic_not_found(partition.topic) from error
        # The log went from this node while it was read: it is elsewhere.
        raise publish_route.no_leader(f"{partition.topic}/{partition.number}") from error
    return stored


def _header_bytes(request: subscriber_pb2.SubscribeRequest) -> int:
    """Tag and length of `start`."""
    return 1 + len(delivery.varint(request.start.ByteSize()))
