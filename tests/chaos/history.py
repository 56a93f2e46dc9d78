"""What clients of a bus saw, and what they must not have seen: the analyses of Jepsen's kafka workload.

Owns the rules alone. It knows neither the broker nor the clients: those only note what they did and saw, in the order
in which they did and saw it, and every rule is a function of these notes. A publish that failed for certain must not
appear; one whose outcome is unknown may or may not. Records are compared by their whole content, never by count.
"""

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum

SHOWN_PER_KIND = 5


class Outcome(Enum):
    """What became of a publish, as far as its publisher can know."""

    OK = "ok"
    FAILED = "failed"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Place:
    """A partition of a topic."""

    topic: str
    partition: int


@dataclass(frozen=True, slots=True)
class Sent:
    """One record of a publish. `content` differs from that of any other record, and says all of it.

    lane, number: records of one publisher and lane were sent in the order of their numbers, and must keep that order in
    a partition.
    place, offset: where the acknowledgement said it is; None unless OK.
    """

    publisher: str
    content: Hashable
    outcome: Outcome
    lane: Hashable = None
    number: int = 0
    place: Place | None = None
    offset: int | None = None
    idempotent: bool = True


@dataclass(frozen=True, slots=True)
class Positioned:
    """A subscriber goes on from here in a partition: at its start, an assignment or a seek."""

    subscriber: str
    place: Place
    offset: int


@dataclass(frozen=True, slots=True)
class Polled:
    """A record came."""

    subscriber: str
    place: Place
    offset: int
    content: Hashable
    group: str = ""


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """A member of a group is about to acknowledge these offsets."""

    group: str
    place: Place
    base_offset: int
    end_offset: int


@dataclass(frozen=True, slots=True)
class Committed:
    """The broker said how far a group has committed."""

    group: str
    place: Place
    offset: int


@dataclass(frozen=True, slots=True)
class Trimmed:
    """Records before this offset were to be deleted: whether they are still there is no matter."""

    place: Place
    before_offset: int


@dataclass(frozen=True, slots=True)
class Copy:
    """What this subscriber polled of a topic is all that one node has of it."""

    node: int
    topic: str
    subscriber: str


Event = Sent | Positioned | Polled | Acknowledged | Committed | Trimmed | Copy


@dataclass(frozen=True, slots=True)
class Anomaly:
    """A rule that was broken, and where."""

    kind: str
    detail: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.detail}"


@dataclass(frozen=True, slots=True)
class Floors:
    """What a run must have done at least, to prove anything."""

    operations: int = 1
    acknowledgements: int = 1
    faults: int = 0
    polls: int = 0


@dataclass(slots=True)
class History:
    """Notes in the order of time. `faults`: those that took effect, and how."""

    events: list[Event] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def note(self, event: Event) -> None:
        """Adds one."""
        self.events.append(event)

    def check(self, *, groups: Iterable[str] = (), floors: Floors | None = None) -> list[Anomaly]:
        """Every anomaly. `groups`: those that should have got every record. To be called when all has been read."""
        facts = _Facts(self)
        found = [
            *_below_floors(facts, self, floors or Floors()),
            *_inconsistent_offsets(facts),
            *_unsent(facts),
            *_aborted_reads(facts),
            *_duplicates(facts),
            *_lost_and_unseen(facts),
            *_polls_out_of_line(facts, self.events),
            *_sends_out_of_order(facts),
            *_commits_too_far(facts, self.events),
            *_diverging(facts, self.events),
        ]
        for group in groups:
            found += _missed_by_group(facts, group)
        return found

    def counts(self) -> str:
        """In short, for people."""
        kinds = Counter(type(event).__name__.lower() for event in self.events)
        outcomes = Counter(event.outcome.value for event in self.events if isinstance(event, Sent))
        parts = [f"{count} {kind}" for kind, count in sorted(kinds.items())]
        parts += [f"{count} of those sent {outcome}" for outcome, count in sorted(outcomes.items())]
        return ", ".join([*parts, f"{len(self.faults)} faults"])


def report(anomalies: Iterable[Anomaly]) -> str:
    """The anomalies by kind, a few of each."""
    by_kind: dict[str, list[Anomaly]] = defaultdict(list)
    for anomaly in anomalies:
        by_kind[anomaly.kind].append(anomaly)
    lines = []
    for kind, found in sorted(by_kind.items()):
        lines.append(f"{kind}: {len(found)}")
        lines += [f"  {anomaly.detail}" for anomaly in found[:SHOWN_PER_KIND]]
    return "\n".join(lines)


