"""From a function's type hints to the arguments of each delivery. Hints are resolved once, when the container starts.

Every parameter becomes one extractor: a function of (record, delivery) that gives the argument. A listener without
dependencies costs one list of extractor calls per record, and nothing else.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError, PydanticUndefinedAnnotation

from ottla.client import AsyncKafkaConsumer, KafkaConsumer
from ottla.errors import ConfigError, ConversionError
from ottla.listeners.ack import Acknowledgment
from ottla.listeners.message import Depends, Header, Key, Message, Payload, RecordMetadata
from ottla_wire.records import ConsumerRecord

Converter = Callable[[Any], Any]
Deserializer = Callable[[str, Any, bytes | None], Any]


@dataclass(slots=True)
class Delivery:
    """What surrounds the record, or the batch, that is being delivered."""

    consumer: Any
    acknowledgment: Acknowledgment | None = None


Extractor = Callable[[Any, Delivery], Any]


@dataclass(frozen=True, slots=True)
class BoundListener:
    """A function whose parameters are understood: `call(record or list of records, delivery)`."""

    function: Callable[..., Any]
    extractors: tuple[Extractor, ...]
    awaited: tuple[int, ...]
    """The positions whose extractor gives an awaitable (async dependencies)."""
    is_async: bool
    is_batch: bool
    takes_acknowledgment: bool

    def call(self, record: Any, delivery: Delivery) -> Any:
        """Call the function; for an async one this gives its coroutine."""
        if self.awaited:
            return self._call_with_awaited(record, delivery)
        return self.function(*[extract(record, delivery) for extract in self.extractors])

    async def _call_with_awaited(self, record: Any, delivery: Delivery) -> Any:
        arguments = [extract(record, delivery) for extract in self.extractors]
        for position in self.awaited:
            arguments[position] = await arguments[position]
        return await self.function(*arguments)


def bind(
    function: Callable[..., Any],
    *,
    batch: bool | None = None,
    namespace: Mapping[str, Any] | None = None,
    key_deserializer: Deserializer | None = None,
    value_deserializer: Deserializer | None = None,
) -> BoundListener:
    """Resolve the hints of a listener; `namespace` has names they use beyond the module's.

    Raises:
        ConfigError: a parameter cannot be bound; the message names the function and the parameter.
    """
    return _Binder(function, namespace, key_deserializer, value_deserializer).bind(batch)


class _Binder:
    def __init__(
        self,
        function: Callable[..., Any],
        namespace: Mapping[str, Any] | None,
        key_deserializer: Deserializer | None,
        value_deserializer: Deserializer | None,
    ) -> None:
        self.function = function
        self.namespace = namespace
        self.name = f"{function.__module__}.{getattr(function, '__qualname__', function)}"
        self.key_deserializer = key_deserializer
        self.value_deserializer = value_deserializer
        self.is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
            getattr(function, "__call__", None)  # noqa: B004 - asks for the method, not whether it can be called
        )

    def bind(self, batch: bool | None) -> BoundListener:
        parameters = self._parameters(self.function)
        payload = self._payload_of(parameters)
        is_batch = batch if batch is not None else any(_is_list(hint) for _, hint in parameters)
        extractors: list[Extractor] = []
        awaited = []
        for position, (parameter, hint) in enumerate(parameters):
            if is_batch:
                extractors.append(self._batch_extractor(parameter, hint))
            else:
                extractors.append(self._extractor(parameter, hint, payload))
            dependency = _marker(hint, Depends)
            if dependency is not None and _is_async(dependency.function):
                awaited.append(position)
        acknowledgment = any(_bare(hint) is Acknowledgment for _, hint in parameters)
        return BoundListener(self.function, tuple(extractors), tuple(awaited), self.is_async, is_batch, acknowledgment)

    def _parameters(self, function: Callable[..., Any]) -> list[tuple[inspect.Parameter, Any]]:
        try:
            hints = typing.get_type_hints(function, localns=self._names(function), include_extras=True)
        except (NameError, TypeError) as error:
            raise ConfigError(f"{self.name}: its type hints cannot be resolved: {error}") from error
        found = []
        for parameter in inspect.signature(function).parameters.values():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.KEYWORD_ONLY):
                if parameter.kind is parameter.KEYWORD_ONLY and parameter.default is parameter.empty:
                    raise ConfigError(
                        f"{self.name}: {parameter.name} is keyword-only; listeners are called by position"
                    )
                continue
            found.append((parameter, hints.get(parameter.name, parameter.empty)))
        if not found:
            raise ConfigError(f"{self.name} takes no argument; a listener takes at least its payload")
        return found

    def _names(self, function: Callable[..., Any]) -> dict[str, Any] | None:
        if self.namespace is None:
            return None
        # A name of the module wins only where the scope has none, as it would for the function's own code.
        return {**getattr(inspect.unwrap(function), "__globals__", {}), **self.namespace}

    def _payload_of(self, parameters: Sequence[tuple[inspect.Parameter, Any]]) -> str | None:
        marked = [p.name for p, hint in parameters if _has_marker(hint, Payload)]
        plain = [p.name for p, hint in parameters if not _is_special(hint)]
        candidates = marked or plain
        if len(candidates) > 1:
            raise ConfigError(
                f"{self.name}: {' and '.join(candidates)} could each be the payload; mark the others with "
                'Annotated[T, Header("name")], Annotated[T, Key] or Annotated[T, Depends(f)]'
            )
        return candidates[0] if candidates else None

    def _extractor(self, parameter: inspect.Parameter, hint: Any, payload: str | None) -> Extractor:
        bare = _bare(hint)
        by_type = self._by_type(bare)
        if by_type is not None:
            return by_type
        header = _marker(hint, Header)
        if header is not None:
            return self._header_extractor(header.name, parameter, hint)
        dependency = _marker(hint, Depends)
        if dependency is not None:
            return self._dependency_extractor(parameter, dependency)
        if _has_marker(hint, Key):
            return self._converting("key", parameter, bare, self.key_deserializer)
        if parameter.name == payload:
            return self._converting("value", parameter, bare, self.value_deserializer)
        raise ConfigError(f"{self.name}: nothing is known to bind {parameter.name} to")

    def _by_type(self, hint: Any) -> Extractor | None:
        if hint is ConsumerRecord:
            return self._whole_record()
        if hint is RecordMetadata:
            return lambda record, _: RecordMetadata.of(record)
        if hint is Acknowledgment:
            return lambda _, delivery: delivery.acknowledgment
        if hint in (KafkaConsumer, AsyncKafkaConsumer):
            return lambda _, delivery: delivery.consumer
        if hint is Message or get_origin(hint) is Message:
            return self._message_extractor(hint)
        return None

    def _whole_record(self) -> Extractor:
        if self.value_deserializer is None and self.key_deserializer is None:
            return lambda record, _: record
        key = self._reader("key", self.key_deserializer)
        value = self._reader("value", self.value_deserializer)

        def whole(record: Any, _: Delivery) -> Any:
            return ConsumerRecord(
                record.topic,
                record.partition,
                record.offset,
                record.timestamp_ms,
                record.timestamp_type,
                key(record),
                value(record),
                record.headers,
                record.leader_epoch,
                record.delivery_attempt,
            )

        return whole

    def _message_extractor(self, hint: Any) -> Extractor:
        inner = get_args(hint)[0] if get_args(hint) else inspect.Parameter.empty
        convert = converter_for(inner, self.name)
        key = self._reader("key", self.key_deserializer)
        value = self._reader("value", self.value_deserializer)

        def message(record: Any, _: Delivery) -> Message[Any]:
            payload = _converted(convert, record, value(record), "payload", inner)
            return Message(payload, key(record), dict(record.headers or ()), RecordMetadata.of(record))

        return message

    def _converting(
        self, which: str, parameter: inspect.Parameter, hint: Any, deserializer: Deserializer | None
    ) -> Extractor:
        convert = converter_for(hint, f"{self.name}: {parameter.name}")
        what = "payload" if which == "value" else "key"
        read = self._reader(which, deserializer)
        if deserializer is not None or convert is None:
            return lambda record, _: _converted(convert, record, read(record), what, hint)
        if which == "key":
            return lambda record, _: _converted(convert, record, record.key, what, hint)

        def payload(record: Any, _: Delivery) -> Any:
            # The hot path of nearly every listener: one call of the converter, nothing around it.
            try:
                return convert(record.value)
            except (ValidationError, ValueError, TypeError) as error:
                raise _conversion_error(record, what, hint, error) from error

        return payload

    def _reader(self, which: str, deserializer: Deserializer | None) -> Callable[[Any], Any]:
        if deserializer is None:
            return (lambda record: record.value) if which == "value" else (lambda record: record.key)

        def read(record: Any) -> Any:
            data = record.value if which == "value" else record.key
            try:
                return deserializer(record.topic, record.headers, data)
            except Exception as error:
                raise _conversion_error(record, which, None, error) from error

        return read

    def _header_extractor(self, header: str, parameter: inspect.Parameter, hint: Any) -> Extractor:
        bare = _bare(hint)
        convert = header_converter_for(bare, f"{self.name}: {parameter.name}")
        optional = _allows_none(bare)
        default = parameter.default

        def extract(record: Any, _: Delivery) -> Any:
            present = False
            data: Any = None
            for name, value in record.headers or ():
                if name == header:
                    present, data = True, value
            if not present:
                if default is not parameter.empty:
                    return default
                if optional:
                    return None
                raise ConversionError(f"{_place(record)}: the header {header!r} is not there, and {self.name} needs it")
            return _converted(convert, record, data, f"header {header!r}", bare)

        return extract

    def _dependency_extractor(self, parameter: inspect.Parameter, dependency: Depends) -> Extractor:
        function = dependency.function
        if _is_async(function) and not self.is_async:
            raise ConfigError(
                f"{self.name}: {parameter.name} depends on an async function; make the listener async too"
            )
        inner = _Binder(function, self.namespace, self.key_deserializer, self.value_deserializer)
        try:
            parameters = inspect.signature(function).parameters
        except (TypeError, ValueError):
            parameters = types.MappingProxyType({})
        if not parameters:
            return lambda _record, _delivery: function()
        bound = inner.bind(batch=False)
        return bound.call

    def _batch_extractor(self, parameter: inspect.Parameter, hint: Any) -> Extractor:
        bare = _bare(hint)
        if bare is Acknowledgment or bare in (KafkaConsumer, AsyncKafkaConsumer):
            by_type = self._by_type(bare)
            assert by_type is not None
            return by_type
        dependency = _marker(hint, Depends)
        if dependency is not None:
            return self._dependency_extractor(parameter, dependency)
        if hint is not inspect.Parameter.empty and not _is_list(hint):
            raise ConfigError(f"{self.name}: {parameter.name} of a batch listener is a list: hint it list[...]")
        items = get_args(bare)
        inner = items[0] if items else inspect.Parameter.empty
        # Annotated[list[str], Key] marks the list, list[Annotated[str, Key]] the item: both read well.
        markers = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
        marked = Annotated[(inner, *markers)] if markers else inner
        one = self._extractor(parameter, marked, parameter.name)
        if bare is list and not items:
            return lambda records, _: list(records)
        return lambda records, delivery: [one(record, delivery) for record in records]


def converter_for(hint: Any, name: str) -> Converter | None:
    """From a record's bytes (or what a deserializer made of them) to the hinted type; None where nothing is to do."""
    if hint in (inspect.Parameter.empty, Any, object):
        return None
    optional = _allows_none(hint)
    inner = _without_none(hint)
    if inner is bytes:
        return _allow_none if optional else _refuse_none
    if inner is str:
        return _text_or_none if optional else _text
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(hint)
    except (PydanticSchemaGenerationError, PydanticUndefinedAnnotation) as error:
        raise ConfigError(f"{name}: pydantic cannot make {hint!r} from JSON: {error}") from error
    validate_json, validate_python = adapter.validate_json, adapter.validate_python

    def convert(data: Any) -> Any:
        if type(data) is bytes:
            return validate_json(data)
        if data is None and not optional:
            raise ValueError("the record is a tombstone (its value is None); hint `T | None` to take those")
        return validate_python(data)

    return convert


