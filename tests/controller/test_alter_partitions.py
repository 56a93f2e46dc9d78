"""What a leader that has lost an answer may rely on."""

from broker.controller.commands import AlterPartition, AlterPartitions, Member
from broker.controller.image import apply
from broker.controller.partition_decisions import decide
from broker.controller.state import ClusterState, NodeState, PartitionState, Topic
from broker.errors import Reason

STATE = ClusterState(
    index=10,
    topics={"t": Topic("t", "id", (PartitionState(1, (1, 2), (1,), leader=1, leader_epoch=3),), 2, b"", (), 0)},
    topic_names={"id": "t"},
    nodes={node_id: NodeState(node_id=node_id, store_id="", broker_epoch=node_id, fenced=False) for node_id in (1, 2)},
)


def ask(*isr: int) -> AlterPartitions:
    change = AlterPartition(
        topic_id="id", partition=0, leader_epoch=3, partition_epoch=0, isr=tuple(Member(n, n) for n in isr)
    )
    return AlterPartitions(node_id=1, broker_epoch=1, changes=(change,))


def test_the_same_isr_once_more_makes_earlier_requests_too_late() -> None:
    """A request to add node 2 is still on its way somewhere, and the leader goes on without node 2."""
    decision = decide(STATE, ask(1))
    assert decision.outcomes[0].error is None
    state = apply(STATE, decision.records, index=11)
    assert state.topics["t"].partitions[0].isr == (1,)
    late = decide(state, ask(1, 2))
    error = late.outcomes[0].error
    assert error is not None and error.reason == Reason.ERROR_REASON_PRECONDITION_NOT_MET
    assert not late.records
