"""`partition.metadata`: the id of the topic that a folder belongs to.

Written before the first append, and durable with the first flush of the log: a folder that a power failure left without
it, or with a part of it, holds nothing that was ever flushed.
"""

from __future__ import annotations

from pathlib import Path

from ottla_broker.log.files import Files
from ottla_wire.errors import InconsistentTopicId, KafkaStorageError
from ottla_wire.schema import Uuid

METADATA_NAME = "partition.metadata"

_HEAD = "version: 0\ntopic_id: "
_ID_CHARACTERS = 22


def read_topic_id(files: Files, folder: Path) -> Uuid | None:
    """The topic id of a folder, None if it has none yet. Raises KafkaStorageError for a file that cannot be read."""
    path = folder / METADATA_NAME
    if not files.exists(path):
        return None
    text = files.read(path).decode("utf-8", "replace")
    if "\0" in text or (len(text) < len(_HEAD) + _ID_CHARACTERS and _HEAD.startswith(text[: len(_HEAD)])):
        return None  # it was being written
    if not text.startswith(_HEAD):
        raise KafkaStorageError(f"{path} is not a partition.metadata file of version 0")
    return Uuid.from_string(text.removeprefix(_HEAD).strip())


def write_topic_id(files: Files, folder: Path, topic_id: Uuid) -> None:
    """Say which topic a folder belongs to, without making it durable. The zero id stands for no topic."""
    if topic_id != Uuid.ZERO:
        files.write(folder / METADATA_NAME, f"{_HEAD}{topic_id}".encode())


def ensure_partition_metadata(files: Files, folder: Path, topic_id: Uuid) -> bool:
    """Write the topic id, or compare it with the one that is there; says whether it was there.

    Raises InconsistentTopicId if the folder is that of another topic (deleted, and created again under the same name).
    """
    if topic_id == Uuid.ZERO:
        return True
    known = read_topic_id(files, folder)
    if known is None:
        write_topic_id(files, folder, topic_id)
    elif known != topic_id:
        raise InconsistentTopicId(f"{folder} belongs to topic {known}, not to {topic_id}")
    return known is not None
