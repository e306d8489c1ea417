"""Kafka's own message definitions, read from the kafka-clients jars, in a form that our classes can be compared with.

Jars are looked for in `OTTLA_KAFKA_JARS` (jars or folders of them, separated as in PATH), else in the cache that
`support/apache_kafka.py` fills.
"""

from __future__ import annotations

import json
import os
import re
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from ottla_wire.schema import PRIVATE_TAG, FieldSpec, Struct, Uuid, VersionRange, WireType, fields_of
from support import apache_kafka
from support.peers import required

_JAR_NAME = re.compile(r"kafka-clients-(\d+\.\d+\.\d+)\.jar")


@cache
def jars() -> dict[str, Path]:
    """The kafka-clients jars on this machine by version."""
    configured = os.environ.get("OTTLA_KAFKA_JARS")
    if configured:
        places = [Path(place).expanduser() for place in configured.split(os.pathsep) if place]
        files = [file for place in places for file in ([place] if place.is_file() else sorted(place.glob("*.jar")))]
    else:
        files = list(apache_kafka.cache().glob("*/libs/kafka-clients-*.jar"))
    matches = [(file, _JAR_NAME.fullmatch(file.name)) for file in files]
    return {match[1]: file for file, match in matches if match}


def jar(version: str) -> Path:
    """The jar of one version; without it the test is skipped, or fails if OTTLA_REQUIRE names `kafka-jars`."""
    if version in jars():
        return jars()[version]
    reason = f"there is no kafka-clients-{version}.jar here: make peers gets it"
    if "kafka-jars" in required():
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


@cache
def definitions(version: str) -> dict[str, dict[str, Any]]:
    """All message definitions of one version by name."""
    found = {}
    with zipfile.ZipFile(jar(version)) as archive:
        for name in archive.namelist():
            if name.startswith("common/message/") and name.endswith(".json"):
                text = archive.read(name).decode()
                lines = (re.sub(r"(^|\s)//.*", "", line) for line in text.splitlines())
                definition = json.loads("\n".join(lines))
                found[definition["name"]] = definition
    return found


def python_name(name: str) -> str:
    """A field's name in our classes: `ThrottleTimeMs` is `throttle_time_ms`."""
    words = re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", name)
    return re.sub(r"([A-Z]+)([A-Z][a-z])", r"\1_\2", words).lower()


class KafkaField:
    """A field of a definition, with the same attributes as our `FieldSpec`."""

    def __init__(self, field: dict[str, Any], common: dict[str, list[dict[str, Any]]]) -> None:
        self.name = python_name(field["name"])
        # A few records leave it out where a field is tagged in all the versions that have it.
        self.versions = VersionRange.parse(field.get("versions") or field["taggedVersions"])
        self.nullable = VersionRange.parse(field.get("nullableVersions", "none"))
        self.tagged = VersionRange.parse(field.get("taggedVersions", "none"))
        self.tag: int | None = field.get("tag")
        self.ignorable = str(field.get("ignorable", False)).lower() == "true"
        self.type: str = field["type"]
        self.struct = self.type.removeprefix("[]")
        members = field.get("fields") or common.get(self.struct)
        self.fields = [KafkaField(member, common) for member in members] if members else None
        self.default = self._default(field.get("default"))

    def _default(self, given: Any) -> Any:
        if given in ("null", None) and (given == "null" or self.type == "records"):
            return None
        if self.type.startswith("[]"):
            return ()
        if self.fields is not None:
            return "struct"
        if self.type == "bool":
            return str(given).lower() == "true"
        if self.type == "float64":
            return float(given or 0)
        if self.type in ("string", "bytes", "uuid"):
            return {"string": given or "", "bytes": b"", "uuid": Uuid.ZERO}[self.type]
        return int(str(given or 0), 0)


def kafka_fields(definition: dict[str, Any]) -> list[KafkaField]:
    """The fields of a definition."""
    common = {struct["name"]: struct["fields"] for struct in definition.get("commonStructs", [])}
    return [KafkaField(field, common) for field in definition["fields"]]


Layout = list[tuple[Any, ...]]


def kafka_layout(fields: list[KafkaField], version: int) -> Layout:
    """What is on the wire in a version, in its order: name, type, nullable, tag; a struct's type is its own layout."""
    present = [field for field in fields if version in field.versions]
    return [
        (
            field.name,
            field.type if field.fields is None else (field.type, kafka_layout(field.fields, version)),
            version in field.nullable,
            field.tag if version in field.tagged else None,
        )
        for field in _wire_order(present, version)
    ]


def our_layout(cls: type[Struct], version: int) -> Layout:
    """The same of one of our classes."""
    present = [spec for spec in fields_of(cls) if version in spec.versions and not is_private(spec)]
    return [
        (
            spec.name,
            _our_type(spec.type, version),
            version in spec.nullable,
            spec.tag if version in spec.tagged else None,
        )
        for spec in _wire_order(present, version)
    ]


def is_private(spec: FieldSpec) -> bool:
    """Whether a field is ours and none of Kafka's: a tag that its readers pass over."""
    return spec.tag is not None and spec.tag >= PRIVATE_TAG


def _wire_order(fields: list[Any], version: int) -> list[Any]:
    untagged = [field for field in fields if version not in field.tagged]
    return untagged + sorted((field for field in fields if version in field.tagged), key=lambda field: field.tag)


def _our_type(wire_type: WireType, version: int) -> Any:
    inner = wire_type.element if wire_type.kind == "array" else wire_type
    assert inner is not None
    if inner.kind == "struct":
        return (wire_type.name, our_layout(inner.struct, version))
    return wire_type.name


def struct_of(spec: FieldSpec) -> type[Struct] | None:
    """The class of a field that holds structs, alone or in a list."""
    inner = spec.type.element if spec.type.kind == "array" else spec.type
    return inner.struct if inner is not None else None
