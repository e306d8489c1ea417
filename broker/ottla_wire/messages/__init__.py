"""Kafka's messages: a module per API key, with request, response and the structs they are made of.

Modules are imported, and codecs built, when they are first used: a program pays for the messages it sends.
"""

from __future__ import annotations

import enum
import importlib
from typing import Any, Final

from ottla_wire.errors import UnsupportedVersion
from ottla_wire.schema import Request, Response, VersionRange


class ApiKey(enum.IntEnum):
    """The number of each API. 4 to 7 went away with ZooKeeper; 93 and 94 are new in Kafka 4.4."""

    PRODUCE = 0
    FETCH = 1
    LIST_OFFSETS = 2
    METADATA = 3
    LEADER_AND_ISR = 4
    STOP_REPLICA = 5
    UPDATE_METADATA = 6
    CONTROLLED_SHUTDOWN = 7
    OFFSET_COMMIT = 8
    OFFSET_FETCH = 9
    FIND_COORDINATOR = 10
    JOIN_GROUP = 11
    HEARTBEAT = 12
    LEAVE_GROUP = 13
    SYNC_GROUP = 14
    DESCRIBE_GROUPS = 15
    LIST_GROUPS = 16
    SASL_HANDSHAKE = 17
    API_VERSIONS = 18
    CREATE_TOPICS = 19
    DELETE_TOPICS = 20
    DELETE_RECORDS = 21
    INIT_PRODUCER_ID = 22
    OFFSET_FOR_LEADER_EPOCH = 23
    ADD_PARTITIONS_TO_TXN = 24
    ADD_OFFSETS_TO_TXN = 25
    END_TXN = 26
    WRITE_TXN_MARKERS = 27
    TXN_OFFSET_COMMIT = 28
    DESCRIBE_ACLS = 29
    CREATE_ACLS = 30
    DELETE_ACLS = 31
    DESCRIBE_CONFIGS = 32
    ALTER_CONFIGS = 33
    ALTER_REPLICA_LOG_DIRS = 34
    DESCRIBE_LOG_DIRS = 35
    SASL_AUTHENTICATE = 36
    CREATE_PARTITIONS = 37
    CREATE_DELEGATION_TOKEN = 38
    RENEW_DELEGATION_TOKEN = 39
    EXPIRE_DELEGATION_TOKEN = 40
    DESCRIBE_DELEGATION_TOKEN = 41
    DELETE_GROUPS = 42
    ELECT_LEADERS = 43
    INCREMENTAL_ALTER_CONFIGS = 44
    ALTER_PARTITION_REASSIGNMENTS = 45
    LIST_PARTITION_REASSIGNMENTS = 46
    OFFSET_DELETE = 47
    DESCRIBE_CLIENT_QUOTAS = 48
    ALTER_CLIENT_QUOTAS = 49
    DESCRIBE_USER_SCRAM_CREDENTIALS = 50
    ALTER_USER_SCRAM_CREDENTIALS = 51
    VOTE = 52
    BEGIN_QUORUM_EPOCH = 53
    END_QUORUM_EPOCH = 54
    DESCRIBE_QUORUM = 55
    ALTER_PARTITION = 56
    UPDATE_FEATURES = 57
    ENVELOPE = 58
    FETCH_SNAPSHOT = 59
    DESCRIBE_CLUSTER = 60
    DESCRIBE_PRODUCERS = 61
    BROKER_REGISTRATION = 62
    BROKER_HEARTBEAT = 63
    UNREGISTER_BROKER = 64
    DESCRIBE_TRANSACTIONS = 65
    LIST_TRANSACTIONS = 66
    ALLOCATE_PRODUCER_IDS = 67
    CONSUMER_GROUP_HEARTBEAT = 68
    CONSUMER_GROUP_DESCRIBE = 69
    CONTROLLER_REGISTRATION = 70
    GET_TELEMETRY_SUBSCRIPTIONS = 71
    PUSH_TELEMETRY = 72
    ASSIGN_REPLICAS_TO_DIRS = 73
    LIST_CONFIG_RESOURCES = 74
    DESCRIBE_TOPIC_PARTITIONS = 75
    SHARE_GROUP_HEARTBEAT = 76
    SHARE_GROUP_DESCRIBE = 77
    SHARE_FETCH = 78
    SHARE_ACKNOWLEDGE = 79
    ADD_RAFT_VOTER = 80
    REMOVE_RAFT_VOTER = 81
    UPDATE_RAFT_VOTER = 82
    INITIALIZE_SHARE_GROUP_STATE = 83
    READ_SHARE_GROUP_STATE = 84
    WRITE_SHARE_GROUP_STATE = 85
    DELETE_SHARE_GROUP_STATE = 86
    READ_SHARE_GROUP_STATE_SUMMARY = 87
    STREAMS_GROUP_HEARTBEAT = 88
    STREAMS_GROUP_DESCRIBE = 89
    DESCRIBE_SHARE_GROUP_OFFSETS = 90
    ALTER_SHARE_GROUP_OFFSETS = 91
    DELETE_SHARE_GROUP_OFFSETS = 92
    STREAMS_GROUP_TOPOLOGY_DESCRIPTION_UPDATE = 93
    UNREGISTER_CONTROLLER = 94


PRODUCE_ADVERTISED_MIN_VERSION: Final = 0
"""The lowest Produce version in an ApiVersions answer, though requests below 3 are refused.

librdkafka up to 2.9 compresses only if it finds a version up to 2 there (KAFKA-18659).
"""

_requests: dict[int, type[Request]] = {}
_responses: dict[int, type[Response]] = {}


def request_class(api_key: int) -> type[Request]:
    """The request with this API key; `UnsupportedVersion` if Ottla has no such message."""
    return _requests.get(api_key) or _load(api_key)[0]


def response_class(api_key: int) -> type[Response]:
    """The response to requests with this API key; `UnsupportedVersion` if Ottla has no such message."""
    return _responses.get(api_key) or _load(api_key)[1]


def flexible_versions(api_key: int) -> VersionRange | None:
    """The versions that have compact lengths and tagged fields, also in their headers; None for an unknown API key."""
    try:
        return request_class(api_key).flexible_versions
    except UnsupportedVersion:
        return None


def _load(api_key: int) -> tuple[type[Request], type[Response]]:
    module_name = ""
    try:
        name = ApiKey(api_key).name
        module_name = f"{__name__}.{name.lower()}"
        module: Any = importlib.import_module(module_name)
    except (ValueError, ModuleNotFoundError) as error:
        if isinstance(error, ModuleNotFoundError) and error.name != module_name:
            raise
        raise UnsupportedVersion(f"there is no message with API key {api_key} here") from None
    stem = name.title().replace("_", "")
    _requests[api_key] = getattr(module, f"{stem}Request")
    _responses[api_key] = getattr(module, f"{stem}Response")
    return _requests[api_key], _responses[api_key]
