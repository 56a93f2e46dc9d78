"""The time on which the nodes' wall clocks agree."""

from broker.controller.node_clocks import NodeClocks

NOW_US, YEAR_US = 1_750_000_000_000_000, 365 * 86_400 * 1_000_000


def clocks() -> NodeClocks:
    return NodeClocks(silence_s=1.5)


def test_one_wrong_clock_of_three_moves_nothing() -> None:
    """Ahead or behind, first or last: the time is between those of the others."""
    for wrong_us in (10 * YEAR_US, -10 * YEAR_US):
        for order in ((1, 2, 3), (3, 2, 1)):
            heard = clocks()
            for node_id in order:
                heard.heard(node_id, wall_us=NOW_US + (wrong_us if node_id == 3 else node_id), now_s=100.0)
            assert heard.agreed_us((1, 2, 3), now_s=101.0) - 1_000_000 in (NOW_US + 1, NOW_US + 2)


def test_nothing_is_agreed_on_before_most_were_heard() -> None:
    """The first to be heard after a failover may be the one that is wrong."""
    heard = clocks()
    heard.heard(3, wall_us=NOW_US + YEAR_US, now_s=100.0)
    assert heard.agreed_us((1, 2, 3), now_s=100.0) == 0
    heard.heard(1, wall_us=NOW_US, now_s=100.0)
    assert heard.agreed_us((1, 2, 3), now_s=100.0) == NOW_US  # of two the earlier one


def test_who_fell_silent_does_not_count() -> None:
    """Neither its clock, nor the node once it is fenced; nor a node of a version that doesn't say."""
    heard = clocks()
    for node_id in (1, 2, 3):
        heard.heard(node_id, wall_us=NOW_US + node_id, now_s=100.0)
    heard.heard(3, wall_us=NOW_US + 3 + 2_000_000, now_s=102.0)
    heard.heard(2, wall_us=0, now_s=102.0)
    assert heard.agreed_us((1, 2, 3), now_s=102.0) == 0
    assert heard.agreed_us((3,), now_s=102.0) == NOW_US + 3 + 2_000_000
    heard.clear()
    assert heard.agreed_us((), now_s=102.0) == 0
