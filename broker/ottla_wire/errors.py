"""The error tree: what a broker can answer, and what goes wrong between the peers.

    OttlaError
     ├── DecodeError                  the peer's bytes are not what the protocol says
     ├── EncodeError                  our own message cannot be expressed in this version
     ├── FrameError                   a frame's size is negative or above the limit: the connection is of no more use
     └── KafkaError                   .code on the wire, .message
          ├── Retriable               the same may be tried again, after a pause; refresh_metadata: ask who leads first
          ├── Abortable               what is under way is lost, the client is not: abort or rejoin, then go on
          │    └── RecordsRefused     .record_errors say which records of a batch are meant
          └── Fatal                   trying again cannot help: somebody must change request, rights or program

One class per error code, with the code in its class line. Retriable is exactly what Kafka's Java client takes for
retriable, and `refresh_metadata` exactly its RefreshRetriableException (KIP-1050). Everything else Kafka leaves to
each caller; here it is Abortable if a producer may abort its transaction, or a member rejoin its group, and carry on.

Logic raises these; one place per side turns error into code (`error.code`) or code into error (`error_for`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Final, NamedTuple

NoError: Final = 0
"""The code that says that all went well."""

_by_code: dict[int, type[KafkaError]] = {}


class OttlaError(Exception):
    """Everything that Ottla raises on purpose."""


class DecodeError(OttlaError):
    """The peer sent bytes that are not a message of the expected kind and version."""


class EncodeError(OttlaError):
    """A message of ours holds a value that its wire version cannot express."""


class FrameError(OttlaError):
    """A frame announces a size that is negative or above the limit; the stream cannot be read any further."""


class KafkaError(OttlaError):
    """An error that has a code in Kafka's protocol.

    Subclasses with `code=` are registered for `error_for`; one without (an error that only the client's own side
    raises) answers with the code of its base.
    """

    code: ClassVar[int] = -1
    refresh_metadata: ClassVar[bool] = False

    def __init__(self, message: str | None = None) -> None:
        self.message = message or default_message(type(self))
        super().__init__(self.message)

    def __init_subclass__(cls, code: int | None = None, refresh_metadata: bool | None = None) -> None:
        super().__init_subclass__()
        if refresh_metadata is not None:
            cls.refresh_metadata = refresh_metadata
        if code is not None:
            assert code not in _by_code, f"error code {code} is taken by {_by_code[code].__name__}"
            cls.code = code
            _by_code[code] = cls


class Retriable(KafkaError):
    """The same request may succeed later; nothing has to be changed but, perhaps, the broker that is asked."""


class Abortable(KafkaError):
    """What is under way cannot succeed any more, but after an abort (or a rejoin) the same client may go on."""


class Fatal(KafkaError):
    """Trying again cannot help: the request, the configuration, the rights or the program must change."""


class RecordsRefused(Abortable):
    """A batch was refused because of some of its records.

    `record_errors` holds (index in the batch, message or None) for each record that is to blame (KIP-467).
    """

    def __init__(self, message: str | None = None, record_errors: Sequence[tuple[int, str | None]] = ()) -> None:
        super().__init__(message)
        self.record_errors = tuple(record_errors)


def default_message(error: type[KafkaError]) -> str:
    """The sentence an error carries when the peer sent none."""
    return (error.__doc__ or error.__name__).partition("\n")[0]


def error_class(code: int) -> type[KafkaError] | None:
    """The class of an error code; None for a code that Kafka 4.3 does not have."""
    return _by_code.get(code)


def error_for(code: int, message: str | None = None) -> KafkaError | None:
    """The error that an answer's code stands for, ready to be raised; None if the code says that all went well.

    A code from a newer broker becomes an `UnknownServerError` that names it.
    """
    if code == NoError:
        return None
    known = _by_code.get(code)
    if known is None:
        return UnknownServerError(f"error code {code}, which is not known here" + (f": {message}" if message else ""))
    return known(message)


def error_codes() -> Sequence[int]:
    """All registered codes in ascending order."""
    return sorted(_by_code)


class UnknownServerError(Fatal, code=-1):
    """The broker failed in a way it has no code for; its log says more."""


class OffsetOutOfRange(Abortable, code=1):
    """The partition does not hold the offset asked for: it was deleted, or never written."""


class CorruptMessage(Retriable, code=2):
    """A batch does not match its checksum or its own sizes."""


class UnknownTopicOrPartition(Retriable, code=3, refresh_metadata=True):
    """The broker asked does not have this topic or partition, or not yet."""


class InvalidFetchSize(Fatal, code=4):
    """The number of bytes a fetch asked for cannot be."""


class LeaderNotAvailable(Retriable, code=5, refresh_metadata=True):
    """The partition has no leader at this moment; an election is under way."""


class NotLeaderOrFollower(Retriable, code=6, refresh_metadata=True):
    """The broker asked is not the leader of this partition, or holds no replica of it."""


class RequestTimedOut(Retriable, code=7):
    """The answer did not come in time; whether the request took effect is not known."""


class BrokerNotAvailable(Fatal, code=8):
    """The broker needed for this is not up."""


class ReplicaNotAvailable(Retriable, code=9, refresh_metadata=True):
    """The replica asked for is not there."""


class MessageTooLarge(Abortable, code=10):
    """A batch is larger than the topic allows (max.message.bytes)."""


class StaleControllerEpoch(Fatal, code=11):
    """The request comes from a controller that has been replaced."""


class OffsetMetadataTooLarge(Abortable, code=12):
    """The text stored with a committed offset is longer than the broker allows."""


class NetworkError(Retriable, code=13, refresh_metadata=True):
    """The connection was lost before the answer came; whether the request took effect is not known."""


class CoordinatorLoadInProgress(Retriable, code=14):
    """The coordinator is still reading its log and answers soon."""


class CoordinatorNotAvailable(Retriable, code=15, refresh_metadata=True):
    """There is no coordinator for this group or transactional id at this moment."""


class NotCoordinator(Retriable, code=16, refresh_metadata=True):
    """The broker asked does not coordinate this group or transactional id; look the coordinator up again."""


class InvalidTopic(Abortable, code=17):
    """The topic's name is not a legal one, or the topic is internal and not written by clients."""


