"""Builds the encoder of one message in one version: straight-line Python, fixed fields packed in runs.

The function that comes out has the signature `codec(m, buf, parts) -> buf`. It appends to the bytearray `buf`; a large
records field closes `buf`, is itself put into `parts`, and a new `buf` goes on. `codec.source` is its text.
"""

from __future__ import annotations

from typing import Any

from ottla_wire.schema import runtime
from ottla_wire.schema.model import FieldSpec, Message, Struct
from ottla_wire.schema.types import WireType
from ottla_wire.schema.writing import Source, absent, differs_from_default, tagged, untagged


def build_encoder(cls: type[Message], version: int) -> Any:
    """The encoder of `cls` in `version`."""
    scope = {
        "attach": runtime.attach,
        "put_uvarint": runtime.put_uvarint,
        "put_tagged": runtime.put_tagged,
        "not_expressible": runtime.not_expressible,
        "pack": runtime.pack,
    }
    writer = _Encoder(scope, version, version in cls.flexible_versions)
    writer.structure(cls, "m")
    writer.flush()
    writer.line("return buf")
    return writer.compile("def codec(m, buf, parts):", f"<{cls.__name__} version {version}: encode>")


class _Encoder(Source):
    def __init__(self, scope: dict[str, Any], version: int, flexible: bool) -> None:
        super().__init__(scope)
        self.version = version
        self.flexible = flexible
        self.buffer = "buf"
        self.run: list[tuple[str, str]] = []  # (struct code, expression) of adjacent fixed fields

    def structure(self, cls: type[Struct], value: str) -> None:
        """Encode an instance of `cls`; leaves its last fixed fields in the open run."""
        for spec in absent(cls, self.version, self.flexible):
            if not spec.ignorable:
                self.line(f"if {differs_from_default(self, f'{value}.{spec.name}', spec)}:")
                self.line(f"    raise not_expressible({cls.__name__!r}, {spec.name!r}, {self.version})")
        for spec in untagged(cls, self.version):
            self.value(spec.type, f"{value}.{spec.name}", self.version in spec.nullable)
        if not self.flexible:
            return
        tags = tagged(cls, self.version, self.flexible)
        if tags:
            self.tagged_section(tags, value)
        else:
            self.run.append(("x", ""))

    def flush(self) -> None:
        """Write the open run."""
        self.write(self.run)
        self.run = []

    def write(self, run: list[tuple[str, str]]) -> None:
        """Write adjacent fixed fields."""
        arguments = [expression for _, expression in run if expression]
        if not run:
            return
        if not arguments:
            self.line(f"{self.buffer} += {bytes(len(run))!r}")
        elif [code for code, _ in run] == ["B"]:
            self.line(f"{self.buffer}.append({arguments[0]})")
        else:
            packer, _ = self.packer("".join(code for code, _ in run))
            self.line(f"{self.buffer} += {packer}({', '.join(arguments)})")

    def count(self, amount: str) -> None:
        """Write the open run and a compact count after it, which nearly always is a single byte."""
        self.line(f"if {amount} < 128:")
        self.depth += 1
        self.write([*self.run, ("B", amount)])
        self.depth -= 1
        self.line("else:")
        self.depth += 1
        self.flush()
        self.line(f"put_uvarint({self.buffer}, {amount})")
        self.depth -= 1

    def value(self, kind: WireType, value: str, nullable: bool) -> None:
        """Encode one value of any type."""
        if kind.kind == "fixed":
            self.run.append((kind.code, value))
        elif kind.kind == "uuid":
            self.line(f"if len({value}) != 16:")
            self.line("    raise ValueError")  # struct would pad it; explain() finds out which one it is
            self.run.append((kind.code, value))
        elif kind.kind == "struct":
            self.nested(kind, value, nullable)
        elif kind.kind == "array":
            self.array(kind, value, nullable)
        else:
            self.text(kind, value, nullable)

    def text(self, kind: WireType, value: str, nullable: bool) -> None:
        """Encode a string, bytes or records: a length, and the content."""
        content = self.name("v")
        length = self.name("n")
        transform = ".encode()" if kind.kind == "str" else ""
        shift = " + 1" if self.flexible else ""
        if nullable:
            self.line(f"{content} = {value}")
            self.line(f"if {content} is None:")
            self.line(f"    {content} = b''")
            self.line(f"    {length} = {0 if self.flexible else -1}")
            self.line("else:")
            if transform:
                self.line(f"    {content} = {content}{transform}")
            self.line(f"    {length} = len({content}){shift}")
        else:
            self.line(f"{content} = {value}{transform}")
            self.line(f"{length} = len({content}){shift}")
        self.length(length, "h" if kind.kind == "str" else "i")
        if kind.kind == "records" and self.buffer == "buf":
            self.line(f"buf = attach(parts, buf, {content})")
        else:
            self.line(f"{self.buffer} += {content}")

    def length(self, length: str, code: str) -> None:
        """Write the open run and a length after it."""
        if self.flexible:
            self.count(length)
        else:
            self.run.append((code, length))
            self.flush()

    def array(self, kind: WireType, value: str, nullable: bool) -> None:
        """Encode a list: a count, and the elements."""
        assert kind.element is not None
        element = kind.element
        items = self.name("v")
        length = self.name("n")
        shift = " + 1" if self.flexible else ""
        self.line(f"{items} = {value}")
        if nullable:
            self.line(f"if {items} is None:")
            self.line(f"    {items} = ()")
            self.line(f"    {length} = {0 if self.flexible else -1}")
            self.line("else:")
            self.line(f"    {length} = len({items}){shift}")
        else:
            self.line(f"{length} = len({items}){shift}")
        self.length(length, "i")
        if element.kind == "fixed":
            self.line(f"if {items}:")
            self.line(f"    {self.buffer} += pack(f'>{{len({items})}}{element.code}', *{items})")
            return
        item = self.name("e")
        self.line(f"for {item} in {items}:")
        self.depth += 1
        self.structure(element.struct, item) if element.kind == "struct" else self.value(element, item, False)
        self.flush()
        self.depth -= 1

    def nested(self, kind: WireType, value: str, nullable: bool) -> None:
        """Encode a struct in place; one that may be None has a byte before it."""
        inner = self.name("s")
        self.line(f"{inner} = {value}")
        if not nullable:
            self.structure(kind.struct, inner)
            return
        self.flush()
        self.line(f"if {inner} is None:")
        self.line(f"    {self.buffer}.append(255)")
        self.line("else:")
        self.depth += 1
        self.run.append(("B", "1"))
        self.structure(kind.struct, inner)
        self.flush()
        self.depth -= 1

    def tagged_section(self, tags: list[FieldSpec], value: str) -> None:
        """Encode the tagged fields that differ from their defaults, and before them how many there are."""
        self.flush()
        count = self.name("n")
        section = self.name("t")
        self.line(f"{count} = 0")
        self.line(f"{section} = b''")
        outer = self.buffer
        for spec in tags:
            content = f"{value}.{spec.name}"
            self.line(f"if {differs_from_default(self, content, spec)}:")
            self.depth += 1
            self.buffer = self.name("b")
            self.line(f"{count} += 1")
            self.line(f"{self.buffer} = bytearray()")
            self.value(spec.type, content, self.version in spec.nullable)
            self.flush()
            self.line(f"{section} += put_tagged({spec.tag}, {self.buffer})")
            self.buffer = outer
            self.depth -= 1
        self.line(f"{outer}.append({count})")  # there are never 128 of them
        self.line(f"if {count}:")
        self.line(f"    {outer} += {section}")
