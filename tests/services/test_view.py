"""The bytes view of a message has the wire form of the message itself: compared field by field, by descriptors."""

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from postbus.v1 import publisher_pb2, record_pb2, subscriber_pb2

from broker.stubs import view_pb2

PUBLIC: dict[str, Descriptor] = {
    descriptor.name: descriptor
    for module in (publisher_pb2, record_pb2, subscriber_pb2)
    for descriptor in module.DESCRIPTOR.message_types_by_name.values()
}
VIEWS: dict[str, Descriptor] = dict(view_pb2.DESCRIPTOR.message_types_by_name)
# Public messages that the view keeps as bytes: the same wire form, never unpacked.
OPAQUE = {"RecordBatch", "Record"}

TYPE_BYTES, TYPE_MESSAGE, TYPE_ENUM, TYPE_INT32 = (
    FieldDescriptor.TYPE_BYTES,
    FieldDescriptor.TYPE_MESSAGE,
    FieldDescriptor.TYPE_ENUM,
    FieldDescriptor.TYPE_INT32,
)


def differences(view: Descriptor, public: Descriptor) -> list[str]:
    """Every way in which the two would read the same bytes differently."""
    found = []
    if set(view.fields_by_number) != set(public.fields_by_number):
        found.append(f"numbers {sorted(view.fields_by_number)} and {sorted(public.fields_by_number)}")
    for number in set(view.fields_by_number) & set(public.fields_by_number):
        mine, theirs = view.fields_by_number[number], public.fields_by_number[number]
        if mine.name != theirs.name:
            found.append(f"{number} is {mine.name} and {theirs.name}")
        if (mine.is_repeated, mine.has_presence) != (theirs.is_repeated, theirs.has_presence) and not _opaque(theirs):
            found.append(f"{mine.name} differs in label")
        if mine.is_repeated != theirs.is_repeated:
            found.append(f"{mine.name} is repeated in one only")
        if not _same_wire_form(mine, theirs):
            found.append(f"{mine.name} differs in type")
    return found


def _opaque(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.name in OPAQUE


def _same_wire_form(mine: FieldDescriptor, theirs: FieldDescriptor) -> bool:
    if _opaque(theirs):
        return mine.type == TYPE_BYTES
    if theirs.type == TYPE_ENUM:
        return mine.type == TYPE_INT32  # unknown values stay visible
    if theirs.type == TYPE_MESSAGE:
        if mine.type != TYPE_MESSAGE:
            return False
        if theirs.message_type.full_name.startswith("google."):
            return mine.message_type.full_name == theirs.message_type.full_name
        return mine.message_type.name == f"{theirs.message_type.name}View"
    return mine.type == theirs.type


@pytest.mark.parametrize("name", sorted(VIEWS))
def test_each_view_equals_its_message(name: str) -> None:
    """Numbers, names, types and labels; only batches and records are bytes, and enums numbers."""
    assert differences(VIEWS[name], PUBLIC[name.removesuffix("View")]) == []


def test_the_comparison_finds_differences() -> None:
    """Two messages that are not alike."""
    assert differences(VIEWS["DeliveryView"], PUBLIC["PublishRequest"])
    assert differences(VIEWS["RecordBatchView"], PUBLIC["RecordSet"])


def test_all_views_are_compared() -> None:
    """None is empty, or was forgotten here."""
    assert len(VIEWS) >= 7
    assert all(view.fields for view in VIEWS.values())


def test_record_set_and_record_batch_number_their_records_alike() -> None:
    """The broker reads a decompressed RecordSet through the view of RecordBatch."""
    records = [
        field.number for field in (PUBLIC["RecordSet"].fields[0], PUBLIC["RecordBatch"].fields_by_name["records"])
    ]
    assert records == [1, 1]


def test_a_request_survives_the_way_through_its_view() -> None:
    """Parsed as a view and serialised again, nothing is lost, and the batch is verbatim."""
    request = publisher_pb2.PublishStreamRequest(correlation_id=9)
    publish = request.publish
    publish.topic, publish.partition, publish.request_id, publish.acks = "t", 0, "id", publisher_pb2.ACKS_LEADER
    publish.batch.records.add(key=b"", value=b"v")
    publish.producer.sequence = 3
    publish.precondition.end_offset = 0
    publish.partition_key = b""
    request.timeout.seconds = 5
    view = view_pb2.PublishStreamRequestView.FromString(request.SerializeToString())
    assert view.publish.batch == publish.batch.SerializeToString()
    assert publisher_pb2.PublishStreamRequest.FromString(view.SerializeToString()) == request
