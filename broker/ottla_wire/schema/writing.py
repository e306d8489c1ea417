"""Source text under construction: what the two code generators have in common."""

from __future__ import annotations

import struct as binary
from typing import Any

from ottla_wire.schema.model import FieldSpec, Struct, fields_of
from ottla_wire.schema.types import TYPE_DEFAULT, Uuid, WireType


class Source:
    """Lines of a function that is being generated, and the values that they refer to by name."""

    unpacking = False

    def __init__(self, scope: dict[str, Any]) -> None:
        self.scope = scope
        self.lines: list[str] = []
        self.depth = 1
        self._names = 0

    def line(self, text: str) -> None:
        """Add a line at the present depth."""
        self.lines.append("    " * self.depth + text)

    def name(self, stem: str) -> str:
        """A local variable that no other line uses."""
        self._names += 1
        return f"{stem}{self._names}"

    def packer(self, codes: str) -> tuple[str, int]:
        """The name of the struct method for these codes, and their size."""
        layout = binary.Struct(f">{codes}")
        name = f"{'un' if self.unpacking else ''}pack_{codes.replace('?', 'o')}"
        self.scope[name] = layout.unpack_from if self.unpacking else layout.pack
        return name, layout.size

    def constant(self, value: Any) -> str:
        """Text that stands for a default value which is neither a list nor a struct."""
        if isinstance(value, Uuid):
            self.scope["ZERO"] = Uuid.ZERO
            return "ZERO"
        return repr(value)

    def class_name(self, cls: type[Struct]) -> str:
        """Make a class known to the generated code."""
        self.scope[cls.__name__] = cls
        return cls.__name__

    def compile(self, header: str, file: str) -> Any:
        """The finished function."""
        text = "\n".join((header, *self.lines, ""))
        exec(compile(text, file, "exec"), self.scope)
        function = self.scope["codec"]
        function.source = text  # for whoever debugs, or is curious
        return function


def untagged(cls: type[Struct], version: int) -> list[FieldSpec]:
    """The fields that this version has in its fixed part, in order."""
    return [spec for spec in fields_of(cls) if version in spec.versions and version not in spec.tagged]


def tagged(cls: type[Struct], version: int, flexible: bool) -> list[FieldSpec]:
    """The fields of the tagged section, by tag."""
    if not flexible:
        return []
    present = [spec for spec in fields_of(cls) if version in spec.versions and version in spec.tagged]
    return sorted(present, key=lambda spec: spec.tag or 0)


def absent(cls: type[Struct], version: int, flexible: bool) -> list[FieldSpec]:
    """The fields that this version does not have at all."""
    here = {*untagged(cls, version), *tagged(cls, version, flexible)}
    return [spec for spec in fields_of(cls) if spec not in here]


def differs_from_default(source: Source, value: str, spec: FieldSpec) -> str:
    """An expression that is true if `value` is not what the field has by default."""
    kind = spec.type.kind
    if spec.default is None:
        return f"{value} is not None"
    if kind == "array":
        return f"({value} is None or {value})" if spec.nullable.max >= 0 else value
    if spec.default is TYPE_DEFAULT:
        inner = [differs_from_default(source, f"{value}.{part.name}", part) for part in fields_of(spec.type.struct)]
        either = " or ".join(inner) or "False"
        return f"({value} is None or {either})" if spec.nullable.max >= 0 else f"({either})"
    return f"{value} != {source.constant(spec.default)}"


def minimum_size(kind: WireType, version: int, flexible: bool) -> int:
    """The fewest bytes a value of this type has; at least one, so that the bytes that are left bound a count."""
    if kind.kind in ("fixed", "uuid"):
        return kind.size
    if kind.kind == "struct":
        size = 1 if flexible else 0
        for spec in untagged(kind.struct, version):
            null = spec.type.kind == "struct" and version in spec.nullable
            size += 1 if null else minimum_size(spec.type, version, flexible)
        return max(size, 1)
    if flexible:
        return 1
    return 2 if kind.kind == "str" else 4
