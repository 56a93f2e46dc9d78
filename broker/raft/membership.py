"""Who belongs to the cluster, as the log has it. Pure.

A member is a node with one disk: a voter whose disk was lost comes back with another store, which never voted, and so
begins as a learner. Each change makes or takes away at most one voter, so that any two majorities before and after it
share a member; the core allows one at a time.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

REMOVED_STORES_MAX: Final = 32


class ChangeRefused(Exception):  # noqa: N818 - an answer, not a fault
    """The membership can't be changed like this, or not now; the text says why."""


@dataclass(frozen=True, slots=True)
class Seat:
    """A member: one node with one disk."""

    node_id: int
    store_id: str  # empty: not known yet, in a cluster that has no entry yet
    voter: bool = True
    returning: bool = False
    """A learner that voted before it lost its disk: it is made a voter again as soon as it has caught up."""


@dataclass(frozen=True, slots=True)
class Configuration:
    """All members, in order of their ids."""

    seats: tuple[Seat, ...] = ()
    removed_stores: tuple[str, ...] = ()
    """Taken out on purpose, the latest last: greetings of these are not answered with a seat."""

    def seat(self, node_id: int) -> Seat | None:
        """Of that node."""
        for seat in self.seats:
            if seat.node_id == node_id:
                return seat
        return None

    def voters(self) -> tuple[int, ...]:
        """Node ids."""
        return tuple(seat.node_id for seat in self.seats if seat.voter)

    def _with(self, changed: Seat) -> "Configuration":
        others = [seat for seat in self.seats if seat.node_id != changed.node_id]
        removed = tuple(store for store in self.removed_stores if store != changed.store_id)
        return Configuration(_sorted([*others, changed]), removed)


def bootstrap(voters: Iterable[int], *, me: int, store_id: str) -> Configuration:
    """Of a cluster that has no entry yet."""
    return Configuration(_sorted(Seat(node_id, store_id if node_id == me else "") for node_id in voters))


def bind(configuration: Configuration, stores: dict[int, str]) -> Configuration:
    """With the disks of all members."""
    return replace(
        configuration,
        seats=tuple(replace(seat, store_id=seat.store_id or stores[seat.node_id]) for seat in configuration.seats),
    )


def with_learner(
    configuration: Configuration, node_id: int, store_id: str, *, members_max: int, returning: bool = False
) -> Configuration:
    """With a learner more, or one in place of a member that lost its disk."""
    seat = configuration.seat(node_id)
    if seat is not None and seat.store_id == store_id:
        raise ChangeRefused(f"node {node_id} is a member already")
    if seat is None and len(configuration.seats) >= members_max:
        raise ChangeRefused(f"there are {members_max} members, which is the most")
    return configuration._with(Seat(node_id, store_id, voter=False, returning=returning))


def promoted(configuration: Configuration, node_id: int) -> Configuration:
    """With that learner as a voter."""
    seat = configuration.seat(node_id)
    if seat is None:
        raise ChangeRefused(f"node {node_id} is no member")
    if seat.voter:
        raise ChangeRefused(f"node {node_id} votes already")
    return configuration._with(Seat(node_id, seat.store_id))


def without(configuration: Configuration, node_id: int) -> Configuration:
    """Without that member."""
    seat = configuration.seat(node_id)
    if seat is None:
        raise ChangeRefused(f"node {node_id} is no member")
    if configuration.voters() == (node_id,):
        raise ChangeRefused(f"node {node_id} is the only voter")
    removed = (*configuration.removed_stores, seat.store_id)[-REMOVED_STORES_MAX:]
    return Configuration(tuple(other for other in configuration.seats if other.node_id != node_id), removed)


def _sorted(seats: Iterable[Seat]) -> tuple[Seat, ...]:
    return tuple(sorted(seats, key=lambda seat: seat.node_id))
