"""Coordinators that move from node to node: members keep what they have, and nothing that was answered is lost."""

import asyncio
from typing import Any

import pytest
from group_cluster import Agent, Cluster, refusal, simulate
from group_fakes import FakeTopics, SharedLog
from postbus.v1 import group_pb2
from sim_loop import SimLoop

from broker.errors import PostbusError, Reason
from broker.groups.calls import CommitEntry, HeartbeatCall, maybe_done
from broker.groups.journal import Journal
from broker.storage.errors import LogCorrupt


def new_cluster(loop: SimLoop, *, logs: int = 1, **options: Any) -> Cluster:
    topics = FakeTopics()
    topics.create("a", 4)
    topics.leads_all = False
    return Cluster(loop, [SharedLog(number) for number in range(logs)], topics, **options)


async def offsets_of(cluster: Cluster, node_id: int) -> dict[int, int]:
    found = await cluster[node_id].client.committed_offsets("g")
    return {described.partition: described.offset for described in found}


def test_members_keep_their_partitions_when_the_coordinator_moves() -> None:
    """Same fences, same member ids, no error; commits go on, and nobody else gets anything."""

    async def scenario(loop: SimLoop) -> None:
        cluster = new_cluster(loop)
        agents = await cluster.agents(1, 2, 3)
        before = [(agent.member_id, dict(agent.held)) for agent in agents]
        for leader_id in (2, 3, 1, 1):
            cluster.logs[0].move(leader_id)
            await asyncio.gather(*(agent.commit(10 * leader_id) for agent in agents))
            await asyncio.sleep(20)
        assert [(agent.member_id, agent.held) for agent in agents] == before
        assert not any(agent.failure for agent in agents)
        assert await offsets_of(cluster, 3) == dict.fromkeys(range(4), 30)

    simulate(scenario)


@pytest.mark.parametrize("keep", [0, 1, None])
def test_a_move_at_any_moment_loses_nothing_that_was_answered(keep: int | None) -> None:
    """Members join, commit and leave while the leader changes after every number of steps; with the tail or without.

    No offset that was said to be committed goes back, no fence has two owners or is smaller than the one before.
    """

    async def moved_after(loop: SimLoop, steps: int) -> None:
        cluster = new_cluster(loop)
        log = cluster.logs[0]
        agents = [Agent(cluster, node_id) for node_id in (1, 2, 3)]

        async def life(agent: Agent, offset: int) -> None:
            await agent.join()
            for number in range(3):
                await agent.commit(offset + number)

        lives = [asyncio.ensure_future(life(agent, 10 * at)) for at, agent in enumerate(agents, 1)]
        await loop.steps(steps)
        log.move(None, keep=keep)
        await loop.steps(steps % 7)
        log.move(2 + steps % 2)
        await loop.steps(3 * steps)
        log.move(1, keep=keep)
        await asyncio.gather(*lives)
        await asyncio.sleep(12)
        group = await cluster[2].client.get_group("g")
        assert {member.member_id for member in group.members} == {agent.member_id for agent in agents}
        held = [key for agent in agents for key in agent.held]
        assert sorted(key[1] for key in held) == [0, 1, 2, 3]
        assert not any(agent.failure for agent in agents)
        committed = {described.partition: described.offset for described in group.offsets}
        for key, offset in cluster.facts.acknowledged.items():
            assert committed[key[1]] >= offset, f"{steps}: {key} is at {committed[key[1]]}, {offset} was acknowledged"

    for steps in range(keep or 0, 240, 5):
        simulate(lambda loop, steps=steps: moved_after(loop, steps))  # type: ignore[misc]


def test_a_commit_waits_out_an_election() -> None:
    """And is at the new coordinator afterwards; without a leader for long it is UNAVAILABLE."""

    async def scenario(loop: SimLoop) -> None:
        cluster = new_cluster(loop)
        (agent,) = await cluster.agents(3)
        cluster.logs[0].move(None)
        began = loop.now
        committing = asyncio.ensure_future(agent.commit(7))
        await asyncio.sleep(3)
        assert not committing.done()
        cluster.logs[0].move(2)
        await committing
        assert loop.now - began < 3.1
        assert (await offsets_of(cluster, 1))[0] == 7
        cluster.logs[0].move(None)
        began = loop.now
        assert (await refusal(agent.commit(8))).reason_name == "NO_LEADER"
        assert 9 < loop.now - began <= 10

    simulate(scenario)


