"""What `@listener` accepts, and which listeners an application finds."""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from ottla import AckMode, listener
from ottla.errors import ConfigError
from ottla.listeners import endpoint as module
from ottla.listeners.binding import Delivery, bind
from ottla.listeners.endpoint import BARE_LISTENERS, endpoints_of, is_unbound_method, unique


@pytest.fixture(autouse=True)
def bare_listeners(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    listeners: list[Any] = []
    monkeypatch.setattr(module, "BARE_LISTENERS", listeners)
    return listeners


def test_the_function_stays_a_plain_function(bare_listeners: list[Any]) -> None:
    @listener("orders")
    def bill(order: dict[str, int]) -> int:
        return order["id"]

    assert bill({"id": 3}) == 3
    assert [endpoint.topics for endpoint in bare_listeners] == [("orders",)]


def test_one_of_topics_pattern_and_partitions_is_needed() -> None:
    for arguments in ({}, {"pattern": "a", "partitions": {"a": [0]}}):
        with pytest.raises(ConfigError, match="exactly one of topics, pattern= and partitions="):
            listener(**arguments)(lambda value: None)  # type: ignore[arg-type]


def test_forgetting_the_parentheses_is_explained() -> None:
    with pytest.raises(ConfigError, match=r"write @listener\('orders'\)"):

        @listener  # type: ignore[arg-type]
        def bill(order: bytes) -> None: ...


def test_a_concurrency_below_one_is_refused() -> None:
    with pytest.raises(ConfigError, match="concurrency is 0"):
        listener("orders", concurrency=0)(lambda value: None)


def test_a_pattern_that_is_no_regular_expression_is_refused() -> None:
    with pytest.raises(ConfigError, match="is not a regular expression"):
        listener(pattern="order(")(lambda value: None)


def test_record_acknowledgment_of_batches_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"AckMode\.BATCH"):
        listener("orders", batch=True, ack=AckMode.RECORD)(lambda value: None)


def test_a_function_may_be_decorated_twice() -> None:
    @listener("orders", group="a")
    @listener("returns", group="b")
    def both(value: bytes) -> None: ...

    assert {endpoint.topics[0] for endpoint in endpoints_of(both)} == {"orders", "returns"}


def test_listeners_of_an_instance_are_bound_to_it() -> None:
    class Shop:
        def __init__(self, name: str) -> None:
            self.name = name

        @listener("orders")
        def bill(self, order: bytes) -> str:
            return self.name

    shops = [Shop("a"), Shop("b")]
    found = [endpoint for shop in shops for endpoint in endpoints_of(shop)]
    assert [endpoint.function(b"") for endpoint in found] == ["a", "b"]
    assert len(unique([*found, *endpoints_of(shops[0])])) == 2


def test_listeners_of_a_module_are_found() -> None:
    shop = types.ModuleType("shop")

    @listener("orders")
    def bill(order: bytes) -> None: ...

    shop.bill = bill  # type: ignore[attr-defined]
    shop.other = len  # type: ignore[attr-defined]
    assert [endpoint.function for endpoint in endpoints_of(shop)] == [bill]


class Unbound:
    @listener("orders")
    def bill(self, order: bytes) -> None: ...


BARE_LISTENERS.pop()  # a listener of this module must not become one of every application that a test starts


def test_a_method_without_its_instance_is_recognised() -> None:
    endpoint = next(iter(endpoints_of(Unbound.bill)))
    assert is_unbound_method(endpoint)
    assert not any(is_unbound_method(bound) for bound in endpoints_of(Unbound()))

    @listener("orders")
    def local(order: bytes) -> None: ...

    assert not is_unbound_method(next(iter(endpoints_of(local))))


def test_hints_of_a_nested_function_may_name_what_is_local_to_its_scope(
    bare_listeners: list[Any], make_record: Any
) -> None:
    class Order(BaseModel):
        id: int

    @listener("orders")
    def bill(order: Order) -> int:
        return order.id

    endpoint = bare_listeners[0]
    bound = bind(endpoint.function, namespace=endpoint.namespace)
    assert bound.call(make_record(0, value=b'{"id": 5}'), Delivery(consumer=None)) == 5
