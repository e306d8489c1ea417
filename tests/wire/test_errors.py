"""The error tree against a table of Kafka 4.3's error codes."""

from __future__ import annotations

import pickle

import pytest

from ottla_wire import errors

# code, Kafka's name, and what its Java client does: "-" nothing of its own accord, "retry", or "refresh" (look up the
# leader or the coordinator, then retry). test_java_golden.py checks the table against the kafka-clients jar.
KAFKA = """
-1 UNKNOWN_SERVER_ERROR -
1 OFFSET_OUT_OF_RANGE -
2 CORRUPT_MESSAGE retry
3 UNKNOWN_TOPIC_OR_PARTITION refresh
4 INVALID_FETCH_SIZE -
5 LEADER_NOT_AVAILABLE refresh
6 NOT_LEADER_OR_FOLLOWER refresh
7 REQUEST_TIMED_OUT retry
8 BROKER_NOT_AVAILABLE -
9 REPLICA_NOT_AVAILABLE refresh
10 MESSAGE_TOO_LARGE -
11 STALE_CONTROLLER_EPOCH -
12 OFFSET_METADATA_TOO_LARGE -
13 NETWORK_EXCEPTION refresh
14 COORDINATOR_LOAD_IN_PROGRESS retry
15 COORDINATOR_NOT_AVAILABLE refresh
16 NOT_COORDINATOR refresh
17 INVALID_TOPIC_EXCEPTION -
18 RECORD_LIST_TOO_LARGE -
19 NOT_ENOUGH_REPLICAS retry
20 NOT_ENOUGH_REPLICAS_AFTER_APPEND retry
21 INVALID_REQUIRED_ACKS -
22 ILLEGAL_GENERATION -
23 INCONSISTENT_GROUP_PROTOCOL -
24 INVALID_GROUP_ID -
25 UNKNOWN_MEMBER_ID -
26 INVALID_SESSION_TIMEOUT -
27 REBALANCE_IN_PROGRESS -
28 INVALID_COMMIT_OFFSET_SIZE -
29 TOPIC_AUTHORIZATION_FAILED -
30 GROUP_AUTHORIZATION_FAILED -
31 CLUSTER_AUTHORIZATION_FAILED -
32 INVALID_TIMESTAMP -
33 UNSUPPORTED_SASL_MECHANISM -
34 ILLEGAL_SASL_STATE -
35 UNSUPPORTED_VERSION -
36 TOPIC_ALREADY_EXISTS -
37 INVALID_PARTITIONS -
38 INVALID_REPLICATION_FACTOR -
39 INVALID_REPLICA_ASSIGNMENT -
40 INVALID_CONFIG -
41 NOT_CONTROLLER retry
42 INVALID_REQUEST -
43 UNSUPPORTED_FOR_MESSAGE_FORMAT -
44 POLICY_VIOLATION -
45 OUT_OF_ORDER_SEQUENCE_NUMBER -
46 DUPLICATE_SEQUENCE_NUMBER -
47 INVALID_PRODUCER_EPOCH -
48 INVALID_TXN_STATE -
49 INVALID_PRODUCER_ID_MAPPING -
50 INVALID_TRANSACTION_TIMEOUT -
51 CONCURRENT_TRANSACTIONS retry
52 TRANSACTION_COORDINATOR_FENCED -
53 TRANSACTIONAL_ID_AUTHORIZATION_FAILED -
54 SECURITY_DISABLED -
55 OPERATION_NOT_ATTEMPTED -
56 KAFKA_STORAGE_ERROR refresh
57 LOG_DIR_NOT_FOUND -
58 SASL_AUTHENTICATION_FAILED -
59 UNKNOWN_PRODUCER_ID -
60 REASSIGNMENT_IN_PROGRESS -
61 DELEGATION_TOKEN_AUTH_DISABLED -
62 DELEGATION_TOKEN_NOT_FOUND -
63 DELEGATION_TOKEN_OWNER_MISMATCH -
64 DELEGATION_TOKEN_REQUEST_NOT_ALLOWED -
65 DELEGATION_TOKEN_AUTHORIZATION_FAILED -
66 DELEGATION_TOKEN_EXPIRED -
67 INVALID_PRINCIPAL_TYPE -
68 NON_EMPTY_GROUP -
69 GROUP_ID_NOT_FOUND -
70 FETCH_SESSION_ID_NOT_FOUND retry
71 INVALID_FETCH_SESSION_EPOCH retry
72 LISTENER_NOT_FOUND refresh
73 TOPIC_DELETION_DISABLED -
74 FENCED_LEADER_EPOCH refresh
75 UNKNOWN_LEADER_EPOCH retry
76 UNSUPPORTED_COMPRESSION_TYPE -
77 STALE_BROKER_EPOCH -
78 OFFSET_NOT_AVAILABLE retry
79 MEMBER_ID_REQUIRED -
80 PREFERRED_LEADER_NOT_AVAILABLE refresh
81 GROUP_MAX_SIZE_REACHED -
82 FENCED_INSTANCE_ID -
83 ELIGIBLE_LEADERS_NOT_AVAILABLE refresh
84 ELECTION_NOT_NEEDED refresh
85 NO_REASSIGNMENT_IN_PROGRESS -
86 GROUP_SUBSCRIBED_TO_TOPIC -
87 INVALID_RECORD -
88 UNSTABLE_OFFSET_COMMIT retry
89 THROTTLING_QUOTA_EXCEEDED retry
90 PRODUCER_FENCED -
91 RESOURCE_NOT_FOUND -
92 DUPLICATE_RESOURCE -
93 UNACCEPTABLE_CREDENTIAL -
94 INCONSISTENT_VOTER_SET -
95 INVALID_UPDATE_VERSION -
96 FEATURE_UPDATE_FAILED -
97 PRINCIPAL_DESERIALIZATION_FAILURE -
98 SNAPSHOT_NOT_FOUND -
99 POSITION_OUT_OF_RANGE -
100 UNKNOWN_TOPIC_ID refresh
101 DUPLICATE_BROKER_REGISTRATION -
102 BROKER_ID_NOT_REGISTERED -
103 INCONSISTENT_TOPIC_ID refresh
104 INCONSISTENT_CLUSTER_ID -
105 TRANSACTIONAL_ID_NOT_FOUND -
106 FETCH_SESSION_TOPIC_ID_ERROR retry
107 INELIGIBLE_REPLICA -
108 NEW_LEADER_ELECTED -
109 OFFSET_MOVED_TO_TIERED_STORAGE -
110 FENCED_MEMBER_EPOCH -
111 UNRELEASED_INSTANCE_ID -
112 UNSUPPORTED_ASSIGNOR -
113 STALE_MEMBER_EPOCH -
114 MISMATCHED_ENDPOINT_TYPE -
115 UNSUPPORTED_ENDPOINT_TYPE -
116 UNKNOWN_CONTROLLER_ID -
117 UNKNOWN_SUBSCRIPTION_ID -
118 TELEMETRY_TOO_LARGE -
119 INVALID_REGISTRATION -
120 TRANSACTION_ABORTABLE -
121 INVALID_RECORD_STATE -
122 SHARE_SESSION_NOT_FOUND retry
123 INVALID_SHARE_SESSION_EPOCH retry
124 FENCED_STATE_EPOCH -
125 INVALID_VOTER_KEY -
126 DUPLICATE_VOTER -
127 VOTER_NOT_FOUND -
128 INVALID_REGULAR_EXPRESSION -
129 REBOOTSTRAP_REQUIRED -
130 STREAMS_INVALID_TOPOLOGY -
131 STREAMS_INVALID_TOPOLOGY_EPOCH -
132 STREAMS_TOPOLOGY_FENCED -
133 SHARE_SESSION_LIMIT_REACHED retry
""".strip().splitlines()
TABLE = [(int(code), name, action) for code, name, action in (line.split() for line in KAFKA)]

