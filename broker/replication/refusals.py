"""What a partition refuses, as clients hear it."""

from broker.errors import PostbusError, Reason
from broker.storage.producers import DuplicateTooOld, ProducerFenced, ProducerRefusal, ProducerUnknown, SequenceGap


class NotAppended(PostbusError):  # noqa: N818 - named for what happened
    """Records were appended, never acknowledged, and are surely gone: they may be published again."""

    def __init__(self, message: str) -> None:
        super().__init__(Reason.ERROR_REASON_NO_LEADER, f"{message}; they were not kept", retry_after_ms=100)


def producer_refusal(error: ProducerRefusal, producer_id: int) -> PostbusError:
    """Why a producer's batch is not appended, with the fact that helps."""
    facts: dict[str, object] = {"producer_id": producer_id}
    if isinstance(error, ProducerFenced):
        facts["producer_epoch"] = error.current_epoch
        return PostbusError(
            Reason.ERROR_REASON_PRODUCER_FENCED,
            f"producer {producer_id} has epoch {error.current_epoch} by now: another instance took over, stop",
            metadata=facts,
        )
    if isinstance(error, SequenceGap):
        facts["expected_sequence"] = error.expected_sequence
        return PostbusError(
            Reason.ERROR_REASON_SEQUENCE_GAP,
            f"the next sequence of producer {producer_id} here is {error.expected_sequence}",
            metadata=facts,
        )
    if isinstance(error, DuplicateTooOld):
        return PostbusError(Reason.ERROR_REASON_DUPLICATE_SEQUENCE, f"producer {producer_id}: {error}", metadata=facts)
    assert isinstance(error, ProducerUnknown)
    return PostbusError(
        Reason.ERROR_REASON_PRODUCER_UNKNOWN,
        f"nothing is remembered of producer {producer_id} here: take a new epoch with InitProducer and begin at"
        " sequence 0",
        metadata=facts,
    )