def header_converter_for(hint: Any, name: str) -> Converter | None:
    """From a header's bytes to the hinted type: text as UTF-8, numbers from text, models from JSON."""
    inner = _without_none(hint)
    if inner in (int, float, bool):
        adapter: TypeAdapter[Any] = TypeAdapter(hint)
        return lambda data: adapter.validate_python(None if data is None else bytes(data).decode())
    return converter_for(hint, name)


def _allow_none(data: Any) -> Any:
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


def _converted(convert: Converter | None, record: Any, data: Any, what: str, hint: Any) -> Any:
    if convert is None:
        return data
    try:
        return convert(data)
    except (ValidationError, ValueError, TypeError) as error:
        raise _conversion_error(record, what, hint, error) from error


def _conversion_error(record: Any, what: str, hint: Any, error: Exception) -> ConversionError:
    wanted = "" if hint is None else f" does not fit {getattr(hint, '__name__', hint)}"
    if isinstance(error, ValidationError):
        # Without the input: a payload may hold what no log should.
        faults = error.errors(include_url=False, include_input=False, include_context=False)
        detail = "; ".join(
            f"{'.'.join(str(part) for part in fault['loc']) or 'value'}: {fault['msg']}" for fault in faults
        )
    else:
        detail = str(error)
    return ConversionError(f"{_place(record)}: the {what}{wanted}: {detail}")


