"""The pure group: a random history of events against what members may believe."""

from collections import Counter

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from postbus.v1 import group_pb2, subscriber_pb2

from broker.errors import PostbusError, Reason
from broker.groups import membership, offsets, records
from broker.groups.calls import CommitEntry, HeartbeatCall, Topic
from broker.groups.group import Group
from broker.groups.records import OWNER, PartitionKey, Record

NAMES = ["a", "b"]
INSTANCES = ["", "", "i1", "i2"]


class Client:
    """What one process believes: who it is, and what it may use under which fence."""

    def __init__(self, member_id: str, epoch: int, instance_id: str, topics: tuple[str, ...]) -> None:
        self.member_id = member_id
        self.epoch = epoch
        self.instance_id = instance_id
        self.topics = topics
        self.held: dict[PartitionKey, int] = {}


class History:
    """A group, its log from the first record on, and the topics around it."""

    def __init__(self) -> None:
        self.group = Group("g")
        self.log: list[tuple[bytes, bytes | None]] = [(b"", None)]  # offset 0 is never a group's
        self.topics: dict[str, Topic] = {}
        self.unresolved: dict[PartitionKey, bytes] = {}
        self.now_us = 1_000_000
        self.fences: dict[PartitionKey, list[tuple[int, str]]] = {}  # every one that was given, with its owner

    def write(self, decided: list[Record]) -> None:
        for record in decided:
            value = None if record.value is None else records.encode_value(record.value)
            key = records.encode_key(record)
            self.log.append((key, value))
            self.group.replay(records.decode(key, value), len(self.log) - 1)
            if record.kind == OWNER:
                owner = record.value.member_id if isinstance(record.value, records.Owner) else ""
                self.fences.setdefault((record.topic_id, record.partition), []).append((len(self.log) - 1, owner))

    def settle(self, released=(), starts=None) -> None:
        if self.group.target_epoch != self.group.group_epoch:
            self.write(membership.decide_seen(self.group, self.topics))
            self.group.retarget(self.topics)
        decided = membership.decide_owners(self.group, released=released, starts=starts or {}, now_us=self.now_us)
        self.write(decided.records)
        self.unresolved = decided.unresolved

    def resolve(self, offset: int = 0) -> None:
        if self.unresolved:
            self.settle(starts=dict.fromkeys(self.unresolved.items(), offset))

    def replayed(self) -> Group:
        group = Group("g")
        for offset, (key, value) in enumerate(self.log):
            if key:
                group.replay(records.decode(key, value), offset)
        return group

    def from_table(self) -> Group:
        table: dict[bytes, tuple[bytes, int]] = {}
        for offset, (key, value) in enumerate(self.log):
            if value is None:
                table.pop(key, None)
            else:
                table[key] = (value, offset)
        group = Group("g")
        for key, (value, offset) in sorted(table.items()):
            group.replay(records.decode(key, value), offset)
        return group