class RecordListTooLarge(Abortable, code=18):
    """A batch is larger than a log segment of the topic."""


class NotEnoughReplicas(Retriable, code=19):
    """Fewer replicas are in sync than min.insync.replicas asks for; nothing was written."""


class NotEnoughReplicasAfterAppend(Retriable, code=20):
    """The batch was written, but fewer replicas than min.insync.replicas were left in sync to hold it."""


class InvalidRequiredAcks(Fatal, code=21):
    """Acks is something else than 0, 1 or -1."""


class IllegalGeneration(Abortable, code=22):
    """The group has moved on to another generation; rejoin it before committing."""


class InconsistentGroupProtocol(Fatal, code=23):
    """The member shares no assignment protocol with the rest of the group, or brought none."""


class InvalidGroupId(Fatal, code=24):
    """The group's id is empty or otherwise not a legal one."""


class UnknownMemberId(Abortable, code=25):
    """The coordinator does not know this member (any longer); rejoin the group."""


class InvalidSessionTimeout(Fatal, code=26):
    """The session timeout is outside of what the broker allows (group.min and group.max.session.timeout.ms)."""


class RebalanceInProgress(Abortable, code=27):
    """The group is about to distribute its partitions anew; rejoin it."""


class InvalidCommitOffsetSize(Abortable, code=28):
    """The offset commit does not fit into the coordinator's log."""


class TopicAuthorizationFailed(Abortable, code=29):
    """The principal has no right to do this with the topic."""


class GroupAuthorizationFailed(Abortable, code=30):
    """The principal has no right to do this with the group."""


class ClusterAuthorizationFailed(Fatal, code=31):
    """The principal has no right to do this with the cluster."""


