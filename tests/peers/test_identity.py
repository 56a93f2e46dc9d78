"""Who may talk to a node, and what those who may not are told."""

import pytest

from broker.peers.identity import Identity, PeerRefused
from broker.peers.links import PeerId

ONE = Identity("flights", PeerId(1, "a1"))
TWO = Identity("flights", PeerId(2, "b2"))


def test_a_node_of_the_cluster_is_known_by_what_it_says() -> None:
    assert ONE.check(TWO.metadata(wanted_node_id=1)) == PeerId(2, "b2")
    assert ONE.check(TWO.metadata(), expected_node_id=2) == PeerId(2, "b2")


@pytest.mark.parametrize(
    ("metadata", "kind", "says"),
    [
        (Identity("trains", PeerId(2, "b2")).metadata(), "other_cluster", "cluster trains, node 1 to flights"),
        (Identity("flights", PeerId(1, "zz")).metadata(), "same_node_id", "two nodes 1, with stores a1 and zz"),
        (ONE.metadata(), "itself", "reached itself"),
        (TWO.metadata(wanted_node_id=3), "other_node", "node 1 answers at the address of node 3"),
        ((), "no_node", "no node of Postbus"),
        ((("user-agent", "curl"),), "no_node", "no node of Postbus"),
        (Identity("flights", PeerId(2, "")).metadata(), "no_node", "no node of Postbus"),
        ((("postbus-cluster-id", b"flights"),), "no_node", "no node of Postbus"),
        (Identity("flights", PeerId(-1, "b2")).metadata(), "no_node", "no node of Postbus"),
        (
            (("postbus-cluster-id", "flights"), ("postbus-node-id", "9" * 5000), ("postbus-store-id", "x")),
            "no_node",
            "no node of Postbus",
        ),
    ],
)
def test_anybody_else_is_told_why_not(metadata: tuple[tuple[str, str]], kind: str, says: str) -> None:
    with pytest.raises(PeerRefused, match=says) as refused:
        ONE.check(metadata)
    assert refused.value.kind == kind


def test_another_node_at_the_address_of_one_is_refused() -> None:
    with pytest.raises(PeerRefused, match="node 2 answers at the address of node 3"):
        ONE.check(TWO.metadata(), expected_node_id=3)


def test_what_a_stranger_says_is_not_repeated_at_length() -> None:
    with pytest.raises(PeerRefused) as refused:
        ONE.check(Identity("x" * 10_000, PeerId(2, "b2")).metadata())
    assert len(str(refused.value)) < 200