class GroupMachine(RuleBasedStateMachine):
    """Members that obey, members that vanish and come back as ghosts, and an administrator."""

    def __init__(self) -> None:
        super().__init__()
        self.history = History()
        self.clients: list[Client] = []
        self.ghosts: list[Client] = []  # replaced or removed, but they do not know
        self.next_id = 0
        self.next_topic = 0
        self.committed_before: dict[PartitionKey, int] = {}
        self.fences: dict[PartitionKey, tuple[int, str]] = {}
        self.may_go_back = False

    @property
    def group(self) -> Group:
        return self.history.group

    @initialize()
    def topics_exist(self) -> None:
        for name in NAMES:
            self._create(name, 3)

    def _create(self, name: str, count: int) -> None:
        self.next_topic += 1
        self.history.topics[name] = Topic(name, f"{name}-{self.next_topic}", count)

    # --- members

    @rule(topics=st.sets(st.sampled_from(NAMES), min_size=1), instance=st.sampled_from(INSTANCES))
    def join(self, topics, instance) -> None:
        self._join(tuple(sorted(topics)), instance, "")

    @precondition(lambda self: self.clients or self.ghosts)
    @rule(data=st.data())
    def come_back(self, data) -> None:
        """A process with the same member id: after a broken stream, or beside a living one."""
        earlier = data.draw(st.sampled_from([*self.clients, *self.ghosts]))
        self._join(earlier.topics, earlier.instance_id, earlier.member_id)

    def _join(self, topics: tuple[str, ...], instance_id: str, member_id: str) -> None:
        if len(self.clients) >= 5:
            return
        self.next_id += 1
        call = HeartbeatCall(group="g", member_id=member_id, instance_id=instance_id, topics=topics)
        joined = membership.decide_join(self.group, call, new_member_id=f"m{self.next_id}", now_us=self.history.now_us)
        earlier = [client for client in self.clients if client.member_id == joined.member.member_id]
        assert len(earlier) <= 1
        for client in earlier:
            self.clients.remove(client)
            self.ghosts.append(client)
        begin = len(self.history.log)
        self.history.write(joined.records)
        self.history.settle(released=joined.released)
        for key in self.group.holdings(joined.member.member_id):
            assert self.group.owners[key].fence >= begin, "what an earlier self had out is delivered again"
        client = Client(joined.member.member_id, joined.member.member_epoch, instance_id, topics)
        self.clients.append(client)
        self._take(client)

    def _take(self, client: Client) -> None:
        """The client reads its reply: takes what is there; what it must give up it may go on using."""
        for assigned in self.group.usable(client.member_id, durable_end=len(self.history.log)):
            fence, member_id = self.fences.get(assigned.key, (0, ""))
            assert assigned.fence >= fence, "fences only grow"
            assert assigned.fence > fence or member_id == client.member_id, "one fence, one owner"
            self.fences[assigned.key] = (assigned.fence, client.member_id)
            client.held[assigned.key] = assigned.fence
        for key in list(client.held):
            owner = self.group.owners.get(key)
            if owner is None or owner.member_id != client.member_id:
                del client.held[key]  # told as lost

    @precondition(lambda self: self.clients)
    @rule(data=st.data(), obeys=st.booleans())
    def heartbeat(self, data, obeys) -> None:
        self._heartbeat(data.draw(st.sampled_from(self.clients)), obeys=obeys)

    def _heartbeat(self, client: Client, *, obeys: bool) -> None:
        target = {assigned.key for assigned in self.group.usable(client.member_id, durable_end=len(self.history.log))}
        if obeys:
            client.held = {key: fence for key, fence in client.held.items() if key in target}
        call = HeartbeatCall(
            group="g", member_id=client.member_id, member_epoch=client.epoch, owned=frozenset(client.held)
        )
        stayed = membership.decide_heartbeat(self.group, call, now_us=self.history.now_us)
        self.history.write(stayed.records)
        self.history.settle(released=stayed.released)
        self._take(client)

    @precondition(lambda self: self.clients)
    @rule(data=st.data(), topics=st.sets(st.sampled_from(NAMES), min_size=1))
    def want_other_topics(self, data, topics) -> None:
        client = data.draw(st.sampled_from(self.clients))
        client.topics = tuple(sorted(topics))
        call = HeartbeatCall(group="g", member_id=client.member_id, member_epoch=client.epoch, topics=client.topics)
        stayed = membership.decide_heartbeat(self.group, call, now_us=self.history.now_us)
        assert not stayed.released
        self.history.write(stayed.records)
        self.history.settle()

    @precondition(lambda self: self.clients)
    @rule(data=st.data())
    def go(self, data) -> None:
        """Leaves or times out; as a ghost it may still speak."""
        client = data.draw(st.sampled_from(self.clients))
        self.clients.remove(client)
        self.ghosts.append(client)
        self.history.write(membership.decide_removal(self.group, client.member_id, now_us=self.history.now_us))
        self.history.settle()

    @precondition(lambda self: self.clients)
    @rule()
    def all_go(self) -> None:
        for client in self.clients:
            self.history.write(membership.decide_removal(self.group, client.member_id, now_us=self.history.now_us))
            self.history.settle()
        self.ghosts += self.clients
        self.clients = []

    @precondition(lambda self: any(client.held for client in self.clients))
    @rule(data=st.data())
    def hang(self, data) -> None:
        """The processing timeout of one partition ends."""
        client = data.draw(st.sampled_from([client for client in self.clients if client.held]))
        key = data.draw(st.sampled_from(sorted(client.held)))
        owner = self.group.owners.get(key)
        lost = membership.decide_lost(self.group, client.member_id, {key: client.held[key]}, now_us=self.history.now_us)
        self.history.write(lost.records)
        self.history.settle(released=lost.released)
        if owner is not None and owner.fence == client.held[key]:
            assert self.group.owners[key].fence > owner.fence, "late acknowledgements no longer count"
        del client.held[key]
        if client.member_id not in self.group.members:
            self.clients.remove(client)
            self.ghosts.append(client)

    @precondition(lambda self: self.ghosts)
    @rule(data=st.data())
    def ghost_speaks(self, data) -> None:
        """One that was replaced or removed hears so, and nothing changes."""
        ghost = data.draw(st.sampled_from(self.ghosts))
        call = HeartbeatCall(
            group="g",
            member_id=ghost.member_id,
            member_epoch=ghost.epoch,
            instance_id=ghost.instance_id,
            owned=frozenset(),
        )
        with pytest.raises(PostbusError) as error:
            membership.decide_heartbeat(self.group, call, now_us=self.history.now_us)
        successor = ghost.member_id in self.group.members or self.group.member_of_instance(ghost.instance_id)
        expected = Reason.ERROR_REASON_MEMBER_REPLACED if successor else Reason.ERROR_REASON_ASSIGNMENT_LOST
        assert error.value.reason == expected

    # --- offsets

    @precondition(lambda self: self.history.fences)
    @rule(data=st.data(), wanted=st.lists(st.integers(0, 20), min_size=1, max_size=3), newest=st.booleans())
    def commit(self, data, wanted, newest) -> None:
        """Under any fence that ever was: only the newest one of the partition counts."""
        fences = self.history.fences
        key = data.draw(st.sampled_from(sorted(fences)))
        fence, member_id = fences[key][-1] if newest else data.draw(st.sampled_from(fences[key]))
        if not member_id:
            return
        before = self.group.committed.get(key)
        entries = [CommitEntry(key[0], key[1], offset, fence) for offset in wanted]
        decided = offsets.decide_commit(self.group, member_id, entries, now_us=self.history.now_us)
        self.history.write(decided.records)
        if fence == fences[key][-1][0]:
            assert decided.outcomes == [None] * len(wanted)
            assert self.group.committed[key].offset == max(*wanted, before.offset if before else 0)
        else:
            assert {outcome and outcome.reason for outcome in decided.outcomes} == {Reason.ERROR_REASON_ASSIGNMENT_LOST}
            assert not decided.records

    @precondition(lambda self: any(client.held for client in self.clients))
    @rule(data=st.data(), offset=st.integers(0, 20))
    def seek(self, data, offset) -> None:
        client = data.draw(st.sampled_from([client for client in self.clients if client.held]))
        key = data.draw(st.sampled_from(sorted(client.held)))
        fence = client.held[key]
        owner = self.group.owners.get(key)
        if owner is None or owner.fence != fence:
            with pytest.raises(PostbusError):
                offsets.decide_seek(self.group, client.member_id, key, offset, fence=fence, now_us=self.history.now_us)
            return
        self.may_go_back = True
        self.history.write(
            offsets.decide_seek(self.group, client.member_id, key, offset, fence=fence, now_us=self.history.now_us)
        )
        assert self.group.owners[key].fence > fence
        assert self.group.committed[key].offset == offset
        client.held[key] = self.group.owners[key].fence

    @rule(offset=st.integers(0, 20), name=st.sampled_from(NAMES), reset=st.booleans())
    def move_from_outside(self, offset, name, reset) -> None:
        """Allowed only without members."""
        if not self.group.exists or name not in self.history.topics:
            return
        topic_id = self.history.topics[name].topic_id
        self.may_go_back = True

        def decide() -> list[Record]:
            if reset:
                return offsets.decide_reset(self.group, {(topic_id, 0): offset}, now_us=self.history.now_us)
            entry = CommitEntry(topic_id, 0, offset)
            return offsets.decide_commit(self.group, "", [entry], now_us=self.history.now_us).records

        if self.group.members:
            with pytest.raises(PostbusError) as error:
                decide()
            assert error.value.reason == Reason.ERROR_REASON_GROUP_NOT_EMPTY
            return
        before = self.group.owners.get((topic_id, 0))
        self.history.write(decide())
        assert self.group.committed[topic_id, 0].offset == offset
        if before is not None:
            assert self.group.owners[topic_id, 0].fence > before.fence

    @rule(offset=st.integers(0, 20))
    def resolve(self, offset) -> None:
        """The starts of partitions without a committed offset become known."""
        waiting = dict(self.history.unresolved)
        before = set(self.group.committed)
        self.history.resolve(offset)
        for key in waiting:
            if key in self.group.committed and key not in before:
                assert self.group.committed[key].offset == offset

    # --- topics and the group

    @rule(name=st.sampled_from(NAMES))
    def grow_topic(self, name) -> None:
        topic = self.history.topics.get(name)
        if topic is not None and topic.partition_count < 6:
            self.history.topics[name] = Topic(name, topic.topic_id, topic.partition_count + 1)
            self._topics_changed()

    @rule(name=st.sampled_from(NAMES))
    def delete_or_create_topic(self, name) -> None:
        topic = self.history.topics.pop(name, None)
        if topic is None:
            self._create(name, 2)
        else:
            self.may_go_back = True
            self.history.write(offsets.decide_topic_deleted(self.group, {topic.topic_id}))
            for client in self.clients:
                client.held = {key: fence for key, fence in client.held.items() if key[0] != topic.topic_id}
        self._topics_changed()

    def _topics_changed(self) -> None:
        self.history.write(membership.decide_new_epoch(self.group, now_us=self.history.now_us))
        if self.group.exists:
            self.history.settle()

    @rule()
    def delete_group(self) -> None:
        if not self.group.exists:
            return
        if self.group.members:
            with pytest.raises(PostbusError):
                offsets.decide_delete(self.group)
            return
        self.may_go_back = True
        self.history.write(offsets.decide_delete(self.group))
        assert self.group.facts() == Group("g").facts()
        self.history.group = Group("g")
        self.history.unresolved = {}

    @rule()
    def restart(self) -> None:
        """The coordinator starts again from its table; members go on."""
        self.history.group = self.history.from_table()
        if self.group.exists:
            self.history.settle()

    @precondition(lambda self: self.clients)
    @rule()
    def all_is_quiet(self) -> None:
        """Once members only do as they are told, all that somebody wants is owned, evenly, and nothing moves on."""
        for _ in range(4):
            self.history.resolve()
            for client in self.clients:
                self._heartbeat(client, obeys=True)
        assert self.group.state == group_pb2.GROUP_STATE_STABLE
        wanted = {name for client in self.clients for name in client.topics} & self.history.topics.keys()
        topics = [self.history.topics[name] for name in wanted]
        partitions = {(topic.topic_id, number) for topic in topics for number in range(topic.partition_count)}
        held = Counter(key for client in self.clients for key in client.held)
        assert held == Counter(partitions)
        for client in self.clients:
            for other in self.clients:
                if set(client.topics) & wanted == set(other.topics) & wanted:
                    assert abs(len(client.held) - len(other.held)) <= 1
        end = len(self.history.log)
        for client in self.clients:
            self._heartbeat(client, obeys=True)
        assert len(self.history.log) == end

    # --- what always holds

    @invariant()
    def nobody_shares_a_partition(self) -> None:
        held = Counter(key for client in self.clients for key in client.held)
        assert not [key for key, count in held.items() if count > 1]

    @invariant()
    def every_client_is_a_member(self) -> None:
        assert {client.member_id for client in self.clients} == set(self.group.members)

    @invariant()
    def one_member_an_instance(self) -> None:
        instances = [member.instance_id for member in self.group.members.values() if member.instance_id]
        assert len(instances) == len(set(instances))

    @invariant()
    def committed_only_grows(self) -> None:
        committed = {key: value.offset for key, value in self.group.committed.items()}
        if not self.may_go_back:
            for key, offset in self.committed_before.items():
                assert committed.get(key, -1) >= offset
        self.committed_before = committed
        self.may_go_back = False

    @invariant()
    def log_and_table_give_the_same_state(self) -> None:
        assert self.history.replayed().facts() == self.group.facts()
        assert self.history.from_table().facts() == self.group.facts()


