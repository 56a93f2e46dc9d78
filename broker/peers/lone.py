"""The transport of a node without peers: nobody connects, and whom it connects to is not there."""

import asyncio
from collections.abc import Callable

from broker.peers.links import Link, LinkHandler, PeerId


class LoneTransport:
    """No links."""

    def connect(self, node_id: int, service: str, handler: LinkHandler) -> Link:
        """Ends at once."""
        asyncio.get_running_loop().call_soon(handler.closed)
        return _NoLink(node_id)

    def serve(self, service: str, accept: Callable[[Link], LinkHandler]) -> None:
        """Nobody will come."""

    def set_address(self, node_id: int, endpoint: str) -> None:
        """Not used."""

    def add_lost_listener(self, lost: Callable[[int], None]) -> None:
        """Nothing can be lost."""


class _NoLink:
    has_room = True

    def __init__(self, node_id: int) -> None:
        self.peer = PeerId(node_id, "")

    def send(self, message: bytes) -> None:
        """Nothing: it is closed."""

    def close(self) -> None:
        """It is."""
