"""Record batches to append, and the offsets they got.

Versions below 3 (old message formats) are gone from Kafka 4, but advertised: see `PRODUCE_ADVERTISED_MIN_VERSION`.

Versions:

     3  record batches of format 2, transactional ids (KIP-98)
     4  KAFKA_STORAGE_ERROR may be answered (KIP-112)
     5  log start offset in the answer
     6  the broker answers before it throttles (KIP-219)
     7  zstd (KIP-110)
     8  which records were refused, and why (KIP-467)
     9  flexible
    10  the answer names the new leader, and its address (KIP-951)
    11  TRANSACTION_ABORTABLE may be answered (KIP-890)
    12  adds the partition to the transaction implicitly (KIP-890, transaction version 2)
    13  topic ids instead of names (KIP-516)
"""

from __future__ import annotations

from ottla_wire.schema import RecordData, Request, Response, Struct, Uuid, field, i16, i32, i64


class PartitionProduceData(Struct):
    """The batch for one partition."""

    index: i32 = 0
    records: RecordData | None = None


class TopicProduceData(Struct):
    """The batches for one topic."""

    name: str = field("0-12", ignorable=True)
    topic_id: Uuid = field("13+", ignorable=True)
    partition_data: list[PartitionProduceData] = field()


class ProduceRequest(Request, key=0, versions="3-13", flexible="9+"):
    """Append batches. `acks` is -1 (all in-sync replicas), 1 (the leader) or 0 (no answer is sent)."""

    transactional_id: str | None = None
    acks: i16 = 0
    timeout_ms: i32 = 0
    topic_data: list[TopicProduceData] = field()


class BatchIndexAndErrorMessage(Struct):
    """A record that made the broker refuse its batch."""

    batch_index: i32 = field("8+")
    batch_index_error_message: str | None = field("8+", default=None)


class LeaderIdAndEpoch(Struct):
    """The leader to go to instead."""

    leader_id: i32 = field("10+", default=-1)
    leader_epoch: i32 = field("10+", default=-1)


class PartitionProduceResponse(Struct):
    """Where the batch of one partition landed, or why it did not."""

    index: i32 = 0
    error_code: i16 = 0
    base_offset: i64 = 0
    log_append_time_ms: i64 = -1
    log_start_offset: i64 = field("5+", default=-1, ignorable=True)
    record_errors: list[BatchIndexAndErrorMessage] = field("8+", ignorable=True)
    error_message: str | None = field("8+", default=None, ignorable=True)
    current_leader: LeaderIdAndEpoch = field("10+", tag=0)


class TopicProduceResponse(Struct):
    """The results for one topic."""

    name: str = field("0-12", ignorable=True)
    topic_id: Uuid = field("13+", ignorable=True)
    partition_responses: list[PartitionProduceResponse] = field()


class NodeEndpoint(Struct):
    """A new leader's address."""

    node_id: i32 = field("10+")
    host: str = field("10+")
    port: i32 = field("10+")
    rack: str | None = field("10+", default=None)


class ProduceResponse(Response, key=0, versions="3-13", flexible="9+"):
    """The results of all partitions."""

    responses: list[TopicProduceResponse] = field()
    throttle_time_ms: i32 = 0
    node_endpoints: list[NodeEndpoint] = field("10+", tag=0)
