"""Every error that this package raises, and how a broker's answer becomes one.

One class for each thing that a caller might do about it. An error arrives as a gRPC status with google.rpc details,
or in-band as a `Failure`; both carry the same facts and give the same class. The details are decoded by hand, so that
neither googleapis-common-protos nor grpcio-status (which forces a recent grpcio) is needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Final

import grpc

from postbus import wire
from postbus.v1 import error_pb2

_CODES: Final = {code.value[0]: code for code in grpc.StatusCode}
_PREFIX: Final = "ERROR_REASON_"
INVALID_ARGUMENT: Final = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND: Final = grpc.StatusCode.NOT_FOUND


class PostbusError(Exception):
    """Anything that went wrong with Postbus.

    reason: which error, as in the API's ErrorReason without its prefix ("TOPIC_NOT_FOUND"); empty if the broker
        never answered or gRPC itself refused.
    code: the gRPC status code.
    message: what was wrong, for people.
    retriable: the same request may succeed later, unchanged.
    outcome_unknown: it may have been applied all the same.
    retry_after: seconds to wait at least before trying again; None: as you like.
    metadata: facts by name ("end_offset", …), all text.
    field: path of the offending field, for InvalidArgument.
    advice: what to do about it.
    """

    advice: ClassVar[str] = ""

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        code: grpc.StatusCode = grpc.StatusCode.UNKNOWN,
        retriable: bool = False,
        outcome_unknown: bool = False,
        retry_after: float | None = None,
        metadata: Mapping[str, str] | None = None,
        field: str = "",
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.code = code
        self.retriable = retriable
        self.outcome_unknown = outcome_unknown
        self.retry_after = retry_after
        self.metadata = dict(metadata or {})
        self.field = field

    def __str__(self) -> str:
        name = f" [{self.reason or self.code.name}]" if self.reason or self.code is not grpc.StatusCode.UNKNOWN else ""
        return f"{self.message}{name}" + (f" ({self.advice})" if self.advice else "")

    def copy(self) -> PostbusError:
        """The same error, to be raised once more: an exception that is raised twice mixes its tracebacks."""
        return type(self)(
            self.message,
            reason=self.reason,
            code=self.code,
            retriable=self.retriable,
            outcome_unknown=self.outcome_unknown,
            retry_after=self.retry_after,
            metadata=self.metadata,
            field=self.field,
        )


class NotFound(PostbusError):
    """Something that was named does not exist."""

    advice = "check the name"


class TopicNotFound(NotFound):
    """The topic does not exist; topics are never created by publishing to them."""

    advice = "check the name, or create it: client.topics.create(…), or `postbus topic create`"


class PartitionNotFound(NotFound):
    """The topic has fewer partitions."""

    advice = "partitions are numbered from 0; client.topics.get(…).partition_count tells how many there are"


class GroupNotFound(NotFound):
    """The group does not exist; the first subscriber creates it."""

    advice = "check the name; the first subscriber in a group creates it"


class AlreadyExists(PostbusError):
    """Something of that name exists."""

    advice = "use it, or choose another name"


class InvalidArgument(PostbusError):
    """The request can never succeed as it is; `field` says where."""

    advice = "change the request; repeating it is no use"


class TooLarge(InvalidArgument):
    """A record, batch or message is over its limit."""

    advice = "send less at once, store the payload elsewhere, or raise the topic's max_record_bytes"


class OffsetOutOfRange(PostbusError):
    """The offset is not in the log."""

    advice = "go on from metadata['earliest'], or leave it to out_of_range='earliest'"


class PreconditionNotMet(PostbusError):
    """Something else was appended first; nothing of this request was."""

    advice = "read on to end_offset, decide again, and append with the new end offset"

    @property
    def end_offset(self) -> int | None:
        """Where the partition ends now."""
        return int(self.metadata["end_offset"]) if "end_offset" in self.metadata else None


class ProducerFenced(PostbusError):
    """Somebody took a newer epoch of this producer."""

    advice = "stop: another process has taken over; a new publisher gets an identity of its own"


class SequenceBroken(PostbusError):
    """The broker's memory of this publisher does not fit its own, so these records could not be repeated safely."""

    advice = "publish again what failed; if outcome_unknown, look first"


class GroupConflict(PostbusError):
    """The group is not in a state for this: it has members, or is of another kind."""

    advice = "stop its members first, or use the kind that the group has"


