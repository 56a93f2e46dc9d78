"""Any mixture of faults, by seed: what a publisher says of each record is true of the log."""

import asyncio
import random

import pytest
from fake_broker import FakeBroker, PostbusError, Reason
from postbus import Client, errors

RECORDS = 300


@pytest.mark.parametrize("seed", range(3))
async def test_what_deliveries_say_is_true(broker: FakeBroker, client: Client, seed: int) -> None:
    """Streams break with acks lost, partitions lose their leader, batches are refused, the broker forgets producers
    and goes away, all at once. Acknowledged: in the log once, at the offset told, in order. Failed with a known
    outcome: not in the log. Failed with an unknown one: at most once."""
    dice = random.Random(seed)
    broker.break_publish_at.extend(dice.randrange(1, 12) for _ in range(8))
    broker.drain_publish_at.extend(dice.randrange(5, 25) for _ in range(2))
    effects = dict.fromkeys(("election", "refusal", "forgotten"), 0)

    def refuse(request: object) -> PostbusError | None:
        fate = dice.random()
        if fate < 0.05:
            effects["election"] += 1
            return PostbusError(Reason.ERROR_REASON_NO_LEADER, "election", retry_after_ms=1)
        if fate < 0.08:
            effects["refusal"] += 1
            return PostbusError(Reason.ERROR_REASON_INVALID_FIELD, "refused")
        if fate < 0.1:
            effects["forgotten"] += 1
            for partition in broker.topics["orders"]:
                # A producer whose first batch is all there is would look new: nobody could tell its retry from it.
                for known in [each for each, state in partition.producers.items() if state.next_sequence > 5]:
                    del partition.producers[known]
        return None

    broker.refuse = refuse
    outcomes = []
    async with client.publisher(batch_bytes_max=25, linger=0.0, buffer_bytes_max=2_000) as publisher:
        deliveries = []
        for index in range(RECORDS):
            deliveries.append(await publisher.publish("orders", b"%d" % index, partition=index % 3))
            if dice.random() < 0.2:
                await asyncio.sleep(0)
        for delivery in deliveries:
            try:
                outcomes.append(await delivery)
            except errors.PostbusError as error:
                outcomes.append(error)
    broker.refuse = lambda _: None

    assert sum(effects.values()) > 5, "faults took effect"
    assert len(broker.break_publish_at) < 8
    log = {
        (number, offset): int(value)
        for number, partition in enumerate(broker.topics["orders"])
        for offset, value in enumerate(partition.values())
    }
    times = [0] * RECORDS
    for index in log.values():
        times[index] += 1
    for index, outcome in enumerate(outcomes):
        if not isinstance(outcome, errors.PostbusError):
            assert times[index] == 1
            assert log[outcome.partition, outcome.offset] == index
        elif outcome.outcome_unknown:
            assert times[index] <= 1
        else:
            assert times[index] == 0
    for number in range(3):
        found = [index for (partition, _), index in sorted(log.items()) if partition == number]
        assert found == sorted(found)
    assert not publisher._pipeline.buffered_bytes