def _place(record: Any) -> str:
    return f"{record.topic}-{record.partition}@{record.offset}"


def _bare(hint: Any) -> Any:
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def _marker(hint: Any, kind: type) -> Any:
    markers = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
    return next((marker for marker in markers if isinstance(marker, kind)), None)


def _has_marker(hint: Any, marker: object) -> bool:
    return get_origin(hint) is Annotated and any(one is marker for one in get_args(hint)[1:])


def _is_special(hint: Any) -> bool:
    bare = _bare(hint)
    by_type = (ConsumerRecord, RecordMetadata, Acknowledgment, KafkaConsumer, AsyncKafkaConsumer, Message)
    if bare in by_type or get_origin(bare) is Message:
        return True
    return _marker(hint, Header) is not None or _marker(hint, Depends) is not None or _has_marker(hint, Key)


def _is_list(hint: Any) -> bool:
    bare = _bare(hint)
    return bare is list or get_origin(bare) is list


def _is_union(hint: Any) -> bool:
    return get_origin(hint) in (Union, types.UnionType)


def _allows_none(hint: Any) -> bool:
    return hint is None or hint is type(None) or (_is_union(hint) and type(None) in get_args(hint))


def _without_none(hint: Any) -> Any:
    if not _is_union(hint):
        return hint
    rest = [argument for argument in get_args(hint) if argument is not type(None)]
    return rest[0] if len(rest) == 1 else hint


def _is_async(function: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(function)
