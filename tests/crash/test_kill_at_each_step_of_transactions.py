"""A process killed at each step of a transaction, and a broker killed at each: what was to be committed is there as a
whole, nothing else is, and nothing stays open.

The steps are requests, which a proxy counts, and the broker's writes, which a wrapper around it counts.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path

import pytest

from ottla.client import AdminClient, KafkaProducer
from ottla.client.admin import NewTopic
from ottla.errors import OttlaError
from ottla_wire.messages import ApiKey
from support import dying_broker
from support.apache_kafka import free_port
from support.broker_process import BrokerProcess
from support.clusters import eventually
from support.request_gate import Moment, RequestGate, Strike
from support.transaction_steps import PARTITIONS, SOURCE, Case

pytestmark = [pytest.mark.slow, pytest.mark.crash, pytest.mark.timeout(240)]
SETTINGS = {
    "group.initial.rebalance.delay.ms": "0",
    "offsets.topic.num.partitions": "1",
    "transaction.state.log.num.partitions": "1",
    "transaction.abort.timed.out.transaction.cleanup.interval.ms": "200",
}
BEFORE, ANSWERED = Moment.BEFORE, Moment.ANSWERED


class Stage:
    """A broker that can be killed, behind a gate that can kill."""

    def __init__(self, folder: Path) -> None:
        self.gate = RequestGate()
        self.orders = folder / "orders"
        wrapper = [sys.executable, str(dying_broker.__file__), str(self.orders)]
        advertised = {"advertised.listeners": f"PLAINTEXT://{self.gate.address}"}
        self.broker = BrokerProcess(folder / "data", SETTINGS | advertised, port=free_port(), prefix=wrapper)
        self.broker.start()
        self.gate.target_port = self.broker.port
        self._numbers = count()
        with AdminClient(bootstrap_servers=self.gate.address) as admin:
            admin.create_topics([NewTopic(SOURCE, partitions=1)])

    def case(self) -> Case:
        found = Case(self.gate.address, f"step-{next(self._numbers)}")
        with AdminClient(bootstrap_servers=found.servers) as admin:
            admin.create_topics([NewTopic(found.topic, partitions=PARTITIONS)])
        return found

    def order(self, number: int, how: str) -> None:
        """The broker is to die at a write, counted from now on."""
        Path(f"{self.orders}.trace").unlink(missing_ok=True)
        self.orders.write_text(f"{number} {how}")

    def trace(self) -> list[str]:
        """The logs that were written to since the order."""
        return Path(f"{self.orders}.trace").read_text().split()

    def restart(self) -> None:
        """Start the broker again once it has died; it is one like any other."""
        assert self.broker.ends() == -9
        self.orders.unlink()
        self.broker.start()

    def close(self) -> None:
        self.gate.arm(None)
        self.broker.forget()
        self.gate.close()


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    found = Stage(tmp_path_factory.mktemp("steps"))
    yield found
    found.close()


@pytest.fixture
def case(stage: Stage) -> Case:
    """With one transaction that is committed, number 0: ids that are known behave in other ways than new ones."""
    found = stage.case()
    with found.producer(60_000) as producer:
        found.write(producer, 0)
        producer.commit_transaction(60)
    stage.gate.arm(None)
    return found


# -- a process is killed -----------------------------------------------------------------------------------------------


class Process:
    """The application: it writes transaction 1 when it is told to."""

    def __init__(self, case: Case, end: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "support.transaction_steps", case.servers, case.topic, end],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[1],
            bufsize=0,
        )
        self.comes_to("ready")

    def comes_to(self, step: str) -> None:
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == f"{step}\n".encode()

    def go(self, steps: int = 2) -> None:
        """It may do its next steps: write, and end the transaction."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"go\n" * steps)

    def kill(self) -> None:
        self._process.kill()

    def is_gone(self) -> None:
        assert self._process.wait(60) == -9
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()


