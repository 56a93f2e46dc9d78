"""`postbus serve`: one node in this process, from its settings to its last signal.

Owns flags, what a start says, signals and exit codes. Decides nothing about the bus: `node` does. Uses argparse and
imports late, because a start is to be over within a second.
"""

import argparse
import asyncio
import gc
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from broker.config import Settings
    from broker.node import Started

FAILED: Final = 1
USAGE: Final = 2
# On top of handover, drain and shutdown_timeout_seconds: what ends streams between the two takes up to a second.
STOP_SLACK_SECONDS: Final = 1.0

DESCRIPTION: Final = "Starts a node: with no arguments, a durable single-node bus in ./postbus-data."
EPILOG: Final = """\
Every setting is a flag, an environment variable (--client-port is POSTBUS_CLIENT_PORT) and a key of the TOML file
(client_port) at once; a flag wins over the environment, that over the file. Sizes may have a unit (64MiB), times too
(5s, 10min, 7d).

Logs go to standard error. Once the node serves, it logs the event node_ready, whose fields client_port and http_port
are the ports really bound (http_port is null without HTTP): with --log-format json, one object a line.

The first SIGTERM or SIGINT stops it gracefully, a second one at once; neither loses what was acknowledged.
Exit codes: 0 stopped as asked, 1 could not start or go on, 2 wrong arguments or settings, 70 the disk failed.
"""


def run(arguments: Sequence[str]) -> int:
    """Serves until told to stop; the exit code."""
    try:
        return _run(arguments)
    except KeyboardInterrupt:  # before anything was open
        return 128 + signal.SIGINT


def _run(arguments: Sequence[str]) -> int:
    # Imports make many objects and no garbage; what they made is never looked at again by the collector.
    gc.disable()
    from broker.config import ConfigError, load

    given = vars(_parser().parse_args(arguments))
    config_path = given.pop("config")
    try:
        settings = load(given, config_path=config_path)
    except ConfigError as error:
        for line in str(error).splitlines():
            print(f"postbus serve: {line}", file=sys.stderr)
        return USAGE
    import uvloop

    _import_structlog()
    import broker.node  # noqa: F401 - before the collector is back
    from broker.telemetry import configure_logging

    gc.freeze()
    gc.enable()
    configure_logging(level=settings.log_level, log_format=settings.log_format, node_id=settings.node_id)
    return uvloop.run(_serve(settings))


def _import_structlog() -> None:
    """Without rich, which it would draw tracebacks with: a node's are plain, and it is ready a tenth sooner."""
    if "rich" not in sys.modules:
        sys.modules["rich"] = None  # type: ignore[assignment]  # how the import system says: not here
        import structlog  # noqa: F401

        del sys.modules["rich"]


async def _serve(settings: "Settings") -> int:
    import structlog

    from broker import __version__
    from broker.controller.state import MetadataError
    from broker.node import AddressInUse, Node
    from broker.storage.errors import StorageError

    log = structlog.get_logger("broker.cli.serve")
    asked: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    _watch_signals(asked)
    log.info("node_starting", version=__version__, data_dir=str(settings.data_dir.resolve()), pid=os.getpid())
    node = Node(settings)
    starting = asyncio.create_task(node.start())
    first: set[asyncio.Future[Any]] = {starting, asked}
    await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
    longest_seconds = settings.handover_timeout_seconds + settings.shutdown_timeout_seconds + STOP_SLACK_SECONDS
    if not starting.done():
        log.info("node_stopping", signal=asked.result(), before="it was ready")
        starting.cancel()
        # A recovery under way is not waited for longer than a stop may take: like a crash it does no harm.
        await asyncio.wait({starting}, timeout=longest_seconds)
        log.info("node_stopped")
        _end_at_once(0)
    try:
        started = starting.result()
    except (StorageError, MetadataError, AddressInUse, OSError) as error:
        _tell_failure(settings, _what_to_do(error, settings))
        return FAILED
    _tell_ready(settings, started)
    log.info("node_stopping", signal=await asked, grace_seconds=settings.drain_grace_seconds)
    timeout_seconds = settings.drain_grace_seconds + longest_seconds
    stopping = asyncio.create_task(node.stop(at_exit=True))
    await asyncio.wait({stopping}, timeout=timeout_seconds)
    if not stopping.done():
        log.warning("stop_timeout", seconds=timeout_seconds, action="the process ends; nothing acknowledged is lost")
        _end_at_once(FAILED)
    stopping.result()
    log.info("node_stopped")
    # The end of the process is what resets connections: gRPC's own stop would tell the last callers CANCELLED.
    _end_at_once(0)
    return 0


