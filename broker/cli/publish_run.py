"""One run of `publish`: hands records to the SDK's publisher and follows what is acknowledged.

The publisher repeats what a broker that went away did not answer, without repeating a record; here it is only told
that this goes on. Records are handed over a chunk at a time, and acknowledgements are taken in the same order, so that
in the end the first line that is not known to be safe has a number.
"""

import asyncio
import contextlib
import logging
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from postbus import BulkDelivery, Client, PostbusError, Publisher

from broker.cli import exits
from broker.cli.inputs import BulkRecord, Malformed, RecordMaker
from broker.cli.lines import Lines, LineTooLong
from broker.cli.output import bytes_text
from broker.cli.publish_plan import Outcome, PublishPlan
from broker.cli.publish_request import publish_request

CHUNK_RECORDS: Final = 1_000
# After Ctrl-C: how long what is under way may take.
STOP_SECONDS: Final = 3.0
RECORD_BYTES_MAX: Final = 1024 * 1024
SKIPPED_SHOWN_MAX: Final = 5
PROGRESS_SECONDS: Final = 0.5


async def publish_all(address: str, plan: PublishPlan) -> Outcome:
    """Publishes everything. Raises PostbusError for what fails before the first record."""
    async with Client(address, connect_timeout=plan.connect_timeout_seconds) as client:
        if plan.create:
            await client.topics.create(plan.topic, exist_ok=True)
        limits = (await client.topics.get(plan.topic)).effective_config
        maker = RecordMaker(
            key=plan.key,
            key_field=plan.key_field,
            json_lines=plan.json_lines,
            headers=plan.headers,
            record_bytes_max=limits.max_record_bytes or RECORD_BYTES_MAX,
        )
        if plan.request_id:
            return await publish_request(address, plan, maker)
        publisher = client.publisher(
            acks=plan.acks,
            compression=plan.compression,
            linger=plan.linger_seconds,
            batch_bytes_max=plan.batch_bytes_max,
            delivery_timeout=plan.timeout_seconds,
        )
        outcome = await Run(plan, publisher, maker).run()
        # What is still open after an error or Ctrl-C has been told.
        with contextlib.suppress(PostbusError):
            await publisher.close(timeout=0.05)
        return outcome


@dataclass(frozen=True, slots=True)
class _Handed:
    """A chunk that the publisher has."""

    delivery: BulkDelivery
    first_line: int
    size_bytes: int


class _BadLine(Exception):  # noqa: N818 - named for what it is
    """Ends the input: this line can't be published."""


