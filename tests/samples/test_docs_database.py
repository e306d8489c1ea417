"""docs/database.md: its code as one application, and its SQL as what the tables are."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import sys
from pathlib import Path
from types import ModuleType

import pytest
from sqlalchemy import MetaData
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.schema import CreateIndex, CreateTable

from ottla.testing import wait_for
from ottla.transaction import Inbox, Outbox

PAGE = Path(__file__).resolve().parents[2] / "docs" / "database.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.mark.slow
def test_the_code_of_the_page_is_one_application_that_does_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTTLA_STATE_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    module = ModuleType("docs_database")
    monkeypatch.setitem(sys.modules, "docs_database", module)
    scope = vars(module)
    exec(compile("\n".join(blocks("python")), str(PAGE), "exec", dont_inherit=True), scope)
    app, payment = scope["app"], scope["Payment"]
    scope["Base"].metadata.create_all(scope["engine"])
    balances: list[int] = []

    @app.listener("receipts", group="watch")
    def watch(value: bytes) -> None:
        balances.append(json.loads(value)["balance"])

    def balance() -> int:
        with scope["sessions"]() as session:
            found = session.get(scope["Account"], "a")
            return 0 if found is None else found.cents

    with app:
        scope["deposit"]("a", 100)
        wait_for(lambda: balances == [100], timeout=20)
        app.template.send("deposits", payment(account="a", cents=10))
        wait_for(lambda: balance() == 110, timeout=20)
        app.template.send("withdrawals", payment(account="a", cents=5))
        wait_for(lambda: balance() == 105, timeout=20)
        app.template.send("transfers", payment(account="a", cents=1))
        wait_for(lambda: balances == [100, 106], timeout=20)
        scope["deposit_at_once"]("a", 2)
        wait_for(lambda: balances == [100, 106, 108], timeout=20)
        app.template.send("imports", payment(account="a", cents=1_000), partition=0).result(10)
        for _ in range(2):  # the second time there is nothing new
            scope["read_into_database"]("imports", [0], app.bootstrap_servers, 1.0)
            assert balance() == 1_108
    scope["engine"].dispose()


def test_the_statements_are_those_of_the_tables() -> None:
    metadata = MetaData()
    outbox, inbox = Outbox(metadata), Inbox("banking", metadata)
    for dialect, written in zip((postgresql.dialect(), sqlite.dialect()), blocks("sql"), strict=True):
        statements = []
        for table in (outbox.table, outbox.state_table, inbox.table):
            statements += [CreateTable(table), *(CreateIndex(index) for index in table.indexes)]
        made = [" ".join(str(statement.compile(dialect=dialect)).split()) for statement in statements]
        assert [" ".join(one.split()) for one in written.split(";")[:-1]] == made


def test_the_statements_for_sqlite_are_sql() -> None:
    connection = sqlite3.connect(":memory:")
    connection.executescript(blocks("sql")[1])
    connection.close()


def test_links_of_the_page_lead_somewhere() -> None:
    text = PAGE.read_text()
    anchors = {
        re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.*)$", text, re.M)
    }
    for target in re.findall(r"\]\(([^)]*)\)", text):
        file, _, anchor = target.partition("#")
        assert (anchor in anchors) if not file else os.path.exists(PAGE.parent / file), target
