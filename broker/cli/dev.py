"""`postbus dev`: a whole cluster on this machine with one command, and what it is doing.

Owns the processes' life and when to look again. Everything about the cluster it asks of the nodes, as any client.
"""

import asyncio
import contextlib
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from broker.cli import exits
from broker.cli.dev_folder import DevError, Plan, hold, plan
from broker.cli.dev_nodes import NodeProcess, Phase
from broker.cli.dev_screen import make_screen
from broker.cli.dev_view import TOPICS_SHOWN, Process, View, view
from broker.cli.online import run
from broker.cli.options import pairs
from broker.cli.serve import called_as

if TYPE_CHECKING:
    from postbus import Client

LOOK_SECONDS: Final = 1.0
ANSWER_SECONDS_MAX: Final = 1.0
NODES_MAX: Final = 15
# All go at once: there is nobody to hand over to.
STOP_FLAGS: Final = ("--handover-timeout-seconds", "0.5", "--drain-grace-seconds", "1")

EPILOG: Final = (
    "Ctrl-C stops all nodes, a second one at once; neither loses what was acknowledged. Exit codes: 0 stopped as asked,"
    " 1 a node could not start, or all died, 2 wrong arguments."
)


def dev(
    *,
    nodes: Annotated[int, typer.Option(min=1, max=NODES_MAX, help="How many.")] = 3,
    data_dir: Annotated[
        Path, typer.Option("--data-dir", metavar="DIR", help="Folder of the cluster, kept between starts.")
    ] = Path("postbus-cluster"),
    client_port: Annotated[
        int | None,
        typer.Option(
            metavar="PORT",
            min=0,
            max=65535,
            help="Of the first node; the others follow in steps of ten. 0: any. Default: as before, or 7070.",
            show_default=False,
        ),
    ] = None,
    restart: Annotated[bool, typer.Option("--restart", help="Start nodes again that die.")] = False,
    setting: Annotated[
        list[str],
        typer.Option("--set", metavar="NAME=VALUE", help="A setting of all nodes, as in `serve`; may be repeated."),
    ] = [],  # noqa: B006 - typer copies it
) -> None:
    """Starts a cluster on this machine and shows what it does."""
    flags = [part for name, value in pairs(setting, "NAME") for part in (f"--{name.replace('_', '-')}", value)]
    try:
        hold(data_dir)  # until this process ends
        planned = plan(data_dir, nodes=nodes, client_port=client_port)
    except DevError as error:
        exits.fail(str(error), exits.FAILED)
    raise typer.Exit(run(_Dev(planned, flags, restart=restart).run()))


class _Dev:
    """One run."""

    def __init__(self, planned: Plan, flags: list[str], *, restart: bool) -> None:
        self._plan = planned
        self._screen = make_screen()
        self._nodes = {
            node_id: NodeProcess(
                node_id,
                [*planned.flags(node_id), *STOP_FLAGS, *flags],
                planned.log_path(node_id),
                restart=restart,
                changed=self._node_changed,
            )
            for node_id in planned.ports
        }
        self._asked = 0  # to stop
        self._failed = False
        self._ready = False
        self._news = asyncio.Event()
        self._view: View | None = None

    async def run(self) -> int:
        """The exit code."""
        from postbus import Client

        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._stop_asked)
        folder = self._plan.folder
        self._screen.say(f"cluster {self._plan.cluster_id} in {folder}, logs in {folder / 'logs'}")
        client = Client(self._plan.addresses)
        running = [asyncio.create_task(node.run()) for node in self._nodes.values()]
        looking = asyncio.create_task(self._look(client))
        try:
            await asyncio.gather(*running)
        finally:
            looking.cancel()
            for node in self._nodes.values():
                node.kill()
            await asyncio.wait([looking, *running])
            with contextlib.suppress(Exception):  # nobody is left to say goodbye to
                await client.close(failed=True)
            self._screen.close()
        return exits.OK if self._asked and not self._failed else exits.FAILED

    def _stop_asked(self) -> None:
        self._asked += 1
        self._screen.clear()
        for node in self._nodes.values():
            if self._asked == 1:
                node.stop()
            else:
                node.kill()

    def _node_changed(self, node: NodeProcess, line: str) -> None:
        self._screen.say(line)
        self._news.set()
        # What can't even start is a mistake to put right, not a failure to live with.
        if node.phase is Phase.DEAD and not node.was_ready and not self._failed:
            self._failed = True
            self._screen.clear()
            for other in self._nodes.values():
                other.stop()

    # --- what it shows ---

    async def _look(self, client: "Client") -> None:
        while True:
            self._news.clear()
            metadata, partitions = await self._ask(client)
            if self._asked or self._failed:
                return
            processes = {
                node_id: Process(node.phase.value, f"localhost:{self._plan.ports[node_id].client}", node.pid)
                for node_id, node in self._nodes.items()
            }
            self._view = view(processes, metadata, partitions, before=self._view)
            self._screen.show(self._view)
            if not self._ready and self._view.complete:
                self._ready = True
                self._screen.say(self._guide())
            with contextlib.suppress(TimeoutError):
                # Not `wait_for`, which loses a cancellation that comes together with the news.
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._news.wait()

    async def _ask(self, client: "Client") -> tuple[Any | None, dict[str, Any]]:
        """Whatever is known by the time that a person would look away."""
        from postbus import PostbusError

        partitions: dict[str, Any] = {}
        if not any(node.phase in (Phase.RUNNING, Phase.STOPPING) for node in self._nodes.values()):
            return None, partitions
        metadata = None
        try:
            async with asyncio.timeout(ANSWER_SECONDS_MAX):
                metadata = await client.cluster.metadata()
                for topic in [each.name for each in metadata.topics if not each.name.startswith("__")][:TOPICS_SHOWN]:
                    partitions[topic] = await client.topics.partitions(topic)
        except (PostbusError, TimeoutError):
            pass
        return metadata, partitions

    def _guide(self) -> str:
        command, count = called_as(), len(self._nodes)
        return "\n".join(
            (
                "",
                "  One node is a bus."
                if count == 1
                else f"  {count} nodes are one bus; any of them serves everything.",
                "  In a second terminal:",
                # All of them, so that what is tried next still answers when one of them is killed.
                f"    export POSTBUS_ADDRESS={','.join(self._plan.addresses)}",
                f"    {command} publish greetings hello --create",
                f"    {command} subscribe greetings",
                f"    {command} cluster health",
                f"  Kill {'it' if count == 1 else 'one'}: kill -9 {self._nodes[1].pid}. Ctrl-C stops all.",
                "",
            )
        )