class InvalidTimestamp(RecordsRefused, code=32):
    """A record's timestamp is further from the broker's clock than the topic allows."""


class UnsupportedSaslMechanism(Fatal, code=33):
    """The broker does not offer this SASL mechanism."""


class IllegalSaslState(Fatal, code=34):
    """The request cannot come at this point of the authentication."""


class UnsupportedVersion(Fatal, code=35):
    """The broker does not speak this API, or not in this version, or not with this feature level."""


class TopicAlreadyExists(Fatal, code=36):
    """There is a topic with this name already."""


class InvalidPartitions(Fatal, code=37):
    """The number of partitions cannot be: below one, or not above the present one."""


class InvalidReplicationFactor(Fatal, code=38):
    """The replication factor is below one or above the number of brokers that are up."""


class InvalidReplicaAssignment(Fatal, code=39):
    """The replicas named for a partition repeat, are not consecutive, or are brokers that do not exist."""


class InvalidConfig(Fatal, code=40):
    """A configuration's name or value is not a legal one."""


class NotController(Retriable, code=41):
    """The node asked is not the active controller."""


class InvalidRequest(Fatal, code=42):
    """The request contradicts itself or the protocol."""


class UnsupportedForMessageFormat(Fatal, code=43):
    """The partition's message format is too old for what is asked."""


class PolicyViolation(Fatal, code=44):
    """A policy that the operator configured refuses this."""


class OutOfOrderSequenceNumber(Abortable, code=45):
    """The batch does not continue the producer's sequence in this partition: one before it is missing."""


class DuplicateSequenceNumber(Abortable, code=46):
    """The batch was written before, too long ago to say at which offset."""


class InvalidProducerEpoch(Abortable, code=47):
    """The batch carries an older epoch than the partition has seen from this producer id."""


class InvalidTxnState(Fatal, code=48):
    """The transaction is not in a state in which this may be asked for."""


class InvalidProducerIdMapping(Fatal, code=49):
    """The producer id is not the one the transactional id has now: it expired, or another producer took over."""


class InvalidTransactionTimeout(Fatal, code=50):
    """The transaction's timeout is above the broker's transaction.max.timeout.ms."""


class ConcurrentTransactions(Retriable, code=51):
    """The transactional id's last operation is not complete yet."""


class TransactionCoordinatorFenced(Fatal, code=52):
    """The coordinator that wants to write this marker has been replaced by a newer one."""


class TransactionalIdAuthorizationFailed(Fatal, code=53):
    """The principal has no right to use the transactional id."""


class SecurityDisabled(Fatal, code=54):
    """The broker has no authorizer, so there are no access rules to read or change."""


class OperationNotAttempted(Fatal, code=55):
    """Another part of the same request failed, so this one was not tried."""


class KafkaStorageError(Retriable, code=56, refresh_metadata=True):
    """The disk that holds the partition's log failed."""


class LogDirNotFound(Fatal, code=57):
    """The broker has no log directory with this path."""


class SaslAuthenticationFailed(Fatal, code=58):
    """The SASL authentication failed; check user, password and mechanism."""


class UnknownProducerId(Abortable, code=59):
    """The partition has forgotten this producer: its records were deleted or its state expired."""


class ReassignmentInProgress(Fatal, code=60):
    """The partition's replicas are being moved already."""


class DelegationTokenAuthDisabled(Fatal, code=61):
    """Delegation tokens are not switched on in this broker."""


class DelegationTokenNotFound(Fatal, code=62):
    """The broker does not know this delegation token."""


class DelegationTokenOwnerMismatch(Fatal, code=63):
    """The principal is neither owner nor renewer of the delegation token."""


class DelegationTokenRequestNotAllowed(Fatal, code=64):
    """Delegation tokens cannot be asked for on this kind of connection."""


class DelegationTokenAuthorizationFailed(Fatal, code=65):
    """The principal has no right to do this with the delegation token."""


