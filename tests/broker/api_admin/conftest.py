"""A broker on the bench with a group coordinator that knows where groups live, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ottla_broker.api import APIS
from ottla_broker.pending import Pending


class GroupPlaces:
    """Which partition of `__consumer_offsets` keeps a group."""

    def partition_for(self, group_id: str) -> int:
        return len(group_id)

    def settle(self, now_ms: int) -> None:
        pass

    def tick(self, now_ms: int) -> None:
        pass

    def deadline_ms(self) -> int | None:
        return None


class Admin:
    """Asks the broker on the bench; what it is answered has been over the wire."""

    def __init__(self, bench: Any) -> None:
        self.bench = bench
        bench.broker.groups = GroupPlaces()

    @property
    def image(self) -> Any:
        return self.bench.controller.image

    def ask(self, request: Any, version: int | None = None) -> Any:
        version = APIS[request.api_key].max_version if version is None else version
        answer = self.bench.ask(request, version)
        assert not isinstance(answer, Pending), "one voter commits at once"
        return type(answer).decode(answer.encode(version), version)


@pytest.fixture
def make_admin(make_bench: Callable[..., Any]) -> Callable[..., Admin]:
    return lambda **config: Admin(make_bench(**config))


@pytest.fixture
def admin(make_admin: Callable[..., Admin]) -> Admin:
    return make_admin()
