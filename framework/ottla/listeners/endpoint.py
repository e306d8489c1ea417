"""`@listener`: what a decorated function wants to receive, and how. Nothing starts here."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

from ottla.errors import ConfigError
from ottla.listeners.ack import AckMode
from ottla.listeners.class_listener import Handlers
from ottla.listeners.container_properties import check_names
from ottla.listeners.interceptors import Interceptor
from ottla.listeners.replies import ReplyTo
from ottla.listeners.transactional import Transactional, check_ack_mode, transactional_of

if TYPE_CHECKING:
    from ottla.transaction.manager import KafkaTransactionManager

Function = TypeVar("Function", bound=Callable[..., Any])

_ATTRIBUTE = "__ottla_listeners__"


@dataclass(frozen=True, slots=True, eq=False)
class ListenerEndpoint:
    """One use of `@listener`, as written (Spring: KafkaListenerEndpoint)."""

    function: Callable[..., Any]
    topics: tuple[str, ...] = ()
    id: str | None = None
    group: str | None = None
    pattern: str | None = None
    partitions: Mapping[str, Any] | None = None
    concurrency: int = 1
    ack: AckMode = AckMode.BATCH
    batch: bool | None = None
    filter: Callable[..., bool] | None = None
    transactional: Transactional | None = None
    reply_to: ReplyTo | None = None
    interceptors: Sequence[Interceptor] = ()
    on_error: Any = None
    auto_start: bool = True
    consumer: Mapping[str, Any] = field(default_factory=dict)
    container: Mapping[str, Any] = field(default_factory=dict)
    namespace: Mapping[str, Any] | None = None
    """The names that were in scope where a nested function was decorated: its hints may need them."""

    def __post_init__(self) -> None:
        """Refuse what can be seen to be wrong without a broker."""
        given = [bool(self.topics), self.pattern is not None, self.partitions is not None]
        if sum(given) != 1:
            raise ConfigError(f"{self.name}: give the listener exactly one of topics, pattern= and partitions=")
        check_names(self.name, self.container)
        if self.concurrency < 1:
            raise ConfigError(f"{self.name}: concurrency is {self.concurrency}; it counts consumers, so 1 or more")
        if self.transactional is not None:
            check_ack_mode(self.name, self.ack)
        if self.batch and self.ack is AckMode.RECORD:
            raise ConfigError(f"{self.name}: AckMode.RECORD needs a listener that takes one record; use AckMode.BATCH")
        if self.pattern is not None:
            try:
                re.compile(self.pattern)
            except re.error as error:
                raise ConfigError(
                    f"{self.name}: pattern {self.pattern!r} is not a regular expression: {error}"
                ) from None

    @property
    def name(self) -> str:
        """The function's name as a user would look for it: `module.function`."""
        return f"{self.function.__module__}.{self.function.__qualname__}"

    def bound_to(self, function: Callable[..., Any]) -> ListenerEndpoint:
        """The same wishes for a bound method."""
        return replace(self, function=function)


