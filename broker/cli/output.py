"""What a command shows: tables for people, JSON and YAML for programs, always of the same facts.

YAML is written here, a few lines of it: all strings are quoted as in JSON, which YAML contains.
"""

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from broker.cli.options import Output


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under headings. A heading that begins with > is of numbers, set to the right."""

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    title: str = ""


def show(output: Output, data: object, *blocks: Table | str) -> None:
    """Shows `data` as JSON or YAML, or the blocks, which say the same."""
    if output is Output.JSON:
        print(json.dumps(data, indent=2, ensure_ascii=False))
    elif output is Output.YAML:
        print("\n".join(_yaml(data)))
    else:
        for block in blocks:
            if isinstance(block, str):
                print(block)
            else:
                _print_table(block)


def _print_table(block: Table) -> None:
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    if block.title:
        print(f"\n{block.title}")
    table = RichTable(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in block.columns:
        table.add_column(column.removeprefix(">"), justify="right" if column.startswith(">") else "left", no_wrap=True)
    for row in block.rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    # Into a file or pipe nothing is cut to a terminal's width.
    Console(file=sys.stdout, width=None if sys.stdout.isatty() else 10_000, highlight=False).print(table)


def _yaml(data: object, indent: str = "") -> Iterator[str]:
    if isinstance(data, Mapping) and data:
        for name, value in data.items():
            yield from _yaml_entry(f"{indent}{_yaml_key(str(name))}:", value, indent)
    elif isinstance(data, list | tuple) and data:
        for value in data:
            if isinstance(value, Mapping) and value:
                first, *rest = _yaml(value, indent + "  ")
                yield f"{indent}- {first.lstrip()}"
                yield from rest
            else:
                yield from _yaml_entry(f"{indent}-", value, indent)
    else:
        yield indent + json.dumps(data, ensure_ascii=False)


def _yaml_entry(head: str, value: object, indent: str) -> Iterator[str]:
    if isinstance(value, Mapping | list | tuple) and value:
        yield head
        yield from _yaml(value, indent + "  ")
    else:
        yield f"{head} {json.dumps(value, ensure_ascii=False)}"


def _yaml_key(name: str) -> str:
    return name if name.isidentifier() and name.lower() not in _YAML_WORDS else json.dumps(name)


_YAML_WORDS = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null"})


def plain(message: Any) -> dict[str, Any]:
    """An API message as plain data: times as text, durations in seconds, enums as words, integers as integers.

    Fields that may be unset and are appear as null only where that means something (`optional`); unset messages don't.
    """
    data: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if _is_map(field):
            data[field.name] = dict(value)
        elif _is_repeated(field):
            data[field.name] = [_plain_value(field, each) for each in value]
        elif field.has_presence and not message.HasField(field.name):
            if field.message_type is None and not _is_choice(field):
                data[field.name] = None
        else:
            data[field.name] = _plain_value(field, value)
    return data


def _is_choice(field: Any) -> bool:
    """One of several; an `optional` field is alone in a oneof of its own."""
    return field.containing_oneof is not None and len(field.containing_oneof.fields) > 1


def _is_repeated(field: Any) -> bool:
    return bool(field.is_repeated) if hasattr(field, "is_repeated") else field.label == field.LABEL_REPEATED


def _is_map(field: Any) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _plain_value(field: Any, value: Any) -> Any:
    if field.message_type is not None:
        name = field.message_type.full_name
        if name == "google.protobuf.Duration":
            return number(value.seconds + value.nanos / 1e9)
        if name == "google.protobuf.Timestamp":
            return time_text(value)
        return plain(value)
    if field.enum_type is not None:
        return word(field.enum_type, value)
    return value


def word(enum: Any, number_: int) -> str:
    """An enum's value as a word: "stable" for GROUP_STATE_STABLE."""
    prefix = enum.values_by_number[0].name.removesuffix("UNSPECIFIED")
    value = enum.values_by_number.get(number_)
    return str(number_) if value is None else str(value.name.removeprefix(prefix).lower())


def number(value: float) -> int | float:
    """Without .0 where there is nothing behind the point."""
    return int(value) if value == int(value) else value


def time_text(stamp: Any) -> str | None:
    """A Timestamp as ISO 8601 in UTC; None if it is unset."""
    if not (stamp.seconds or stamp.nanos):
        return None
    moment = datetime.fromtimestamp(stamp.seconds, tz=UTC).replace(microsecond=stamp.nanos // 1000)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def counted(count: int, noun: str) -> str:
    """1 record, 2,000 records."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def bytes_text(count: float) -> str:
    """1.5 MiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def span_text(seconds: float) -> str:
    """7d, 90s: the largest unit that divides it."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length and seconds % length == 0:
            return f"{seconds / length:g}{unit}"
    return f"{seconds:g}s"


def lines(facts: Iterable[tuple[str, object]]) -> str:
    """name  value, aligned."""
    listed = list(facts)
    width = max(len(name) for name, _ in listed)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in listed)