class MemberReplaced(PostbusError):
    """A newer member with the same instance_id took this one's place."""

    advice = "stop, or give each process an instance_id of its own"


class FailedPrecondition(PostbusError):
    """The state of things forbids this."""

    advice = "change that state first; the message says which"


class Aborted(PostbusError):
    """What this was part of has ended (a stream, an epoch, an assignment)."""

    advice = "start over: open it again"


class AssignmentLost(Aborted):
    """The partition has another owner; its records that were not acknowledged are delivered there."""

    advice = "drop what you still have of this partition"


class ProcessingTimeout(Aborted):
    """Records were not acknowledged within the processing timeout, so they went to another member."""

    advice = "raise processing_timeout, or take smaller batches (max_batch_records)"


class Unavailable(PostbusError):
    """It can't be done now."""

    advice = "try again later"


class ConnectionFailed(Unavailable):
    """No address answered; the message says which were tried and what each said."""

    advice = "check the addresses and that the broker runs: `postbus cluster info`"


class NotEnoughReplicas(Unavailable):
    """Fewer in-sync replicas than min_insync_replicas."""

    advice = "try again when nodes are back"


class ResourceExhausted(PostbusError):
    """A limit of the broker's is reached: quota, disk, or message size."""

    advice = "if retriable, try again after retry_after; if not, send less"


class DiskFull(ResourceExhausted):
    """The broker refuses to publish before its disk is full; reading goes on."""

    advice = "free space or shorten retention; publishing resumes by itself"


class Timeout(PostbusError):
    """No answer in time."""

    advice = "if outcome_unknown, it may have been done: look before you repeat it"


class LogCorrupt(PostbusError):
    """Stored records are damaged."""

    advice = "see `postbus doctor` on the node that the message names"


class Unauthenticated(PostbusError):
    """The broker does not know who is asking."""

    advice = "check the credentials"


class PermissionDenied(PostbusError):
    """The caller may not do this."""

    advice = "ask for the right that the message names"


class Unsupported(PostbusError):
    """The broker does not know this call or field: it is older, or no Postbus."""

    advice = "upgrade the broker, or leave the option out"


class Cancelled(PostbusError):
    """The call was cancelled."""


class Closed(PostbusError):
    """The client, publisher or subscription is closed."""

    advice = "use it inside its `async with`"


class CompressionUnavailable(PostbusError):
    """Compression needs cramjam, which is not installed."""

    advice = "pip install 'postbus[compression]'"


_BY_REASON: Final[Mapping[str, type[PostbusError]]] = {
    "NO_LEADER": Unavailable,
    "NOT_LEADER": FailedPrecondition,
    "NOT_ENOUGH_REPLICAS": NotEnoughReplicas,
    "NOT_ENOUGH_REPLICAS_AFTER_APPEND": NotEnoughReplicas,
    "TOPIC_NOT_FOUND": TopicNotFound,
    "PARTITION_NOT_FOUND": PartitionNotFound,
    "GROUP_NOT_FOUND": GroupNotFound,
    "OFFSET_OUT_OF_RANGE": OffsetOutOfRange,
    "PRECONDITION_NOT_MET": PreconditionNotMet,
    "PRODUCER_FENCED": ProducerFenced,
    "PRODUCER_UNKNOWN": SequenceBroken,
    "SEQUENCE_GAP": SequenceBroken,
    "DUPLICATE_SEQUENCE": SequenceBroken,
    "PREDECESSOR_FAILED": Aborted,
    "ASSIGNMENT_LOST": AssignmentLost,
    "PROCESSING_TIMEOUT": ProcessingTimeout,
    "MEMBER_REPLACED": MemberReplaced,
    "DISK_FULL": DiskFull,
    "QUOTA_EXCEEDED": ResourceExhausted,
    "INVALID_FIELD": InvalidArgument,
    "UNKNOWN_FIELD": Unsupported,
    "TOO_LARGE": TooLarge,
    "EXISTS": AlreadyExists,
    "GROUP_NOT_EMPTY": GroupConflict,
    "GROUP_KIND_MISMATCH": GroupConflict,
    "LOG_CORRUPT": LogCorrupt,
    "DRAINING": Unavailable,
    "TIMEOUT": Timeout,
}

