"""From a record's bytes to what a hint asks for, and what is said when they do not fit."""

from __future__ import annotations

import types
from collections.abc import Callable
from dataclasses import dataclass
from inspect import Parameter
from typing import Any, Union, get_args, get_origin

from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError, PydanticUndefinedAnnotation

from ottla.error_handling import BatchListenerFailed
from ottla.errors import ConfigError, ConversionError

UNFIT = (ValidationError, ValueError, TypeError)
"""What a converter raises where the data does not fit."""


@dataclass(frozen=True, slots=True)
class Converter:
    """How one hint is met."""

    convert: Callable[[Any], Any]
    """From anything: bytes, None, or what a deserializer made of them."""
    from_json: Callable[[bytes], Any] | None = None
    """From bytes, where they are JSON for pydantic: its own validator, with no Python around it."""


class UnfitRecord(BatchListenerFailed):
    """The record at `index` cannot be given to its batch listener, which was not called therefore."""


def converter_for(hint: Any, name: str) -> Converter | None:
    """What makes the hinted type; None where nothing is to do."""
    if hint in (Parameter.empty, Any, object):
        return None
    optional = allows_none(hint)
    inner = without_none(hint)
    if inner is bytes:
        return Converter(_unchanged if optional else _refuse_none)
    if inner is str:
        return Converter(_text_or_none if optional else _text)
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(hint)
    except (PydanticSchemaGenerationError, PydanticUndefinedAnnotation) as error:
        raise ConfigError(f"{name}: pydantic cannot make {hint!r} from JSON: {error}") from error
    from_json, from_python = adapter.validator.validate_json, adapter.validator.validate_python

    def convert(data: Any) -> Any:
        if type(data) is bytes:
            return from_json(data)
        if data is None and not optional:
            raise ValueError("the record is a tombstone (its value is None); hint `T | None` to take those")
        return from_python(data)

    return Converter(convert, from_json)


def header_converter_for(hint: Any, name: str) -> Converter | None:
    """From a header's bytes to the hinted type: text as UTF-8, numbers from text, models from JSON."""
    inner = without_none(hint)
    if inner in (int, float, bool):
        adapter: TypeAdapter[Any] = TypeAdapter(hint)
        return Converter(lambda data: adapter.validate_python(None if data is None else bytes(data).decode()))
    return converter_for(hint, name)


def converted(converter: Converter | None, record: Any, data: Any, what: str, hint: Any) -> Any:
    """The data as the hinted type.

    Raises:
        ConversionError: it does not fit.
    """
    if converter is None:
        return data
    try:
        return converter.convert(data)
    except UNFIT as error:
        raise conversion_error(record, what, hint, error) from error


def conversion_error(record: Any, what: str, hint: Any, error: Exception) -> ConversionError:
    """The error that names the record's place and the fault, and never the content: no log should have that."""
    wanted = "" if hint is None else f" does not fit {getattr(hint, '__name__', hint)}"
    if isinstance(error, ValidationError):
        faults = error.errors(include_url=False, include_input=False, include_context=False)
        detail = "; ".join(
            f"{'.'.join(str(part) for part in fault['loc']) or 'value'}: {fault['msg']}" for fault in faults
        )
    else:
        detail = str(error)
    return ConversionError(f"{place_of(record)}: the {what}{wanted}: {detail}")


def place_of(record: Any) -> str:
    """How logs and errors name a record."""
    return f"{record.topic}-{record.partition}@{record.offset}"


def allows_none(hint: Any) -> bool:
    """Whether None fits."""
    return hint is None or hint is type(None) or (_is_union(hint) and type(None) in get_args(hint))


def without_none(hint: Any) -> Any:
    """`T` of `T | None`; any other hint as it is."""
    if not _is_union(hint):
        return hint
    rest = [argument for argument in get_args(hint) if argument is not type(None)]
    return rest[0] if len(rest) == 1 else hint


def _is_union(hint: Any) -> bool:
    return get_origin(hint) in (Union, types.UnionType)


def _unchanged(data: Any) -> Any:
    return data


def _refuse_none(data: Any) -> Any:
    if data is None:
        raise ValueError("the record is a tombstone (its value is None); hint `bytes | None` to take those")
    return data


def _text(data: Any) -> Any:
    if data is None:
        raise ValueError("the record is a tombstone (its value is None); hint `str | None` to take those")
    return _text_or_none(data)


def _text_or_none(data: Any) -> Any:
    return data.decode() if isinstance(data, bytes) else data
