"""Every answer of a broker becomes the error that says what to do."""

from pathlib import Path

import grpc
import postbus
import pytest
from postbus import errors
from postbus.v1 import error_pb2

from broker.errors import KINDS, PostbusError, Reason


@pytest.mark.parametrize("reason", list(KINDS))
def test_every_reason_arrives_both_ways(reason: int) -> None:
    """As status details and in-band: the same class, reason, code, retriability and facts."""
    sent = PostbusError(
        Reason(reason) if callable(Reason) else reason,
        "what was wrong",
        field="a.b",
        retry_after_ms=1500,
        metadata={"end_offset": 7},
    )
    by_status = errors.from_status(sent.code, sent.message, sent.trailers())
    in_band = errors.from_failure(sent.failure())
    for got in (by_status, in_band):
        assert type(got) is not errors.PostbusError
        assert got.reason == sent.reason_name
        assert got.code is sent.code
        assert got.message == "what was wrong"
        assert got.retriable == sent.kind.retriable
        assert got.outcome_unknown == sent.kind.outcome_unknown
        assert got.retry_after == 1.5
        assert got.metadata["end_offset"] == "7"
        assert got.field == "a.b"
        assert got.advice
        assert got.advice in str(got)
    assert type(by_status) is type(in_band)


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
def test_a_bare_status_follows_the_rule_by_code(code: grpc.StatusCode) -> None:
    """Without details (a proxy, gRPC itself): UNAVAILABLE may be repeated, its outcome is unknown."""
    error = errors.from_status(code, "")
    assert error.code is code
    assert error.retriable == (code is grpc.StatusCode.UNAVAILABLE)
    assert error.outcome_unknown == (code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED))


def test_a_damaged_detail_is_passed_over() -> None:
    """Trailers that are no google.rpc.Status leave the code and the text trailers."""
    error = errors.from_status(
        grpc.StatusCode.NOT_FOUND,
        "gone",
        [("grpc-status-details-bin", b"\xff\xff\xff"), ("postbus-reason", "TOPIC_NOT_FOUND")],
    )
    assert type(error) is errors.TopicNotFound


def test_a_reason_from_the_future_falls_back_on_its_code() -> None:
    """A newer broker's reason: the class of its code."""
    failure = error_pb2.Failure(code=grpc.StatusCode.ABORTED.value[0], message="new")
    failure.reason = 999  # type: ignore[assignment]
    assert type(errors.from_failure(failure)) is errors.Aborted


def test_a_copy_is_the_same_error() -> None:
    """What is raised to several who wait."""
    error = errors.PreconditionNotMet("moved", reason="PRECONDITION_NOT_MET", metadata={"end_offset": "3"})
    again = error.copy()
    assert again is not error
    assert isinstance(again, errors.PreconditionNotMet)
    assert again.end_offset == 3
    assert str(again) == str(error)


def test_every_error_is_exported_and_explained() -> None:
    """Whoever catches an error finds it in `postbus` and in the README's table."""
    readme = (Path(__file__).parents[2] / "clients/python/README.md").read_text()
    for name, kind in vars(errors).items():
        if isinstance(kind, type) and issubclass(kind, errors.PostbusError):
            assert getattr(postbus, name) is kind
            assert name in postbus.__all__
            assert f"`{name}`" in readme or f"`postbus.{name}`" in readme, name
