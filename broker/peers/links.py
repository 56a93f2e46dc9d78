"""What a node needs of the network: links. No I/O here; gRPC carries them in production, the simulator in tests.

A link is an ordered stream of messages in both directions between two nodes, for one service. It is lost as a whole:
after `closed` nothing more arrives, and what was sent last may or may not have arrived.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

MESSAGE_BYTES_MAX: Final = 15 * 1024 * 1024
"""Largest message of a link; gRPC's limit on the peer port is 16 MiB, its frame included."""


@dataclass(frozen=True, slots=True)
class PeerId:
    """A node and its disk: a node whose data was lost comes back under its own number with another store."""

    node_id: int
    store_id: str  # empty: not known yet


class LinkHandler(Protocol):
    """Told of what happens to one link. On the loop; must not raise."""

    def received(self, message: bytes) -> None:
        """The next message."""

    def writable(self) -> None:
        """There is room again after `has_room` was False."""

    def closed(self) -> None:
        """The end, whoever brought it about. Once."""


class Link(Protocol):
    """One end of a link."""

    @property
    def peer(self) -> PeerId:
        """The other end. Before its store id is known, nothing that was sent is on its way."""

    @property
    def has_room(self) -> bool:
        """False: as much is queued as may be; wait for `writable`."""

    def send(self, message: bytes) -> None:
        """Queues a message; never blocks. Nothing happens once the link is closed."""

    def close(self) -> None:
        """Ends it. `closed` is called, later."""


class Transport(Protocol):
    """All links of one node."""

    def connect(self, node_id: int, service: str, handler: LinkHandler) -> Link:
        """Opens a link; returns at once. Messages may be sent at once, too; `closed` tells if it can't be."""

    def serve(self, service: str, accept: Callable[[Link], LinkHandler]) -> None:
        """Says who takes links that other nodes open. Before the node starts to listen."""

    def set_address(self, node_id: int, endpoint: str) -> None:
        """Where a node listens for its peers: host:port."""

    def add_lost_listener(self, lost: Callable[[int], None]) -> None:
        """`lost(node_id)` when an established connection with a node broke: a hint that it died, no proof."""
