"""The members that this node speaks for, attached to whichever node coordinates their groups.

Owns one path a coordinating node (this one too): calls "which of these should send a heartbeat?", one after the
other (`ChangesCall`; the other side is `watches`). Whoever watches is called back for what an answer names. Where a
path breaks or the coordinator moves, its members are watched anew, and nothing is missed: a coordinator names a member
until it heard of it, and after a move all that hold anything. At most two calls are open on a path: one that waits,
and one that brings news of members, which ends the wait of the first.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Final

from broker.errors import PostbusError
from broker.groups.calls import ChangesCall, ChangesReply, MemberKey
from broker.groups.coordinators import Coordinators
from broker.groups.journal import CallLater, Timer
from broker.peers.backoff import Backoff
from broker.peers.calls import PeerUnreachable

Ask = Callable[[int, ChangesCall], "asyncio.Future[ChangesReply]"]

OPEN_CALLS_MAX: Final = 2


class Attachments:
    """All members that are watched from here. On the loop only."""

    def __init__(
        self, coordinators: Coordinators, ask: Ask, *, call_later: CallLater, new_watch_id: Callable[[], str]
    ) -> None:
        self._coordinators = coordinators
        self._ask = ask
        self._call_later = call_later
        self._new_watch_id = new_watch_id
        self._watched: dict[MemberKey, list[Callable[[], None]]] = {}
        self._node_of: dict[MemberKey, int] = {}
        self._paths: dict[int, _Path] = {}
        coordinators.add_listener(self._moved)

    def watch(self, group: str, member_id: str, on_change: Callable[[], None]) -> None:
        """`on_change` is called when the member should send a heartbeat, and perhaps when it need not.

        Nothing is missed between a reply and this: what happened since is told soon.
        """
        member = (group, member_id)
        self._watched.setdefault(member, []).append(on_change)
        self._place(member)

    def unwatch(self, group: str, member_id: str, on_change: Callable[[], None]) -> None:
        """The end of `watch`; unknown ones are fine."""
        member = (group, member_id)
        watchers = self._watched.get(member, [])
        if on_change not in watchers:
            return
        watchers.remove(on_change)
        if not watchers:
            del self._watched[member]
            self._take_off(member)

    def close(self) -> None:
        """Asks no more."""
        for path in self._paths.values():
            path.close()
        self._paths.clear()

    def _place(self, member: MemberKey) -> None:
        number = self._coordinators.number_of(member[0])
        leader_id = None if number is None else self._coordinators.leader_of(number)
        if self._node_of.get(member) != leader_id:
            self._take_off(member)
        if leader_id is None:
            return  # `_moved` comes when there is one
        self._node_of[member] = leader_id
        path = self._paths.get(leader_id)
        if path is None:
            path = self._paths[leader_id] = _Path(
                leader_id, self._ask, self._changed, call_later=self._call_later, new_watch_id=self._new_watch_id
            )
        path.add(member)

    def _take_off(self, member: MemberKey) -> None:
        node_id = self._node_of.pop(member, None)
        if node_id is not None:
            self._paths[node_id].remove(member)

    def _moved(self, number: int) -> None:
        """The partition has another leader, or the same one anew: all its members are to be attached again."""
        for member in [member for member in self._watched if self._coordinators.number_of(member[0]) == number]:
            self._place(member)

    def _changed(self, member: MemberKey) -> None:
        for on_change in list(self._watched.get(member, ())):
            on_change()


class _Path:
    """The calls to one node."""

    def __init__(
        self,
        node_id: int,
        ask: Ask,
        changed: Callable[[MemberKey], None],
        *,
        call_later: CallLater,
        new_watch_id: Callable[[], str],
    ) -> None:
        self._node_id = node_id
        self._ask = ask
        self._changed = changed
        self._call_later = call_later
        self._new_watch_id = new_watch_id
        self._members: dict[MemberKey, None] = {}
        self._news: dict[MemberKey, bool] = {}  # since the last call: added (or to be looked at again), or removed
        self._watch_id = ""  # empty: to begin
        self._open: dict[asyncio.Future[ChangesReply], None] = {}
        self._scheduled = False
        self._pause: Timer | None = None
        self._backoff = Backoff()

    def add(self, member: MemberKey) -> None:
        self._members[member] = None
        self._news[member] = True
        self._schedule()

    def remove(self, member: MemberKey) -> None:
        self._members.pop(member, None)
        self._news[member] = False
        self._schedule()

    def close(self) -> None:
        self._members.clear()
        self._abandon()
        if self._pause is not None:
            self._pause.cancel()

    def _schedule(self) -> None:
        # What happens in one turn goes into one call.
        if not self._scheduled and self._pause is None:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._call)

    def _call(self) -> None:
        self._scheduled = False
        if len(self._open) >= OPEN_CALLS_MAX or (self._open and not self._news):
            return
        if not self._watch_id:
            if not self._members:
                self._news.clear()
                return
            self._watch_id = self._new_watch_id()
            call = ChangesCall(self._watch_id, first=True, added=tuple(self._members))
        elif not self._members and not self._news:
            self._watch_id = ""  # it ends over there by silence
            return
        else:
            added = tuple(member for member, is_added in self._news.items() if is_added)
            removed = tuple(member for member, is_added in self._news.items() if not is_added)
            call = ChangesCall(self._watch_id, first=False, added=added, removed=removed)
        self._news.clear()
        asked = self._ask(self._node_id, call)
        self._open[asked] = None
        asked.add_done_callback(partial(self._ended, self._watch_id))

    def _ended(self, watch_id: str, asked: "asyncio.Future[ChangesReply]") -> None:
        self._open.pop(asked, None)
        failure = None if asked.cancelled() else asked.exception()
        if asked.cancelled() or watch_id != self._watch_id:
            return
        if failure is not None and not isinstance(failure, (PostbusError, PeerUnreachable, TimeoutError)):
            raise failure
        if failure is not None or not asked.result().known:
            self._broke()
            return
        self._backoff.worked()
        for member in asked.result().changed:
            self._changed(member)
        self._schedule()

    def _broke(self) -> None:
        """Answers may have been lost: once all are watched again, those are named again."""
        self._abandon()
        self._pause = self._call_later(self._backoff.failed(), self._again)

    def _again(self) -> None:
        self._pause = None
        self._schedule()

    def _abandon(self) -> None:
        self._watch_id = ""
        self._news.clear()
        for asked in list(self._open):
            asked.cancel()
        self._open.clear()
