"""The schema language: one class per message for all of its versions; the class body is the schema.

    class PartitionProduceData(Struct):
        index: i32 = 0
        records: RecordData | None = field()

    class ProduceRequest(Request, key=0, versions="3-13", flexible="9+"):
        transactional_id: str | None = field("3+", default=None)
        acks: i16 = 0
        timeout_ms: i32 = 0
        topic_data: list[TopicProduceData] = field()

A field's annotation is its type: `bool`, `str`, `bytes`, `i8` to `i64`, `u16`, `u32`, `f64`, `Uuid`, `RecordData`,
another `Struct`, or a `list` of one of these; `| None` makes it nullable. `field(...)` says the rest (versions,
default, tag); a plain value is the default of a field that all versions have. To type checkers a class is a
keyword-only dataclass: an annotation without a value is an argument they insist on (at run time it has its type's
default like any other).

`Request`, `Response` and `Data` can be encoded and decoded in each version. The codec of a class in a version is
generated as straight-line Python and compiled when it is first used; importing a schema costs next to nothing.
"""

from ottla_wire.schema.model import (
    Data,
    FieldSpec,
    Message,
    Request,
    Response,
    Struct,
    field,
    fields_of,
)
from ottla_wire.schema.types import (
    PRIVATE_TAG,
    Buffer,
    RecordData,
    Uuid,
    VersionRange,
    WireType,
    f64,
    i8,
    i16,
    i32,
    i64,
    u16,
    u32,
)

__all__ = [
    "Data", "Message", "Request", "Response", "Struct", "field",
    "PRIVATE_TAG", "Buffer", "RecordData", "Uuid", "VersionRange", "f64", "i8", "i16", "i32", "i64", "u16", "u32",
    "FieldSpec", "WireType", "fields_of",
]  # fmt: skip
