"""ConsumerFactory: makes the consumers of an application from one set of settings (Spring: ConsumerFactory)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ottla.client import AsyncKafkaConsumer, KafkaConsumer
from ottla.client.engine import Engine
from ottla.listeners.binding import Deserializer

LISTENER_DEFAULTS: Mapping[str, Any] = {
    "auto_offset_reset": "earliest",
    "enable_auto_commit": False,
    "isolation_level": "read_committed",
}
"""Where a listener's consumer differs from a bare KafkaConsumer: nothing is missed, lost or read too early."""


class ConsumerFactory:
    """Settings for consumers, and the deserializers that listeners get their keys and values through.

    Args:
        config: client settings in a mapping (snake case or dotted), or as keywords, or both.
        key_deserializer: `(topic, headers, data) -> key`; by default keys are bytes until a listener's hint says more.
        value_deserializer: the same for values. A failure in either goes to the container's error handler as a
            ConversionError, and never stops a consumer.
        engine: gives the I/O thread that the consumers share; by default each has its own.
    """

    def __init__(
        self,
        config: Mapping[str, Any] | None = None,
        /,
        *,
        key_deserializer: Deserializer | None = None,
        value_deserializer: Deserializer | None = None,
        engine: Callable[[], Engine] | None = None,
        **settings: Any,
    ) -> None:
        self.config: dict[str, Any] = snake_case({**(config or {}), **settings})
        self.key_deserializer = key_deserializer
        self.value_deserializer = value_deserializer
        self._engine = engine

    def consumer(self, overrides: Mapping[str, Any] | None = None, *, suffix: str = "") -> KafkaConsumer:
        """A new consumer with listener defaults; `suffix` tells the consumers of one container apart by client id."""
        return KafkaConsumer(self._settings(overrides, suffix), **self._engine_argument())

    def async_consumer(self, overrides: Mapping[str, Any] | None = None, *, suffix: str = "") -> AsyncKafkaConsumer:
        """The same, with the async face."""
        return AsyncKafkaConsumer(self._settings(overrides, suffix), **self._engine_argument())

    def _engine_argument(self) -> dict[str, Any]:
        return {} if self._engine is None else {"engine": self._engine()}

    def settings(self) -> dict[str, Any]:
        """The client settings of the next consumer, before a listener's own."""
        return {**LISTENER_DEFAULTS, **self.config}

    def _settings(self, overrides: Mapping[str, Any] | None, suffix: str) -> dict[str, Any]:
        settings = resolved({**self.settings(), **snake_case(overrides or {})})
        if suffix:
            for name in ("client_id", "group_instance_id"):
                if settings.get(name):
                    settings[name] = f"{settings[name]}-{suffix}"
        return settings


def resolved(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings with the servers asked for, where they are given as a callable."""
    servers = settings.get("bootstrap_servers")
    return {**settings, "bootstrap_servers": servers()} if callable(servers) else settings


def snake_case(config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with Kafka's dotted names written in snake case, so that the two spellings meet."""
    return {name.replace(".", "_"): value for name, value in config.items()}
