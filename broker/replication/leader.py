"""One led partition: how far its replicas are, who is in sync, and how far it is therefore safe. Pure.

Owns the maximal ISR and the high watermark, which is the smallest *durable* end over it. The maximal ISR holds the
committed members and those that a proposal under way may have added: the controller may elect any of them, so none may
lack what was acknowledged. Time comes with each event; what the node has to say of itself comes as `local`.

It never decides who leads, and never forgets a proposal whose outcome is unknown until the partition epoch has moved
past it: the controller's compare-and-set then refuses it for good.

Sources: Kafka's Partition.scala (maximal ISR, KIP-497), KIP-903 (broker epochs), KIP-966 (ELR).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

NOT_FETCHED: Final = -1
"""The durable end of a replica that has not fetched in this leader epoch."""


@dataclass(frozen=True, slots=True)
class IsrSettings:
    """When a follower counts as in sync."""

    replica_lag_time_ms: int = 5_000
    """A follower that has not been caught up for so long leaves the ISR. Less: slow disks flap; more: a stuck follower
    holds up acknowledgements for longer."""
    link_grace_ms: int = 50
    """A follower whose link broke leaves the ISR after it, unless it comes back."""
    proposal_retry_ms: int = 200
    """Between two tries to change the ISR."""


@dataclass(frozen=True, slots=True)
class Replicas:
    """The partition as the controller last said."""

    replicas: tuple[int, ...]
    isr: tuple[int, ...]
    elr: tuple[int, ...]
    leader_epoch: int
    partition_epoch: int


@dataclass(frozen=True, slots=True)
class Registered:
    """A node in the cluster's image."""

    broker_epoch: int
    may_join: bool
    """Not fenced, and not stopping."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """A change of the ISR for the controller: compare-and-set on all of it."""

    leader_epoch: int
    partition_epoch: int
    isr: tuple[tuple[int, int], ...]
    """(node id, broker epoch)"""

    @property
    def members(self) -> tuple[int, ...]:
        """Without their broker epochs."""
        return tuple(node_id for node_id, _ in self.isr)


@dataclass(slots=True)
class Follower:
    """What the leader knows of another replica, in this leader epoch."""

    node_id: int
    caught_up_s: float
    """When it last had all that the leader had."""
    since_epoch: int = 0
    """What it asked with an image older than this partition epoch does not count: it was no replica, or in sync, then.
    0: whatever it asked in this leader epoch counts."""
    durable_offset: int = NOT_FETCHED
    written_offset: int = NOT_FETCHED
    broker_epoch: int = 0
    lost_s: float | None = None
    """Since when its link is broken."""
    target_offset: int = 0
    """The leader's end at `target_s`: once the follower is there it was caught up then."""
    target_s: float = 0.0


