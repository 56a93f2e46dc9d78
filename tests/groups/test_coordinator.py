"""A coordinator on a log in memory: membership, hand-off, offsets, restarts."""

import asyncio
from typing import Any

import pytest
from postbus.v1 import group_pb2, subscriber_pb2

from broker.errors import PostbusError, Reason
from broker.groups.calls import CommitEntry, HeartbeatCall, maybe_done
from broker.storage.errors import LogCorrupt

LATEST = subscriber_pb2.StartPosition(edge=subscriber_pb2.LOG_EDGE_LATEST)


def numbers(reply) -> list[int]:
    return [assigned.partition for assigned in reply.target]


def entry(assigned, offset: int) -> CommitEntry:
    return CommitEntry(assigned.topic_id, assigned.partition, offset, assigned.fence)


async def turns() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


async def refused(awaitable, reason: str) -> PostbusError:
    with pytest.raises(PostbusError) as error:
        await awaitable
    assert error.value.reason_name == reason
    return error.value


# --- durable before told


async def test_a_member_is_told_nothing_that_is_not_durable(bench) -> None:
    """The answer waits for the fsync of the membership, the start and the owner."""
    bench.log.sync_by_itself = False
    joining = asyncio.create_task(bench.join())
    syncs = 0
    while True:
        await turns()
        if bench.log.high_watermark == bench.log.end_offset:
            break
        assert not joining.done()
        bench.log.sync()
        syncs += 1
    assert syncs >= 1
    reply = await asyncio.wait_for(joining, 1)
    assert numbers(reply) == [0, 1, 2, 3]
    assert all(0 < assigned.fence < bench.log.high_watermark for assigned in reply.target)


async def test_a_commit_answers_when_it_is_durable(bench) -> None:
    """Not before it is safe everywhere."""
    reply = await bench.join()
    bench.log.sync_by_itself = False
    committing = asyncio.create_task(bench.coordinator.commit("g", reply.member_id, [entry(reply.target[0], 5)]))
    await turns()
    assert not committing.done()
    bench.log.sync()
    assert await committing == [None]


async def test_all_that_happens_in_one_turn_is_one_append(bench) -> None:
    """Group commit: fifty members of fifty groups cost a few writes, not hundreds."""
    before = bench.log.appends
    await asyncio.gather(*(bench.join(group=f"g{number}") for number in range(50)))
    assert bench.log.appends - before <= 5


async def test_a_full_disk_delays_answers_and_loses_nothing(bench) -> None:
    """What was decided is appended when there is room again."""
    bench.log.refusal = PostbusError(Reason.ERROR_REASON_DISK_FULL, "full")
    joining = asyncio.create_task(bench.join())
    await bench.timers.advance(3)
    assert not joining.done()
    bench.log.refusal = None
    await bench.timers.advance(1)
    await turns()
    assert numbers(await asyncio.wait_for(joining, 1)) == [0, 1, 2, 3]
    await bench.restart()
    assert len((await bench.coordinator.get_group("g")).members) == 1


async def test_a_compacted_log_gives_the_same_groups(bench) -> None:
    """Gaps and all; and fences stay what they were."""
    reply = await bench.join()
    await bench.join(group="other")
    for offset in range(1, 30):
        await bench.coordinator.commit("g", reply.member_id, [entry(reply.target[0], offset)])
    other = bench.coordinator._driver.groups["other"]
    bench.coordinator._driver.remove(other, next(iter(other.members)))
    await turns()
    await bench.restart()
    facts = {name: group.facts() for name, group in bench.coordinator._driver.groups.items()}
    before = len(bench.log.records)
    bench.log.compact()
    assert len(bench.log.records) < before - 25
    await bench.restart()
    assert {name: group.facts() for name, group in bench.coordinator._driver.groups.items()} == facts
    assert facts["g"][4][reply.target[0].key].offset == 29  # type: ignore[index]


# --- joining, leaving, coming back


