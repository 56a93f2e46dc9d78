"""Commands as they travel between nodes: each dataclass of `commands` has a message of its name with its fields.

Written once for all of them, because the two sides differ in nothing but their shape; a test holds every command to
it.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, Final, get_args

from google.protobuf.message import Message

from broker.controller import commands
from broker.controller.commands import Command, Outcome
from broker.controller.topic_config import TopicConfig
from broker.peers.calls import from_peer, to_peer
from broker.stubs import controller_pb2
from broker.stubs.controller_pb2 import ControllerCommand, PartitionAnswer
from broker.stubs.peers_pb2 import PeerError


def encode_command(command: Command, *, command_id: int = 0) -> bytes:
    """For "controller.execute"."""
    fields: dict[str, Any] = {_FIELDS[type(command)]: _to_message(command)}
    return ControllerCommand(command_id=command_id, **fields).SerializeToString()


def decode_command(payload: bytes) -> tuple[Command, int]:
    """The command and its id. Raises DecodeError; ValueError if this version does not know it."""
    message = ControllerCommand.FromString(payload)
    field = message.WhichOneof("command")
    if field is None:
        raise ValueError("a command of a kind that this version does not know")
    command: Command = _from_message(_TYPES[field], getattr(message, field))
    return command, message.command_id


def encode_outcome(outcome: Outcome) -> PartitionAnswer:
    """As it travels; an error travels whole."""
    return PartitionAnswer(
        topic=outcome.topic,
        topic_id=outcome.topic_id,
        partition=outcome.partition,
        error=b"" if outcome.error is None else to_peer(outcome.error).SerializeToString(),
    )


def decode_outcome(answer: PartitionAnswer) -> Outcome:
    """The opposite."""
    error = from_peer(PeerError.FromString(answer.error)) if answer.error else None
    return Outcome(answer.topic, answer.topic_id, answer.partition, error)


_FIELDS: Final[dict[type, str]] = {
    kind: re.sub(r"(?<=[a-z])(?=[A-Z])", "_", kind.__name__).lower() for kind in get_args(Command)
}
_TYPES: Final[dict[str, type]] = {field: kind for kind, field in _FIELDS.items()}


def _to_message(value: Any) -> Message:
    fields = {field.name: _to_field(getattr(value, field.name)) for field in dataclasses.fields(value)}
    message: Message = getattr(controller_pb2, type(value).__name__)(**fields)
    return message


def _to_field(value: Any) -> Any:
    if isinstance(value, TopicConfig):
        return value.SerializeToString(deterministic=True)
    if isinstance(value, tuple):
        return [_to_message(item) if dataclasses.is_dataclass(item) else item for item in value]
    return value


def _from_message(kind: type, message: Message) -> Any:
    fields = {field.name: _from_field(field, getattr(message, field.name)) for field in dataclasses.fields(kind)}
    return kind(**fields)


def _from_field(field: "dataclasses.Field[Any]", value: Any) -> Any:
    if field.type is TopicConfig:
        return TopicConfig.FromString(value)
    if isinstance(value, int | str | bool):
        return value
    if field.type in (Mapping[str, str], Mapping[int, str]):
        return dict(value)
    return tuple(
        _from_message(getattr(commands, item.DESCRIPTOR.name), item) if isinstance(item, Message) else item
        for item in value
    )
