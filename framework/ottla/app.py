"""Ottla: the application. Wires template, factories, listeners and, where there is no address, an embedded broker."""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import gc
import importlib.metadata
import inspect
import logging
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from ottla import settings as settings_module
from ottla.application_part import ApplicationPart
from ottla.client import AdminClient
from ottla.client.admin import NewTopic
from ottla.client.config import ClientConfig
from ottla.client.engine import Engine
from ottla.consumer_factory import LISTENER_DEFAULTS, ConsumerFactory
from ottla.error_handling import ErrorHandler
from ottla.errors import ConfigError
from ottla.event_loop import LoopThread
from ottla.events import Events
from ottla.listeners.class_listener import Handlers, instance_of
from ottla.listeners.container import ConcurrentMessageListenerContainer, ContainerProperties, ContainerState
from ottla.listeners.endpoint import (
    BARE_LISTENERS,
    ListenerEndpoint,
    endpoints_of,
    is_unbound_method,
    listener,
    scope_of,
    unique,
)
from ottla.listeners.interceptors import Interceptor
from ottla.listeners.invocation import interceptor_kind
from ottla.listeners.registry import ListenerRegistry
from ottla.listeners.transactional import Transactional, with_manager
from ottla.names import main_module_name
from ottla.producer_factory import ProducerFactory
from ottla.template import KafkaTemplate
from ottla.topics import declare_topics
from ottla.transaction.manager import KafkaTransactionManager

logger = logging.getLogger("ottla.app")

Function = TypeVar("Function", bound=Callable[..., Any])

STOP_TIMEOUT_SECONDS = 30.0
# A thread that computes keeps the interpreter for 5 ms at a time by default; sends and acknowledgments wait behind it.
RUN_SWITCH_INTERVAL_SECONDS = 0.0005

_applications: weakref.WeakSet[Ottla] = weakref.WeakSet()


