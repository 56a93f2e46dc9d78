"""Which servicer method answers which RPC, and gRPC's own services beside them.

What a unary method does not find it looks for again once the node's image is new enough (catch_up.py): such refusals
come before anything was done. Streams do the same for themselves.
"""

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, Final, TypeVar

import grpc
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from grpc_reflection.v1alpha import reflection
from postbus.v1 import cluster_pb2, group_pb2, publisher_pb2, subscriber_pb2, topic_pb2

from broker.services.adapter import Adapter, Call
from broker.services.catch_up import CatchUp
from broker.services.cluster import ClusterService
from broker.services.external_scaler import ExternalScaler
from broker.services.groups import GroupService
from broker.services.publisher import PublisherService
from broker.services.subscriber import SubscriberService
from broker.services.topics import TopicService
from broker.stubs import externalscaler_pb2

T = TypeVar("T")
_Row = tuple[str, type[Message], Callable[[Any, Call], Awaitable[Message]]]

_PACKAGE: Final = "postbus.v1"
_SCALER: Final = externalscaler_pb2.DESCRIPTOR.services_by_name["ExternalScaler"].full_name
SERVICES: Final = (
    *(
        f"{_PACKAGE}.{name}"
        for name in ("PublisherService", "SubscriberService", "GroupService", "TopicService", "ClusterService")
    ),
    _SCALER,
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
    scaler: ExternalScaler,
) -> None:
    """Adds all RPCs to a server."""
    patient = partial(_patient, cluster.catch_up)
    publisher.catch_up = subscriber.surroundings.catch_up = groups.catch_up = scaler.catch_up = cluster.catch_up
    subscriber.surroundings.partition_client = cluster.partition_client
    _add(
        server,
        "PublisherService",
        {
            "Publish": adapter.unary_bytes("PublisherService/Publish", publisher.publish),
            "PublishStream": adapter.bidi("PublisherService/PublishStream", publisher.publish_stream),
            "InitProducer": adapter.unary(
                "PublisherService/InitProducer", publisher_pb2.InitProducerRequest, patient(publisher.init_producer)
            ),
        },
    )
    _add(
        server,
        "SubscriberService",
        {
            "Subscribe": adapter.bidi("SubscriberService/Subscribe", subscriber.subscribe),
            "Fetch": adapter.unary_encoded(
                "SubscriberService/Fetch", subscriber_pb2.FetchRequest, patient(subscriber.fetch)
            ),
            "Acknowledge": adapter.unary(
                "SubscriberService/Acknowledge", subscriber_pb2.AcknowledgeRequest, subscriber.acknowledge
            ),
        },
    )
    _add(
        server,
        "TopicService",
        {
            method: adapter.unary(f"TopicService/{method}", request, patient(handle))
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
            method: adapter.unary(f"GroupService/{method}", request, patient(handle))
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
        method: adapter.unary(f"ClusterService/{method}", request, handle)
        for method, request, handle in _table(
            ("GetMetadata", cluster_pb2.GetMetadataRequest, cluster.get_metadata),
            ("GetServerFeatures", cluster_pb2.GetServerFeaturesRequest, cluster.get_server_features),
            ("GetQuorum", cluster_pb2.GetQuorumRequest, cluster.get_quorum),
            ("AddVoter", cluster_pb2.AddVoterRequest, cluster.add_voter),
            ("RemoveVoter", cluster_pb2.RemoveVoterRequest, cluster.remove_voter),
            ("DrainNode", cluster_pb2.DrainNodeRequest, cluster.drain_node),
            ("UndrainNode", cluster_pb2.UndrainNodeRequest, cluster.undrain_node),
            ("RemoveNode", cluster_pb2.RemoveNodeRequest, cluster.remove_node),
            ("ElectLeaders", cluster_pb2.ElectLeadersRequest, cluster.elect_leaders),
            ("ReassignPartitions", cluster_pb2.ReassignPartitionsRequest, cluster.reassign_partitions),
            ("RebalanceCluster", cluster_pb2.RebalanceClusterRequest, cluster.rebalance_cluster),
            ("ListReassignments", cluster_pb2.ListReassignmentsRequest, cluster.list_reassignments),
            ("CancelReassignments", cluster_pb2.CancelReassignmentsRequest, cluster.cancel_reassignments),
        )
    }
    handlers["WatchMetadata"] = adapter.server_stream(
        "ClusterService/WatchMetadata", cluster_pb2.WatchMetadataRequest, cluster.watch_metadata
    )
    _add(server, "ClusterService", handlers)
    # They parse for themselves: the messages are KEDA's, and a newer KEDA may say more in them.
    scaling = {
        "IsActive": adapter.unary_bytes("ExternalScaler/IsActive", scaler.is_active),
        "StreamIsActive": adapter.server_stream_bytes("ExternalScaler/StreamIsActive", scaler.stream_is_active),
        "GetMetricSpec": adapter.unary_bytes("ExternalScaler/GetMetricSpec", scaler.get_metric_spec),
        "GetMetrics": adapter.unary_bytes("ExternalScaler/GetMetrics", scaler.get_metrics),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SCALER, scaling),))


def _patient(catch_up: CatchUp, method: Callable[[Any, Call], Awaitable[T]]) -> Callable[[Any, Call], Awaitable[T]]:
    async def handle(request: Any, call: Call) -> T:
        return await catch_up.again(lambda: method(request, call))

    return handle


def _table(*rows: _Row) -> tuple[_Row, ...]:
    """So that rows of different requests have one type."""
    return rows


def _add(server: grpc.aio.Server, service: str, handlers: dict[str, Any]) -> None:
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(f"postbus.v1.{service}", handlers),))


class Health:
    """grpc.health.v1: one status a service, and "" for all of the node.

    "" says whether the node takes calls at all, which neither a lost quorum nor a lost leader changes: reads go on, and
    a node that everybody turned away from would help nobody. A service's own status says whether it can do its work.
    """

    def __init__(self, server: grpc.aio.Server) -> None:
        self._servicer = health_aio.HealthServicer()
        self._shown: dict[str, bool] = {}
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)

    async def set(self, *, serving: bool) -> None:
        """Of all services at once: the node starts or goes."""
        await self.show(dict.fromkeys(("", *SERVICES), serving))

    async def show(self, serving: Mapping[str, bool]) -> None:
        """Of some services, by full name."""
        for service, serves in serving.items():
            if self._shown.get(service) is not serves:
                self._shown[service] = serves
                status = (
                    health_pb2.HealthCheckResponse.SERVING if serves else health_pb2.HealthCheckResponse.NOT_SERVING
                )
                await self._servicer.set(service, status)


def service_health(*, has_controller: bool, session_valid: bool, leaderless: bool) -> dict[str, bool]:
    """Which services can do their work. leaderless: some partition that users see has no leader.

    Subscribing needs nobody: what is committed can be read. Publishing, groups and their lag need leaders in touch
    with the controller; administration needs a controller.
    """
    leading = has_controller and session_valid and not leaderless
    return {
        f"{_PACKAGE}.PublisherService": leading,
        f"{_PACKAGE}.GroupService": leading,
        f"{_PACKAGE}.TopicService": has_controller,
        f"{_PACKAGE}.ClusterService": has_controller,
        f"{_PACKAGE}.SubscriberService": True,
        _SCALER: leading,
    }


def enable_reflection(server: grpc.aio.Server) -> None:
    """Lets tools find out what there is."""
    names = (*SERVICES, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server)
