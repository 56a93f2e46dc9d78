"""One run of `subscribe`: batches from the SDK's subscription, written out, then acknowledged.

Writing happens in a thread of its own, because a reader that does not read (a pager) blocks it for as long as it
likes, and heartbeats and Ctrl-C must go on. Nothing is acknowledged before it was written and flushed.
"""

import asyncio
import os
import select
import signal
import stat
import sys
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from postbus import Batch, Client, Event, PostbusError, Subscription

from broker.cli import exits
from broker.cli.output import bytes_text, counted
from broker.cli.record_format import Formatter

if TYPE_CHECKING:
    from postbus.positions import Start

# After Ctrl-C: how long what is being written may take.
STOP_SECONDS: Final = 1.0
READER_CHECK_SECONDS: Final = 0.25
OUTAGE_TOLD_SECONDS: Final = 0.2


@dataclass(frozen=True, slots=True)
class SubscribePlan:
    """What was asked for."""

    topics: tuple[str, ...]
    group: str
    start: "Start | None"
    until_end: bool
    count: int | None
    partitions: tuple[int, ...]
    format: Formatter
    ack_before: bool
    client_id: str
    instance_id: str
    timeout_seconds: float | None
    connect_timeout_seconds: float


async def subscribe_all(address: str, plan: SubscribePlan) -> int:
    """Reads until told to end; the exit code. Raises PostbusError."""
    async with Client(address, connect_timeout=plan.connect_timeout_seconds, client_id=plan.client_id) as client:
        for topic in plan.topics:
            await client.topics.get(topic)
        teller = _Teller()
        subscription = client.subscribe(
            plan.topics,
            group=plan.group,
            start=plan.start,
            partitions=plan.partitions,
            until_end=plan.until_end,
            ack="on_send" if plan.ack_before else "manual",
            instance_id=plan.instance_id,
            reconnect_timeout=plan.timeout_seconds,
            on_event=teller.event,
        )
        try:
            return await Run(plan, subscription).run()
        finally:
            teller.close()


class Run:
    """State of one run; on one loop."""

    def __init__(self, plan: SubscribePlan, subscription: Subscription) -> None:
        self._plan = plan
        self._subscription = subscription
        self._interrupted = asyncio.Event()
        self._records = 0
        self._size_bytes = 0

    async def run(self) -> int:
        """To the end, the count, a signal, or the end of our reader."""
        begin = time.monotonic()
        self._watch_signals()
        told = asyncio.create_task(_first_of(self._interrupted.wait(), _reader_gone()))
        try:
            await self._read(told)
        except BrokenPipeError:
            return exits.OK  # `| head` has enough; what it did not take is not acknowledged
        except _Stuck:
            self._tell(begin)
            os._exit(exits.INTERRUPTED)
        finally:
            told.cancel()
        self._tell(begin)
        try:
            # Commits what was acknowledged, and gives the partitions up.
            await self._subscription.close()
        except PostbusError as error:
            exits.say(f"postbus: the last acknowledgements may be lost: {exits.text_of(error)}")
        return exits.INTERRUPTED if self._interrupted.is_set() else exits.OK

    async def _read(self, told: "asyncio.Task[None]") -> None:
        left = self._plan.count
        while left is None or left > 0:
            get = asyncio.create_task(self._subscription.get_batch())
            await asyncio.wait({get, told}, return_when=asyncio.FIRST_COMPLETED)
            if told.done():
                get.cancel()
                await asyncio.wait({get})
                return
            batch = get.result()
            if batch is None:
                return
            if left is not None:
                if len(batch) > left:
                    batch.cut(batch.base_offset, batch.offsets[left])
                left -= len(batch)
            await self._write(batch, told)

    async def _write(self, batch: Batch, told: "asyncio.Task[None]") -> None:
        data = self._plan.format(batch)
        write = asyncio.create_task(asyncio.to_thread(_write_out, data))
        await asyncio.wait({write, told}, return_when=asyncio.FIRST_COMPLETED)
        if not write.done():
            await asyncio.wait({write}, timeout=STOP_SECONDS)
        if not write.done():
            raise _Stuck
        write.result()
        self._records += len(batch)
        self._size_bytes += len(data)
        if self._plan.group and not self._plan.ack_before:
            await batch.ack()

    def _watch_signals(self) -> None:
        def received() -> None:
            if self._interrupted.is_set():
                os._exit(exits.INTERRUPTED)
            self._interrupted.set()

        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, received)

    def _tell(self, begin: float) -> None:
        interrupted = self._interrupted.is_set()
        if not interrupted and not sys.stderr.isatty():
            return
        took = f"{time.monotonic() - begin:.2f} s"
        line = f"read {counted(self._records, 'record')} ({bytes_text(self._size_bytes)}) in {took}"
        if self._records and self._plan.group and not self._plan.ack_before:
            line += f", all acknowledged in group {self._plan.group}"
        exits.say(f"postbus: {'interrupted; ' if interrupted else ''}{line}")


class _Stuck(Exception):  # noqa: N818 - named for what happened
    """Our reader does not read: the thread would keep us in its write."""


async def _first_of(*waits: Coroutine[Any, Any, object]) -> None:
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


def _write_out(data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(sys.stdout.fileno(), rest) :]


async def _reader_gone() -> None:
    """Returns when nobody reads our pipe any more, also while there is nothing to write; never otherwise."""
    fd = sys.stdout.fileno()
    mode = os.fstat(fd).st_mode
    if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
        await asyncio.Event().wait()
    poll = select.poll()
    poll.register(fd, 0)  # errors alone
    while not poll.poll(0):  # noqa: ASYNC110 - nothing but asking tells
        await asyncio.sleep(READER_CHECK_SECONDS)


class _Teller:
    """Tells on standard error what happens to the subscription."""

    def __init__(self) -> None:
        self._away = False
        self._soon: asyncio.TimerHandle | None = None

    def event(self, event: Event) -> None:
        """See `Subscription`."""
        if event.kind == "disconnected":
            # Not at once: if this is final, the error says it.
            if self._soon is None and not self._away:
                self._soon = asyncio.get_running_loop().call_later(OUTAGE_TOLD_SECONDS, self._tell_away, event.detail)
        elif event.kind == "connected":
            self.close()
            if self._away:
                self._away = False
                exits.say("postbus: the broker is back; going on where this was")
        elif event.kind == "skipped":
            exits.say(f"postbus: records were passed over, they are gone: {_places(event)} {event.detail}".rstrip())
        elif event.kind == "lost":
            exits.say(f"postbus: went to another member: {_places(event)} {event.detail}".rstrip())

    def close(self) -> None:
        """Tells nothing more of what was about to be told."""
        if self._soon is not None:
            self._soon.cancel()
            self._soon = None

    def _tell_away(self, why: str) -> None:
        self._soon = None
        self._away = True
        # Without the reason's name and the advice to a program.
        exits.say(f"postbus: {' '.join(why.split()).partition(' [')[0]}; waiting for the broker")


def _places(event: Event) -> str:
    return ", ".join(
        f"{topic}/{partition}" + (f"@{offset}" if offset >= 0 else "") for topic, partition, offset in event.partitions
    )
