"""Programs in Go and Node with generated stubs alone publish and consume as a group: nothing lost, order kept."""

import json
import signal
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(900)  # the first build of a machine; a warm run takes seconds

KEYS = 40
COUNT = 1500
PARTITIONS = 6
LANGUAGES = ["go", "node"]


def lines(numbers: Iterable[int]) -> list[str]:
    """What publishers are given: key, tab, value; values grow within a key, and are long enough to fill a pipe."""
    return [f"key-{number % KEYS}\t{number:0200}" for number in numbers]


def values(printed: Iterable[str]) -> list[int]:
    """The values that a subscriber printed, in order."""
    return [int(line.split("\t")[3]) for line in printed]


def partitions(printed: Iterable[str]) -> set[int]:
    """The partitions that a subscriber printed records of."""
    return {int(line.split("\t")[0]) for line in printed}


def assert_in_order_by_key(numbers: Iterable[int]) -> None:
    """Within a key each value is greater than the one before."""
    last: dict[int, int] = defaultdict(lambda: -1)
    for number in numbers:
        assert number > last[number % KEYS], f"{number} came after {last[number % KEYS]}"
        last[number % KEYS] = number


@pytest.mark.parametrize(("publishing", "subscribing"), [("go", "node"), ("node", "go")])
def test_what_one_language_publishes_the_other_consumes_once_and_in_order(
    broker, run, *, topic: str, language: Callable, publishing: str, subscribing: str
) -> None:
    """Undisturbed, a group sees each record exactly once, keys in order; and not again after leaving politely."""
    broker.create_topic(topic, partitions=PARTITIONS)
    exchange(run, topic, language(publishing).publisher(broker, topic), language(subscribing), broker)


@pytest.mark.parametrize(
    ("number", "publishing", "subscribing"), [(1, "go", "node"), (2, "node", "go"), (3, "go", "node")]
)
def test_any_of_three_nodes_is_the_whole_bus(  # noqa: PLR0917 - fixtures
    nodes, run, topic: str, language: Callable, number: int, publishing: str, subscribing: str
) -> None:
    """The same programs, told of one node alone, whichever it is: nothing of a topic made through another is missed."""
    nodes.node(number % 3 + 1).create_topic(topic, partitions=PARTITIONS)
    node = nodes.node(number)
    exchange(run, topic, language(publishing).publisher(node, topic), language(subscribing), node)


def exchange(run, topic: str, publish: list, subscribing, bus) -> None:
    """A publisher and a group's member; then a second member goes on where the first one left."""
    subscriber = run(*subscribing.subscriber(bus, topic, group=topic))
    publisher = run(*publish)
    publisher.say(lines(range(COUNT)))
    publisher.finish_input()
    assert publisher.wait() == 0, publisher.errors()
    run.wait_until(lambda: len(subscriber.lines) >= COUNT, "all records")
    assert sorted(values(subscriber.lines)) == list(range(COUNT))
    assert_in_order_by_key(values(subscriber.lines))
    assert partitions(subscriber.lines) == set(range(PARTITIONS))

    assert subscriber.stop(signal.SIGINT) == 0, subscriber.errors()
    later = range(COUNT, COUNT + KEYS)
    successor = run(*subscribing.subscriber(bus, topic, group=topic))
    publisher = run(*publish)
    publisher.say(lines(later))
    publisher.finish_input()
    assert publisher.wait() == 0, publisher.errors()
    run.wait_until(lambda: len(successor.lines) >= KEYS, "the later records")
    assert sorted(values(successor.lines)) == list(later)


@pytest.mark.parametrize("name", LANGUAGES)
def test_partitions_of_a_killed_member_pass_on(broker, run, topic: str, language: Callable, name: str) -> None:
    """After kill -9 the survivor gets what the dead had not acknowledged, and from then on everything."""
    broker.create_topic(topic, partitions=PARTITIONS)
    victim = run(*language(name).subscriber(broker, topic, group=topic))
    survivor = run(*language(name).subscriber(broker, topic, group=topic))
    publisher = run(*language("go").publisher(broker, topic))
    published = publish_until_both_share(run, publisher, victim, survivor)

    # The victim blocks in the middle of its work, because nobody reads what it prints, and dies there.
    victim.stop_reading()
    publisher.say(lines(range(published, published + COUNT)))
    broker.watch(topic, lambda records: len(records) >= published + COUNT)
    victim.kill()
    after = range(published + COUNT, published + 2 * COUNT)
    publisher.say(lines(after))
    publisher.finish_input()
    assert publisher.wait() == 0, publisher.errors()
    run.wait_until(lambda: complete(victim, survivor, after.stop), "what the dead member did not print")
    later = [line for line in survivor.lines if values([line])[0] in after]
    assert sorted(values(later)) == list(after)
    assert partitions(later) == set(range(PARTITIONS))
    assert_in_order_by_key(values(survivor.lines))


def test_members_in_two_languages_share_one_group(broker, run, topic: str, language: Callable) -> None:
    """Go and Node members share the partitions; when one leaves politely, nothing is lost and nothing comes twice."""
    broker.create_topic(topic, partitions=PARTITIONS)
    gopher = run(*language("go").subscriber(broker, topic, group=topic))
    other = run(*language("node").subscriber(broker, topic, group=topic))
    publisher = run(*language("node").publisher(broker, topic))
    published = publish_until_both_share(run, publisher, gopher, other)
    before = len(gopher.lines)
    publisher.say(lines(range(published, published + COUNT)))
    run.wait_until(lambda: len(gopher.lines) > before, "records under way")
    assert gopher.stop(signal.SIGINT) == 0, gopher.errors()
    end = published + 2 * COUNT
    publisher.say(lines(range(published + COUNT, end)))
    publisher.finish_input()
    assert publisher.wait() == 0, publisher.errors()
    run.wait_until(lambda: len(gopher.lines) + len(other.lines) >= end, "all records")
    assert sorted(values(gopher.lines) + values(other.lines)) == list(range(end))


