"""The way of one partition's records to its leader: what may be placed when, so that order outlives every move.

Owns the parts of requests that this node took for one partition and that are not answered yet; never the records'
bytes, and no I/O, clock or log: whoever drives it tells what happened and carries out what `next` gives.

Parts are placed in the order in which they came, at whoever leads. What the leader did not append goes back to the
front of the queue; what it may have appended goes back too if it can be repeated (the new leader knows request ids and
sequences), and fails as unknown if not. Nothing newer is placed meanwhile:

* after a move, until the outcome of every part that was placed before it is known: it may be in the new leader's log
  or it may not, and only then does a newer one come after it in either case;
* after a part came back, until those placed after it came back as well. The leader sees to that: it takes the parts of
  a round by their numbers and without a gap, so that nothing overtakes what it refused or never got. The next round
  begins with what came back.

When a part fails in a way that its publisher will repeat, the later parts of the same stream fail with it, so that the
repetition does not come after them.
"""

from collections import deque
from dataclasses import dataclass
from enum import Enum
from typing import Final

from broker.errors import PostbusError, Reason

RETRY_AFTER_MS: Final = 200


class Verdict(Enum):
    """What became of a part where it was placed."""

    SAFE = "safe"
    REFUSED = "refused"  # for good; nothing was appended
    NOT_APPENDED = "not appended"  # not here and not now: try again, maybe elsewhere
    UNKNOWN = "unknown"


# Reasons for which a part waits instead of failing: nothing was appended, and that passes.
_PASSING: Final = frozenset(
    {
        Reason.ERROR_REASON_NO_LEADER,
        Reason.ERROR_REASON_NOT_LEADER,
        Reason.ERROR_REASON_NOT_ENOUGH_REPLICAS,
    }
)


def verdict_of(error: PostbusError) -> Verdict:
    """What a leader's refusal means."""
    if error.reason in _PASSING:
        return Verdict.NOT_APPENDED
    return Verdict.UNKNOWN if error.kind.outcome_unknown else Verdict.REFUSED


class Part:
    """One part of a request: what goes to one partition. The route's side of it."""

    __slots__ = (
        "attempt",
        "doubtful",
        "order",
        "orphan",
        "outstanding",
        "over",
        "place",
        "repeatable",
        "size",
        "source",
    )

    def __init__(self, *, source: object | None, repeatable: bool, size: int) -> None:
        """source: the stream it came on; None: no other part depends on it. size: in bytes."""
        self.source = source
        self.repeatable = repeatable
        self.size = size
        self.attempt = 0
        self.outstanding = False
        self.over = False
        # Set by the route: its place in the queue; node and leader epoch of the last attempt; whether an attempt may
        # have appended it; whether an earlier part of its stream failed after this one was placed.
        self.order: int
        self.place: tuple[int, int]
        self.doubtful: bool
        self.orphan: bool


@dataclass(frozen=True, slots=True)
class PlaceHere:
    """Append it to the log of this node; then `answered`."""

    part: Part


@dataclass(frozen=True, slots=True)
class Send:
    """Send it to the leader; then `answered`."""

    part: Part
    node_id: int
    leader_epoch: int
    round: int
    number: int  # in the round, from 0


@dataclass(frozen=True, slots=True)
class Complete:
    """The end of a part. No error: it is safe."""

    part: Part
    error: PostbusError | None


Effect = PlaceHere | Send | Complete


