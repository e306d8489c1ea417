"""From bytes to Python values. A failure is raised as it is: the consumer adds which record it concerns."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from ottla.errors import ConfigError, ConversionError

HeadersReceived = Sequence[tuple[str, bytes | None]]
"""A record's headers as they were received."""

Deserializer = Callable[[str, HeadersReceived, bytes | None], Any]
"""`(topic, headers, data) -> value`; data is None for a record without value (or key)."""


class BytesDeserializer:
    """Bytes as they are."""

    def __call__(self, topic: str, headers: HeadersReceived, data: bytes | None) -> bytes | None:
        """Return the bytes."""
        return data


class StringDeserializer:
    """Text in one encoding."""

    def __init__(self, encoding: str = "utf-8") -> None:
        self.encoding = encoding

    def __call__(self, topic: str, headers: HeadersReceived, data: bytes | None) -> str | None:
        """Decode the text; `ConversionError` if it is none in this encoding."""
        if data is None:
            return None
        try:
            return str(data, self.encoding)
        except UnicodeDecodeError as error:
            raise ConversionError(f"this is not {self.encoding} text: {error}") from error


class JsonDeserializer:
    """What JSON holds, as Python's dicts, lists, texts and numbers."""

    def __call__(self, topic: str, headers: HeadersReceived, data: bytes | None) -> Any:
        """Decode; `ConversionError` if it is not JSON."""
        if data is None:
            return None
        try:
            return json.loads(data)
        except ValueError as error:
            raise ConversionError(f"this is not JSON: {error}") from error


class PydanticDeserializer:
    """Instances of one pydantic model, or of anything that pydantic can describe (`list[Order]`), from JSON."""

    def __init__(self, model: Any) -> None:
        from pydantic import TypeAdapter

        self._adapter: Any = TypeAdapter(model)
        self._type_name = getattr(model, "__name__", str(model))

    def __call__(self, topic: str, headers: HeadersReceived, data: bytes | None) -> Any:
        """Decode and check; `ConversionError` if the data does not fit the type."""
        if data is None:
            return None
        try:
            return self._adapter.validate_json(data)
        except ValueError as error:
            raise ConversionError(f"this is no {self._type_name}: {error}") from error


def as_deserializer(given: Any, setting: str) -> Deserializer | None:
    """A deserializer setting as a function; None stays None.

    Raises:
        ConfigError: it is neither callable nor has a `deserialize` method.
    """
    if given is None:
        return None
    method = getattr(given, "deserialize", None)
    if method is not None and not isinstance(given, type):
        return method  # type: ignore[no-any-return]
    if isinstance(given, type) or not callable(given):
        hint = f"; make an instance: {given.__name__}()" if isinstance(given, type) else ""
        raise ConfigError(f"{setting} must be a callable (topic, headers, data) -> value, got {given!r}{hint}")
    return given  # type: ignore[no-any-return]
