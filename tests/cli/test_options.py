"""Text of options as values."""

from datetime import UTC, datetime, timedelta

import pytest
import typer
from postbus import Last

from broker.cli.options import place, seconds, size, topic_settings


def test_places() -> None:
    """Words, offsets, the last N, times with and without a zone, and spans."""
    assert place("Earliest") == "earliest"
    assert place("42") == 42
    assert place("-5") == Last(5)
    assert place("2025-01-31T08:00:00Z") == datetime(2025, 1, 31, 8, tzinfo=UTC)
    assert place("@1700000000.5") == datetime.fromtimestamp(1_700_000_000.5, tz=UTC)
    local = place("2025-01-31")
    assert isinstance(local, datetime)
    assert local == datetime(2025, 1, 31).astimezone()
    assert place("15min") == timedelta(minutes=15)


def test_quantities() -> None:
    """With and without units; off is nothing."""
    assert (size("64KiB"), size("1.5mb"), size("7"), size("off")) == (65536, 1_500_000, 7, 0)
    assert (seconds("90"), seconds("5ms"), seconds("7d"), seconds("off")) == (90, 0.005, 7 * 86400, 0)


def test_settings_by_their_kind() -> None:
    """Durations, sizes, words and switches, each as the SDK wants it."""
    assert topic_settings(
        ["retention_time=1h", "max_record_bytes=1KiB", "durability=replicated", "unclean_leader_election=off"]
    ) == {"retention_time": 3600, "max_record_bytes": 1024, "durability": 2, "unclean_leader_election": False}


@pytest.mark.parametrize(
    "wrong", ["no_such=1", "retention_time", "retention_time=soon", "durability=maybe", "unclean_leader_election=2"]
)
def test_wrong_settings_are_usage_errors(wrong: str) -> None:
    """Before anything is sent."""
    with pytest.raises(typer.BadParameter):
        topic_settings([wrong])


@pytest.mark.parametrize("wrong", ["", "yesterday", "1w", "--3", "1.5"])
def test_wrong_places_are_usage_errors(wrong: str) -> None:
    """1.5 is neither an offset nor a span that anybody meant."""
    with pytest.raises(typer.BadParameter):
        place(wrong)
