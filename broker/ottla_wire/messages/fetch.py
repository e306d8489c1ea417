"""Records from an offset on, for consumers, followers and quorum observers.

With a session (KIP-227) a request names only the partitions that changed, an answer only those with something new.

Versions:

     4  record batches of format 2, isolation level, aborted transactions (KIP-98)
     5  log start offset, both the follower's and the leader's
     6  KAFKA_STORAGE_ERROR may be answered (KIP-112)
     7  sessions (KIP-227)
     8  the broker answers before it throttles (KIP-219)
     9  the consumer's leader epoch is checked (KIP-320)
    10  zstd (KIP-110)
    11  rack, and the replica that is best read from (KIP-392)
    12  flexible; divergence is found in fetches (KIP-595)
    13  topic ids instead of names (KIP-516)
    14  OFFSET_MOVED_TO_TIERED_STORAGE may be answered (KIP-405)
    15  replica id and epoch move into ReplicaState (KIP-903)
    16  addresses of new leaders (KIP-951)
    17  a quorum replica's directory id (KIP-853)
    18  the high watermark a follower knows (KIP-1166)
"""

from __future__ import annotations

from ottla_wire.schema import RecordData, Request, Response, Struct, Uuid, field, i8, i16, i32, i64


class ReplicaState(Struct):
    """Which replica, of which incarnation, is fetching."""

    replica_id: i32 = field("15+", default=-1)
    replica_epoch: i64 = field("15+", default=-1)


class FetchPartition(Struct):
    """From where, and how much, to fetch of one partition."""

    partition: i32 = 0
    current_leader_epoch: i32 = field("9+", default=-1, ignorable=True)
    fetch_offset: i64 = 0
    last_fetched_epoch: i32 = field("12+", default=-1)
    log_start_offset: i64 = field("5+", default=-1, ignorable=True)
    partition_max_bytes: i32 = 0
    replica_directory_id: Uuid = field("17+", tag=0, ignorable=True)
    high_watermark: i64 = field("18+", default=0x7FFF_FFFF_FFFF_FFFF, tag=1, ignorable=True)


class FetchTopic(Struct):
    """The partitions of one topic."""

    topic: str = field("0-12", ignorable=True)
    topic_id: Uuid = field("13+", ignorable=True)
    partitions: list[FetchPartition] = field()


class ForgottenTopic(Struct):
    """Partitions that leave the session."""

    topic: str = field("7-12", ignorable=True)
    topic_id: Uuid = field("13+", ignorable=True)
    partitions: list[i32] = field("7+")


class FetchRequest(Request, key=1, versions="4-18", flexible="12+"):
    """Ask for records, and wait for `min_bytes` of them up to `max_wait_ms`."""

    cluster_id: str | None = field("12+", default=None, tag=0, ignorable=True)
    replica_id: i32 = field("0-14", default=-1)
    replica_state: ReplicaState = field("15+", tag=1)
    max_wait_ms: i32 = 0
    min_bytes: i32 = 0
    max_bytes: i32 = 0x7FFFFFFF
    isolation_level: i8 = 0
    session_id: i32 = field("7+", ignorable=True)
    session_epoch: i32 = field("7+", default=-1, ignorable=True)
    topics: list[FetchTopic] = field()
    forgotten_topics_data: list[ForgottenTopic] = field("7+")
    rack_id: str = field("11+", ignorable=True)


class EpochEndOffset(Struct):
    """The last epoch that leader and follower have in common, and where it ends."""

    epoch: i32 = field("12+", default=-1)
    end_offset: i64 = field("12+", default=-1)


class LeaderIdAndEpoch(Struct):
    """The leader to go to instead."""

    leader_id: i32 = field("12+", default=-1)
    leader_epoch: i32 = field("12+", default=-1)


class SnapshotId(Struct):
    """The snapshot to fetch instead, because the log begins after the fetch offset."""

    end_offset: i64 = -1
    epoch: i32 = -1


class AbortedTransaction(Struct):
    """A producer whose records from `first_offset` up to its next abort marker do not count."""

    producer_id: i64 = 0
    first_offset: i64 = 0


class PartitionData(Struct):
    """The records of one partition, or why there are none."""

    partition_index: i32 = 0
    error_code: i16 = 0
    high_watermark: i64 = 0
    last_stable_offset: i64 = -1
    log_start_offset: i64 = field("5+", default=-1, ignorable=True)
    diverging_epoch: EpochEndOffset = field("12+", tag=0)
    current_leader: LeaderIdAndEpoch = field("12+", tag=1)
    snapshot_id: SnapshotId = field("12+", tag=2)
    aborted_transactions: list[AbortedTransaction] | None = field()
    preferred_read_replica: i32 = field("11+", default=-1)
    records: RecordData | None = None


class FetchableTopicResponse(Struct):
    """The partitions of one topic."""

    topic: str = field("0-12", ignorable=True)
    topic_id: Uuid = field("13+", ignorable=True)
    partitions: list[PartitionData] = field()


class NodeEndpoint(Struct):
    """A new leader's address."""

    node_id: i32 = field("16+")
    host: str = field("16+")
    port: i32 = field("16+")
    rack: str | None = field("16+", default=None)


class FetchResponse(Response, key=1, versions="4-18", flexible="12+"):
    """Records, batch by batch as they lie in the log; the last batch may be cut off."""

    throttle_time_ms: i32 = 0
    error_code: i16 = field("7+", ignorable=True)
    session_id: i32 = field("7+")
    responses: list[FetchableTopicResponse] = field()
    node_endpoints: list[NodeEndpoint] = field("16+", tag=0)
