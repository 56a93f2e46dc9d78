"""ClusterService on one node: metadata and its watch, features, quorum. What needs more nodes says so by name."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from google.protobuf.message import Message
from postbus.v1 import cluster_pb2, record_pb2

from broker import errors
from broker.controller.metadata_log import MetadataLog
from broker.controller.state import ClusterState, Topic, difference
from broker.services import batches, requests
from broker.services.adapter import Call, ServerStream

FEATURES: Final = (
    "compare-and-append",
    "compression",
    "idempotence-by-request-id",
    "idempotence-by-sequence",
    "ordered-groups",
)
# Changes that a watcher has not taken yet; one that is further behind gets a snapshot instead.
BEHIND_MAX: Final = 100


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What a node says of itself."""

    node_id: int
    endpoint: str
    rack: str
    version: str
    record_bytes_max: int
    batch_bytes_max: int
    message_receive_bytes_max: int


class ClusterService:
    """Looks at the cluster."""

    def __init__(self, *, metadata_log: MetadataLog, facts: NodeFacts) -> None:
        self._metadata_log = metadata_log
        self._facts = facts
        self._watches: set[_Watch] = set()
        self._draining = False

    async def get_metadata(
        self, request: cluster_pb2.GetMetadataRequest, call: Call
    ) -> cluster_pb2.GetMetadataResponse:
        """GetMetadata."""
        state = self._metadata_log.state
        wanted = _wanted(request.topics)
        return cluster_pb2.GetMetadataResponse(
            cluster_id=state.cluster_id,
            metadata_epoch=state.index,
            controller_node_id=self._facts.node_id,
            nodes=[self._node()],
            topics=[self._topic(topic) for topic in state.topics.values() if _is_wanted(topic, wanted)],
        )

    async def watch_metadata(self, request: cluster_pb2.WatchMetadataRequest, stream: ServerStream) -> None:
        """WatchMetadata: all there is, then every change."""
        if request.after_epoch < 0:
            raise errors.invalid_field("after_epoch", f"{request.after_epoch} is negative; 0 begins with all")
        watch = _Watch(_wanted(request.topics))
        self._watches.add(watch)
        try:
            sent = self._metadata_log.state
            # This node keeps no history of changes: who is not up to date begins anew.
            if request.after_epoch != sent.index:
                await stream.write(self._snapshot(sent, watch.wanted).SerializeToString())
            while True:
                await watch.changed.wait()
                watch.changed.clear()
                if self._draining:
                    raise errors.draining()
                state = self._metadata_log.state
                if state.index - sent.index > BEHIND_MAX:
                    change = self._snapshot(state, watch.wanted)
                else:
                    change = self._delta(sent, state, watch.wanted)
                sent = state
                await stream.write(change.SerializeToString())
        finally:
            self._watches.discard(watch)

    def changed(self) -> None:
        """The image is another one."""
        for watch in self._watches:
            watch.changed.set()

    def end_streams(self) -> None:
        """The node goes."""
        self._draining = True
        self.changed()

    async def get_server_features(
        self, request: cluster_pb2.GetServerFeaturesRequest, call: Call
    ) -> cluster_pb2.GetServerFeaturesResponse:
        """GetServerFeatures."""
        return cluster_pb2.GetServerFeaturesResponse(
            version=self._facts.version,
            features=FEATURES,
            compressions=[record_pb2.Compression.Name(codec) for codec in sorted(batches.CODECS)],
            max_record_bytes=self._facts.record_bytes_max,
            max_batch_bytes=self._facts.batch_bytes_max,
            max_message_bytes=self._facts.message_receive_bytes_max,
        )

    async def get_quorum(self, request: cluster_pb2.GetQuorumRequest, call: Call) -> cluster_pb2.GetQuorumResponse:
        """GetQuorum: one voter, which leads."""
        index = self._metadata_log.state.index
        return cluster_pb2.GetQuorumResponse(
            leader_node_id=self._facts.node_id,
            term=1,
            commit_index=index,
            members=[cluster_pb2.QuorumMember(node_id=self._facts.node_id, voter=True, match_index=index)],
        )

    async def not_on_one_node(self, request: Message, call: Call) -> Message:
        """What moves things between nodes: refused, because there is only one."""
        name = request.DESCRIPTOR.name.removesuffix("Request")
        raise errors.unknown_field(name, "this version runs as a single node, so there is nowhere to move anything")

    # --- shapes ---

    def _node(self) -> cluster_pb2.Node:
        return cluster_pb2.Node(
            node_id=self._facts.node_id,
            endpoint=self._facts.endpoint,
            rack=self._facts.rack,
            state=cluster_pb2.NODE_STATE_ACTIVE,
            voter=True,
            broker_epoch=1,
            version=self._facts.version,
        )

    def _topic(self, topic: Topic, *, first_partition: int = 0) -> cluster_pb2.TopicMetadata:
        node_id = self._facts.node_id
        return cluster_pb2.TopicMetadata(
            name=topic.name,
            topic_id=topic.topic_id,
            partitions=[
                cluster_pb2.PartitionMetadata(
                    partition=number,
                    leader_node_id=node_id,
                    replica_node_ids=[node_id],
                    isr_node_ids=[node_id],
                )
                for number in range(first_partition, topic.partition_count)
            ],
        )

    def _snapshot(self, state: ClusterState, wanted: frozenset[str]) -> cluster_pb2.WatchMetadataResponse:
        return cluster_pb2.WatchMetadataResponse(
            metadata_epoch=state.index,
            snapshot=True,
            nodes=[self._node()],
            topics=[self._topic(topic) for topic in state.topics.values() if _is_wanted(topic, wanted)],
            controller_node_id=self._facts.node_id,
        )

    def _delta(self, old: ClusterState, new: ClusterState, wanted: frozenset[str]) -> cluster_pb2.WatchMetadataResponse:
        changes = difference(old, new)
        topics = [self._topic(topic) for topic in changes.created if _is_wanted(topic, wanted)]
        topics += [
            self._topic(after, first_partition=before.partition_count)
            for before, after in changes.changed
            if _is_wanted(after, wanted)
        ]
        return cluster_pb2.WatchMetadataResponse(
            metadata_epoch=new.index,
            topics=topics,
            removed_topic_ids=[topic.topic_id for topic in changes.deleted if _is_wanted(topic, wanted)],
            controller_node_id=self._facts.node_id,
        )


class _Watch:
    def __init__(self, wanted: frozenset[str]) -> None:
        self.wanted = wanted
        self.changed = asyncio.Event()


def _wanted(names: Iterable[str]) -> frozenset[str]:
    chosen = list(names)
    for index, name in enumerate(chosen):
        requests.check_name(f"topics[{index}]", name)
    return frozenset(chosen)


def _is_wanted(topic: Topic, wanted: frozenset[str]) -> bool:
    return topic.name in wanted if wanted else not topic.internal
