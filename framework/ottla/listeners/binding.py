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
from typing import Annotated, Any, get_args, get_origin

from ottla.client import AsyncKafkaConsumer, KafkaConsumer
from ottla.errors import ConfigError, ConversionError
from ottla.listeners.ack import Acknowledgment
from ottla.listeners.conversion import (
    UNFIT,
    Converter,
    UnfitRecord,
    allows_none,
    conversion_error,
    converted,
    converter_for,
    header_converter_for,
    place_of,
)
from ottla.listeners.message import Depends, Header, Key, Message, Payload, RecordMetadata
from ottla_wire.records import ConsumerRecord

Deserializer = Callable[[str, Any, bytes | None], Any]


@dataclass(slots=True)
class Delivery:
    """What surrounds the record, or the batch, that is being delivered."""

    consumer: Any
    acknowledgment: Acknowledgment | None = None
    payload: Any = None
    """Of the record for which a class chooses one of its handlers."""


Extractor = Callable[[Any, Delivery], Any]


@dataclass(frozen=True, slots=True)
class BoundListener:
    """A function whose parameters are understood."""

    call: Callable[[Any, Delivery], Any]
    """Calls the function with a record, or a list of records; for an async one this gives its coroutine.

    Raises:
        ConversionError: a record does not fit the hints.
        UnfitRecord: the same in a batch; it says which.
    """
    is_async: bool
    is_batch: bool
    takes_acknowledgment: bool


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
    return Binder(function, namespace, key_deserializer, value_deserializer).bind(batch)


class Binder:
    """Binds one function.

    Args:
        function: the listener, a dependency, or a handler of a class.
        namespace: see `bind`.
        key_deserializer: see `bind`.
        value_deserializer: see `bind`.
        payload_is_given: the payload is converted already, and comes with the Delivery.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        namespace: Mapping[str, Any] | None,
        key_deserializer: Deserializer | None,
        value_deserializer: Deserializer | None,
        *,
        payload_is_given: bool = False,
    ) -> None:
        self.function = function
        self.namespace = namespace
        self.name = f"{function.__module__}.{getattr(function, '__qualname__', function)}"
        self.key_deserializer = key_deserializer
        self.value_deserializer = value_deserializer
        self.payload_is_given = payload_is_given
        self.is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
            getattr(function, "__call__", None)  # noqa: B004 - asks for the method, not whether it can be called
        )

    def payload_hint(self) -> Any:
        """The type of the payload; `Parameter.empty` if there is no hint, or no payload."""
        parameters = self._parameters(self.function)
        payload = self._payload_of(parameters)
        messages = [get_args(_bare(hint)) for _, hint in parameters if get_origin(_bare(hint)) is Message]
        inner = messages[0][0] if messages else inspect.Parameter.empty
        return next((_bare(hint) for parameter, hint in parameters if parameter.name == payload), inner)

    def bind(self, batch: bool | None) -> BoundListener:
        """See `bind`."""
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
        call = _caller(self.function, extractors, awaited)
        return BoundListener(call, self.is_async, is_batch, acknowledgment)

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
        if parameter.name == payload and self.payload_is_given:
            return lambda _, delivery: delivery.payload
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
        key = self.reader("key", self.key_deserializer)
        value = self.reader("value", self.value_deserializer)

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
        key = self.reader("key", self.key_deserializer)
        value = self.reader("value", self.value_deserializer)

        def message(record: Any, _: Delivery) -> Message[Any]:
            payload = converted(convert, record, value(record), "payload", inner)
            return Message(payload, key(record), dict(record.headers or ()), RecordMetadata.of(record))

        return message

    def _converting(
        self, which: str, parameter: inspect.Parameter, hint: Any, deserializer: Deserializer | None
    ) -> Extractor:
        converter = converter_for(hint, f"{self.name}: {parameter.name}")
        what = "payload" if which == "value" else "key"
        if which == "value" and deserializer is None and converter is not None:
            return _payload_extractor(converter, hint)
        read = self.reader(which, deserializer)
        return lambda record, _: converted(converter, record, read(record), what, hint)

    def reader(self, which: str, deserializer: Deserializer | None) -> Callable[[Any], Any]:
        """What takes a record's key or value, and has it deserialized if there is something to do that."""
        if deserializer is None:
            return (lambda record: record.value) if which == "value" else (lambda record: record.key)

        def read(record: Any) -> Any:
            data = record.value if which == "value" else record.key
            try:
                return deserializer(record.topic, record.headers, data)
            except Exception as error:
                raise conversion_error(record, which, None, error) from error

        return read

    def _header_extractor(self, header: str, parameter: inspect.Parameter, hint: Any) -> Extractor:
        bare = _bare(hint)
        convert = header_converter_for(bare, f"{self.name}: {parameter.name}")
        optional = allows_none(bare)
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
                raise ConversionError(
                    f"{place_of(record)}: the header {header!r} is not there, and {self.name} needs it"
                )
            return converted(convert, record, data, f"header {header!r}", bare)

        return extract

    def _dependency_extractor(self, parameter: inspect.Parameter, dependency: Depends) -> Extractor:
        function = dependency.function
        if _is_async(function) and not self.is_async:
            raise ConfigError(
                f"{self.name}: {parameter.name} depends on an async function; make the listener async too"
            )
        inner = Binder(function, self.namespace, self.key_deserializer, self.value_deserializer)
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
        if self.value_deserializer is None and not _is_special(marked):
            converter = converter_for(_bare(marked), f"{self.name}: {parameter.name}")
            if converter is not None:
                return _payloads_extractor(converter, one)
        return lambda records, delivery: _each(one, records, delivery)


