"""Builds the decoder of one message in one version: by position over a memoryview, fixed fields unpacked in runs.

The function that comes out has the signature `codec(b, p, end) -> (message, offset after it)`. It is bounded: counts
are compared with the bytes that are left before anything is allocated. It leaves one check to its caller: slices do not
complain about a string that ends after the buffer, so the returned offset may lie behind `end`.
"""

from __future__ import annotations

from typing import Any

from ottla_wire.schema import runtime
from ottla_wire.schema.model import FieldSpec, Message, Struct, fields_of
from ottla_wire.schema.types import TYPE_DEFAULT, Uuid, WireType
from ottla_wire.schema.writing import Source, absent, minimum_size, tagged, untagged


def build_decoder(cls: type[Message], version: int) -> Any:
    """The decoder of `cls` in `version`."""
    scope = {
        "new": object.__new__,
        "bytes_new": bytes.__new__,
        "Uuid": Uuid,
        "more_uvarint": runtime.more_uvarint,
        "get_uvarint": runtime.get_uvarint,
        "skip_tagged": runtime.skip_tagged,
        "missing": runtime.missing,
        "too_many": runtime.too_many,
        "wrong_size": runtime.wrong_size,
        "unpack_from": runtime.unpack_from,
    }
    reader = _Decoder(scope, version, version in cls.flexible_versions)
    reader.structure(cls, "m")
    reader.flush()
    reader.line("return m, p")
    return reader.compile("def codec(b, p, end):", f"<{cls.__name__} version {version}: decode>")


