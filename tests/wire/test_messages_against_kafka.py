"""Every class against the definition of the same name in Kafka's own jars, version by version."""

from __future__ import annotations

from typing import Any

import pytest

from ottla_wire.messages import ApiKey
from ottla_wire.schema import Data, Message, Request, Response, Struct, VersionRange, fields_of
from ottla_wire.schema.types import TYPE_DEFAULT
from support.kafka_schemas import (
    KafkaField,
    definitions,
    is_private,
    jars,
    kafka_fields,
    kafka_layout,
    our_layout,
    python_name,
    struct_of,
)
from support.messages import message_classes

SUPPORTED = ["4.0.1", "4.3.1", "4.4.0"]
OLDER = ["3.9.1"]
RENAMED = {
    # two structs of one name in one module
    "VoterEndpoint": "Endpoint",
    "VotersRecordVoter": "Voter",
    # Kafka 4.4 has new names for old fields
    "generation_id": "generation_id_or_member_epoch",
    "LIST_CLIENT_METRICS_RESOURCES": "LIST_CONFIG_RESOURCES",
}

in_kafkas_jars = pytest.mark.peer("kafka-jars")
every_class = pytest.mark.parametrize("cls", message_classes(), ids=lambda cls: cls.__name__)


def definition_of(cls: type[Message], kafka: str) -> dict[str, Any]:
    found = definitions(kafka)
    if cls.__name__ not in found:  # the data of control records came into the jar after 4.0
        assert issubclass(cls, Data)
        return definitions("4.4.0")[cls.__name__]
    return found[cls.__name__]


def versions_of(definition: dict[str, Any]) -> VersionRange:
    return VersionRange.parse(definition["validVersions"])


def renamed(layout: Any) -> Any:
    if isinstance(layout, list):
        return [renamed(field) for field in layout]
    if isinstance(layout, tuple):
        return tuple(renamed(part) for part in layout)
    if isinstance(layout, str):
        prefix = "[]" if layout.startswith("[]") else ""
        return prefix + RENAMED.get(layout.removeprefix("[]"), layout.removeprefix("[]"))
    return layout


@pytest.mark.parametrize("kafka", SUPPORTED + OLDER)
@every_class
@in_kafkas_jars
def test_every_version_has_the_fields_that_kafka_has(cls: type[Message], kafka: str) -> None:
    definition = definition_of(cls, kafka)
    fields = kafka_fields(definition)
    shared = [version for version in versions_of(definition) if version in cls.versions]
    assert shared
    for version in shared:
        ours, kafkas = our_layout(cls, version), kafka_layout(fields, version)
        assert [renamed(field) for field in ours] == [renamed(field) for field in kafkas], f"version {version}"


@every_class
@in_kafkas_jars
def test_the_versions_are_the_union_of_the_supported_releases(cls: type[Message]) -> None:
    found = [definitions(kafka)[cls.__name__] for kafka in SUPPORTED if cls.__name__ in definitions(kafka)]
    ranges = [versions_of(definition) for definition in found]
    assert cls.versions == VersionRange(min(r.min for r in ranges), max(r.max for r in ranges))


@pytest.mark.parametrize("kafka", SUPPORTED)
@every_class
@in_kafkas_jars
def test_a_class_is_flexible_where_kafka_is_and_has_its_key(cls: type[Message], kafka: str) -> None:
    definition = definition_of(cls, kafka)
    flexible = VersionRange.parse(definition["flexibleVersions"])
    for version in cls.versions:
        assert cls.is_flexible(version) == (version in flexible)
    if issubclass(cls, (Request, Response)):
        assert cls.api_key == definition["apiKey"]
        assert definition["type"] == ("request" if issubclass(cls, Request) else "response")


@pytest.mark.parametrize("kafka", ["4.3.1", "4.4.0"])
@every_class
@in_kafkas_jars
def test_the_latest_version_is_unstable_where_kafka_says_so(cls: type[Message], kafka: str) -> None:
    definition = definition_of(cls, kafka)
    if issubclass(cls, Request):
        assert cls.latest_version_unstable == definition.get("latestVersionUnstable", False)


@every_class
def test_header_versions_follow_flexibility_except_for_api_versions_responses(cls: type[Message]) -> None:
    for version in cls.versions:
        if issubclass(cls, Request):
            assert cls.header_version(version) == (2 if cls.is_flexible(version) else 1)
        if issubclass(cls, Response):
            flexible = cls.is_flexible(version) and cls.__name__ != "ApiVersionsResponse"
            assert cls.header_version(version) == (1 if flexible else 0)


@pytest.mark.parametrize("kafka", ["4.3.1", "4.4.0"])
@every_class
@in_kafkas_jars
def test_defaults_are_kafkas_and_so_is_what_may_be_dropped(cls: type[Message], kafka: str) -> None:
    compare_fields(cls, kafka_fields(definition_of(cls, kafka)), cls.versions)


def compare_fields(cls: type[Struct], fields: list[KafkaField], versions: VersionRange) -> None:
    ours = {spec.name: spec for spec in fields_of(cls)}
    for field in fields:
        if not any(version in field.versions for version in versions):
            continue  # only versions that are no longer supported have it
        spec = ours[field.name] if field.name in ours else ours[RENAMED[field.name]]
        default = "struct" if spec.default is TYPE_DEFAULT else spec.default
        assert default == field.default, f"{cls.__name__}.{field.name}"
        if not all(version in field.versions for version in versions):
            assert spec.ignorable == field.ignorable, f"{cls.__name__}.{field.name}"
        inner = struct_of(spec)
        if inner is not None:
            assert field.fields is not None
            compare_fields(inner, field.fields, versions)


PRIVATE = {
    "DescribeTransactionsRequest": ["describe_epoch_end"],
    "InitProducerIdRequest": ["fences_only"],
    "TransactionState": ["epoch_end"],
}


@in_kafkas_jars
def test_fields_that_are_no_kafkas_are_those_few_and_leave_its_bytes_alone() -> None:
    found: dict[str, list[str]] = {}
    for cls in message_classes():
        private_fields(cls, found)
    assert found == PRIVATE


def private_fields(cls: type[Struct], found: dict[str, list[str]]) -> None:
    for spec in fields_of(cls):
        if is_private(spec):
            found.setdefault(cls.__name__, []).append(spec.name)
        if (inner := struct_of(spec)) is not None:
            private_fields(inner, found)


@in_kafkas_jars
def test_every_api_key_of_kafka_has_its_name_here() -> None:
    for kafka in SUPPORTED + OLDER:
        requests = [definition for definition in definitions(kafka).values() if definition["type"] == "request"]
        for definition in requests:
            name = python_name(definition["name"].removesuffix("Request")).upper()
            assert ApiKey[RENAMED.get(name, name)] == definition["apiKey"]


@in_kafkas_jars
def test_the_newest_kafka_has_no_key_that_is_missing_here() -> None:
    known = {definition["apiKey"] for definition in definitions("4.4.0").values() if definition["type"] == "request"}
    assert {int(key) for key in ApiKey} == known


def test_jars_are_told_apart_by_their_version() -> None:
    for version, path in jars().items():
        assert path.name == f"kafka-clients-{version}.jar"