GroupMachine.TestCase.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)
TestGroup = GroupMachine.TestCase


# --- single promises


def joined(history: History, new_member_id: str, *topics: str, **fields) -> str:
    call = HeartbeatCall(group="g", topics=topics, **fields)
    decided = membership.decide_join(history.group, call, new_member_id=new_member_id, now_us=1)
    history.write(decided.records)
    history.settle(released=decided.released)
    return decided.member.member_id


def test_the_resolved_start_is_committed_before_anybody_owns_the_partition() -> None:
    """Otherwise LATEST would pass over records when a member dies before its first acknowledgement."""
    history = History()
    history.topics["a"] = Topic("a", "a-1", 1)
    joined(history, "m1", "a")
    assert not history.group.owners
    history.resolve(7)
    assert history.group.committed["a-1", 0].offset == 7
    kinds = [records.decode(key, value).kind for key, value in history.log[1:]]
    assert kinds.index(records.OFFSET) < kinds.index(records.OWNER)


def test_partitions_added_later_start_at_the_earliest() -> None:
    """Whatever the member asked for: records may have come before the group noticed."""
    latest = subscriber_pb2.StartPosition(edge=subscriber_pb2.LOG_EDGE_LATEST)
    history = History()
    history.topics["a"] = Topic("a", "a-1", 1)
    joined(history, "m1", "a", start_at={"a": latest})
    assert history.unresolved == {("a-1", 0): latest.SerializeToString()}
    history.resolve(7)
    history.topics["a"] = Topic("a", "a-1", 2)
    history.write(membership.decide_new_epoch(history.group, now_us=1))
    history.settle()
    assert history.unresolved == {("a-1", 1): b""}


