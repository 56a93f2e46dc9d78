"""What a subscriber asks for in its first message, checked and with defaults filled in."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from postbus.v1 import record_pb2, subscriber_pb2

from broker import errors
from broker.services import positions, requests
from broker.services.delivery import DeliveryLimits

RESPONSE_BYTES_DEFAULT: Final = 4_000_000
RESPONSE_BYTES_MIN: Final = 64 * 1024
SELECTORS_MAX: Final = 1000
CLIENT_ID_CHARS_MAX: Final = 255
HEARTBEAT_S_MIN: Final = 0.5
HEARTBEAT_S_MAX: Final = 300.0
CREDIT_MAX: Final = 1 << 62


@dataclass(frozen=True, slots=True)
class SubscriberSettings:
    """Defaults and bounds of subscriptions; times in seconds."""

    node_id: int = 1
    window_records: int = 5000
    window_bytes: int = 4 * 1024 * 1024
    response_bytes_max: int = 16 * 1024 * 1024
    heartbeat_interval_s: float = 5.0
    processing_timeout_s: float = 300.0
    processing_timeout_max_s: float = 3600.0
    start_timeout_s: float = 30.0
    fetch_wait_max_s: float = 60.0
    read_ahead_bytes: int = 1024 * 1024
    reads_at_once_max: int = 2
    # Partitions that have read ahead from disk at once; times `read_ahead_bytes`, this is a stream's memory.
    partitions_ahead_max: int = 16
    # How long the leader of a partition is waited for when a place in it has to be found.
    leader_wait_s: float = 20.0
    # The same, when only the end of what may be read is asked for: what is known here can be answered meanwhile.
    end_wait_s: float = 0.5
    # Between two tries to read a partition whose leader does not answer.
    read_retry_s: float = 0.1
    places_at_once_max: int = 32  # partitions whose leaders are asked at once


@dataclass(frozen=True, slots=True)
class Plan:
    """A checked SubscribeStart."""

    selectors: Mapping[str, subscriber_pb2.TopicSelector]
    start_at: subscriber_pb2.StartPosition
    group: str
    group_kind: subscriber_pb2.GroupKind
    limits: DeliveryLimits
    explicit_credit: bool
    window_records: int
    window_bytes: int
    heartbeat_interval_s: float
    processing_timeout_s: float
    out_of_range: int
    acks_on_send: bool
    report_acks: bool
    assign_paused: bool
    instance_id: str
    member_id: str
    client_id: str
    rack: str


def check(start: subscriber_pb2.SubscribeStart, settings: SubscriberSettings) -> Plan:
    """Raises INVALID_ARGUMENT with the path of the first field that is wrong. Unknown fields were refused before."""
    selectors = _check_selectors(start)
    positions.check_start("start.start_at", start.start_at)
    if start.group:
        _check_group(start)
    else:
        _refuse_group_fields(start)
    response_bytes = start.max_response_bytes or RESPONSE_BYTES_DEFAULT
    if not RESPONSE_BYTES_MIN <= response_bytes <= settings.response_bytes_max:
        raise errors.invalid_field(
            "start.max_response_bytes",
            f"{response_bytes} is not within {RESPONSE_BYTES_MIN} and {settings.response_bytes_max}",
        )
    heartbeat_s = settings.heartbeat_interval_s
    if start.HasField("heartbeat_interval"):
        heartbeat_s = requests.seconds(
            "start.heartbeat_interval", start.heartbeat_interval, minimum=HEARTBEAT_S_MIN, maximum=HEARTBEAT_S_MAX
        )
    processing_s = settings.processing_timeout_s
    if start.HasField("processing_timeout"):
        processing_s = requests.seconds(
            "start.processing_timeout",
            start.processing_timeout,
            minimum=0.1,
            maximum=settings.processing_timeout_max_s,
        )
    requests.check_label("start.client_id", start.client_id, chars_max=CLIENT_ID_CHARS_MAX)
    requests.check_label("start.rack", start.rack, chars_max=CLIENT_ID_CHARS_MAX)
    return Plan(
        selectors=selectors,
        start_at=start.start_at,
        group=start.group,
        group_kind=start.group_kind,
        limits=DeliveryLimits(
            codecs=check_codecs("start.accept_compressions", start.accept_compressions),
            response_bytes_max=response_bytes,
            batch_records_max=start.max_batch_records,
        ),
        explicit_credit=start.explicit_credit,
        window_records=start.window_records or settings.window_records,
        window_bytes=start.window_bytes or settings.window_bytes,
        heartbeat_interval_s=heartbeat_s,
        processing_timeout_s=processing_s,
        out_of_range=start.out_of_range,
        acks_on_send=start.ack_mode == subscriber_pb2.ACK_MODE_ON_SEND,
        report_acks=start.report_acks,
        assign_paused=start.assign_paused,
        instance_id=start.instance_id,
        member_id=start.member_id,
        client_id=start.client_id,
        rack=start.rack,
    )


def check_codecs(field: str, codecs: Iterable[record_pb2.Compression]) -> frozenset[int]:
    """The codecs that a client can read."""
    chosen = frozenset(int(codec) for codec in codecs)
    if record_pb2.COMPRESSION_UNSPECIFIED in chosen:
        raise errors.invalid_field(field, "COMPRESSION_UNSPECIFIED names no codec; plain batches need no mention")
    return chosen


def _check_selectors(start: subscriber_pb2.SubscribeStart) -> dict[str, subscriber_pb2.TopicSelector]:
    if not start.topics:
        raise errors.invalid_field("start.topics", "is required: name at least one topic")
    if len(start.topics) > SELECTORS_MAX:
        raise errors.too_large(
            "start.topics", f"has {len(start.topics)} entries, at most {SELECTORS_MAX} are allowed", limit=SELECTORS_MAX
        )
    selectors: dict[str, subscriber_pb2.TopicSelector] = {}
    for index, selector in enumerate(start.topics):
        path = f"start.topics[{index}]"
        requests.check_name(f"{path}.topic", selector.topic)
        if selector.topic in selectors:
            raise errors.invalid_field(f"{path}.topic", f"{selector.topic!r} is named twice")
        selectors[selector.topic] = selector
        _check_selector(path, selector, in_group=bool(start.group))
    return selectors


def _check_selector(path: str, selector: subscriber_pb2.TopicSelector, *, in_group: bool) -> None:
    if selector.partitions and in_group:
        raise errors.invalid_field(f"{path}.partitions", "must be empty in a group: the group assigns partitions")
    if len(set(selector.partitions)) != len(selector.partitions):
        raise errors.invalid_field(f"{path}.partitions", "names a partition twice")
    for partition in selector.partitions:
        if partition < 0:
            raise errors.invalid_field(f"{path}.partitions", f"{partition} is negative; partitions begin at 0")
    positions.check_start(f"{path}.start_at", selector.start_at)
    seen: set[int] = set()
    for number, position in enumerate(selector.positions):
        check_position(f"{path}.positions[{number}]", position, topic=selector.topic)
        if position.partition in seen:
            raise errors.invalid_field(f"{path}.positions", f"names partition {position.partition} twice")
        seen.add(position.partition)
        if selector.partitions and position.partition not in selector.partitions:
            raise errors.invalid_field(
                f"{path}.positions[{number}].partition", f"{position.partition} is not among `partitions`"
            )
    if selector.HasField("stop_at"):
        if in_group:
            raise errors.invalid_field(
                f"{path}.stop_at", "is not for groups: stop when you see `caught_up`, or read without a group"
            )
        positions.check_stop(f"{path}.stop_at", selector.stop_at)


def check_position(path: str, position: record_pb2.Position, *, topic: str = "") -> None:
    """A position says all three things; `topic`: the only one that it may name."""
    if topic and position.topic not in {"", topic}:
        raise errors.invalid_field(f"{path}.topic", f"{position.topic!r} is not {topic!r}")
    if not topic:
        requests.check_name(f"{path}.topic", position.topic)
    if not position.HasField("partition"):
        raise errors.invalid_field(f"{path}.partition", "is required; partitions begin at 0")
    if position.partition < 0:
        raise errors.invalid_field(f"{path}.partition", f"{position.partition} is negative; partitions begin at 0")
    if not position.HasField("offset"):
        raise errors.invalid_field(f"{path}.offset", "is required")
    requests.check_offset(f"{path}.offset", position.offset)


def _check_group(start: subscriber_pb2.SubscribeStart) -> None:
    requests.check_name("start.group", start.group)
    if start.group_kind == subscriber_pb2.GROUP_KIND_SHARED:
        raise errors.unknown_field("start.group_kind", "this version has ordered groups only")
    requests.check_label("start.instance_id", start.instance_id, chars_max=CLIENT_ID_CHARS_MAX)
    requests.check_label("start.member_id", start.member_id, chars_max=CLIENT_ID_CHARS_MAX)
    if start.explicit_credit and (start.window_records or start.window_bytes):
        raise errors.invalid_field("start.explicit_credit", "excludes `window_records` and `window_bytes`")


def _refuse_group_fields(start: subscriber_pb2.SubscribeStart) -> None:
    for name in ("group_kind", "instance_id", "member_id", "window_records", "window_bytes", "assign_paused"):
        if getattr(start, name):
            raise errors.invalid_field(f"start.{name}", "needs `group`")
    if start.ack_mode or start.report_acks or start.HasField("processing_timeout"):
        raise errors.invalid_field("start.group", "is required for acknowledgements: without one there are none")
