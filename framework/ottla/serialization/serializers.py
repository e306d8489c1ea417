"""From Python values to bytes: `serialize_value` and `serialize_key` choose by type, the classes do one thing each."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from ottla.errors import ConfigError, SerializationError

Headers = list[tuple[str, bytes | None]]
"""A record's headers as they are sent. A serializer may add to the list it is given."""

Serializer = Callable[[str, Headers, Any], bytes | None]
"""`(topic, headers, data) -> bytes`, or None for no value at all."""

_BYTES_LIKE: Final = (bytes, bytearray, memoryview)
_NUMBERS: Final = (int, float)

HeadersGiven = Mapping[str, bytes | str | None] | Iterable[tuple[str, bytes | str | None]]
"""Headers as a sender may give them."""


def serialize_value(topic: str, headers: Headers, value: Any) -> bytes:
    """The default for values: bytes as they are, text as UTF-8, pydantic models, dataclasses and the rest as JSON.

    Raises:
        SerializationError: the value is nothing that JSON holds.
    """
    kind: Any = type(value)
    if kind is bytes:
        return value  # type: ignore[no-any-return]
    return _form_of(kind)(value)


@functools.lru_cache(maxsize=1024)
def _form_of(kind: type) -> Callable[[Any], bytes]:
    """What makes bytes of the values of a type; found out once for each type."""
    if issubclass(kind, _BYTES_LIKE):
        return bytes
    if issubclass(kind, str):
        return str.encode
    dump = getattr(kind, "model_dump_json", None)
    if dump is None:
        return _json
    from pydantic import BaseModel

    if dump is BaseModel.model_dump_json:
        return _model_json
    return lambda model: dump(model, by_alias=True).encode()


def _model_json(model: Any) -> bytes:
    """As `model_dump_json` does it, but bytes, which need no way over text."""
    return model.__pydantic_serializer__.to_json(model, by_alias=True)  # type: ignore[no-any-return]


def serialize_key(topic: str, headers: Headers, key: Any) -> bytes:
    """The default for keys: as for values, but a number needs a serializer that is named.

    5 as a key could be the text, four bytes or eight; other programs that write the same topic have chosen already,
    and a different choice sends the same key to another partition.

    Raises:
        SerializationError: the key is a number, or nothing that JSON holds.
    """
    if type(key) is str:
        return key.encode()  # what most keys are
    if isinstance(key, _NUMBERS):
        raise SerializationError(
            f"a key of type {type(key).__name__} has no bytes of its own: send str(key), or name a key_serializer"
        )
    return serialize_value(topic, headers, key)


def serialize_headers(headers: HeadersGiven) -> Headers:
    """Headers as a list of (name, bytes), text encoded as UTF-8.

    Raises:
        SerializationError: a name is not text, or a value is neither bytes, text nor None.
    """
    pairs = headers.items() if type(headers) is dict or isinstance(headers, Mapping) else headers
    return [_header(pair) for pair in pairs]


def _header(pair: Any) -> tuple[str, bytes | None]:
    try:
        name, value = pair
    except (TypeError, ValueError):
        raise SerializationError(f"a header is a pair (name, value), got {pair!r}") from None
    if not isinstance(name, str):
        raise SerializationError(f"a header's name is text, got {name!r}")
    try:
        if not name.isascii():
            name.encode()
        if isinstance(value, str):
            return name, value.encode()
    except UnicodeEncodeError as error:
        raise SerializationError(f"the header {name!r} cannot be encoded: {error}") from error
    if value is None or type(value) is bytes:
        return name, value
    if not isinstance(value, _BYTES_LIKE):
        raise SerializationError(f"the header {name!r} must be bytes, str or None, got {type(value).__name__}")
    return name, bytes(value)


class BytesSerializer:
    """Bytes as they are, and nothing else."""

    def __call__(self, topic: str, headers: Headers, data: Any) -> bytes | None:
        """Return the bytes; `SerializationError` for anything else."""
        if data is None or type(data) is bytes:
            return data
        if isinstance(data, _BYTES_LIKE):
            return bytes(data)
        raise SerializationError(f"bytes are expected, got {type(data).__name__}")


class StringSerializer:
    """Text in one encoding."""

    def __init__(self, encoding: str = "utf-8") -> None:
        self.encoding = encoding

    def __call__(self, topic: str, headers: Headers, data: Any) -> bytes | None:
        """Encode the text; `SerializationError` for anything else."""
        if data is None:
            return None
        if not isinstance(data, str):
            raise SerializationError(f"text is expected, got {type(data).__name__}")
        return data.encode(self.encoding)


class JsonSerializer:
    """Everything as JSON: what JSON holds, dataclasses, pydantic models, dates, UUIDs. Text gets its quotes, too."""

    def __call__(self, topic: str, headers: Headers, data: Any) -> bytes | None:
        """Encode as JSON; `SerializationError` for what has no JSON form."""
        return None if data is None else _json(data)


class PydanticSerializer:
    """Instances of one pydantic model, or of anything that pydantic can describe (`list[Order]`), as JSON.

    Args:
        model: the type. What is sent is checked against it, so that a wrong object is found by its sender.
        type_header: send the type's name in this header; by default no header tells the type.
    """

    def __init__(self, model: Any, *, type_header: str | None = None) -> None:
        from pydantic import TypeAdapter

        self._adapter: Any = TypeAdapter(model)
        self._type_header = type_header
        self._type_name = getattr(model, "__name__", str(model)).encode()

    def __call__(self, topic: str, headers: Headers, data: Any) -> bytes | None:
        """Check and encode; `SerializationError` if the data does not fit the type."""
        if data is None:
            return None
        try:
            encoded: bytes = self._adapter.dump_json(self._adapter.validate_python(data), by_alias=True)
        except ValueError as error:
            raise SerializationError(f"the data is no {self._type_name.decode()}: {error}") from error
        if self._type_header is not None:
            headers.append((self._type_header, self._type_name))
        return encoded


def as_serializer(given: Any, setting: str) -> Serializer | None:
    """A serializer setting as a function; None stays None.

    Raises:
        ConfigError: it is neither callable nor has a `serialize` method.
    """
    if given is None:
        return None
    method = getattr(given, "serialize", None)
    if method is not None and not isinstance(given, type):
        return method  # type: ignore[no-any-return]
    if isinstance(given, type) or not callable(given):
        hint = f"; make an instance: {given.__name__}()" if isinstance(given, type) else ""
        raise ConfigError(f"{setting} must be a callable (topic, headers, data) -> bytes, got {given!r}{hint}")
    return given  # type: ignore[no-any-return]


@functools.cache
def _to_json() -> Callable[..., bytes]:
    """pydantic's, imported at the first use only."""
    from pydantic_core import to_json

    return to_json


def _json(value: Any) -> bytes:
    to_json = _to_json()
    try:
        return to_json(value, by_alias=True, inf_nan_mode="null")
    except (ValueError, RecursionError) as error:
        kind = "dataclass " if dataclasses.is_dataclass(value) else ""
        raise SerializationError(
            f"{kind}{type(value).__name__} has no JSON form ({error}): name a serializer for it"
        ) from error