class _Facts:
    """The notes, by what the rules look for."""

    def __init__(self, history: History) -> None:
        self.sent: dict[Hashable, Sent] = {}
        self.polls = 0
        # Everything that was said to be at a place: by an acknowledgement or a poll.
        self.at: dict[tuple[Place, int], set[Hashable]] = defaultdict(set)
        self.seen: dict[Hashable, set[tuple[Place, int]]] = defaultdict(set)
        self.seen_by_group: dict[str, set[Hashable]] = defaultdict(set)
        self.last_seen: dict[Place, int] = defaultdict(lambda: -1)
        self.trimmed: dict[Place, int] = defaultdict(int)
        for event in history.events:
            if isinstance(event, Sent):
                assert event.content not in self.sent, "contents tell records apart"
                self.sent[event.content] = event
                if event.place is not None and event.offset is not None:
                    self.at[event.place, event.offset].add(event.content)
            elif isinstance(event, Polled):
                self.polls += 1
                self.at[event.place, event.offset].add(event.content)
                self.seen[event.content].add((event.place, event.offset))
                self.last_seen[event.place] = max(self.last_seen[event.place], event.offset)
                if event.group:
                    self.seen_by_group[event.group].add(event.content)
            elif isinstance(event, Trimmed):
                self.trimmed[event.place] = max(self.trimmed[event.place], event.before_offset)
        self.offsets: dict[Place, list[int]] = defaultdict(list)
        for place, offset in sorted(self.at, key=lambda known: known[1]):
            self.offsets[place].append(offset)

    def gone(self, place: Place, offset: int) -> bool:
        """It may have been deleted on request."""
        return offset < self.trimmed[place]


def _below_floors(facts: _Facts, history: History, floors: Floors) -> Iterator[Anomaly]:
    acknowledged = sum(sent.outcome is Outcome.OK for sent in facts.sent.values())
    for what, count, floor in (
        ("operations", len(facts.sent), floors.operations),
        ("acknowledgements", acknowledged, floors.acknowledgements),
        ("faults", len(history.faults), floors.faults),
        ("polls", facts.polls, floors.polls),
    ):
        if count < floor:
            yield Anomaly("proves nothing", f"{count} {what}, where {floor} are the least")


def _inconsistent_offsets(facts: _Facts) -> Iterator[Anomaly]:
    for (place, offset), contents in facts.at.items():
        if len(contents) > 1:
            yield Anomaly("inconsistent offset", f"{place} {offset} held {_some(contents)}")


def _unsent(facts: _Facts) -> Iterator[Anomaly]:
    for content, places in facts.seen.items():
        if content not in facts.sent:
            yield Anomaly("never sent", f"{content!r} was read at {_some(places)}")


def _aborted_reads(facts: _Facts) -> Iterator[Anomaly]:
    for content, places in facts.seen.items():
        sent = facts.sent.get(content)
        if sent is not None and sent.outcome is Outcome.FAILED:
            yield Anomaly("aborted read", f"{content!r} of {sent.publisher} failed, and was read at {_some(places)}")


def _duplicates(facts: _Facts) -> Iterator[Anomaly]:
    for content, places in facts.seen.items():
        sent = facts.sent.get(content)
        if sent is None or not sent.idempotent:
            continue
        said = set(places)
        if sent.place is not None and sent.offset is not None:
            said.add((sent.place, sent.offset))
        if len(said) > 1:
            yield Anomaly("duplicate", f"{content!r} of {sent.publisher} is at {_some(said)}")


def _lost_and_unseen(facts: _Facts) -> Iterator[Anomaly]:
    for content, sent in facts.sent.items():
        if sent.outcome is not Outcome.OK or content in facts.seen:
            continue
        if sent.place is None or sent.offset is None:
            yield Anomaly("unseen", f"{content!r} of {sent.publisher} was acknowledged, nobody saw it")
        elif facts.gone(sent.place, sent.offset):
            continue
        elif sent.offset <= facts.last_seen[sent.place]:
            yield Anomaly(
                "lost write", f"{content!r} was acknowledged at {sent.place} {sent.offset}, which was passed without it"
            )
        else:
            yield Anomaly("unseen", f"{content!r} was acknowledged at {sent.place} {sent.offset}, nobody read so far")