def _watch_signals(asked: "asyncio.Future[str]") -> None:
    def received(number: signal.Signals) -> None:
        if asked.done():
            _end_at_once(128 + number)
        asked.set_result(number.name)

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, received, number)


def _end_at_once(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


# --- what it says ---


def _tell_ready(settings: "Settings", started: "Started") -> None:
    import structlog

    recovery = started.recovery
    if not _logs_json(settings):
        print(_guide(settings, started), file=sys.stderr, flush=True)
        return
    structlog.get_logger("broker.cli.serve").info(
        "node_ready",
        client_port=started.client_port,
        http_port=started.http_port,
        host=settings.host,
        seconds=round(started.seconds, 3),
        data="new" if recovery.created else "recovered",
        clean_stop_before=recovery.clean or recovery.created,
        replayed_bytes=recovery.wal_bytes,
        recovery_seconds=round(recovery.seconds, 3),
        topics=started.topics,
        partitions=started.partitions,
        records=started.records,
    )


def _guide(settings: "Settings", started: "Started") -> str:
    """For whoever started it by hand."""
    from broker import __version__

    recovery = started.recovery
    host = "localhost" if settings.host in ("127.0.0.1", "0.0.0.0", "::", "::1") else settings.host
    address = f"[{host}]:{started.client_port}" if ":" in host else f"{host}:{started.client_port}"
    if recovery.created:
        data = "new"
    else:
        after = "after a clean stop" if recovery.clean else "after a crash or kill, all that was acknowledged is here"
        data = f"recovered in {recovery.seconds:.2f} s {after}"
    command = called_as() + ("" if address == "localhost:7070" else f" -a {address}")
    lines = [
        "",
        f"  Postbus {__version__} is ready in {started.seconds:.2f} s: clients connect to {address}",
        f"  data      {settings.data_dir.resolve()} ({data})",
        f"  holds     {started.records:,} records in {started.topics} topics, {started.partitions} partitions",
    ]
    if started.http_port is not None:
        http_host = address.rpartition(":")[0]
        lines.append(f"  metrics   http://{http_host}:{started.http_port}/metrics")
    lines += [
        "",
        "  In a second terminal:",
        f"    {command} publish greetings hello --create",
        f"    {command} subscribe greetings",
        "",
        "  Ctrl-C stops it.",
        "",
    ]
    return "\n".join(lines)


def called_as() -> str:
    """How to call this command from here."""
    called = Path(sys.argv[0])
    found = shutil.which("postbus")
    if found is not None and called.exists() and Path(found).samefile(called):
        return "postbus"
    if called.name != "postbus":
        return f"{sys.executable} -m broker.cli.main"
    path = called.resolve()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _logs_json(settings: "Settings") -> bool:
    return settings.log_format == "json" or (settings.log_format == "auto" and not sys.stderr.isatty())


def _what_to_do(error: Exception, settings: "Settings") -> str:
    from broker.storage.errors import StoreCorrupt, StoreLocked, StoreLoss

    doctor = f"{called_as()} doctor --data-dir {settings.data_dir}"
    if isinstance(error, StoreLocked):
        return f"{error}; stop that one first, or name another folder with --data-dir"
    if isinstance(error, StoreLoss):
        folder = settings.data_dir
        return f"{error} (here with --data-dir {folder})" if folder != Path("postbus-data") else str(error)
    if isinstance(error, StoreCorrupt):
        return f"{error}; see what is damaged with: {doctor} --verify"
    return str(error)


def _tell_failure(settings: "Settings", message: str) -> None:
    import structlog

    message = " ".join(message.split())
    if _logs_json(settings):
        structlog.get_logger("broker.cli.serve").error("start_failure", error=message)
    else:
        print(f"postbus serve: {message}", file=sys.stderr)


# --- flags ---


def _parser() -> argparse.ArgumentParser:
    from broker.config import describe_settings

    parser = argparse.ArgumentParser(
        prog="postbus serve",
        usage="postbus serve [--config FILE] [--SETTING VALUE]...",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        argument_default=None,
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="TOML file with settings (or POSTBUS_CONFIG)")
    groups: dict[str, Any] = {}
    for setting in describe_settings():
        if setting.section not in groups:
            groups[setting.section] = parser.add_argument_group(setting.section)
        default = f" Default: {setting.default_text}." if setting.default_text else ""
        groups[setting.section].add_argument(
            setting.flag,
            dest=setting.name,
            metavar=setting.kind.upper() if "|" not in setting.kind else setting.kind,
            help=(setting.help + default).replace("%", "%%"),
        )
    return parser