# Request, which of its kind, when; and whether transaction 1 is to be there. Produce is sent once for each partition.
STEPS = {
    "the first write is sent": (ApiKey.PRODUCE, 1, BEFORE, False),
    "the first write is stored": (ApiKey.PRODUCE, 1, ANSWERED, False),
    "the second write is sent": (ApiKey.PRODUCE, 2, BEFORE, False),
    "the last write is stored": (ApiKey.PRODUCE, 3, ANSWERED, False),
    "the position is sent": (ApiKey.TXN_OFFSET_COMMIT, 1, BEFORE, False),
    "the position is stored": (ApiKey.TXN_OFFSET_COMMIT, 1, ANSWERED, False),
    "the commit is sent": (ApiKey.END_TXN, 1, BEFORE, False),
    "the commit is decided": (ApiKey.END_TXN, 1, ANSWERED, True),
}


@pytest.fixture(params=["the same instance starts again", "nobody comes back"])
def recover(request: pytest.FixtureRequest) -> Callable[[Case], None]:
    def started_again(case: Case) -> None:
        case.producer().close(10)
        assert case.open_transactions() == [], "it has to be over before the instance may begin a transaction"

    return started_again if request.param.startswith("the same") else lambda case: None


@pytest.mark.parametrize("step", STEPS)
def test_a_process_killed_when(step: str, stage: Stage, case: Case, recover: Callable[[Case], None]) -> None:
    kind, number, moment, is_committed = STEPS[step]
    process = Process(case, "commit")
    stage.gate.arm(Strike(kind, number, moment, process.kill))
    process.go()
    process.is_gone()
    assert stage.gate.struck.wait(10)
    assert case.committed() == ([0, 1] if is_committed else [0]), "nothing of what is open may be read"
    recover(case)
    case.assert_over(*([0, 1] if is_committed else [0]))


@pytest.mark.parametrize("step", ["ready", "written", "ended"])
def test_a_process_killed_between_requests(step: str, case: Case, recover: Callable[[Case], None]) -> None:
    process = Process(case, "commit")
    for reached in {"ready": (), "written": ("written",), "ended": ("written", "ended")}[step]:
        process.go(1)
        process.comes_to(reached)
    process.kill()
    process.is_gone()
    recover(case)
    case.assert_over(*([0, 1] if step == "ended" else [0]))


@pytest.mark.parametrize("moment", [BEFORE, ANSWERED])
def test_a_process_killed_while_it_aborts(
    moment: Moment, stage: Stage, case: Case, recover: Callable[[Case], None]
) -> None:
    process = Process(case, "abort")
    stage.gate.arm(Strike(ApiKey.END_TXN, 1, moment, process.kill))
    process.go()
    process.is_gone()
    recover(case)
    case.assert_over(0)


def test_the_instance_that_comes_back_goes_on_with_the_next_transaction(stage: Stage, case: Case) -> None:
    process = Process(case, "commit")
    stage.gate.arm(Strike(ApiKey.END_TXN, 1, BEFORE, process.kill))
    process.go()
    process.is_gone()
    with case.producer() as producer:
        case.write(producer, 2)
        producer.commit_transaction(60)
    case.assert_over(0, 2)


# -- the broker is killed ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", [BEFORE, ANSWERED])
@pytest.mark.parametrize(
    ("kind", "number"),
    [(ApiKey.PRODUCE, 1), (ApiKey.PRODUCE, 2), (ApiKey.TXN_OFFSET_COMMIT, 1), (ApiKey.END_TXN, 1)],
)
def test_a_producer_finishes_its_transaction_although_the_broker_was_killed(
    kind: ApiKey, number: int, moment: Moment, stage: Stage, case: Case
) -> None:
    with case.producer(60_000) as producer:
        stage.gate.arm(Strike(kind, number, moment, stage.broker.kill))
        restarting = threading.Thread(target=lambda: stage.gate.struck.wait(60) and stage.broker.start())
        restarting.start()
        case.write(producer, 1)
        producer.commit_transaction(60)
        restarting.join(60)
        assert stage.gate.struck.is_set()
        case.assert_over(0, 1)
        case.write(producer, 2)
        producer.commit_transaction(60)
        case.assert_over(0, 1, 2)


