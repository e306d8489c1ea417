"""`meta.properties`: which cluster and which node a data folder belongs to (version 1, as KRaft writes it)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ottla_broker.log.files import Files
from ottla_wire.schema import Uuid

META_NAME = "meta.properties"


class MetaPropertiesError(Exception):
    """The file cannot be used; the message says why."""


@dataclass(frozen=True, slots=True)
class MetaProperties:
    """The identity of a data folder."""

    cluster_id: str
    node_id: int
    directory_id: Uuid


def read_meta_properties(files: Files, folder: Path) -> MetaProperties | None:
    """The identity of a folder, None if it is new. Raises MetaPropertiesError, OSError."""
    path = folder / META_NAME
    if not files.exists(path):
        return None
    lines = files.read(path).decode("utf-8", "replace").splitlines()
    # a Java properties file may escape what is special to it; ids and numbers have nothing of the kind but `=`
    fields = dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))
    fields = {name.strip(): value.strip().replace("\\", "") for name, value in fields.items()}
    if fields.get("version") != "1":
        raise MetaPropertiesError(f"{path} has version {fields.get('version')}; 1 is needed")
    try:
        return MetaProperties(
            fields["cluster.id"], int(fields["node.id"]), Uuid.from_string(fields.get("directory.id", str(Uuid.ZERO)))
        )
    except (KeyError, ValueError) as error:
        raise MetaPropertiesError(f"{path} lacks a usable {error}") from error


def write_meta_properties(files: Files, folder: Path, meta: MetaProperties) -> None:
    """Store the identity durably. Raises OSError."""
    fields = {
        "cluster.id": meta.cluster_id,
        "directory.id": str(meta.directory_id),
        "node.id": str(meta.node_id),
        "version": "1",
    }
    text = "#\n" + "".join(f"{name}={value}\n" for name, value in fields.items())
    files.replace(folder / META_NAME, text.encode())
