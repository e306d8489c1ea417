"""ApplicationPart: what `app.include(...)` takes beside listeners, and what runs as long as the application does."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ottla.app import Ottla


class ApplicationPart(ABC):
    """Started after the listeners, and stopped after them."""

    @abstractmethod
    def attach(self, app: Ottla) -> None:
        """The application that it is part of, before each start."""

    @abstractmethod
    def start(self) -> None:
        """Begin; raises what makes that impossible."""

    @abstractmethod
    def request_stop(self) -> None:
        """Begin to stop; must not wait."""

    @abstractmethod
    def stop(self, timeout: float) -> None:
        """Stop; raises TimeoutError if that takes longer than so many seconds."""

    @property
    @abstractmethod
    def failure(self) -> BaseException | None:
        """Why it has stopped by itself, if it has: `app.run()` then ends with that."""

    @property
    @abstractmethod
    def processed(self) -> int:
        """A count that rises with what it does, for `app.run(until_idle=...)`."""
