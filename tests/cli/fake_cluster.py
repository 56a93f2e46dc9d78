"""Three nodes, as far as the command line sees them: answers prepared by a test, and what was asked."""

# ruff: noqa: N802 - the methods have the names of RPCs
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from postbus.v1 import cluster_pb2, cluster_pb2_grpc, record_pb2, topic_pb2, topic_pb2_grpc

from broker.errors import PostbusError, Reason

State = cluster_pb2.NodeState


class FakeCluster(cluster_pb2_grpc.ClusterServiceServicer, topic_pb2_grpc.TopicServiceServicer):
    """All three behind one address. Attributes are what a test changes."""

    def __init__(self) -> None:
        self.starting = ""  # what it waits for
        self.metadata = cluster_pb2.GetMetadataResponse(cluster_id="flights", metadata_epoch=7, controller_node_id=1)
        for node_id in (1, 2, 3):
            self.metadata.nodes.add(
                node_id=node_id, endpoint=f"bus-{node_id}:7070", state=State.NODE_STATE_ACTIVE, voter=True
            )
        for name, count in (("orders", 2), ("__groups", 1)):
            topic = self.metadata.topics.add(name=name, topic_id=f"id-{name}")
            for number in range(count):
                replicas = [(number + step) % 3 + 1 for step in range(3)]
                topic.partitions.add(
                    partition=number,
                    leader_node_id=replicas[0],
                    leader_epoch=4,
                    replica_node_ids=replicas,
                    isr_node_ids=replicas,
                )
        self.quorum = cluster_pb2.GetQuorumResponse(leader_node_id=1, term=3, commit_index=120)
        for node_id, voter, match in ((1, True, 120), (2, True, 118), (3, True, 120), (4, False, 20)):
            member = self.quorum.members.add(node_id=node_id, voter=voter, match_index=match)
            member.silence.FromMilliseconds(100)
        self.drained = [(4, 9), (1, 9), (0, 3), (0, 0)]
        self.failing: dict[tuple[str, int], PostbusError] = {}
        self.moves: list[cluster_pb2.PlannedMove] = []
        self.under_way: list[cluster_pb2.ReassignmentProgress] = []
        self.refusal: PostbusError | None = None
        self.asked: list[Any] = []
        self._server = grpc.server(ThreadPoolExecutor(2), options=[("grpc.so_reuseport", 0)])
        cluster_pb2_grpc.add_ClusterServiceServicer_to_server(self, self._server)
        topic_pb2_grpc.add_TopicServiceServicer_to_server(self, self._server)
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    def partition(self, topic: str, number: int) -> cluster_pb2.PartitionMetadata:
        (found,) = [each for each in self.metadata.topics if each.name == topic]
        return found.partitions[number]

    def start(self) -> None:
        self._server.start()

    def stop(self) -> None:
        self._server.stop(None)

    def _asked(self, request: Any, context: Any) -> None:
        self.asked.append(request)
        if self.refusal is not None:
            context.set_trailing_metadata(self.refusal.trailers())
            context.abort(self.refusal.code, self.refusal.message)

    def _outcomes(self, partitions: Any, answer: Any) -> Any:
        for partition in partitions:
            outcome = answer.outcomes.add(partition=partition)
            failure = self.failing.get((partition.topic, partition.partition))
            if failure is not None:
                outcome.failure.CopyFrom(failure.failure())
        return answer

    def GetServerFeatures(self, request: Any, context: Any) -> Any:
        return cluster_pb2.GetServerFeaturesResponse(version="1.2.3")

    def GetMetadata(self, request: Any, context: Any) -> Any:
        if self.starting:
            context.abort(grpc.StatusCode.UNAVAILABLE, self.starting)
        return self.metadata

    def GetQuorum(self, request: Any, context: Any) -> Any:
        if not self.quorum.members:
            context.abort(grpc.StatusCode.UNAVAILABLE, "no quorum")
        return self.quorum

    def AddVoter(self, request: Any, context: Any) -> Any:
        self._asked(request, context)
        return cluster_pb2.AddVoterResponse()

    def RemoveVoter(self, request: Any, context: Any) -> Any:
        self._asked(request, context)
        return cluster_pb2.RemoveVoterResponse()

    def RemoveNode(self, request: Any, context: Any) -> Any:
        self._asked(request, context)
        return cluster_pb2.RemoveNodeResponse()

    def DrainNode(self, request: Any, context: Any) -> Any:
        self._asked(request, context)
        leading, replicas = self.drained[0]
        if len(self.drained) > 1:
            self.drained.pop(0)
        return cluster_pb2.DrainNodeResponse(leading_count=leading, replica_count=replicas)

    def UndrainNode(self, request: Any, context: Any) -> Any:
        self._asked(request, context)
        return cluster_pb2.UndrainNodeResponse()

    def ElectLeaders(self, request: Any, context: Any) -> Any:
        self._asked(request, context)
        named = request.partitions or [record_pb2.TopicPartition(topic="orders", partition=n) for n in (0, 1)]
        return self._outcomes(named, cluster_pb2.ElectLeadersResponse())

    def ReassignPartitions(self, request: Any, context: Any) -> Any:
        self._asked(request, context)
        partitions = [each.partition for each in request.reassignments]
        return self._outcomes(partitions, cluster_pb2.ReassignPartitionsResponse())

    def CancelReassignments(self, request: Any, context: Any) -> Any:
        self._asked(request, context)
        return self._outcomes(request.partitions, cluster_pb2.CancelReassignmentsResponse())

    def ListReassignments(self, request: Any, context: Any) -> Any:
        return cluster_pb2.ListReassignmentsResponse(reassignments=self.under_way)

    def RebalanceCluster(self, request: Any, context: Any) -> Any:
        self._asked(request, context)
        return cluster_pb2.RebalanceClusterResponse(moves=self.moves)

    # --- topics ---

    def _topic(self, name: str) -> topic_pb2.Topic:
        return topic_pb2.Topic(
            name=name,
            topic_id=f"id-{name}",
            partition_count=2,
            replication_factor=3,
            effective_config=topic_pb2.TopicConfig(min_insync_replicas=2),
        )

    def ListTopics(self, request: Any, context: Any) -> Any:
        return topic_pb2.ListTopicsResponse(topics=[self._topic(each.name) for each in self.metadata.topics])

    def GetTopic(self, request: Any, context: Any) -> Any:
        return topic_pb2.GetTopicResponse(topic=self._topic(request.name))

    def CreateTopic(self, request: Any, context: Any) -> Any:
        self._asked(request, context)
        return topic_pb2.CreateTopicResponse(topic=self._topic(request.name))

    def ListPartitions(self, request: Any, context: Any) -> Any:
        partition = topic_pb2.PartitionDescription(
            partition=0, leader_node_id=1, leader_epoch=4, log_start_offset=10, high_watermark=90, size_bytes=2048
        )
        partition.replicas.add(node_id=1, in_sync=True, end_offset=100, durable_end_offset=95)
        partition.replicas.add(node_id=2, in_sync=True, end_offset=90, durable_end_offset=90)
        partition.replicas.add(node_id=3, eligible=True, unknown=True)
        partition.replicas.add(node_id=4, reassigning=True, end_offset=40, durable_end_offset=40)
        nobody = topic_pb2.PartitionDescription(partition=1, leader_epoch=9)
        nobody.replicas.add(node_id=2, unknown=True)
        return topic_pb2.ListPartitionsResponse(partitions=[partition, nobody])


def refused(message: str) -> PostbusError:
    """As the controller refuses."""
    return PostbusError(Reason.ERROR_REASON_PRECONDITION_NOT_MET, message)