class _Decoder(Source):
    unpacking = True

    def __init__(self, scope: dict[str, Any], version: int, flexible: bool) -> None:
        super().__init__(scope)
        self.version = version
        self.flexible = flexible
        self.run: list[tuple[str, str]] = []  # (struct code, target) of adjacent fixed fields
        self.after: list[str] = []  # what is to be done with them once they are read
        self.place = ("", "")  # structure and field, for errors

    def structure(self, cls: type[Struct], target: str) -> None:
        """Decode an instance of `cls` into the new local variable `target`."""
        self.flush()
        self.line(f"{target} = new({self.class_name(cls)})")
        tags = tagged(cls, self.version, self.flexible)
        for spec in (*absent(cls, self.version, self.flexible), *tags):
            self.default(spec, f"{target}.{spec.name}")
        for spec in untagged(cls, self.version):
            self.place = (cls.__name__, spec.name)
            self.value(spec.type, f"{target}.{spec.name}", self.version in spec.nullable)
        if self.flexible:
            self.tagged_section(cls, tags, target)

    def flush(self) -> None:
        """Read the open run."""
        if not self.run:
            return
        unpacker, size = self.packer("".join(code for code, _ in self.run))
        targets = ", ".join(target for _, target in self.run)
        comma = "," if len(self.run) == 1 else ""
        if self.run[0][0] == "B" and len(self.run) == 1:
            self.line(f"{targets} = b[p]")
        else:
            self.line(f"{targets}{comma} = {unpacker}(b, p)")
        self.line(f"p += {size}")
        for line in self.after:
            self.line(line)
        self.run = []
        self.after = []

    def default(self, spec: FieldSpec, target: str) -> None:
        """Give a field that is not there its default."""
        if spec.type.kind == "array" and spec.default is not None:
            self.line(f"{target} = []")
        elif spec.default is TYPE_DEFAULT:
            inner = self.name("s")
            self.structure_default(spec.type.struct, inner)
            self.line(f"{target} = {inner}")
        else:
            self.line(f"{target} = {self.constant(spec.default)}")

    def structure_default(self, cls: type[Struct], target: str) -> None:
        """A struct with nothing but defaults."""
        self.line(f"{target} = new({self.class_name(cls)})")
        for spec in fields_of(cls):
            self.default(spec, f"{target}.{spec.name}")

    def value(self, kind: WireType, target: str, nullable: bool) -> None:
        """Decode one value of any type into `target`, which may be an attribute."""
        if kind.kind == "fixed":
            self.run.append((kind.code, target))
        elif kind.kind == "uuid":
            raw = self.name("u")
            self.run.append((kind.code, raw))
            self.after.append(f"{target} = bytes_new(Uuid, {raw})")
        elif kind.kind == "struct":
            self.nested(kind, target, nullable)
        elif kind.kind == "array":
            self.array(kind, target, nullable)
        else:
            self.text(kind, target, nullable)

    def length(self, code: str) -> str:
        """Read the open run and a length after it; returns the variable that holds it, below zero for null."""
        length = self.name("n")
        if not self.flexible:
            self.run.append((code, length))
            self.flush()
            return length
        self.run.append(("B", length))
        self.flush()
        self.line(f"if {length} > 127:")
        self.line(f"    {length}, p = more_uvarint(b, p, {length})")
        self.line(f"{length} -= 1")
        return length

    def null(self, length: str, target: str, nullable: bool) -> int:
        """Deal with a length that says null; returns by how much the branch for all others is deeper."""
        self.line(f"if {length} < 0:")
        if not nullable:
            self.line(f"    raise missing{self.place}")
            return 0
        self.line(f"    {target} = None")
        self.line("else:")
        self.depth += 1
        return 1

    def text(self, kind: WireType, target: str, nullable: bool) -> None:
        """Decode a string, bytes or records."""
        length = self.length("h" if kind.kind == "str" else "i")
        deeper = self.null(length, target, nullable)
        stop = self.name("q")
        self.line(f"{stop} = p + {length}")
        content = {"str": "str(b[p:{0}], 'utf-8')", "bytes": "bytes(b[p:{0}])", "records": "b[p:{0}]"}[kind.kind]
        self.line(f"{target} = {content.format(stop)}")
        self.line(f"p = {stop}")
        self.depth -= deeper

    def array(self, kind: WireType, target: str, nullable: bool) -> None:
        """Decode a list."""
        assert kind.element is not None
        element = kind.element
        length = self.length("i")
        deeper = self.null(length, target, nullable)
        least = minimum_size(element, self.version, self.flexible)
        needed = length if least == 1 else f"{length} * {least}"
        self.line(f"if {needed} > end - p:")
        self.line(f"    raise too_many({self.place[0]!r}, {self.place[1]!r}, {length}, end - p)")
        if element.kind == "fixed":
            self.line(f"{target} = list(unpack_from(f'>{{{length}}}{element.code}', b, p))")
            self.line(f"p += {needed}")
        else:
            items = self.name("l")
            item = self.name("e")
            self.line(f"{target} = {items} = []")
            self.line(f"for _ in range({length}):")
            self.depth += 1
            self.structure(element.struct, item) if element.kind == "struct" else self.value(element, item, False)
            self.flush()
            self.line(f"{items}.append({item})")
            self.depth -= 1
        self.depth -= deeper

    def nested(self, kind: WireType, target: str, nullable: bool) -> None:
        """Decode a struct in place."""
        inner = self.name("s")
        if nullable:
            present = self.name("n")
            self.run.append(("b", present))
            self.flush()
            self.null(present, target, True)
        self.structure(kind.struct, inner)
        self.flush()
        self.line(f"{target} = {inner}")
        if nullable:
            self.depth -= 1

    def tagged_section(self, cls: type[Struct], tags: list[FieldSpec], target: str) -> None:
        """Decode the tagged fields that this version knows, and pass over the others."""
        count = self.name("n")
        self.run.append(("B", count))
        self.flush()
        self.line(f"if {count}:")
        self.depth += 1
        if not tags:
            self.line(f"p = skip_tagged(b, p, {count})")
            self.depth -= 1
            return
        tag, size, stop = self.name("t"), self.name("n"), self.name("q")
        self.line(f"if {count} > 127:")
        self.line(f"    {count}, p = more_uvarint(b, p, {count})")
        self.line(f"for _ in range({count}):")
        self.depth += 1
        self.line(f"{tag}, p = get_uvarint(b, p)")
        self.line(f"{size}, p = get_uvarint(b, p)")
        self.line(f"{stop} = p + {size}")
        for index, spec in enumerate(tags):
            self.line(f"{'elif' if index else 'if'} {tag} == {spec.tag}:")
            self.depth += 1
            self.place = (cls.__name__, spec.name)
            self.value(spec.type, f"{target}.{spec.name}", self.version in spec.nullable)
            self.flush()
            self.line(f"if p != {stop}:")
            self.line(f"    raise wrong_size({cls.__name__!r}, {spec.name!r})")
            self.depth -= 1
        self.line("else:")
        self.line(f"    p = {stop}")
        self.depth -= 2
