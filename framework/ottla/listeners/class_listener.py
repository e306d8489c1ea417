"""A class as a listener: each record goes to the method whose payload type it is (Spring: @KafkaListener on a class).

    @listener("events", group="audit")
    class Audit:
        @handler
        def placed(self, order: OrderPlaced) -> None: ...

        @handler
        def paid(self, payment: PaymentReceived, key: Annotated[str, Key]) -> None: ...

        @handler(default=True)
        def anything_else(self, value: bytes) -> None: ...

The JSON is validated once, as a union of all the types: pydantic takes the one that fits best, or the one that a
`Literal` field, or a discriminator, tells.
"""

from __future__ import annotations

import functools
import inspect
import operator
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar, Union, get_args, get_origin, overload

from ottla.errors import ConfigError
from ottla.listeners.binding import Binder, BoundListener, Delivery, Deserializer, bind
from ottla.listeners.conversion import UNFIT, conversion_error, converter_for

Function = TypeVar("Function", bound=Callable[..., Any])

_ATTRIBUTE = "__ottla_handler__"


@overload
def handler(function: Function, /) -> Function: ...
@overload
def handler(*, default: bool = False) -> Callable[[Function], Function]: ...
def handler(function: Any = None, /, *, default: bool = False) -> Any:
    """Decorator of a method in a class with `@listener`: it takes the records of its payload's type.

    Args:
        default: it takes what is of no other handler's type; its payload may then be of any type, `bytes` too.
    """

    def decorate(method: Any) -> Any:
        setattr(method, _ATTRIBUTE, default)
        return method

    return decorate if function is None else decorate(function)


class Handlers:
    """An instance of a class with `@listener`, in the place of a function."""

    def __init__(self, instance: object) -> None:
        self.instance = instance
        of = type(instance)
        self.__name__, self.__qualname__, self.__module__ = of.__name__, of.__qualname__, of.__module__

    def __call__(self, *arguments: Any) -> Any:
        """Not called: it is bound method by method."""
        raise TypeError(f"{self.__qualname__} is called through its handlers")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Handlers) and other.instance is self.instance

    def __hash__(self) -> int:
        return id(self.instance)

    def methods(self) -> list[tuple[Callable[..., Any], bool]]:
        """The handlers, in the order of their names, and whether each is the default."""
        found = inspect.getmembers(
            self.instance, lambda member: inspect.ismethod(member) and hasattr(member, _ATTRIBUTE)
        )
        return [(method, getattr(method, _ATTRIBUTE)) for _, method in found]


def instance_of(listener_class: type) -> object:
    """An instance, for an application that was given the class.

    Raises:
        ConfigError: its constructor needs arguments.
    """
    for parameter in inspect.signature(listener_class).parameters.values():
        if parameter.default is parameter.empty and parameter.kind not in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
        ):
            raise ConfigError(
                f"{listener_class.__module__}.{listener_class.__qualname__}: its constructor needs {parameter.name}; "
                "give an instance to app.include(...)"
            )
    instance: object = listener_class()
    return instance


def bind_any(listener: Callable[..., Any], *, batch: bool | None = None, **arguments: Any) -> BoundListener:
    """`bind`, or `bind_handlers` if the listener is of a class."""
    if isinstance(listener, Handlers):
        return bind_handlers(listener, batch=batch, **arguments)
    return bind(listener, batch=batch, **arguments)


def bind_handlers(
    handlers: Handlers,
    *,
    batch: bool | None = None,
    namespace: Mapping[str, Any] | None = None,
    key_deserializer: Deserializer | None = None,
    value_deserializer: Deserializer | None = None,
) -> BoundListener:
    """`bind` for a class.

    Raises:
        ConfigError: two handlers have one type, or something else that cannot be decided for each record.
    """
    name = f"{handlers.__module__}.{handlers.__qualname__}"
    if batch:
        raise ConfigError(f"{name}: a class takes record by record; a function can take lists")
    dispatch = _Dispatch(name)
    for method, is_default in handlers.methods():
        binder = Binder(method, namespace, key_deserializer, value_deserializer, payload_is_given=not is_default)
        dispatch.add(binder, is_default=is_default)
    read = Binder(handlers, None, None, value_deserializer).reader("value", value_deserializer)
    return dispatch.bound(read)


class _Dispatch:
    """Which handler takes which type."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._hints: list[Any] = []
        self._by_class: dict[type, BoundListener] = {}
        self._default: BoundListener | None = None
        self._all: list[BoundListener] = []

    def add(self, binder: Binder, *, is_default: bool) -> None:
        bound = binder.bind(batch=False)
        self._all.append(bound)
        if is_default:
            if self._default is not None:
                raise ConfigError(f"{binder.name}: {self._name} has another default handler")
            self._default = bound
            return
        hint = binder.payload_hint()
        if hint is inspect.Parameter.empty or hint is Any:
            raise ConfigError(f"{binder.name}: hint the type of its payload, or say @handler(default=True)")
        self._hints.append(hint)
        for one in _classes_of(hint):
            if one in (bytes, str) or not isinstance(one, type):
                raise ConfigError(
                    f"{binder.name}: {one!r} tells no record from another; take it in the default handler"
                )
            if one in self._by_class:
                raise ConfigError(f"{binder.name}: another handler of {self._name} takes {one.__qualname__}, too")
            self._by_class[one] = bound

    def bound(self, read: Callable[[Any], Any]) -> BoundListener:
        if not self._hints:
            raise ConfigError(f"{self._name}: there is no @handler in it that takes a payload type")
        if len({one.is_async for one in self._all}) > 1:
            raise ConfigError(f"{self._name}: make all of its handlers async, or none")
        union: Any = functools.reduce(operator.or_, self._hints)
        converter = converter_for(union, self._name)
        assert converter is not None
        convert, by_class, default = converter.convert, self._by_class, self._default

        def call(record: Any, delivery: Delivery) -> Any:
            data = read(record)
            try:
                payload = convert(data)
            except UNFIT as error:
                if default is None:
                    raise conversion_error(record, "payload", union, error) from error
                return default.call(record, delivery)
            delivery.payload = payload
            return _of(by_class, type(payload)).call(record, delivery)

        acknowledgment = any(one.takes_acknowledgment for one in self._all)
        return BoundListener(call, self._all[0].is_async, False, acknowledgment)


def _of(by_class: Mapping[type, BoundListener], payload_class: type) -> BoundListener:
    return next(by_class[one] for one in payload_class.__mro__ if one in by_class)


def _classes_of(hint: Any) -> Iterable[Any]:
    """The classes that instances of the hinted type have."""
    origin = get_origin(hint)
    if origin is typing.Annotated:
        return _classes_of(get_args(hint)[0])
    if origin is Union or origin is type(int | str):
        return [one for argument in get_args(hint) for one in _classes_of(argument)]
    if typing.is_typeddict(hint):
        return [dict]
    return [type(None) if hint is None else origin or hint]