def test_the_start_is_the_groups_then_exact_then_the_selectors() -> None:
    """Order of precedence, where nothing is committed."""
    latest = subscriber_pb2.StartPosition(edge=subscriber_pb2.LOG_EDGE_LATEST)
    ago = subscriber_pb2.StartPosition(last_records=3)
    history = History()
    history.topics["a"] = Topic("a", "a-1", 2)
    joined(history, "m1", "a", start_at={"a": latest}, start_positions={("a", 1): 42})
    exact = subscriber_pb2.StartPosition(offset=42).SerializeToString()
    assert history.unresolved == {("a-1", 0): latest.SerializeToString(), ("a-1", 1): exact}
    config = group_pb2.GroupConfig(start_at=ago).SerializeToString()
    history.write([Record("g", records.SETTINGS, records.Settings(config, history.group.group_epoch))])
    history.settle()
    assert set(history.unresolved.values()) == {ago.SerializeToString()}


def test_a_member_that_left_may_still_commit_until_somebody_else_owns_the_partition() -> None:
    """Unary Acknowledge after the stream; the next owner's fence ends it."""
    history = History()
    history.topics["a"] = Topic("a", "a-1", 1)
    joined(history, "m1", "a")
    history.resolve()
    fence = history.group.owners["a-1", 0].fence
    history.write(membership.decide_removal(history.group, "m1", now_us=2))
    history.settle()
    entry = CommitEntry("a-1", 0, 5, fence)
    late = offsets.decide_commit(history.group, "m1", [entry], now_us=3)
    assert late.outcomes == [None]
    history.write(late.records)
    joined(history, "m2", "a")
    too_late = offsets.decide_commit(history.group, "m1", [CommitEntry("a-1", 0, 9, fence)], now_us=4)
    assert too_late.outcomes[0] is not None
    (assigned,) = history.group.usable("m2", durable_end=len(history.log))
    assert assigned.offset == 5