async def test_a_stream_that_breaks_has_half_a_second_to_resume(bench) -> None:
    """Within it the same member gets its partitions, under new fences, and nobody else does."""
    first = await bench.join()
    other = await bench.join()
    first = await bench.beat(first, 0, 1)
    bench.coordinator.disconnected("g", first.member_id, first.member_epoch)
    await bench.timers.advance(0.4)
    again = await bench.join(member_id=first.member_id)
    assert again.member_id == first.member_id
    assert again.member_epoch > first.member_epoch
    assert numbers(again) == numbers(first)
    assert all(new.fence > old.fence for new, old in zip(again.target, first.target, strict=True))
    await bench.timers.advance(10)
    assert len((await bench.coordinator.get_group("g")).members) == 2
    assert len((await bench.beat(other)).target) == 2


async def test_after_half_a_second_the_partitions_pass_on(bench) -> None:
    """The others hear of it by themselves, and the member that is too late is a new one."""
    first = await bench.join()
    other = await bench.join()
    await bench.beat(first, 0, 1)
    other = await bench.beat(other)
    assert len(other.target) == 2
    heard: list[bool] = []
    bench.coordinator.watch("g", other.member_id, lambda: heard.append(True))
    bench.coordinator.disconnected("g", first.member_id, first.member_epoch)
    await bench.timers.advance(0.6)
    assert heard
    assert numbers(await bench.beat(other)) == [0, 1, 2, 3]
    late = await bench.join(member_id=first.member_id)
    assert late.member_id != first.member_id


async def test_the_end_of_an_old_stream_does_not_touch_the_new_one(bench) -> None:
    """`disconnected` with the epoch before the resumption means nothing."""
    first = await bench.join()
    await bench.join(member_id=first.member_id)
    bench.coordinator.disconnected("g", first.member_id, first.member_epoch)
    await bench.timers.advance(60)
    assert len((await bench.coordinator.get_group("g")).members) == 1


async def test_a_join_that_nobody_waits_for_leaves_no_member(bench) -> None:
    """A call cancelled before its answer would otherwise hold partitions for ever."""
    bench.log.sync_by_itself = False
    joining = asyncio.create_task(bench.join())
    await turns()
    joining.cancel()
    await turns()
    bench.log.sync_by_itself = True
    bench.log.sync()
    assert len((await bench.coordinator.get_group("g")).members) == 1
    await bench.timers.advance(0.6)
    assert not (await bench.coordinator.get_group("g")).members


async def test_leaving_frees_the_partitions_at_once(bench) -> None:
    """For a static member too."""
    first = await bench.join(instance_id="i")
    other = await bench.join()
    await bench.beat(first, 0, 1, instance_id="i")
    left = await bench.coordinator.heartbeat(
        HeartbeatCall(group="g", member_id=first.member_id, member_epoch=1, instance_id="i", leave=True)
    )
    assert left.target == ()
    assert numbers(await bench.beat(other)) == [0, 1, 2, 3]
    again = HeartbeatCall(group="g", member_id=first.member_id, member_epoch=1, leave=True)
    assert (await bench.coordinator.heartbeat(again)).target == ()


async def test_a_static_member_keeps_its_partitions_for_its_timeout(bench) -> None:
    """44 seconds after it dropped they are still its own; after 46 they are not."""
    first = await bench.join(instance_id="i")
    other = await bench.join()
    await bench.beat(first, 0, 1, instance_id="i")
    bench.coordinator.disconnected("g", first.member_id, first.member_epoch)
    await bench.timers.advance(44)
    assert len((await bench.beat(other)).target) == 2
    await bench.timers.advance(2)
    assert len((await bench.beat(other)).target) == 4


async def test_of_two_with_one_instance_id_the_newer_wins(bench) -> None:
    """The older one hears of it, is told MEMBER_REPLACED, and its commits are stale; nothing moves to others."""
    first = await bench.join(instance_id="i")
    heard: list[bool] = []
    bench.coordinator.watch("g", first.member_id, lambda: heard.append(True))
    second = await bench.join(instance_id="i")
    assert heard
    assert second.member_id == first.member_id
    assert numbers(second) == numbers(first)
    await refused(bench.beat(first, 0, instance_id="i"), "MEMBER_REPLACED")
    (stale,) = await bench.coordinator.commit("g", first.member_id, [entry(first.target[0], 5)])
    assert stale.reason_name == "ASSIGNMENT_LOST"
    assert await bench.coordinator.commit("g", second.member_id, [entry(second.target[0], 5)]) == [None]


