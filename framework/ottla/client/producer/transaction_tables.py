"""What a producer can be in the middle of, what it asks brokers for, and what each refusal means: as tables.

`TRANSITIONS` draws the states, `RequestKind` the order in which requests leave, `VERDICTS` says error by error how a
request ends that a broker refused. `TransactionManager` is the code between the tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, IntEnum
from typing import Final

from ottla.errors import (
    ClusterAuthorizationFailed,
    CoordinatorNotAvailable,
    FencedInstanceId,
    GroupAuthorizationFailed,
    GroupIdNotFound,
    IllegalGeneration,
    InvalidCommitOffsetSize,
    InvalidGroupId,
    InvalidProducerEpoch,
    InvalidProducerIdMapping,
    InvalidTxnState,
    KafkaError,
    NetworkError,
    NotCoordinator,
    OffsetMetadataTooLarge,
    OperationNotAttempted,
    OttlaError,
    ProducerFenced,
    RebalanceInProgress,
    RequestTimedOut,
    Retriable,
    StaleMemberEpoch,
    TopicAuthorizationFailed,
    TransactionAbortable,
    TransactionalIdAuthorizationFailed,
    UnknownMemberId,
    UnknownProducerId,
    UnsupportedVersion,
)


class TransactionState(Enum):
    """What a producer is in the middle of. One without transactional id only knows the first three and the last."""

    UNINITIALIZED = "uninitialized"
    INITIALIZING = "initializing"
    READY = "ready"
    IN_TRANSACTION = "in transaction"
    COMMITTING = "committing"
    ABORTING = "aborting"
    ABORTABLE_ERROR = "abortable error"
    FATAL = "fatal"


_S = TransactionState

TRANSITIONS: Final[Mapping[TransactionState, frozenset[TransactionState]]] = {
    _S.UNINITIALIZED: frozenset({_S.INITIALIZING, _S.FATAL}),
    _S.INITIALIZING: frozenset({_S.READY, _S.UNINITIALIZED, _S.FATAL}),
    _S.READY: frozenset({_S.UNINITIALIZED, _S.IN_TRANSACTION, _S.FATAL}),
    _S.IN_TRANSACTION: frozenset({_S.COMMITTING, _S.ABORTING, _S.ABORTABLE_ERROR, _S.FATAL}),
    _S.COMMITTING: frozenset({_S.READY, _S.INITIALIZING, _S.ABORTABLE_ERROR, _S.FATAL}),
    _S.ABORTING: frozenset({_S.READY, _S.INITIALIZING, _S.FATAL}),
    _S.ABORTABLE_ERROR: frozenset({_S.ABORTING, _S.FATAL}),
    _S.FATAL: frozenset({_S.FATAL}),
}
"""From READY to UNINITIALIZED goes only a producer without transactional id, whose epochs are used up."""


class RequestKind(IntEnum):
    """What is asked of a coordinator. Where several are wanted, the one with the lowest number leaves first."""

    FIND_COORDINATOR = 0
    EXPLAIN = 1
    """DescribeTransactions: why our epoch is over, before that is called fenced or timed out."""
    INIT_PRODUCER_ID = 2
    ADD_PARTITIONS = 3
    ADD_OFFSETS = 4
    COMMIT_OFFSETS = 5
    END = 6


METHODS: Final[Mapping[str, frozenset[TransactionState]]] = {
    "init_transactions": frozenset({_S.UNINITIALIZED}),
    "begin_transaction": frozenset({_S.READY, _S.INITIALIZING}),
    "send": frozenset({_S.IN_TRANSACTION}),
    "send_offsets_to_transaction": frozenset({_S.IN_TRANSACTION}),
    "commit_transaction": frozenset({_S.IN_TRANSACTION}),
    "abort_transaction": frozenset({_S.IN_TRANSACTION, _S.ABORTABLE_ERROR}),
}
"""When each method may be called for the first time; one whose answer is not known may be called again."""

HINTS: Final[Mapping[TransactionState, str]] = {
    _S.UNINITIALIZED: "call init_transactions() first, once",
    _S.INITIALIZING: "init_transactions() has not come to its end: call it again",
    _S.READY: "there is no transaction: call begin_transaction() first",
    _S.IN_TRANSACTION: "a transaction is open: end it with commit_transaction() or abort_transaction()",
    _S.COMMITTING: "the transaction is being committed: wait for commit_transaction()",
    _S.ABORTING: "the transaction is being aborted: wait for abort_transaction()",
    _S.ABORTABLE_ERROR: "the transaction has failed: call abort_transaction()",
    _S.FATAL: "the producer is of no more use: close it",
}
"""What to do in place of a method that may not be called in a state."""

REQUEST_NAMES: Final[Mapping[RequestKind, str]] = {
    RequestKind.FIND_COORDINATOR: "FindCoordinator",
    RequestKind.EXPLAIN: "DescribeTransactions",
    RequestKind.INIT_PRODUCER_ID: "InitProducerId",
    RequestKind.ADD_PARTITIONS: "AddPartitionsToTxn",
    RequestKind.ADD_OFFSETS: "AddOffsetsToTxn",
    RequestKind.COMMIT_OFFSETS: "TxnOffsetCommit",
    RequestKind.END: "EndTxn",
}


ANY_VERSION: Final = (0, None)

VERSIONS_V1: Final[Mapping[RequestKind, tuple[int, int | None]]] = {
    RequestKind.INIT_PRODUCER_ID: (0, 5),
    RequestKind.ADD_PARTITIONS: (0, 3),
    RequestKind.ADD_OFFSETS: (0, 4),
    RequestKind.COMMIT_OFFSETS: (0, 4),
    RequestKind.END: (0, 4),
}
"""The lowest and highest versions that may be used while transaction.version 2 is not finalized."""

VERSIONS_V2: Final[Mapping[RequestKind, tuple[int, int | None]]] = {
    RequestKind.INIT_PRODUCER_ID: (0, 5),
    RequestKind.COMMIT_OFFSETS: (5, 5),
    RequestKind.END: (5, 5),
}
"""The same with transaction.version 2 (KIP-890). TxnOffsetCommit 6 has topic ids in place of names."""

PRODUCE_VERSIONS_V1: Final = (3, 11)
PRODUCE_VERSIONS_V2: Final = (12, 13)
PRODUCE_VERSIONS: Final = (3, 13)
"""Without transactional id it makes no difference."""


class Verdict(Enum):
    """How a refused request goes on."""

    RETRY = "the same again, after a pause"
    LOOK_UP = "look the coordinator up again, then the same"
    REFUSE = "the call fails, and may be made again"
    ABORT = "the transaction cannot be committed any more; aborted, the producer goes on"
    BUMP = "the same, and the producer needs its next epoch before it goes on"
    DOUBT = "the epoch is over: ask why before saying so"
    FATAL = "this producer is of no more use"


_V = Verdict

_COORDINATOR_MOVED: Final[dict[type[OttlaError], Verdict]] = {
    NotCoordinator: _V.LOOK_UP,
    CoordinatorNotAvailable: _V.LOOK_UP,
    NetworkError: _V.LOOK_UP,
    RequestTimedOut: _V.LOOK_UP,
}

_EPOCH_OVER: Final[dict[type[OttlaError], Verdict]] = {
    # Versions from before PRODUCER_FENCED (KIP-588) call it INVALID_PRODUCER_EPOCH.
    ProducerFenced: _V.DOUBT,
    InvalidProducerEpoch: _V.DOUBT,
    # What version 2 says to the commit of a transaction that the coordinator has aborted.
    InvalidTxnState: _V.DOUBT,
}

_OF_THE_TRANSACTION: Final[dict[type[OttlaError], Verdict]] = {
    **_COORDINATOR_MOVED,
    **_EPOCH_OVER,
    InvalidProducerIdMapping: _V.FATAL,
    TransactionalIdAuthorizationFailed: _V.FATAL,
    TransactionAbortable: _V.ABORT,
    UnknownProducerId: _V.BUMP,
    UnsupportedVersion: _V.FATAL,
}

VERDICTS: Final[Mapping[RequestKind, Mapping[type[OttlaError], Verdict]]] = {
    RequestKind.FIND_COORDINATOR: {
        GroupAuthorizationFailed: _V.ABORT,
        InvalidGroupId: _V.ABORT,
        TransactionAbortable: _V.ABORT,
        TransactionalIdAuthorizationFailed: _V.FATAL,
    },
    RequestKind.EXPLAIN: dict(_COORDINATOR_MOVED),  # whatever is left means that nobody tells
    RequestKind.INIT_PRODUCER_ID: {
        **_COORDINATOR_MOVED,
        **_EPOCH_OVER,
        ClusterAuthorizationFailed: _V.REFUSE,
        TransactionalIdAuthorizationFailed: _V.REFUSE,
        TransactionAbortable: _V.REFUSE,
    },
    RequestKind.ADD_PARTITIONS: {
        **_OF_THE_TRANSACTION,
        OperationNotAttempted: _V.RETRY,  # another partition's error decides
        TopicAuthorizationFailed: _V.ABORT,
        KafkaError: _V.ABORT,
    },
    RequestKind.ADD_OFFSETS: {**_OF_THE_TRANSACTION, GroupAuthorizationFailed: _V.ABORT},
    RequestKind.COMMIT_OFFSETS: {
        **_OF_THE_TRANSACTION,
        FencedInstanceId: _V.ABORT,
        GroupAuthorizationFailed: _V.ABORT,
        GroupIdNotFound: _V.ABORT,
        IllegalGeneration: _V.ABORT,
        InvalidCommitOffsetSize: _V.ABORT,
        InvalidGroupId: _V.ABORT,
        OffsetMetadataTooLarge: _V.ABORT,
        RebalanceInProgress: _V.ABORT,
        StaleMemberEpoch: _V.ABORT,
        TopicAuthorizationFailed: _V.ABORT,
        UnknownMemberId: _V.ABORT,
    },
    RequestKind.END: dict(_OF_THE_TRANSACTION),
}
"""By request: what an error means. Not listed: Retriable is RETRY, everything else FATAL."""

PRODUCE_VERDICTS: Final[Mapping[type[BaseException], Verdict]] = {
    ClusterAuthorizationFailed: _V.FATAL,
    InvalidProducerIdMapping: _V.FATAL,
    ProducerFenced: _V.FATAL,
    TransactionalIdAuthorizationFailed: _V.FATAL,
    UnsupportedVersion: _V.FATAL,
    InvalidProducerEpoch: _V.DOUBT,
}
"""What the error means with which a batch is given up, for the producer. Not listed: ABORT."""

MEMBER_IS_GONE: Final = (GroupIdNotFound, IllegalGeneration, StaleMemberEpoch, UnknownMemberId)
"""Refusals of TxnOffsetCommit that say that the group has moved on without this member: a CommitFailed."""


def verdict(kind: RequestKind, error: OttlaError) -> Verdict:
    """How a request of this kind goes on that was refused with this error: the nearest class in the table decides."""
    table = VERDICTS[kind]
    for base in type(error).__mro__:
        if base is KafkaError and isinstance(error, Retriable):
            return Verdict.RETRY
        found = table.get(base)
        if found is not None:
            return found
    return Verdict.RETRY if isinstance(error, Retriable) else Verdict.FATAL


def produce_verdict(error: BaseException) -> Verdict:
    """What the error of a batch means for the producer."""
    for base in type(error).__mro__:
        found = PRODUCE_VERDICTS.get(base)
        if found is not None:
            return found
    return Verdict.ABORT