def _polls_out_of_line(facts: _Facts, events: Iterable[Event]) -> Iterator[Anomaly]:
    """Within a run of one subscriber in one partition offsets grow, and leave out nothing that is known to exist."""
    following: dict[tuple[str, Place], int] = {}
    for event in events:
        if isinstance(event, Positioned):
            following[event.subscriber, event.place] = event.offset
        elif isinstance(event, Polled):
            run = (event.subscriber, event.place)
            expected = following.get(run)
            following[run] = event.offset + 1
            if expected is None:
                yield Anomaly("poll from nowhere", f"{event.subscriber} got {event.place} {event.offset} unasked")
            elif event.offset < expected:
                yield Anomaly(
                    "non-monotonic poll",
                    f"{event.subscriber} got {event.place} {event.offset}, {expected} was next",
                )
            else:
                left_out = [
                    offset
                    for offset in range(expected, event.offset)
                    if (event.place, offset) in facts.at and not facts.gone(event.place, offset)
                ]
                if left_out:
                    yield Anomaly(
                        "skipped poll",
                        f"{event.subscriber} got {event.place} {event.offset} without {_some(left_out)} before it",
                    )


def _sends_out_of_order(facts: _Facts) -> Iterator[Anomaly]:
    """What one publisher sent in one lane, one after the other, is in that order in each partition."""
    last: dict[tuple[str, Hashable, Place], tuple[int, Hashable]] = {}
    for content, sent in sorted(facts.sent.items(), key=lambda item: item[1].number):
        places = facts.seen.get(content, ())
        if not sent.idempotent or len(places) != 1:
            continue
        ((place, offset),) = places
        lane = (sent.publisher, sent.lane, place)
        if lane in last and offset < last[lane][0]:
            before, content_before = last[lane]
            yield Anomaly(
                "non-monotonic send",
                f"{sent.publisher} sent {content_before!r} before {content!r}; in {place} they are at"
                f" {before} and {offset}",
            )
        else:
            last[lane] = (offset, content)


def _commits_too_far(facts: _Facts, events: Iterable[Event]) -> Iterator[Anomaly]:
    """A committed offset never passes a record that no member had acknowledged by then."""
    acknowledged: dict[tuple[str, Place], set[int]] = defaultdict(set)
    checked: dict[tuple[str, Place], int] = defaultdict(int)
    for event in events:
        if isinstance(event, Acknowledged):
            acknowledged[event.group, event.place].update(range(event.base_offset, event.end_offset))
        elif isinstance(event, Committed):
            who = (event.group, event.place)
            passed = [
                offset
                for offset in range(checked[who], event.offset)
                if offset not in acknowledged[who]
                and (event.place, offset) in facts.at
                and not facts.gone(event.place, offset)
            ]
            checked[who] = max(checked[who], event.offset)
            if passed:
                yield Anomaly(
                    "commit too far",
                    f"{event.group} committed {event.place} up to {event.offset}; nobody acknowledged {_some(passed)}",
                )


def _diverging(facts: _Facts, events: list[Event]) -> Iterator[Anomaly]:
    """All copies of a topic hold the same records at the same places. Needs two nodes to compare."""
    copies = {event.subscriber: event for event in events if isinstance(event, Copy)}
    held: dict[str, dict[int, dict[tuple[Place, int], Hashable]]] = defaultdict(dict)
    for copy in copies.values():
        held[copy.topic][copy.node] = {}
    for event in events:
        found = copies.get(event.subscriber) if isinstance(event, Polled) else None
        if isinstance(event, Polled) and found is not None and not facts.gone(event.place, event.offset):
            held[found.topic][found.node][event.place, event.offset] = event.content
    for topic, nodes in held.items():
        if len(nodes) < 2:
            yield Anomaly("proves nothing", f"only one copy of {topic} was read: {sorted(nodes)}")
        everywhere = {spot for copy_of_node in nodes.values() for spot in copy_of_node}
        for place, offset in sorted(everywhere, key=lambda spot: (spot[0].partition, spot[1])):
            contents = {node: copied.get((place, offset)) for node, copied in nodes.items()}
            lacking = sorted(node for node, copied in nodes.items() if (place, offset) not in copied)
            if lacking:
                yield Anomaly("diverging replicas", f"nodes {lacking} lack {place} {offset}, others have it")
            elif len(set(contents.values())) > 1:
                yield Anomaly("diverging replicas", f"{place} {offset} is {contents}")


def _missed_by_group(facts: _Facts, group: str) -> Iterator[Anomaly]:
    for content, places in facts.seen.items():
        if content in facts.seen_by_group[group] or all(facts.gone(*place) for place in places):
            continue
        yield Anomaly("missed by group", f"{group} never got {content!r} at {_some(places)}")


def _some(things: Iterable[object]) -> str:
    shown = [repr(thing) for thing in things]
    more = f" and {len(shown) - SHOWN_PER_KIND} more" if len(shown) > SHOWN_PER_KIND else ""
    return ", ".join(shown[:SHOWN_PER_KIND]) + more
