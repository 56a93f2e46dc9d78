"""Which servicer method answers which RPC, and gRPC's own services beside them."""

from collections.abc import Awaitable, Callable
from typing import Any, Final

import grpc
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from grpc_reflection.v1alpha import reflection
from postbus.v1 import cluster_pb2, group_pb2, publisher_pb2, subscriber_pb2, topic_pb2

from broker.services.adapter import Adapter, Call
from broker.services.cluster import ClusterService
from broker.services.groups import GroupService
from broker.services.publisher import PublisherService
from broker.services.subscriber import SubscriberService
from broker.services.topics import TopicService

_Row = tuple[str, type[Message], Callable[[Any, Call], Awaitable[Message]]]

SERVICES: Final = tuple(
    f"postbus.v1.{name}"
    for name in ("PublisherService", "SubscriberService", "GroupService", "TopicService", "ClusterService")
)
_ON_SEVERAL_NODES: Final = (
    ("AddVoter", cluster_pb2.AddVoterRequest),
    ("RemoveVoter", cluster_pb2.RemoveVoterRequest),
    ("DrainNode", cluster_pb2.DrainNodeRequest),
    ("UndrainNode", cluster_pb2.UndrainNodeRequest),
    ("ElectLeaders", cluster_pb2.ElectLeadersRequest),
    ("ReassignPartitions", cluster_pb2.ReassignPartitionsRequest),
    ("ListReassignments", cluster_pb2.ListReassignmentsRequest),
    ("CancelReassignments", cluster_pb2.CancelReassignmentsRequest),
)


def register(
    server: grpc.aio.Server,
    adapter: Adapter,
    *,
    publisher: PublisherService,
    subscriber: SubscriberService,
    topics: TopicService,
    groups: GroupService,
    cluster: ClusterService,
) -> None:
    """Adds all RPCs to a server."""
    _add(
        server,
        "PublisherService",
        {
            "Publish": adapter.unary_bytes("PublisherService/Publish", publisher.publish),
            "PublishStream": adapter.bidi("PublisherService/PublishStream", publisher.publish_stream),
            "InitProducer": adapter.unary(
                "PublisherService/InitProducer", publisher_pb2.InitProducerRequest, publisher.init_producer
            ),
        },
    )
    _add(
        server,
        "SubscriberService",
        {
            "Subscribe": adapter.bidi("SubscriberService/Subscribe", subscriber.subscribe),
            "Fetch": adapter.unary_encoded("SubscriberService/Fetch", subscriber_pb2.FetchRequest, subscriber.fetch),
            "Acknowledge": adapter.unary(
                "SubscriberService/Acknowledge", subscriber_pb2.AcknowledgeRequest, subscriber.acknowledge
            ),
        },
    )
    _add(
        server,
        "TopicService",
        {
            method: adapter.unary(f"TopicService/{method}", request, handle)
            for method, request, handle in _table(
                ("CreateTopic", topic_pb2.CreateTopicRequest, topics.create_topic),
                ("GetTopic", topic_pb2.GetTopicRequest, topics.get_topic),
                ("ListTopics", topic_pb2.ListTopicsRequest, topics.list_topics),
                ("UpdateTopic", topic_pb2.UpdateTopicRequest, topics.update_topic),
                ("DeleteTopic", topic_pb2.DeleteTopicRequest, topics.delete_topic),
                ("AddPartitions", topic_pb2.AddPartitionsRequest, topics.add_partitions),
                ("ListPartitions", topic_pb2.ListPartitionsRequest, topics.list_partitions),
                ("DeleteRecords", topic_pb2.DeleteRecordsRequest, topics.delete_records),
                ("ListOffsets", topic_pb2.ListOffsetsRequest, topics.list_offsets),
            )
        },
    )
    _add(
        server,
        "GroupService",
        {
            method: adapter.unary(f"GroupService/{method}", request, handle)
            for method, request, handle in _table(
                ("CreateGroup", group_pb2.CreateGroupRequest, groups.create_group),
                ("GetGroup", group_pb2.GetGroupRequest, groups.get_group),
                ("ListGroups", group_pb2.ListGroupsRequest, groups.list_groups),
                ("UpdateGroup", group_pb2.UpdateGroupRequest, groups.update_group),
                ("DeleteGroup", group_pb2.DeleteGroupRequest, groups.delete_group),
                ("Heartbeat", group_pb2.HeartbeatRequest, groups.heartbeat),
                ("CommitOffsets", group_pb2.CommitOffsetsRequest, groups.commit_offsets),
                ("GetCommittedOffsets", group_pb2.GetCommittedOffsetsRequest, groups.get_committed_offsets),
                ("ResetOffsets", group_pb2.ResetOffsetsRequest, groups.reset_offsets),
            )
        },
    )
    handlers: dict[str, Any] = {
        method: adapter.unary(f"ClusterService/{method}", request, cluster.not_on_one_node)
        for method, request in _ON_SEVERAL_NODES
    }
    handlers["GetMetadata"] = adapter.unary(
        "ClusterService/GetMetadata", cluster_pb2.GetMetadataRequest, cluster.get_metadata
    )
    handlers["WatchMetadata"] = adapter.server_stream(
        "ClusterService/WatchMetadata", cluster_pb2.WatchMetadataRequest, cluster.watch_metadata
    )
    handlers["GetServerFeatures"] = adapter.unary(
        "ClusterService/GetServerFeatures", cluster_pb2.GetServerFeaturesRequest, cluster.get_server_features
    )
    handlers["GetQuorum"] = adapter.unary("ClusterService/GetQuorum", cluster_pb2.GetQuorumRequest, cluster.get_quorum)
    _add(server, "ClusterService", handlers)


def _table(*rows: _Row) -> tuple[_Row, ...]:
    """So that rows of different requests have one type."""
    return rows


def _add(server: grpc.aio.Server, service: str, handlers: dict[str, Any]) -> None:
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(f"postbus.v1.{service}", handlers),))


class Health:
    """grpc.health.v1: one status a service, and "" for all."""

    def __init__(self, server: grpc.aio.Server) -> None:
        self._servicer = health_aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)

    async def set(self, *, serving: bool) -> None:
        """Of all services at once."""
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for service in ("", *SERVICES):
            await self._servicer.set(service, status)


def enable_reflection(server: grpc.aio.Server) -> None:
    """Lets tools find out what there is."""
    names = (*SERVICES, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server)