every_code = pytest.mark.parametrize(("code", "name", "action"), TABLE, ids=[name for _, name, _ in TABLE])


@every_code
def test_a_code_has_a_class_of_kafkas_name_that_says_what_to_do(code: int, name: str, action: str) -> None:
    error = errors.error_for(code)
    assert error is not None
    assert error.code == code
    expected = "NetworkError" if code == 13 else name.removesuffix("_EXCEPTION").title().replace("_", "")
    assert type(error).__name__ == expected
    assert isinstance(error, errors.Retriable) == (action != "-")
    assert error.refresh_metadata == (action == "refresh")
    families = [family for family in (errors.Retriable, errors.Abortable, errors.Fatal) if isinstance(error, family)]
    assert len(families) == 1


@every_code
def test_an_error_without_a_message_says_what_its_class_stands_for(code: int, name: str, action: str) -> None:
    error = errors.error_for(code)
    assert error is not None
    assert error.message == str(error) == (type(error).__doc__ or "")
    assert error.message.endswith(".")


def test_the_table_and_the_classes_are_complete() -> None:
    assert [code for code, _, _ in TABLE] == list(errors.error_codes())
    assert list(errors.error_codes()) == [-1, *range(1, 134)]


def test_code_zero_is_no_error() -> None:
    assert errors.NoError == 0
    assert errors.error_for(errors.NoError) is None


