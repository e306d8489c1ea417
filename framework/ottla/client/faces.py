"""Two faces for one logic: `blocking` and `awaited` turn a coroutine method of a core into a method of a face.

A core is a class whose coroutines run on the engine's I/O loop. A face holds one (`_core`) and its engine (`_engine`):

    class AdminClient(Face):        list_topics = blocking(AdminCore.list_topics)
    class AsyncAdminClient(Face):   list_topics = awaited(AdminCore.list_topics)

Type checkers see the core's own arguments and result.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from ottla.client.engine import Engine

P = ParamSpec("P")
T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])
Core_contra = TypeVar("Core_contra", contravariant=True)


class Face(Protocol):
    """What `blocking` and `awaited` need of a class."""

    _engine: Engine

    @property
    def _core(self) -> Any: ...


def blocking(
    method: Callable[Concatenate[Core_contra, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[Face, P], T]:
    """The method, waited for on the caller's thread; it raises where that would block an event loop."""

    def face(self: Face, /, *args: P.args, **kwargs: P.kwargs) -> T:
        name = f"Async{type(self).__name__}.{method.__name__}(...)"
        return self._engine.run(method(self._core, *args, **kwargs), _patience(self, kwargs), name=name)

    return _named_as(face, method)


def awaited(
    method: Callable[Concatenate[Core_contra, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[Face, P], Coroutine[Any, Any, T]]:
    """The method, awaited from whatever loop the caller runs on."""

    async def face(self: Face, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._engine.call(method(self._core, *args, **kwargs))

    return _named_as(face, method)


def _named_as(face: F, method: Any) -> F:
    functools.update_wrapper(face, method)
    return face


def _patience(face: Face, kwargs: Any) -> float:
    """The core has time limits of its own; this one is for what they do not see, and a little longer."""
    timeout = kwargs.get("timeout")
    own = timeout if timeout is not None else face._engine.config.default_api_timeout_ms / 1000
    return float(own) + 5.0
