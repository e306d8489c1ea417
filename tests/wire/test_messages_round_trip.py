"""Random instances of every message in every version, there and back; and bytes that are no messages."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ottla_wire.errors import DecodeError
from ottla_wire.messages import request_class, response_class
from ottla_wire.schema import Data, Message
from support.messages import class_versions, instances, message_classes

every_version = pytest.mark.parametrize(
    ("cls", "version"), class_versions(), ids=lambda value: getattr(value, "__name__", value)
)
every_class = pytest.mark.parametrize("cls", message_classes(), ids=lambda cls: cls.__name__)


@every_version
@settings(max_examples=5)
@given(data=st.data())
def test_what_is_encoded_is_decoded(cls: type[Message], version: int, data: st.DataObject) -> None:
    message = data.draw(instances(cls, version))
    encoded = message.encode(version)
    assert cls.decode(encoded, version) == message
    assert b"".join(message.encode_parts(version)) == encoded


@every_version
def test_a_message_with_nothing_set_goes_there_and_back(cls: type[Message], version: int) -> None:
    assert cls.decode(cls().encode(version), version) == cls()


@every_class
@settings(max_examples=10)
@given(data=st.data())
def test_a_message_that_is_cut_off_is_never_read(cls: type[Message], data: st.DataObject) -> None:
    version = data.draw(st.sampled_from(list(cls.versions)))
    encoded = data.draw(instances(cls, version)).encode(version)
    for length in range(len(encoded)) if len(encoded) < 200 else range(0, len(encoded), 37):
        with pytest.raises(DecodeError):
            cls.decode(encoded[:length], version)


@every_class
@settings(max_examples=10)
@given(data=st.data())
def test_bytes_after_a_message_are_reported(cls: type[Message], data: st.DataObject) -> None:
    version = data.draw(st.sampled_from(list(cls.versions)))
    message = data.draw(instances(cls, version))
    encoded = message.encode(version)
    with pytest.raises(DecodeError, match="3 bytes before"):
        cls.decode(encoded + b"\0\0\0", version)
    assert cls.decode_prefix(b"head" + encoded + b"\0\0\0", version, 4) == (message, 4 + len(encoded))


@every_class
@settings(max_examples=25)
@given(data=st.data())
def test_damaged_bytes_are_a_decode_error_or_another_message(cls: type[Message], data: st.DataObject) -> None:
    version = data.draw(st.sampled_from(list(cls.versions)))
    encoded = bytearray(data.draw(instances(cls, version)).encode(version))
    for _ in range(data.draw(st.integers(1, 4))):
        if encoded:
            encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.sampled_from([0, 1, 127, 128, 255]))
    decode_or_fail(cls, encoded, version)


@every_class
@settings(max_examples=10)
@given(data=st.data())
def test_arbitrary_bytes_are_a_decode_error_or_a_message(cls: type[Message], data: st.DataObject) -> None:
    version = data.draw(st.sampled_from(list(cls.versions)))
    decode_or_fail(cls, data.draw(st.binary(max_size=64)), version)
    decode_or_fail(cls, b"\xff" * 40, version)
    decode_or_fail(cls, b"\x7f" * 40, version)


def decode_or_fail(cls: type[Message], encoded: Any, version: int) -> None:
    try:
        message = cls.decode(encoded, version)
    except DecodeError:
        return
    assert cls.decode(message.encode(version), version) == message


@pytest.mark.parametrize(
    "cls", [cls for cls in message_classes() if issubclass(cls, Data)], ids=lambda cls: cls.__name__
)
@settings(max_examples=10)
@given(data=st.data())
def test_data_carries_its_version(cls: type[Data], data: st.DataObject) -> None:
    version = data.draw(st.sampled_from(list(cls.versions)))
    message = data.draw(instances(cls, version))
    encoded = message.encode_with_version(version)
    assert encoded == version.to_bytes(2, "big") + message.encode(version)
    assert cls.decode_with_version(encoded) == message


def test_request_and_response_of_a_key_belong_together() -> None:
    for cls in message_classes():
        if not issubclass(cls, Data):
            key = cls.api_key
            assert cls in (request_class(key), response_class(key))
            assert request_class(key).versions == response_class(key).versions
