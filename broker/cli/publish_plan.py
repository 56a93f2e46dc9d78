"""What one run of `publish` is asked for, and what came of it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from broker.cli import exits


@dataclass(frozen=True, slots=True)
class PublishPlan:
    """What was asked for."""

    topic: str
    values: Sequence[bytes]  # none: standard input
    key: bytes | None
    key_field: str
    json_lines: bool
    partition: int | None
    headers: Sequence[tuple[str, bytes]]
    create: bool
    skip_invalid: bool
    from_line: int
    request_id: str
    acks: str
    compression: str | None
    batch_bytes_max: int
    linger_seconds: float
    timeout_seconds: float
    connect_timeout_seconds: float


@dataclass(slots=True)
class PartitionOutcome:
    """What went to one partition."""

    base_offset: int
    end_offset: int
    records: int
    duplicate: bool = False


@dataclass(slots=True)
class Outcome:
    """What came of it. error: empty if all went well; resume_line: the first that is not known to be safe."""

    records: int = 0
    size_bytes: int = 0
    seconds: float = 0.0
    skipped: int = 0
    partitions: dict[int, PartitionOutcome] = field(default_factory=dict)
    error: str = ""
    code: int = exits.OK
    resume_line: int = 1
    acknowledged_later: int = 0

    def add(self, partition: int, base_offset: int, records: int, *, duplicate: bool = False) -> None:
        """Records went there."""
        at = self.partitions.get(partition)
        if at is None:
            self.partitions[partition] = PartitionOutcome(base_offset, base_offset + records, records, duplicate)
        else:
            at.end_offset = max(at.end_offset, base_offset + records)
            at.records += records
            at.duplicate |= duplicate
