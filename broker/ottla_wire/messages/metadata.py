"""Brokers, and topics with their partitions and leaders.

Versions:

     0  no topics named: all of them
     1  null means all topics, an empty list none; racks, controller, internal topics
     2  cluster id (KIP-78)
     3  throttle time
     4  the client decides whether topics are created (KIP-204)
     5  offline replicas (KIP-112)
     6  the broker answers before it throttles (KIP-219)
     7  leader epochs (KIP-320)
     8  authorized operations on request (KIP-430)
     9  flexible
    10  topic ids, which cannot be asked by yet (KIP-516)
    11  no cluster's authorized operations; DescribeCluster has them (KIP-700)
    12  topics can be asked for by id (KIP-516)
    13  an error code for the whole answer (KIP-1102)
"""

from __future__ import annotations

from ottla_wire.schema import Request, Response, Struct, Uuid, field, i16, i32


class MetadataRequestTopic(Struct):
    """A topic that is asked about, by name or by id."""

    topic_id: Uuid = field("10+", ignorable=True)
    name: str | None = field(nullable="10+")


class MetadataRequest(Request, key=3, versions="0-13", flexible="9+"):
    """Ask for brokers and topics."""

    topics: list[MetadataRequestTopic] | None = field(nullable="1+")
    allow_auto_topic_creation: bool = field("4+", default=True)
    include_cluster_authorized_operations: bool = field("8-10")
    include_topic_authorized_operations: bool = field("8+")


class MetadataResponseBroker(Struct):
    """A broker and where it can be reached."""

    node_id: i32 = 0
    host: str = ""
    port: i32 = 0
    rack: str | None = field("1+", default=None, ignorable=True)


class MetadataResponsePartition(Struct):
    """A partition with its leader and replicas."""

    error_code: i16 = 0
    partition_index: i32 = 0
    leader_id: i32 = 0
    leader_epoch: i32 = field("7+", default=-1, ignorable=True)
    replica_nodes: list[i32] = field()
    isr_nodes: list[i32] = field()
    offline_replicas: list[i32] = field("5+", ignorable=True)


class MetadataResponseTopic(Struct):
    """A topic with its partitions, or why it cannot be shown."""

    error_code: i16 = 0
    name: str | None = field(nullable="12+")
    topic_id: Uuid = field("10+", ignorable=True)
    is_internal: bool = field("1+", ignorable=True)
    partitions: list[MetadataResponsePartition] = field()
    topic_authorized_operations: i32 = field("8+", default=-2147483648)


class MetadataResponse(Response, key=3, versions="0-13", flexible="9+"):
    """The cluster as the asked broker knows it."""

    throttle_time_ms: i32 = field("3+", ignorable=True)
    brokers: list[MetadataResponseBroker] = field()
    cluster_id: str | None = field("2+", default=None, ignorable=True)
    controller_id: i32 = field("1+", default=-1, ignorable=True)
    topics: list[MetadataResponseTopic] = field()
    cluster_authorized_operations: i32 = field("8-10", default=-2147483648)
    error_code: i16 = field("13+", ignorable=True)
