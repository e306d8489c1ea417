"""Elections of partition leaders are started by hand.

Election types: 0 preferred leader, 1 unclean.

Versions:

    0  preferred leaders only (KIP-183)
    1  election types, an error code for the whole answer (KIP-460)
    2  flexible
"""

from __future__ import annotations

from ottla_wire.schema import Request, Response, Struct, field, i8, i16, i32


class TopicPartitions(Struct):
    """The partitions of one topic."""

    topic: str = ""
    partitions: list[i32] = field()


class ElectLeadersRequest(Request, key=43, versions="0-2", flexible="2+"):
    """Start elections; null means all partitions."""

    election_type: i8 = field("1+")
    topic_partitions: list[TopicPartitions] | None = field()
    timeout_ms: i32 = 60000


class PartitionResult(Struct):
    """The result for one partition."""

    partition_id: i32 = 0
    error_code: i16 = 0
    error_message: str | None = ""


class ReplicaElectionResult(Struct):
    """The results for one topic."""

    topic: str = ""
    partition_result: list[PartitionResult] = field()


class ElectLeadersResponse(Response, key=43, versions="0-2", flexible="2+"):
    """The result for each partition."""

    throttle_time_ms: i32 = 0
    error_code: i16 = field("1+")
    replica_election_results: list[ReplicaElectionResult] = field()
