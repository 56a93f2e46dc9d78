"""Options that many commands share, and how their text becomes values: sizes, times, places in a log, settings."""

import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

if TYPE_CHECKING:
    from postbus.positions import Start

ADDRESS_ENV: Final = "POSTBUS_ADDRESS"
OUTPUT_ENV: Final = "POSTBUS_OUTPUT"
ADDRESS_DEFAULT: Final = "localhost:7070"

PLACE_HELP: Final = (
    "earliest, latest, an offset, a time (2025-01-31T08:00, @seconds), so long ago (90s, 15min, 2h, 7d), or -N: the"
    " last N of each partition"
)


class Output(StrEnum):
    """How to show what was asked for."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


Address = Annotated[
    str,
    typer.Option("--address", "-a", envvar=ADDRESS_ENV, help="host:port of a broker; several with commas between."),
]
OutputOption = Annotated[
    Output, typer.Option("--output", "-o", envvar=OUTPUT_ENV, help="How to show it.", case_sensitive=False)
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would happen and change nothing.")]

_QUANTITY: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)", re.IGNORECASE)
_BYTES: Final = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}
_SECONDS: Final = {"": 1.0, "ms": 0.001, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_OFF: Final = frozenset({"off", "none", "unlimited", "forever"})


def size(text: str) -> int:
    """Bytes: 1048576, 1MiB; "off" is 0."""
    return int(_quantity(text, _BYTES, "a size, such as 64MiB"))


def seconds(text: str) -> float:
    """Seconds: 90, 90s, 15min, 7d; "off" is 0."""
    return _quantity(text, _SECONDS, "a time span, such as 30s, 15min or 7d")


def _quantity(text: str, units: dict[str, Any], what: str) -> float:
    if text.strip().lower() in _OFF:
        return 0
    found = _QUANTITY.fullmatch(text.strip())
    if found is None or found[2].lower() not in units:
        raise typer.BadParameter(f"{text!r} is not {what} (units: {', '.join(unit for unit in units if unit)})")
    return float(found[1]) * float(units[found[2].lower()])


def place(text: str) -> "Start":
    """A place in a log, see PLACE_HELP."""
    from postbus import Last

    word = text.strip()
    if word.lower() in ("earliest", "latest"):
        return word.lower()
    if word.isdecimal():
        return int(word)
    if re.fullmatch(r"-\d+", word):
        return Last(int(word[1:]))
    moment = _moment(word)
    if moment is not None:
        return moment
    span = _QUANTITY.fullmatch(word)
    if span is not None and span[2].lower() in _SECONDS and span[2]:
        return timedelta(seconds=seconds(word))
    raise typer.BadParameter(f"{text!r} is no place in a log: give {PLACE_HELP}")


def _moment(word: str) -> datetime | None:
    if re.fullmatch(r"@\d+(\.\d+)?", word):
        return datetime.fromtimestamp(float(word[1:]), tz=UTC)
    try:
        moment = datetime.fromisoformat(word)
    except ValueError:
        return None
    # As the clock on the wall says, unless it names a zone.
    return moment if moment.tzinfo is not None else moment.astimezone()


def pairs(texts: Iterable[str], what: str) -> list[tuple[str, str]]:
    """name=value each."""
    found = []
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise typer.BadParameter(f"{text!r} is not {what}=value")
        found.append((name, value))
    return found


def partition_name(text: str) -> tuple[str, int]:
    """TOPIC/PARTITION."""
    topic, slash, number = text.rpartition("/")
    if not slash or not topic or not (number.isascii() and number.isdecimal()):
        raise typer.BadParameter(f"{text!r} is not TOPIC/PARTITION, such as orders/0")
    return topic, int(number)


def partition_names(texts: Iterable[str]) -> list[tuple[str, int]]:
    """TOPIC/PARTITION each."""
    return [partition_name(text) for text in texts]


def replica_lists(texts: Iterable[str]) -> dict[tuple[str, int], list[int]]:
    """TOPIC/PARTITION=NODE,NODE… each."""
    found = {}
    for name, nodes in pairs(texts, "TOPIC/PARTITION"):
        node_ids = [node.strip() for node in nodes.split(",")]
        if not all(node_id.isascii() and node_id.isdecimal() for node_id in node_ids):
            raise typer.BadParameter(f"{name}: {nodes!r} are not node numbers with commas between")
        found[partition_name(name)] = [int(node_id) for node_id in node_ids]
    return found


def topic_settings(texts: Iterable[str]) -> dict[str, object]:
    """key=value each, by the names of TopicConfig, as `client.topics` takes them."""
    settings: dict[str, object] = {}
    for name, value in pairs(texts, "setting"):
        field = setting(name)
        if field.message_type is not None:
            settings[name] = seconds(value)
        elif field.enum_type is not None:
            settings[name] = _choice(name, value, field.enum_type)
        elif field.cpp_type == field.CPPTYPE_BOOL:
            settings[name] = _yes_or_no(name, value)
        else:
            settings[name] = size(value)
    return settings


def setting(name: str) -> Any:
    """The field of TopicConfig that has this name."""
    from postbus.v1 import topic_pb2

    fields = topic_pb2.TopicConfig.DESCRIPTOR.fields_by_name
    if name not in fields:
        raise typer.BadParameter(f"there is no setting {name!r}; there are: {', '.join(fields)}")
    return fields[name]


def _choice(name: str, value: str, enum: Any) -> int:
    prefix = enum.values_by_number[0].name.removesuffix("UNSPECIFIED")
    choices = {each.name.removeprefix(prefix).lower(): each.number for each in enum.values if each.number}
    number = choices.get(value.lower().replace("-", "_"))
    if number is None:
        raise typer.BadParameter(f"{name} is one of: {', '.join(choices)}; not {value!r}")
    return int(number)


def _yes_or_no(name: str, value: str) -> bool:
    known = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
    if value.lower() not in known:
        raise typer.BadParameter(f"{name} is true or false, not {value!r}")
    return known[value.lower()]


def confirm(question: str, *, yes: bool) -> None:
    """Asks on a terminal; without one, `--yes` has to be said."""
    import sys

    if yes:
        return
    if not sys.stdin.isatty():
        raise typer.BadParameter(f"{question}: nobody is there to ask; say --yes", param_hint="--yes")
    typer.confirm(f"{question}?", abort=True, err=True)