class PublishRoute:
    """One partition's. Call `next` until it gives None after every other call."""

    def __init__(self, *, name: str, node_id: int, window_bytes: int) -> None:
        """name: topic/number, for errors. window_bytes: of what was sent to another node and is not answered."""
        self.name = name
        self.leader_id: int | None = None
        self.leader_epoch = -1
        # Whether a part may go straight to this node's log: `take`, without `submit` and `next`.
        self.direct = False
        self._node_id = node_id
        self._here = (node_id, -1)  # the place of what is appended to this node's log
        self._window_bytes = window_bytes
        self._next_order = 0
        self._round = 0
        self._number_in_round = 0
        self._barrier: int | None = None  # order of the first part that the leader did not take; None: all
        self._waiting: deque[Part] = deque()
        self._outstanding: deque[Part] = deque()
        self._outstanding_bytes = 0
        self._returned: list[Part] = []
        self._over: deque[Complete] = deque()
        self._moved = False  # since the oldest outstanding part was placed
        self._paused = False  # the leader refused; `retry` or a move ends it
        self._why: PostbusError | None = None
        self._gone: PostbusError | None = None

    @property
    def idle(self) -> bool:
        """Whether it owes nobody anything."""
        return not (self._waiting or self._outstanding or self._returned or self._over)

    @property
    def stuck(self) -> bool:
        """Whether parts wait for something other than answers: for a leader, for its favour, for a dead node."""
        return not self.idle and (self._paused or self._moved or self.leader_id is None)

    # --- what happens ---

    def submit(self, part: Part) -> None:
        """One more, after all that came before."""
        self._number(part)
        if self._gone is not None:
            self._fail(part, self._gone)
        else:
            self._waiting.append(part)
        self._judge()

    def take(self, part: Part) -> None:
        """The same for a part that was just appended to this node's log, while `direct`."""
        assert self.direct
        if self._barrier is not None:
            self._begin_round()
        part.order = self._next_order
        self._next_order += 1
        part.doubtful = part.orphan = False
        part.attempt = 1
        part.place = self._here
        part.outstanding = True
        self._outstanding.append(part)
        self._outstanding_bytes += part.size

    def give_back(self, part: Part) -> bool:
        """A part that `take` took is safe; True: nothing else follows from that. Else tell `answered`."""
        if self.direct and self._outstanding and self._outstanding[0] is part:
            self._outstanding.popleft()
            self._outstanding_bytes -= part.size
            part.outstanding = False
            part.over = True
            self._moved = self._moved and bool(self._outstanding)
            return True
        return False

    def led_by(self, leader_id: int | None, leader_epoch: int) -> None:
        """Who leads now. None: nobody."""
        if (leader_id, leader_epoch) == (self.leader_id, self.leader_epoch):
            return
        self.leader_id = leader_id
        self.leader_epoch = leader_epoch
        self._here = (self._node_id, leader_epoch)
        self._moved = bool(self._outstanding)
        self._paused = False
        self._barrier = self._next_order if self._barrier is None else self._barrier
        self._judge()

    def answered(self, part: Part, attempt: int, verdict: Verdict, error: PostbusError | None = None) -> None:
        """What became of an attempt. Answers to earlier attempts are late, and count for nothing."""
        if part.attempt != attempt or not part.outstanding:
            return
        self._remove(part)
        if verdict is Verdict.SAFE:
            part.over = True
            self._over.append(Complete(part, None))
        elif verdict is Verdict.REFUSED:
            assert error is not None
            if error.kind.retriable:
                self._go_back_to(part)
            self._fail(part, error)
        else:
            self._go_back_to(part)
            self._return(part, verdict, error)
        self._judge()

    def node_gone(self, node_id: int) -> None:
        """That node is dead as far as the cluster knows: it will answer nothing."""
        if node_id == self._node_id:
            return  # its own log tells the outcome, sooner or later
        for part in [part for part in self._outstanding if part.place[0] == node_id]:
            self.answered(part, part.attempt, Verdict.UNKNOWN)

    def waits_for(self) -> tuple[int, ...]:
        """Other nodes than the leader that owe an answer, ascending."""
        nodes = {part.place[0] for part in self._outstanding}
        return tuple(sorted(nodes - {self._node_id, self.leader_id or 0}))

    def retry(self) -> None:
        """Time to ask again who refused."""
        self._paused = False
        self._judge()

    def give_up(self, part: Part, why: PostbusError | None = None) -> None:
        """Nobody waits for it any longer: its time is over, or its client went; or for that reason."""
        if part.over:
            return
        if part.outstanding or part.doubtful:
            error = timed_out(self.name) if why is None else given_up(self.name, why, repeatable=part.repeatable)
        else:
            error = why or self._why or no_leader(self.name)
        self._forget(part)
        self._fail(part, error)
        self._judge()

    def drop(self, part: Part) -> None:
        """A fault took it: no more is said of it."""
        part.over = True
        self._forget(part)
        self._judge()

    def parts(self) -> list[Part]:
        """All that are not over."""
        return [*self._outstanding, *self._returned, *self._waiting]

    def delete(self, error: PostbusError) -> None:
        """The partition went."""
        self._gone = error
        for part in self.parts():
            self._forget(part)
            self._fail(part, error)
        self._judge()

    # --- what follows ---

    def next(self) -> Effect | None:
        """The next thing to do."""
        if self._over:
            effect = self._over.popleft()
            if not self._over:
                self._judge()
            return effect
        if not self._waiting and not self._returned:
            return None
        if not self._settled():
            return None
        if self._barrier is not None:
            self._begin_round()
        if self._paused or self.leader_id is None or not self._waiting:
            return None
        here = self.leader_id == self._node_id
        if not here and self._outstanding and self._outstanding_bytes >= self._window_bytes:
            return None
        part = self._waiting.popleft()
        part.attempt += 1
        part.place = (self.leader_id, self.leader_epoch)
        part.outstanding = True
        self._outstanding.append(part)
        self._outstanding_bytes += part.size
        self._judge()
        if here:
            return PlaceHere(part)
        number, self._number_in_round = self._number_in_round, self._number_in_round + 1
        return Send(part, self.leader_id, self.leader_epoch, self._round, number)

    def _settled(self) -> bool:
        if not self._outstanding:
            return True
        if self._moved:
            return False
        return self._barrier is None or self._outstanding[-1].order < self._barrier

    def _go_back_to(self, part: Part) -> None:
        self._barrier = part.order if self._barrier is None else min(self._barrier, part.order)

    def _begin_round(self) -> None:
        self._barrier = None
        self._round += 1
        self._number_in_round = 0
        self._waiting.extendleft(sorted(self._returned, key=lambda part: part.order, reverse=True))
        self._returned.clear()

    # --- parts ---

    def _number(self, part: Part) -> None:
        part.order = self._next_order
        self._next_order += 1
        part.place = (0, 0)
        part.doubtful = part.orphan = False

    def _return(self, part: Part, verdict: Verdict, error: PostbusError | None) -> None:
        if verdict is Verdict.NOT_APPENDED:
            assert error is not None
            self._why = error
        else:
            part.doubtful = True
        if part.place == (self.leader_id, self.leader_epoch):
            self._paused = True
        if part.doubtful and (part.orphan or not part.repeatable):
            told = error if verdict is Verdict.UNKNOWN else None
            self._fail(part, told or outcome_unknown(self.name, part.place[0], repeatable=part.repeatable))
        elif part.orphan:
            self._fail(part, predecessor_failed(self.name))
        else:
            self._returned.append(part)

    def _fail(self, part: Part, error: PostbusError) -> None:
        part.over = True
        self._over.append(Complete(part, error))
        if part.source is None or not (error.kind.retriable or error.kind.outcome_unknown):
            return
        for later in self._outstanding:
            if later.source is part.source and later.order > part.order:
                later.orphan = True
        followers = [
            later
            for later in [*self._returned, *self._waiting]
            if later.source is part.source and later.order > part.order
        ]
        for later in followers:
            self._forget(later)
            later.over = True
            why = timed_out(self.name) if later.doubtful else predecessor_failed(self.name)
            self._over.append(Complete(later, why))

    def _forget(self, part: Part) -> None:
        if part.outstanding:
            self._remove(part)
        elif part in self._returned:
            self._returned.remove(part)
        else:
            self._waiting.remove(part)

    def _remove(self, part: Part) -> None:
        part.outstanding = False
        self._outstanding_bytes -= part.size
        if self._outstanding[0] is part:
            self._outstanding.popleft()
        else:
            self._outstanding.remove(part)
        self._moved = self._moved and bool(self._outstanding)

    def _judge(self) -> None:
        self.direct = (
            self.leader_id == self._node_id
            and not self._moved
            and not (self._waiting or self._returned or self._over or self._paused)
            and self._gone is None
        )