class DelegationTokenExpired(Fatal, code=66):
    """The delegation token's time is over."""


class InvalidPrincipalType(Fatal, code=67):
    """The broker does not know this kind of principal."""


class NonEmptyGroup(Fatal, code=68):
    """The group still has members."""


class GroupIdNotFound(Fatal, code=69):
    """There is no group with this id."""


class FetchSessionIdNotFound(Retriable, code=70):
    """The broker has dropped this fetch session; start a new one."""


class InvalidFetchSessionEpoch(Retriable, code=71):
    """The fetch session's epoch is not the next one; start a new session."""


class ListenerNotFound(Retriable, code=72, refresh_metadata=True):
    """The leader has no listener of the name under which it was asked for."""


class TopicDeletionDisabled(Fatal, code=73):
    """The broker does not delete topics (delete.topic.enable)."""


class FencedLeaderEpoch(Retriable, code=74, refresh_metadata=True):
    """The request's leader epoch is older than the broker's: the client's metadata is out of date."""


class UnknownLeaderEpoch(Retriable, code=75):
    """The request's leader epoch is newer than the broker's, which will learn of it soon."""


class UnsupportedCompressionType(Abortable, code=76):
    """The partition's compression cannot be used in this version of the request."""


class StaleBrokerEpoch(Fatal, code=77):
    """The broker has registered anew since it sent this."""


class OffsetNotAvailable(Retriable, code=78):
    """The new leader does not know yet how far the partition is committed."""


class MemberIdRequired(Fatal, code=79):
    """The member must join again with the id it was just given."""


class PreferredLeaderNotAvailable(Retriable, code=80, refresh_metadata=True):
    """The partition's preferred leader is not up or not in sync."""


class GroupMaxSizeReached(Fatal, code=81):
    """The group has as many members as the broker allows (group.max.size)."""


class FencedInstanceId(Fatal, code=82):
    """Another member has taken over this group.instance.id."""


class EligibleLeadersNotAvailable(Retriable, code=83, refresh_metadata=True):
    """No replica of the partition may become its leader now."""


class ElectionNotNeeded(Retriable, code=84, refresh_metadata=True):
    """The partition has the leader that the election would choose."""


class NoReassignmentInProgress(Fatal, code=85):
    """The partition's replicas are not being moved."""


class GroupSubscribedToTopic(Fatal, code=86):
    """Offsets of a topic cannot be deleted while the group is subscribed to it."""


class InvalidRecord(RecordsRefused, code=87):
    """The broker examined a record and refused it."""


class UnstableOffsetCommit(Retriable, code=88):
    """An open transaction has offsets for this partition; they are settled when it ends."""


class ThrottlingQuotaExceeded(Retriable, code=89):
    """The quota for such changes is used up for the moment."""


class FenceReason(NamedTuple):
    """Who took a transactional id over: the client's id and host, and when (ms since 1970).

    That is another producer, or an administrator's client, which has fenced the id and has no use for it itself.
    """

    client_id: str
    client_host: str
    at_ms: int
    by_administrator: bool = False


