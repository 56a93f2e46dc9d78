"""Every command, and every outcome, reaches another node as it was."""

from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from postbus.v1 import error_pb2

from broker.controller.command_codec import decode_command, decode_outcome, encode_command, encode_outcome
from broker.controller.commands import Command, Outcome
from broker.controller.topic_config import TopicConfig
from broker.errors import PostbusError
from broker.stubs.controller_pb2 import ControllerCommand

st.register_type_strategy(int, st.integers(0, 2**31 - 1))
st.register_type_strategy(str, st.text(max_size=5))
CONFIGS = st.builds(TopicConfig, retention_bytes=st.none() | st.integers(0, 5))


def test_each_command_has_a_message() -> None:
    fields = ControllerCommand.DESCRIPTOR.oneofs_by_name["command"].fields
    assert {field.message_type.name for field in fields} == {kind.__name__ for kind in get_args(Command)}


@pytest.mark.parametrize("kind", get_args(Command), ids=lambda kind: kind.__name__)
@settings(max_examples=15, deadline=None)
@given(data=st.data(), command_id=st.integers(0, 2**63))
def test_a_command_travels_whole(kind: type, data: st.DataObject, command_id: int) -> None:
    fields = {"config": CONFIGS} if "config" in kind.__dataclass_fields__ else {}  # type: ignore[attr-defined]
    command = data.draw(st.builds(kind, **fields))
    assert decode_command(encode_command(command, command_id=command_id)) == (command, command_id)


def test_a_command_of_a_newer_version_is_named_as_such() -> None:
    with pytest.raises(ValueError, match="does not know"):
        decode_command(ControllerCommand(command_id=1).SerializeToString())


def test_an_error_of_one_partition_travels_whole() -> None:
    assert decode_outcome(encode_outcome(Outcome("t", "id", 3))) == Outcome("t", "id", 3)
    error = PostbusError(error_pb2.ERROR_REASON_NOT_LEADER, "no", metadata={"leader_node_id": 2}, retry_after_ms=5)
    again = decode_outcome(encode_outcome(Outcome("t", "id", 3, error))).error
    assert again is not None
    assert (again.reason, again.message, again.metadata, again.retry_after_ms) == (
        error.reason,
        error.message,
        error.metadata,
        error.retry_after_ms,
    )
