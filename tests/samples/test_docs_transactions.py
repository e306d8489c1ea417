"""docs/transactions.md: its code as one application."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest

from ottla.testing import wait_for

PAGE = Path(__file__).resolve().parents[2] / "docs" / "transactions.md"


@pytest.mark.slow
def test_the_code_of_the_page_is_one_application_that_does_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTTLA_STATE_DIR", str(tmp_path))
    code = "\n".join(re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL))
    scope: dict[str, Any] = {"__name__": "docs_transactions"}
    exec(compile(code, str(PAGE), "exec"), scope)
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
