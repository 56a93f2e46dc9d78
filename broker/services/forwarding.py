"""Parts of publish requests on their way to the leaders: drives a PublishRoute for each partition.

A part goes straight into this node's log where it leads and nothing is in the way, at the cost of a place in a queue;
otherwise it waits for its turn and travels as a "partition.publish" call. Tells each part's owner what became of it,
once. Deadlines of what waits are kept here, by a timer that runs only while something does.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Final, Protocol

from broker import errors
from broker.clock import Clock
from broker.errors import PostbusError, Reason
from broker.peers.calls import Calls, PeerUnreachable, from_peer
from broker.replication.partition import Partition, Published
from broker.services import placing
from broker.services.adapter import from_storage
from broker.services.publish_route import (
    Complete,
    Part,
    PlaceHere,
    PublishRoute,
    Send,
    Verdict,
    no_leader,
    verdict_of,
)
from broker.storage.batch import NewBatch
from broker.storage.errors import StorageError
from broker.stubs import partition_calls_pb2, peers_pb2

PUBLISH: Final = "partition.publish"
# What a part costs besides its batch.
PART_BYTES: Final = 512


@dataclass(frozen=True, slots=True)
class ForwardingSettings:
    """Bounds."""

    retry_interval_s: float = 0.05  # how soon a leader that refused is asked again, and a dead node looked for
    window_bytes: int = 8 * 1024 * 1024  # of one partition on its way to another node


class Owner(Protocol):
    """Whoever waits for a part."""

    def part_done(self, work: "Work", error: Exception | None) -> None:
        """It is over; no error: all of it is safe. Something else than a PostbusError is a fault."""


class Work(Part):
    """A part with all that is needed to place it. `published` says where it is, once it is."""

    __slots__ = (
        "acks",
        "confirmed_epoch",
        "deadline",
        "end_offset",
        "forwarding",
        "leader_only",
        "new",
        "owner",
        "partition",
        "published",
        "route",
    )

    forwarding: "Forwarding"

    def __init__(
        self,
        *,
        partition: Partition,
        new: NewBatch,
        acks: int,
        owner: Owner,
        source: object | None,
        deadline: float,
        end_offset: int | None = None,
        leader_only: bool = False,
    ) -> None:
        """deadline: of clock.monotonic(). end_offset: a precondition."""
        super().__init__(
            source=source, repeatable=bool(new.request_id or new.producer_id), size=len(new.batch) + PART_BYTES
        )
        self.partition = partition
        self.new = new
        self.acks = acks
        self.owner = owner
        self.deadline = deadline
        self.end_offset = end_offset
        self.leader_only = leader_only
        self.published: list[Published] = []
        self.confirmed_epoch = -1  # that in which this node was found to lead still, after it refused this
        self.route: PublishRoute | None = None  # not submitted yet

    @property
    def name(self) -> str:
        """topic/number."""
        return f"{self.partition.topic}/{self.partition.number}"

    def safe(self, error: PostbusError | None) -> None:
        """What the local log tells, through `when_safe`."""
        if error is None:
            assert self.route is not None
            if self.route.give_back(self):
                self.owner.part_done(self, None)
            else:
                self.forwarding.answered(self, self.attempt, Verdict.SAFE, None)
        else:
            self.forwarding.answered(self, self.attempt, verdict_of(error), error)


class Forwarding:
    """All routes of this node."""

    def __init__(
        self,
        *,
        calls: Calls,
        node_id: int,
        clock: Clock,
        random: Random,
        endpoint_of: Callable[[int], str],
        is_gone: Callable[[int], bool],
        still_leads: Callable[[Partition], Awaitable[bool]],
        published: Callable[[str, int, int], None],
        settings: ForwardingSettings | None = None,
    ) -> None:
        """endpoint_of: where clients reach a node. is_gone: the controller has fenced it, or never knew it.
        still_leads: whether nobody else leads a partition that this node leads as far as it knows.
        published: topic, records and bytes of what this node's clients appended, for metrics."""
        self._calls = calls
        self._node_id = node_id
        self._clock = clock
        self._endpoint_of = endpoint_of
        self._is_gone = is_gone
        self._still_leads = still_leads
        self._published = published
        self._settings = settings or ForwardingSettings()
        # Leaders tell this process from one before it with the same number by it.
        self._life = random.getrandbits(64)
        self._routes: dict[Partition, PublishRoute] = {}
        self._listening: dict[PublishRoute, tuple[Partition, Callable[[], None]]] = {}
        self._stuck: dict[PublishRoute, Partition] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._loading: dict[Partition, asyncio.Task[None]] = {}
        self._confirming: dict[Partition, asyncio.Task[None]] = {}

    def submit(self, work: Work) -> None:
        """Places it, at once or in its turn. Its owner is told what became of it, maybe before this returns."""
        partition = work.partition
        route = self._routes.get(partition) or self._open(partition)
        if route.leader_epoch != partition.leader_epoch or route.leader_id != partition.leader_id:
            self._follow(route, partition)
        work.forwarding = self
        work.route = route
        if route.direct and not (work.new.request_id and placing.ids_missing(partition)):
            try:
                work.published = self._append(work)
            except (PostbusError, StorageError) as error:
                refusal = error if isinstance(error, PostbusError) else from_storage(error)
                passes = verdict_of(refusal) is Verdict.NOT_APPENDED
                if not passes and not placing.is_to_be_confirmed(partition, refusal):
                    work.over = True
                    work.owner.part_done(work, refusal)
                    return
            except Exception:
                work.over = True
                raise
            else:
                route.take(work)
                partition.when_safe(_end_of(work.published), work.acks, work.safe)
                return
        if work.leader_only and partition.leader_id not in {None, self._node_id}:
            work.over = True
            work.owner.part_done(work, self.not_leader(partition))
            return
        route.submit(work)
        self._run(route, partition)

    def give_up(self, work: Work) -> None:
        """Nobody waits for it any longer. Its owner is told, unless it was already."""
        if not work.over and work.route is not None:
            work.route.give_up(work)
            self._run(work.route, work.partition)

    def give_up_all(self, why: PostbusError) -> None:
        """This node can do nothing for whoever waits; another one may."""
        for partition, route in list(self._routes.items()):
            for part in route.parts():
                route.give_up(part, why)
            self._run(route, partition)

    def answered(self, work: Work, attempt: int, verdict: Verdict, error: PostbusError | None) -> None:
        """What became of an attempt."""
        assert work.route is not None
        work.route.answered(work, attempt, verdict, error)
        self._run(work.route, work.partition)

    def not_leader(self, partition: Partition) -> PostbusError:
        """FAILED_PRECONDITION, with whom to ask instead."""
        leader = partition.leader_id
        endpoint = "" if leader is None else self._endpoint_of(leader)
        name = f"{partition.topic}/{partition.number}"
        return PostbusError(
            Reason.ERROR_REASON_NOT_LEADER,
            f"node {self._node_id} does not lead {name}; node {leader} at {endpoint} does: publish there, or without"
            " leader_only",
            metadata={
                "leader_node_id": leader or 0,
                "leader_endpoint": endpoint,
                "leader_epoch": partition.leader_epoch,
            },
        )

    def nodes_changed(self) -> None:
        """Nodes came or went: those that are gone answer nothing any more."""
        for route, (partition, _) in list(self._listening.items()):
            self._follow(route, partition)
            self._run(route, partition)

    def topics_changed(self) -> None:
        """Topics may have gone: routes on which nothing is under way heard nothing of it."""
        for partition in [partition for partition, route in self._routes.items() if partition.deleted and route.idle]:
            del self._routes[partition]

    def close(self) -> None:
        """Ends the timer, the loads and the questions; what is on its way is not waited for."""
        if self._timer is not None:
            self._timer.cancel()
        for task in (*self._loading.values(), *self._confirming.values()):
            task.cancel()

    # --- routes ---

    def _open(self, partition: Partition) -> PublishRoute:
        route = self._routes[partition] = PublishRoute(
            name=f"{partition.topic}/{partition.number}",
            node_id=self._node_id,
            window_bytes=self._settings.window_bytes,
        )
        self._follow(route, partition)
        return route

    def _follow(self, route: PublishRoute, partition: Partition) -> None:
        """What the cluster's image says by now."""
        route.led_by(partition.leader_id, partition.leader_epoch)
        if partition.deleted:
            route.delete(errors.topic_not_found(partition.topic))
        for node_id in route.waits_for():
            if self._is_gone(node_id):
                route.node_gone(node_id)

    def _woken(self, route: PublishRoute, partition: Partition) -> None:
        if route.leader_epoch != partition.leader_epoch or route.leader_id != partition.leader_id or partition.deleted:
            self._follow(route, partition)
            self._run(route, partition)

    def _run(self, route: PublishRoute, partition: Partition) -> None:
        """Does what follows, until nothing does."""
        while (effect := route.next()) is not None:
            work = effect.part
            assert isinstance(work, Work)
            match effect:
                case PlaceHere():
                    self._place_here(work)
                case Send():
                    self._send(work, effect)
                case Complete():
                    if effect.error is not None:
                        # Its traceback holds the frames that hold the request: a cycle, until the collector comes.
                        effect.error.__traceback__ = None
                    work.owner.part_done(work, effect.error)
        self._watch(route, partition)

    def _watch(self, route: PublishRoute, partition: Partition) -> None:
        """Hears of moves while parts are on their way, and looks again by itself while they are stuck."""
        if route.idle or route.direct:
            self._stuck.pop(route, None)
            listening = self._listening.pop(route, None)
            if listening is not None:
                partition.remove_listener(listening[1])
            if partition.deleted and route.idle:
                self._routes.pop(partition, None)
            return
        if route not in self._listening:
            wake = partial(self._woken, route, partition)
            self._listening[route] = (partition, wake)
            partition.add_listener(wake)
        if not route.stuck:
            self._stuck.pop(route, None)
        elif route not in self._stuck:
            self._stuck[route] = partition
            if self._timer is None:
                self._timer = asyncio.get_running_loop().call_later(self._settings.retry_interval_s, self._tick)

    def _tick(self) -> None:
        self._timer = None
        now = self._clock.monotonic()
        for route, partition in list(self._stuck.items()):
            for part in route.parts():
                if isinstance(part, Work) and part.deadline <= now:
                    route.give_up(part)
            self._follow(route, partition)
            route.retry()
            self._stuck.pop(route, None)
            self._run(route, partition)

    # --- placing ---

    def _append(self, work: Work) -> list[Published]:
        placed = placing.place(work.partition, work.new, end_offset=work.end_offset)
        self._count(work, placed)
        return placed

    def _count(self, work: Work, placed: list[Published]) -> None:
        records = 0
        for part in placed:
            if not part.duplicate:
                records += part.record_count
        if records:
            self._published(work.partition.topic, records, len(work.new.batch))

    def _place_here(self, work: Work) -> None:
        """A part that waited for its turn."""
        if work.new.request_id and placing.ids_missing(work.partition):
            self._load_ids(work.partition)
            self.answered(work, work.attempt, Verdict.NOT_APPENDED, no_leader(work.name))
            return
        try:
            work.published = self._append(work)
        except (PostbusError, StorageError) as error:
            refusal = error if isinstance(error, PostbusError) else from_storage(error)
            verdict = verdict_of(refusal)
            confirmed = work.confirmed_epoch == work.partition.leader_epoch
            if not confirmed and placing.is_to_be_confirmed(work.partition, refusal):
                self._confirm(work)
                verdict, refusal = Verdict.NOT_APPENDED, no_leader(work.name)
            self.answered(work, work.attempt, verdict, refusal)
        except Exception as fault:  # its owner tells
            assert work.route is not None
            work.route.drop(work)
            work.owner.part_done(work, fault)
        else:
            work.partition.when_safe(_end_of(work.published), work.acks, work.safe)

    def _load_ids(self, partition: Partition) -> None:
        if partition in self._loading or partition.local is None:
            return
        task = self._loading[partition] = asyncio.get_running_loop().create_task(partition.local.load_request_ids())

        def loaded(done: asyncio.Task[None]) -> None:
            self._loading.pop(partition, None)
            if not done.cancelled():
                done.exception()  # the next try meets it again

        task.add_done_callback(loaded)

    def _confirm(self, work: Work) -> None:
        """Asks whether this node, which would refuse it, leads still; it is placed once more then."""
        partition, epoch = work.partition, work.partition.leader_epoch
        if partition in self._confirming:
            return  # asked again at the next try

        async def ask() -> None:
            try:
                leads = await self._still_leads(partition)
            finally:
                del self._confirming[partition]
            if leads and work.route is not None:
                work.confirmed_epoch = epoch
                work.route.retry()
                self._run(work.route, partition)

        self._confirming[partition] = asyncio.get_running_loop().create_task(ask())

    def _send(self, work: Work, send: Send) -> None:
        if work.leader_only:
            self.answered(work, work.attempt, Verdict.REFUSED, self.not_leader(work.partition))
            return
        timeout_s = max(work.deadline - self._clock.monotonic(), 0.001)
        payload = self._encode(work, send)
        future = self._calls.start_call(send.node_id, PUBLISH, payload, timeout_s=timeout_s)
        done = partial(self._heard, work, work.attempt, send.node_id)
        if future.done():
            done(future)  # at once, so that nothing is sent after what could not be
        else:
            future.add_done_callback(done)

    def _encode(self, work: Work, send: Send) -> bytes:
        new, partition = work.new, work.partition
        return partition_calls_pb2.PublishPart(
            topic_id=partition.topic_id,
            partition=partition.number,
            leader_epoch=send.leader_epoch,
            sender_life=self._life,
            round=send.round,
            number=send.number,
            batch=new.batch,
            record_count=new.record_count,
            codec=new.codec,
            acks=work.acks,
            request_id=new.request_id,
            record_indexes=new.record_indexes,
            producer_id=new.producer_id,
            producer_epoch=new.producer_epoch,
            producer_sequence=new.producer_sequence,
            end_offset=work.end_offset,
        ).SerializeToString()

    def _heard(self, work: Work, attempt: int, node_id: int, future: "asyncio.Future[bytes]") -> None:
        verdict, error = Verdict.UNKNOWN, None
        try:
            answer = partition_calls_pb2.PublishPartAnswer.FromString(future.result())
        except PeerUnreachable as unreachable:
            if not unreachable.sent:
                verdict, error = Verdict.NOT_APPENDED, _unreachable(work.name, unreachable)
        except (TimeoutError, asyncio.CancelledError):
            pass
        except PostbusError as raised:
            verdict, error = verdict_of(raised), raised
        else:
            if answer.error:
                error = from_peer(peers_pb2.PeerError.FromString(answer.error))
                verdict = verdict_of(error)
            elif work.attempt == attempt and work.outstanding:
                verdict = Verdict.SAFE
                work.published = published_of(answer.ranges, work.partition.number)
                self._count(work, work.published)
        if error is not None and error.reason == Reason.ERROR_REASON_DRAINING:
            # The other node goes; this one does not, and the next leader will take it.
            verdict = Verdict.NOT_APPENDED
        self.answered(work, attempt, verdict, error)


def _end_of(published: list[Published]) -> int:
    return published[0].end_offset if len(published) == 1 else max(part.end_offset for part in published)


def published_of(ranges: Iterable[partition_calls_pb2.PlacedRange], partition: int) -> list[Published]:
    """As another node told."""
    return [
        Published(
            partition,
            placed.base_offset,
            placed.record_count,
            tuple(placed.record_indexes),
            placed.append_time_us,
            placed.duplicate,
        )
        for placed in ranges
    ]


def _unreachable(name: str, unreachable: PeerUnreachable) -> PostbusError:
    return PostbusError(
        Reason.ERROR_REASON_NO_LEADER,
        f"{name} is led by node {unreachable.node_id}, which this node does not reach ({unreachable.why}); nothing was"
        " appended, publish it again",
        retry_after_ms=200,
    )