def test_a_new_coordinator_answers_nothing_before_all_it_found_is_safe() -> None:
    """What its predecessor appended last may be told to nobody yet, but no decision may ignore it."""

    async def scenario(loop: SimLoop) -> None:
        cluster = new_cluster(loop)
        (agent,) = await cluster.agents(2)
        log = cluster.logs[0]
        log.sync_by_itself = False
        committing = asyncio.ensure_future(agent.commit(5))
        await asyncio.sleep(0.1)
        log.move(2)
        asking = asyncio.ensure_future(offsets_of(cluster, 3))
        await asyncio.sleep(1)
        assert not asking.done()
        assert not committing.done()
        log.sync_by_itself = True
        log.sync()
        assert (await asking)[0] == 5
        await committing

    simulate(scenario)


def test_what_the_next_leader_makes_safe_says_nothing_of_what_this_one_wrote() -> None:
    """Its records may stand at the same offsets."""

    async def scenario(loop: SimLoop) -> None:
        log = SharedLog()
        log.sync_by_itself = False
        journal = Journal(log.on(1), call_later=loop.call_later)
        journal.write(b"key", b"value")
        waiting = asyncio.ensure_future(journal.durable())
        await asyncio.sleep(1)
        log.move(2, keep=0)
        Journal(log.on(2), call_later=loop.call_later).write(b"other", b"value")
        await asyncio.sleep(1)
        log.sync()
        await asyncio.sleep(1)
        assert journal.durable_end_offset == 0
        assert not waiting.done()
        journal.close()
        assert maybe_done(await refusal(waiting))

    simulate(scenario)


def test_a_large_log_is_loaded_in_slices() -> None:
    """Other work goes on meanwhile, and callers wait."""

    async def scenario(loop: SimLoop) -> None:
        cluster = new_cluster(loop)
        await cluster.agents(1)
        log = cluster.logs[0]
        await asyncio.gather(*(cluster[1].client.create_group(f"g{n}", group_pb2.GroupConfig()) for n in range(2_000)))
        log.move(2)
        turns = 0
        asking = asyncio.ensure_future(cluster[2].client.get_group("g1999"))
        while not asking.done():
            await asyncio.sleep(0)
            turns += 1
        assert (await asking).coordinator_node_id == 2
        assert turns > 100

    simulate(scenario)


def test_a_log_that_can_not_be_read_is_read_again() -> None:
    """Its coordinator serves as soon as it can."""

    async def scenario(loop: SimLoop) -> None:
        cluster = new_cluster(loop)
        (agent,) = await cluster.agents(3)
        view = cluster.logs[0].on(2)
        view.failing = LogCorrupt(1, 0, "says the test")
        cluster.logs[0].move(2)
        committing = asyncio.ensure_future(agent.commit(5))
        await asyncio.sleep(3)
        assert not committing.done()
        view.failing = None
        await committing
        assert view.reads > 2

    simulate(scenario)


def test_partitions_of_a_node_that_vanished_pass_on_after_its_patience() -> None:
    """Not before ten seconds, and not much later; sooner once the cluster says that the node is dead."""

    async def scenario(loop: SimLoop) -> None:
        for fenced in (False, True):
            cluster = new_cluster(loop)
            kept, lost = await cluster.agents(1, 3)
            assert len(kept.held) == 2
            cluster.network.hung.add(3)
            # No link is seen to break: the host is gone without a word.
            lost.vanish()
            cluster[3].client.close()
            if fenced:
                cluster[1].watches.node_fenced(3)
            await asyncio.sleep(9.9)
            assert len(kept.held) == 2
            await asyncio.sleep(0.3 if fenced else 5.5)
            assert len(kept.held) == 4

    simulate(scenario)


