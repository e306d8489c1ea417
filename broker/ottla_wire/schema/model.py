"""The classes of the schema language: what a class body turns into, and what every message can do."""

from __future__ import annotations

import operator
import struct as binary
import sys
from typing import Any, ClassVar, Self, dataclass_transform

from ottla_wire.errors import DecodeError, EncodeError
from ottla_wire.schema.types import (
    BOOL,
    BYTES,
    NO_VERSIONS,
    STR,
    TYPE_DEFAULT,
    UUID,
    Buffer,
    Uuid,
    VersionRange,
    WireType,
)

_BY_TYPE: dict[object, WireType] = {bool: BOOL, str: STR, bytes: BYTES, Uuid: UUID}
_BAD_VALUE = (binary.error, TypeError, ValueError, AttributeError, OverflowError)
_BAD_BYTES = (binary.error, IndexError, UnicodeDecodeError, OverflowError)


class Declared:
    """What `field(...)` says about a field."""

    __slots__ = ("default", "ignorable", "nullable", "tag", "tagged", "versions")

    def __init__(
        self,
        versions: str,
        default: Any,
        nullable: str | None,
        tag: int | None,
        tagged: str | None,
        ignorable: bool,
    ) -> None:
        self.versions = versions
        self.default = default
        self.nullable = nullable
        self.tag = tag
        self.tagged = tagged
        self.ignorable = ignorable


def field(
    versions: str = "0+",
    *,
    default: Any = TYPE_DEFAULT,
    nullable: str | None = None,
    tag: int | None = None,
    tagged: str | None = None,
    ignorable: bool = False,
) -> Any:
    """Say more about a field than its type does.

    Args:
        versions: the versions that have the field. In others it keeps its default.
        default: the value it has if nobody sets it; by default zero, empty, or an instance of its struct.
        nullable: the versions in which it may be None; by default all of `versions` if the annotation ends in `| None`.
        tag: its number in the tagged section (KIP-482). Tagged fields are left out while they have their default.
        tagged: the versions in which it is tagged; by default all of `versions` if there is a tag.
        ignorable: a version without the field silently drops a value. Otherwise a value other than the default is
            an `EncodeError` there.
    """
    return Declared(versions, default, nullable, tag, tagged, ignorable)


_PLAIN = Declared("0+", TYPE_DEFAULT, None, None, None, False)


class FieldSpec:
    """A field as the codecs see it: its type is resolved and its defaults are filled in."""

    __slots__ = ("default", "ignorable", "name", "nullable", "tag", "tagged", "type", "versions")

    def __init__(self, name: str, wire_type: WireType, may_be_none: bool, declared: Declared) -> None:
        self.name = name
        self.type = wire_type
        self.versions = VersionRange.parse(declared.versions)
        self.nullable = NO_VERSIONS
        if may_be_none:
            self.nullable = VersionRange.parse(declared.nullable or declared.versions)
        self.default = wire_type.default if declared.default is TYPE_DEFAULT else declared.default
        self.tag = declared.tag
        self.tagged = NO_VERSIONS
        if declared.tag is not None:
            self.tagged = VersionRange.parse(declared.tagged or declared.versions)
        self.ignorable = declared.ignorable

    def __repr__(self) -> str:
        return f"{self.name}: {self.type} ({self.versions})"


class SchemaType(type):
    """Turns annotations into slots, and remembers them; their meaning is looked up at first use of a codec."""

    _annotations: dict[str, Any]
    _declared: dict[str, Declared]
    _specs: tuple[FieldSpec, ...] | None

    def __new__(mcs, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **keywords: Any) -> SchemaType:
        """Make the class."""
        annotations = {k: v for k, v in namespace.get("__annotations__", {}).items() if not _is_class_variable(v)}
        declared = {}
        for key in annotations:
            if any(hasattr(base, key) for base in bases):
                raise TypeError(f"{name}.{key} is a name that every message has; a field must be called otherwise")
            value = namespace.pop(key, _PLAIN)
            declared[key] = value if isinstance(value, Declared) else Declared("0+", value, None, None, None, False)
        namespace["__slots__"] = tuple(annotations)
        cls = super().__new__(mcs, name, bases, namespace, **keywords)
        cls._annotations = annotations
        cls._declared = declared
        cls._specs = None
        return cls


def _shown(value: object) -> str:
    if isinstance(value, (bytes, bytearray, memoryview)) and len(value) > 32:
        return f"<{len(value)} bytes>"
    return repr(bytes(value) if isinstance(value, memoryview) else value)


def _is_class_variable(annotation: object) -> bool:
    return str(annotation).startswith(("ClassVar", "typing.ClassVar"))