async def test_a_member_that_is_gone_is_told_to_join_again(bench) -> None:
    """ABORTED: start over."""
    first = await bench.join()
    bench.coordinator.disconnected("g", first.member_id, first.member_epoch)
    await bench.timers.advance(1)
    await refused(bench.beat(first, 0), "ASSIGNMENT_LOST")


async def test_members_without_a_stream_live_by_their_heartbeats(bench) -> None:
    """Gone 45 seconds after the last one; a stream has no such timeout."""
    stream = await bench.join()
    poller = await bench.join(stream=False)
    for _ in range(4):
        await bench.timers.advance(40)
        await bench.beat(poller, stream=False)
    assert len((await bench.coordinator.get_group("g")).members) == 2
    await bench.timers.advance(46)
    (left,) = (await bench.coordinator.get_group("g")).members
    assert left.member_id == stream.member_id


# --- hand-off


async def test_a_partition_passes_on_only_when_its_holder_reports_without_it(bench) -> None:
    """Until then the newcomer has nothing; the rest of the first one's partitions is not touched."""
    first = await bench.join()
    heard: list[bool] = []
    bench.coordinator.watch("g", first.member_id, lambda: heard.append(True))
    second = await bench.join()
    assert second.target == ()
    assert heard
    kept = await bench.beat(first, 0, 1, 2, 3)
    assert len(kept.target) == 2
    assert (await bench.beat(second)).target == ()
    given = {0, 1, 2, 3} - set(numbers(kept))
    one = given.pop()
    await bench.beat(first, *numbers(kept), one)
    assert numbers(await bench.beat(second)) == list(given)
    await bench.beat(first, *numbers(kept))
    assert set(numbers(await bench.beat(second))) == given | {one}
    fences = {assigned.key: assigned.fence for assigned in first.target}
    assert all(fences[assigned.key] == assigned.fence for assigned in kept.target)


async def test_members_that_join_at_the_same_time_share_at_once(bench) -> None:
    """What the first was given and has to give up before it was told passes on by itself."""
    bench.log.sync_by_itself = False
    joining = asyncio.create_task(bench.join())
    await turns()
    joining_too = asyncio.create_task(bench.join())
    await turns()
    bench.log.sync_by_itself = True
    bench.log.sync()
    first, second = await asyncio.wait_for(joining, 1), await asyncio.wait_for(joining_too, 1)
    await turns()
    second = await bench.beat(second, *numbers(second))
    assert sorted(numbers(first) + numbers(second)) == [0, 1, 2, 3]
    assert len(numbers(first)) == len(numbers(second)) == 2


async def test_nothing_is_missed_between_the_reply_and_the_watch(bench) -> None:
    """A change in that moment is told when the watch begins; without one nothing is."""
    first = await bench.join()
    heard: list[str] = []
    bench.coordinator.watch("g", first.member_id, lambda: heard.append("quiet"))
    await turns()
    assert heard == []
    second = await bench.join()
    third = await bench.join()
    del third
    heard.clear()
    bench.coordinator.watch("g", first.member_id, lambda: heard.append("told"))
    await turns()
    assert heard == ["told"]
    bench.coordinator.watch("g", "nobody", lambda: heard.append("gone"))
    await turns()
    assert heard == ["told", "gone"]
    del second


async def test_what_a_member_without_a_stream_does_not_give_up_is_taken(bench) -> None:
    """After its processing timeout: lost to it, and its late commits do not count."""
    first = await bench.join(stream=False, processing_timeout_ms=10_000)
    second = await bench.join()
    await bench.timers.advance(9)
    kept = await bench.beat(first, 0, 1, 2, 3, stream=False)
    assert (await bench.beat(second)).target == ()
    await bench.timers.advance(2)
    after = await bench.beat(first, 0, 1, 2, 3, stream=False)
    assert after.target == kept.target
    assert {key[1] for key in after.lost} == {0, 1, 2, 3} - set(numbers(kept))
    assert len((await bench.beat(second)).target) == 2
    lost = next(assigned for assigned in first.target if assigned.key in after.lost)
    (stale,) = await bench.coordinator.commit("g", first.member_id, [entry(lost, 5)])
    assert stale.reason_name == "ASSIGNMENT_LOST"


