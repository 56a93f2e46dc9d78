"""Raft's values as bytes: on the wire and on the disk. Pure."""

from google.protobuf.message import DecodeError

from broker.peers.links import PeerId
from broker.raft import messages as raft
from broker.raft.membership import Configuration, Seat
from broker.stubs import raft_pb2 as pb


class Undecodable(Exception):  # noqa: N818 - what was received, not what failed
    """No message of this cluster's Raft; the text says why."""


def encode_message(message: raft.Message, *, cluster_id: str) -> bytes:
    """For the wire."""
    out = pb.RaftMessage(
        cluster_id=cluster_id,
        sender_node_id=message.sender.node_id,
        sender_store_id=message.sender.store_id,
        to_node_id=message.to,
        to_store_id=message.to_store,
        term=message.term,
        fresh=message.fresh,
    )
    match message.body:
        case raft.Vote() as body:
            out.vote.last_index, out.vote.last_term = body.last_index, body.last_term
            out.vote.pre, out.vote.force = body.pre, body.force
            out.vote.SetInParent()
        case raft.VoteResponse() as body:
            out.vote_response.granted, out.vote_response.pre = body.granted, body.pre
            out.vote_response.SetInParent()
        case raft.Append() as body:
            append = out.append
            append.prev_index, append.prev_term, append.commit = body.prev_index, body.prev_term, body.commit
            append.entries.extend(_entry(entry) for entry in body.entries)
            append.SetInParent()
        case raft.AppendResponse() as body:
            response = out.append_response
            response.index, response.rejected = body.index, body.rejected
            response.hint_index, response.hint_term = body.hint_index, body.hint_term
            response.SetInParent()
        case raft.Heartbeat() as body:
            out.heartbeat.commit = body.commit
            out.heartbeat.SetInParent()
        case raft.HeartbeatResponse():
            out.heartbeat_response.SetInParent()
        case raft.InstallSnapshot() as body:
            piece = out.install_snapshot
            piece.index, piece.snapshot_term = body.index, body.snapshot_term
            piece.configuration.CopyFrom(_configuration(body.configuration))
            piece.offset, piece.size_bytes, piece.data = body.offset, body.size_bytes, body.data
        case raft.InstallSnapshotResponse() as body:
            out.install_snapshot_response.index, out.install_snapshot_response.offset = body.index, body.offset
            out.install_snapshot_response.SetInParent()
        case raft.TimeoutNow():
            out.timeout_now.SetInParent()
        case raft.Greeting() as body:
            out.greeting.node_id, out.greeting.store_id = body.origin.node_id, body.origin.store_id
    return out.SerializeToString()


def decode_message(data: bytes, *, cluster_id: str, node_id: int) -> raft.Message:
    """From the wire, for this node. Raises Undecodable."""
    try:
        message = pb.RaftMessage.FromString(data)
    except DecodeError as error:
        raise Undecodable("not a Raft message") from error
    if message.cluster_id != cluster_id:
        raise Undecodable(f"a message of cluster {message.cluster_id!r}")
    if message.to_node_id != node_id:
        raise Undecodable(f"a message for node {message.to_node_id}")
    sender = PeerId(message.sender_node_id, message.sender_store_id)
    if sender.node_id < 1 or not sender.store_id:
        raise Undecodable("a message from nobody")
    return raft.Message(
        to=message.to_node_id,
        to_store=message.to_store_id,
        sender=sender,
        term=message.term,
        fresh=message.fresh,
        body=_body(message),
    )


def _body(message: pb.RaftMessage) -> raft.Body:
    match message.WhichOneof("body"):
        case "vote":
            vote = message.vote
            return raft.Vote(vote.last_index, vote.last_term, pre=vote.pre, force=vote.force)
        case "vote_response":
            return raft.VoteResponse(message.vote_response.granted, pre=message.vote_response.pre)
        case "append":
            append = message.append
            entries = tuple(
                _from_entry(entry, index) for index, entry in enumerate(append.entries, start=append.prev_index + 1)
            )
            return raft.Append(append.prev_index, append.prev_term, append.commit, entries)
        case "append_response":
            response = message.append_response
            return raft.AppendResponse(response.index, response.rejected, response.hint_index, response.hint_term)
        case "heartbeat":
            return raft.Heartbeat(message.heartbeat.commit)
        case "heartbeat_response":
            return raft.HeartbeatResponse()
        case "install_snapshot":
            piece = message.install_snapshot
            return raft.InstallSnapshot(
                piece.index,
                piece.snapshot_term,
                _from_configuration(piece.configuration),
                piece.offset,
                piece.size_bytes,
                piece.data,
            )
        case "install_snapshot_response":
            return raft.InstallSnapshotResponse(
                message.install_snapshot_response.index, message.install_snapshot_response.offset
            )
        case "timeout_now":
            return raft.TimeoutNow()
        case "greeting":
            return raft.Greeting(PeerId(message.greeting.node_id, message.greeting.store_id))
        case _:
            raise Undecodable("a message of a kind that is not known here")


# --- The disk.


def encode_entry(entry: raft.Entry) -> bytes:
    """Without its index, which is its key."""
    return _entry(entry).SerializeToString()


def decode_entry(data: bytes, index: int) -> raft.Entry:
    """Raises DecodeError."""
    return _from_entry(pb.RaftEntry.FromString(data), index)


def encode_hard_state(state: raft.HardState) -> bytes:
    """As it is saved."""
    return pb.RaftHardState(term=state.term, vote=state.vote, commit=state.commit).SerializeToString()


def decode_hard_state(data: bytes) -> raft.HardState:
    """Raises DecodeError."""
    state = pb.RaftHardState.FromString(data)
    return raft.HardState(term=state.term, vote=state.vote, commit=state.commit)


def encode_snapshot(snapshot: raft.Snapshot) -> bytes:
    """As it is saved."""
    configuration = _configuration(snapshot.configuration)
    return pb.RaftSnapshot(
        index=snapshot.index, term=snapshot.term, configuration=configuration, data=snapshot.data
    ).SerializeToString()


def decode_snapshot(data: bytes) -> raft.Snapshot:
    """Raises DecodeError."""
    snapshot = pb.RaftSnapshot.FromString(data)
    return raft.Snapshot(snapshot.index, snapshot.term, _from_configuration(snapshot.configuration), snapshot.data)


def _entry(entry: raft.Entry) -> pb.RaftEntry:
    configuration = _configuration(entry.configuration) if entry.configuration is not None else None
    return pb.RaftEntry(term=entry.term, data=entry.data, configuration=configuration)


def _from_entry(entry: pb.RaftEntry, index: int) -> raft.Entry:
    configuration = _from_configuration(entry.configuration) if entry.HasField("configuration") else None
    return raft.Entry(index, entry.term, entry.data, configuration)


def _configuration(configuration: Configuration) -> pb.RaftConfiguration:
    return pb.RaftConfiguration(
        seats=[
            pb.RaftSeat(node_id=seat.node_id, store_id=seat.store_id, voter=seat.voter, returning=seat.returning)
            for seat in configuration.seats
        ],
        removed_stores=configuration.removed_stores,
    )


def _from_configuration(configuration: pb.RaftConfiguration) -> Configuration:
    return Configuration(
        tuple(Seat(seat.node_id, seat.store_id, seat.voter, seat.returning) for seat in configuration.seats),
        tuple(configuration.removed_stores),
    )
