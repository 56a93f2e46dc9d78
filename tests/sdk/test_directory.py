"""The directory ends with its client."""

import asyncio
import contextlib
from typing import Any, cast

import grpc
import pytest
from postbus.connection import Connections
from postbus.directory import Directory


class EndingStream:
    """News of the cluster that end as their reader is cancelled; grpc.aio then tells of the end alone."""

    def __init__(self) -> None:
        self.read = asyncio.Event()
        self.hidden: list[type[BaseException]] = [asyncio.CancelledError]

    def __aiter__(self) -> "EndingStream":
        return self

    async def __anext__(self) -> Any:
        with contextlib.suppress(*self.hidden):
            self.read.set()
            await asyncio.Event().wait()
        self.hidden.clear()  # once
        raise grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata())


class OneStream:
    """The connections, as far as a directory asks them."""

    address = "anywhere"

    def __init__(self) -> None:
        self.news = EndingStream()

    def server_stream(self, *_: object) -> EndingStream:
        return self.news

    def rotate(self, address: str) -> None:
        pass


async def test_one_that_is_closed_as_its_stream_ends_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("postbus.directory.backoff", lambda attempt: 0.0)
    connections = OneStream()
    directory = Directory(cast(Connections, connections))
    directory._cluster_id = "known"
    directory.add_listener(lambda silent: None)
    await connections.news.read.wait()
    async with asyncio.timeout(5):
        await directory.close()
