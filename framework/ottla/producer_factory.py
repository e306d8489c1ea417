"""ProducerFactory: one shared producer for an application (Spring: DefaultKafkaProducerFactory)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

from ottla.client import KafkaProducer
from ottla.client.engine import Engine
from ottla.consumer_factory import resolved, snake_case


class ProducerFactory:
    """Makes the producer that templates send through: one, shared, made at first use, closed with the factory.

    Args:
        config: client settings in a mapping (snake case or dotted), or as keywords, or both. `bootstrap_servers` may be
            a callable, which is asked when the producer is made.
        key_serializer: `(topic, headers, key) -> bytes | None`; by default as `ottla.serialization`.
        value_serializer: the same for values.
        engine: gives the I/O thread to share; by default the producer has its own.
    """

    def __init__(
        self,
        config: Mapping[str, Any] | None = None,
        /,
        *,
        key_serializer: Any = None,
        value_serializer: Any = None,
        engine: Callable[[], Engine] | None = None,
        **settings: Any,
    ) -> None:
        self.config: dict[str, Any] = snake_case({**(config or {}), **settings})
        self._serializers = {"key_serializer": key_serializer, "value_serializer": value_serializer}
        self._engine = engine
        self._lock = threading.Lock()
        self._producer: KafkaProducer | None = None
        self._closed = False

    def producer(self) -> KafkaProducer:
        """The shared producer, made on the first call. Do not close it; `reset` and `close` do.

        Raises:
            ConfigError: a setting is wrong.
            RuntimeError: the factory is closed.
        """
        producer = self._producer
        if producer is not None:
            return producer
        with self._lock:
            if self._closed:
                raise RuntimeError("the ProducerFactory is closed")
            if self._producer is None:
                self._producer = self._make()
            return self._producer

    def settings(self) -> dict[str, Any]:
        """The client settings of the next producer."""
        return dict(self.config)

    def _make(self) -> KafkaProducer:
        settings = resolved(self.settings())
        settings |= {name: serializer for name, serializer in self._serializers.items() if serializer is not None}
        if self._engine is not None:
            settings["engine"] = self._engine()
        return KafkaProducer(**settings)

    @property
    def is_started(self) -> bool:
        """Whether a producer has been made, so that there may be something to flush."""
        return self._producer is not None

    def with_overrides(self, **config: Any) -> ProducerFactory:
        """A factory with some settings changed, such as other serializers or acks; it has a producer of its own."""
        serializers = {name: config.pop(name, serializer) for name, serializer in self._serializers.items()}
        return ProducerFactory({**self.settings(), **snake_case(config)}, engine=self._engine, **serializers)

    def update_config(self, **config: Any) -> None:
        """Change settings for producers made from now on; with `reset` for the next send."""
        self.config.update(snake_case(config))

    def reset(self, timeout: float = 30.0) -> None:
        """Close the producer, flushing it; the next send makes a new one."""
        with self._lock:
            producer, self._producer = self._producer, None
        if producer is not None:
            producer.close(timeout)

    def close(self, timeout: float = 30.0) -> None:
        """Flush and close the producer, for good."""
        with self._lock:
            self._closed = True
        self.reset(timeout)

    def __enter__(self) -> ProducerFactory:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
