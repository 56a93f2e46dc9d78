"""Which members other nodes watch for, on the side of the coordinators: one watch a node, for all its members here.

A node asks, and is answered when one of its members should send a heartbeat, or after a while (`ChangesCall`). As
long as it goes on asking, its members' streams are taken to be there. A watch ends with the link that it came on, with
a node that the cluster fenced, and after silence; its members then have `member_resume_after_node_loss_ms` to be
watched again, by whichever node. This node watches for its own members in the same way.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Final

from broker.groups.calls import ChangesCall, ChangesReply, MemberKey
from broker.groups.coordinators import Coordinators
from broker.groups.journal import CallLater, Timer

# An answer comes after so long at the latest; a node that does not ask again for so long is silent.
POLL_S: Final = 2.0
SILENCE_S: Final = 3.0
CHANGES_MAX: Final = 10_000  # in one answer; the next one has the rest


class _Watch:
    """What one node watches for."""

    __slots__ = ("changed", "members", "node_id", "silence", "waiting", "watch_id")

    def __init__(self, node_id: int, watch_id: str) -> None:
        self.node_id = node_id
        self.watch_id = watch_id
        self.members: dict[MemberKey, Callable[[], None]] = {}
        self.changed: dict[MemberKey, None] = {}
        self.waiting: asyncio.Future[None] | None = None
        self.silence: Timer | None = None

    def note(self, member: MemberKey) -> None:
        """The member should send a heartbeat."""
        if member in self.members:
            self.changed[member] = None
            self.wake()

    def wake(self) -> None:
        """Ends the wait of the call that waits, if one does."""
        if self.waiting is not None and not self.waiting.done():
            self.waiting.set_result(None)


class Watches:
    """All of them. On the loop only."""

    def __init__(self, coordinators: Coordinators, *, call_later: CallLater) -> None:
        self._coordinators = coordinators
        self._call_later = call_later
        self._by_node: dict[int, _Watch] = {}
        coordinators.add_listener(self._coordinator_changed)

    async def changes(self, node_id: int, call: ChangesCall) -> ChangesReply:
        """Answers when there is something to tell. Cancelled, when the asker's link is lost, it ends the watch."""
        watch = self._by_node.get(node_id)
        if call.first:
            if watch is not None:
                self._drop(watch)
            watch = self._by_node[node_id] = _Watch(node_id, call.watch_id)
        if watch is None or watch.watch_id != call.watch_id:
            return ChangesReply(known=False)
        if watch.silence is not None:
            watch.silence.cancel()
            watch.silence = None
        watch.wake()
        for member in call.removed:
            self._remove(watch, member)
        for member in call.added:
            self._remove(watch, member)
            self._add(watch, member)
        if not watch.changed:
            waiting = watch.waiting = asyncio.get_running_loop().create_future()
            try:
                await asyncio.wait({waiting}, timeout=POLL_S)
            except asyncio.CancelledError:
                self._drop(watch)
                raise
            if watch.waiting is waiting:
                watch.waiting = None
        changed = tuple(watch.changed)[:CHANGES_MAX]
        for member in changed:
            del watch.changed[member]
        if watch.waiting is None and watch.silence is None and self._by_node.get(node_id) is watch:
            watch.silence = self._call_later(SILENCE_S, partial(self._drop, watch))
        return ChangesReply(known=self._by_node.get(node_id) is watch, changed=changed)

    def node_fenced(self, node_id: int) -> None:
        """The cluster takes the node for dead: no need to wait for its silence."""
        watch = self._by_node.get(node_id)
        if watch is not None:
            self._drop(watch)

    def close(self) -> None:
        """Ends all of them; nothing is said of their members."""
        for watch in self._by_node.values():
            if watch.silence is not None:
                watch.silence.cancel()
            watch.wake()
        self._by_node.clear()

    def _drop(self, watch: _Watch) -> None:
        if self._by_node.get(watch.node_id) is watch:
            del self._by_node[watch.node_id]
        if watch.silence is not None:
            watch.silence.cancel()
        for member in list(watch.members):
            self._remove(watch, member)
        watch.wake()

    def _add(self, watch: _Watch, member: MemberKey) -> None:
        watch.members[member] = on_change = partial(watch.note, member)
        number = self._coordinators.number_of(member[0])
        coordinator = None if number is None else self._coordinators.serving(number)
        # Otherwise once its coordinator is here; if it never is, the asking node hears so from the cluster.
        if coordinator is not None:
            coordinator.watch(*member, on_change)

    def _remove(self, watch: _Watch, member: MemberKey) -> None:
        on_change = watch.members.pop(member, None)
        watch.changed.pop(member, None)
        number = self._coordinators.number_of(member[0])
        coordinator = None if number is None else self._coordinators.serving(number)
        if on_change is not None and coordinator is not None:
            coordinator.unwatch(*member, on_change)

    def _coordinator_changed(self, number: int) -> None:
        coordinator = self._coordinators.serving(number)
        if coordinator is None:
            return
        for watch in self._by_node.values():
            for member, on_change in watch.members.items():
                if self._coordinators.number_of(member[0]) == number:
                    coordinator.watch(*member, on_change)
