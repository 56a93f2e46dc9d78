"""Every bound of replication."""

from dataclasses import dataclass, field
from typing import Final

from broker.replication.leader import IsrSettings

MIB: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class ReplicationSettings:
    """What holds for all partitions of a node."""

    isr: IsrSettings = field(default_factory=IsrSettings)
    """When a follower counts as in sync."""
    isr_check_interval_ms: int = 500
    """How often followers that lag are looked for."""
    alter_timeout_ms: int = 5_000
    """How long the controller may take over a change of the ISR before its outcome counts as unknown."""
    credit_bytes: int = 8 * MIB
    """Bytes that a leader may have under way to a follower. Memory on both sides; less costs throughput."""
    catch_up_credit_bytes: int = 4 * MIB
    """The same for replicas that are not in sync yet."""
    catch_up_bytes_per_s: int = 0
    """Bytes a second to all replicas that catch up, unless an operator's throttle says otherwise; 0: no limit."""
    response_bytes_max: int = MIB
    """Bytes of batches in one message to a follower, but for one that is larger by itself."""
    partition_bytes_max: int = 256 * 1024
    """Bytes of one partition before the next one has its turn."""
    news_delay_ms: int = 2
    """How long a new high watermark waits for batches to travel with. Less: more messages under load; more: who reads
    from a follower hears of records later."""
    link_heartbeat_ms: int = 500
    """A leader with nothing to say says so."""
    link_silence_ms: int = 3_000
    """A leader that is silent for so long is connected anew."""
    retry_ms: int = 100
    """Before a follower asks again after a refusal, or a batch that it could not take."""
    damage_retry_max_ms: int = 5_000
    """At most so long between two tries to tell the controller of a damaged copy."""
    damage_settle_ms: int = 1_000
    """How long a leader with a damaged copy waits for what it appended to be safe before another one leads."""
    damage_wait_ms: int = 5_000
    """How long a reader that met damage waits for another copy to take over."""
    succession_timeout_ms: int = 500
    """How long a leader waits for a node to say whether it knows of a successor, before it asks again."""
    remote_buffer_bytes: int = MIB
    """What was read last of a partition that has no replica here, kept for its next reader."""
    remote_buffers_bytes: int = 32 * MIB
    """The same, of all such partitions together."""
    remote_wait_ms: int = 5_000
    """How long one question for news of such a partition waits at its leader."""
    remote_timeout_ms: int = 10_000
    """How long a read of such a partition looks for a leader."""