async def test_commits_give_a_member_more_time_to_finish(bench) -> None:
    """The processing timeout is time without progress."""
    first = await bench.join(stream=False, processing_timeout_ms=10_000)
    await bench.join()
    kept = await bench.beat(first, 0, 1, 2, 3, stream=False)
    leaving = [assigned for assigned in first.target if assigned.partition not in numbers(kept)]
    for offset in range(1, 5):
        await bench.timers.advance(8)
        entries = [entry(assigned, offset) for assigned in leaving]
        assert await bench.coordinator.commit("g", first.member_id, entries) == [None, None]
    assert not (await bench.beat(first, 0, 1, 2, 3, stream=False)).lost
    await bench.timers.advance(11)
    assert len((await bench.beat(first, 0, 1, 2, 3, stream=False)).lost) == 2


async def test_a_stream_that_hangs_is_removed(bench) -> None:
    """Nothing acknowledged of a partition that it should keep: all it has goes to the others."""
    first = await bench.join()
    second = await bench.join()
    kept = await bench.beat(first, 0, 1)
    fences = {kept.target[0].key: kept.target[0].fence}
    await bench.coordinator.processing_timed_out("g", first.member_id, first.member_epoch, fences)
    await refused(bench.beat(first, 0, 1), "ASSIGNMENT_LOST")
    assert numbers(await bench.beat(second)) == [0, 1, 2, 3]


async def test_a_stream_that_does_not_finish_in_time_loses_what_it_was_giving_up(bench) -> None:
    """And stays a member with the rest."""
    first = await bench.join()
    second = await bench.join()
    kept = await bench.beat(first, 0, 1, 2, 3)
    fences = {a.key: a.fence for a in first.target if a.partition not in numbers(kept)}
    await bench.coordinator.processing_timed_out("g", first.member_id, first.member_epoch, fences)
    after = await bench.beat(first, 0, 1, 2, 3)
    assert after.target == kept.target
    assert after.lost == frozenset(fences)
    assert len((await bench.beat(second)).target) == 2


# --- restart


async def test_a_restart_keeps_members_owners_offsets_and_fences(bench) -> None:
    """A member without a stream goes on as if nothing had been."""
    first = await bench.join(stream=False)
    await bench.coordinator.commit("g", first.member_id, [entry(first.target[1], 17)])
    await bench.restart()
    after = await bench.beat(first, 0, 1, 2, 3, stream=False)
    assert [(a.partition, a.fence) for a in after.target] == [(a.partition, a.fence) for a in first.target]
    assert after.target[1].offset == 17
    await bench.timers.advance(44)
    await bench.beat(first, 0, 1, 2, 3, stream=False)
    await bench.timers.advance(46)
    assert not (await bench.coordinator.get_group("g")).members


async def test_streams_have_ten_seconds_to_resume_after_a_restart(bench) -> None:
    """Their partitions wait for them so long; static members have their own timeout if it is longer."""
    first = await bench.join()
    second = await bench.join()
    static = await bench.join(instance_id="i")
    for _ in range(2):
        await bench.beat(first)
        await bench.beat(second)
    await bench.restart()
    await bench.timers.advance(9)
    again = await bench.join(member_id=first.member_id)
    assert again.member_id == first.member_id
    members = {member.member_id for member in (await bench.coordinator.get_group("g")).members}
    assert members == {first.member_id, second.member_id, static.member_id}
    await bench.timers.advance(2)
    members = {member.member_id for member in (await bench.coordinator.get_group("g")).members}
    assert members == {first.member_id, static.member_id}


async def test_what_was_not_durable_was_never_told(bench) -> None:
    """A crash before the fsync leaves no trace of the member, and its caller got no answer."""
    bench.log.sync_by_itself = False
    joining = asyncio.create_task(bench.join())
    await turns()
    await bench.restart()
    assert joining.done()
    assert isinstance(joining.exception(), PostbusError)
    await refused(bench.coordinator.get_group("g"), "GROUP_NOT_FOUND")


async def test_fences_grow_over_a_group_that_is_created_again(bench) -> None:
    """They are offsets of the log, which only grow; and over a restart."""
    first = await bench.join()
    await bench.coordinator.heartbeat(HeartbeatCall(group="g", member_id=first.member_id, member_epoch=1, leave=True))
    await bench.coordinator.delete_group("g")
    await bench.restart()
    again = await bench.join()
    assert min(a.fence for a in again.target) > max(a.fence for a in first.target)


