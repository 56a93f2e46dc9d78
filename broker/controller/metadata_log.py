"""The metadata log of a node: commands in, durable records out, one image kept up to date.

Owns the `log` and `snapshot` families of the meta database. A command is decided against the image after everything
that was decided before it, durable or not, so two at once never contradict each other; its records count, and
listeners and the caller hear of them, only once they are durable. It never decides anything itself.

    log:       index, 8 bytes big-endian -> MetadataRecord
    snapshot:  b"image"                  -> MetadataSnapshot; entries of the log up to its index are deleted with it
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Protocol

from google.protobuf.message import DecodeError

from broker.controller.decisions import Command, Rules, decide
from broker.controller.image import apply, from_snapshot, to_snapshot
from broker.controller.state import ClusterState, MetadataError
from broker.stubs.metadata_log_pb2 import MetadataRecord, MetadataSnapshot

LOG_FAMILY: Final = "log"
SNAPSHOT_FAMILY: Final = "snapshot"
_SNAPSHOT_KEY: Final = b"image"
_FIRST_KEY: Final = b"\x00" * 8
_END_KEY: Final = b"\xff" * 8
_SCAN_RECORDS: Final = 1_000

Listener = Callable[[ClusterState, ClusterState], None]


class MetaEngine(Protocol):
    """What is needed of the meta database (storage.engine.Engine)."""

    def multi_get(self, family: str, keys: Sequence[bytes]) -> list[bytes | None]: ...

    def scan(
        self, family: str, begin: bytes, end: bytes, *, limit: int | None = None
    ) -> Sequence[tuple[bytes, bytes]]: ...


class MetaCommitter(Protocol):
    """What is needed of its committer (storage.committer.Committer)."""

    def submit(
        self, ops: Sequence[Any], *, size_bytes: int, on_durable: Callable[[], None] | None = None
    ) -> object: ...

    async def wait_for_room(self) -> None: ...

    async def barrier(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Executed:
    """A command was carried out, durably; equal images mean that it was so already."""

    before: ClusterState
    after: ClusterState


@dataclass(frozen=True, slots=True)
class Loaded:
    """What the database held."""

    state: ClusterState
    replayed_records: int  # after the last snapshot


def load(engine: MetaEngine) -> Loaded:
    """Reads the image from the database. Blocks. Raises MetadataError."""
    try:
        (stored,) = engine.multi_get(SNAPSHOT_FAMILY, [_SNAPSHOT_KEY])
        state = ClusterState() if stored is None else from_snapshot(MetadataSnapshot.FromString(stored))
        snapshot_index = state.index
        key = _key(state.index + 1)
        while entries := engine.scan(LOG_FAMILY, key, _END_KEY, limit=_SCAN_RECORDS):
            for key, value in entries:
                if key != _key(state.index + 1):
                    raise MetadataError(f"metadata record {state.index + 1} is missing from the log")
                state = apply(state, [MetadataRecord.FromString(value)], index=state.index + 1)
            key = _key(state.index + 1)
    except DecodeError as error:
        raise MetadataError(f"the metadata log holds something that is no record: {error}") from error
    return Loaded(state, state.index - snapshot_index)


class MetadataLog:
    """Used on the event loop only, but for `load` before."""

    def __init__(
        self, loaded: Loaded, committer: MetaCommitter, *, rules: Rules, snapshot_records: int = 1_000
    ) -> None:
        """loaded: what `load` gave. snapshot_records: entries of the log between two snapshots."""
        self.state = loaded.state  # durable
        self._decided = loaded.state  # with what is on its way to the disk
        self._committer = committer
        self._rules = rules
        self._snapshot_records = snapshot_records
        self._listeners: list[Listener] = []
        self._closed = False
        self._snapshot_index = loaded.state.index - loaded.replayed_records

    def add_listener(self, listener: Listener) -> None:
        """Has `listener(old, new)` called after each command that changed something, once durable, in order.

        It runs on the event loop, before `execute` returns, and must not raise.
        """
        self._listeners.append(listener)

    def remove_listener(self, listener: Listener) -> None:
        """Undoes `add_listener`."""
        self._listeners.remove(listener)

    async def execute(self, command: Command) -> Executed:
        """Carries out `command`; returns when it is durable and listeners know. Raises PostbusError.

        A caller that is cancelled meanwhile doesn't know the outcome: the command goes on.
        """
        await self._committer.wait_for_room()
        # From here to `submit` nothing awaits: this is what puts commands in an order.
        assert not self._closed
        before = self._decided
        records = decide(before, command, rules=self._rules)
        after = before
        ops = []
        for record in records:
            after = apply(after, [record], index=after.index + 1)
            ops.append(("put", LOG_FAMILY, _key(after.index), record.SerializeToString(deterministic=True)))
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # With no records too: what made the command superfluous may itself not be durable yet.
        self._committer.submit(
            ops, size_bytes=sum(len(op[3]) for op in ops), on_durable=partial(self._durable, after, done)
        )
        self._decided = after
        await done
        return Executed(before, after)

    def preview(self, command: Command) -> ClusterState:
        """The image as `command` would make it; nothing is kept. Raises what `execute` would."""
        state = self._decided
        for record in decide(state, command, rules=self._rules):
            state = apply(state, [record], index=state.index + 1)
        return state

    async def close(self) -> None:
        """Waits for commands under way, and leaves a snapshot so that the next start has nothing to replay.

        Close it before its committer, and when nothing calls `execute` any more.
        """
        self._closed = True
        await self._committer.barrier()
        if self.state.index > self._snapshot_index:
            self._take_snapshot()
            await self._committer.barrier()

    def _durable(self, after: ClusterState, done: asyncio.Future[None]) -> None:
        before, self.state = self.state, after
        try:
            if after is not before:
                for listener in tuple(self._listeners):
                    listener(before, after)
        finally:
            if not done.done():
                done.set_result(None)
        if after.index - self._snapshot_index >= self._snapshot_records:
            self._take_snapshot()

    def _take_snapshot(self) -> None:
        """One write: a crash leaves either the snapshot or the entries that it replaces."""
        snapshot = to_snapshot(self.state).SerializeToString(deterministic=True)
        self._committer.submit(
            [
                ("put", SNAPSHOT_FAMILY, _SNAPSHOT_KEY, snapshot),
                ("delete_range", LOG_FAMILY, _FIRST_KEY, _key(self.state.index + 1)),
            ],
            size_bytes=len(snapshot),
        )
        self._snapshot_index = self.state.index


def _key(index: int) -> bytes:
    return index.to_bytes(8, "big")