class Ottla:
    """An application: a template to send with, listeners, and the client and broker beneath them.

    Nothing starts here. The first send or `start` starts the client, and the embedded broker if there is no address.

    Args:
        bootstrap_servers: `"host:9092,host2:9092"`; else `OTTLA_BOOTSTRAP_SERVERS` or the settings file; else an
            embedded broker.
        name: the application's name, in client ids and default group names; by default the main module's.
        data: the embedded broker's folder; by default a temporary one that is removed at exit.
        group: the consumer group of listeners that name none.
        listeners: modules, functions or instances with listeners, as for `include`.
        producer: client settings for producers.
        consumer: client settings for consumers.
        settings: what is usually read from the environment and the settings file, read already.
    """

    def __init__(
        self,
        bootstrap_servers: str | None = None,
        *,
        name: str | None = None,
        data: str | Path | None = None,
        group: str | None = None,
        listeners: Iterable[object] | None = None,
        producer: Mapping[str, Any] | None = None,
        consumer: Mapping[str, Any] | None = None,
        settings: settings_module.OttlaSettings | None = None,
    ) -> None:
        self._arguments = {"bootstrap_servers": bootstrap_servers, "name": name, "data": data, "group": group}
        self._settings = settings
        self._lock = threading.RLock()
        self._client: _Client | None = None
        self._broker_in_child = False
        self._endpoints: list[ListenerEndpoint] = []
        self._included: list[object] = []
        self._parts: list[ApplicationPart] = []
        self._instances: dict[type, object] = {}
        self._topics: dict[str, NewTopic] = {}
        self._on_started: list[Callable[[], Any]] = []
        self._on_stopping: list[Callable[[], Any]] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_thread: LoopThread | None = None
        self._running = False
        self._module = main_module_name()
        self.listeners = ListenerRegistry()
        self.events = Events(self._event_loop)
        """What happens to the listeners' containers, for whoever wants to know."""
        self.interceptors: list[Interceptor] = []
        """Around the calls of all listeners, before their own; each listener has those of its kind."""
        self.producer_factory: ProducerFactory = _AppProducerFactory(self, producer)
        self.consumer_factory: ConsumerFactory = _AppConsumerFactory(self, consumer)
        self.template = KafkaTemplate(
            self.producer_factory, consumer_factory=self.consumer_factory, allow_non_transactional=True
        )
        for source in listeners or ():
            self._take(source)
        _applications.add(self)
        atexit.register(_stop_at_exit, weakref.ref(self))

    # -- what it is made of --------------------------------------------------------------------------------------------

    @property
    def settings(self) -> settings_module.OttlaSettings:
        """The settings in force: read at the first use.

        Raises:
            ConfigError: a name is unknown or a value does not fit.
        """
        if self._settings is None:
            self._settings = settings_module.load(**self._arguments)
        return self._settings

    @property
    def name(self) -> str:
        """The application's name."""
        return self.settings.name or self._module

    @property
    def bootstrap_servers(self) -> str:
        """Where the application's Kafka is. Starts the embedded broker if there is to be one."""
        return self._started_client().bootstrap_servers

    @property
    def admin(self) -> AdminClient:
        """An AdminClient for the application's Kafka."""
        return self._started_client().admin

    def _started_client(self) -> _Client:
        client = self._client
        if client is None:
            with self._lock:
                if self._client is None:
                    self._client = _Client(self.settings, in_child=self._broker_in_child)
                client = self._client
        return client

    # -- listeners and hooks -------------------------------------------------------------------------------------------

    def listener(self, *topics: str, **arguments: Any) -> Callable[[Function], Function]:
        """`@app.listener(...)`: as `@listener`, for this application only."""
        decorate = listener(*topics, **arguments)

        def registered(function: Function) -> Function:
            decorate(function)
            # The bare decorator's list is for listeners that belong to nobody yet.
            endpoint = BARE_LISTENERS.pop()
            self._endpoints.append(replace(endpoint, namespace=scope_of(function, sys._getframe(1))))
            return function

        return registered

    def include(self, *sources: object) -> None:
        """Take the listeners of modules, functions or instances; in a running application they start at once.

        An `ApplicationPart`, such as an outbox's relay, runs for as long as the application does.

        Raises:
            ConfigError: a source has no listener.
        """
        for source in sources:
            if isinstance(source, ApplicationPart):
                self._take(source)
                if self._running:
                    source.attach(self)
                    source.start()
                continue
            endpoints = list(endpoints_of(source))
            if not endpoints:
                raise ConfigError(f"include({source!r}): there is no @listener in it")
            self._included.append(source)
            if self._running:
                for endpoint in endpoints:
                    container = self._register(self._with_instance(endpoint))
                    if endpoint.auto_start:
                        container.start()

    def _take(self, source: object) -> None:
        (self._parts if isinstance(source, ApplicationPart) else self._included).append(source)  # type: ignore[arg-type]

    def topic(
        self,
        name: str,
        *,
        partitions: int | None = None,
        replication: int | None = None,
        config: Mapping[str, str | int | float | bool] | None = None,
    ) -> None:
        """Declare a topic: it is created when the application starts, before its listeners (Spring: NewTopic).

        One that is there already gets more partitions if it has fewer, and is otherwise left as it is.

        Args:
            partitions: how many; by default the broker's own default.
            replication: how many brokers keep a copy; by default the broker's own default.
            config: topic settings by Kafka's names.
        """
        self._topics[name] = NewTopic(name, partitions, replication, dict(config or {}))

    def on_started(self, function: Function) -> Function:
        """Decorator: call the function when the application's listeners have been started."""
        self._on_started.append(function)
        return function

    def on_stopping(self, function: Function) -> Function:
        """Decorator: call the function before the application's listeners are stopped."""
        self._on_stopping.append(function)
        return function

    def _own_endpoints(self) -> list[ListenerEndpoint]:
        included = [endpoint for source in self._included for endpoint in endpoints_of(source)]
        own = self._endpoints + included
        claimed = {id(e) for app in _applications for source in app._included for e in _originals(source)}
        bare = [endpoint for endpoint in BARE_LISTENERS if id(endpoint) not in claimed]
        methods = [endpoint for endpoint in bare if is_unbound_method(endpoint)]
        if methods:
            raise ConfigError(f"{methods[0].name} is a method: give an instance of its class to app.include(...)")
        if bare and len(_applications) > 1:
            raise ConfigError(
                f"{bare[0].name} belongs to no application, and there are {len(_applications)}: decorate it with "
                "@app.listener, or give its module to app.include(...)"
            )
        return [self._with_instance(endpoint) for endpoint in unique(own + bare)]

    def _with_instance(self, endpoint: ListenerEndpoint) -> ListenerEndpoint:
        """A class that was given without an instance has one made, once."""
        given = endpoint.function
        if not inspect.isclass(given):
            return endpoint
        if given not in self._instances:
            self._instances[given] = instance_of(given)
        return endpoint.bound_to(Handlers(self._instances[given]))

    def _register(self, endpoint: ListenerEndpoint) -> ConcurrentMessageListenerContainer:
        properties = ContainerProperties(
            group=self._group_of(endpoint),
            pattern=endpoint.pattern,
            partitions=endpoint.partitions,
            ack=endpoint.ack,
            batch=endpoint.batch,
            transactional=self._transactional(endpoint),
            reply_to=endpoint.reply_to,
            reply_template=self.template,
            interceptors=[*self.interceptors, *endpoint.interceptors],
            filter=endpoint.filter,
            on_error=endpoint.on_error or ErrorHandler(),
            consumer=endpoint.consumer,
            **endpoint.container,
        )
        container = ConcurrentMessageListenerContainer(
            self.consumer_factory,
            endpoint.topics,
            endpoint.function,
            concurrency=endpoint.concurrency,
            properties=properties,
            id=self._id_of(endpoint),
            namespace=endpoint.namespace,
            loop=self._event_loop,
            publish=self.events.publish,
        )
        unused = [one for one in endpoint.interceptors if not isinstance(one, interceptor_kind(container.listener))]
        if unused:
            kind = interceptor_kind(container.listener).__name__
            raise ConfigError(f"{endpoint.name}: {unused[0]!r} is not of the kind that this listener needs, {kind}")
        self.listeners.register(container)
        return container

    def _transactional(self, endpoint: ListenerEndpoint) -> Transactional | None:
        if endpoint.transactional is None:
            return None
        return with_manager(endpoint.transactional, KafkaTransactionManager(self.producer_factory))

    def _group_of(self, endpoint: ListenerEndpoint) -> str:
        default = self.settings.group or f"{self.name}.{endpoint.function.__name__}"
        return endpoint.group or endpoint.id or default

    def _id_of(self, endpoint: ListenerEndpoint) -> str:
        """The id as given, else the first of group, function and full name that is free."""
        if endpoint.id:
            return endpoint.id
        names = [endpoint.group, endpoint.function.__name__, endpoint.name]
        return next((name for name in names if name and name not in self.listeners), endpoint.name)

    # -- lifecycle -----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start broker, client and listeners; an application that runs already is left alone.

        Raises:
            ConfigError: settings or listeners are wrong; nothing is left running.
            RuntimeError: called on a thread that runs an event loop; use `async with app` there.
        """
        _refuse_event_loop("app.start(), app.run() and `with app`", "`async with app`")
        self._start()
        for hook in self._on_started:
            self._call_hook(hook)

    def stop(self, timeout: float = STOP_TIMEOUT_SECONDS) -> None:
        """Stop: no new polls, handlers finish, offsets are committed, sends flushed; then client and broker end.

        Raises:
            TimeoutError: a handler or the flush did not finish within `timeout` seconds.
            RuntimeError: called on a thread that runs an event loop; `await app.stop_async()` there.
        """
        _refuse_event_loop("app.stop()", "`await app.stop_async()`")
        deadline = time.monotonic() + timeout
        try:
            if self._running:
                for hook in self._on_stopping:
                    self._call_hook(hook, deadline - time.monotonic())
        finally:
            self._stop(max(1.0, deadline - time.monotonic()))

    async def start_async(self) -> None:
        """`start`, on the running event loop, where the async listeners then run too."""
        self._loop = asyncio.get_running_loop()
        await asyncio.to_thread(self._start)
        for hook in self._on_started:
            await _called(hook)

    async def stop_async(self, timeout: float = STOP_TIMEOUT_SECONDS) -> None:
        """`stop`, awaited."""
        deadline = time.monotonic() + timeout
        try:
            if self._running:
                async with asyncio.timeout(timeout):
                    for hook in self._on_stopping:
                        await _called(hook)
        finally:
            await asyncio.to_thread(self._stop, max(1.0, deadline - time.monotonic()))
            self._loop = None

    def _start(self) -> None:
        with self._lock:
            if self._running:
                return
            self.listeners = ListenerRegistry()
            endpoints = self._own_endpoints()
            try:
                for endpoint in endpoints:
                    self._register(endpoint)
                self._started_client()
                self.producer_factory.end_left_behind()
                if self._topics:
                    declare_topics(self.admin, list(self._topics.values()))
                self._running = True
                for endpoint, container in zip(endpoints, self.listeners.values(), strict=True):
                    if endpoint.auto_start:
                        container.start()
                for part in self._parts:
                    part.attach(self)
                    part.start()
            except BaseException:
                self._stop(STOP_TIMEOUT_SECONDS)
                raise

    def _stop(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        with self._lock:
            errors = list(self._stop_listeners(deadline))
            self._running = False
            client, self._client = self._client, None
            for part in (self.producer_factory.reset, client.close if client else None):
                if part is not None:
                    try:
                        part(max(1.0, deadline - time.monotonic()))
                    except Exception as error:  # noqa: BLE001 - every part has to be closed; the first error is raised
                        errors.append(error)
            if self._loop_thread is not None:
                self._loop_thread.close()
                self._loop_thread = None
        if errors:
            raise errors[0]

    def _stop_listeners(self, deadline: float) -> Iterable[Exception]:
        for container in self.listeners.values():
            container.request_stop()
        for container in self.listeners.values():
            try:
                container.stop(timeout=max(0.0, deadline - time.monotonic()))
            except TimeoutError as error:
                yield error
        for part in self._parts:
            part.request_stop()
        for part in self._parts:
            try:
                part.stop(max(0.1, deadline - time.monotonic()))
            except TimeoutError as error:
                yield error

    def __enter__(self) -> Ottla:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    async def __aenter__(self) -> Ottla:
        await self.start_async()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop_async()

    def use_broker_process(self) -> None:
        """Let an embedded broker be a child process, so that a busy handler does not slow it down. Before `start`."""
        self._broker_in_child = True

    def run(self, *, until_idle: float | None = None) -> None:
        """Start, and block until SIGINT or SIGTERM, or until a listener has failed for good; then stop.

        Args:
            until_idle: stop when no listener has had a record for so many seconds (for scripts and tests).

        Raises:
            ListenerError and others: what made a listener fail for good.
        """
        self.use_broker_process()
        stop = threading.Event()
        restore = _stop_on_signals(stop)
        try:
            with _process_of_an_application(), self:
                # What is there now is there to the end: the cycle collector need not walk through it ever again.
                gc.collect()
                gc.freeze()
                self._wait(stop, until_idle)
                failed = [c for c in self.listeners.values() if c.state is ContainerState.FAILED]
            if failed and failed[0].reason is not None:
                raise failed[0].reason
            for part in self._parts:
                if part.failure is not None:
                    raise part.failure
        finally:
            restore()

    def _wait(self, stop: threading.Event, until_idle: float | None) -> None:
        interval = 0.2 if until_idle is None else min(0.2, until_idle / 4)
        handled, since = -1, time.monotonic()
        while not stop.wait(interval):
            states = {container.state for container in self.listeners.values()}
            if ContainerState.FAILED in states and ContainerState.RUNNING not in states:
                return
            if any(part.failure is not None for part in self._parts):
                return
            now = time.monotonic()
            count = sum(container.processed for container in self.listeners.values())
            count += sum(part.processed for part in self._parts)
            if count != handled:
                handled, since = count, now
            if until_idle is not None and now - since >= until_idle:
                return

    # -- event loop ----------------------------------------------------------------------------------------------------

    def _event_loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is not None:
            return self._loop
        if self._loop_thread is None:
            self._loop_thread = LoopThread(f"{self.name}-listeners")
        return self._loop_thread.loop

    def _call_hook(self, hook: Callable[[], Any], timeout: float | None = None) -> None:
        result = hook()
        if inspect.iscoroutine(result):
            future = asyncio.run_coroutine_threadsafe(result, self._event_loop())
            try:
                future.result(timeout)
            except concurrent.futures.TimeoutError:
                if future.done():
                    raise  # the hook's own
                future.cancel()
                raise TimeoutError(f"the hook {hook!r} did not finish in time and was cancelled") from None


class _Client:
    """What an application has while it is connected: the broker it may have started, the engine, the admin client."""

    def __init__(self, settings: settings_module.OttlaSettings, *, in_child: bool) -> None:
        self._broker: Any = None
        self._admin: AdminClient | None = None
        self._lock = threading.Lock()
        servers = settings.bootstrap_servers
        if servers is None:
            self._broker = _embedded_broker()(data=settings.data, process=in_child)
            self._broker.start()
            servers = self._broker.bootstrap_servers
        self.bootstrap_servers: str = servers
        self.engine = Engine(ClientConfig(bootstrap_servers=servers))

    @property
    def admin(self) -> AdminClient:
        with self._lock:
            if self._admin is None:
                self._admin = AdminClient(bootstrap_servers=self.bootstrap_servers, engine=self.engine)
            return self._admin

    def close(self, timeout: float) -> None:
        if self._admin is not None:
            self._admin.close(timeout)
        self.engine.close(timeout)
        if self._broker is not None:
            self._broker.stop()


class _AppProducerFactory(ProducerFactory):
    """Adds what only an application knows, once it has read its settings."""

    def __init__(self, app: Ottla, config: Mapping[str, Any] | None) -> None:
        super().__init__(config, engine=lambda: app._started_client().engine)
        self._app = app

    def settings(self) -> dict[str, Any]:
        app = self._app
        defaults = {"client_id": f"{app.name}-producer", "bootstrap_servers": lambda: app.bootstrap_servers}
        return {**defaults, **app.settings.producer, **super().settings()}

    def default_prefix(self) -> str:
        from ottla.transaction.slots import default_prefix

        return default_prefix(self._app.name, self._app.settings.instance)


class _AppConsumerFactory(ConsumerFactory):
    """The same for consumers."""

    def __init__(self, app: Ottla, config: Mapping[str, Any] | None) -> None:
        super().__init__(config, engine=lambda: app._started_client().engine)
        self._app = app

    def settings(self) -> dict[str, Any]:
        app = self._app
        defaults = {"client_id": f"{app.name}-consumer", "bootstrap_servers": lambda: app.bootstrap_servers}
        return {**defaults, **LISTENER_DEFAULTS, **app.settings.consumer, **self.config}


def _embedded_broker() -> Any:
    # By entry point: this module must not import a broker, which an application on Apache Kafka does without.
    found = importlib.metadata.entry_points(group="ottla.broker", name="embedded")
    for entry_point in found:
        return entry_point.load()
    raise ConfigError("there is no address (bootstrap_servers) and no embedded broker installed; give an address")


def _originals(source: object) -> list[ListenerEndpoint]:
    """The endpoints as the bare decorator made them, also of bound methods."""
    if inspect.ismodule(source) or not callable(source):
        members = [member for _, member in inspect.getmembers(source, callable)]
    else:
        members = [source]
    return [e for member in members for e in getattr(member, "__ottla_listeners__", ())]


async def _called(hook: Callable[[], Any]) -> None:
    result = hook()
    if inspect.isawaitable(result):
        await result


def _refuse_event_loop(what: str, instead: str) -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise RuntimeError(f"{what} would block the event loop that runs on this thread; use {instead}")


@contextmanager
def _process_of_an_application() -> Iterator[None]:
    """Settings of the interpreter that are not a library's to make; what was before is put back."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(RUN_SWITCH_INTERVAL_SECONDS)
    try:
        yield
    finally:
        sys.setswitchinterval(before)
        gc.unfreeze()


def _stop_on_signals(stop: threading.Event) -> Callable[[], None]:
    """Let SIGINT and SIGTERM set the event; gives what puts the old handlers back."""
    if threading.current_thread() is not threading.main_thread():
        return lambda: None

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    return restore


def _stop_at_exit(reference: weakref.ref[Ottla]) -> None:
    app = reference()
    if app is not None and (app._running or app._client is not None):
        try:
            app.stop()
        except Exception:
            logger.exception("%s did not stop cleanly", app.name)
