"""Managing topics and groups: one method a call, Python values in, the API's own messages out.

The messages (`postbus.v1`) are typed and complete; wrapping each in a class of its own would only lag behind them.
Every call is repeated at the next address while the answer is "not now", until its timeout.
"""

from __future__ import annotations

import builtins
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Final, TypeVar

from google.protobuf import duration_pb2, field_mask_pb2

from postbus import errors
from postbus.connection import Connections
from postbus.positions import Start, duration, start_position
from postbus.v1 import group_pb2, record_pb2, subscriber_pb2, topic_pb2

CALL_TIMEOUT: Final = 30.0
PAGE_SIZE: Final = 500

TopicConfig = topic_pb2.TopicConfig | Mapping[str, object]
GroupConfig = group_pb2.GroupConfig | Mapping[str, object]
ConfigT = TypeVar("ConfigT", topic_pb2.TopicConfig, group_pb2.GroupConfig)


class Calls:
    """What asks through the client's connections."""

    def __init__(self, connections: Connections, *, timeout: float = CALL_TIMEOUT) -> None:
        self._connections = connections
        self._timeout = timeout


class Topics(Calls):
    """`client.topics`."""

    async def create(
        self,
        name: str,
        *,
        partition_count: int = 0,
        replication_factor: int = 0,
        config: TopicConfig | None = None,
        labels: Mapping[str, str] | None = None,
        exist_ok: bool = False,
        validate_only: bool = False,
    ) -> topic_pb2.Topic:
        """Creates a topic; answers when it can be used. Zeros: the cluster's defaults (6 partitions).

        config: settings by name as in TopicConfig, times as timedelta or seconds:
            {"retention_time": timedelta(days=1)}.
        exist_ok: True gives the topic that there is instead of AlreadyExists.
        """
        request = topic_pb2.CreateTopicRequest(
            name=name,
            partition_count=partition_count,
            replication_factor=replication_factor,
            labels=dict(labels or {}),
            validate_only=validate_only,
        )
        if config is not None:
            request.config.CopyFrom(_config(config, topic_pb2.TopicConfig))
        try:
            answer = await self._connections.call(
                "TopicService/CreateTopic", request, topic_pb2.CreateTopicResponse.FromString, timeout=self._timeout
            )
        except errors.AlreadyExists:
            if not exist_ok:
                raise
            return await self.get(name)
        return answer.topic

    async def get(self, name: str) -> topic_pb2.Topic:
        """One topic; raises TopicNotFound."""
        answer = await self._connections.call(
            "TopicService/GetTopic",
            topic_pb2.GetTopicRequest(name=name),
            topic_pb2.GetTopicResponse.FromString,
            timeout=self._timeout,
        )
        return answer.topic

    async def list(self, *, prefix: str = "", include_internal: bool = False) -> list[topic_pb2.Topic]:
        """All topics by name, page by page behind the scenes."""
        topics: list[topic_pb2.Topic] = []
        token = ""
        while True:
            page = await self._connections.call(
                "TopicService/ListTopics",
                topic_pb2.ListTopicsRequest(
                    page_size=PAGE_SIZE, page_token=token, prefix=prefix, include_internal=include_internal
                ),
                topic_pb2.ListTopicsResponse.FromString,
                timeout=self._timeout,
            )
            topics += page.topics
            token = page.next_page_token
            if not token:
                return topics

    async def update(
        self,
        name: str,
        *,
        config: TopicConfig | None = None,
        labels: Mapping[str, str] | None = None,
        reset: Iterable[str] = (),
        etag: str = "",
    ) -> topic_pb2.Topic:
        """Changes the settings given and no others; `reset` names settings that go back to the default.

        labels: replaces all labels. etag: only if the topic still has this one.
        """
        request = topic_pb2.UpdateTopicRequest(name=name, etag=etag, labels=dict(labels or {}))
        paths = [f"config.{field}" for field in reset]
        if config is not None:
            request.config.CopyFrom(_config(config, topic_pb2.TopicConfig))
            paths += [f"config.{field}" for field in _names(config)]
        if labels is not None:
            paths.append("labels")
        request.update_mask.CopyFrom(field_mask_pb2.FieldMask(paths=paths))
        answer = await self._connections.call(
            "TopicService/UpdateTopic", request, topic_pb2.UpdateTopicResponse.FromString, timeout=self._timeout
        )
        return answer.topic

    async def delete(self, name: str, *, topic_id: str = "") -> None:
        """Deletes a topic, its records and all committed offsets of it. topic_id: only if it is this one."""
        await self._connections.call(
            "TopicService/DeleteTopic",
            topic_pb2.DeleteTopicRequest(name=name, topic_id=topic_id),
            topic_pb2.DeleteTopicResponse.FromString,
            timeout=self._timeout,
        )

    async def add_partitions(self, name: str, partition_count: int) -> topic_pb2.Topic:
        """Raises the number of partitions to `partition_count`. Keys may map elsewhere from then on."""
        answer = await self._connections.call(
            "TopicService/AddPartitions",
            topic_pb2.AddPartitionsRequest(name=name, partition_count=partition_count),
            topic_pb2.AddPartitionsResponse.FromString,
            timeout=self._timeout,
        )
        return answer.topic

    async def partitions(self, topic: str) -> builtins.list[topic_pb2.PartitionDescription]:
        """Partitions with leader, replicas, offsets and size."""
        partitions: list[topic_pb2.PartitionDescription] = []
        token = ""
        while True:
            page = await self._connections.call(
                "TopicService/ListPartitions",
                topic_pb2.ListPartitionsRequest(topic=topic, page_size=PAGE_SIZE, page_token=token),
                topic_pb2.ListPartitionsResponse.FromString,
                timeout=self._timeout,
            )
            partitions += page.partitions
            token = page.next_page_token
            if not token:
                return partitions

    async def delete_records(
        self, topic: str, *, before: Start, partitions: Sequence[int] = ()
    ) -> builtins.list[topic_pb2.DeletedRecords]:
        """Deletes everything before a place; an outcome for each partition (its `failure` unset: it worked)."""
        answer = await self._connections.call(
            "TopicService/DeleteRecords",
            topic_pb2.DeleteRecordsRequest(topic=topic, partitions=partitions, before=start_position(before, "before")),
            topic_pb2.DeleteRecordsResponse.FromString,
            timeout=self._timeout,
        )
        return list(answer.partitions)

    async def list_offsets(
        self, topic: str, *, at: Start | None = None, partitions: Sequence[int] = ()
    ) -> builtins.list[topic_pb2.PartitionOffsets]:
        """Where each partition begins and ends, and which offset `at` means there."""
        request = topic_pb2.ListOffsetsRequest(topic=topic, partitions=partitions)
        if at is not None:
            request.at.CopyFrom(start_position(at, "at"))
        answer = await self._connections.call(
            "TopicService/ListOffsets", request, topic_pb2.ListOffsetsResponse.FromString, timeout=self._timeout
        )
        return list(answer.partitions)