def test_a_member_resumes_on_another_node() -> None:
    """Within the ten seconds after its node went it is the same member with the same partitions."""

    async def scenario(loop: SimLoop) -> None:
        cluster = new_cluster(loop)
        _, lost = await cluster.agents(1, 3)
        cluster.cut(3)
        lost.vanish()
        await asyncio.sleep(8)
        resumed = Agent(cluster, 2)
        resumed.member_id = lost.member_id
        await resumed.join()
        assert resumed.member_id == lost.member_id
        assert set(resumed.held) == set(lost.held)
        await asyncio.sleep(20)
        group = await cluster[1].client.get_group("g")
        assert len(group.members) == 2
        assert {member.node_id for member in group.members} == {1, 2}

    simulate(scenario)


def test_a_link_that_breaks_costs_no_member_anything() -> None:
    """They are attached again; what changed meanwhile they hear then."""

    async def scenario(loop: SimLoop) -> None:
        cluster = new_cluster(loop)
        first, second = await cluster.agents(2, 3)
        before = dict(first.held)
        cluster.cut(3)
        await asyncio.sleep(4)
        assert not second.failure
        third = Agent(cluster, 1)
        await third.join()
        cluster.heal()
        await asyncio.sleep(20)
        assert not second.failure
        assert sorted(len(agent.held) for agent in (first, second, third)) == [1, 1, 2]
        assert set(first.held.items()) <= set(before.items())

    simulate(scenario)


def test_a_stream_that_ends_is_told_across_nodes() -> None:
    """Half a second later its partitions pass on."""

    async def scenario(loop: SimLoop) -> None:
        cluster = new_cluster(loop)
        kept, gone = await cluster.agents(2, 3)
        gone.vanish()
        gone.node.client.unwatch("g", gone.member_id, gone._attention.set)
        gone.node.client.disconnected("g", gone.member_id, gone.member_epoch)
        await asyncio.sleep(0.7)
        assert len(kept.held) == 4

    simulate(scenario)


def test_nothing_is_missed_between_a_reply_and_a_watch_across_nodes() -> None:
    """What happened since the member's last heartbeat is told to whoever begins to watch, a second one too."""

    async def scenario(loop: SimLoop) -> None:
        cluster = new_cluster(loop)
        client = cluster[2].client
        reply = await client.heartbeat(HeartbeatCall(group="g", topics=("a",), stream=True))
        await Agent(cluster, 3).join()
        heard: list[str] = []
        client.watch("g", reply.member_id, lambda: heard.append("first"))
        await asyncio.sleep(0.1)
        assert heard == ["first"]
        client.watch("g", reply.member_id, lambda: heard.append("second"))
        await asyncio.sleep(0.1)
        assert "second" in heard

    simulate(scenario)


def test_members_of_one_node_cost_one_call_not_one_each() -> None:
    """A hundred members that nothing happens to: a long poll every two seconds."""

    async def scenario(loop: SimLoop) -> None:
        cluster = new_cluster(loop)
        await asyncio.gather(*(Agent(cluster, 3, group=f"g{number}").join() for number in range(100)))
        await asyncio.sleep(5)
        cluster.network.asked.clear()
        await asyncio.sleep(60)
        assert dict(cluster.network.asked) == {(3, 1, "group.changes"): 30}

    simulate(scenario)


def test_a_join_whose_answer_is_lost_makes_one_member() -> None:
    """It is repeated under the same name."""

    async def scenario(loop: SimLoop) -> None:
        cluster = new_cluster(loop)
        cluster.network.lose_answers["group.heartbeat"] = 3
        await cluster.agents(2)
        (agent,) = cluster.joined
        assert agent.member_epoch == 1
        assert [member.member_id for member in (await cluster[1].client.get_group("g")).members] == [agent.member_id]

    simulate(scenario)


