"""What control records hold: the ends of transactions, and the notes that the quorum keeps in the metadata log.

A control record's key is a `ControlRecordTypeSchema` after its int16 version. The value of an end of a transaction
starts with its version, too (`encode_with_version`); the quorum's records carry it as their first field, and are
encoded in the version that this field names.
"""

from __future__ import annotations

from ottla_wire.schema import Data, Struct, Uuid, field, i16, i32, i64, u16


class ControlRecordTypeSchema(Data, versions="0"):
    """The kind of control record: 0 abort, 1 commit, 2 to 6 as the other classes here, in order."""

    type: i16 = 0


class EndTxnMarker(Data, versions="0"):
    """A transaction ends here; the key says how."""

    coordinator_epoch: i32 = 0


class Voter(Struct):
    """A voter in a leader's election (KIP-853)."""

    voter_id: i32 = 0
    voter_directory_id: Uuid = field("1+")


class LeaderChangeMessage(Data, versions="0-1", flexible="0+"):
    """A new leader's first record: who leads, and who voted (KIP-595). Version 1 has directory ids (KIP-853)."""

    version: i16 = 0
    leader_id: i32 = 0
    voters: list[Voter] = field()
    granting_voters: list[Voter] = field()


class SnapshotHeaderRecord(Data, versions="0", flexible="0+"):
    """A snapshot begins (KIP-630)."""

    version: i16 = 0
    last_contained_log_timestamp: i64 = 0


class SnapshotFooterRecord(Data, versions="0", flexible="0+"):
    """A snapshot is complete (KIP-630)."""

    version: i16 = 0


class KRaftVersionRecord(Data, versions="0", flexible="0+"):
    """The version of the quorum's own protocol from here on (KIP-853)."""

    version: i16 = 0
    k_raft_version: i16 = 0


class VoterEndpoint(Struct):
    """An address of a voter."""

    name: str = ""
    host: str = ""
    port: u16 = 0


class KRaftVersionFeature(Struct):
    """The quorum protocol versions that a voter speaks."""

    min_supported_version: i16 = 0
    max_supported_version: i16 = 0


class VotersRecordVoter(Struct):
    """A voter with its addresses."""

    voter_id: i32 = 0
    voter_directory_id: Uuid = field()
    endpoints: list[VoterEndpoint] = field()
    k_raft_version_feature: KRaftVersionFeature = field()


class VotersRecord(Data, versions="0", flexible="0+"):
    """The voters from here on (KIP-853)."""

    version: i16 = 0
    voters: list[VotersRecordVoter] = field()