class Groups(Calls):
    """`client.groups`."""

    async def create(self, name: str, *, config: GroupConfig | None = None) -> group_pb2.Group:
        """Creates a group with settings. Ordered groups need none: the first subscriber creates them."""
        request = group_pb2.CreateGroupRequest(name=name)
        if config is not None:
            request.config.CopyFrom(_config(config, group_pb2.GroupConfig))
        answer = await self._connections.call(
            "GroupService/CreateGroup", request, group_pb2.CreateGroupResponse.FromString, timeout=self._timeout
        )
        return answer.group

    async def get(self, name: str) -> group_pb2.Group:
        """One group with its members, offsets and lag; raises GroupNotFound."""
        answer = await self._connections.call(
            "GroupService/GetGroup",
            group_pb2.GetGroupRequest(name=name),
            group_pb2.GetGroupResponse.FromString,
            timeout=self._timeout,
        )
        return answer.group

    async def list(self, *, prefix: str = "") -> list[group_pb2.Group]:
        """All groups by name, without members and offsets."""
        groups: list[group_pb2.Group] = []
        token = ""
        while True:
            page = await self._connections.call(
                "GroupService/ListGroups",
                group_pb2.ListGroupsRequest(page_size=PAGE_SIZE, page_token=token, prefix=prefix),
                group_pb2.ListGroupsResponse.FromString,
                timeout=self._timeout,
            )
            groups += page.groups
            token = page.next_page_token
            if not token:
                return groups

    async def update(self, name: str, *, config: GroupConfig, reset: Iterable[str] = ()) -> group_pb2.Group:
        """Changes the settings given; `reset` names settings that go back to the default."""
        request = group_pb2.UpdateGroupRequest(name=name, config=_config(config, group_pb2.GroupConfig))
        request.update_mask.CopyFrom(field_mask_pb2.FieldMask(paths=[*reset, *_names(config)]))
        answer = await self._connections.call(
            "GroupService/UpdateGroup", request, group_pb2.UpdateGroupResponse.FromString, timeout=self._timeout
        )
        return answer.group

    async def delete(self, name: str) -> None:
        """Deletes a group without members, and its offsets."""
        await self._connections.call(
            "GroupService/DeleteGroup",
            group_pb2.DeleteGroupRequest(name=name),
            group_pb2.DeleteGroupResponse.FromString,
            timeout=self._timeout,
        )

    async def offsets(self, name: str, *, topics: Sequence[str] = ()) -> builtins.list[group_pb2.CommittedOffset]:
        """Committed offsets and lag by topic and partition."""
        answer = await self._connections.call(
            "GroupService/GetCommittedOffsets",
            group_pb2.GetCommittedOffsetsRequest(group=name, topics=topics),
            group_pb2.GetCommittedOffsetsResponse.FromString,
            timeout=self._timeout,
        )
        return list(answer.offsets)

    async def reset(
        self,
        name: str,
        topic: str,
        *,
        to: Start | None = None,
        shift: int | None = None,
        partitions: Sequence[int] = (),
        dry_run: bool = False,
    ) -> builtins.list[group_pb2.OffsetChange]:
        """Moves the committed offsets of a group without members: `to` a place, or by `shift`.

        dry_run: True says what would happen and changes nothing.
        """
        if (to is None) == (shift is None):
            raise errors.InvalidArgument("give exactly one of to and shift", field="to")
        request = group_pb2.ResetOffsetsRequest(
            group=name, topic=topic, partitions=partitions, validate_only=dry_run, shift=shift
        )
        if to is not None:
            request.to.CopyFrom(start_position(to, "to"))
        answer = await self._connections.call(
            "GroupService/ResetOffsets", request, group_pb2.ResetOffsetsResponse.FromString, timeout=self._timeout
        )
        return list(answer.changes)

    async def commit(self, name: str, offsets: Mapping[tuple[str, int], int]) -> subscriber_pb2.AckReport:
        """Sets committed offsets, by (topic, partition): the next to read. Only while the group has no members."""
        request = group_pb2.CommitOffsetsRequest(
            group=name,
            offsets=[
                group_pb2.Assignment(position=record_pb2.Position(topic=topic, partition=partition, offset=offset))
                for (topic, partition), offset in offsets.items()
            ],
        )
        answer = await self._connections.call(
            "GroupService/CommitOffsets", request, group_pb2.CommitOffsetsResponse.FromString, timeout=self._timeout
        )
        return answer.report


