"""Every setting of a node, once: its meaning, unit, default and what changing it costs.

A setting is a flag, an environment variable and a key of a TOML file at the same time; the flag wins over the
environment, that over the file, that over the default. This module reads and checks them and says where a wrong one
came from; it never acts on them. It takes a fifth of a second to import: only `serve` should.
"""

import ipaddress
import os
import re
import socket
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

ENV_PREFIX: Final = "POSTBUS_"
CONFIG_ENV: Final = ENV_PREFIX + "CONFIG"
PEER_PORT: Final = 7071
# What a request needs besides its batch: names, ids, headers of the envelope.
MESSAGE_OVERHEAD_BYTES: Final = 64 * 1024

_BYTE_UNITS: Final = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}
_SECOND_UNITS: Final = {"": 1.0, "ms": 0.001, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_QUANTITY: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*")
_OFF: Final = frozenset({"off", "none", "unlimited"})


def _bytes(value: object) -> object:
    return _quantity(value, _BYTE_UNITS, int) if isinstance(value, str) else value


def _seconds(value: object) -> object:
    return _quantity(value, _SECOND_UNITS, float) if isinstance(value, str) else value


def _quantity(text: str, units: Mapping[str, float], number: type[int] | type[float]) -> object:
    found = _QUANTITY.fullmatch(text)
    if found is None or found[2].lower() not in units:
        raise ValueError(f"should be a number, with or without one of the units {', '.join(u for u in units if u)}")
    return number(float(found[1]) * units[found[2].lower()])


def _optional(value: object) -> object:
    return None if isinstance(value, str) and value.lower() in _OFF else value


def _listed(value: object) -> object:
    """A TOML list, or text with commas between."""
    return [each.strip() for each in value.split(",") if each.strip()] if isinstance(value, str) else value


def _is_endpoint(text: str) -> bool:
    host, _, port = text.rpartition(":")
    return bool(host) and port.isascii() and port.isdecimal() and len(port) <= 5 and 0 < int(port) <= 65535


def _is_loopback(host: str) -> bool | None:
    """None: a name, which only the network knows."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return None


Bytes = Annotated[int, BeforeValidator(_bytes)]
Seconds = Annotated[float, BeforeValidator(_seconds), Field(allow_inf_nan=False)]
Port = Annotated[int, Field(ge=0, le=65535)]

KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB
MINUTE: Final = 60.0
HOUR: Final = 60 * MINUTE
DAY: Final = 24 * HOUR

_SECTIONS: Final = {
    "node": "Node",
    "cluster": "Cluster",
    "log": "Log",
    "storage": "Storage",
    "limits": "Limits",
    "topics": "Topic defaults",
    "publish": "Publishing",
    "subscribe": "Subscribing",
    "groups": "Groups",
    "connections": "Connections",
    "stop": "Stopping",
}


def _setting(section: str, default: Any, description: str, **bounds: Any) -> Any:
    assert section in _SECTIONS
    return Field(default, description=description, json_schema_extra={"section": section}, **bounds)


class ConfigError(Exception):
    """A setting is wrong. The text has one line for each, naming the setting and where it came from."""


class Settings(BaseSettings):
    """The settings of a node. Immutable."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, env_ignore_empty=True, extra="forbid", frozen=True, validate_default=False
    )

    # Node
    node_id: int = _setting("node", 1, "Number of this node, from 1. Never change it once data exists.", ge=1, lt=2**31)
    data_dir: Path = _setting("node", Path("postbus-data"), "Folder that holds everything durable; created if missing.")
    host: str = _setting(
        "node", "127.0.0.1", "Address to listen on. 0.0.0.0 or :: lets other machines in; there is no encryption yet."
    )
    client_port: Port = _setting("node", 7070, "Port for clients (gRPC). 0: a free one.")
    http_port: Annotated[Port | None, BeforeValidator(_optional)] = _setting(
        "node", 7072, "Port for health and metrics (HTTP). 0: a free one; off: none."
    )
    advertised_endpoint: str = _setting(
        "node", "", "host:port that clients are told to reach this node at. Empty: made from host and client-port."
    )
    rack: str = _setting(
        "node", "", "Where the node stands, for placing replicas apart. Empty: not said.", max_length=249
    )

    # Cluster
    cluster_id: str = _setting(
        "cluster",
        "",
        "Name of the cluster, the same on all its nodes; others are refused. Never change it once data exists. Empty: "
        "made up by a node without peers.",
        max_length=64,
        pattern=r"^[A-Za-z0-9._-]*$",
    )
    peers: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_listed)] = _setting(
        "cluster",
        (),
        "The nodes that found the cluster and vote in it, as ID@HOST:PORT of their peer ports: the same list on each "
        "(1@bus-1:7071,2@bus-2:7071,3@bus-3:7071). A node that is not in it joins as an observer. Empty: a bus of its "
        "own.",
        max_length=99,
    )
    peer_port: Annotated[Port | None, BeforeValidator(_optional)] = _setting(
        "cluster",
        None,
        "Port for the other nodes. 0: a free one; off: as this node's entry in peers says, 7071 if it has none, and "
        "none at all for a bus of its own.",
    )
    advertised_peer_endpoint: str = _setting(
        "cluster",
        "",
        "host:port that other nodes are told to reach this one at. Empty: as peers says, or made from host and "
        "peer-port.",
    )
    groups_partitions: int = _setting(
        "cluster",
        6,
        "Partitions of the log that holds the groups, over whose leaders they spread. Only the first start of a "
        "cluster reads it.",
        ge=1,
        le=1000,
    )
    groups_replication_factor: int = _setting(
        "cluster", 3, "Replicas of the groups' log, or as many as there are nodes.", ge=1, le=99
    )
    raft_heartbeat_interval_seconds: Seconds = _setting(
        "cluster", 0.1, "How often the controller tells the other voters that it lives.", ge=0.02, le=10
    )
    raft_election_timeout_seconds: Seconds = _setting(
        "cluster",
        0.5,
        "Silence of the controller after which another is elected (random, up to twice that). Shorter than pauses of "
        "the machine: elections for nothing.",
        ge=0.1,
        le=MINUTE,
    )
    node_heartbeat_interval_seconds: Seconds = _setting(
        "cluster", 0.2, "How often a node tells the controller that it lives.", ge=0.02, le=10
    )
    node_session_seconds: Seconds = _setting(
        "cluster",
        1.0,
        "A node without an answer from the controller for so long stops acknowledging: others may lead by then.",
        ge=0.1,
        le=MINUTE,
    )
    node_silence_seconds: Seconds = _setting(
        "cluster",
        1.5,
        "Silence of a node after which the controller lets others lead in its place. Must exceed node-session-seconds.",
        ge=0.15,
        le=2 * MINUTE,
    )
    node_lost_seconds: Seconds = _setting(
        "cluster",
        0.25,
        "The same once a node's connection broke, which a killed process' does at once.",
        ge=0,
        le=MINUTE,
    )
    replica_lag_seconds: Seconds = _setting(
        "cluster",
        5.0,
        "A follower that has not been caught up for so long leaves the in-sync replicas. Less: slow disks flap; more: "
        "a stuck follower holds up acknowledgements for longer.",
        ge=0.5,
        le=HOUR,
    )
    pull_credit_bytes: Bytes = _setting(
        "cluster",
        8 * MIB,
        "Bytes that a leader may have under way to a follower. Memory on both sides; less costs throughput.",
        ge=MIB,
        le=GIB,
    )
    catch_up_credit_bytes: Bytes = _setting(
        "cluster", 4 * MIB, "The same for replicas that are not in sync yet.", ge=MIB, le=GIB
    )
    catch_up_bytes_per_second: Annotated[Bytes | None, BeforeValidator(_optional)] = _setting(
        "cluster",
        None,
        "Bytes a second that a node sends at most to replicas that are being moved or filled. off: no limit; "
        "reassignments may say their own.",
        ge=64 * KIB,
    )
    peer_ping_seconds: Seconds = _setting(
        "cluster", 2.0, "Silence after which a node is pinged by another one.", ge=0.1, le=HOUR
    )
    peer_ping_timeout_seconds: Seconds = _setting(
        "cluster", 1.0, "How long that may stay unanswered before the connection is given up.", ge=0.1, le=HOUR
    )
    peer_calls_max: int = _setting(
        "cluster", 10_000, "Questions to one other node that may be open; further ones wait or fail.", ge=10
    )
    peer_calls_bytes_max: Bytes = _setting("cluster", 64 * MIB, "Bytes of them.", ge=16 * MIB)

    # Log
    log_level: Literal["debug", "info", "warning", "error"] = _setting(
        "log", "info", "Least level that is logged. debug slows a busy node."
    )
    log_format: Literal["auto", "console", "json"] = _setting(
        "log", "auto", "json: one object a line; console: for people; auto: console on a terminal, else json."
    )
    metrics_per_partition: bool = _setting(
        "log", True, "Whether /metrics has series for each partition. Off saves the scraper where partitions are many."
    )

    # Storage
    append_queue_bytes_max: Bytes = _setting(
        "storage",
        32 * MIB,
        "Bytes that may wait for the disk; above it publishers are slowed down. More smooths bursts and costs memory.",
        ge=MIB,
    )
    tail_bytes_max: Bytes = _setting(
        "storage",
        64 * MIB,
        "Bytes of recent batches kept in memory for subscribers that keep up; the others read from disk.",
        ge=0,
    )
    disk_free_min_bytes: Bytes = _setting(
        "storage",
        GIB,
        "Free bytes on the disk below which publishing is refused until there is room again; below a quarter of it, "
        "committing offsets too. Too low risks that RocksDB meets a full disk, which ends the process.",
        ge=0,
    )
    disk_check_interval_seconds: Seconds = _setting(
        "storage", 1.0, "Seconds between looks at the free disk space.", gt=0, le=60
    )
    reader_threads: int = _setting(
        "storage", 2, "Threads that read from disk. More help many subscribers that are far behind.", ge=1, le=64
    )
    memtable_bytes: Bytes = _setting(
        "storage",
        32 * MIB,
        "Size of one memtable of batches, of which there are up to four. Less: more stalls. More: memory.",
        ge=MIB,
    )
    wal_bytes_max: Bytes = _setting(
        "storage",
        96 * MIB,
        "Size of a database's write-ahead log at which memtables are flushed. Larger makes restarts slower.",
        ge=4 * MIB,
    )
    retention_interval_seconds: Seconds = _setting(
        "storage", 5.0, "Seconds between runs of retention. Records may outlive their time by that much.", gt=0, le=HOUR
    )
    scrub_bytes_per_second: Bytes = _setting(
        "storage",
        MIB,
        "How fast records that nobody reads are read to find damage while there is another copy; once a day at most. "
        "0: not at all. Small batches count as 1 KiB.",
        ge=0,
        le=GIB,
    )
    compaction_interval_seconds: Seconds = _setting(
        "storage", 15.0, "Seconds between looks for logs to compact.", ge=0.1, le=24 * HOUR
    )
    compaction_dirty_share_min: float = _setting(
        "storage",
        0.5,
        "A compacted log is gone through when this share of its bytes has not been. Less: more is rewritten.",
        ge=0.0,
        le=1.0,
    )
    compaction_lag_seconds_min: Seconds = _setting(
        "storage", 0.0, "Records of compacted topics that are younger stay, whatever came after them.", ge=0
    )
    compaction_tombstone_seconds: Seconds = _setting(
        "storage",
        24 * HOUR,
        "How long tombstones of compacted topics stay. A reader that takes longer from an old record to its tombstone "
        "misses that it went.",
        ge=0,
    )
    compaction_bytes_per_second: Bytes = _setting(
        "storage", 32 * MIB, "Bytes a second that compaction reads and writes at most.", ge=MIB
    )
    metadata_snapshot_records: int = _setting(
        "storage",
        1_000,
        "Records of the metadata log between two snapshots. More makes restarts slower.",
        ge=1,
        le=1_000_000,
    )

    # Limits
    record_bytes_max: Bytes = _setting(
        "limits", MIB, "Largest record in bytes, unless its topic says less. Counted uncompressed.", ge=KIB
    )
    batch_bytes_max: Bytes = _setting(
        "limits",
        3 * MIB,
        "Largest batch in bytes, counted uncompressed. More needs message-receive-bytes-max and -send- raised too; "
        "clients refuse messages over 4 MiB unless they are told otherwise.",
        ge=KIB,
        le=512 * MIB,
    )
    batch_records_max: int = _setting(
        "limits",
        100_000,
        "Most records in a batch. More makes batches of tiny records that hold up the node while they are checked.",
        ge=1,
        le=1_000_000,
    )
    message_receive_bytes_max: Bytes = _setting(
        "limits",
        6 * MIB,
        "Largest gRPC message taken from a client. Each call that is served may cost this much memory.",
        ge=128 * KIB,
        lt=2**31,
    )
    message_send_bytes_max: Bytes = _setting(
        "limits", 16 * MIB, "Largest gRPC message sent to a client.", ge=128 * KIB, lt=2**31
    )
    partitions_max: int = _setting(
        "limits", 10_000, "Most partitions on this node, over all topics. Each costs some kB of memory.", ge=1
    )

    # Topic defaults
    topic_partitions: int = _setting("topics", 6, "Partitions of a topic that does not say how many.", ge=1, le=1000)
    topic_replication_factor: int = _setting(
        "topics", 3, "Replicas of a topic that does not say how many, or as many as there are nodes.", ge=1, le=99
    )
    topic_retention_seconds: Annotated[Seconds | None, BeforeValidator(_optional)] = _setting(
        "topics", 7 * DAY, "How long records stay. off: for ever.", gt=0, le=100 * 366 * DAY
    )
    topic_retention_bytes: Annotated[Bytes | None, BeforeValidator(_optional)] = _setting(
        "topics", None, "Bytes of a partition above which its oldest records go. off: no limit.", gt=0
    )
    deduplication_window_seconds: Seconds = _setting(
        "topics",
        5 * MINUTE,
        "How long a request id is remembered. 0: not at all, and a repeated request is appended twice.",
        ge=0,
        le=7 * DAY,
    )
    request_ids_max: int = _setting(
        "topics",
        200_000,
        "Request ids remembered for a partition (about 300 bytes each); at the bound, new ones are refused.",
        ge=1,
        le=10_000_000,
    )

    producers_max: int = _setting(
        "topics",
        10_000,
        "Idempotent producers remembered for a partition; beyond, the longest silent one must take a new epoch.",
        ge=1,
        le=10_000_000,
    )
    producer_expiry_seconds: Seconds = _setting(
        "topics", 7 * DAY, "Silence after which an idempotent producer is forgotten.", ge=MINUTE, le=366 * DAY
    )

    # Publishing
    publish_timeout_seconds: Seconds = _setting(
        "publish", 30.0, "How long a publish waits for its acknowledgement when it does not say.", gt=0, le=HOUR
    )
    publish_stream_requests_max: int = _setting(
        "publish",
        1_000,
        "Requests of one PublishStream that may be unanswered; further ones are not read meanwhile.",
        ge=1,
        le=100_000,
    )
    publish_stream_bytes_max: Bytes = _setting(
        "publish",
        8 * MIB,
        "Bytes of one PublishStream that may be unanswered; further requests are not read meanwhile.",
        ge=MIB,
    )
    publisher_unread_timeout_seconds: Seconds = _setting(
        "publish",
        30.0,
        "A PublishStream whose client reads no acknowledgements for so long is ended.",
        gt=0,
        le=HOUR,
    )

    # Subscribing
    subscribe_window_records: int = _setting(
        "subscribe",
        5_000,
        "Records that a group member may have unacknowledged when it does not say.",
        ge=1,
        le=10_000_000,
    )
    subscribe_window_bytes: Bytes = _setting(
        "subscribe", 4 * MIB, "Bytes that a group member may have unacknowledged when it does not say.", ge=64 * KIB
    )
    heartbeat_interval_seconds: Seconds = _setting(
        "subscribe", 5.0, "Seconds between heartbeats on a stream that has nothing to send.", ge=0.1, le=HOUR
    )
    fetch_wait_seconds_max: Seconds = _setting(
        "subscribe", 60.0, "Longest time that a Fetch may wait for records.", gt=0, le=10 * MINUTE
    )

    # Groups
    member_resume_seconds: Seconds = _setting(
        "groups",
        0.5,
        "How long a member whose connection broke may resume before its partitions go to others.",
        ge=0,
        le=MINUTE,
    )
    member_resume_after_node_loss_seconds: Seconds = _setting(
        "groups", 10.0, "The same when the node that held the connection went.", ge=0, le=10 * MINUTE
    )
    processing_timeout_seconds: Seconds = _setting(
        "groups",
        5 * MINUTE,
        "A member that acknowledges nothing for so long while records are out loses its partitions, unless it says.",
        gt=0,
        le=DAY,
    )
    processing_timeout_seconds_max: Seconds = _setting(
        "groups", HOUR, "Longest processing timeout that a member may ask for.", gt=0, le=7 * DAY
    )
    session_timeout_seconds: Seconds = _setting(
        "groups",
        45.0,
        "Silence after which a member that has no stream, but calls Heartbeat, loses its partitions.",
        ge=1,
        le=HOUR,
    )
    static_member_timeout_seconds: Seconds = _setting(
        "groups", 45.0, "How long an absent static member keeps its partitions.", ge=0, le=DAY
    )
    offset_retention_seconds: Annotated[Seconds | None, BeforeValidator(_optional)] = _setting(
        "groups", 30 * DAY, "How long committed offsets outlive a group's last member. off: for ever.", gt=0
    )
    group_members_max: int = _setting("groups", 1_000, "Most members of one group.", ge=1, le=100_000)
    groups_max: int = _setting("groups", 10_000, "Most groups that this node coordinates.", ge=1, le=1_000_000)

    # Connections
    unary_publish_calls_max: int = _setting(
        "connections",
        32,
        "Unary Publish calls that are received at once; others wait before their message is read. "
        "Each may cost message-receive-bytes-max of memory.",
        ge=1,
        le=10_000,
    )
    unary_calls_max: int = _setting("connections", 256, "Other unary calls at once; others wait.", ge=1, le=100_000)
    fetch_calls_max: int = _setting(
        "connections", 1_000, "Fetch calls at once, waiting ones included; others wait.", ge=1, le=100_000
    )
    heartbeat_calls_max: int = _setting(
        "connections",
        10_000,
        "Heartbeat calls at once, of members that coordinate themselves; each waits for news; others wait.",
        ge=1,
        le=1_000_000,
    )
    streams_max: int = _setting(
        "connections", 10_000, "Open streams on this node; further ones are refused with RetryInfo.", ge=1, le=1_000_000
    )
    keepalive_ping_seconds: Seconds = _setting(
        "connections",
        10.0,
        "Silence after which a client is pinged; with keepalive-timeout-seconds, how fast a vanished peer is found.",
        ge=1,
        le=HOUR,
    )
    keepalive_timeout_seconds: Seconds = _setting(
        "connections", 8.0, "How long a ping may stay unanswered before the connection is closed.", ge=1, le=HOUR
    )
    keepalive_client_ping_seconds_min: Seconds = _setting(
        "connections",
        10.0,
        "Clients may ping this often; those that ping faster are cut off (too_many_pings).",
        ge=0,
        le=HOUR,
    )

    # Stopping
    handover_timeout_seconds: Seconds = _setting(
        "stop",
        5.0,
        "How long a node that stops waits until others lead in its place; clients are served meanwhile.",
        ge=0,
        le=HOUR,
    )
    drain_grace_seconds: Seconds = _setting(
        "stop",
        3.0,
        "How long clients are given to finish after they were told that the node goes. 0: none.",
        ge=0,
        le=HOUR,
    )
    shutdown_timeout_seconds: Seconds = _setting(
        "stop",
        10.0,
        "The longest a stop may take after the drain; then the process ends. Nothing acknowledged is lost either way.",
        gt=0,
        le=HOUR,
    )

    @field_validator("advertised_endpoint", "advertised_peer_endpoint")
    @classmethod
    def _has_host_and_port(cls, endpoint: str) -> str:
        if endpoint and not _is_endpoint(endpoint):
            raise ValueError("should be host:port, such as bus-1.example.org:7070")
        return endpoint

    @field_validator("peers")
    @classmethod
    def _are_peers(cls, peers: tuple[str, ...]) -> tuple[str, ...]:
        ids, endpoints = set(), set()
        for peer in peers:
            number, at, endpoint = peer.partition("@")
            if (
                not at
                or not re.fullmatch(r"[1-9]\d{0,9}", number)
                or int(number) >= 2**31
                or not _is_endpoint(endpoint)
            ):
                raise ValueError(f"each should be ID@HOST:PORT, such as 1@bus-1:7071; {peer!r} is not")
            if number in ids:
                raise ValueError(f"node {number} is there twice")
            if endpoint in endpoints:
                raise ValueError(f"two nodes can't both be at {endpoint}")
            ids.add(number)
            endpoints.add(endpoint)
        return peers

    @field_validator("host")
    @classmethod
    def _is_said(cls, host: str) -> str:
        if not host.strip():
            raise ValueError("should be an address; 0.0.0.0 means all")
        return host

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if self.record_bytes_max > self.batch_bytes_max:
            raise ValueError("record_bytes_max may not exceed batch_bytes_max: such a record would fit no batch")
        for name in ("message_receive_bytes_max", "message_send_bytes_max"):
            if getattr(self, name) < self.batch_bytes_max + MESSAGE_OVERHEAD_BYTES:
                raise ValueError(
                    f"{name} should exceed batch_bytes_max by 64 KiB at least, or full batches do not pass"
                )
        if self.append_queue_bytes_max < 2 * self.batch_bytes_max:
            raise ValueError("append_queue_bytes_max should hold two batches of batch_bytes_max at least")
        if self.processing_timeout_seconds > self.processing_timeout_seconds_max:
            raise ValueError("processing_timeout_seconds may not exceed processing_timeout_seconds_max")
        if self.raft_election_timeout_seconds < 2 * self.raft_heartbeat_interval_seconds:
            raise ValueError("raft_election_timeout_seconds should be twice raft_heartbeat_interval_seconds at least")
        if self.node_session_seconds < 2 * self.node_heartbeat_interval_seconds:
            raise ValueError("node_session_seconds should be twice node_heartbeat_interval_seconds at least")
        if self.node_silence_seconds <= self.node_session_seconds:
            raise ValueError(
                "node_silence_seconds must exceed node_session_seconds, or two nodes may lead a partition at once"
            )
        if self.peers:
            self._check_cluster()
        return self

    def _check_cluster(self) -> None:
        if not self.cluster_id:
            raise ValueError("peers need a cluster_id, the same on all nodes, so that no stranger joins by mistake")
        if "data_dir" not in self.model_fields_set:
            raise ValueError("a node with peers needs a data_dir that is its own; name it")
        own = self.peer_endpoints.get(self.node_id)
        if own is None:
            return
        host, _, port = own.rpartition(":")
        if self.peer_port not in (None, int(port)) and not self.advertised_peer_endpoint:
            raise ValueError(
                f"peer_port is {self.peer_port}, but peers send others to {own} for node {self.node_id}; leave"
                " peer_port out, or set advertised_peer_endpoint if something in between maps ports"
            )
        if _is_loopback(self.host) and _is_loopback(host) is False:
            raise ValueError(
                f"host is {self.host}, where no other machine connects, but peers say {own} for node {self.node_id};"
                " 0.0.0.0 listens on all addresses"
            )

    @property
    def peer_endpoints(self) -> dict[int, str]:
        """Where the nodes listen that found the cluster, by number."""
        return {int(number): endpoint for number, _, endpoint in (peer.partition("@") for peer in self.peers)}

    @property
    def peer_port_wanted(self) -> int | None:
        """The port to listen on for other nodes. None: this is a bus of its own."""
        if self.peer_port is not None:
            return self.peer_port
        if own := self.peer_endpoints.get(self.node_id):
            return int(own.rpartition(":")[2])
        return PEER_PORT if self.peers or self.cluster_id else None

    def peer_endpoint(self, peer_port: int) -> str:
        """host:port to tell other nodes; `peer_port` is the one really bound."""
        if self.advertised_peer_endpoint:
            return self.advertised_peer_endpoint
        return self.peer_endpoints.get(self.node_id) or self._made(peer_port)

    def endpoint(self, client_port: int) -> str:
        """host:port to tell clients; `client_port` is the one really bound."""
        return self.advertised_endpoint or self._made(client_port)

    def _made(self, port: int) -> str:
        host = socket.gethostname() if self.host in ("0.0.0.0", "::") else self.host
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def load(flags: Mapping[str, object] | None = None, *, config_path: Path | None = None) -> Settings:
    """The settings from `flags` (by setting name; text as typed, None: not given), environment, file and defaults.

    Without `config_path`, POSTBUS_CONFIG names the file. Raises ConfigError.
    """
    if config_path is None and os.environ.get(CONFIG_ENV):
        config_path = Path(os.environ[CONFIG_ENV])
    given = {name: value for name, value in (flags or {}).items() if value is not None}
    from_file = _read_file(config_path) if config_path is not None else {}

    class Sourced(Settings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            environment.update(env_settings())
            return init_settings, env_settings, InitSettingsSource(settings_cls, from_file)

    environment: dict[str, object] = {}
    try:
        return Sourced(**given)  # type: ignore[arg-type]
    except ValidationError as error:
        where = _Origins(given, environment, from_file, config_path)
        raise ConfigError("\n".join(where.line(detail) for detail in error.errors())) from None


def _read_file(path: Path) -> dict[str, object]:
    try:
        with path.open("rb") as file:
            values = tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"configuration file {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"configuration file {path}: {error}") from None
    return values


@dataclass(frozen=True, slots=True)
class _Origins:
    """Where each value came from, to say so."""

    flags: Mapping[str, object]
    environment: Mapping[str, object]
    file: Mapping[str, object]
    path: Path | None

    def line(self, detail: Any) -> str:
        message = str(detail["msg"]).removeprefix("Value error, ")
        if not detail["loc"]:  # two settings that do not go together
            given = {**self.file, **self.environment, **self.flags}
            origins = [f"{name} {self.of(name)}" for name in re.findall(r"\w+", message) if name in given]
            return f"{message} ({', '.join(dict.fromkeys(origins))})"
        name = str(detail["loc"][0])
        if detail["type"] == "extra_forbidden":
            return f"{name} ({self.of(name)}): there is no such setting"
        return f"{name} ({self.of(name)}): {message[:1].lower()}{message[1:]}, not {detail['input']!r}"

    def of(self, name: str) -> str:
        if name in self.flags:
            return f"from flag {_flag(name)}"
        if name in self.environment:
            return f"from environment variable {ENV_PREFIX}{name.upper()}"
        return f"from file {self.path}"


@dataclass(frozen=True, slots=True)
class SettingDescription:
    """What a person needs to know of a setting."""

    name: str  # key in the TOML file, and attribute of Settings
    section: str  # heading under which to list it
    flag: str
    env: str
    kind: str  # "number", "bytes", "seconds", "text", "path", "yes/no", or the choices joined by "|"
    default: object
    default_text: str
    help: str


def describe_settings() -> Iterator[SettingDescription]:
    """All settings, in the order and sections in which help should list them."""
    for name, field in Settings.model_fields.items():
        extra = field.json_schema_extra
        assert isinstance(extra, dict) and field.description is not None
        yield SettingDescription(
            name=name,
            section=_SECTIONS[str(extra["section"])],
            flag=_flag(name),
            env=ENV_PREFIX + name.upper(),
            kind=_kind(name, field),
            default=field.default,
            default_text=_default_text(name, field.default),
            help=field.description,
        )


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _kind(name: str, field: FieldInfo) -> str:
    if isinstance(field.default, str):
        choices = getattr(field.annotation, "__args__", ())
        return "|".join(choices) if choices else "text"
    if isinstance(field.default, bool):
        return "yes/no"
    if isinstance(field.default, Path):
        return "path"
    if isinstance(field.default, tuple):
        return "list"
    if "_bytes" in name:
        return "bytes"
    return "seconds" if "_seconds" in name else "number"


def _default_text(name: str, default: object) -> str:
    """The default as one would type it: 64MiB rather than 67108864."""
    if default is None:
        return "off"
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, tuple):
        return ",".join(default)
    if "_bytes" in name and isinstance(default, int):
        for unit, size in (("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
            if default and default % size == 0:
                return f"{default // size}{unit}"
    if "_seconds" in name and isinstance(default, float):
        for unit, seconds in (("d", DAY), ("h", HOUR), ("min", MINUTE), ("s", 1.0)):
            if default and default % seconds == 0:
                return f"{default / seconds:g}{unit}"
        return f"{default:g}s"
    return str(default)
