"""Trouble is in the log, but not a line for each time."""

from structlog.testing import capture_logs

from broker.clock import ManualClock
from broker.peers.troubles import KINDS_MAX, Troubles


def test_the_same_trouble_is_told_once_in_a_while_with_how_often_it_was() -> None:
    clock = ManualClock()
    troubles = Troubles(clock, 10.0)
    with capture_logs() as logs:
        for _ in range(3):
            troubles.tell("peer_unreachable", 2, why="refused")
        clock.advance(10.0)
        troubles.tell("peer_unreachable", 2, why="gone")
    assert [(line["why"], line.get("times_since")) for line in logs] == [("refused", None), ("gone", 2)]


def test_other_peers_other_kinds_and_trouble_after_it_was_well_are_told_at_once() -> None:
    troubles = Troubles(ManualClock(), 10.0)
    with capture_logs() as logs:
        troubles.tell("peer_refused", 2, kind="other_cluster")
        troubles.tell("peer_refused", 3, kind="other_cluster")
        troubles.tell("peer_refused", 3, kind="same_node_id")
        troubles.over("peer_refused", 3, kind="same_node_id")
        troubles.tell("peer_refused", 3, kind="same_node_id")
    assert len(logs) == 4


def test_many_strangers_cost_no_memory() -> None:
    troubles = Troubles(ManualClock(), 10.0)
    with capture_logs():
        for number in range(3 * KINDS_MAX):
            troubles.tell("peer_refused", f"stranger-{number}")
    assert len(troubles._told) <= KINDS_MAX
