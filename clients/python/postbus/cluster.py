"""Looking at the cluster and operating it: one method a call, as in `admin`.

A partition is named by (topic, number). What concerns several of them answers with an outcome for each, whose
`failure` is unset where it worked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from postbus.admin import Calls
from postbus.connection import Message
from postbus.v1 import cluster_pb2, record_pb2

PartitionName = tuple[str, int]
AnswerT = TypeVar("AnswerT")


class Cluster(Calls):
    """`client.cluster`."""

    async def metadata(self, *, topics: Sequence[str] = ()) -> cluster_pb2.GetMetadataResponse:
        """Nodes, and leaders of partitions."""
        request = cluster_pb2.GetMetadataRequest(topics=topics)
        return await self._ask("GetMetadata", request, cluster_pb2.GetMetadataResponse)

    async def features(self) -> cluster_pb2.GetServerFeaturesResponse:
        """What the cluster can do, and its limits."""
        request = cluster_pb2.GetServerFeaturesRequest()
        return await self._ask("GetServerFeatures", request, cluster_pb2.GetServerFeaturesResponse)

    async def quorum(self) -> cluster_pb2.GetQuorumResponse:
        """Controllers and how far each is."""
        return await self._ask("GetQuorum", cluster_pb2.GetQuorumRequest(), cluster_pb2.GetQuorumResponse)

    async def info(self) -> tuple[cluster_pb2.GetMetadataResponse, cluster_pb2.GetServerFeaturesResponse]:
        """Both in one: metadata and features."""
        return await self.metadata(), await self.features()

    async def add_voter(self, node_id: int) -> None:
        """Makes an observer vote. It has to have caught up."""
        await self._ask("AddVoter", cluster_pb2.AddVoterRequest(node_id=node_id), cluster_pb2.AddVoterResponse)

    async def remove_voter(self, node_id: int) -> None:
        """Makes a voter observe."""
        await self._ask("RemoveVoter", cluster_pb2.RemoveVoterRequest(node_id=node_id), cluster_pb2.RemoveVoterResponse)

    async def remove_node(self, node_id: int) -> None:
        """Forgets a node that was drained of leaders and replicas, and stopped."""
        await self._ask("RemoveNode", cluster_pb2.RemoveNodeRequest(node_id=node_id), cluster_pb2.RemoveNodeResponse)

    async def drain(self, node_id: int, *, move_replicas: bool = False) -> cluster_pb2.DrainNodeResponse:
        """Moves leadership off a node, and with `move_replicas` all it holds. Repeated, it says how far that is."""
        request = cluster_pb2.DrainNodeRequest(node_id=node_id, move_replicas=move_replicas)
        return await self._ask("DrainNode", request, cluster_pb2.DrainNodeResponse)

    async def undrain(self, node_id: int) -> None:
        """Takes that back."""
        await self._ask("UndrainNode", cluster_pb2.UndrainNodeRequest(node_id=node_id), cluster_pb2.UndrainNodeResponse)

    async def elect(
        self, partitions: Iterable[PartitionName] = (), *, unclean: bool = False
    ) -> list[cluster_pb2.PartitionOutcome]:
        """Has preferred leaders lead again; none named: of all partitions.

        unclean: True also takes a replica that lacks records where no other is there. Loses what it lacks.
        """
        request = cluster_pb2.ElectLeadersRequest(partitions=_named(partitions), unclean=unclean)
        return list((await self._ask("ElectLeaders", request, cluster_pb2.ElectLeadersResponse)).outcomes)

    async def reassign(
        self,
        replicas: Mapping[PartitionName, Sequence[int]],
        *,
        throttle: int = 0,
        dry_run: bool = False,
    ) -> list[cluster_pb2.PartitionOutcome]:
        """Moves partitions to these nodes, the preferred leader first. Under way when it answers.

        throttle: bytes a second for each node; 0: as the cluster has it. dry_run: True only checks.
        """
        request = cluster_pb2.ReassignPartitionsRequest(
            reassignments=[
                cluster_pb2.Reassignment(partition=partition, replica_node_ids=node_ids)
                for partition, node_ids in zip(_named(replicas), replicas.values(), strict=True)
            ],
            throttle_bytes_per_second=throttle,
            validate_only=dry_run,
        )
        return list((await self._ask("ReassignPartitions", request, cluster_pb2.ReassignPartitionsResponse)).outcomes)

    async def reassignments(self) -> list[cluster_pb2.ReassignmentProgress]:
        """Moves under way."""
        request = cluster_pb2.ListReassignmentsRequest()
        return list(
            (await self._ask("ListReassignments", request, cluster_pb2.ListReassignmentsResponse)).reassignments
        )

    async def cancel(self, partitions: Iterable[PartitionName] = ()) -> list[cluster_pb2.PartitionOutcome]:
        """Stops moves and goes back; none named: all."""
        request = cluster_pb2.CancelReassignmentsRequest(partitions=_named(partitions))
        return list((await self._ask("CancelReassignments", request, cluster_pb2.CancelReassignmentsResponse)).outcomes)

    async def rebalance(
        self, *, throttle: int = 0, raise_replication: bool = False, dry_run: bool = False
    ) -> list[cluster_pb2.PlannedMove]:
        """Gives every node its share of replicas and leaders; what moves. Under way when it answers.

        throttle: as in `reassign`. raise_replication: True also gives topics from the days of fewer nodes as many
        replicas as a new one gets. dry_run: True only says what would move.
        """
        request = cluster_pb2.RebalanceClusterRequest(
            throttle_bytes_per_second=throttle, raise_replication=raise_replication, validate_only=dry_run
        )
        return list((await self._ask("RebalanceCluster", request, cluster_pb2.RebalanceClusterResponse)).moves)

    async def _ask(self, method: str, request: Message, answer: type[AnswerT]) -> AnswerT:
        parse: Any = answer
        found: AnswerT = await self._connections.call(
            f"ClusterService/{method}", request, parse.FromString, timeout=self._timeout
        )
        return found


def _named(partitions: Iterable[PartitionName]) -> list[record_pb2.TopicPartition]:
    return [record_pb2.TopicPartition(topic=topic, partition=partition) for topic, partition in partitions]