def owned_by_one(history: History) -> int:
    """A group of one member that owns the only partition; its fence."""
    history.topics["a"] = Topic("a", "a-1", 1)
    joined(history, "m1", "a")
    history.resolve()
    return history.group.owners["a-1", 0].fence


def test_a_commit_under_an_old_fence_of_the_same_member_is_stale() -> None:
    """After a seek, what was sent before it no longer counts."""
    history = History()
    fence = owned_by_one(history)
    history.write(offsets.decide_seek(history.group, "m1", ("a-1", 0), 3, fence=fence, now_us=1))
    (outcome,) = offsets.decide_commit(history.group, "m1", [CommitEntry("a-1", 0, 9, fence)], now_us=1).outcomes
    assert outcome is not None
    assert outcome.reason == Reason.ERROR_REASON_ASSIGNMENT_LOST


def test_an_older_offset_under_the_same_fence_is_done_already() -> None:
    """Answered well, changes nothing."""
    history = History()
    fence = owned_by_one(history)
    history.write(offsets.decide_commit(history.group, "m1", [CommitEntry("a-1", 0, 9, fence)], now_us=1).records)
    again = offsets.decide_commit(history.group, "m1", [CommitEntry("a-1", 0, 4, fence)], now_us=1)
    assert (again.outcomes, again.records) == ([None], [])


