"""Cluster: the connections to all brokers, and the metadata that says which to ask. On the engine's I/O loop only.

Connections are kept per (node, purpose, lane). A connection is strictly ordered, so a Fetch that is parked at the
broker would hold up everything behind it: fetching, producing, talking to a coordinator and the rest have their own.
A *lane* separates clients that share an engine where the same holds between them: two consumers' fetches, or two
producers' acks=all writes (a broker works on one request of a connection at a time).

A node that cannot be reached is left alone for a while (`reconnect.backoff`, doubling, with jitter). When no node can
be reached, everything known is forgotten and the bootstrap servers are asked again (KIP-899, KIP-1102).
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from ottla.client.backoff import Backoff
from ottla.client.config import ClientConfig
from ottla.client.connection import Connection, ConnectionOptions
from ottla.client.metadata import Metadata, Node
from ottla.client.metadata_refresher import MetadataRefresher, TopicInterest
from ottla.client.receiving import Receiving
from ottla.errors import ClientClosed, Disconnected, NoAnswer, Retriable, error_for
from ottla_wire.messages.find_coordinator import FindCoordinatorRequest
from ottla_wire.schema import Request

logger = logging.getLogger("ottla.client")

IDLE_CHECK_SECONDS: Final = 30.0


class Purpose(Enum):
    """What a connection is for; each purpose has its own, per node."""

    PRODUCE = "produce"
    FETCH = "fetch"
    COORDINATOR = "coordinator"
    CONTROL = "control"


class CoordinatorKind(Enum):
    """Whose coordinator is looked for."""

    GROUP = 0
    TRANSACTION = 1
    SHARE = 2


@dataclass(frozen=True, slots=True)
class Versioned:
    """A request whose fields depend on the version that the broker has: `build(version)` makes it."""

    request_class: type[Request]
    build: Callable[[int], Request]


@dataclass(frozen=True, slots=True)
class FinalizedFeatures:
    """What all brokers of the cluster have agreed on (KIP-584), by name. A higher epoch is newer; -1: none told yet."""

    epoch: int
    levels: Mapping[str, int]


class Lane:
    """Keeps one client's connections apart from those of others on the same engine, under its own client id.

    `receiving` is for connections whose answers may be large.
    """

    __slots__ = ("client_id", "receiving")

    def __init__(self, client_id: str, receiving: Receiving | None = None) -> None:
        self.client_id = client_id
        self.receiving = receiving

    def __repr__(self) -> str:
        return f"<Lane {self.client_id}>"


_Key = tuple[int, Purpose, Lane | None]


class _Channel:
    """The place of one connection: open, being opened, or neither."""

    __slots__ = ("connection", "opening")

    def __init__(self) -> None:
        self.connection: Connection | None = None
        self.opening: asyncio.Task[Connection] | None = None


class _Reachability:
    """How a node fared lately: failures in a row, and until when it is left alone."""

    __slots__ = ("failures", "retry_at_ms")

    def __init__(self) -> None:
        self.failures = 0
        self.retry_at_ms = 0


class Cluster:
    """What clients use to talk to brokers. Every wait in it has an end: the request's or the caller's timeout."""

    def __init__(self, loop: asyncio.AbstractEventLoop, config: ClientConfig, rng: random.Random) -> None:
        self.metadata = Metadata()
        self.config = config
        self.connections_made = 0
        self.features = FinalizedFeatures(-1, {})
        self._loop = loop
        self._rng = rng
        self._bootstrap = [Node(-1 - i, host, port) for i, (host, port) in enumerate(config.addresses())]
        self._channels: dict[_Key, _Channel] = {}
        self._reachability: dict[int, _Reachability] = {}
        self._reconnect = Backoff(config.reconnect_backoff_ms, config.reconnect_backoff_max_ms, rng)
        self._setup = Backoff(
            config.socket_connection_setup_timeout_ms, config.socket_connection_setup_timeout_max_ms, rng
        )
        self._retry = Backoff(config.retry_backoff_ms, config.retry_backoff_max_ms, rng)
        self._coordinators: dict[tuple[CoordinatorKind, str], int] = {}
        self._listeners: list[Callable[[], None]] = []
        self._refresher = MetadataRefresher(self, rng)
        self._idle_timer: asyncio.TimerHandle | None = None
        self._closed = False

    def now_ms(self) -> int:
        """The loop's monotonic clock in milliseconds."""
        return int(self._loop.time() * 1000)

    # --- requests

    async def send(
        self,
        node_id: int,
        request: Request | Versioned,
        *,
        purpose: Purpose = Purpose.CONTROL,
        lane: Lane | None = None,
        timeout_ms: int | None = None,
        max_version: int | None = None,
    ) -> Any:
        """Send a request to a broker, connecting first where needed, and wait for its answer.

        Args:
            node_id: the broker.
            request: any request message; it goes out in the highest version that both sides have. `Versioned` is built
                for that version.
            purpose: which of the broker's connections it takes.
            lane: the client's own connection of that purpose.
            timeout_ms: for connecting and answering together; `request_timeout_ms` if not given.
            max_version: do not use a higher version than this.

        Raises:
            Disconnected: the broker cannot be reached, or the connection failed while the request was in flight.
            NoAnswer: no answer in time (a RequestTimedOut).
            UnsupportedVersion: there is no version that both sides have.
        """
        deadline_ms = self.now_ms() + (self.config.request_timeout_ms if timeout_ms is None else timeout_ms)
        connection = await self.connect(node_id, purpose, lane, deadline_ms)
        if isinstance(request, Versioned):
            version = connection.version_for(request.request_class, max_version)
            request = request.build(version)
        else:
            version = connection.version_for(type(request), max_version)
        return await connection.send(request, version, max(1, deadline_ms - self.now_ms()))

    async def connect(self, node_id: int, purpose: Purpose, lane: Lane | None, deadline_ms: int) -> Connection:
        """The connection, opened where needed; waits for the node's reconnect backoff.

        Raises:
            Disconnected: it could not be opened.
            NoAnswer: `deadline_ms` passed first.
        """
        channel = self._channel(node_id, purpose, lane)
        while True:
            if channel.connection is not None:
                return channel.connection
            left_ms = deadline_ms - self.now_ms()
            if left_ms <= 0:
                raise NoAnswer(f"no connection to {self._name(node_id)} in time")
            if channel.opening is None:
                pause_ms = self._reach(node_id).retry_at_ms - self.now_ms()
                if pause_ms > 0:
                    await asyncio.sleep(min(pause_ms, left_ms) / 1000)
                    continue
                self._open(channel, node_id, purpose, lane)
            opening = channel.opening
            assert opening is not None
            # Others may wait for the same connection: it is not cancelled with this caller.
            await asyncio.wait([opening], timeout=left_ms / 1000)
            if opening.done():
                return opening.result()

    def ready_connection(self, node_id: int, purpose: Purpose, lane: Lane | None) -> Connection | None:
        """The connection if it is open; otherwise begins to open it, backoff permitting, and returns None.

        A listener (`add_listener`) is called when it is open, or has failed.
        """
        channel = self._channel(node_id, purpose, lane)
        if channel.connection is None and channel.opening is None and self.retry_in_ms(node_id) == 0:
            self._open(channel, node_id, purpose, lane)
        return channel.connection

    def retry_in_ms(self, node_id: int) -> int:
        """How long a node that could not be reached is still left alone."""
        return max(0, self._reach(node_id).retry_at_ms - self.now_ms())

    def close_lane(self, lane: Lane) -> None:
        """Close a client's own connections: the client is closed."""
        for key, channel in list(self._channels.items()):
            if key[2] is lane:
                del self._channels[key]
                self._close_channel(channel)

    def disconnect(self, node_id: int) -> None:
        """Close all connections to a node."""
        for key, channel in list(self._channels.items()):
            if key[0] == node_id:
                self._close_channel(channel)

    # --- whom to ask

    async def any_node(self, *, timeout_ms: int | None = None) -> int:
        """A broker for a request that any may answer: one that is connected and has least to do, if there is one.

        Raises:
            NoAnswer: none could be reached in time (`request_timeout_ms` if not given).
        """
        deadline_ms = self.now_ms() + (self.config.request_timeout_ms if timeout_ms is None else timeout_ms)
        last: Exception | None = None
        while True:
            for node in self.candidates():
                try:
                    await self.connect(node.id, Purpose.CONTROL, None, deadline_ms)
                except (Disconnected, NoAnswer) as error:
                    logger.debug("not asking %s: %s", node, error)
                    if last is None or isinstance(error, Disconnected):
                        last = error  # why there is no connection says more than that the time was up
                else:
                    return node.id
            self.maybe_rebootstrap()
            if self.now_ms() >= deadline_ms:
                raise NoAnswer(f"no broker could be reached: {last}") from last

    async def send_to_any(
        self, request: Request | Versioned, *, timeout_ms: int | None = None, max_version: int | None = None
    ) -> Any:
        """Send a request that any broker may answer. Raises as `send` and `any_node`."""
        node_id = await self.any_node(timeout_ms=timeout_ms)
        return await self.send(node_id, request, timeout_ms=timeout_ms, max_version=max_version)

    async def controller(self, *, timeout_ms: int | None = None) -> int:
        """The broker that takes requests meant for the controller.

        Raises:
            NoAnswer: no broker says which it is.
        """
        known = self.metadata.controller_id
        if self.metadata.node(known) is None:
            await self.refresh(timeout_ms=timeout_ms)
            known = self.metadata.controller_id
        if self.metadata.node(known) is not None:
            return known
        return await self.any_node(timeout_ms=timeout_ms)

    def leader(self, topic: str, partition: int) -> int | None:
        """The broker that leads a partition, as far as known; None asks for a `refresh`."""
        return self.metadata.leader(topic, partition)

    async def find_coordinator(self, key: str, kind: CoordinatorKind, *, timeout_ms: int | None = None) -> int:
        """The broker that coordinates a group or a transactional id; remembered until `forget_coordinator`.

        Raises:
            KafkaError: the brokers refuse (authorization, invalid id), or NoAnswer: none was found in time.
        """
        known = self._coordinators.get((kind, key))
        if known is not None and self.metadata.node(known) is not None:
            return known
        timeout_ms = self.config.default_api_timeout_ms if timeout_ms is None else timeout_ms
        deadline_ms = self.now_ms() + timeout_ms
        failures = 0
        while True:
            try:
                return await self.ask_for_coordinator(key, kind, timeout_ms=max(1, deadline_ms - self.now_ms()))
            except Retriable as error:
                failures += 1
                pause_ms = self._retry.pause_ms(failures)
                if self.now_ms() + pause_ms >= deadline_ms:
                    raise NoAnswer(
                        f"no {kind.name.lower()} coordinator for {key!r} in {timeout_ms} ms: {error}"
                    ) from error
                await asyncio.sleep(pause_ms / 1000)

    def forget_coordinator(self, key: str, kind: CoordinatorKind) -> None:
        """The broker said that it is not (or not yet) the coordinator, or cannot be reached: look again."""
        self._coordinators.pop((kind, key), None)

    async def ask_for_coordinator(self, key: str, kind: CoordinatorKind, *, timeout_ms: int | None = None) -> int:
        """Look a coordinator up now, once; `find_coordinator` is for those who want it to be found.

        Raises:
            KafkaError: there is none at the moment (Retriable), or the brokers refuse.
        """
        timeout_ms = self.config.request_timeout_ms if timeout_ms is None else timeout_ms

        def build(version: int) -> FindCoordinatorRequest:
            if version < 4:
                return FindCoordinatorRequest(key=key, key_type=kind.value)
            return FindCoordinatorRequest(key_type=kind.value, coordinator_keys=[key])

        request = Versioned(FindCoordinatorRequest, build)
        answer = await self.send_to_any(request, timeout_ms=min(timeout_ms, self.config.request_timeout_ms))
        found = answer.coordinators[0] if answer.coordinators else answer
        error = error_for(found.error_code, found.error_message)
        if error is not None:
            raise error
        self.metadata.learn_node(Node(found.node_id, found.host, found.port))
        self._coordinators[kind, key] = found.node_id
        return int(found.node_id)

    # --- metadata

    async def refresh(
        self, topics: Iterable[str] | None = None, *, timeout_ms: int | None = None, create: bool = False
    ) -> Metadata:
        """Ask for metadata now and wait until it is merged; callers at the same time share the request.

        Args:
            topics: to ask for, beside those that clients have an interest in.
            timeout_ms: `default_api_timeout_ms` if not given.
            create: whether asking for `topics` may create them, where brokers are set up to do so.

        Raises:
            NoAnswer: no broker answered in time; the message says what the last one failed with.
        """
        return await self._refresher.refresh(topics, timeout_ms=timeout_ms, create=create)

    def request_refresh(self, topics: Iterable[str] = ()) -> None:
        """Ask for metadata soon; returns at once. Listeners are called when it is there."""
        self._refresher.request(topics)

    def add_interest(self, interest: TopicInterest) -> None:
        """Include a client's topics in every refresh."""
        self._refresher.interests.append(interest)

    def remove_interest(self, interest: TopicInterest) -> None:
        """The client is closed."""
        if interest in self._refresher.interests:
            self._refresher.interests.remove(interest)

    def add_listener(self, listener: Callable[[], None]) -> None:
        """Call back after every change: metadata merged, a connection opened, failed or lost."""
        self._listeners.append(listener)

    def remove_listener(self, listener: Callable[[], None]) -> None:
        """Do not call it any more."""
        if listener in self._listeners:
            self._listeners.remove(listener)

    def changed(self) -> None:
        """Tell the listeners."""
        for listener in list(self._listeners):
            try:
                listener()
            except Exception:  # one client's fault must not stop the others
                logger.exception("a listener of the cluster failed")

    def candidates(self) -> list[Node]:
        """Whom to ask what any broker may answer: connected ones with least to do, then those that may be reachable."""
        nodes = self.metadata.nodes() or list(self._bootstrap)
        self._rng.shuffle(nodes)

        def order(node: Node) -> tuple[int, int]:
            channel = self._channels.get((node.id, Purpose.CONTROL, None))
            if channel is not None and channel.connection is not None:
                return 0, len(channel.connection.in_flight)
            return 1, self.retry_in_ms(node.id)

        return sorted(nodes, key=order)

    def maybe_rebootstrap(self, *, even_if_reachable: bool = False) -> bool:
        """Go back to the bootstrap servers if no known broker can be reached; says whether that was done."""
        nodes = self.metadata.nodes()
        if self.config.metadata_recovery_strategy != "rebootstrap" or not nodes:
            return False
        if not even_if_reachable and not all(self._reach(node.id).failures for node in nodes):
            return False
        logger.warning("no known broker can be reached (%s): back to the bootstrap servers", ", ".join(map(str, nodes)))
        self.metadata.rebootstrap()
        self._coordinators.clear()
        for key, channel in list(self._channels.items()):
            if key[2] is None:
                self._close_channel(channel)
        return True

    # --- connections

    def _channel(self, node_id: int, purpose: Purpose, lane: Lane | None) -> _Channel:
        if self._closed:
            raise ClientClosed("the client is closed")
        key = (node_id, purpose, lane)
        channel = self._channels.get(key)
        if channel is None:
            channel = self._channels[key] = _Channel()
        if self._idle_timer is None and self.config.connections_max_idle_ms >= 0:
            self._idle_timer = self._loop.call_later(IDLE_CHECK_SECONDS, self._close_idle)
        return channel

    def _reach(self, node_id: int) -> _Reachability:
        found = self._reachability.get(node_id)
        if found is None:
            found = self._reachability[node_id] = _Reachability()
        return found

    def _node(self, node_id: int) -> Node | None:
        if node_id < 0:
            index = -1 - node_id
            return self._bootstrap[index] if index < len(self._bootstrap) else None
        return self.metadata.node(node_id)

    def _name(self, node_id: int) -> str:
        return str(self._node(node_id) or f"broker {node_id}")

    def _open(self, channel: _Channel, node_id: int, purpose: Purpose, lane: Lane | None) -> None:
        task = self._loop.create_task(self._opened(channel, node_id, lane), name=f"connect {node_id} {purpose.value}")
        channel.opening = task
        task.add_done_callback(_retrieve)

    async def _opened(self, channel: _Channel, node_id: int, lane: Lane | None) -> Connection:
        reach = self._reach(node_id)
        try:
            node = self._node(node_id)
            if node is None:
                raise Disconnected(f"the address of broker {node_id} is not known")

            def lost(connection: Connection) -> None:
                if channel.connection is connection:
                    channel.connection = None
                    reach.retry_at_ms = self.now_ms() + self._reconnect.pause_ms(1)
                    self.changed()

            connection = await Connection.open(node, self._options(lane, reach.failures), lost)
            if not connection.is_usable:  # lost before this task had its turn; `lost` did not know it as the channel's
                raise Disconnected(f"{node} closed the connection")
        except (Disconnected, NoAnswer) as error:
            reach.failures += 1
            reach.retry_at_ms = self.now_ms() + self._reconnect.pause_ms(reach.failures)
            logger.debug("%s: attempt %d: %s", self._name(node_id), reach.failures, error)
            channel.opening = None
            self._loop.call_soon(self.changed)
            raise
        except BaseException:
            channel.opening = None
            raise
        reach.failures = 0
        reach.retry_at_ms = 0
        self.connections_made += 1
        if connection.finalized_features_epoch > self.features.epoch:
            self.features = FinalizedFeatures(connection.finalized_features_epoch, connection.finalized_features)
        channel.opening = None
        if self._closed:
            connection.close()
            raise Disconnected("the client is closed")
        channel.connection = connection
        self._loop.call_soon(self.changed)
        return connection

    def _options(self, lane: Lane | None, failures: int) -> ConnectionOptions:
        config = self.config
        return ConnectionOptions(
            client_id=config.client_id if lane is None else lane.client_id,
            request_timeout_ms=config.request_timeout_ms,
            setup_timeout_ms=self._setup.pause_ms(failures + 1),
            send_buffer_bytes=config.send_buffer_bytes,
            receive_buffer_bytes=config.receive_buffer_bytes,
            receiving=None if lane is None else lane.receiving,
        )

    def _close_channel(self, channel: _Channel) -> None:
        if channel.opening is not None:
            channel.opening.cancel()
        if channel.connection is not None:
            connection, channel.connection = channel.connection, None
            connection.close()

    def _close_idle(self) -> None:
        self._idle_timer = self._loop.call_later(IDLE_CHECK_SECONDS, self._close_idle)
        oldest_ms = self.now_ms() - self.config.connections_max_idle_ms
        for channel in self._channels.values():
            connection = channel.connection
            if connection is not None and not len(connection.in_flight) and connection.last_used_ms < oldest_ms:
                self._close_channel(channel)

    async def close(self) -> None:
        """Close all connections; whatever is in flight fails."""
        self._closed = True
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        await self._refresher.close()
        opening = [channel.opening for channel in self._channels.values() if channel.opening is not None]
        for channel in self._channels.values():
            self._close_channel(channel)
        self._channels.clear()
        if opening:
            await asyncio.wait(opening, timeout=1.0)


def _retrieve(task: asyncio.Task[Connection]) -> None:
    """Look at a failed attempt's error, so that it is not reported as lost when nobody waited for it."""
    if not task.cancelled():
        task.exception()


__all__ = ["Cluster", "CoordinatorKind", "FinalizedFeatures", "Lane", "Purpose", "TopicInterest", "Versioned"]