@dataclass_transform(kw_only_default=True)
class Struct(metaclass=SchemaType):
    """A part of messages: an element of a list, or a field with fields.

    Annotations are the fields, in the order they have on the wire. The constructor takes them as keywords; what is left
    out gets its default.
    """

    def __init__(self, **values: Any) -> None:
        # The first instance of a class pays for building the constructor of the others.
        cls = type(self)
        constructor = _build_constructor(cls)
        cls.__init__ = constructor  # type: ignore[method-assign]
        constructor(self, **values)

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        names = type(self)._declared
        if not names:
            return True
        values = operator.attrgetter(*names)
        return bool(values(self) == values(other))

    __hash__ = None  # type: ignore[assignment]  # fields can change

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{n}={_shown(getattr(self, n))}' for n in type(self)._declared)})"


class Message(Struct):
    """Something that has versions and an encoding of its own."""

    versions: ClassVar[VersionRange] = NO_VERSIONS
    flexible_versions: ClassVar[VersionRange] = NO_VERSIONS
    _encoders: ClassVar[dict[int, Any]] = {}
    _decoders: ClassVar[dict[int, Any]] = {}

    def __init_subclass__(cls, versions: str = "", flexible: str = "none") -> None:
        super().__init_subclass__()
        cls._encoders = {}
        cls._decoders = {}
        if versions:
            cls.versions = VersionRange.parse(versions)
        cls.flexible_versions = VersionRange.parse(flexible)

    @classmethod
    def is_flexible(cls, version: int) -> bool:
        """Say whether this version has compact lengths and tagged fields (KIP-482)."""
        return version in cls.flexible_versions

    def encode(self, version: int) -> bytes:
        """The message's bytes; `EncodeError` names the field that this version cannot express."""
        parts: list[bytes | memoryview] = []
        last = self.encode_into(bytearray(), parts, version)
        return b"".join((*parts, last)) if parts else bytes(last)

    def encode_parts(self, version: int) -> list[bytes | memoryview]:
        """The message's bytes in pieces, so that large records fields need not be copied."""
        parts: list[bytes | memoryview] = []
        last = self.encode_into(bytearray(), parts, version)
        parts.append(bytes(last))
        return parts

    def encode_into(self, start: bytearray, parts: list[bytes | memoryview], version: int) -> bytearray:
        """Append the message to `start`, and what is complete to `parts`; returns the piece that is still open."""
        encoder = self._encoders.get(version) or _build_encoder(type(self), version)
        try:
            return encoder(self, start, parts)  # type: ignore[no-any-return]
        except _BAD_VALUE as error:
            from ottla_wire.schema.explain import explain

            raise EncodeError(explain(self, version) or f"{type(self).__name__} version {version}: {error}") from error

    @classmethod
    def decode(cls, buffer: Buffer, version: int, offset: int = 0) -> Self:
        """Read a message that reaches from `offset` to the end of `buffer`.

        `DecodeError` if it does not end there, or is not such a message at all. Records fields are slices of `buffer`.
        """
        message, end = cls.decode_prefix(buffer, version, offset)
        if end != len(buffer):
            raise DecodeError(f"{cls.__name__} version {version} ends {len(buffer) - end} bytes before its buffer")
        return message

    @classmethod
    def decode_prefix(cls, buffer: Buffer, version: int, offset: int = 0) -> tuple[Self, int]:
        """Read a message from `offset` on; returns it and the offset after it."""
        decoder = cls._decoders.get(version) or _build_decoder(cls, version)
        view = buffer if type(buffer) is memoryview else memoryview(buffer)
        length = len(view)
        try:
            message, end = decoder(view, offset, length)
        except _BAD_BYTES as error:
            reason = "a string is not UTF-8" if isinstance(error, UnicodeDecodeError) else "it ends early"
            raise DecodeError(f"{cls.__name__} version {version} cannot be read: {reason}") from error
        if end > length:  # slices do not complain, so a last string may have been cut
            raise DecodeError(f"{cls.__name__} version {version} cannot be read: it ends early")
        return message, end


class Request(Message):
    """What a client, or another broker, asks."""

    api_key: ClassVar[int] = -1
    latest_version_unstable: ClassVar[bool] = False

    def __init_subclass__(
        cls, key: int = -1, versions: str = "", flexible: str = "none", latest_version_unstable: bool = False
    ) -> None:
        super().__init_subclass__(versions=versions, flexible=flexible)
        cls.api_key = key
        cls.latest_version_unstable = latest_version_unstable

    @classmethod
    def header_version(cls, version: int) -> int:
        """The version of the request header before it: 2 has a tagged section, 1 has none."""
        return 2 if version in cls.flexible_versions else 1