async def test_offsets_of_topics_that_went_while_the_node_was_down_go(bench) -> None:
    """The start compares with the topics that are there."""
    await bench.join()
    bench.topics.create("a", 2)
    await bench.restart()
    assert {topic_id for topic_id, _ in bench.coordinator._driver.groups["g"].committed} <= {"a-2"}


# --- offsets


async def test_latest_is_resolved_and_committed_before_delivery(bench) -> None:
    """A member that dies before its first acknowledgement leaves the place to the next."""
    first = await bench.join(start_at={"a": LATEST})
    assert {assigned.offset for assigned in first.target} == {100}
    bench.coordinator.disconnected("g", first.member_id, first.member_epoch)
    await bench.timers.advance(1)
    second = await bench.join()
    assert {assigned.offset for assigned in second.target} == {100}


async def test_a_start_that_can_not_be_found_is_tried_again(bench) -> None:
    """The member has nothing until then, and hears of it."""
    bench.topics.failing = True
    first = await bench.join()
    assert first.target == ()
    heard: list[bool] = []
    bench.coordinator.watch("g", first.member_id, lambda: heard.append(True))
    bench.topics.failing = False
    await bench.timers.advance(1.5)
    assert heard
    assert len((await bench.beat(first)).target) == 4


async def test_a_damaged_partition_keeps_no_other_from_its_start(bench, monkeypatch) -> None:
    """Its look-up in the log fails, again and again; the others are assigned, and it is once it can be read."""
    resolve, damaged = bench.topics.resolve, True

    async def resolve_what_is_well(topic_id: str, partition: int, start: Any) -> int:
        if damaged and partition == 1:
            raise LogCorrupt(1, 0, "says the test")
        return await resolve(topic_id, partition, start)

    monkeypatch.setattr(bench.topics, "resolve", resolve_what_is_well)
    first = await bench.join()
    await turns()
    assert {assigned.partition for assigned in (await bench.beat(first)).target} == {0, 2, 3}
    damaged = False
    await bench.timers.advance(1.5)
    assert len((await bench.beat(first, 0, 2, 3)).target) == 4


async def test_wrong_commits_are_told_one_by_one(bench) -> None:
    """Stale, past the end, negative: each has its outcome, and the good one counts."""
    first = await bench.join()
    good, stale, far, negative = first.target
    outcomes = await bench.coordinator.commit(
        "g",
        first.member_id,
        [
            entry(good, 5),
            CommitEntry(stale.topic_id, stale.partition, 5, stale.fence - 1),
            entry(far, 101),
            entry(negative, -1),
            CommitEntry("nothing", 0, 5, 1),
        ],
    )
    assert outcomes[0] is None
    reasons = [outcome.reason_name for outcome in outcomes[1:]]
    assert reasons == ["ASSIGNMENT_LOST", "OFFSET_OUT_OF_RANGE", "INVALID_FIELD", "ASSIGNMENT_LOST"]
    offsets = {o.partition: o.offset for o in await bench.coordinator.committed_offsets("g")}
    assert offsets == {good.partition: 5, stale.partition: 0, far.partition: 0, negative.partition: 0}


async def test_commits_from_outside_need_an_empty_group(bench) -> None:
    """GROUP_NOT_EMPTY with members; without, offsets may go either way, within the partition."""
    first = await bench.join()
    outside = [CommitEntry("a-1", 0, 50)]
    await refused(bench.coordinator.commit("g", "", outside), "GROUP_NOT_EMPTY")
    bench.coordinator.disconnected("g", first.member_id, first.member_epoch)
    await bench.timers.advance(1)
    assert await bench.coordinator.commit("g", "", outside) == [None]
    assert await bench.coordinator.commit("g", "", [CommitEntry("a-1", 0, 20)]) == [None]
    (beyond, unknown) = await bench.coordinator.commit("g", "", [CommitEntry("a-1", 0, 101), CommitEntry("a-1", 9, 1)])
    assert (beyond.reason_name, unknown.reason_name) == ("OFFSET_OUT_OF_RANGE", "PARTITION_NOT_FOUND")
    (late,) = await bench.coordinator.commit("g", first.member_id, [entry(first.target[0], 60)])
    assert late.reason_name == "ASSIGNMENT_LOST"
    assert (await bench.join()).target[0].offset == 20


