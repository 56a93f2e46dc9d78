"""What is wrong with a cluster, from what it says of itself. Pure.

Two levels: degraded, where all works but one failure more may hurt; down, where something does not work now.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

SILENCE_SECONDS_MAX: Final = 3.0
NAMES_SHOWN: Final = 5


class Level(StrEnum):
    """How bad."""

    DEGRADED = "degraded"
    DOWN = "down"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong. subjects: which nodes or partitions, all of them."""

    level: Level
    what: str
    subjects: tuple[str, ...] = ()

    def line(self) -> str:
        """For people."""
        if not self.subjects:
            return self.what
        more = len(self.subjects) - NAMES_SHOWN
        return f"{self.what}: {', '.join(self.subjects[:NAMES_SHOWN])}" + (f" and {more} more" if more > 0 else "")


def examine(
    metadata: Mapping[str, Any], quorum: Mapping[str, Any] | None, min_insync: Mapping[str, int]
) -> list[Finding]:
    """All that is wrong, the worst first.

    metadata, quorum: the API's answers as plain data (no quorum: it was not to be had). min_insync: by topic, where
    it is known.
    """
    findings = [
        *_of_controller(metadata, quorum),
        *_of_nodes(metadata["nodes"]),
        *_of_partitions(metadata["topics"], min_insync),
    ]
    return sorted(findings, key=lambda finding: finding.level is not Level.DOWN)


def _of_controller(metadata: Mapping[str, Any], quorum: Mapping[str, Any] | None) -> Iterable[Finding]:
    if metadata["controller_node_id"] is None or quorum is None or quorum["leader_node_id"] is None:
        missing = (
            ()
            if quorum is None
            else tuple(
                f"node {member['node_id']}{_at(metadata, member['node_id'])}"
                for member in quorum["members"]
                if member["voter"] and member.get("silence", 0) > 0
            )
        )
        what = "there is no controller: nothing can be changed, and no new leaders are elected"
        if quorum is not None and missing:
            voters = sum(member["voter"] for member in quorum["members"])
            what += f"; {len(missing)} of {voters} controllers unreachable"
        yield Finding(Level.DOWN, what, missing)
        return
    silent = [
        f"node {member['node_id']}"
        for member in quorum["members"]
        if member["voter"] and member.get("silence", 0) > SILENCE_SECONDS_MAX
    ]
    voters = sum(member["voter"] for member in quorum["members"])
    if silent:
        yield Finding(Level.DEGRADED, f"{len(silent)} of {voters} voters say nothing", tuple(silent))


def _at(metadata: Mapping[str, Any], node_id: int) -> str:
    endpoints = [node["endpoint"] for node in metadata["nodes"] if node["node_id"] == node_id]
    return f" ({endpoints[0]})" if endpoints else ""


def _of_nodes(nodes: Iterable[Mapping[str, Any]]) -> Iterable[Finding]:
    for state, what in (("fenced", "not at work (starting, silent or dead)"), ("draining", "being drained")):
        named = tuple(f"node {node['node_id']} ({node['endpoint']})" for node in nodes if node["state"] == state)
        if named:
            yield Finding(Level.DEGRADED, f"{len(named)} {'node is' if len(named) == 1 else 'nodes are'} {what}", named)


def _of_partitions(topics: Iterable[Mapping[str, Any]], min_insync: Mapping[str, int]) -> Iterable[Finding]:
    def named(is_so: Callable[[str, Mapping[str, Any]], bool]) -> tuple[str, ...]:
        return tuple(
            f"{topic['name']}/{partition['partition']}"
            for topic in topics
            for partition in topic["partitions"]
            if is_so(topic["name"], partition)
        )

    offline = named(lambda _, each: each["leader_node_id"] is None)
    if offline:
        yield Finding(Level.DOWN, f"{_partitions(offline)} no leader", offline)
    few = named(
        lambda topic, each: each["leader_node_id"] is not None and len(each["isr_node_ids"]) < min_insync.get(topic, 1)
    )
    if few:
        yield Finding(Level.DOWN, f"{_partitions(few)} too few in-sync replicas to publish", few)
    lacking = named(
        lambda topic, each: (
            each["leader_node_id"] is not None
            and min_insync.get(topic, 1) <= len(each["isr_node_ids"]) < len(each["replica_node_ids"])
        )
    )
    if lacking:
        yield Finding(Level.DEGRADED, f"{_partitions(lacking)} replicas that are not in sync", lacking)


def _partitions(named: tuple[str, ...]) -> str:
    return "1 partition has" if len(named) == 1 else f"{len(named):,} partitions have"