class Response(Message):
    """What is answered."""

    api_key: ClassVar[int] = -1

    def __init_subclass__(cls, key: int = -1, versions: str = "", flexible: str = "none") -> None:
        super().__init_subclass__(versions=versions, flexible=flexible)
        cls.api_key = key

    @classmethod
    def header_version(cls, version: int) -> int:
        """The version of the response header before it: 1 has a tagged section, 0 has none."""
        # An ApiVersions answer is read before the client knows what the broker speaks: never a tagged section.
        return 1 if version in cls.flexible_versions and cls.api_key != 18 else 0


class Data(Message):
    """What is kept in logs, or embedded in other messages: it carries its own version number."""

    def encode_with_version(self, version: int) -> bytes:
        """The bytes with the version before them, as int16."""
        parts: list[bytes | memoryview] = []
        last = self.encode_into(bytearray(version.to_bytes(2, "big", signed=True)), parts, version)
        return b"".join((*parts, last)) if parts else bytes(last)

    @classmethod
    def decode_with_version(cls, buffer: Buffer) -> Self:
        """Read the version, and the message in that version; `DecodeError` if it is not a known one."""
        if len(buffer) < 2:
            raise DecodeError(f"{cls.__name__} cannot be read: it ends before its version")
        return cls.decode(buffer, int.from_bytes(buffer[:2], "big", signed=True), 2)


def fields_of(cls: type[Struct]) -> tuple[FieldSpec, ...]:
    """The fields of a class with their types; resolves annotations when it is asked first."""
    if cls._specs is None:
        cls._specs = tuple(_resolve(cls, name, annotation) for name, annotation in cls._annotations.items())
    return cls._specs


def _resolve(cls: type[Struct], name: str, annotation: object) -> FieldSpec:
    declared = cls._declared[name]
    if isinstance(annotation, str):
        annotation = eval(annotation, sys.modules[cls.__module__].__dict__)  # our own source text, not input
    wire_type, may_be_none = _wire_type(annotation)
    if wire_type is None:
        raise TypeError(f"{cls.__name__}.{name}: {annotation} is not a type of the schema language")
    return FieldSpec(name, wire_type, may_be_none, declared)


def _wire_type(annotation: Any) -> tuple[WireType | None, bool]:
    known = _BY_TYPE.get(annotation)
    if known is not None:
        return known, False
    if isinstance(annotation, SchemaType):
        return WireType(annotation.__name__, "struct", struct=annotation, default=TYPE_DEFAULT), False
    if hasattr(annotation, "__metadata__"):  # Annotated
        return annotation.__metadata__[0], False
    arguments: tuple[Any, ...] = getattr(annotation, "__args__", ())
    if type(None) in arguments:
        (inner,) = [argument for argument in arguments if argument is not type(None)]
        return _wire_type(inner)[0], True
    if getattr(annotation, "__origin__", None) is list:
        element, _ = _wire_type(arguments[0])
        if element is not None:
            return WireType(f"[]{element.name}", "array", element=element, default=()), False
    return None, False


def _build_constructor(cls: type[Struct]) -> Any:
    scope: dict[str, Any] = {}
    parameters = []
    lines = []
    for spec in fields_of(cls):
        name = spec.name
        if spec.type.kind in ("array", "struct") and spec.default is not None:  # never one that instances share
            scope[f"make_{name}"] = spec.type.struct or list
            parameters.append(f"{name}=make_{name}")
            lines.append(f"    self.{name} = make_{name}() if {name} is make_{name} else {name}")
        else:
            scope[f"default_{name}"] = spec.default
            parameters.append(f"{name}=default_{name}")
            lines.append(f"    self.{name} = {name}")
    star = "*, " if parameters else ""
    source = f"def __init__(self, {star}{', '.join(parameters)}):\n" + ("\n".join(lines) or "    pass")
    exec(compile(source, f"<{cls.__name__}.__init__>", "exec"), scope)
    constructor = scope["__init__"]
    constructor.__qualname__ = f"{cls.__name__}.__init__"
    return constructor


def _build_encoder(cls: type[Message], version: int) -> Any:
    from ottla_wire.schema.encoder import build_encoder

    if version not in cls.versions:
        raise EncodeError(f"{cls.__name__} has versions {cls.versions}, not {version}")
    encoder = cls._encoders[version] = build_encoder(cls, version)
    return encoder


def _build_decoder(cls: type[Message], version: int) -> Any:
    from ottla_wire.schema.decoder import build_decoder

    if version not in cls.versions:
        raise DecodeError(f"{cls.__name__} has versions {cls.versions}, not {version}")
    decoder = cls._decoders[version] = build_decoder(cls, version)
    return decoder
