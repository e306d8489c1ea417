"""The vocabulary of the schema language: field types, version ranges, ids."""

from __future__ import annotations

import binascii
import random
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Final, TypeAlias

Buffer: TypeAlias = bytes | bytearray | memoryview
"""What a message can be decoded from, and what a records field may hold."""

PRIVATE_TAG: Final = 10_000
"""Tags from here on are no Kafka's: fields that our clients and brokers add, and others pass over."""

LATEST: Final = 0x7FFF
"""The upper end of an open range such as "9+"."""


class VersionRange:
    """The versions from `min` to `max`, both included; "0-13", "9+", "4" and "none" as text."""

    __slots__ = ("max", "min")

    def __init__(self, min: int, max: int) -> None:
        self.min = min
        self.max = max

    @classmethod
    def parse(cls, text: str) -> VersionRange:
        """Read a range as it is written in a schema; ValueError if it is not one."""
        if text == "none":
            return NO_VERSIONS
        if text.endswith("+"):
            return cls(int(text[:-1]), LATEST)
        low, _, high = text.partition("-")
        return cls(int(low), int(high or low))

    def __contains__(self, version: int) -> bool:
        return self.min <= version <= self.max

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.min, self.max + 1))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, VersionRange) and (self.min, self.max) == (other.min, other.max)

    def __hash__(self) -> int:
        return hash((self.min, self.max))

    def __str__(self) -> str:
        if self.max < self.min:
            return "none"
        if self.max == LATEST:
            return f"{self.min}+"
        return str(self.min) if self.min == self.max else f"{self.min}-{self.max}"

    def __repr__(self) -> str:
        return f"VersionRange.parse({str(self)!r})"


NO_VERSIONS: Final = VersionRange(0, -1)


class Uuid(bytes):
    """A topic, directory or member id: 16 bytes, printed as Kafka prints them (url-safe base64 without padding)."""

    __slots__ = ()
    ZERO: ClassVar[Uuid]

    def __new__(cls, value: Buffer) -> Uuid:
        """Take 16 bytes; ValueError for any other number."""
        if len(value) != 16:
            raise ValueError(f"an id has 16 bytes, not {len(value)}")
        return super().__new__(cls, value)

    @classmethod
    def from_string(cls, text: str) -> Uuid:
        """Read what `str()` of an id gives; ValueError if it is something else."""
        try:
            value = binascii.a2b_base64(text.replace("-", "+").replace("_", "/") + "==", strict_mode=True)
        except ValueError:
            value = b""
        if len(value) != 16 or len(text) != 22:
            raise ValueError(f"{text!r} is not an id: 22 characters of A-Z, a-z, 0-9, - and _ are")
        return cls(value)

    @classmethod
    def random(cls, rng: random.Random) -> Uuid:
        """A new version 4 id that does not start with `-`, which a command line would take for an option."""
        while True:
            value = bytearray(rng.randbytes(16))
            value[6] = value[6] & 0x0F | 0x40
            value[8] = value[8] & 0x3F | 0x80
            if value[0] >> 2 != 62:
                return cls(value)

    def __str__(self) -> str:
        return binascii.b2a_base64(self, newline=False).decode().rstrip("=").replace("+", "-").replace("/", "_")

    def __repr__(self) -> str:
        return f"Uuid({self!s})"


Uuid.ZERO = Uuid(bytes(16))


TYPE_DEFAULT: Final[Any] = type("TypeDefault", (), {"__repr__": lambda _: "TYPE_DEFAULT"})()
"""In `field(default=...)`: what the type has by default. In a `FieldSpec`: a new instance of the field's struct."""


class WireType:
    """How a field looks on the wire.

    `kind` is "fixed" (then `code` and `size` are those of the struct module), "str", "bytes", "records", "uuid",
    "array" (of `element`, by default empty) or "struct" (of the class `struct`, by default an instance of it).
    """

    __slots__ = ("code", "default", "element", "kind", "name", "size", "struct")

    def __init__(
        self,
        name: str,
        kind: str,
        *,
        code: str = "",
        size: int = 0,
        default: Any = None,
        element: WireType | None = None,
        struct: Any = None,
    ) -> None:
        self.name = name
        self.kind = kind
        self.code = code
        self.size = size
        self.default = default
        self.element = element
        self.struct = struct

    def __repr__(self) -> str:
        return self.name


BOOL: Final = WireType("bool", "fixed", code="?", size=1, default=False)
STR: Final = WireType("string", "str", default="")
BYTES: Final = WireType("bytes", "bytes", default=b"")
RECORDS: Final = WireType("records", "records", default=None)
UUID: Final = WireType("uuid", "uuid", code="16s", size=16, default=Uuid.ZERO)

i8: TypeAlias = Annotated[int, WireType("int8", "fixed", code="b", size=1, default=0)]
i16: TypeAlias = Annotated[int, WireType("int16", "fixed", code="h", size=2, default=0)]
i32: TypeAlias = Annotated[int, WireType("int32", "fixed", code="i", size=4, default=0)]
i64: TypeAlias = Annotated[int, WireType("int64", "fixed", code="q", size=8, default=0)]
u16: TypeAlias = Annotated[int, WireType("uint16", "fixed", code="H", size=2, default=0)]
u32: TypeAlias = Annotated[int, WireType("uint32", "fixed", code="I", size=4, default=0)]
f64: TypeAlias = Annotated[float, WireType("float64", "fixed", code="d", size=8, default=0.0)]

RecordData: TypeAlias = Annotated[Buffer, RECORDS]
"""Record batches: given as any buffer, decoded as a slice of the buffer that the message came in."""
