"""The way to the leader against a model of leaders that move: exact outcomes, nothing twice, order kept."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from broker.errors import PostbusError, Reason
from broker.services.publish_route import Complete, Part, PlaceHere, PublishRoute, Send, Verdict, no_leader

ME = 1
SOURCES = ("a", "b", None)


def quota() -> PostbusError:
    return PostbusError(Reason.ERROR_REASON_QUOTA_EXCEEDED, "full", retry_after_ms=1)


def final() -> PostbusError:
    return PostbusError(Reason.ERROR_REASON_PRECONDITION_NOT_MET, "no")


class World:
    """Three nodes that agree on one log. What is in it up to `committed` stays for ever."""

    def __init__(self) -> None:
        self.route = PublishRoute(name="t/0", node_id=ME, window_bytes=5)
        self.log: list[Part] = []
        self.committed = 0
        self.leader: int | None = None
        self.epoch = 0
        self.expected: dict[int, tuple[int, int]] = {}
        self.links: dict[int, list[tuple[Send, int]]] = {2: [], 3: []}
        self.answers: list[tuple[Part, int, Verdict | None, PostbusError | None, int]] = []
        self.parts: list[Part] = []
        self.outcomes: dict[Part, PostbusError | None] = {}
        self.refuse: PostbusError | None = None
        self.failed: set[object] = set()

    def run(self) -> None:
        while (effect := self.route.next()) is not None:
            match effect:
                case PlaceHere(part):
                    self.append(part, ME)
                case Send(part, node_id):
                    self.links[node_id].append((effect, part.attempt))
                case Complete(part, error):
                    self.complete(part, error)

    def complete(self, part: Part, error: PostbusError | None) -> None:
        assert part not in self.outcomes, "answered twice"
        self.outcomes[part] = error
        if error is not None and (error.kind.retriable or error.kind.outcome_unknown):
            self.failed.add(part.source)

    def append(self, part: Part, node_id: int) -> bool:
        """As a leader does. False: it must be asked for again before anything newer."""
        attempt = part.attempt
        known = part.repeatable and part in self.log
        if self.refuse is not None and not (known and self.refuse.reason != no_leader("t/0").reason):
            verdict = Verdict.NOT_APPENDED if self.refuse.reason == no_leader("t/0").reason else Verdict.REFUSED
            self.answers.append((part, attempt, verdict, self.refuse, node_id))
            if node_id == ME:
                self.answer(len(self.answers) - 1)
            return not self.refuse.kind.retriable
        if not known:
            self.log.append(part)
        self.answers.append((part, attempt, None, None, node_id))
        return True

    # --- what may happen ---

    def submit(self, source: object, repeatable: bool) -> None:
        if source is not None and source in self.failed:
            return  # the stream refuses it
        part = Part(source=source, repeatable=repeatable, size=1)
        self.parts.append(part)
        if self.route.direct and self.refuse is None:
            self.route.take(part)
            assert self.append(part, ME)
            return
        self.route.submit(part)
        self.run()

    def deliver(self, node_id: int) -> None:
        if not self.links[node_id]:
            return
        send, attempt = self.links[node_id].pop(0)
        part = send.part
        if (node_id, send.leader_epoch) != (self.leader, self.epoch):
            self.answers.append((part, attempt, Verdict.NOT_APPENDED, no_leader("t/0"), node_id))
            return
        expected = self.expected.get(node_id, (-1, 0))
        if send.round > expected[0]:
            expected = (send.round, 0)
        if (send.round, send.number) != expected:
            self.expected[node_id] = expected
            self.answers.append((part, attempt, Verdict.NOT_APPENDED, no_leader("t/0"), node_id))
            return
        if part.attempt != attempt:
            attempt = -1  # late: its answer counts for nothing
        taken = self.append(part, node_id)
        if attempt == -1 and self.answers[-1][0] is part:
            self.answers.pop()
        self.expected[node_id] = (send.round, send.number + taken)

    def answer(self, index: int) -> None:
        if not self.answers:
            return
        part, attempt, verdict, error, _ = self.answers[index % len(self.answers)]
        if verdict is None:
            if part in self.log[: self.committed]:
                verdict = Verdict.SAFE
            elif part not in self.log:
                verdict, error = Verdict.NOT_APPENDED, no_leader("t/0")
            else:
                return  # not known yet
        del self.answers[index % len(self.answers)]
        if part.place[0] == ME and verdict is Verdict.SAFE and self.route.give_back(part):
            self.complete(part, None)
            return
        self.route.answered(part, attempt, verdict, error)
        self.run()

    def break_link(self, node_id: int) -> None:
        lost = [(send.part, attempt) for send, attempt in self.links[node_id]]
        lost += [(part, attempt) for part, attempt, _, _, node in self.answers if node == node_id]
        self.links[node_id] = []
        self.answers = [answer for answer in self.answers if answer[4] != node_id]
        for part, attempt in lost:
            self.route.answered(part, attempt, Verdict.UNKNOWN)
        self.run()

    def move(self, leader: int | None, kept: int) -> None:
        self.epoch += 1
        self.leader = leader
        del self.log[max(self.committed, len(self.log) - kept) :]
        self.route.led_by(leader, self.epoch)
        self.run()

    def step(self, name: str, number: int) -> None:
        match name:
            case "submit":
                self.submit(SOURCES[number % 3], bool(number & 4))
            case "deliver":
                self.deliver(2 + number % 2)
            case "answer":
                self.answer(number)
            case "commit":
                self.committed = max(self.committed, len(self.log) - number % 3)
            case "break":
                self.break_link(2 + number % 2)
            case "move":
                self.move((None, 1, 2, 3)[number % 4], number // 4)
            case "gone":
                if self.leader != 2 + number % 2:
                    self.route.node_gone(2 + number % 2)
                    self.run()
            case "refuse":
                self.refuse = (None, no_leader("t/0"), quota(), final())[number % 4]
            case "retry":
                self.route.retry()
                self.run()
            case "give_up":
                if self.parts:
                    self.route.give_up(self.parts[number % len(self.parts)])
                    self.run()

    def settle(self) -> None:
        """Faults stop."""
        self.refuse = None
        self.move(2, 100)
        for _ in range(10 * len(self.parts) + 10):
            for node_id in (2, 3):
                while self.links[node_id]:
                    self.deliver(node_id)
            self.committed = len(self.log)
            while self.answers:
                self.answer(0)
            self.route.retry()
            self.run()


STEPS = ("submit",) * 6 + ("deliver",) * 4 + ("answer",) * 3
STEPS += ("commit", "commit", "break", "move", "move", "gone", "refuse", "retry", "retry", "give_up")


@given(st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 40)), max_size=80))
def test_outcomes_are_exact_and_order_is_kept_whatever_happens(steps: list[tuple[str, int]]) -> None:
    """Each part is answered once. Safe is there once; failed without doubt is nowhere; a stream's order holds, also
    for what its publisher repeats after a failure. Once faults stop, everybody has an answer."""
    world = World()
    for name, number in steps:
        world.step(name, number)
    world.settle()
    assert world.route.idle
    assert set(world.outcomes) == set(world.parts)
    for part, error in world.outcomes.items():
        count = world.log.count(part)
        assert count <= 1
        if error is None:
            assert count == 1
        elif not error.kind.outcome_unknown:
            assert count == 0, error
    for source in SOURCES[:2]:
        mine = [part for part in world.parts if part.source == source]
        there = [part for part in world.log if part.source == source]
        assert there == [part for part in mine if part in there], "overtaken"
        missing = False
        for part in mine:
            error = world.outcomes[part]
            if error is not None and (error.kind.retriable or error.kind.outcome_unknown) and part not in there:
                missing = True
            assert not (missing and part in there), "a repetition would come after its successor"


def sent(route: PublishRoute) -> list[Any]:
    effects = []
    while (effect := route.next()) is not None:
        effects.append(effect)
    return effects


def led(node_id: int) -> PublishRoute:
    route = PublishRoute(name="t/0", node_id=ME, window_bytes=100)
    route.led_by(node_id, 1)
    return route


def part(repeatable: bool = True, source: object | None = "a") -> Part:
    return Part(source=source, repeatable=repeatable, size=1)


def test_nothing_new_is_placed_after_a_move_until_the_outcome_of_the_old_is_known() -> None:
    """And then what the old leader did not append goes first."""
    route = led(2)
    first, second, third = part(), part(), part()
    for one in (first, second):
        route.submit(one)
    assert [effect.part for effect in sent(route)] == [first, second]
    route.led_by(3, 2)
    route.submit(third)
    assert sent(route) == []
    route.answered(first, 1, Verdict.SAFE)
    assert sent(route) == [Complete(first, None)]
    route.answered(second, 1, Verdict.NOT_APPENDED, no_leader("t/0"))
    placed = sent(route)
    assert [(effect.part, effect.node_id, effect.number) for effect in placed] == [(second, 3, 0), (third, 3, 1)]


def test_an_unknown_outcome_is_resolved_by_repeating_or_told() -> None:
    """With an id the new leader knows; without one the publisher is told, and what it should do."""
    route = led(2)
    without, with_id = part(repeatable=False, source=None), part(source=None)
    for one in (without, with_id):
        route.submit(one)
    sent(route)
    route.led_by(3, 2)
    route.node_gone(2)
    told, again = sent(route)
    assert told.part is without and told.error.kind.outcome_unknown and "request id" in told.error.message
    assert (again.part, again.node_id) == (with_id, 3)


def test_time_runs_out_as_what_it_is() -> None:
    """Never sent: nothing was appended, and it may be repeated. Sent: unknown."""
    route = led(2)
    on_its_way = part(source=None)
    route.submit(on_its_way)
    sent(route)
    route.led_by(None, 2)
    waiting = part(source=None)
    route.submit(waiting)
    route.give_up(on_its_way)
    route.give_up(waiting)
    unknown, refused = (effect.error for effect in sent(route))
    assert unknown.reason == Reason.ERROR_REASON_TIMEOUT
    assert refused.reason == Reason.ERROR_REASON_NO_LEADER and refused.retry_after_ms
    assert route.idle


def test_a_local_leader_costs_nothing_but_its_place_in_the_queue() -> None:
    """Direct as long as nothing waits or is elsewhere; again once that is over."""
    route = led(ME)
    assert route.direct
    first = part()
    route.take(first)
    assert route.give_back(first) and route.idle and route.direct
    second = part()
    route.take(second)
    route.led_by(2, 2)
    assert not route.direct
    route.led_by(ME, 3)
    assert not route.direct, "what was appended before the moves is not safe"
    route.answered(second, 1, Verdict.SAFE)
    assert sent(route) == [Complete(second, None)]
    assert route.direct


def test_what_another_node_owes_is_bounded() -> None:
    """More waits here, where the streams' own bounds hold."""
    route = PublishRoute(name="t/0", node_id=ME, window_bytes=3)
    route.led_by(2, 1)
    parts = [part() for _ in range(10)]
    for one in parts:
        route.submit(one)
    assert len(sent(route)) == 3
    route.answered(parts[0], 1, Verdict.SAFE)
    assert [type(effect) for effect in sent(route)] == [Complete, Send]
