"""Serializers and deserializers: how keys and values become bytes, and bytes become keys and values.

Both are callables `(topic, headers, data)`. Any function will do, and so will an object with a `serialize` or
`deserialize` method of that form. None is never passed on: no value is a tombstone, and no key is no key.
"""

from __future__ import annotations

from ottla.serialization.deserializers import (
    BytesDeserializer,
    Deserializer,
    JsonDeserializer,
    PydanticDeserializer,
    StringDeserializer,
    as_deserializer,
)
from ottla.serialization.serializers import (
    BytesSerializer,
    Headers,
    JsonSerializer,
    PydanticSerializer,
    Serializer,
    StringSerializer,
    as_serializer,
    serialize_headers,
    serialize_key,
    serialize_value,
)

__all__ = [
    "BytesDeserializer",
    "BytesSerializer",
    "Deserializer",
    "Headers",
    "JsonDeserializer",
    "JsonSerializer",
    "PydanticDeserializer",
    "PydanticSerializer",
    "Serializer",
    "StringDeserializer",
    "StringSerializer",
    "as_deserializer",
    "as_serializer",
    "serialize_headers",
    "serialize_key",
    "serialize_value",
]
