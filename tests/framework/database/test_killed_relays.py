"""`kill -9` of a relay, at each of its steps and at random: nothing is lost or doubled, and the order is kept.

`OTTLA_CRASH_ROUNDS` is how often it is killed at random (8), `OTTLA_CRASH_SEED` picks the moments.
"""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, MetaData, create_engine, func, select, text

from ottla.transaction import Outbox

pytestmark = [pytest.mark.slow, pytest.mark.crash]

PROGRAM = Path(__file__).with_name("relay_process.py")
SECONDS = 30


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    connect_args = {"timeout": 20} if database_url.startswith("sqlite") else {}
    engine = create_engine(database_url, connect_args=connect_args)
    yield engine
    engine.dispose()


@pytest.fixture
def outbox(engine: Engine, metadata: MetaData) -> Outbox:
    outbox = Outbox(metadata)
    metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE other (id INTEGER)"))
    return outbox


class RelayProcess:
    """A relay that may be killed; `finish` has it send what is there, and waits for its end."""

    def __init__(self, url: str, servers: str, *step: str) -> None:
        command = [sys.executable, str(PROGRAM), url, servers, *step]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def wait_until_active(self) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "active\n"

    def wait_for_its_death(self) -> None:
        assert self.process.wait(SECONDS) == -9

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(SECONDS)

    def finish(self) -> None:
        self.wait_until_active()
        self.process.communicate("stop\n", timeout=SECONDS)
        assert self.process.returncode == 0


@contextlib.contextmanager
def relaying(engine: Engine, kafka: Any, *step: str) -> Iterator[RelayProcess]:
    relay = RelayProcess(engine.url.render_as_string(hide_password=False), kafka.bootstrap_servers, *step)
    try:
        yield relay
    finally:
        relay.kill()
        for pipe in (relay.process.stdin, relay.process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


STEPS: list[tuple[str, int]] = [
    ("registered", 1),
    ("position read", 1),
    ("rows read", 1),
    ("begun", 1),
    ("a row sent", 2),
    ("all stored", 1),
    ("committed", 1),
    ("database told", 2),
    ("rows read", 2),
    ("begun", 2),
    ("a row sent", 6),
    ("all stored", 2),
    ("committed", 2),
]


ON_POSTGRES = [("a row sent", 6), ("committed", 2), ("database told", 2)]
PLACES: list[Any] = [("sqlite", *step) for step in STEPS]
PLACES += [pytest.param("postgresql", *step, marks=pytest.mark.peer("postgres")) for step in ON_POSTGRES]


@pytest.mark.parametrize(("database_url", "step", "number"), PLACES, indirect=["database_url"])
def test_a_relay_that_is_killed_at_a_step_leaves_nothing_lost_and_nothing_doubled(
    outbox: Outbox, engine: Engine, kafka: Any, reader: Any, kafka_topic: str, step: str, number: int
) -> None:
    values = list("abcdefgh")
    with engine.begin() as connection:
        for value in values:
            outbox.send(connection, kafka_topic, value)
    with relaying(engine, kafka, step, str(number)) as relay:
        relay.wait_for_its_death()
    with relaying(engine, kafka) as relay:
        relay.finish()
    assert reader.values(kafka_topic) == values


class Writer(threading.Thread):
    """One message a transaction, numbered; at times two, at times none, because it rolls back."""

    def __init__(self, number: int, outbox: Outbox, engine: Engine, topic: str, stop: threading.Event) -> None:
        super().__init__()
        self._number, self._outbox, self._engine, self._topic, self._over = number, outbox, engine, topic, stop
        self._rng = random.Random(number)
        self.committed: list[str] = []

    def run(self) -> None:
        count = 0
        while not self._over.wait(self._rng.random() * 0.08):
            with self._engine.connect() as connection:
                values = [f"{self._number}:{count + part}" for part in range(self._rng.randint(1, 2))]
                for value in values:
                    self._outbox.send(connection, self._topic, value)
                if self._engine.dialect.name == "postgresql":
                    time.sleep(self._rng.random() * 0.01)
                if self._rng.random() < 0.1:
                    connection.rollback()
                else:
                    connection.commit()
                    self.committed += values
                    count += len(values)


def rows_left(engine: Engine, outbox: Outbox) -> int:
    with engine.connect() as connection:
        return connection.scalars(select(func.count()).select_from(outbox.table)).one()


@pytest.mark.timeout(300)
def test_a_relay_that_is_killed_again_and_again_at_random_loses_nothing_doubles_nothing_and_keeps_the_order(
    outbox: Outbox, engine: Engine, kafka: Any, reader: Any, kafka_topic: str
) -> None:
    rng = random.Random(int(os.environ.get("OTTLA_CRASH_SEED", "29")))
    stop = threading.Event()
    writers = [Writer(number, outbox, engine, kafka_topic, stop) for number in range(3)]
    for writer in writers:
        writer.start()
    try:
        for _ in range(int(os.environ.get("OTTLA_CRASH_ROUNDS", "8"))):
            with relaying(engine, kafka) as relay:
                relay.wait_until_active()
                time.sleep(rng.random() * 0.25)
                relay.kill()
    finally:
        stop.set()
        for writer in writers:
            writer.join(SECONDS)
    while rows_left(engine, outbox):  # a relay that is stopped takes half a minute at most, and leaves the rest
        with relaying(engine, kafka) as relay:
            relay.finish()
    sent = reader.values(kafka_topic)
    for writer in writers:
        assert [value for value in sent if value.startswith(f"{writer._number}:")] == writer.committed
    assert len(sent) == sum(len(writer.committed) for writer in writers)
