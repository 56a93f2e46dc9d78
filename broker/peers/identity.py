"""Who is at the other end of a connection, and why somebody may not be: cluster, node and store ids as metadata."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from broker.peers.links import PeerId

_CLUSTER: Final = "postbus-cluster-id"
_NODE: Final = "postbus-node-id"
_STORE: Final = "postbus-store-id"
_WANTED: Final = "postbus-wanted-node-id"
# What strangers send ends up in logs.
_TEXT_MAX: Final = 64


class PeerRefused(Exception):  # noqa: N818 - named for what happened
    """The other end may not talk to this node. kind: a word for the log; the text is for both ends' operators."""

    def __init__(self, kind: str, why: str) -> None:
        super().__init__(why)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class Identity:
    """What a node says of itself on every stream."""

    cluster_id: str
    me: PeerId

    def metadata(self, *, wanted_node_id: int | None = None) -> tuple[tuple[str, str], ...]:
        """`wanted_node_id`: whom the opener of a stream means to talk to."""
        said = ((_CLUSTER, self.cluster_id), (_NODE, str(self.me.node_id)), (_STORE, self.me.store_id))
        return said if wanted_node_id is None else (*said, (_WANTED, str(wanted_node_id)))

    @staticmethod
    def is_told_by(metadata: Iterable[tuple[str, str | bytes]]) -> bool:
        """Whether this looks like a node's."""
        return any(key == _CLUSTER for key, _ in metadata)

    def check(self, metadata: Iterable[tuple[str, str | bytes]], *, expected_node_id: int | None = None) -> PeerId:
        """Who sent it. `expected_node_id`: at whose address this node has asked. Raises PeerRefused."""
        said = {key: value for key, value in metadata if isinstance(value, str)}
        cluster_id, node, store_id = said.get(_CLUSTER, ""), said.get(_NODE, ""), said.get(_STORE, "")
        node_id = _number(node)
        if not cluster_id or not node_id or not store_id:
            raise PeerRefused("no_node", "it does not say which cluster, node and store it is: no node of Postbus")
        if cluster_id != self.cluster_id:
            raise PeerRefused(
                "other_cluster",
                f"node {node_id} belongs to cluster {_shown(cluster_id)}, node {self.me.node_id} to {self.cluster_id}",
            )
        peer = PeerId(node_id, store_id[:_TEXT_MAX])
        if node_id == self.me.node_id:
            if store_id == self.me.store_id:
                raise PeerRefused("itself", f"node {node_id} has reached itself: an address of a peer is its own")
            raise PeerRefused(
                "same_node_id",
                f"there are two nodes {node_id}, with stores {self.me.store_id} and {_shown(store_id)}: each needs a"
                " node_id of its own",
            )
        if expected_node_id is not None and node_id != expected_node_id:
            raise PeerRefused("other_node", f"node {node_id} answers at the address of node {expected_node_id}")
        wanted = said.get(_WANTED)
        if wanted is not None and _number(wanted) != self.me.node_id:
            raise PeerRefused("other_node", f"node {self.me.node_id} answers at the address of node {_shown(wanted)}")
        return peer


def _number(text: str) -> int:
    """A node id; 0 if it is none."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 10 and int(text) < 2**31 else 0


def _shown(text: str) -> str:
    return text[:_TEXT_MAX]