def test_a_join_that_comes_late_a_second_time_shuts_nobody_out() -> None:
    """Neither a new member nor a static one that came back: the same call is one join."""

    async def scenario(loop: SimLoop) -> None:
        cluster = new_cluster(loop)
        for instance_id in ("", "i", "i"):
            join = HeartbeatCall(group="g", topics=("a",), stream=True, instance_id=instance_id, join_id=f"j{loop.now}")
            coordinator = cluster[1].coordinators.serving(0) or await cluster[1].coordinators.of_number(0)
            first = await coordinator.heartbeat(join)
            late = await coordinator.heartbeat(join)
            assert (late.member_id, late.member_epoch) == (first.member_id, first.member_epoch)
            assert late.target == first.target
            await asyncio.sleep(1)

    simulate(scenario)


def test_members_stay_while_their_new_coordinator_loads() -> None:
    """However long that takes: they are watched from the moment that it knows them."""

    async def scenario(loop: SimLoop) -> None:
        cluster = new_cluster(loop)
        agents = await cluster.agents(1, 2, 3)
        before = [dict(agent.held) for agent in agents]
        log = cluster.logs[0]
        log.sync_by_itself = False
        committing = asyncio.ensure_future(agents[0].commit(5))
        await asyncio.sleep(0.01)
        log.move(2)
        await asyncio.sleep(8)
        log.sync_by_itself = True
        log.sync()
        await committing
        await asyncio.sleep(30)
        assert [agent.held for agent in agents] == before
        assert not any(agent.failure for agent in agents)

    simulate(scenario)


def test_a_join_that_nobody_waits_for_any_more_leaves_no_member() -> None:
    """Its node says so."""

    async def scenario(loop: SimLoop) -> None:
        cluster = new_cluster(loop)
        cluster.logs[0].sync_by_itself = False
        joining = asyncio.ensure_future(Agent(cluster, 2).join())
        await asyncio.sleep(0.1)
        joining.cancel()
        cluster.logs[0].sync_by_itself = True
        cluster.logs[0].sync()
        await asyncio.sleep(0.1)
        assert len((await cluster[1].client.get_group("g")).members) == 1
        await asyncio.sleep(0.6)
        assert not (await cluster[1].client.get_group("g")).members

    simulate(scenario)


def test_a_seek_whose_answer_is_lost_is_done_once() -> None:
    """The second answer is the first one's."""

    async def scenario(loop: SimLoop) -> None:
        cluster = new_cluster(loop)
        (agent,) = await cluster.agents(2)
        key, fence = min(agent.held.items())
        cluster.network.lose_answers["group.seek"] = 2
        moved = await cluster[2].client.seek("g", agent.member_id, *key, 42, fence)
        assert (moved.offset, moved.fence > fence) == (42, True)
        await asyncio.sleep(1)
        assert agent.held[key] in {fence, moved.fence}
        error = await refusal(cluster[2].client.seek("g", agent.member_id, *key, 41, fence))
        assert error.reason_name == "ASSIGNMENT_LOST"

    simulate(scenario)


def test_what_must_not_be_done_twice_has_an_unknown_outcome() -> None:
    """DEADLINE_EXCEEDED; what was not done at all is tried again."""

    async def scenario(loop: SimLoop) -> None:
        cluster = new_cluster(loop)
        client = cluster[2].client
        cluster.network.lose_answers["group.create"] = 1
        error = await refusal(client.create_group("x", group_pb2.GroupConfig()))
        assert (error.reason_name, error.kind.outcome_unknown) == ("TIMEOUT", True)
        assert (await client.get_group("x")).name == "x"
        cluster.logs[0].move(None)
        creating = asyncio.ensure_future(client.create_group("y", group_pb2.GroupConfig()))
        await asyncio.sleep(2)
        cluster.logs[0].move(3)
        assert (await creating).coordinator_node_id == 3

    simulate(scenario)


def test_a_call_to_a_coordinator_that_hangs_goes_to_the_next_one() -> None:
    """As soon as another node leads, not when the call's time is over."""

    async def scenario(loop: SimLoop) -> None:
        cluster = new_cluster(loop)
        (agent,) = await cluster.agents(2)
        cluster.network.hung.add(1)
        committing = asyncio.ensure_future(agent.commit(5))
        await asyncio.sleep(1)
        assert not committing.done()
        cluster.logs[0].move(3)
        began = loop.now
        await committing
        assert loop.now - began < 0.5

    simulate(scenario)