def test_a_late_commit_does_not_undo_a_reset() -> None:
    """Moving offsets from outside ends the fences of members that are gone."""
    history = History()
    fence = owned_by_one(history)
    history.write(membership.decide_removal(history.group, "m1", now_us=2))
    history.settle()
    history.write(offsets.decide_reset(history.group, {("a-1", 0): 2}, now_us=3))
    (outcome,) = offsets.decide_commit(history.group, "m1", [CommitEntry("a-1", 0, 9, fence)], now_us=4).outcomes
    assert outcome is not None
    assert history.group.committed["a-1", 0].offset == 2


def test_coming_back_takes_everything_anew() -> None:
    """The same member, a higher epoch, new fences from the committed offset; its earlier self is replaced."""
    history = History()
    fence = owned_by_one(history)
    history.write(offsets.decide_commit(history.group, "m1", [CommitEntry("a-1", 0, 9, fence)], now_us=1).records)
    assert joined(history, "m2", "a", member_id="m1") == "m1"
    (assigned,) = history.group.usable("m1", durable_end=len(history.log))
    assert assigned.offset == 9
    assert assigned.fence > fence
    with pytest.raises(PostbusError) as error:
        history.group.check_member("m1", 1)
    assert error.value.reason == Reason.ERROR_REASON_MEMBER_REPLACED


def test_a_static_member_comes_back_by_its_instance_alone() -> None:
    """A restarted process does not know its member id."""
    history = History()
    history.topics["a"] = Topic("a", "a-1", 2)
    joined(history, "m1", "a", instance_id="i")
    history.resolve()
    assert joined(history, "m2", "a", instance_id="i") == "m1"
    assert set(history.group.members) == {"m1"}
    assert len(history.group.usable("m1", durable_end=len(history.log))) == 2


def test_offsets_expire_thirty_days_after_the_last_member_left() -> None:
    """Not earlier; with them the group, unless it has settings."""
    day_us = 24 * 3600 * 1_000_000
    history = History()
    history.topics["a"] = Topic("a", "a-1", 1)
    joined(history, "m1", "a")
    history.resolve()
    expire = {"retention_us_default": 30 * day_us}
    assert offsets.decide_expiry(history.group, now_us=99 * day_us, **expire) == []
    history.write(membership.decide_removal(history.group, "m1", now_us=day_us))
    history.settle()
    assert offsets.decide_expiry(history.group, now_us=31 * day_us - 1, **expire) == []
    assert offsets.decide_expiry(history.group, now_us=99 * day_us, retention_us_default=None) == []
    history.write(offsets.decide_expiry(history.group, now_us=31 * day_us, **expire))
    assert history.group.facts() == Group("g").facts()


def test_a_new_member_takes_over_only_what_was_given_up() -> None:
    """Three of six partitions move, each only after its owner reported without it; the others never stop."""
    history = History()
    history.topics["a"] = Topic("a", "a-1", 6)
    joined(history, "m1", "a")
    history.resolve()
    before = dict(history.group.owners)
    joined(history, "m2", "a")
    assert history.group.owners == before
    assert len(history.group.revoking("m1")) == 3
    first = history.group.revoking("m1")[0]
    call = HeartbeatCall(group="g", member_id="m1", member_epoch=1, owned=frozenset(before) - {first})
    stayed = membership.decide_heartbeat(history.group, call, now_us=1)
    assert stayed.released == {first}
    history.settle(released=stayed.released)
    assert history.group.owners[first].member_id == "m2"
    assert {key for key, owner in history.group.owners.items() if owner != before[key]} == {first}
