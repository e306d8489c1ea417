"""`partition.metadata`: the id of the topic that a folder belongs to. Written, durably, before the first append."""

from __future__ import annotations

from pathlib import Path

from ottla_broker.log.files import Files
from ottla_wire.errors import InconsistentTopicId, KafkaStorageError
from ottla_wire.schema import Uuid

METADATA_NAME = "partition.metadata"


def read_topic_id(files: Files, folder: Path) -> Uuid | None:
    """The topic id of a folder, None if it has none yet. Raises KafkaStorageError for a file that cannot be read."""
    path = folder / METADATA_NAME
    if not files.exists(path):
        return None
    fields = dict(line.split(": ", 1) for line in files.read(path).decode().splitlines() if ": " in line)
    if fields.get("version") != "0" or "topic_id" not in fields:
        raise KafkaStorageError(f"{path} is not a partition.metadata file of version 0")
    return Uuid.from_string(fields["topic_id"].strip())


def ensure_partition_metadata(files: Files, folder: Path, topic_id: Uuid) -> None:
    """Write the topic id, or compare it with the one that is there.

    Raises InconsistentTopicId if the folder is that of another topic (deleted, and created again under the same name).
    """
    if topic_id == Uuid.ZERO:
        return
    known = read_topic_id(files, folder)
    if known is None:
        files.replace(folder / METADATA_NAME, f"version: 0\ntopic_id: {topic_id}\n".encode())
    elif known != topic_id:
        raise InconsistentTopicId(f"{folder} belongs to topic {known}, not to {topic_id}")
