"""The containers of an application, by id (Spring: KafkaListenerEndpointRegistry)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ottla.errors import ConfigError
from ottla.listeners.container import ConcurrentMessageListenerContainer


class ListenerRegistry(Mapping[str, ConcurrentMessageListenerContainer]):
    """Containers by id, in the order in which they were registered."""

    def __init__(self) -> None:
        self._containers: dict[str, ConcurrentMessageListenerContainer] = {}

    def register(self, container: ConcurrentMessageListenerContainer) -> None:
        """Add a container.

        Raises:
            ConfigError: its id is taken.
        """
        if container.id in self._containers:
            raise ConfigError(
                f"a listener with the id {container.id!r} is registered already; give one of them another id="
            )
        self._containers[container.id] = container

    def unregister(self, id: str) -> ConcurrentMessageListenerContainer:
        """Take a container out; it is not stopped by that."""
        return self._containers.pop(id)

    def __getitem__(self, id: str) -> ConcurrentMessageListenerContainer:
        try:
            return self._containers[id]
        except KeyError:
            known = ", ".join(self._containers) or "none"
            raise KeyError(f"no listener has the id {id!r}; there are: {known}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._containers)

    def __len__(self) -> int:
        return len(self._containers)
