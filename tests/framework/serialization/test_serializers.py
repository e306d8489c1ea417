from __future__ import annotations

import dataclasses
import datetime
import enum
import json
import uuid
from typing import Any

import pytest
from pydantic import BaseModel, Field, model_serializer

from ottla.errors import ConfigError, ConversionError, SerializationError
from ottla.serialization import (
    BytesDeserializer,
    BytesSerializer,
    JsonDeserializer,
    JsonSerializer,
    PydanticDeserializer,
    PydanticSerializer,
    StringDeserializer,
    StringSerializer,
    as_deserializer,
    as_serializer,
    serialize_headers,
    serialize_key,
    serialize_value,
)


class Order(BaseModel):
    id: int
    amount: float = Field(serialization_alias="total")


class Deferred(Order, defer_build=True):
    @model_serializer(mode="wrap")
    def in_capitals(self, handler: Any) -> dict[str, Any]:
        return {name.upper(): value for name, value in handler(self).items()}


class Whispering(Order):
    def model_dump_json(self, **settings: Any) -> str:
        return super().model_dump_json(**settings, exclude={"amount"})


class Colour(enum.StrEnum):
    GREEN = "grün"


@dataclasses.dataclass
class Invoice:
    id: int
    day: datetime.date


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        (b"raw", b"raw"),
        (bytearray(b"raw"), b"raw"),
        (memoryview(b"raw"), b"raw"),
        ("grüße", "grüße".encode()),
        (Order(id=1, amount=2.5), b'{"id":1,"total":2.5}'),
        (Deferred(id=1, amount=2.5), b'{"ID":1,"TOTAL":2.5}'),
        (Whispering(id=1, amount=2.5), b'{"id":1}'),
        (Colour.GREEN, "grün".encode()),
        (Invoice(1, datetime.date(2026, 11, 24)), b'{"id":1,"day":"2026-11-24"}'),
        ({"a": [1, None, "x"]}, b'{"a":[1,null,"x"]}'),
        ([Order(id=1, amount=2.5)], b'[{"id":1,"total":2.5}]'),
        (5, b"5"),
        (True, b"true"),
    ],
)
def test_values_are_encoded_by_their_type(value: Any, encoded: bytes) -> None:
    assert serialize_value("t", [], value) == encoded
    assert type(serialize_value("t", [], value)) is bytes


def test_a_model_is_encoded_as_its_own_method_does_it() -> None:
    order = Order(id=7, amount=0.1)
    assert serialize_value("t", [], order) == order.model_dump_json(by_alias=True).encode()


def test_what_json_does_not_hold_is_refused_with_its_type() -> None:
    with pytest.raises(SerializationError, match="object has no JSON form"):
        serialize_value("t", [], object())


@pytest.mark.parametrize("key", [5, 1.5, True])
def test_a_number_as_key_needs_a_serializer_that_is_named(key: Any) -> None:
    with pytest.raises(SerializationError, match="key_serializer"):
        serialize_key("t", [], key)


def test_other_keys_are_encoded_as_values_are() -> None:
    assert serialize_key("t", [], "k") == b"k"
    assert serialize_key("t", [], {"id": 1}) == b'{"id":1}'
    assert json.loads(serialize_key("t", [], uuid.UUID(int=5))) == str(uuid.UUID(int=5))


def test_headers_may_be_pairs_or_a_mapping_and_text_is_utf8() -> None:
    assert serialize_headers({"a": "ü", "b": None}) == [("a", "ü".encode()), ("b", None)]
    assert serialize_headers([("a", b"1"), ("a", bytearray(b"2"))]) == [("a", b"1"), ("a", b"2")]


@pytest.mark.parametrize("headers", [[("a", 5)], [(5, b"a")], ["abc"], [5], [("\ud800", b"")], {"a": "\ud800"}])
def test_what_is_no_header_is_refused(headers: Any) -> None:
    with pytest.raises(SerializationError):
        serialize_headers(headers)


def test_the_serializers_do_what_they_are_named_for() -> None:
    assert BytesSerializer()("t", [], bytearray(b"x")) == b"x"
    assert StringSerializer("utf-16-le")("t", [], "a") == b"a\0"
    assert JsonSerializer()("t", [], "a") == b'"a"'
    assert PydanticSerializer(Order)("t", [], {"id": 1, "amount": 2}) == b'{"id":1,"total":2.0}'
    for serializer in (BytesSerializer(), StringSerializer(), JsonSerializer(), PydanticSerializer(Order)):
        assert serializer("t", [], None) is None


@pytest.mark.parametrize(
    ("serializer", "data"),
    [(BytesSerializer(), "x"), (StringSerializer(), b"x"), (PydanticSerializer(Order), {"id": "no"})],
)
def test_a_serializer_refuses_what_is_not_its_own(serializer: Any, data: Any) -> None:
    with pytest.raises(SerializationError):
        serializer("t", [], data)


def test_a_type_header_is_sent_only_if_asked_for() -> None:
    headers: list[tuple[str, bytes | None]] = []
    PydanticSerializer(Order)("t", headers, Order(id=1, amount=2))
    assert headers == []
    PydanticSerializer(Order, type_header="type")("t", headers, Order(id=1, amount=2))
    assert headers == [("type", b"Order")]


def test_the_deserializers_read_what_the_serializers_wrote() -> None:
    assert BytesDeserializer()("t", [], b"x") == b"x"
    assert StringDeserializer()("t", [], "ü".encode()) == "ü"
    assert JsonDeserializer()("t", [], b'{"a":1}') == {"a": 1}
    assert PydanticDeserializer(Invoice)("t", [], b'{"id":1,"day":"2026-11-24"}') == Invoice(
        1, datetime.date(2026, 11, 24)
    )
    for deserializer in (BytesDeserializer(), StringDeserializer(), JsonDeserializer(), PydanticDeserializer(Order)):
        assert deserializer("t", [], None) is None


@pytest.mark.parametrize(
    ("deserializer", "data"),
    [(StringDeserializer(), b"\xff"), (JsonDeserializer(), b"{"), (PydanticDeserializer(Order), b'{"id":1}')],
)
def test_what_cannot_be_read_is_a_conversion_error(deserializer: Any, data: bytes) -> None:
    with pytest.raises(ConversionError):
        deserializer("t", [], data)


class Shouting:
    def serialize(self, topic: str, headers: Any, data: Any) -> bytes:
        return str(data).upper().encode()

    def deserialize(self, topic: str, headers: Any, data: bytes) -> str:
        return data.decode().lower()


def test_objects_with_a_method_will_do_as_functions_will() -> None:
    as_bytes = as_serializer(Shouting(), "value_serializer")
    as_text = as_deserializer(Shouting(), "value_deserializer")
    assert as_bytes is not None
    assert as_text is not None
    assert as_bytes("t", [], "a") == b"A"
    assert as_text("t", [], b"A") == "a"
    assert as_serializer(None, "x") is None
    own = as_serializer(lambda topic, headers, data: b"own", "x")
    assert own is not None
    assert own("t", [], 1) == b"own"


@pytest.mark.parametrize("given", [5, "json", JsonSerializer, Shouting])
def test_what_is_no_serializer_is_a_config_error_that_names_the_setting(given: Any) -> None:
    with pytest.raises(ConfigError, match="value_serializer"):
        as_serializer(given, "value_serializer")
