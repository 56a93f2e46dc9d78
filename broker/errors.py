"""Every error that Postbus gives to a client: one table of reasons, one exception, one translation to gRPC.

Nothing else decides status codes. A reason's name, code and meaning are part of the public API
(proto/postbus/v1/error.proto); this module adds whether the same request may be repeated.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from postbus.v1 import error_pb2

DOMAIN: Final = "postbus"
# HTTP/2 peers commonly refuse trailers over 8 kB; gRPC repeats the details in text too, each byte that is not
# printable ASCII as three.
MESSAGE_BYTES_MAX: Final = 1500
MESSAGE_NOT_ASCII_BYTES_MAX: Final = 600

Reason = error_pb2.ErrorReason
_Code = grpc.StatusCode


@dataclass(frozen=True, slots=True)
class Kind:
    """What is true of every error of one reason."""

    code: grpc.StatusCode
    retriable: bool = False
    outcome_unknown: bool = False


KINDS: Final[Mapping[int, Kind]] = {
    Reason.ERROR_REASON_NOT_LEADER: Kind(_Code.FAILED_PRECONDITION),
    Reason.ERROR_REASON_NO_LEADER: Kind(_Code.UNAVAILABLE, retriable=True),
    Reason.ERROR_REASON_NOT_ENOUGH_REPLICAS: Kind(_Code.UNAVAILABLE, retriable=True),
    Reason.ERROR_REASON_NOT_ENOUGH_REPLICAS_AFTER_APPEND: Kind(_Code.UNAVAILABLE, retriable=True, outcome_unknown=True),
    Reason.ERROR_REASON_TOPIC_NOT_FOUND: Kind(_Code.NOT_FOUND),
    Reason.ERROR_REASON_PARTITION_NOT_FOUND: Kind(_Code.NOT_FOUND),
    Reason.ERROR_REASON_GROUP_NOT_FOUND: Kind(_Code.NOT_FOUND),
    Reason.ERROR_REASON_OFFSET_OUT_OF_RANGE: Kind(_Code.OUT_OF_RANGE),
    Reason.ERROR_REASON_PRECONDITION_NOT_MET: Kind(_Code.FAILED_PRECONDITION),
    Reason.ERROR_REASON_PRODUCER_FENCED: Kind(_Code.FAILED_PRECONDITION),
    Reason.ERROR_REASON_PRODUCER_UNKNOWN: Kind(_Code.ABORTED),
    Reason.ERROR_REASON_SEQUENCE_GAP: Kind(_Code.FAILED_PRECONDITION),
    Reason.ERROR_REASON_DUPLICATE_SEQUENCE: Kind(_Code.ALREADY_EXISTS),
    Reason.ERROR_REASON_PREDECESSOR_FAILED: Kind(_Code.ABORTED),
    Reason.ERROR_REASON_ASSIGNMENT_LOST: Kind(_Code.ABORTED),
    Reason.ERROR_REASON_PROCESSING_TIMEOUT: Kind(_Code.ABORTED),
    Reason.ERROR_REASON_MEMBER_REPLACED: Kind(_Code.FAILED_PRECONDITION),
    Reason.ERROR_REASON_DISK_FULL: Kind(_Code.RESOURCE_EXHAUSTED, retriable=True),
    Reason.ERROR_REASON_QUOTA_EXCEEDED: Kind(_Code.RESOURCE_EXHAUSTED, retriable=True),
    Reason.ERROR_REASON_INVALID_FIELD: Kind(_Code.INVALID_ARGUMENT),
    Reason.ERROR_REASON_UNKNOWN_FIELD: Kind(_Code.INVALID_ARGUMENT),
    Reason.ERROR_REASON_TOO_LARGE: Kind(_Code.INVALID_ARGUMENT),
    Reason.ERROR_REASON_EXISTS: Kind(_Code.ALREADY_EXISTS),
    Reason.ERROR_REASON_GROUP_NOT_EMPTY: Kind(_Code.FAILED_PRECONDITION),
    Reason.ERROR_REASON_GROUP_KIND_MISMATCH: Kind(_Code.FAILED_PRECONDITION),
    Reason.ERROR_REASON_LOG_CORRUPT: Kind(_Code.DATA_LOSS),
    Reason.ERROR_REASON_DRAINING: Kind(_Code.UNAVAILABLE, retriable=True),
    Reason.ERROR_REASON_TIMEOUT: Kind(_Code.DEADLINE_EXCEEDED, outcome_unknown=True),
}


def reason_name(reason: int) -> str:
    """Without its prefix, as ErrorInfo carries it."""
    return Reason.Name(Reason.ValueType(reason)).removeprefix("ERROR_REASON_")


class PostbusError(Exception):
    """An error for a client. Raise it anywhere below a servicer; the stream adapter or interceptor translates it.

    message: a sentence that says what was wrong and what to do.
    field: path of the offending field ("start.topics[0].topic"), for INVALID_ARGUMENT.
    resource: kind and name ("topic", "orders"), for NOT_FOUND and ALREADY_EXISTS.
    retry_after_ms: how long to wait at least; becomes RetryInfo.
    metadata: facts by name; values are text.
    """

    def __init__(
        self,
        reason: Reason,
        message: str,
        *,
        field: str = "",
        resource: tuple[str, str] | None = None,
        retry_after_ms: int | None = None,
        metadata: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.kind = KINDS[reason]
        self.message = _bounded(message)
        self.field = field
        self.resource = resource
        self.retry_after_ms = retry_after_ms
        self.metadata = {name: str(value) for name, value in (metadata or {}).items()}

    @property
    def code(self) -> grpc.StatusCode:
        """The gRPC status code."""
        return self.kind.code

    @property
    def reason_name(self) -> str:
        """The reason without its prefix, as ErrorInfo carries it."""
        return reason_name(self.reason)

    def failure(self) -> error_pb2.Failure:
        """The same facts for use inside a stream or a response over several partitions."""
        failure = error_pb2.Failure(
            code=self.code.value[0],
            reason=self.reason,
            message=self.message,
            retriable=self.kind.retriable,
            outcome_unknown=self.kind.outcome_unknown,
            metadata=self.metadata,
        )
        if self.field:
            failure.metadata["field"] = self.field
        if self.retry_after_ms is not None:
            failure.retry_after.FromMilliseconds(self.retry_after_ms)
        return failure

    def trailers(self) -> tuple[tuple[str, str | bytes], ...]:
        """Trailing metadata: google.rpc details, and the essentials again as text."""
        details = [_any(error_details_pb2.ErrorInfo(reason=self.reason_name, domain=DOMAIN, metadata=self.metadata))]
        if self.field:
            violation = error_details_pb2.BadRequest.FieldViolation(field=self.field, description=self.message)
            details.append(_any(error_details_pb2.BadRequest(field_violations=[violation])))
        if self.resource is not None:
            kind, name = self.resource
            details.append(_any(error_details_pb2.ResourceInfo(resource_type=kind, resource_name=name)))
        if self.retry_after_ms is not None:
            delay = duration_pb2.Duration()
            delay.FromMilliseconds(self.retry_after_ms)
            details.append(_any(error_details_pb2.RetryInfo(retry_delay=delay)))
        if self.code is _Code.RESOURCE_EXHAUSTED:
            quota = error_details_pb2.QuotaFailure.Violation(subject=DOMAIN, description=self.message)
            details.append(_any(error_details_pb2.QuotaFailure(violations=[quota])))
        status = status_pb2.Status(code=self.code.value[0], message=self.message, details=details)
        return (
            ("grpc-status-details-bin", status.SerializeToString()),
            ("postbus-reason", self.reason_name),
            ("postbus-retriable", str(self.kind.retriable).lower()),
            ("postbus-outcome-unknown", str(self.kind.outcome_unknown).lower()),
        )


def _bounded(message: str) -> str:
    if message.isascii() and message.isprintable():
        return message[:MESSAGE_BYTES_MAX]
    return message.encode()[:MESSAGE_NOT_ASCII_BYTES_MAX].decode(errors="ignore")


def _any(message: error_details_pb2.ErrorInfo) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed


def invalid_field(field: str, message: str) -> PostbusError:
    """INVALID_ARGUMENT: `field` holds something that can't be."""
    return PostbusError(Reason.ERROR_REASON_INVALID_FIELD, f"{field}: {message}", field=field)