def listener(
    *topics: str,
    id: str | None = None,
    group: str | None = None,
    pattern: str | re.Pattern[str] | None = None,
    partitions: Mapping[str, Any] | None = None,
    concurrency: int = 1,
    ack: AckMode = AckMode.BATCH,
    batch: bool | None = None,
    transactional: Transactional | KafkaTransactionManager | bool = False,
    reply_to: ReplyTo | None = None,
    filter: Callable[..., bool] | None = None,
    interceptors: Sequence[Interceptor] = (),
    on_error: Any = None,
    auto_start: bool = True,
    consumer: Mapping[str, Any] | None = None,
    container: Mapping[str, Any] | None = None,
) -> Callable[[Function], Function]:
    """Mark a function as the receiver of records (Spring: @KafkaListener). The function itself stays as it is.

    A class may be marked, too: each record goes to the method with `@handler` whose payload's type it is.

    Args:
        topics: the topics' names; or else `pattern` (a regular expression of names) or `partitions`
            (`{"orders": [0, 1]}`, or with offsets to start from `{"orders": {0: 42, 1: "latest"}}`).
        id: the name of the listener's container in `app.listeners`; by default the group, else the function's name.
        group: the consumer group; by default the id, else one made of the application's and the function's name.
        concurrency: how many consumers of the group run here.
        ack: when offsets are committed.
        batch: whether the function takes a list of records; by default yes if its payload is hinted `list[T]`.
        transactional: whether offsets, and what the function sends through templates of the application, are parts of
            transactions: all of it is seen, or nothing. True, or a Transactional(...) that says how records are
            divided, or a KafkaTransactionManager of another producer factory.
        reply_to: where what the function returns is sent (Spring: @SendTo): a topic; True, for the one that the record
            names in its header `kafka_replyTopic`; or a function of record and result that gives a topic. Lists,
            tuples and what a generator yields are sent one by one, a `Message` as it says, None not at all.
        filter: called with each ConsumerRecord; a record for which it is true never reaches the function, and counts
            as processed.
        interceptors: RecordInterceptors around each call, or BatchInterceptors if the function takes lists.
        on_error: an ErrorHandler; by default ten deliveries, then the error is logged and the record passed over.
        auto_start: False leaves the container to be started by hand.
        consumer: client settings for this listener's consumers.
        container: settings of its container by their names in ContainerProperties, such as `{"ack_count": 100}`.

    Raises:
        ConfigError: the arguments do not go together.
    """
    regex = pattern.pattern if isinstance(pattern, re.Pattern) else pattern

    def decorate(function: Function) -> Function:
        if not callable(function):
            raise ConfigError("@listener decorates a function: write @listener('topic'), with the topic's name")
        endpoint = ListenerEndpoint(
            function=function,
            topics=topics,
            id=id,
            group=group,
            pattern=regex,
            partitions=partitions,
            concurrency=concurrency,
            ack=ack,
            batch=batch,
            transactional=transactional_of(transactional),
            reply_to=reply_to,
            interceptors=tuple(interceptors),
            filter=filter,
            on_error=on_error,
            auto_start=auto_start,
            consumer=dict(consumer or {}),
            container=dict(container or {}),
            namespace=scope_of(function, sys._getframe(1)),
        )
        if _ATTRIBUTE not in vars(function):
            setattr(function, _ATTRIBUTE, [])  # not by getattr: a subclass has its own
        vars(function)[_ATTRIBUTE].append(endpoint)
        BARE_LISTENERS.append(endpoint)
        return function

    if topics and callable(topics[0]):
        raise ConfigError("@listener needs the topic's name: write @listener('orders') above the function")
    return decorate


def scope_of(function: Callable[..., Any], frame: FrameType) -> Mapping[str, Any] | None:
    """The local names around a nested function; for any other function its module's globals are enough."""
    return dict(frame.f_locals) if "<locals>" in getattr(function, "__qualname__", "") else None


BARE_LISTENERS: list[ListenerEndpoint] = []
"""Every endpoint made by the bare decorator in this process, in order; an application picks its own from here."""


def endpoints_of(source: object) -> Iterator[ListenerEndpoint]:
    """The listeners of a function, a class, a module, or an instance (of a class with `@listener`, or its methods)."""
    if inspect.ismethod(source):
        yield from (endpoint.bound_to(source) for endpoint in getattr(source, _ATTRIBUTE, ()))
        return
    own = getattr(source, "__dict__", {}).get(_ATTRIBUTE)
    if own is not None:
        yield from own
        return
    yield from (endpoint.bound_to(Handlers(source)) for endpoint in getattr(type(source), _ATTRIBUTE, ()))
    for _, member in inspect.getmembers(source, _is_marked):
        if inspect.ismodule(source) or inspect.ismethod(member):
            yield from endpoints_of(member)


def _is_marked(member: object) -> bool:
    return callable(member) and hasattr(member, _ATTRIBUTE)


def is_unbound_method(endpoint: ListenerEndpoint) -> bool:
    """Whether the decorated function was written in a class body, so that it needs an instance to be called."""
    if inspect.isclass(endpoint.function) or isinstance(endpoint.function, Handlers):
        return False
    qualified = endpoint.function.__qualname__
    owner = qualified.rpartition(".")[0]
    return bool(owner) and not owner.endswith("<locals>") and not inspect.ismethod(endpoint.function)


def unique(endpoints: Iterable[ListenerEndpoint]) -> list[ListenerEndpoint]:
    """The endpoints without repetition, in order: a function may be reached through its module and by itself."""
    found: dict[tuple[object, ...], ListenerEndpoint] = {}
    for endpoint in endpoints:
        identity = (
            endpoint.function,
            endpoint.topics,
            endpoint.pattern,
            id(endpoint.partitions),
            endpoint.id,
            endpoint.group,
        )
        found.setdefault(identity, endpoint)
    return list(found.values())
