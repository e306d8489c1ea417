"""ProducerFactory: the producers of an application (Spring: DefaultKafkaProducerFactory)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ottla.client import KafkaProducer
from ottla.client.config import ProducerConfig, resolve
from ottla.client.engine import Engine
from ottla.consumer_factory import resolved, snake_case
from ottla.errors import ConfigError
from ottla.names import main_module_name

if TYPE_CHECKING:
    from ottla.transaction.producer_pools import ProducerPools

DEFAULT_MAX_PRODUCERS = 64
DEFAULT_MAX_AGE_SECONDS = 86_400.0
"""A broker forgets a transactional id that was not used for a week (transactional.id.expiration.ms)."""


def checked_prefix(prefix: str | None) -> str | None:
    """A prefix of transactional ids as it was given.

    Raises:
        ConfigError: it is empty, as a variable may be that somebody has forgotten to set.
    """
    if prefix == "":
        raise ConfigError(
            "transaction_id_prefix is empty: leave it out, which makes one of application and host, or give it a name "
            "that no other application uses"
        )
    return prefix


class ProducerFactory:
    """Makes the producers that templates send through: a shared one, and those of transactions.

    The shared one is made at the first send outside of a transaction. A transaction takes a producer of a pool, whose
    transactional ids are `prefix + number`: no two processes of a host use the same one at a time, and a process that
    is started again takes those of its predecessor.

    Args:
        config: client settings in a mapping (snake case or dotted), or as keywords, or both. `bootstrap_servers` may be
            a callable, which is asked when a producer is made. `transactional_id` is taken as `transaction_id_prefix`.
        key_serializer: `(topic, headers, key) -> bytes | None`; by default as `ottla.serialization`.
        value_serializer: the same for values.
        transaction_id_prefix: what transactional ids begin with; it must differ between hosts. With it, templates of
            the factory refuse to send outside of a transaction. By default ids name program, host and user, and
            templates send both ways.
        max_producers: how many transactions of a prefix may be open at the same time (64, if not given); the next one
            waits `max_block_ms` at most. Given, it also fixes the ids, as in Spring: 0..n-1 for the first prefix,
            n..2n-1 for the second; otherwise all prefixes share one counter.
        max_age: seconds; a producer of a transaction that was idle for longer is replaced. By default a day.
        engine: gives the I/O thread to share; by default the producers have their own.
    """

    def __init__(
        self,
        config: Mapping[str, Any] | None = None,
        /,
        *,
        key_serializer: Any = None,
        value_serializer: Any = None,
        transaction_id_prefix: str | None = None,
        max_producers: int | None = None,
        max_age: float | None = None,
        engine: Callable[[], Engine] | None = None,
        **settings: Any,
    ) -> None:
        if max_producers is not None and max_producers < 1:
            raise ConfigError(f"max_producers is {max_producers}; it counts producers, so 1 or more")
        self.config: dict[str, Any] = snake_case({**(config or {}), **settings})
        self._serializers = {"key_serializer": key_serializer, "value_serializer": value_serializer}
        self._given_prefix = checked_prefix(transaction_id_prefix)
        checked_prefix(self.config.get("transactional_id"))
        self._max_producers = max_producers
        self._max_age = max_age
        self._engine = engine
        self._lock = threading.Lock()
        self.shared: KafkaProducer | None = None
        """The shared producer, if it was made and is open. `producer()` makes it."""
        self._pools: ProducerPools | None = None
        self._closed = False
        self.parent: ProducerFactory | None = None
        """The factory that this one was made from by `with_overrides`."""

    def producer(self) -> KafkaProducer:
        """The shared producer, made on the first call. Do not close it; `reset` and `close` do.

        Raises:
            ConfigError: a setting is wrong.
            RuntimeError: the factory is closed.
        """
        producer = self.shared
        if producer is not None:
            return producer
        with self._lock:
            self._check_open()
            if self.shared is None:
                self.shared = self._make()
            return self.shared

    def settings(self) -> dict[str, Any]:
        """The client settings of the next producer."""
        return dict(self.config)

    def _make(self, transactional_id: str | None = None, engine: Engine | None = None) -> KafkaProducer:
        settings = self._settings_for(transactional_id)
        if engine is None and self._engine is not None:
            engine = self._engine()
        return KafkaProducer(engine=engine, **settings)

    def _settings_for(self, transactional_id: str | None) -> dict[str, Any]:
        settings = resolved(self.settings())
        settings |= {name: serializer for name, serializer in self._serializers.items() if serializer is not None}
        settings.pop("transactional_id", None)
        if transactional_id is not None:
            settings["transactional_id"] = transactional_id
        return settings

    @property
    def is_started(self) -> bool:
        """Whether the shared producer has been made, so that there may be something to flush."""
        return self.shared is not None

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("the ProducerFactory is closed")

    # -- transactions --------------------------------------------------------------------------------------------------

    @property
    def is_transactional(self) -> bool:
        """Whether its user gave it a prefix, so that a plain send is a mistake."""
        return self._given_transaction_id_prefix() is not None

    def _given_transaction_id_prefix(self) -> str | None:
        return self._given_prefix or self.settings().get("transactional_id")

    def default_prefix(self) -> str:
        """The prefix where the user gives none."""
        from ottla.transaction.slots import default_prefix

        return default_prefix(main_module_name())

    def check_transactions(self) -> None:
        """Refuse settings that rule transactions out.

        Raises:
            ConfigError: acks, retries or idempotence contradict a transactional id.
        """
        resolve(ProducerConfig, {**self._settings_for("x"), "bootstrap_servers": "localhost:9092"})

    def producer_pools(self) -> ProducerPools:
        """The producers of transactions, made on the first call; a reset replaces them.

        Raises:
            ConfigError: a setting is wrong.
            RuntimeError: the factory is closed.
        """
        pools = self._pools
        if pools is not None:
            return pools
        with self._lock:
            self._check_open()
            if self._pools is None:
                self._pools = self._make_pools()
            return self._pools

    def _make_pools(self) -> ProducerPools:
        from ottla.transaction.limits import TransactionLimits
        from ottla.transaction.producer_pool import PoolSettings
        from ottla.transaction.producer_pools import ProducerPools
        from ottla.transaction.slots import Slots

        config = resolve(ProducerConfig, self._settings_for("x"))
        return ProducerPools(
            self._given_transaction_id_prefix() or self.default_prefix(),
            self._engine() if self._engine is not None else Engine(config, name="ottla-transactions"),
            owns_engine=self._engine is None,
            slots=Slots(client_id=config.client_id),
            settings=PoolSettings(
                make=self._make_transactional,
                limit=self._max_producers or DEFAULT_MAX_PRODUCERS,
                max_age=DEFAULT_MAX_AGE_SECONDS if self._max_age is None else self._max_age,
                max_wait=config.max_block_ms / 1000,
                fixed_ranges=self._max_producers is not None,
            ),
            limits=TransactionLimits(config.transaction_timeout_ms),
            patience=(config.delivery_timeout_ms + 3 * config.max_block_ms) / 1000 + 5.0,
        )

    def end_left_behind(self) -> None:
        """End, in the background, what processes of this host that died left open; nothing is done if there is none."""
        from ottla.transaction.slots import Slots

        prefix = self._given_transaction_id_prefix() or self.default_prefix()
        if Slots().left_behind(prefix):
            self.producer_pools().pool(prefix)  # a prefix's first use does it

    def _make_transactional(self, transactional_id: str, engine: Engine) -> Any:
        return self._make(transactional_id, engine)

    # -- changes -------------------------------------------------------------------------------------------------------

    def with_overrides(self, **config: Any) -> ProducerFactory:
        """A factory with some settings changed, such as other serializers or acks; it has producers of its own."""
        serializers = {name: config.pop(name, serializer) for name, serializer in self._serializers.items()}
        own: dict[str, Any] = {
            "transaction_id_prefix": self._given_prefix,
            "max_producers": self._max_producers,
            "max_age": self._max_age,
        }
        own = {name: config.pop(name, value) for name, value in own.items()}
        factory = ProducerFactory({**self.settings(), **snake_case(config)}, engine=self._engine, **serializers, **own)
        factory.parent = self
        return factory

    def update_config(self, **config: Any) -> None:
        """Change settings for producers made from now on; with `reset` for the next send."""
        self.config.update(snake_case(config))

    def reset(self, timeout: float = 30.0) -> None:
        """Close the producers, flushing them; the next send or transaction makes new ones.

        Transactions that are open come to their own end; their producers are closed then.
        """
        with self._lock:
            producer, self.shared = self.shared, None
            pools, self._pools = self._pools, None
        if producer is not None:
            producer.close(timeout)
        if pools is not None:
            pools.retire(timeout)

    def close(self, timeout: float = 30.0) -> None:
        """Flush and close the producers, for good."""
        with self._lock:
            self._closed = True
        self.reset(timeout)

    def __enter__(self) -> ProducerFactory:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
