"""Who is in sync and who leads: pure steps from one state of a partition to the next.

The order of choice is: the in-sync replicas, then the eligible ones (ELR, KIP-966), then nobody; a replica that lacks
records leads only where that was asked for. Each step keeps what must always hold: ISR and ELR are disjoint and among
the replicas, nobody fenced is in the ISR, the ELR is empty as long as enough are in sync, and epochs only grow.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from broker.controller.state import NOBODY, NodeState, PartitionState


@dataclass(frozen=True, slots=True)
class Terms:
    """What an election depends on besides the partition itself."""

    nodes: Mapping[int, NodeState]
    min_insync: int
    unclean: bool = False  # the topic lets a replica lead that lacks records, when no other can

    def unfenced(self, node_id: int) -> bool:
        node = self.nodes.get(node_id)
        return node is not None and not node.fenced

    def useful(self, node_id: int) -> bool:
        node = self.nodes.get(node_id)
        return node is not None and node.useful


def with_isr(
    before: PartitionState, isr: Collection[int], terms: Terms, *, distrusted: Collection[int] = ()
) -> PartitionState:
    """Another ISR, and whatever follows from it: ELR, the end of a reassignment, a leader.

    Those who leave stay eligible while fewer than `min_insync` are in sync, for then nothing is acknowledged without
    them; but for the `distrusted`, who lost records.
    """
    changed = _in_sync(before, isr, terms, distrusted)
    return _numbered(before, _led(_completed(changed, terms), terms))


def with_leader(before: PartitionState, terms: Terms, *, without: Collection[int] = ()) -> PartitionState:
    """Led by the first who may, in order of preference, but for `without`; as it was if there is nobody else.

    Never by one that is about to go, too: two of those would hand it to each other for ever.
    """
    candidates = [node_id for node_id in before.replicas if node_id in before.isr and node_id not in without]
    leader = next((node_id for node_id in candidates if terms.useful(node_id)), NOBODY)
    if leader == NOBODY:
        return before
    return _numbered(before, replace(before, leader=leader))


def with_preferred(before: PartitionState, terms: Terms) -> PartitionState:
    """Led by the preferred leader if it is in sync and of use; as it was otherwise."""
    preferred = before.replicas[0]
    if preferred not in before.isr or not terms.useful(preferred):
        return before
    return _numbered(before, replace(before, leader=preferred))


def with_any_leader(before: PartitionState, terms: Terms) -> PartitionState:
    """Led by a replica that may lack records, if nobody else may lead: rather who led last. Loses data."""
    changed = _led(before, terms)
    if changed.leader == NOBODY:
        changed = _led_by_anyone(before, terms)
    return _numbered(before, changed)


def with_target(before: PartitionState, target: tuple[int, ...], terms: Terms) -> PartitionState:
    """Begins to move the replicas to `target`, or goes on to there; done at once if nobody has to catch up."""
    original = [node_id for node_id in before.replicas if node_id not in before.adding]
    # Who was only on its way here and is not wanted any more can go at once, unless it alone has everything.
    dropped = [node_id for node_id in before.adding if node_id not in target]
    isr = [node_id for node_id in before.isr if node_id not in dropped]
    if _holds_all(before) and all(node_id in dropped for node_id in _holds_all(before)):
        dropped, isr = [], list(before.isr)
    leaving = tuple(node_id for node_id in before.replicas if node_id not in target and node_id not in dropped)
    moved = replace(
        before,
        replicas=(*target, *leaving),
        adding=tuple(node_id for node_id in target if node_id not in original),
        removing=leaving,
    )
    moved = _in_sync(moved, isr, terms, ())
    return _numbered(before, _led(_completed(moved, terms), terms))


def with_original(before: PartitionState, terms: Terms) -> PartitionState | None:
    """Stops a reassignment: what was added goes. None if only what was added has everything."""
    replicas = tuple(node_id for node_id in before.replicas if node_id not in before.adding)
    isr = tuple(node_id for node_id in before.isr if node_id in replicas)
    if _holds_all(before) and not any(node_id in replicas for node_id in _holds_all(before)):
        return None
    kept = replace(before, replicas=replicas, adding=(), removing=())
    return _numbered(before, _led(_in_sync(kept, isr, terms, ()), terms))


def _holds_all(partition: PartitionState) -> tuple[int, ...]:
    """Who has all that was acknowledged, and may lead; the others wait for one of them to come back."""
    return partition.isr or partition.elr


def _in_sync(before: PartitionState, isr: Collection[int], terms: Terms, distrusted: Collection[int]) -> PartitionState:
    elr: tuple[int, ...] = ()
    if len(isr) < terms.min_insync:
        had_all = (*before.isr, *before.elr)
        elr = tuple(
            node_id
            for node_id in before.replicas
            if node_id in had_all and node_id not in isr and node_id not in distrusted
        )
    return replace(before, isr=_among(before.replicas, isr), elr=elr)


def _completed(partition: PartitionState, terms: Terms) -> PartitionState:
    """Replicas that should go are gone once those that should come are in sync, in the same step."""
    if not partition.reassigning:
        return partition
    target = partition.target
    isr = _among(target, partition.isr)
    if not all(node_id in isr for node_id in partition.adding):
        return partition
    if len(isr) < min(terms.min_insync, len(target)):
        return partition
    elr = () if len(isr) >= terms.min_insync else _among(target, partition.elr)
    return replace(partition, replicas=target, isr=isr, elr=elr, adding=(), removing=())


def _led(partition: PartitionState, terms: Terms) -> PartitionState:
    """With the leader it has, or one who may be: in sync, else eligible, else nobody."""
    if partition.leader in partition.isr:
        return partition
    if partition.isr:
        return replace(partition, leader=_first_useful(_among(partition.replicas, partition.isr), terms))
    leader = _first_useful([node_id for node_id in partition.replicas if node_id in partition.elr], terms)
    if leader != NOBODY:
        return _sole(partition, leader, terms)
    return _led_by_anyone(partition, terms) if terms.unclean else replace(partition, leader=NOBODY)


def _led_by_anyone(partition: PartitionState, terms: Terms) -> PartitionState:
    leader = _first_useful((partition.last_leader, *partition.replicas), terms, among=partition.replicas)
    if leader == NOBODY:
        return replace(partition, leader=NOBODY)
    # Whatever the others have that it lacks is lost, so none of them can be eligible.
    return replace(partition, leader=leader, isr=(leader,), elr=())


def _sole(partition: PartitionState, leader: int, terms: Terms) -> PartitionState:
    elr = () if terms.min_insync <= 1 else tuple(node_id for node_id in partition.elr if node_id != leader)
    return replace(partition, leader=leader, isr=(leader,), elr=elr)


def _first_useful(candidates: Iterable[int], terms: Terms, *, among: Collection[int] | None = None) -> int:
    """Rather one that stays; but one that is about to go is better than nobody."""
    there = [node_id for node_id in candidates if terms.unfenced(node_id) and (among is None or node_id in among)]
    return next((node_id for node_id in there if terms.useful(node_id)), there[0] if there else NOBODY)


def _numbered(before: PartitionState, after: PartitionState) -> PartitionState:
    """With the epochs that the change asks for."""
    if after == before:
        return before
    led_anew = after.leader != before.leader
    return replace(
        after,
        leader_epoch=before.leader_epoch + led_anew,
        partition_epoch=before.partition_epoch + 1,
        last_leader=after.leader or before.leader or before.last_leader,
    )


def _among(some: Iterable[int], others: Collection[int]) -> tuple[int, ...]:
    """Those of `some` that are `others`, too, in the order of `some`."""
    return tuple(node_id for node_id in some if node_id in others)