def _caller(
    function: Callable[..., Any], extractors: Sequence[Extractor], awaited: Sequence[int]
) -> Callable[[Any, Delivery], Any]:
    """One call that binds and calls. What nearly every listener is, a payload alone or with one more, has no loop."""
    if awaited:
        return _awaiting_caller(function, extractors, awaited)
    first = extractors[0]
    if len(extractors) == 1:
        return lambda record, delivery: function(first(record, delivery))
    if len(extractors) == 2:
        second = extractors[1]
        return lambda record, delivery: function(first(record, delivery), second(record, delivery))
    return lambda record, delivery: function(*[extract(record, delivery) for extract in extractors])


def _awaiting_caller(
    function: Callable[..., Any], extractors: Sequence[Extractor], awaited: Sequence[int]
) -> Callable[[Any, Delivery], Any]:
    async def call(record: Any, delivery: Delivery) -> Any:
        arguments = [extract(record, delivery) for extract in extractors]
        for position in awaited:
            arguments[position] = await arguments[position]
        return await function(*arguments)

    return call


def _payload_extractor(converter: Converter, hint: Any) -> Extractor:
    """The hot path of nearly every listener: one call of the validator, nothing around it."""
    convert, from_json = converter.convert, converter.from_json or converter.convert

    def payload(record: Any, _: Delivery) -> Any:
        data = record.value
        try:
            return from_json(data) if type(data) is bytes else convert(data)
        except UNFIT as error:
            raise conversion_error(record, "payload", hint, error) from error

    return payload


def _payloads_extractor(converter: Converter, one: Extractor) -> Extractor:
    """The same for a batch.

    Each value is validated by itself. One document of all values would be a little faster, and could not be trusted:
    the values `1,2`, `[3` and `4]` are a list of three, too.
    """
    convert, from_json = converter.convert, converter.from_json or converter.convert

    def payloads(records: Any, delivery: Delivery) -> Any:
        try:
            return [from_json(data) if type(data := record.value) is bytes else convert(data) for record in records]
        except UNFIT:
            return _each(one, records, delivery)  # finds which, and says so

    return payloads


def _each(one: Extractor, records: Any, delivery: Delivery) -> list[Any]:
    found: list[Any] = []
    try:
        for record in records:
            found.append(one(record, delivery))  # noqa: PERF401 - where it stops says which record is unfit
    except ConversionError as error:
        raise UnfitRecord(len(found), error) from error
    return found


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


def _is_async(function: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(function)
