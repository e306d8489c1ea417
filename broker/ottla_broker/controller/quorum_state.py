"""quorum-state: who led the metadata log last, and in which epoch; Kafka's JSON file of that name.

It is written, durably, before the first record of an epoch, so that no epoch is ever led twice.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final, NamedTuple

from ottla_broker.log.files import Files
from ottla_wire.errors import KafkaStorageError
from ottla_wire.schema import Uuid

FILE_NAME: Final = "quorum-state"
_DATA_VERSION: Final = 1
_NOBODY: Final = -1


class QuorumState(NamedTuple):
    """The part of Raft's state that must survive."""

    leader_epoch: int = 0
    leader_id: int = _NOBODY
    voted_id: int = _NOBODY
    voted_directory_id: Uuid = Uuid.ZERO


def read_quorum_state(files: Files, folder: Path) -> QuorumState:
    """The state that was written last; that of a new node if there is none.

    Raises:
        KafkaStorageError: the file cannot be read. A node that guesses could lead an epoch twice.
    """
    path = folder / FILE_NAME
    if not files.exists(path):
        return QuorumState()
    try:
        content = json.loads(files.read(path))
        if content["data_version"] != _DATA_VERSION:
            raise ValueError(f"data_version {content['data_version']}")
        return QuorumState(
            leader_epoch=int(content["leaderEpoch"]),
            leader_id=int(content["leaderId"]),
            voted_id=int(content["votedId"]),
            voted_directory_id=Uuid.from_string(content["votedDirectoryId"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise KafkaStorageError(f"{path} cannot be read ({error!r}); restore it, or remove the whole folder") from error


def write_quorum_state(files: Files, folder: Path, state: QuorumState) -> None:
    """Replace the file; when this returns the state survives a loss of power. Raises OSError."""
    content = {
        "leaderId": state.leader_id,
        "leaderEpoch": state.leader_epoch,
        "votedId": state.voted_id,
        "votedDirectoryId": str(state.voted_directory_id),
        "data_version": _DATA_VERSION,
    }
    files.replace(folder / FILE_NAME, json.dumps(content, separators=(",", ":")).encode())