_BY_CODE: Final[Mapping[grpc.StatusCode, type[PostbusError]]] = {
    grpc.StatusCode.CANCELLED: Cancelled,
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgument,
    grpc.StatusCode.DEADLINE_EXCEEDED: Timeout,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExists,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhausted,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPrecondition,
    grpc.StatusCode.ABORTED: Aborted,
    grpc.StatusCode.OUT_OF_RANGE: OffsetOutOfRange,
    grpc.StatusCode.UNIMPLEMENTED: Unsupported,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DATA_LOSS: LogCorrupt,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
}


def _error_class(reason: str, code: grpc.StatusCode) -> type[PostbusError]:
    # A reason from a newer broker falls back on its code, which by the API's rule is enough to act upon.
    return _BY_REASON.get(reason) or _BY_CODE.get(code, PostbusError)


def from_failure(failure: error_pb2.Failure) -> PostbusError:
    """An in-band failure as an error."""
    code = _CODES.get(failure.code, grpc.StatusCode.UNKNOWN)
    try:
        reason = error_pb2.ErrorReason.Name(failure.reason).removeprefix(_PREFIX) if failure.reason else ""
    except ValueError:
        reason = ""
    metadata = dict(failure.metadata)
    return _error_class(reason, code)(
        failure.message or reason or code.name,
        reason=reason,
        code=code,
        retriable=failure.retriable,
        outcome_unknown=failure.outcome_unknown,
        retry_after=failure.retry_after.ToTimedelta().total_seconds() if failure.HasField("retry_after") else None,
        metadata=metadata,
        field=metadata.get("field", ""),
    )


def from_rpc(error: grpc.aio.AioRpcError) -> PostbusError:
    """A failed call as an error."""
    return from_status(error.code(), error.details() or "", list(error.trailing_metadata() or ()))


def from_status(code: grpc.StatusCode, message: str, trailers: Sequence[tuple[str, str | bytes]] = ()) -> PostbusError:
    """A gRPC status with its trailers as an error: details first, then the plain trailers, then the code alone."""
    by_name = dict(trailers)
    details = _Details()
    packed = by_name.get("grpc-status-details-bin")
    if isinstance(packed, bytes):
        try:
            details.decode(packed)
        except ValueError:
            details = _Details()  # Another hop's idea of details: what the code says still holds.
    reason = details.reason or _text(by_name.get("postbus-reason"))
    retriable = _text(by_name.get("postbus-retriable"))
    unknown = _text(by_name.get("postbus-outcome-unknown"))
    return _error_class(reason, code)(
        message or code.name,
        reason=reason,
        code=code,
        # Without Postbus' own word (a proxy answered, or gRPC itself) the API's rule by code alone holds.
        retriable=retriable == "true"
        if retriable
        else code is grpc.StatusCode.UNAVAILABLE
        or (code is grpc.StatusCode.RESOURCE_EXHAUSTED and details.retry_after is not None),
        outcome_unknown=unknown == "true"
        if unknown
        else not reason and code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED),
        retry_after=details.retry_after,
        metadata=details.metadata,
        field=details.field,
    )


class _Details:
    """What google.rpc.Status holds that Postbus uses."""

    def __init__(self) -> None:
        self.reason = ""
        self.metadata: dict[str, str] = {}
        self.retry_after: float | None = None
        self.field = ""

    def decode(self, status: bytes) -> None:
        """Reads a serialised google.rpc.Status; raises ValueError if it is none."""
        for packed in _embedded(status, 3):
            type_url = _string(packed, 1)
            value = b"".join(_embedded(packed, 2))
            if type_url.endswith("/google.rpc.ErrorInfo"):
                self.reason = _string(value, 1)
                self.metadata = {_string(entry, 1): _string(entry, 2) for entry in _embedded(value, 3)}
            elif type_url.endswith("/google.rpc.RetryInfo"):
                for delay in _embedded(value, 1):
                    numbers = {number: field for number, field in wire.fields(delay) if isinstance(field, int)}
                    self.retry_after = numbers.get(1, 0) + numbers.get(2, 0) / 1e9
            elif type_url.endswith("/google.rpc.BadRequest"):
                for violation in _embedded(value, 1):
                    self.field = self.field or _string(violation, 1)


def _embedded(message: bytes, number: int) -> list[bytes]:
    return [value for field, value in wire.fields(message) if field == number and isinstance(value, bytes)]


def _string(message: bytes, number: int) -> str:
    return b"".join(_embedded(message, number)).decode(errors="replace")


def _text(value: str | bytes | None) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value or ""
