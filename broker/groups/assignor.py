"""Who should own which partition: as even as the members' wishes allow, moving as little as possible.

Pure and deterministic: the same input gives the same answer on every node. It never looks at racks, load or time.

When all members want the same topics, quotas differ by at most one and the number of moves is the least possible.
When they differ, the result has no cost-reducing path (Harvey, Ladner, Lovász, Tamir, "Semi-matchings for bipartite
graphs and load balancing", 2003): no chain of moves could take a partition off a member for one with two fewer, which
makes it as balanced as can be; members that want the same never differ by more than one.
"""

from collections import deque
from collections.abc import Collection, Mapping

from broker.groups.records import PartitionKey

Assignment = dict[PartitionKey, str]


def assign(
    *,
    wanted: Mapping[str, Collection[str]],
    partition_counts: Mapping[str, int],
    owners: Mapping[PartitionKey, str],
) -> Assignment:
    """Gives each partition that somebody wants its member.

    wanted: topic ids by member id. partition_counts: by topic id; a topic that is missing has none. owners: who has
    what now; members that are gone or no longer want the topic are ignored.
    """
    wishes = {
        member: frozenset(topic for topic in topics if partition_counts.get(topic, 0) > 0)
        for member, topics in sorted(wanted.items())
    }
    wishes = {member: topics for member, topics in wishes.items() if topics}
    if not wishes:
        return {}
    topics = sorted(frozenset[str]().union(*wishes.values()))
    partitions = [(topic, number) for topic in topics for number in range(partition_counts[topic])]
    held: dict[str, list[PartitionKey]] = {member: [] for member in wishes}
    for partition in partitions:
        owner = owners.get(partition, "")
        if owner in wishes and partition[0] in wishes[owner]:
            held[owner].append(partition)
    if len(set(wishes.values())) == 1:
        return _assign_evenly(partitions, held)
    return _Balancer(wishes, partitions, held).run()


def _assign_evenly(partitions: list[PartitionKey], held: dict[str, list[PartitionKey]]) -> Assignment:
    quota, extra = divmod(len(partitions), len(held))
    # Those with most keep the larger quotas: each of these places given elsewhere would be one more move.
    by_load = sorted(held, key=lambda member: (-len(held[member]), member))
    assignment: Assignment = {}
    room: list[tuple[str, int]] = []
    for index, member in enumerate(by_load):
        share = quota + (1 if index < extra else 0)
        kept = held[member][:share]
        for partition in kept:
            assignment[partition] = member
        room.append((member, share - len(kept)))
    free = deque(partition for partition in partitions if partition not in assignment)
    # One each in turn spreads every topic over the members, not only the sum.
    while free:
        room = [(member, places) for member, places in room if places > 0]
        still: list[tuple[str, int]] = []
        for member, places in room:
            if free:
                assignment[free.popleft()] = member
            still.append((member, places - 1))
        room = still
    return assignment


class _Balancer:
    """Members that want different things: fill the least loaded, then shorten the longest by chains of moves."""

    def __init__(
        self,
        wishes: Mapping[str, frozenset[str]],
        partitions: list[PartitionKey],
        held: Mapping[str, list[PartitionKey]],
    ) -> None:
        self._partitions = partitions
        self._members = list(wishes)
        self._origin = {partition: member for member, kept in held.items() for partition in kept}
        self._assignment: Assignment = dict(self._origin)
        self._load = {member: len(kept) for member, kept in held.items()}
        self._subscribers: dict[str, list[str]] = {}
        for member in self._members:
            for topic in sorted(wishes[member]):
                self._subscribers.setdefault(topic, []).append(member)
        self._by_topic: dict[str, dict[str, set[int]]] = {
            member: {topic: set() for topic in sorted(wishes[member])} for member in self._members
        }
        for (topic, number), member in self._origin.items():
            self._by_topic[member][topic].add(number)

    def run(self) -> Assignment:
        for partition in self._partitions:
            if partition not in self._assignment:
                receiver = min(self._subscribers[partition[0]], key=lambda member: (self._load[member], member))
                self._give(partition, receiver)
        # A member from which no chain leads to a much less loaded one can get such a chain only if loads elsewhere
        # change, so every change starts the search over. Each chain lowers the sum of squares: this ends.
        improved = True
        while improved:
            improved = False
            for member in sorted(self._members, key=lambda name: (-self._load[name], name)):
                chain = self._chain_from(member)
                if chain:
                    for topic, giver, receiver in chain:
                        self._move(topic, giver, receiver)
                    improved = True
                    break
        return self._assignment

    def _chain_from(self, start: str) -> list[tuple[str, str, str]]:
        """The shortest chain of moves (topic, from, to) from `start` to a member with at least two fewer."""
        limit = self._load[start] - 2
        if limit < 0:
            return []
        reached: dict[str, tuple[str, str]] = {start: ("", "")}
        topics_done: set[str] = set()
        queue = deque([start])
        while queue:
            giver = queue.popleft()
            for topic, numbers in self._by_topic[giver].items():
                if not numbers or topic in topics_done:
                    continue
                # All subscribers of the topic are reached now; a later giver of it would reach none.
                topics_done.add(topic)
                for receiver in self._subscribers[topic]:
                    if receiver in reached:
                        continue
                    reached[receiver] = (topic, giver)
                    queue.append(receiver)
                    if self._load[receiver] <= limit:
                        return self._path_to(receiver, reached)
        return []

    @staticmethod
    def _path_to(end: str, reached: Mapping[str, tuple[str, str]]) -> list[tuple[str, str, str]]:
        path: list[tuple[str, str, str]] = []
        receiver = end
        while reached[receiver][1]:
            topic, giver = reached[receiver]
            path.append((topic, giver, receiver))
            receiver = giver
        return path

    def _move(self, topic: str, giver: str, receiver: str) -> None:
        # Cheapest first: one that goes home, then one that moves anyway, then one that its owner loses.
        def cost(number: int) -> tuple[int, int]:
            home = self._origin.get((topic, number), "")
            return (0 if home == receiver else 1 if home != giver else 2, -number)

        number = min(self._by_topic[giver][topic], key=cost)
        self._by_topic[giver][topic].remove(number)
        self._load[giver] -= 1
        self._give((topic, number), receiver)

    def _give(self, partition: PartitionKey, receiver: str) -> None:
        self._assignment[partition] = receiver
        self._load[receiver] += 1
        self._by_topic[receiver][partition[0]].add(partition[1])
