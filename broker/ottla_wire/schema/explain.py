"""Finds out why a message could not be encoded: the codecs check nothing that packing a value checks anyway."""

from __future__ import annotations

import struct as binary

from ottla_wire.schema.model import Message, Struct
from ottla_wire.schema.types import WireType
from ottla_wire.schema.writing import tagged, untagged


def explain(message: Message, version: int) -> str | None:
    """A sentence that names the first field with a value that `version` cannot express; None if there is none."""
    fault = _structure(message, type(message).__name__, version, type(message).is_flexible(version))
    return f"{fault} (version {version})" if fault else None


def _structure(value: Struct, path: str, version: int, flexible: bool) -> str | None:
    cls = type(value)
    for spec in (*untagged(cls, version), *tagged(cls, version, flexible)):
        name = f"{path}.{spec.name}"
        try:
            content = getattr(value, spec.name)
        except AttributeError:
            return f"{name} is not set"
        if content is None:
            if version not in spec.nullable:
                return f"{name} is None, which is not allowed"
        elif fault := _value(spec.type, content, name, version, flexible):
            return fault
    return None


def _value(kind: WireType, value: object, path: str, version: int, flexible: bool) -> str | None:
    wrong = f"{path} is {value!r:.100}, which is not {kind.name}"
    if kind.kind == "struct":
        return _structure(value, path, version, flexible) if isinstance(value, kind.struct) else wrong
    if kind.kind == "array":
        return _array(kind, value, path, version, flexible) if isinstance(value, (list, tuple)) else wrong
    if kind.kind == "str":
        return _string(value, path, flexible) if isinstance(value, str) else wrong
    if kind.kind == "fixed":
        try:
            binary.pack(f">{kind.code}", value)
        except (binary.error, TypeError, OverflowError):
            return wrong
        return None
    if not isinstance(value, (bytes, bytearray, memoryview)):
        return wrong
    return f"{path} is {value!r:.100}, not an id of 16 bytes" if kind.kind == "uuid" and len(value) != 16 else None


def _array(
    kind: WireType, value: list[object] | tuple[object, ...], path: str, version: int, flexible: bool
) -> str | None:
    assert kind.element is not None
    for index, item in enumerate(value):
        if fault := _value(kind.element, item, f"{path}[{index}]", version, flexible):
            return fault
    return None


def _string(value: str, path: str, flexible: bool) -> str | None:
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        return f"{path} is {value!r:.100}, which cannot be written as UTF-8"
    if size > 0x7FFF and not flexible:
        return f"{path} has {size} bytes, more than a string can have (32767)"
    return None
