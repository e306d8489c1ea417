"""docs/listeners.md: its code as one application."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from ottla.testing import wait_for

PAGE = Path(__file__).resolve().parents[2] / "docs" / "listeners.md"


@pytest.mark.slow
def test_the_code_of_the_page_is_one_application_that_does_what_it_says(capfd: Any) -> None:
    code = "\n".join(re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL))
    scope: dict[str, Any] = {"__name__": "docs_listeners"}
    exec(compile(code, str(PAGE), "exec"), scope)
    app, invoices = scope["app"], []
    order = scope["Order"]

    @app.listener("invoices")
    def invoice(value: dict[str, Any]) -> None:
        invoices.append(value)

    @app.listener("large-invoices")
    def large(value: dict[str, Any]) -> None:
        invoices.append(("large", value["order"]))

    printed: list[str] = []

    def lines() -> list[str]:
        printed.extend(capfd.readouterr().out.splitlines())
        return printed

    with app:
        app.template.send("orders", order(id=1, amount=5))
        app.template.send("orders", order(id=2, amount=5000))
        for value in (order(id=3, amount=1), None, "else"):
            app.template.send("events", value, key="k")
        wait_for(lambda: len(invoices) == 2)
        wait_for(lambda: {"ordered 3", "deleted k", "unknown"} <= set(lines()))
        wait_for(lambda: set(app.listeners["orders-by-hand"].lag.values()) == {0})
        assert not scope["is_behind"]()
    scope["pool"].shutdown()
    assert sorted(map(str, invoices)) == ["('large', 2)", "{'order': 1, 'amount': 5.0}"]
    # Printed by several threads at once: only how often can be told.
    assert "\n".join(lines()).count("stopped") == len(app.listeners)
