"""All messages, and random ones of each kind: strategies are derived from the schemas."""

from __future__ import annotations

from functools import cache
from typing import Any

from hypothesis import strategies as st

from ottla_wire.errors import UnsupportedVersion
from ottla_wire.messages import ApiKey, consumer_protocol, control_records, request_class, response_class
from ottla_wire.schema import Data, Message, Struct, Uuid, WireType, fields_of

_RANGES = {"int8": 7, "int16": 15, "int32": 31, "int64": 63}
_UNSIGNED = {"uint16": 16, "uint32": 32}


@cache
def message_classes() -> list[type[Message]]:
    """Every message: requests, responses, and the data that is kept in logs and groups."""
    classes: list[type[Message]] = []
    for key in ApiKey:
        try:
            classes += [request_class(key), response_class(key)]
        except UnsupportedVersion:  # not written yet
            continue
    for module in (consumer_protocol, control_records):
        found = [value for value in vars(module).values() if isinstance(value, type) and issubclass(value, Data)]
        classes += [cls for cls in found if cls.__module__ == module.__name__ and cls.versions.max >= 0]
    return classes


def class_versions() -> list[tuple[type[Message], int]]:
    """Every message with each of its versions."""
    return [(cls, version) for cls in message_classes() for version in cls.versions]


@cache
def instances(cls: type[Struct], version: int) -> st.SearchStrategy[Any]:
    """Random instances of a class, with values in the fields that the version has."""
    values = {}
    for spec in fields_of(cls):
        if version in spec.versions:
            value = _values(spec.type, version)
            values[spec.name] = st.none() | value if version in spec.nullable else value
    return st.builds(cls, **values)


def _values(wire_type: WireType, version: int) -> st.SearchStrategy[Any]:
    name = wire_type.name
    if name in _RANGES:
        limit = 1 << _RANGES[name]
        return st.integers(-limit, limit - 1)
    if name in _UNSIGNED:
        return st.integers(0, (1 << _UNSIGNED[name]) - 1)
    if wire_type.kind == "array":
        assert wire_type.element is not None
        return st.lists(_values(wire_type.element, version), max_size=3)
    if wire_type.kind == "struct":
        return instances(wire_type.struct, version)
    simple: dict[str, st.SearchStrategy[Any]] = {
        "bool": st.booleans(),
        "float64": st.floats(allow_nan=False),
        "string": st.text(max_size=6) | st.just("x" * 200),  # a length of two bytes where lengths are compact
        "bytes": st.binary(max_size=6),
        "records": st.binary(max_size=6) | st.just(b"r" * 600),  # too long to be copied
        "uuid": st.binary(min_size=16, max_size=16).map(Uuid),
    }
    return simple[name]
