"""New topics.

Versions:

    2  throttle time, validate only, error messages
    3  the broker answers before it throttles (KIP-219)
    4  -1 for the broker's default of partitions and replicas (KIP-464)
    5  flexible; the answer has partitions, replicas and configs (KIP-525)
    6  THROTTLING_QUOTA_EXCEEDED may be answered (KIP-599)
    7  the new topic's id (KIP-516)
"""

from __future__ import annotations

from ottla_wire.schema import Request, Response, Struct, Uuid, field, i8, i16, i32


class CreatableReplicaAssignment(Struct):
    """The brokers that shall hold one partition."""

    partition_index: i32 = 0
    broker_ids: list[i32] = field()


class CreatableTopicConfig(Struct):
    """A configuration of the new topic."""

    name: str = ""
    value: str | None = ""


class CreatableTopic(Struct):
    """A topic to create."""

    name: str = ""
    num_partitions: i32 = 0
    replication_factor: i16 = 0
    assignments: list[CreatableReplicaAssignment] = field()
    configs: list[CreatableTopicConfig] = field()


class CreateTopicsRequest(Request, key=19, versions="2-7", flexible="5+"):
    """Create topics, or only check whether that would work."""

    topics: list[CreatableTopic] = field()
    timeout_ms: i32 = 60000
    validate_only: bool = False


class CreatableTopicConfigs(Struct):
    """A configuration that the new topic has."""

    name: str = field("5+")
    value: str | None = field("5+")
    read_only: bool = field("5+")
    config_source: i8 = field("5+", default=-1, ignorable=True)
    is_sensitive: bool = field("5+")


class CreatableTopicResult(Struct):
    """The new topic, or why it was not created."""

    name: str = ""
    topic_id: Uuid = field("7+", ignorable=True)
    error_code: i16 = 0
    error_message: str | None = ""
    topic_config_error_code: i16 = field("5+", tag=0, ignorable=True)
    num_partitions: i32 = field("5+", default=-1, ignorable=True)
    replication_factor: i16 = field("5+", default=-1, ignorable=True)
    configs: list[CreatableTopicConfigs] | None = field("5+", ignorable=True)


class CreateTopicsResponse(Response, key=19, versions="2-7", flexible="5+"):
    """The result for each topic."""

    throttle_time_ms: i32 = 0
    topics: list[CreatableTopicResult] = field()