def test_no_call_is_without_an_end() -> None:
    """The log takes nothing: each call is refused in its time, and says why if it did not begin."""

    async def scenario(loop: SimLoop) -> None:
        cluster = new_cluster(loop)
        (agent,) = await cluster.agents(1)
        cluster.logs[0].sync_by_itself = False
        for node_id in (1, 2):
            client, began = cluster[node_id].client, loop.now
            join = HeartbeatCall(group="g", topics=("a",))
            assert (await refusal(client.heartbeat(join, timeout_s=3))).reason_name == "NO_LEADER"
            assert 2.5 < loop.now - began < 3.1
            entry = CommitEntry(*min(agent.held), 9, min(agent.held.items())[1])
            error = await refusal(client.commit("g", agent.member_id, [entry], timeout_s=3))
            assert error.reason_name == "NO_LEADER"
            error = await refusal(client.delete_group("g", timeout_s=3))
            assert error.reason_name in {"TIMEOUT", "GROUP_NOT_EMPTY"}
            assert loop.now - began < 9.3
        cluster.logs[0].unwritable = PostbusError(Reason.ERROR_REASON_NOT_ENOUGH_REPLICAS, "1 of 2")
        error = await refusal(cluster[3].client.create_group("x", group_pb2.GroupConfig(), timeout_s=3))
        assert (error.reason_name, error.message) == ("NOT_ENOUGH_REPLICAS", "1 of 2")

    simulate(scenario)


def test_a_leader_that_lost_touch_answers_nothing() -> None:
    """Another one may lead by now: what it knows may be old."""

    async def scenario(loop: SimLoop) -> None:
        cluster = new_cluster(loop)
        await cluster.agents(1)
        cluster.logs[0].unwritable = PostbusError(Reason.ERROR_REASON_NO_LEADER, "lost touch")
        for ask in (cluster[1].client.get_group("g", timeout_s=1), cluster[1].client.committed_offsets("g")):
            assert (await refusal(ask)).message == "lost touch"

    simulate(scenario)


def test_groups_of_all_coordinators_are_listed_by_name() -> None:
    """Each page in order, none twice, none missing; one that does not answer makes the list UNAVAILABLE."""

    async def scenario(loop: SimLoop) -> None:
        cluster = new_cluster(loop, logs=5)
        for number, log in enumerate(cluster.logs):
            log.move(1 + number % 3)
        names = [*sorted(f"g{number}" for number in range(50)), "other"]
        for name in names:
            await cluster[2].client.create_group(name, group_pb2.GroupConfig())
        nodes = {(await cluster[1].client.get_group(name)).coordinator_node_id for name in names}
        assert nodes == {1, 2, 3}
        for page_size in (1, 7, 50, 100):
            found: list[str] = []
            token = ""
            while True:
                page, token = await cluster[3].client.list_groups(page_size=page_size, page_token=token, prefix="g")
                assert len(page) <= page_size
                found += [group.name for group in page]
                if not token:
                    break
            assert found == names[:-1]
        cluster.logs[2].move(None)
        assert (await refusal(cluster[3].client.list_groups())).reason_name == "NO_LEADER"

    simulate(scenario)


def test_groups_of_a_node_are_counted_over_its_logs() -> None:
    """Samples of all that it coordinates, and of nothing that it does not."""

    async def scenario(loop: SimLoop) -> None:
        cluster = new_cluster(loop, logs=3)
        for number in range(9):
            await cluster[1].client.create_group(f"g{number}", group_pb2.GroupConfig())
        assert len(list(cluster[1].coordinators.samples())) == 9
        cluster.logs[0].move(2)
        await cluster[2].coordinators.settled()
        counts = [len(list(cluster[node_id].coordinators.samples())) for node_id in (1, 2)]
        assert sum(counts) == 9
        assert all(counts)

    simulate(scenario)
