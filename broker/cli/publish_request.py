"""`publish --request-id`: everything as one request of that name, which may be repeated without appending it twice.

The broker splits it by key, and finds out what of it is there already: that works across runs, where the SDK's
publisher protects only itself.
"""

import sys
import time
from collections.abc import AsyncIterator
from typing import Final

from postbus.connection import Connections
from postbus.v1 import publisher_pb2

from broker.cli import exits
from broker.cli.inputs import Malformed, RecordMaker, message
from broker.cli.lines import Lines
from broker.cli.publish_plan import Outcome, PublishPlan

# It is one message: more would be refused anyway.
REQUEST_BYTES_MAX: Final = 16 * 1024 * 1024


async def publish_request(address: str, plan: PublishPlan, maker: RecordMaker) -> Outcome:
    """Everything as one request; the broker splits it by key, and finds out what of it is there already."""
    begin = time.monotonic()
    outcome = Outcome()
    request = publisher_pb2.PublishRequest(topic=plan.topic, partition=plan.partition, request_id=plan.request_id)
    async for number, line in _numbered(plan):
        if number < plan.from_line or (plan.json_lines and not line.strip()):
            continue
        try:
            record = maker.record(line)
        except Malformed as why:
            if plan.skip_invalid:
                outcome.skipped += 1
                continue
            outcome.error = f"line {number} can't be published: {why}; nothing was published"
            outcome.code, outcome.resume_line = exits.FAILED, plan.from_line
            return outcome
        request.batch.records.append(message(record))
        outcome.size_bytes += len(line)
        if outcome.size_bytes > REQUEST_BYTES_MAX:
            outcome.error = "--request-id makes one request of it all, and this is too much for one"
            outcome.code, outcome.size_bytes = exits.USAGE, 0
            return outcome
    connections = Connections(address)
    try:
        answer = await connections.call(
            "PublisherService/Publish",
            request,
            publisher_pb2.PublishResponse.FromString,
            timeout=plan.timeout_seconds,
        )
    finally:
        await connections.close()
    for each in answer.ranges:
        outcome.add(each.partition, each.base_offset, each.record_count, duplicate=each.duplicate)
    outcome.records = len(request.batch.records)
    outcome.seconds = time.monotonic() - begin
    return outcome


async def _numbered(plan: PublishPlan) -> AsyncIterator[tuple[int, bytes]]:
    if plan.values:
        for each in enumerate(plan.values, 1):
            yield each
        return
    source = Lines(sys.stdin.fileno())
    number = 0
    while lines := await source.get():
        for line in lines:
            number += 1
            yield number, line
