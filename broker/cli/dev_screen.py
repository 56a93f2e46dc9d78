"""How `postbus dev` shows its cluster: a table that stays in place on a terminal, lines where it is none."""

import sys
from typing import TYPE_CHECKING, Protocol

from broker.cli.dev_view import View

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

_COLOURS = {"active": "green", "dead": "red", "fenced": "red"}


class Screen(Protocol):
    """Where it is shown."""

    def say(self, text: str) -> None:
        """Something that happened."""

    def show(self, shown: View) -> None:
        """How it is now."""

    def clear(self) -> None:
        """There is nothing to look at any more."""

    def close(self) -> None:
        """Nothing more is said."""


def make_screen() -> Screen:
    """For wherever standard output goes."""
    return _Live() if sys.stdout.isatty() else _Lines()


class _Lines:
    """Only what changed."""

    def __init__(self) -> None:
        self._shown: list[str] = []

    def say(self, text: str) -> None:
        print(text, flush=True)

    def show(self, shown: View) -> None:
        now = shown.lines()
        for line in now:
            if line not in self._shown:
                print(line, flush=True)
        self._shown = now

    def clear(self) -> None:
        self._shown = []

    def close(self) -> None:
        """All is printed."""


class _Live:
    """Tables, with what happened above them."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self._live = Live(console=Console(highlight=False), auto_refresh=False, transient=False)
        self._live.start()

    def say(self, text: str) -> None:
        self._live.console.print(text, markup=False)

    def show(self, shown: View) -> None:
        self._live.update(_tables(shown), refresh=True)

    def clear(self) -> None:
        self._live.update("", refresh=True)

    def close(self) -> None:
        self._live.stop()


def _tables(shown: View) -> "RenderableType":
    from rich.console import Group
    from rich.text import Text

    nodes = _table((">NODE", "STATE", "ROLE", "CLIENTS", ">LEADS", ">IN SYNC", ">LAG", ">PID"))
    for node in shown.nodes:
        nodes.add_row(
            str(node.node_id),
            Text(node.state, style=_COLOURS.get(node.state, "yellow")),
            Text(node.role, style="bold" if node.role == "controller" else ""),
            node.address,
            str(node.leads),
            Text(f"{node.in_sync} of {node.holds}", style="" if node.in_sync == node.holds else "yellow"),
            "" if node.lag is None else f"{node.lag:,}",
            "" if node.pid is None else str(node.pid),
        )
    topics = _table(("TOPIC", "LEADERS", ">IN SYNC", ">RECORDS", ">LAG"))
    for topic in shown.topics:
        topics.add_row(
            Text(topic.name),
            Text(topic.leaders, style="red" if "-" in topic.leaders else ""),
            Text(f"{topic.in_sync} of {topic.replicas}", style="" if topic.in_sync == topic.replicas else "yellow"),
            f"{topic.records:,}",
            f"{topic.lag:,}",
        )
    parts: list[RenderableType] = ["", nodes]
    if shown.topics:
        parts += ["", topics]
    if shown.topics_hidden:
        parts.append(f"and {shown.topics_hidden} more topics")
    if shown.silent:
        parts += ["", Text("no node answers", style="red")]
    elif shown.answered and shown.controller is None:
        parts += ["", Text("there is no controller", style="red")]
    return Group(*parts)


def _table(columns: tuple[str, ...]) -> "Table":
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column.removeprefix(">"), justify="right" if column.startswith(">") else "left", no_wrap=True)
    return table