class ProducerFenced(Fatal, code=90):
    """A newer producer has taken over the transactional id."""

    def __init__(self, message: str | None = None, reason: FenceReason | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        """Who it was, where the broker tells; Apache Kafka does not."""


class ResourceNotFound(Fatal, code=91):
    """The request names something that does not exist."""


class DuplicateResource(Fatal, code=92):
    """The request names the same thing twice."""


class UnacceptableCredential(Fatal, code=93):
    """The credential is not good enough to be accepted."""


class InconsistentVoterSet(Fatal, code=94):
    """Sender or receiver of a request among voters is not one of them."""


class InvalidUpdateVersion(Fatal, code=95):
    """The feature level or version to change to cannot be."""


class FeatureUpdateFailed(Fatal, code=96):
    """The finalized features could not be changed; the controller's log says more."""


class PrincipalDeserializationFailure(Fatal, code=97):
    """The principal in a forwarded request cannot be read."""


class SnapshotNotFound(Fatal, code=98):
    """The snapshot asked for does not exist (any longer)."""


class PositionOutOfRange(Fatal, code=99):
    """The position is outside of the snapshot."""


class UnknownTopicId(Retriable, code=100, refresh_metadata=True):
    """The broker asked does not have a topic with this id, or not yet."""


class DuplicateBrokerRegistration(Fatal, code=101):
    """Another broker with this node id is up."""


class BrokerIdNotRegistered(Fatal, code=102):
    """No broker with this node id has registered."""


class InconsistentTopicId(Retriable, code=103, refresh_metadata=True):
    """The partition's log belongs to another topic id: the topic was deleted and created again."""


class InconsistentClusterId(Fatal, code=104):
    """The request is meant for another cluster."""


class TransactionalIdNotFound(Fatal, code=105):
    """The coordinator does not know this transactional id."""


class FetchSessionTopicIdError(Retriable, code=106):
    """Fetches of one session used topic ids here and names there; start a new session."""


class IneligibleReplica(Fatal, code=107):
    """A replica proposed for the ISR may not be in it: it is fenced, shutting down, or an older incarnation."""


class NewLeaderElected(Fatal, code=108):
    """The change of the ISR was made, and with it the leader changed."""


class OffsetMovedToTieredStorage(Fatal, code=109):
    """The offset is now in tiered storage."""


class FencedMemberEpoch(Abortable, code=110):
    """The coordinator has given up on this member epoch; drop all partitions and rejoin."""


class UnreleasedInstanceId(Fatal, code=111):
    """Another member holds this group.instance.id and has not left yet."""


class UnsupportedAssignor(Fatal, code=112):
    """The group cannot use this assignor, or not in this version."""


class StaleMemberEpoch(Abortable, code=113):
    """The member's epoch is not the newest one; it learns that with its next heartbeat."""


class MismatchedEndpointType(Fatal, code=114):
    """The request asked for brokers of a controller, or the other way round."""


class UnsupportedEndpointType(Fatal, code=115):
    """The node does not know this kind of endpoint."""


class UnknownControllerId(Fatal, code=116):
    """No controller with this node id is known."""


class UnknownSubscriptionId(Fatal, code=117):
    """The telemetry subscription is not the present one."""


class TelemetryTooLarge(Fatal, code=118):
    """The pushed telemetry is larger than the broker takes."""


class InvalidRegistration(Fatal, code=119):
    """The controller does not accept the broker's registration as it stands."""


class TransactionAbortable(Abortable, code=120):
    """The transaction cannot be committed any more; abort it, and the producer may go on."""


class InvalidRecordState(Fatal, code=121):
    """The record is not in a state in which it can be acknowledged so."""


class ShareSessionNotFound(Retriable, code=122):
    """The broker has dropped this share session; start a new one."""


class InvalidShareSessionEpoch(Retriable, code=123):
    """The share session's epoch is not the next one; start a new session."""


class FencedStateEpoch(Fatal, code=124):
    """The share group's state has a newer epoch than the request."""


class InvalidVoterKey(Fatal, code=125):
    """The voter's directory id is not the one this node has."""


class DuplicateVoter(Fatal, code=126):
    """The node is a voter already."""


class VoterNotFound(Fatal, code=127):
    """The node is not a voter."""


class InvalidRegularExpression(Fatal, code=128):
    """The regular expression cannot be compiled."""


class RebootstrapRequired(Fatal, code=129):
    """The client's metadata leads nowhere any more; start over from bootstrap.servers."""


class StreamsInvalidTopology(Fatal, code=130):
    """The topology sent cannot be."""


class StreamsInvalidTopologyEpoch(Fatal, code=131):
    """The topology's epoch cannot be."""


class StreamsTopologyFenced(Fatal, code=132):
    """The group has moved on to a newer topology."""


class ShareSessionLimitReached(Retriable, code=133):
    """The broker has as many share sessions as it allows."""
