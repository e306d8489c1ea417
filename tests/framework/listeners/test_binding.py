"""Arguments of a listener by its type hints. (Not as strings: the functions here refer to local names.)"""

import asyncio
from dataclasses import dataclass
from typing import Annotated, Any

import pytest
from pydantic import BaseModel

from ottla import Acknowledgment, ConsumerRecord, Depends, Header, Key, Message, Payload, RecordMetadata
from ottla.errors import ConfigError, ConversionError
from ottla.listeners.binding import Delivery, bind
from ottla.listeners.conversion import UnfitRecord


class Order(BaseModel):
    id: int
    amount: float


@dataclass
class Point:
    x: int
    y: int


DELIVERY = Delivery(consumer=None)


def call(function: Any, record: Any, **more: Any) -> Any:
    return bind(function, **more).call(record, DELIVERY)


def test_a_pydantic_model_is_made_from_json(make_record: Any) -> None:
    def listener(order: Order) -> Order:
        return order

    assert call(listener, make_record(0, value=b'{"id": 1, "amount": 9.5}')) == Order(id=1, amount=9.5)


def test_dataclasses_and_plain_json_types_are_made_from_json(make_record: Any) -> None:
    def point(value: Point) -> Point:
        return value

    def mapping(value: dict[str, int]) -> dict[str, int]:
        return value

    record = make_record(0, value=b'{"x": 1, "y": 2}')
    assert call(point, record) == Point(1, 2)
    assert call(mapping, record) == {"x": 1, "y": 2}


def test_bytes_and_text_come_as_they_are(make_record: Any) -> None:
    def raw(value: bytes) -> bytes:
        return value

    def text(value: str) -> str:
        return value

    record = make_record(0, value="grüß".encode())
    assert call(raw, record) == "grüß".encode()
    assert call(text, record) == "grüß"


def test_an_unannotated_parameter_gets_the_bytes(make_record: Any) -> None:
    def listener(value):  # type: ignore[no-untyped-def]
        return value

    assert call(listener, make_record(0, value=b"x")) == b"x"


def test_a_tombstone_reaches_a_listener_that_allows_none(make_record: Any) -> None:
    def listener(order: Order | None) -> Any:
        return order

    assert call(listener, make_record(0, value=None)) is None


def test_a_tombstone_is_an_error_for_a_listener_that_does_not_allow_none(make_record: Any) -> None:
    def listener(order: Order) -> None: ...

    with pytest.raises(ConversionError, match=r"orders-0@7: the payload does not fit Order: .*tombstone"):
        call(listener, make_record(7, value=None))


def test_a_payload_that_does_not_fit_names_its_place_and_field_but_not_its_content(make_record: Any) -> None:
    def listener(order: Order) -> None: ...

    with pytest.raises(ConversionError) as caught:
        call(listener, make_record(41, partition=3, value=b'{"id": 1, "amount": "a secret"}'))
    assert "orders-3@41" in str(caught.value)
    assert "amount" in str(caught.value)
    assert "a secret" not in str(caught.value)


def test_headers_are_converted_to_their_hints_and_the_last_of_a_name_wins(make_record: Any) -> None:
    def listener(
        value: bytes,
        source: Annotated[str, Header("source")],
        count: Annotated[int, Header("count")],
        raw: Annotated[bytes, Header("raw")],
    ) -> Any:
        return source, count, raw

    headers = [("source", b"old"), ("source", b"new"), ("count", b"42"), ("raw", b"\xff")]
    assert call(listener, make_record(0, headers=headers)) == ("new", 42, b"\xff")


def test_a_missing_header_is_none_or_the_default_or_an_error(make_record: Any) -> None:
    def optional(value: bytes, source: Annotated[str | None, Header("source")]) -> Any:
        return source

    def default(value: bytes, source: Annotated[str, Header("source")] = "nowhere") -> Any:
        return source

    def needed(value: bytes, source: Annotated[str, Header("source")]) -> Any: ...

    assert call(optional, make_record(0)) is None
    assert call(default, make_record(0)) == "nowhere"
    with pytest.raises(ConversionError, match="header 'source' is not there"):
        call(needed, make_record(0))


def test_key_record_metadata_and_message_are_bound_by_type(make_record: Any) -> None:
    def listener(
        order: Order,
        key: Annotated[str, Key],
        record: ConsumerRecord,
        metadata: RecordMetadata,
        message: Message[Order],
    ) -> Any:
        return key, record, metadata, message

    record = make_record(5, partition=2, value=b'{"id": 1, "amount": 2}', key=b"k", headers=[("h", b"v")])
    key, whole, metadata, message = call(listener, record)
    assert key == "k"
    assert whole is record
    assert (metadata.topic, metadata.partition, metadata.offset, metadata.delivery_attempt) == ("orders", 2, 5, 1)
    assert message.payload == Order(id=1, amount=2)
    assert message.headers == {"h": b"v"}


def test_a_listener_that_takes_only_the_record_needs_no_payload(make_record: Any) -> None:
    def listener(record: ConsumerRecord) -> Any:
        return record.offset

    assert call(listener, make_record(9)) == 9


def test_the_acknowledgment_is_passed_where_it_is_asked_for(make_record: Any) -> None:
    def listener(value: bytes, ack: Acknowledgment) -> Any:
        return ack

    bound = bind(listener)
    acknowledgment: Any = object()
    assert bound.takes_acknowledgment
    assert bound.call(make_record(0), Delivery(None, acknowledgment)) is acknowledgment