@pytest.mark.parametrize("name", LANGUAGES)
def test_publisher_survives_a_killed_broker(own_broker, run, language: Callable, name: str) -> None:
    """What was unacknowledged at the kill -9 is sent again under its request ids: each line once, keys in order."""
    own_broker.create_topic("flights", partitions=PARTITIONS)
    publisher = run(*language(name).publisher(own_broker, "flights"))
    publisher.say(lines(range(COUNT)))
    own_broker.watch("flights", lambda records: len(records) >= COUNT // 8)
    own_broker.kill()
    own_broker.start()
    publisher.say(lines(range(COUNT, 2 * COUNT)))
    publisher.finish_input()
    assert publisher.wait() == 0, publisher.errors()
    logs = [[int(record.value) for record in records] for records in own_broker.records("flights").values()]
    assert sorted(number for log in logs for number in log) == list(range(2 * COUNT))
    for log in logs:
        assert_in_order_by_key(log)


@pytest.mark.parametrize("name", LANGUAGES)
def test_member_survives_a_killed_broker(own_broker, run, language: Callable, name: str) -> None:
    """After kill -9 of the broker a member connects again by itself and gets everything; keys stay in order."""
    own_broker.create_topic("flights", partitions=PARTITIONS)
    member = run(*language(name).subscriber(own_broker, "flights", group="counters"))
    publisher = run(*language("go").publisher(own_broker, "flights"))
    publisher.say(lines(range(COUNT)))
    run.wait_until(lambda: len(member.lines) > 0, "the first records")
    own_broker.kill()
    own_broker.start()
    publisher.say(lines(range(COUNT, 2 * COUNT)))
    publisher.finish_input()
    assert publisher.wait() == 0, publisher.errors()
    run.wait_until(lambda: len(member.lines) >= 2 * COUNT and len(seen(member)) == 2 * COUNT, "all records")
    assert member.stop(signal.SIGINT) == 0, member.errors()
    first_times = dict.fromkeys(values(member.lines))
    assert_in_order_by_key(first_times)


@pytest.mark.parametrize("name", LANGUAGES)
def test_clients_of_a_killed_node_go_on_through_another(own_nodes, run, language: Callable, name: str) -> None:
    """Given all addresses, publisher and member need no more than their loops: each line is there once, in order."""
    own_nodes.node(3).create_topic("flights", partitions=PARTITIONS)
    everywhere, other = own_nodes.all(1, 2, 3), own_nodes.node(2)
    member = run(*language(name).subscriber(everywhere, "flights", group="counters"))
    publisher = run(*language(name).publisher(everywhere, "flights"))
    publisher.say(lines(range(COUNT)))
    run.wait_until(lambda: len(member.lines) > 0, "the first records")
    own_nodes.kill(1)
    publisher.say(lines(range(COUNT, 2 * COUNT)))
    publisher.finish_input()
    assert publisher.wait() == 0, publisher.errors()
    run.wait_until(lambda: len(seen(member)) == 2 * COUNT, "all records")
    assert member.stop(signal.SIGINT) == 0, member.errors()
    assert_in_order_by_key(dict.fromkeys(values(member.lines)))
    logs = [[int(record.value) for record in records] for records in other.records("flights").values()]
    assert sorted(number for log in logs for number in log) == list(range(2 * COUNT))
    for log in logs:
        assert_in_order_by_key(log)


def test_load_generator_reports_what_was_acknowledged(broker, run, topic: str, go_clients: Path) -> None:
    """The Go load generator stops after as many records as asked for and prints its figures as JSON."""
    broker.create_topic(topic, partitions=PARTITIONS)
    target = ["-address", broker.address, "-topic", topic]
    program = run(go_clients / "bench", *target, "-publishers", "4", "-records", "200", "-warmup-seconds", "0")
    assert program.wait() == 0, program.errors()
    figures = json.loads(program.lines[0])
    assert figures["records"] >= 200
    assert 0 < figures["p50_us"] <= figures["p99_us"] <= figures["max_us"]
    assert figures["records_per_second"] > 0
    published = sum(len(records) for records in broker.records(topic).values())
    assert published >= figures["records"], "the figures count only what is in the log"


def publish_until_both_share(run, publisher, one, other) -> int:
    """Publishes rounds of records until both members have printed some of one; returns how many were published.

    Members join one after the other; after a round in which both took part the partitions are shared.
    """
    for rounds in range(1, 500):
        before = len(one.lines), len(other.lines)
        published = rounds * KEYS
        publisher.say(lines(range(published - KEYS, published)))
        run.wait_until(partial(complete, one, other, published), "the round")
        if len(one.lines) > before[0] and len(other.lines) > before[1]:
            return published
    pytest.fail("two members never shared the partitions")


def complete(one, other, published: int) -> bool:
    """Whether the two have printed everything published so far."""
    return len(one.lines) + len(other.lines) >= published and len(seen(one, other)) == published


def seen(*members) -> set[int]:
    """The values that they have printed."""
    return {value for member in members for value in values(member.lines)}