@pytest.mark.parametrize("moment", [BEFORE, ANSWERED])
def test_an_instance_that_starts_gets_its_epoch_although_the_broker_was_killed(
    moment: Moment, stage: Stage, case: Case
) -> None:
    stage.gate.arm(Strike(ApiKey.INIT_PRODUCER_ID, 1, moment, stage.broker.kill))
    restarting = threading.Thread(target=lambda: stage.gate.struck.wait(60) and stage.broker.start())
    restarting.start()
    with case.producer(60_000) as producer:
        restarting.join(60)
        case.write(producer, 1)
        producer.commit_transaction(60)
    case.assert_over(0, 1)


# The writes of the end of a transaction: the decision, a marker in each partition and one for the position, and that
# all of this is done.
STATE, OFFSETS = "__transaction_state-0", "__consumer_offsets-0"
WRITES = 2 + PARTITIONS + 1


def open_transaction(case: Case) -> KafkaProducer:
    producer = case.producer()
    case.write(producer, 1)
    return producer


def test_the_end_of_a_transaction_is_so_many_writes(stage: Stage, case: Case) -> None:
    with open_transaction(case) as producer:
        stage.order(1_000, "before")
        producer.commit_transaction(60)
        eventually(lambda: len(stage.trace()) == WRITES)
        trace = stage.trace()
        stage.orders.unlink()
    assert (trace[0], trace[-1]) == (STATE, STATE)
    assert sorted(trace[1:-1]) == sorted([OFFSETS, *(f"{case.topic}-{index}" for index in range(PARTITIONS))])


def die_at(stage: Stage, case: Case, number: int, how: str, end: str) -> None:
    """The broker dies at that write of a transaction's end, and its producer with it."""
    producer = open_transaction(case)
    stage.order(number, how)
    ending = producer.commit_transaction if end == "commit" else producer.abort_transaction

    def try_to_end() -> None:
        with suppress(OttlaError):
            ending(60)

    thread = threading.Thread(target=try_to_end)
    thread.start()
    assert stage.broker.ends() == -9
    producer.close(0)
    thread.join(30)
    assert not thread.is_alive()
    assert len(stage.trace() if number > 1 else []) == number - 1
    stage.orders.unlink()
    stage.broker.start()


@pytest.mark.parametrize("how", ["before", "torn"])
@pytest.mark.parametrize("number", range(1, WRITES + 1))
def test_a_broker_killed_at_each_write_of_a_commit_finishes_what_was_decided(
    number: int, how: str, stage: Stage, case: Case
) -> None:
    die_at(stage, case, number, how, "commit")
    case.assert_over(*([0, 1] if number > 1 else [0]))


@pytest.mark.parametrize("number", range(1, WRITES + 1))
def test_a_broker_killed_at_each_write_of_an_abort_lets_nobody_read_it(number: int, stage: Stage, case: Case) -> None:
    die_at(stage, case, number, "before", "abort")
    case.assert_over(0)


@pytest.mark.parametrize("number", [1, 2, 4, WRITES])
def test_a_producer_that_lives_hears_of_its_commit_from_the_broker_that_comes_back(
    number: int, stage: Stage, case: Case
) -> None:
    with case.producer(60_000) as producer:
        case.write(producer, 1)
        stage.order(number, "before")
        restarting = threading.Thread(target=stage.restart)
        restarting.start()
        producer.commit_transaction(60)
        restarting.join(60)
        case.write(producer, 2)
        producer.commit_transaction(60)
    case.assert_over(0, 1, 2)
