"""samples/payments: its ledger, its listener on a broker, and that its proof finds every kind of fault."""

from __future__ import annotations

import importlib
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ottla.client import TopicPartition
from ottla.embedded import EmbeddedKafka
from ottla.testing import wait_for
from ottla_wire.records import RecordBatchBuilder

FOLDER = Path(__file__).resolve().parents[2] / "samples" / "payments"
MODULES = ("models", "ledger", "proof")
OPENING = {"anna": 1_000, "ben": 500}


@pytest.fixture
def sample(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The sample's modules, by name; gone again afterwards, as their names are short ones."""
    monkeypatch.syspath_prepend(str(FOLDER))
    yield SimpleNamespace(**{name: importlib.import_module(name) for name in MODULES})
    for name in (*MODULES, "payments"):
        sys.modules.pop(name, None)


@pytest.fixture
def ledger(sample: Any, tmp_path: Path) -> Iterator[Any]:
    found = sample.ledger.Ledger(f"sqlite:///{tmp_path / 'payments.db'}")
    found.open_accounts(OPENING)
    yield found
    found.engine.dispose()


@pytest.fixture
def payment(sample: Any) -> Callable[..., Any]:
    def make(number: int = 0, payer: str = "anna", payee: str = "ben", cents: int = 100) -> Any:
        return sample.models.Payment(id=f"p-{number}", number=number, payer=payer, payee=payee, cents=cents)

    return make


# -- the ledger --------------------------------------------------------------------------------------------------------


def test_a_payment_moves_money_and_leaves_one_row(ledger: Any, payment: Any) -> None:
    with ledger.begin() as connection:
        receipt = ledger.charge(connection, payment())
    assert (receipt.status, receipt.balance) == ("paid", 900)
    assert ledger.balances() == {"anna": 900, "ben": 600}
    assert ledger.receipts() == [receipt]


@pytest.mark.parametrize("case", [{"cents": 1_001}, {"payee": "nobody"}, {"payer": "nobody"}])
def test_what_cannot_be_paid_is_declined_and_moves_nothing(ledger: Any, payment: Any, case: dict[str, Any]) -> None:
    with ledger.begin() as connection:
        receipt = ledger.charge(connection, payment(**case))
    assert receipt.status == "declined"
    assert ledger.balances() == OPENING


def test_who_pays_to_himself_has_as_much_as_before(ledger: Any, payment: Any) -> None:
    with ledger.begin() as connection:
        receipt = ledger.charge(connection, payment(payee="anna"))
    assert (receipt.status, receipt.balance) == ("paid", 1_000)
    assert ledger.balances() == OPENING


def test_accounts_that_are_open_keep_their_balance(ledger: Any, payment: Any) -> None:
    with ledger.begin() as connection:
        ledger.charge(connection, payment())
    ledger.open_accounts({**OPENING, "eve": 1})
    assert ledger.balances() == {"anna": 900, "ben": 600, "eve": 1}


# -- the listener ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_payment_that_comes_again_gets_its_receipt_again_and_is_not_charged_again(
    sample: Any, ledger: Any, payment: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PAYMENTS_DATABASE", f"sqlite:///{tmp_path / 'payments.db'}")
    app = importlib.import_module("payments").app
    receipts: list[bytes] = []
    charged = threading.Event()
    send = app.template.send

    def send_once_the_database_has_it(topic: str, *arguments: Any, **named: Any) -> Any:
        if topic == "receipts" and not charged.is_set():
            charged.set()
            raise ConnectionError("after the database's commit, before Kafka's")
        return send(topic, *arguments, **named)

    @app.listener("receipts", group="watch")
    def watch(value: bytes) -> None:
        receipts.append(value)

    with EmbeddedKafka() as kafka:
        monkeypatch.setenv("OTTLA_BOOTSTRAP_SERVERS", kafka.bootstrap_servers)
        monkeypatch.setattr(app.template, "send", send_once_the_database_has_it)
        with app:
            send("payments", payment(), key="anna")
            wait_for(lambda: receipts, timeout=20)
            send("payments", payment(1), key="anna")
            wait_for(lambda: len(receipts) == 2, timeout=20)
    assert charged.is_set()
    assert [sample.models.Receipt.model_validate_json(value) for value in receipts] == ledger.receipts()
    assert ledger.balances() == {"anna": 800, "ben": 700}


# -- the proof ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def evidence(sample: Any, payment: Any) -> Any:
    """That of a run in which everything was right."""
    sent = [payment(0), payment(1, "ben", "anna", 50), payment(2, cents=5_000)]
    receipt = sample.models.Receipt
    receipts = [
        receipt(payment_id="p-0", number=0, payer="anna", payee="ben", cents=100, status="paid", balance=900),
        receipt(payment_id="p-1", number=1, payer="ben", payee="anna", cents=50, status="paid", balance=550),
        receipt(payment_id="p-2", number=2, payer="anna", payee="ben", cents=5_000, status="declined", balance=950),
    ]
    return sample.proof.Evidence(
        sent=sent,
        opening=OPENING,
        balances={"anna": 950, "ben": 550},
        charges=receipts,
        receipts=receipts,
        told=receipts[::-1],
        in_the_files=receipts,
        lag={TopicPartition("payments", 0): 0},
    )


def wrong(sample: Any, evidence: Any) -> set[str]:
    return {what for what, holds in sample.proof.checks(evidence).items() if not holds}


def test_where_everything_is_right_every_check_says_so(sample: Any, evidence: Any) -> None:
    assert wrong(sample, evidence) == set()


def doubled(receipts: list[Any]) -> list[Any]:
    return [*receipts[:2], receipts[1], *receipts[2:]]


FAULTS: dict[str, tuple[Callable[[Any], dict[str, Any]], str]] = {
    "charged twice": (lambda e: {"charges": doubled(e.charges)}, "in the database exactly once"),
    "not charged": (lambda e: {"charges": e.charges[1:]}, "in the database exactly once"),
    "a receipt twice": (lambda e: {"receipts": doubled(e.receipts)}, "exactly one committed receipt"),
    "no receipt": (lambda e: {"receipts": e.receipts[:-1]}, "exactly one committed receipt"),
    "a payment that nobody sent": (lambda e: {"sent": e.sent[1:]}, "exactly one committed receipt"),
    "another amount": (
        lambda e: {"charges": [e.charges[0].model_copy(update={"cents": 1}), *e.charges[1:]]},
        "what the database says",
    ),
    "the wrong order": (lambda e: {"receipts": e.receipts[::-1]}, "in the order of the payments"),
    "money that went elsewhere": (lambda e: {"balances": {"anna": 951, "ben": 549}}, "add up to"),
    "money that was made": (lambda e: {"balances": {"anna": 951, "ben": 550}}, "made or lost"),
    "a debt": (lambda e: {"balances": {"anna": -50, "ben": 1_550}}, "nobody owes"),
    "an aborted receipt that was read": (lambda e: {"told": doubled(e.told)}, "told the same"),
    "a record that no client gets": (lambda e: {"in_the_files": doubled(e.in_the_files)}, "files of the broker"),
    "an open transaction": (lambda e: {"unfinished": ["payments-0: Ongoing"]}, "left open"),
    "a lag": (lambda e: {"lag": {TopicPartition("payments", 0): 1}}, "lag is 0"),
    "no lag known": (lambda e: {"lag": {}}, "lag is 0"),
    "a worker that gave up": (lambda e: {"ended_by_themselves": ["worker-0"]}, "ended by itself"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_found(sample: Any, evidence: Any, fault: str) -> None:
    change, check = FAULTS[fault]
    found = wrong(sample, replace(evidence, **change(evidence)))
    assert any(check in what for what in found), found


def batch(offset: int, producer: int, *values: bytes, ends: int | None = None) -> bytes:
    """A batch of a producer's transaction, or with `ends` the marker that aborts (0) or commits (1) it."""
    builder = RecordBatchBuilder(10_000)
    if ends is not None:
        builder.append(0, struct.pack(">hh", 0, ends), struct.pack(">hi", 0, 0), None)
    for value in values:
        builder.append(0, None, value, None)
    sequence = -1 if ends is not None else 0
    return bytes(
        builder.build(
            base_offset=offset,
            producer_id=producer,
            producer_epoch=0,
            base_sequence=sequence,
            transactional=True,
            control=ends is not None,
        )
    )


def test_the_files_are_read_transaction_by_transaction(sample: Any, tmp_path: Path) -> None:
    folder = tmp_path / "receipts-0"
    folder.mkdir()
    (folder / "00000000000000000000.log").write_bytes(
        batch(0, 1, b"a", b"b")
        + batch(2, 2, b"lost")
        + batch(3, 1, ends=1)
        + batch(4, 2, ends=0)
        + batch(5, 2, b"c")
        + batch(6, 3, b"open")
    )
    (folder / "00000000000000000007.log").write_bytes(batch(7, 2, ends=1))
    found = sample.proof.in_the_files(tmp_path, "receipts")
    assert (found.committed, found.rolled_back) == ([b"a", b"b", b"c"], 2)
    assert {end: len(transactions) for end, transactions in found.ended.items()} == {0: 1, 1: 2}