def unknown_field(field: str, message: str = "this broker does not know it") -> PostbusError:
    """INVALID_ARGUMENT: a field or value that this version does not support is never silently ignored."""
    return PostbusError(Reason.ERROR_REASON_UNKNOWN_FIELD, f"{field}: {message}", field=field)


def too_large(field: str, message: str, *, limit: int) -> PostbusError:
    """INVALID_ARGUMENT: over a limit; `limit` is in bytes or records as the message says."""
    return PostbusError(Reason.ERROR_REASON_TOO_LARGE, f"{field}: {message}", field=field, metadata={"limit": limit})


def topic_not_found(name: str) -> PostbusError:
    """NOT_FOUND, with the command that helps."""
    return PostbusError(
        Reason.ERROR_REASON_TOPIC_NOT_FOUND,
        f"topic {name!r} does not exist; create it with: postbus topic create {name}",
        resource=("topic", name),
    )


def partition_not_found(topic: str, partition: int, count: int) -> PostbusError:
    """NOT_FOUND: the topic has fewer partitions."""
    return PostbusError(
        Reason.ERROR_REASON_PARTITION_NOT_FOUND,
        f"topic {topic!r} has partitions 0 to {count - 1}, not {partition}",
        resource=("partition", f"{topic}/{partition}"),
        metadata={"partition_count": count},
    )


def draining() -> PostbusError:
    """UNAVAILABLE: the node goes; connect elsewhere."""
    return PostbusError(Reason.ERROR_REASON_DRAINING, "this node is shutting down; connect again", retry_after_ms=500)


def group_not_found(name: str) -> PostbusError:
    """NOT_FOUND: nobody ever subscribed in this group, or its offsets ran out."""
    return PostbusError(
        Reason.ERROR_REASON_GROUP_NOT_FOUND,
        f"group {name!r} does not exist; the first Subscribe in it creates it",
        resource=("group", name),
    )
