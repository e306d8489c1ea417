"""docs/transactions.md: its code as one application."""

from __future__ import annotations

import asyncio
import re
import time
from pathlib import Path
from typing import Any

import pytest

from ottla.client import KafkaConsumer, TopicPartition
from ottla.testing import wait_for

PAGE = Path(__file__).resolve().parents[2] / "docs" / "transactions.md"


@pytest.fixture
def scope(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the page's code defines."""
    monkeypatch.setenv("OTTLA_STATE_DIR", str(tmp_path))
    code = "\n".join(re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL))
    scope: dict[str, Any] = {"__name__": "docs_transactions"}
    exec(compile(code, str(PAGE), "exec"), scope)
    return scope


@pytest.mark.slow
def test_the_code_of_the_page_is_one_application_that_does_what_it_says(scope: dict[str, Any]) -> None:
    app, order = scope["app"], scope["Order"]
    seen: dict[str, list[Any]] = {topic: [] for topic in ("invoices", "audit", "accepted", "orders-dead", "counted")}

    def watch(topic: str) -> None:
        @app.listener(topic, id=f"watch-{topic}")
        def look(value: bytes) -> None:
            seen[topic].append(value)

    for topic in seen:
        watch(topic)

    def fail_after_placing(number: int) -> None:
        with app.template.transaction():
            scope["place"](order(id=number, amount=8))
            raise ValueError("own")

    with app:
        scope["container"].start()
        scope["place"](order(id=1, amount=5))
        scope["place_many"]([order(id=2, amount=6), order(id=3, amount=-1)])
        asyncio.run(scope["place_async"](order(id=4, amount=7)))
        with pytest.raises(ValueError, match="own"):
            fail_after_placing(5)
        wait_for(lambda: len(seen["invoices"]) == 4, timeout=20)
        wait_for(lambda: (len(seen["accepted"]), len(seen["orders-dead"])) == (3, 1), timeout=20)
        wait_for(lambda: len(seen["counted"]) == 4, timeout=20)
        scope["container"].stop()
    assert seen["audit"] == [b"order 1", b"order 2", b"order 3"]
    assert b'"id":3' in seen["orders-dead"][0]
    assert not any(b"5" in value.split(b",")[0] for value in seen["invoices"]), "order 5 was never placed"


@pytest.mark.slow
def test_a_consumer_of_ones_own_goes_back_after_an_abort_and_handles_each_record_exactly_once(
    scope: dict[str, Any],
) -> None:
    app, attempts = scope["app"], []
    settings = {"isolation_level": "read_committed", "auto_offset_reset": "earliest", "enable_auto_commit": False}

    def fails_at_first(value: bytes) -> bytes:
        attempts.append(value)
        if value == b"b" and attempts.count(b"b") < 3:
            raise ValueError("not yet")
        return value.upper()

    with app:
        for value in (b"a", b"b", b"c"):
            app.template.send("raw", value).result(10)
        with KafkaConsumer(bootstrap_servers=app.bootstrap_servers, group_id="workers", **settings) as consumer:
            consumer.subscribe(["raw"])
            failures = 0
            deadline = time.monotonic() + 20
            while b"c" not in attempts and time.monotonic() < deadline:
                try:
                    scope["read_and_send"](consumer, fails_at_first)
                except ValueError:
                    failures += 1
            place = consumer.committed([TopicPartition("raw", 0)])[TopicPartition("raw", 0)]
        with KafkaConsumer(bootstrap_servers=app.bootstrap_servers, **settings) as consumer:
            consumer.assign([TopicPartition("worked", 0)])
            end = consumer.end_offsets([TopicPartition("worked", 0)])[TopicPartition("worked", 0)]
            seen: list[Any] = []
            while consumer.position(TopicPartition("worked", 0)) < end:
                seen += [record.value for record in consumer.poll(0.1)]
    assert seen == [b"A", b"B", b"C"]
    assert (failures, place.offset) == (2, 3)