async def test_a_seek_gives_a_new_fence(bench) -> None:
    """Durable before it answers; what was out under the old one is stale."""
    first = await bench.join()
    at = first.target[0]
    bench.log.sync_by_itself = False
    seeking = asyncio.create_task(bench.coordinator.seek("g", first.member_id, at.topic_id, at.partition, 42, at.fence))
    await turns()
    assert not seeking.done()
    bench.log.sync_by_itself = True
    bench.log.sync()
    assigned = await seeking
    assert (assigned.offset, assigned.fence > at.fence) == (42, True)
    (stale,) = await bench.coordinator.commit("g", first.member_id, [entry(at, 90)])
    assert stale.reason_name == "ASSIGNMENT_LOST"
    await refused(
        bench.coordinator.seek("g", first.member_id, at.topic_id, at.partition, 1, at.fence), "ASSIGNMENT_LOST"
    )
    assert (await bench.beat(first, 0, 1, 2, 3)).target[0] == assigned


async def test_a_reply_beside_a_seek_never_looks_like_a_revocation(bench) -> None:
    """It waits for the new fence instead of leaving the partition out."""
    first = await bench.join()
    at, other = first.target[:2]
    bench.log.sync_by_itself = False
    committing = asyncio.create_task(bench.coordinator.commit("g", first.member_id, [entry(other, 5)]))
    await turns()
    safe = bench.log.end_offset
    beating = asyncio.create_task(bench.beat(first, 0, 1, 2, 3))
    await turns()
    seeking = asyncio.create_task(bench.coordinator.seek("g", first.member_id, at.topic_id, at.partition, 42, at.fence))
    await turns()
    bench.log.sync(safe)
    await turns()
    assert committing.done()
    assert not beating.done()
    bench.log.sync()
    assert (await beating).target[0] == await seeking


async def test_a_seek_does_not_shield_a_partition_from_being_taken(bench) -> None:
    """A new fence on what should be given up: the processing timeout ends that too."""
    first = await bench.join(stream=False, processing_timeout_ms=10_000)
    await bench.join()
    kept = await bench.beat(first, 0, 1, 2, 3, stream=False)
    leaving = next(assigned for assigned in first.target if assigned.partition not in numbers(kept))
    await bench.beat(first, *numbers(kept), leaving.partition, stream=False)
    await bench.coordinator.seek("g", first.member_id, *leaving.key, 7, leaving.fence)
    await bench.timers.advance(11)
    await bench.timers.advance(11)
    after = await bench.beat(first, *numbers(kept), leaving.partition, stream=False)
    assert after.lost == {leaving.key}


async def test_reset_moves_offsets_of_an_empty_group(bench) -> None:
    """By place or by shift, within what is there; validate_only changes nothing."""
    first = await bench.join()
    reset = bench.coordinator.reset_offsets
    await refused(reset("g", "a", to=LATEST), "GROUP_NOT_EMPTY")
    bench.coordinator.disconnected("g", first.member_id, first.member_epoch)
    await bench.timers.advance(1)
    (change,) = await reset("g", "a", partitions=[1], shift=30, validate_only=True)
    assert (change.partition, change.old_offset, change.new_offset) == (1, 0, 30)
    assert [c.new_offset for c in await reset("g", "a", shift=500)] == [100] * 4
    assert [c.new_offset for c in await reset("g", "a", shift=-500)] == [0] * 4
    await refused(reset("g", "b", to=LATEST), "TOPIC_NOT_FOUND")
    await refused(reset("g", "a", partitions=[4], to=LATEST), "PARTITION_NOT_FOUND")
    await refused(reset("none", "a", to=LATEST), "GROUP_NOT_FOUND")
    await refused(reset("g", "a"), "INVALID_FIELD")
    await refused(reset("g", "a", to=LATEST, shift=1), "INVALID_FIELD")


async def test_offsets_expire_by_themselves(new_bench) -> None:
    """Thirty days after the last member left the group is gone."""
    bench = new_bench(expiry_check_interval_ms=24 * 3600 * 1000)
    await bench.coordinator.start()
    first = await bench.join()
    bench.coordinator.disconnected("g", first.member_id, first.member_epoch)
    await bench.timers.advance(29 * 24 * 3600)
    assert await bench.coordinator.committed_offsets("g")
    await bench.timers.advance(3 * 24 * 3600)
    await refused(bench.coordinator.get_group("g"), "GROUP_NOT_FOUND")
    assert not bench.log.table()
    await bench.coordinator.close()