def no_leader(name: str) -> PostbusError:
    """UNAVAILABLE: an election takes longer than the request had time."""
    return PostbusError(
        Reason.ERROR_REASON_NO_LEADER,
        f"{name} has no leader that takes records now; nothing was appended, publish it again",
        retry_after_ms=RETRY_AFTER_MS,
    )


def predecessor_failed(name: str) -> PostbusError:
    """ABORTED: order within a stream is never broken by a retry."""
    return PostbusError(
        Reason.ERROR_REASON_PREDECESSOR_FAILED,
        f"an earlier request of this stream for {name} failed; nothing was appended:"
        " open a new stream and send both again, in order",
    )


def timed_out(name: str) -> PostbusError:
    """DEADLINE_EXCEEDED: the records were on their way."""
    return PostbusError(
        Reason.ERROR_REASON_TIMEOUT,
        f"publishing to {name} was not done in time; it may still happen: repeat it with the same request id or"
        " producer sequence",
    )


def outcome_unknown(name: str, node_id: int, *, repeatable: bool) -> PostbusError:
    """UNAVAILABLE, outcome unknown: the leader went before it answered."""
    return PostbusError(
        Reason.ERROR_REASON_NOT_ENOUGH_REPLICAS_AFTER_APPEND,
        f"node {node_id}, which led {name}, was lost before it answered; {_may_be_there(repeatable=repeatable)}",
        retry_after_ms=RETRY_AFTER_MS,
    )


def given_up(name: str, why: PostbusError, *, repeatable: bool) -> PostbusError:
    """UNAVAILABLE, outcome unknown: it was on its way to the log, and this node can't learn how it ended."""
    return PostbusError(
        Reason.ERROR_REASON_NOT_ENOUGH_REPLICAS_AFTER_APPEND,
        f"{name}: {why.message}; {_may_be_there(repeatable=repeatable)}",
        retry_after_ms=RETRY_AFTER_MS,
    )


def _may_be_there(*, repeatable: bool) -> str:
    advice = (
        "repeat it with the same request id or producer sequence"
        if repeatable
        else "look before you repeat it, and use a request id or a producer sequence to be able to just repeat"
    )
    return f"the records may be there or not: {advice}"
