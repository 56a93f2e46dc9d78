"""The assignor: even, sticky, deterministic."""

from collections import Counter
from itertools import product

from hypothesis import given, settings
from hypothesis import strategies as st

from broker.groups.assignor import Assignment, assign

MEMBERS = [f"m{number}" for number in range(6)]
TOPICS = ["a", "b", "c"]

counts_strategy = st.dictionaries(st.sampled_from(TOPICS), st.integers(0, 7), max_size=3)
wanted_strategy = st.dictionaries(st.sampled_from(MEMBERS), st.sets(st.sampled_from(TOPICS)), max_size=6)


def partitions_of(counts: dict[str, int]) -> list[tuple[str, int]]:
    return [(topic, number) for topic, count in sorted(counts.items()) for number in range(count)]


@st.composite
def situations(
    draw: st.DrawFn,
) -> tuple[dict[str, set[str]], dict[str, int], Assignment]:
    counts = draw(counts_strategy)
    wanted = draw(wanted_strategy)
    owners = {
        partition: owner
        for partition in partitions_of(counts)
        if (owner := draw(st.sampled_from(["", "gone", *MEMBERS])))
    }
    return wanted, counts, owners


def loads(assignment: Assignment, members: list[str]) -> dict[str, int]:
    counter = Counter(assignment.values())
    return {member: counter[member] for member in members}


@given(situations())
@settings(max_examples=400)
def test_every_wanted_partition_has_one_member_that_wants_it(situation) -> None:
    """Nothing that somebody wants is left out, and nobody gets what it doesn't want."""
    wanted, counts, owners = situation
    assignment = assign(wanted=wanted, partition_counts=counts, owners=owners)
    all_wanted = set().union(*wanted.values()) if wanted else set()
    assert set(assignment) == {partition for partition in partitions_of(counts) if partition[0] in all_wanted}
    for (topic, _), member in assignment.items():
        assert topic in wanted[member]


@given(situations())
@settings(max_examples=400)
def test_members_that_want_the_same_differ_by_one_at_most(situation) -> None:
    """Fair, whatever the owners were before."""
    wanted, counts, owners = situation
    assignment = assign(wanted=wanted, partition_counts=counts, owners=owners)
    existing = {topic for topic, count in counts.items() if count}
    for wish in {frozenset(topics & existing) for topics in wanted.values()}:
        if wish:
            same = [member for member, topics in wanted.items() if topics & existing == wish]
            shares = loads(assignment, same).values()
            assert max(shares) - min(shares) <= 1


@given(situations())
@settings(max_examples=300)
def test_a_result_is_kept_as_it_is(situation) -> None:
    """Assigning again what was just assigned moves nothing."""
    wanted, counts, owners = situation
    first = assign(wanted=wanted, partition_counts=counts, owners=owners)
    assert assign(wanted=wanted, partition_counts=counts, owners=first) == first


@given(situations(), st.randoms(use_true_random=False))
@settings(max_examples=200)
def test_the_order_of_the_input_does_not_matter(situation, random) -> None:
    """Every node works out the same."""
    wanted, counts, owners = situation

    def shuffled(mapping):
        items = list(mapping.items())
        random.shuffle(items)
        return dict(items)

    expected = assign(wanted=wanted, partition_counts=counts, owners=owners)
    assert assign(wanted=shuffled(wanted), partition_counts=shuffled(counts), owners=shuffled(owners)) == expected


@given(
    members=st.sets(st.sampled_from(MEMBERS), min_size=1),
    counts=st.dictionaries(st.sampled_from(TOPICS), st.integers(1, 7), min_size=1),
    data=st.data(),
)
@settings(max_examples=400)
def test_equal_wishes_move_the_least_possible(members, counts, data) -> None:
    """No even assignment keeps more partitions where they are."""
    partitions = partitions_of(counts)
    owners = {p: o for p in partitions if (o := data.draw(st.sampled_from(["", *MEMBERS])))}
    assignment = assign(wanted={m: set(counts) for m in members}, partition_counts=counts, owners=owners)
    kept = sum(1 for p in partitions if owners.get(p) == assignment[p])
    held = Counter(o for o in owners.values() if o in members)
    quota, extra = divmod(len(partitions), len(members))
    best = sum(min(held[m], quota) for m in members) + min(extra, sum(1 for m in members if held[m] > quota))
    assert kept == best


@given(
    wanted=st.dictionaries(st.sampled_from(MEMBERS[:3]), st.sets(st.sampled_from(TOPICS), min_size=1), min_size=1),
    counts=st.dictionaries(st.sampled_from(TOPICS), st.integers(0, 2), min_size=1),
    data=st.data(),
)
@settings(max_examples=300, deadline=None)
def test_different_wishes_are_balanced_as_well_as_can_be(wanted, counts, data) -> None:
    """The sum of squares of the loads is the least of all possible assignments."""
    partitions = [p for p in partitions_of(counts) if any(p[0] in topics for topics in wanted.values())]
    owners = {p: o for p in partitions if (o := data.draw(st.sampled_from(["", *MEMBERS[:3]])))}
    assignment = assign(wanted=wanted, partition_counts=counts, owners=owners)
    choices = [[member for member in wanted if p[0] in wanted[member]] for p in partitions]
    best = min(sum(n * n for n in Counter(choice).values()) for choice in product(*choices))
    assert sum(n * n for n in Counter(assignment.values()).values()) == best


def test_a_new_member_takes_only_its_share() -> None:
    """Two members with three each, a third comes: one partition moves from each."""
    owners = {("a", n): "m0" if n < 3 else "m1" for n in range(6)}
    after = assign(wanted={m: {"a"} for m in ("m0", "m1", "m2")}, partition_counts={"a": 6}, owners=owners)
    assert loads(after, ["m0", "m1", "m2"]) == {"m0": 2, "m1": 2, "m2": 2}
    assert sum(after[p] != owners[p] for p in owners) == 2


def test_a_fresh_group_spreads_every_topic() -> None:
    """With two topics of two partitions, each of two members reads both."""
    fresh = assign(wanted={"m0": {"a", "b"}, "m1": {"a", "b"}}, partition_counts={"a": 2, "b": 2}, owners={})
    assert {(p[0], m) for p, m in fresh.items()} == {("a", "m0"), ("a", "m1"), ("b", "m0"), ("b", "m1")}


def test_a_chain_of_moves_balances_what_no_single_move_could() -> None:
    """m0 has too much of a, which m2 doesn't want: m1 takes one of a and gives one of b."""
    wanted = {"m0": {"a"}, "m1": {"a", "b"}, "m2": {"b"}}
    owners = {("a", 0): "m0", ("a", 1): "m0", ("a", 2): "m0", ("b", 0): "m1", ("b", 1): "m1", ("b", 2): "m2"}
    after = assign(wanted=wanted, partition_counts={"a": 3, "b": 3}, owners=owners)
    assert loads(after, ["m0", "m1", "m2"]) == {"m0": 2, "m1": 2, "m2": 2}


def test_a_large_group_is_assigned_quickly() -> None:
    """Two hundred members with mixed wishes and 3,000 partitions: within the work of a few hundred thousand steps."""
    topics = [f"t{n:02}" for n in range(30)]
    wanted = {f"m{n:03}": {topics[(n + k * 7) % 30] for k in range(4)} for n in range(200)}
    after = assign(wanted=wanted, partition_counts=dict.fromkeys(topics, 100), owners={})
    shares = Counter(after.values()).values()
    assert max(shares) - min(shares) <= 1