class LedPartition:
    """The leader's knowledge of one partition in one leader epoch."""

    def __init__(
        self,
        node_id: int,
        state: Replicas,
        *,
        min_insync_replicas: int,
        start_offset: int,
        durable_offset: int,
        high_watermark: int,
        settings: IsrSettings,
        now_s: float,
    ) -> None:
        """start_offset: the log's end when this leader epoch began here."""
        self.node_id = node_id
        self.leader_epoch = state.leader_epoch
        self.partition_epoch = state.partition_epoch
        self.replicas = state.replicas
        self.isr = state.isr
        self.elr = state.elr
        self.min_insync_replicas = min_insync_replicas
        self.start_offset = start_offset
        self.durable_offset = durable_offset
        self.written_offset = durable_offset
        self.high_watermark = high_watermark
        self.proposal: Proposal | None = None
        """Under way."""
        self.followers: dict[int, Follower] = {}
        self._settings = settings
        self._possible: frozenset[int] = frozenset()  # proposed, and nobody knows whether it was carried out
        self._retry_s = now_s
        self._waits: list[Follower] = []  # the maximal ISR without this node
        self._adopt(state, now_s, since_epoch=0)

    # --- what is so ---

    @property
    def maximal_isr(self) -> frozenset[int]:
        """Whoever the controller may count as in sync, or elect."""
        proposed = self.proposal.members if self.proposal else ()
        return frozenset((*self.isr, *self.elr, *proposed)) | self._possible

    @property
    def enough_in_sync(self) -> bool:
        """False: the high watermark stands still, and nothing may be published."""
        return len(self.isr) >= self.min_insync_replicas

    @property
    def replicated_offset(self) -> int:
        """Every replica has all before it, durably. 0 as long as one has not said."""
        least = self.durable_offset
        for follower in self.followers.values():
            least = min(least, follower.durable_offset)
        return max(least, 0)

    @property
    def written_watermark(self) -> int:
        """In the page cache of the whole maximal ISR."""
        least = self.written_offset
        for follower in self._waits:
            least = min(least, follower.written_offset)
        return least

    def may_fetch(self, node_id: int, *, partition_epoch: int) -> bool | None:
        """Whether a follower whose image is of that epoch may be fed. None: it is ahead of what is known here.

        A replica that was taken away and added again still has to delete its log, as long as its image is older; and
        one that is not counted on any more may be about to, because its disk is damaged.
        """
        if partition_epoch > self.partition_epoch:
            return None
        follower = self.followers.get(node_id)
        return follower is not None and partition_epoch >= follower.since_epoch

    def in_sync(self, node_id: int) -> bool:
        """Whether the maximal ISR holds it."""
        return any(follower.node_id == node_id for follower in self._waits)

    # --- events ---

    def local(self, *, durable_offset: int, written_offset: int) -> None:
        """The own log's progress; call `advance`."""
        self.durable_offset = durable_offset
        self.written_offset = written_offset

    def fetched(self, node_id: int, *, broker_epoch: int, durable_offset: int, end_offset: int, now_s: float) -> None:
        """A follower fetches, in this leader epoch, and its log is a prefix of the leader's. Call `advance`."""
        follower = self.followers.get(node_id)
        if follower is None:
            return
        follower.broker_epoch = broker_epoch
        follower.durable_offset = follower.written_offset = durable_offset
        follower.lost_s = None
        self._caught_up(follower, end_offset, now_s)

    def progressed(
        self, node_id: int, *, durable_offset: int, written_offset: int, end_offset: int, now_s: float
    ) -> None:
        """A follower that fetches has stored more; end_offset is the leader's. Call `advance`."""
        follower = self.followers.get(node_id)
        if follower is None or follower.durable_offset == NOT_FETCHED:
            return
        # Within a session of fetching nothing is taken back.
        follower.durable_offset = max(follower.durable_offset, durable_offset)
        follower.written_offset = max(follower.written_offset, written_offset, durable_offset)
        self._caught_up(follower, end_offset, now_s)

    def lost(self, node_id: int, *, now_s: float) -> bool:
        """Its link broke. True: it is in the ISR, so look again after the grace."""
        follower = self.followers.get(node_id)
        if follower is None:
            return False
        if follower.lost_s is None:
            follower.lost_s = now_s
        return node_id in self.isr

    def advance(self) -> bool:
        """Moves the high watermark as far as it is safe; True if it moved."""
        if not self.enough_in_sync:
            return False
        least = self.durable_offset
        for follower in self._waits:
            least = min(least, follower.durable_offset)
        if least <= self.high_watermark:
            return False
        self.high_watermark = least
        return True

    def changed(self, state: Replicas, *, now_s: float) -> bool:
        """The controller said something new in the same leader epoch. True: it was news. Call `advance`."""
        assert state.leader_epoch == self.leader_epoch
        if state.partition_epoch <= self.partition_epoch:
            if state.partition_epoch == self.partition_epoch:  # the controller's answer did not name the ELR
                self.elr = state.elr
                self._recount()
            return False
        self._possible = frozenset()
        self._retry_s = now_s
        self._adopt(state, now_s, since_epoch=state.partition_epoch)
        return True

    # --- proposals ---

    def propose(self, *, end_offset: int, registered: Mapping[int, Registered], now_s: float) -> Proposal | None:
        """The change of the ISR that is called for, if any; it is under way then, until one of the next four."""
        if self.proposal is not None or now_s < self._retry_s:
            return None
        wanted = tuple(node_id for node_id in self.replicas if self._belongs(node_id, end_offset, registered, now_s))
        # With an outcome unknown, the same ISR once more settles it: it moves the partition epoch.
        if frozenset(wanted) == frozenset(self.isr) and not self._possible:
            return None
        self.proposal = Proposal(
            self.leader_epoch,
            self.partition_epoch,
            tuple((node_id, self._broker_epoch(node_id, registered)) for node_id in wanted),
        )
        self._recount()
        return self.proposal

    def accepted(self, proposal: Proposal, state: Replicas, *, now_s: float) -> None:
        """The controller carried it out, and this came of it. Call `advance`."""
        if self.proposal is proposal:
            self.proposal = None
        if state.leader_epoch == self.leader_epoch and state.partition_epoch >= self.partition_epoch:
            self._possible = frozenset()
            self._adopt(state, now_s, since_epoch=state.partition_epoch)
        self._recount()

    def refused(self, proposal: Proposal, *, outdated: bool, now_s: float) -> None:
        """The controller did not. outdated: because it has a newer partition epoch, and who knows why."""
        if self.proposal is not proposal:
            return
        self.proposal = None
        if outdated and proposal.partition_epoch == self.partition_epoch:
            # An earlier try may have been carried out: the image will tell.
            self._possible |= frozenset(proposal.members)
        self._retry_s = now_s + self._settings.proposal_retry_ms / 1000
        self._recount()

    def unanswered(self, proposal: Proposal, *, now_s: float) -> None:
        """Nobody knows whether it was carried out, or will be."""
        if self.proposal is not proposal:
            return
        self.proposal = None
        if proposal.partition_epoch == self.partition_epoch:
            self._possible |= frozenset(proposal.members)
        self._retry_s = now_s + self._settings.proposal_retry_ms / 1000
        self._recount()

    # ---

    def _adopt(self, state: Replicas, now_s: float, *, since_epoch: int) -> None:
        news = state.partition_epoch > self.partition_epoch
        self.replicas, self.isr, self.elr = state.replicas, state.isr, state.elr
        self.partition_epoch = state.partition_epoch
        if self.proposal is not None and self.proposal.partition_epoch < self.partition_epoch:
            self.proposal = None  # too late for it, or this is it
        known = self.followers
        self.followers = {
            node_id: known.get(node_id) or Follower(node_id, now_s, since_epoch)
            for node_id in self.replicas
            if node_id != self.node_id
        }
        if news:
            # Who is not in sync may empty its log once it knows. So what it had before counts for nothing, and it asks
            # anew when its image has come as far as this.
            for follower in self.followers.values():
                if follower.node_id not in state.isr:
                    follower.since_epoch = state.partition_epoch
                    follower.durable_offset = follower.written_offset = NOT_FETCHED
        self._recount()

    def _recount(self) -> None:
        maximal = self.maximal_isr
        self._waits = [follower for follower in self.followers.values() if follower.node_id in maximal]

    def _belongs(self, node_id: int, end_offset: int, registered: Mapping[int, Registered], now_s: float) -> bool:
        if node_id == self.node_id:
            return True
        follower = self.followers[node_id]
        if node_id in self.isr:
            return not self._out_of_sync(follower, end_offset, now_s)
        node = registered.get(node_id)
        return (
            node is not None
            and node.may_join
            and follower.lost_s is None
            and follower.broker_epoch == node.broker_epoch
            and follower.durable_offset >= max(self.high_watermark, self.start_offset)
        )

    def _out_of_sync(self, follower: Follower, end_offset: int, now_s: float) -> bool:
        settings = self._settings
        if follower.lost_s is not None and now_s - follower.lost_s >= settings.link_grace_ms / 1000:
            return True
        return (
            follower.durable_offset < end_offset and now_s - follower.caught_up_s > settings.replica_lag_time_ms / 1000
        )

    def _broker_epoch(self, node_id: int, registered: Mapping[int, Registered]) -> int:
        follower = self.followers.get(node_id)
        if follower is not None and follower.durable_offset != NOT_FETCHED:
            return follower.broker_epoch
        node = registered.get(node_id)
        return node.broker_epoch if node is not None else 0

    def _caught_up(self, follower: Follower, end_offset: int, now_s: float) -> None:
        durable = follower.durable_offset
        if durable >= end_offset:
            follower.caught_up_s = now_s
        elif durable >= follower.target_offset:
            # It has by now what the leader had then. (Without this a busy partition would never count as caught up.)
            follower.caught_up_s = max(follower.caught_up_s, follower.target_s)
        else:
            return
        follower.target_offset, follower.target_s = end_offset, now_s