# --- topics


async def test_new_partitions_are_given_out_from_the_earliest(bench) -> None:
    """Though the member asked for LATEST."""
    first = await bench.join(start_at={"a": LATEST})
    bench.topics.topics["a"] = type(bench.topics.topics["a"])("a", "a-1", 5)
    bench.coordinator.topics_changed(changed=["a"])
    await turns()
    after = await bench.beat(first, 0, 1, 2, 3)
    assert numbers(after) == [0, 1, 2, 3, 4]
    assert [assigned.offset for assigned in after.target] == [100] * 4 + [0]


async def test_a_deleted_topic_takes_its_offsets_along(bench) -> None:
    """Created again it is another topic, read from its start."""
    first = await bench.join(start_at={"a": LATEST})
    old_id = bench.topics.topics["a"].topic_id
    del bench.topics.topics["a"]
    bench.coordinator.topics_changed(deleted=[old_id])
    await turns()
    assert not bench.coordinator._driver.groups["g"].committed
    new = bench.topics.create("a", 2)
    bench.coordinator.topics_changed(changed=["a"])
    await turns()
    after = await bench.beat(first)
    assert {assigned.topic_id for assigned in after.target} == {new.topic_id}
    assert len(after.target) == 2


# --- looking at groups, and settings


async def test_a_group_is_described_with_members_state_and_lag(bench) -> None:
    """As GetGroup shows it."""
    first = await bench.join(client_id="billing", peer="ipv4:127.0.0.1:1")
    await bench.coordinator.commit("g", first.member_id, [entry(first.target[0], 40)])
    await bench.join()
    group = await bench.coordinator.get_group("g")
    assert group.state == group_pb2.GROUP_STATE_RECONCILING
    assert [member.client_id for member in group.members] == ["billing", ""]
    assert len(group.members[0].assigned) == len(group.members[0].revoking) == 2
    assert next((o.partition, o.offset, o.lag) for o in group.offsets) == (0, 40, 60)
    assert group.effective_config.offset_retention.seconds == 30 * 24 * 3600
    assert list(bench.coordinator.samples()) == [("g", 2, {"a": 360}, 2)]  # two changes of members


async def test_groups_are_listed_by_name_and_page(bench) -> None:
    """Without repeating or missing one."""
    for number in range(7):
        await bench.coordinator.create_group(f"g{number}", group_pb2.GroupConfig())
    await bench.coordinator.create_group("other", group_pb2.GroupConfig())
    found: list[str] = []
    token = ""
    while True:
        page, token = await bench.coordinator.list_groups(page_size=3, page_token=token, prefix="g")
        found += [group.name for group in page]
        if not token:
            break
    assert found == [f"g{number}" for number in range(7)]
    page, token = await bench.coordinator.list_groups(prefix="other")
    assert [group.name for group in page] == ["other"]
    assert token == ""


