"""A class as a listener: which method a record goes to. (Hints not as strings: the classes here are local.)"""

import asyncio
import inspect
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel

from ottla import Acknowledgment, ConsumerRecord, Key, Message, RecordMetadata, handler, listener
from ottla.errors import ConfigError, ConversionError
from ottla.listeners.binding import Delivery
from ottla.listeners.class_listener import Handlers, bind_handlers, instance_of
from ottla.listeners.endpoint import BARE_LISTENERS, endpoints_of


class Placed(BaseModel):
    order: int
    amount: float


class Paid(BaseModel):
    payment: int


class Audit:
    def __init__(self) -> None:
        self.log: list[Any] = []

    @handler
    def placed(self, order: Placed, key: Annotated[bytes | None, Key]) -> str:
        self.log.append(("placed", order, key))
        return "reply"

    @handler
    def paid(self, payment: Paid, metadata: RecordMetadata) -> None:
        self.log.append(("paid", payment, metadata.offset))


class AuditOfAll(Audit):
    @handler(default=True)
    def other(self, value: bytes | None) -> None:
        self.log.append(("other", value))


def call(instance: Any, record: ConsumerRecord, **more: Any) -> Any:
    return bind_handlers(Handlers(instance), **more).call(record, Delivery(None))


def test_each_record_goes_to_the_method_of_its_type(make_record: Any) -> None:
    audit = Audit()
    assert call(audit, make_record(0, value=b'{"order": 1, "amount": 2}', key=b"k")) == "reply"
    call(audit, make_record(7, value=b'{"payment": 3}'))
    assert audit.log == [("placed", Placed(order=1, amount=2), b"k"), ("paid", Paid(payment=3), 7)]


def test_what_fits_no_method_is_a_conversion_error_without_a_default(make_record: Any) -> None:
    with pytest.raises(ConversionError, match="orders-0@4"):
        call(Audit(), make_record(4, value=b'{"refund": 3}'))


@pytest.mark.parametrize("value", [b'{"refund": 3}', b"no json", None])
def test_the_default_takes_what_fits_no_other_method(value: bytes | None, make_record: Any) -> None:
    audit = AuditOfAll()
    call(audit, make_record(4, value=value))
    assert audit.log == [("other", value)]


def test_a_literal_field_tells_types_apart_that_look_alike(make_record: Any) -> None:
    class Created(BaseModel):
        kind: Literal["created"]
        id: int

    class Deleted(BaseModel):
        kind: Literal["deleted"]
        id: int

    class Both:
        @handler
        def created(self, value: Created) -> str:
            return "created"

        @handler
        def deleted(self, value: Deleted) -> str:
            return "deleted"

    assert call(Both(), make_record(0, value=b'{"kind": "deleted", "id": 1}')) == "deleted"
    assert call(Both(), make_record(0, value=b'{"kind": "created", "id": 1}')) == "created"


def test_unions_none_dataclasses_and_plain_types_are_types_too(make_record: Any) -> None:
    @dataclass
    class Point:
        x: int

    class Several:
        @handler
        def model_or_point(self, value: Paid | Point) -> str:
            return type(value).__name__

        @handler
        def tombstone(self, value: None, key: Annotated[str, Key]) -> str:
            return f"deleted {key}"

        @handler
        def numbers(self, value: list[int]) -> int:
            return sum(value)

        @handler
        def message(self, message: Message[Placed]) -> Any:
            return message.payload.order

    several = Several()
    assert call(several, make_record(0, value=b'{"x": 1}')) == "Point"
    assert call(several, make_record(0, value=b'{"payment": 1}')) == "Paid"
    assert call(several, make_record(0, value=None, key=b"k")) == "deleted k"
    assert call(several, make_record(0, value=b"[1, 2]")) == 3
    assert call(several, make_record(0, value=b'{"order": 9, "amount": 1}')) == 9


def test_what_a_deserializer_has_made_goes_to_its_own_type_or_a_base(make_record: Any) -> None:
    class PaidTwice(Paid):
        pass

    def deserialize(topic: str, headers: Any, data: bytes | None) -> Any:
        return PaidTwice(payment=2)

    audit = Audit()
    call(audit, make_record(1), value_deserializer=deserialize)
    assert audit.log == [("paid", PaidTwice(payment=2), 1)]


def test_handlers_may_all_be_async(make_record: Any) -> None:
    class Slow:
        @handler
        async def paid(self, payment: Paid) -> int:
            await asyncio.sleep(0)
            return payment.payment

    bound = bind_handlers(Handlers(Slow()))
    assert bound.is_async
    assert asyncio.run(bound.call(make_record(0, value=b'{"payment": 5}'), Delivery(None))) == 5


def test_an_acknowledgment_goes_to_the_handler_that_asks_for_it(make_record: Any) -> None:
    class Acknowledging(Audit):
        @handler(default=True)
        def other(self, value: bytes, ack: Acknowledgment) -> Any:
            return ack

    bound = bind_handlers(Handlers(Acknowledging()))
    acknowledgment: Any = object()
    assert bound.takes_acknowledgment
    assert bound.call(make_record(0, value=b"x"), Delivery(None, acknowledgment)) is acknowledgment


def two_of_one_type() -> Any:
    class Twice(Audit):
        @handler
        def paid_again(self, payment: Paid) -> None: ...

    return Twice()


def two_defaults() -> Any:
    class Twice(AuditOfAll):
        @handler(default=True)
        def another(self, value: bytes) -> None: ...

    return Twice()


def without_a_type() -> Any:
    class Untyped(Audit):
        @handler
        def any(self, value) -> None: ...  # type: ignore[no-untyped-def]

    return Untyped()


def of_bytes() -> Any:
    class Raw(Audit):
        @handler
        def raw(self, value: bytes) -> None: ...

    return Raw()


def async_and_not() -> Any:
    class Mixed(Audit):
        @handler(default=True)
        async def other(self, value: bytes) -> None: ...

    return Mixed()


def without_handlers() -> Any:
    class Nothing:
        def paid(self, payment: Paid) -> None: ...

    return Nothing()


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (two_of_one_type, "takes Paid, too"),
        (two_defaults, "another default"),
        (without_a_type, "hint the type"),
        (of_bytes, "default handler"),
        (async_and_not, "all of its handlers async"),
        (without_handlers, "no @handler"),
    ],
)
def test_what_cannot_be_decided_for_each_record_is_refused_at_start(make: Any, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        bind_handlers(Handlers(make()))


def test_an_instance_has_the_listener_of_its_class(make_record: Any) -> None:
    @listener("events", group="audit")
    class Marked(Audit):
        pass

    BARE_LISTENERS.pop()
    instance = Marked()
    [endpoint] = endpoints_of(instance)
    assert endpoint.function == Handlers(instance)
    assert endpoint.name.endswith("Marked")
    [of_class] = endpoints_of(Marked)
    assert inspect.isclass(of_class.function)


def test_a_class_whose_constructor_needs_something_wants_an_instance_to_be_given() -> None:
    class Needy(Audit):
        def __init__(self, database: Any) -> None:
            super().__init__()

    with pytest.raises(ConfigError, match=r"Needy: its constructor needs database; .*app\.include"):
        instance_of(Needy)