class Run:
    """State of one run; on one loop."""

    def __init__(self, plan: PublishPlan, publisher: Publisher, maker: RecordMaker) -> None:
        self._plan = plan
        self._publisher = publisher
        self._maker = maker
        self._outcome = Outcome(resume_line=plan.from_line)
        self._handed: deque[_Handed] = deque()
        self._next_line = 1
        self._fed = False
        self._news = asyncio.Event()
        self._stopping = asyncio.Event()
        # First line of the chunk that the publisher is taking, or failed to take; 0: none.
        self._handing_over = 0
        self._away = False

    async def run(self) -> Outcome:
        """To the end of the input, the first failure, or a signal."""
        outcome = self._outcome
        begin = time.monotonic()
        self._watch_signals()
        teller = _Teller(self._is_away)
        logging.getLogger("postbus.publisher").addHandler(teller)
        progress = asyncio.create_task(self._show_progress(begin))
        feed = asyncio.create_task(self._feed())
        feed.add_done_callback(lambda _: self._input_ended())
        reap = asyncio.create_task(self._reap())
        stop = asyncio.create_task(self._stopping.wait())
        await asyncio.wait({reap, stop}, return_when=asyncio.FIRST_COMPLETED)
        if not feed.done() and not self._handing_over:
            feed.cancel()
        if not reap.done():
            await asyncio.wait({reap}, timeout=STOP_SECONDS)
        outcome.seconds = time.monotonic() - begin
        for task in (feed, reap, stop, progress):
            task.cancel()
        results = await asyncio.gather(feed, reap, return_exceptions=True)
        logging.getLogger("postbus.publisher").removeHandler(teller)
        self._conclude(*results)
        return outcome

    # --- handing over ---

    async def _feed(self) -> None:
        plan = self._plan
        if plan.values:
            await self._hand_over(plan.values)
            return
        source = Lines(sys.stdin.fileno())
        while lines := await source.get():
            await self._hand_over(lines)
            if self._stopping.is_set():
                return

    async def _hand_over(self, lines: Sequence[bytes]) -> None:
        for start in range(0, len(lines), CHUNK_RECORDS):
            if self._stopping.is_set():
                return
            first_line = self._next_line
            records: list[BulkRecord] = []
            bad: _BadLine | None = None
            size_bytes = 0
            for line in lines[start : start + CHUNK_RECORDS]:
                number = self._next_line
                if number >= self._plan.from_line and not (self._plan.json_lines and not line.strip()):
                    try:
                        records.append(self._maker.record(line))
                    except Malformed as why:
                        bad = self._malformed(number, why)
                        if bad is not None:
                            break
                    else:
                        size_bytes += len(line)
                self._next_line += 1
            if records:
                first_line = max(first_line, self._plan.from_line)
                self._handing_over = first_line
                delivery = await self._publisher.publish_many(self._plan.topic, records, partition=self._plan.partition)
                self._handing_over = 0
                self._handed.append(_Handed(delivery, first_line, size_bytes))
                self._news.set()
            if bad is not None:
                raise bad

    def _malformed(self, number: int, why: Malformed) -> _BadLine | None:
        what = "value" if self._plan.values else "line"
        if not self._plan.skip_invalid:
            hint = "" if self._plan.values else "; --skip-invalid leaves such lines out"
            return _BadLine(f"{what} {number} can't be published: {why}{hint}")
        self._outcome.skipped += 1
        if self._outcome.skipped <= SKIPPED_SHOWN_MAX:
            exits.say(f"postbus: {what} {number} left out: {why}")
        elif self._outcome.skipped == SKIPPED_SHOWN_MAX + 1:
            exits.say("postbus: more are left out; the end tells how many")
        return None

    def _input_ended(self) -> None:
        self._fed = True
        self._news.set()

    # --- acknowledgements ---

    async def _reap(self) -> None:
        while True:
            while not self._handed:
                if self._fed:
                    return
                self._news.clear()
                await self._news.wait()
            handed = self._handed[0]
            ranges = await handed.delivery
            self._handed.popleft()
            for each in ranges:
                self._outcome.add(each.partition, each.base_offset, each.record_count)
            self._outcome.records += handed.delivery.record_count
            self._outcome.size_bytes += handed.size_bytes
            if self._away:
                self._away = False
                exits.say("postbus: the broker is back; going on")

    def _conclude(self, fed: object, reaped: object) -> None:
        outcome = self._outcome
        if self._handed:
            outcome.resume_line = self._handed[0].first_line
        else:
            outcome.resume_line = self._handing_over or max(self._next_line, self._plan.from_line)
        for handed in self._handed:
            outcome.acknowledged_later += _acknowledged(handed.delivery)
        cause = reaped if isinstance(reaped, Exception) else fed if isinstance(fed, Exception) else None
        if isinstance(cause, PostbusError):
            outcome.error, outcome.code = exits.text_of(cause), exits.code_of(cause)
        elif isinstance(cause, _BadLine | LineTooLong | OSError):
            outcome.error, outcome.code = str(cause), exits.FAILED
        elif cause is not None:
            raise cause
        elif self._stopping.is_set():
            unanswered = sum(handed.delivery.record_count for handed in self._handed) - outcome.acknowledged_later
            outcome.error, outcome.code = (
                f"interrupted: {outcome.records:,} records are acknowledged",
                exits.INTERRUPTED,
            )
            if unanswered:
                outcome.error += f", {unanswered:,} were sent without an answer and may be stored"

    # --- telling ---

    def _is_away(self, why: str) -> None:
        if not self._away:
            self._away = True
            exits.say(f"postbus: {why}; waiting for the broker, nothing is lost or repeated")

    def _watch_signals(self) -> None:
        def received() -> None:
            if self._stopping.is_set():
                os._exit(exits.INTERRUPTED)
            self._stopping.set()

        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, received)

    async def _show_progress(self, begin: float) -> None:
        if not sys.stderr.isatty():
            return
        shown = False
        try:
            while True:
                await asyncio.sleep(PROGRESS_SECONDS)
                took, outcome = time.monotonic() - begin, self._outcome
                line = f"{outcome.records:,} records, {outcome.records / took:,.0f}/s, {bytes_text(outcome.size_bytes)}"
                print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)
                shown = True
        finally:
            if shown:
                print("\r\x1b[K", end="", file=sys.stderr, flush=True)


class _Teller(logging.Handler):
    """Hears from the SDK's log that publishing waits: the publisher has no other way to tell."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        super().__init__(logging.INFO)
        self._tell = tell
        logging.getLogger("postbus.publisher").setLevel(logging.INFO)

    def emit(self, record: logging.LogRecord) -> None:
        causes = [each for each in record.args or () if isinstance(each, PostbusError)]
        if causes:
            self._tell(" ".join(causes[0].message.split()))


def _acknowledged(delivery: BulkDelivery) -> int:
    """How many of a chunk that failed, or was given up, are known to be stored."""
    if not delivery.done():
        return 0
    try:
        return sum(each.record_count for each in delivery.result())
    except PostbusError as error:
        return int(error.metadata.get("records_published", 0))