async def test_settings_are_created_changed_and_kept(bench) -> None:
    """Over a restart; the group's start wins over the member's."""
    config = group_pb2.GroupConfig(start_at=LATEST)
    config.static_member_timeout.FromSeconds(5)
    await bench.coordinator.create_group("g", config)
    await refused(bench.coordinator.create_group("g", config), "EXISTS")
    changes = group_pb2.GroupConfig()
    changes.offset_retention.FromSeconds(60)
    after = await bench.coordinator.update_group("g", changes, ["offset_retention", "static_member_timeout"])
    assert after.effective_config.static_member_timeout.seconds == 45
    assert after.config.offset_retention.seconds == 60
    await bench.restart()
    assert (await bench.coordinator.get_group("g")).config == after.config
    assert {assigned.offset for assigned in (await bench.join()).target} == {100}


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (group_pb2.GroupConfig(kind=subscriber_pb2.GROUP_KIND_SHARED), "UNKNOWN_FIELD"),
        (group_pb2.GroupConfig(dead_letter_topic="a"), "UNKNOWN_FIELD"),
        (group_pb2.GroupConfig(max_deliveries=0), "UNKNOWN_FIELD"),
        (group_pb2.GroupConfig(lease_time={"seconds": 1}), "UNKNOWN_FIELD"),
        (group_pb2.GroupConfig(max_processing_timeout={"seconds": 0}), "INVALID_FIELD"),
        (group_pb2.GroupConfig(static_member_timeout={"seconds": -1}), "INVALID_FIELD"),
        (group_pb2.GroupConfig(offset_retention={"seconds": 1 << 40}), "INVALID_FIELD"),
    ],
)
async def test_settings_that_can_not_be_are_refused(bench, config, reason) -> None:
    """Shared groups and dead letters by name; nothing is created."""
    await refused(bench.coordinator.create_group("g", config), reason)
    await refused(bench.coordinator.get_group("g"), "GROUP_NOT_FOUND")
    await bench.coordinator.create_group("g", group_pb2.GroupConfig())
    if config.kind != subscriber_pb2.GROUP_KIND_SHARED:
        await refused(bench.coordinator.update_group("g", config), reason)
    else:
        await refused(bench.coordinator.update_group("g", config), "INVALID_FIELD")
    await refused(bench.coordinator.update_group("g", config, ["nothing"]), "INVALID_FIELD")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"group": ""}, "INVALID_FIELD"),
        ({"group": "a/b"}, "INVALID_FIELD"),
        ({"group": ".."}, "INVALID_FIELD"),
        ({"group": "x" * 250}, "INVALID_FIELD"),
        ({"group": "__mine"}, "INVALID_FIELD"),
        ({"topics": ("missing",)}, "TOPIC_NOT_FOUND"),
        ({"group_kind": subscriber_pb2.GROUP_KIND_SHARED}, "UNKNOWN_FIELD"),
        ({"processing_timeout_ms": 3_600_001}, "INVALID_FIELD"),
        ({"processing_timeout_ms": 0}, "INVALID_FIELD"),
        ({"member_id": "m1", "member_epoch": 1}, "GROUP_NOT_FOUND"),
    ],
)
async def test_joins_that_can_not_be_are_refused(bench, fields, reason) -> None:
    """And leave no group behind."""
    call = HeartbeatCall(**{"group": "g", "topics": ("a",), "stream": True, **fields})
    await refused(bench.coordinator.heartbeat(call), reason)
    assert (await bench.coordinator.list_groups())[0] == []


async def test_an_ordered_group_takes_no_members_of_another_kind(bench) -> None:
    """GROUP_KIND_MISMATCH, which a person must look at."""
    await bench.join(group_kind=subscriber_pb2.GROUP_KIND_ORDERED)
    await refused(bench.join(group_kind=subscriber_pb2.GROUP_KIND_SHARED), "GROUP_KIND_MISMATCH")


async def test_groups_with_members_are_not_deleted(bench) -> None:
    """Without them they go with all their offsets."""
    first = await bench.join()
    await refused(bench.coordinator.delete_group("g"), "GROUP_NOT_EMPTY")
    bench.coordinator.disconnected("g", first.member_id, first.member_epoch)
    await bench.timers.advance(1)
    await bench.coordinator.delete_group("g")
    assert not bench.log.table()
    await refused(bench.coordinator.delete_group("g"), "GROUP_NOT_FOUND")


async def test_groups_and_members_are_bounded(new_bench) -> None:
    """RESOURCE_EXHAUSTED with a time to wait; a member that comes back is not a new one."""
    bench = new_bench(group_members_max=1, groups_max=1)
    await bench.coordinator.start()
    first = await bench.join()
    error = await refused(bench.join(), "QUOTA_EXCEEDED")
    assert error.retry_after_ms
    await refused(bench.join(group="h"), "QUOTA_EXCEEDED")
    await refused(bench.coordinator.create_group("h", group_pb2.GroupConfig()), "QUOTA_EXCEEDED")
    assert (await bench.join(member_id=first.member_id)).member_id == first.member_id
    await bench.coordinator.close()


async def test_a_coordinator_that_ended_is_unavailable(bench) -> None:
    """And those who wait are told that the outcome is not known."""
    bench.log.sync_by_itself = False
    joining = asyncio.create_task(bench.join())
    await turns()
    await bench.coordinator.close()
    assert maybe_done(await refused(joining, "NO_LEADER"))
    assert not maybe_done(await refused(bench.join(), "NO_LEADER"))