def _names(config: TopicConfig | GroupConfig) -> list[str]:
    if isinstance(config, Mapping):
        return list(config)
    return [field.name for field, _ in config.ListFields()]


def _config(config: ConfigT | Mapping[str, object], kind: type[ConfigT]) -> ConfigT:
    """Settings as a message; times may be timedelta or seconds, places as in `subscribe`."""
    if not isinstance(config, Mapping):
        return config
    message = kind()
    for name, value in config.items():
        field = kind.DESCRIPTOR.fields_by_name.get(name)
        if field is None:
            known = ", ".join(kind.DESCRIPTOR.fields_by_name)
            raise errors.InvalidArgument(f"there is no setting {name!r}; there are: {known}", field=f"config.{name}")
        try:
            if field.message_type is None:
                setattr(message, name, value)
            elif field.message_type.full_name == duration_pb2.Duration.DESCRIPTOR.full_name:
                if not isinstance(value, (timedelta, int, float)):
                    raise TypeError("give a timedelta or seconds")
                getattr(message, name).CopyFrom(duration(value))
            else:
                getattr(message, name).CopyFrom(start_position(value, name))  # type: ignore[arg-type]  # it checks
        except (TypeError, ValueError) as failure:
            raise errors.InvalidArgument(f"config.{name}: {failure}", field=f"config.{name}") from None
    return message
