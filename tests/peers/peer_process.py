"""A node of its own process for tests that kill it: echoes messages of "pull" links. Prints its port."""

import asyncio
import sys

from broker.clock import SystemClock
from broker.peers.grpc_transport import GrpcTransport
from broker.peers.identity import Identity
from broker.peers.links import Link, PeerId


class Echo:
    def __init__(self, link: Link) -> None:
        self._link = link

    def received(self, message: bytes) -> None:
        self._link.send(message)

    def writable(self) -> None:
        """It never waits."""

    def closed(self) -> None:
        """Nothing to give back."""


async def main(port: int) -> None:
    transport = GrpcTransport(Identity("flights", PeerId(2, "b2")), clock=SystemClock())
    transport.serve("pull", Echo)
    print(await transport.start("127.0.0.1", port), flush=True)
    # Ends with its parent.
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


asyncio.run(main(int(sys.argv[1])))
