"""The Python client of Postbus: publish, subscribe, manage. Start with `Client`, or `SyncClient` without asyncio.

Names are imported when they are first used, so that whoever needs the stubs alone (`postbus.v1`) loads no client.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from postbus.client import Client
    from postbus.errors import (
        Aborted,
        AlreadyExists,
        AssignmentLost,
        Cancelled,
        Closed,
        CompressionUnavailable,
        ConnectionFailed,
        DiskFull,
        FailedPrecondition,
        GroupConflict,
        GroupNotFound,
        InvalidArgument,
        LogCorrupt,
        MemberReplaced,
        NotEnoughReplicas,
        NotFound,
        OffsetOutOfRange,
        PartitionNotFound,
        PermissionDenied,
        PostbusError,
        PreconditionNotMet,
        ProcessingTimeout,
        ProducerFenced,
        ResourceExhausted,
        SequenceBroken,
        Timeout,
        TooLarge,
        TopicNotFound,
        Unauthenticated,
        Unavailable,
        Unsupported,
    )
    from postbus.lanes import BulkDelivery, Delivery
    from postbus.positions import Last
    from postbus.publisher import Publisher
    from postbus.records import Batch, NewRecord, Published, PublishedRange, Record
    from postbus.subscribe_stream import Event
    from postbus.subscription import Progress, Subscription
    from postbus.sync import SyncClient

__version__ = "0.1.0"

_MODULES = {
    "postbus.client": ("Client",),
    "postbus.errors": (
        "Aborted",
        "AlreadyExists",
        "AssignmentLost",
        "Cancelled",
        "Closed",
        "CompressionUnavailable",
        "ConnectionFailed",
        "DiskFull",
        "FailedPrecondition",
        "GroupConflict",
        "GroupNotFound",
        "InvalidArgument",
        "LogCorrupt",
        "MemberReplaced",
        "NotEnoughReplicas",
        "NotFound",
        "OffsetOutOfRange",
        "PartitionNotFound",
        "PermissionDenied",
        "PostbusError",
        "PreconditionNotMet",
        "ProcessingTimeout",
        "ProducerFenced",
        "ResourceExhausted",
        "SequenceBroken",
        "Timeout",
        "TooLarge",
        "TopicNotFound",
        "Unauthenticated",
        "Unavailable",
        "Unsupported",
    ),
    "postbus.lanes": (
        "BulkDelivery",
        "Delivery",
    ),
    "postbus.positions": ("Last",),
    "postbus.publisher": ("Publisher",),
    "postbus.records": (
        "Batch",
        "NewRecord",
        "Published",
        "PublishedRange",
        "Record",
    ),
    "postbus.subscribe_stream": ("Event",),
    "postbus.subscription": (
        "Progress",
        "Subscription",
    ),
    "postbus.sync": ("SyncClient",),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "Aborted",
    "AlreadyExists",
    "AssignmentLost",
    "Batch",
    "BulkDelivery",
    "Cancelled",
    "Client",
    "Closed",
    "CompressionUnavailable",
    "ConnectionFailed",
    "Delivery",
    "DiskFull",
    "Event",
    "FailedPrecondition",
    "GroupConflict",
    "GroupNotFound",
    "InvalidArgument",
    "Last",
    "LogCorrupt",
    "MemberReplaced",
    "NewRecord",
    "NotEnoughReplicas",
    "NotFound",
    "OffsetOutOfRange",
    "PartitionNotFound",
    "PermissionDenied",
    "PostbusError",
    "PreconditionNotMet",
    "ProcessingTimeout",
    "ProducerFenced",
    "Progress",
    "Published",
    "PublishedRange",
    "Publisher",
    "Record",
    "ResourceExhausted",
    "SequenceBroken",
    "Subscription",
    "SyncClient",
    "Timeout",
    "TooLarge",
    "TopicNotFound",
    "Unauthenticated",
    "Unavailable",
    "Unsupported",
]


def __getattr__(name: str) -> Any:
    module = _HOME.get(name)
    if module is None:
        raise AttributeError(f"module 'postbus' has no attribute {name!r}")
    value = getattr(import_module(module), name)
    globals()[name] = value
    return value