def test_dependencies_are_bound_like_the_listener_itself(make_record: Any) -> None:
    def tenant(name: Annotated[str, Header("tenant")]) -> str:
        return name.upper()

    def now() -> int:
        return 12

    def listener(value: bytes, who: Annotated[str, Depends(tenant)], when: Annotated[int, Depends(now)]) -> Any:
        return who, when

    assert call(listener, make_record(0, headers=[("tenant", b"acme")])) == ("ACME", 12)


def test_async_dependencies_are_awaited_for_async_listeners(make_record: Any) -> None:
    async def session() -> str:
        return "session"

    async def listener(value: bytes, session: Annotated[str, Depends(session)]) -> Any:
        return session

    assert asyncio.run(call(listener, make_record(0))) == "session"


def test_async_dependencies_of_plain_listeners_are_refused_at_start() -> None:
    async def session() -> str:
        return "session"

    def listener(value: bytes, session: Annotated[str, Depends(session)]) -> None: ...

    with pytest.raises(ConfigError, match="make the listener async"):
        bind(listener)


def test_two_possible_payloads_are_refused_with_both_names() -> None:
    def listener(order: Order, other: Order) -> None: ...

    with pytest.raises(ConfigError, match="order and other could each be the payload"):
        bind(listener)


def test_payload_can_be_marked(make_record: Any) -> None:
    def listener(order: Annotated[Order, Payload], key: Annotated[bytes | None, Key]) -> Any:
        return order.id

    assert call(listener, make_record(0, value=b'{"id": 4, "amount": 1}')) == 4


def test_a_hint_that_pydantic_cannot_make_is_refused_at_start() -> None:
    class Opaque:
        pass

    def listener(value: Opaque) -> None: ...

    listener.__annotations__["value"] = Opaque
    with pytest.raises(ConfigError, match="value"):
        bind(listener)


def test_a_listener_without_parameters_is_refused() -> None:
    def listener() -> None: ...

    with pytest.raises(ConfigError, match="takes no argument"):
        bind(listener)


def test_a_list_hint_makes_a_batch_listener(make_record: Any) -> None:
    def listener(orders: list[Order], keys: Annotated[list[str | None], Key]) -> Any:
        return [order.id for order in orders], keys

    bound = bind(listener)
    assert bound.is_batch
    records = [make_record(n, value=b'{"id": %d, "amount": 1}' % n, key=b"k") for n in range(3)]
    assert bound.call(records, DELIVERY) == ([0, 1, 2], ["k", "k", "k"])


def test_a_list_payload_of_a_record_listener_says_batch_false(make_record: Any) -> None:
    def listener(numbers: list[int]) -> Any:
        return numbers

    assert call(listener, make_record(0, value=b"[1, 2]"), batch=False) == [1, 2]


def test_a_deserializer_replaces_the_default_reading(make_record: Any) -> None:
    def upper(topic: str, headers: Any, data: bytes | None) -> str:
        assert topic == "orders"
        return data.decode().upper() if data else ""

    def listener(value: str, record: ConsumerRecord) -> Any:
        return value, record.value

    assert call(listener, make_record(0, value=b"abc"), value_deserializer=upper) == ("ABC", "ABC")


def test_a_deserializer_that_fails_gives_a_conversion_error(make_record: Any) -> None:
    def broken(topic: str, headers: Any, data: bytes | None) -> str:
        raise LookupError("no schema 7")

    def listener(value: str) -> None: ...

    with pytest.raises(ConversionError, match="orders-0@3: the value: no schema 7"):
        call(listener, make_record(3), value_deserializer=broken)


@pytest.mark.parametrize("hint", [list[Order], list[str], list[Message[Order]], list[Order | None]])
def test_a_batch_says_which_of_its_records_does_not_fit(hint: Any, make_record: Any) -> None:
    def listener(items): ...  # type: ignore[no-untyped-def]

    listener.__annotations__["items"] = hint
    records = [make_record(n, value=b'{"id": 1, "amount": 2}') for n in range(4)]
    records[2].value = b"\xff"
    with pytest.raises(UnfitRecord, match="orders-0@2") as caught:
        bind(listener).call(records, DELIVERY)
    assert caught.value.index == 2
    assert isinstance(caught.value.__cause__, ConversionError)


def test_what_a_clients_own_deserializer_made_is_validated_and_not_parsed(make_record: Any) -> None:
    def one(order: Order) -> Any:
        return order

    def batch(orders: list[Order]) -> Any:
        return orders

    made = make_record(0)
    made.value = {"id": 3, "amount": 1}
    text = make_record(1)
    text.value = '{"id": 3, "amount": 1}'
    assert call(one, made) == Order(id=3, amount=1)
    assert call(batch, [made]) == [Order(id=3, amount=1)]
    for broken in (lambda: call(one, text), lambda: call(batch, [text])):
        with pytest.raises((ConversionError, UnfitRecord)):
            broken()


@pytest.mark.parametrize("extra", [0, 1, 2])
def test_listeners_of_any_number_of_parameters_get_them_in_order(extra: int, make_record: Any) -> None:
    def none(value: bytes) -> Any:
        return (value,)

    def key(value: bytes, key: Annotated[bytes, Key]) -> Any:
        return (value, key)

    def both(value: bytes, key: Annotated[bytes, Key], metadata: RecordMetadata) -> Any:
        return (value, key, metadata.offset)

    expected = (b"v", b"k", 6)[: extra + 1]
    assert call((none, key, both)[extra], make_record(6, value=b"v", key=b"k")) == expected
