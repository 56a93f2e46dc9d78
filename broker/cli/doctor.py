"""`postbus doctor`: looks at a data directory while no node uses it, and accepts losses when told to.

Offline: the only command besides `serve` that touches the broker's layers.
"""

import sys
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from broker.cli import exits
from broker.cli.options import Output, OutputOption, Yes, confirm
from broker.cli.output import Table, bytes_text, lines, show

if TYPE_CHECKING:
    from broker.cli.inspection import DatabaseReport, Inspection, Progress
    from broker.storage.recovery import Loss

EPILOG: Final = (
    "Exit codes: 0 a node can start on it and nothing damaged was found, 1 there is damage or a loss, 2 wrong"
    " arguments, 3 there is no such data directory, 4 a process is using it and the databases can't be looked into."
)
PROGRESS_SECONDS: Final = 0.2


def doctor(
    data_dir: Annotated[
        Path, typer.Option("--data-dir", "-d", envvar="POSTBUS_DATA_DIR", metavar="PATH", help="The node's folder.")
    ] = Path("postbus-data"),
    *,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read every batch and check its checksum; takes as long as the disk does.")
    ] = False,
    accept_loss: Annotated[
        bool,
        typer.Option("--accept-loss", help="Go on with what is left of damaged databases; what is gone is recorded."),
    ] = False,
    yes: Yes = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Looks at a data directory: who uses it, how it opens, what is damaged or was lost.

    For a node that is stopped, or refuses to start. Without --accept-loss nothing is given up.
    """
    if not (data_dir / "FORMAT").exists():
        exits.fail(f"{data_dir} is no data directory of Postbus; name it with --data-dir", exits.NOT_FOUND)
    if accept_loss:
        confirm(f"give up what is lost in {data_dir}, and go on with the rest", yes=yes)
    from broker.cli.inspection import inspect
    from broker.storage.errors import StorageError

    try:
        accepted = _accept(data_dir) if accept_loss else None
        found = inspect(data_dir, verify=verify, progress=_progress())
    except (StorageError, OSError) as error:
        exits.fail(str(error), _code(error))
    finally:
        _end_progress()
    _tell(found, accepted, output)
    if found.in_use and (verify or accept_loss):
        raise typer.Exit(exits.UNAVAILABLE)
    if not found.healthy:
        raise typer.Exit(exits.FAILED)


def _code(error: Exception) -> int:
    from broker.storage.errors import StoreLocked

    return exits.UNAVAILABLE if isinstance(error, StoreLocked) else exits.FAILED


def _accept(data_dir: Path) -> "list[Loss]":
    from broker.storage.store import StorageSettings, accept_losses

    return accept_losses(data_dir, StorageSettings(), now_us=time.time_ns() // 1000)


def _progress() -> "Progress":
    if not sys.stderr.isatty():
        return lambda done, total: None
    shown = begin = time.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal shown
        now = time.monotonic()
        if now - shown >= PROGRESS_SECONDS:
            shown = now
            share = f"{done / total:.0%}" if total else ""
            text = f"verifying: {bytes_text(done)} of {bytes_text(total)} {share}, {bytes_text(done / (now - begin))}/s"
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)

    return tell


def _end_progress() -> None:
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)


# --- what it says ---


def _tell(found: "Inspection", accepted: "list[Loss] | None", output: Output) -> None:
    records = sum(log.end_offset - log.log_start_offset for log in found.logs if not log.topic.startswith("__"))
    facts: list[tuple[str, object]] = [
        ("data directory", found.path.resolve()),
        ("node", _identity_text(found)),
        ("in use", found.in_use or "no"),
        ("accepted losses", len(found.losses)),
    ]
    if not found.in_use:
        facts.append(("records", "not known" if found.databases[1].problem else f"{records:,}"))
        facts.append(("checksums", _verified_text(found)))
        facts.append(("verdict", _verdict(found)))
    blocks: list[Table | str] = [lines(facts), _databases_table(found)]
    if found.logs:
        blocks.append(_logs_table(found))
    if found.damage:
        blocks.append(_damage_table(found))
    if found.losses:
        blocks.append(_losses_table("Accepted losses", found.losses))
    if accepted is not None:
        told = "accepted; the node starts again" if accepted else "nothing was lost, and nothing was changed"
        blocks.append(f"\n{told}")
    show(output, _data(found, accepted), *blocks)
    lost = sum(1 for log in found.logs if not log.topic)
    if lost:
        exits.say(f"postbus: {lost} partition logs belong to no topic; the next start of a node deletes them")
    for database in found.databases:
        if database.problem and output is Output.TABLE:
            exits.say("postbus: " + " ".join(database.problem.split()))
        elif database.rebuild is not None and output is Output.TABLE:
            exits.say(f"postbus: {database.name} could not be written: {' '.join(database.rebuild.why.split())}")


def _identity_text(found: "Inspection") -> str:
    identity = found.identity
    if identity is None:
        return "none has started on it yet"
    return f"{identity.node_id} of cluster {identity.cluster_id}, store {identity.store_id}"


def _verified_text(found: "Inspection") -> str:
    if not found.verified:
        return "not looked at; --verify does"
    return f"{found.verified_batches:,} batches with {found.verified_records:,} records are good"


def _verdict(found: "Inspection") -> str:
    if any(database.problem for database in found.databases):
        if found.identity is not None and found.identity.replicated:
            return "its node starts without what is lost here, and gets it from the others of its cluster"
        return "a node does not start on this"
    rebuilt = [database.name for database in found.databases if database.rebuild is not None]
    if rebuilt:
        return f"the next start copies what can be read of {' and '.join(rebuilt)} into a new database, and goes on"
    if found.damage:
        return f"records in {len(found.damage):,} places cannot be read; a node starts, and serves the others"
    return "a node can start on this"


def _databases_table(found: "Inspection") -> Table:
    def state(database: "DatabaseReport") -> str:
        if database.problem:
            return "DAMAGED"
        if database.rebuild is not None:
            return "damaged; copied at the next start"
        if database.recovered_sequence is None:
            return "not looked into" if found.in_use else "empty"
        if database.damaged_tail:
            return "damage behind all that was promised"
        return "clean" if database.clean_stop else "recovered; not closed in good order"

    return Table(
        ("DATABASE", ">SIZE", ">PROMISED WRITES", ">FOUND", "STATE"),
        [
            (
                each.name,
                bytes_text(each.size_bytes),
                "no mark" if each.promised_sequence is None else each.promised_sequence,
                "" if each.recovered_sequence is None else each.recovered_sequence,
                state(each),
            )
            for each in found.databases
        ],
        "Databases",
    )


def _logs_table(found: "Inspection") -> Table:
    return Table(
        ("TOPIC", ">PARTITION", ">START", ">END", ">RECORDS", ">SIZE"),
        [
            (
                log.topic or f"(log {log.log_id}, of no topic)",
                log.partition if log.topic else "",
                log.log_start_offset,
                log.end_offset,
                log.end_offset - log.log_start_offset,
                bytes_text(log.size_bytes),
            )
            for log in found.logs
        ],
        "Partitions",
    )


def _damage_table(found: "Inspection") -> Table:
    return Table(
        ("TOPIC", ">PARTITION", ">FROM", ">TO", "WHY"),
        [(each.topic, each.partition, each.offset, each.end_offset - 1, each.why) for each in found.damage],
        "Damage (offsets, both included)",
    )


def _losses_table(title: str, losses: "list[Loss]") -> Table:
    return Table(
        ("ACCEPTED", "DATABASE", ">PROMISED", ">LEFT", "SET ASIDE", "WHY"),
        [
            (
                datetime.fromtimestamp(each.time_us / 1e6, tz=UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
                each.database,
                each.promised_sequence,
                each.recovered_sequence,
                each.set_aside or "nothing",
                each.reason.partition(". ")[0],
            )
            for each in losses
        ],
        title,
    )


def _data(found: "Inspection", accepted: "list[Loss] | None") -> dict[str, Any]:
    data: dict[str, Any] = {
        "data_dir": str(found.path.resolve()),
        "healthy": None if found.in_use else found.healthy,
        "identity": None if found.identity is None else asdict(found.identity),
        "in_use": found.in_use,
        "verified": found.verified,
        "verified_batches": found.verified_batches,
        "verified_records": found.verified_records,
        "databases": [asdict(each) for each in found.databases],
        "partitions": [asdict(each) for each in found.logs],
        "damage": [asdict(each) for each in found.damage],
        "losses": [asdict(each) for each in found.losses],
    }
    if accepted is not None:
        data["accepted"] = [asdict(each) for each in accepted]
    return data