def test_a_message_from_the_broker_replaces_the_sentence() -> None:
    error = errors.error_for(36, "topic orders exists")
    assert isinstance(error, errors.TopicAlreadyExists)
    assert error.message == str(error) == "topic orders exists"


def test_an_empty_message_is_no_message() -> None:
    assert str(errors.ProducerFenced("")) == errors.ProducerFenced.__doc__


def test_a_code_of_a_newer_broker_is_named() -> None:
    error = errors.error_for(4711, "new")
    assert isinstance(error, errors.UnknownServerError)
    assert "4711" in str(error)
    assert "new" in str(error)
    assert errors.error_class(4711) is None


def test_a_code_can_be_taken_only_once() -> None:
    with pytest.raises(AssertionError, match="taken by ProducerFenced"):
        type("Again", (errors.Fatal,), {}, code=90)
    assert errors.error_class(90) is errors.ProducerFenced


def test_an_error_of_the_client_alone_has_its_bases_code_and_is_not_registered() -> None:
    class Disconnected(errors.NetworkError):
        """The connection was closed."""

    assert Disconnected.code == 13
    assert Disconnected.refresh_metadata
    assert type(errors.error_for(13)) is errors.NetworkError


def test_a_refused_batch_names_its_records_also_after_pickling() -> None:
    error = errors.InvalidRecord("bad batch", record_errors=[(2, "no key"), (5, None)])
    copy = pickle.loads(pickle.dumps(error))
    assert copy.record_errors == error.record_errors == ((2, "no key"), (5, None))
    assert (copy.message, str(copy)) == ("bad batch", "bad batch")
    assert errors.InvalidTimestamp().record_errors == ()


def test_everything_is_an_ottla_error() -> None:
    for cls in (errors.KafkaError, errors.DecodeError, errors.EncodeError, errors.FrameError):
        assert issubclass(cls, errors.OttlaError)
    assert not issubclass(errors.DecodeError, errors.KafkaError)


@pytest.mark.parametrize(
    "error",
    [
        errors.InvalidProducerEpoch,
        errors.OutOfOrderSequenceNumber,
        errors.TransactionAbortable,
        errors.TopicAuthorizationFailed,
        errors.MessageTooLarge,
        errors.IllegalGeneration,
        errors.UnknownMemberId,
        errors.RebalanceInProgress,
    ],
)
def test_after_an_abort_or_a_rejoin_the_client_may_go_on(error: type[errors.KafkaError]) -> None:
    assert issubclass(error, errors.Abortable)


@pytest.mark.parametrize(
    "error",
    [
        errors.ProducerFenced,
        errors.InvalidProducerIdMapping,
        errors.TransactionalIdAuthorizationFailed,
        errors.FencedInstanceId,
        errors.UnsupportedVersion,
        errors.InvalidTxnState,
    ],
)
def test_what_only_a_change_can_mend_is_fatal(error: type[errors.KafkaError]) -> None:
    assert issubclass(error, errors.Fatal)
