"""A producer factory on a Kafka that is made of lists: what happens to whom, in which order, with faults on demand."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ottla import KafkaTemplate, Ottla, ProducerFactory, TopicPartition
from ottla.client import KafkaConsumer
from ottla.client.consumer.faces import run_blocking
from ottla.client.engine import Engine
from ottla.client.producer.transaction_tables import TransactionState as ProducerState
from ottla.errors import Fatal, NotInTransaction, ProducerFenced, TransactionAborted
from ottla.send import SendFuture
from ottla_wire.records.sending import complete_batch, fail_futures
from support.clusters import ClusterUnderTest, cluster_params


class FakeKafka:
    """Records, epochs and a journal of every call. Any thread may use it."""

    def __init__(self) -> None:
        self.journal: list[tuple[str, str]] = []
        self.visible: list[Any] = []
        self.written: list[Any] = []
        self.offsets: dict[Any, int] = {}
        self.groups: list[Any] = []
        self.epochs: dict[str, int] = {}
        self.faults: dict[str, list[BaseException]] = {}
        self.refused_values: dict[Any, BaseException] = {}
        self.gates: dict[str, threading.Event] = {}
        """What a method waits for, if it is here."""
        self.producers: list[FakeProducer] = []
        self._lock = threading.Lock()

    def note(self, what: str, who: str) -> None:
        with self._lock:
            self.journal.append((what, who))

    def happened(self, *kinds: str) -> list[str]:
        """The journal in short, without the kinds of calls that were not asked for."""
        with self._lock:
            return [f"{what} {who}" for what, who in self.journal if not kinds or what in kinds]

    def fail(self, method: str, *errors: BaseException) -> None:
        """The next calls of a method fail."""
        self.faults.setdefault(method, []).extend(errors)

    def fault(self, method: str) -> None:
        with self._lock:
            pending = self.faults.get(method)
            error = pending.pop(0) if pending else None
        if error is not None:
            raise error

    def fence(self, transactional_id: str) -> None:
        """Another producer registers the id."""
        self.epochs[transactional_id] += 1


class FakeProducer:
    """What a pool holds: KafkaProducer's transactional methods, against a FakeKafka."""

    def __init__(self, kafka: FakeKafka, transactional_id: str | None, engine: Engine | None) -> None:
        self.kafka = kafka
        self.id = transactional_id or "shared"
        self.transactional = transactional_id is not None
        self.engine = engine
        self.epoch = -1
        self.transaction_state = ProducerState.UNINITIALIZED
        self.closed_with: float | None = None
        self.pending: list[SendFuture] = []
        self.records: list[Any] = []
        self.offsets: list[Any] = []
        self.failure: BaseException | None = None
        kafka.producers.append(self)

    def send(
        self,
        topic: str,
        value: Any,
        key: Any = None,
        partition: Any = None,
        timestamp_ms: Any = None,
        headers: Any = None,
    ) -> SendFuture:
        if self.transactional and self.transaction_state is ProducerState.READY:
            raise NotInTransaction("send: there is no transaction")
        future = SendFuture(topic, value, key, partition, timestamp_ms, headers)
        self.kafka.note("send", f"{self.id}:{value}")
        self.kafka.written.append(value)
        if self.transactional:
            self.pending.append(future)
        else:
            self.kafka.visible.append(value)
            complete_batch([future], topic, 0, len(self.kafka.visible), -1)
        return future

    def finish_sends(self) -> None:
        """The answers to what was sent come in."""
        pending, self.pending = self.pending, []
        for future in pending:
            refusal = self.kafka.refused_values.get(future.value)
            if self.failure is not None:
                fail_futures([future], TransactionAborted())
            elif refusal is not None:
                fail_futures([future], refusal)
                self._fail(refusal)
            else:
                self.records.append(future.value)
                complete_batch([future], future.topic, 0, len(self.records), -1)

    def _fail(self, error: BaseException) -> None:
        self.failure = error
        is_fatal = isinstance(error, Fatal)
        self.transaction_state = ProducerState.FATAL if is_fatal else ProducerState.ABORTABLE_ERROR

    # -- the calls: each once, as a coroutine that waits as its caller does

    async def _begin(self, wait: Any) -> None:
        self.kafka.fault("begin")
        assert self.transaction_state is ProducerState.READY, f"{self.id} is in two transactions at a time"
        self.kafka.note("begin", self.id)
        self.transaction_state = ProducerState.IN_TRANSACTION

    async def _flush(self, wait: Any) -> None:
        await wait("flush")
        self.finish_sends()

    async def _send_offsets(self, wait: Any, offsets: Any, group_metadata: Any) -> None:
        try:
            self.kafka.fault("offsets")
        except Exception as error:
            self._fail(error)
            raise
        self.kafka.note("offsets", f"{self.id}:{group_metadata.group_id}")
        self.offsets.append((offsets, group_metadata))

    async def _commit(self, wait: Any, offsets: Any, group_metadata: Any) -> None:
        assert self.transaction_state in (ProducerState.IN_TRANSACTION, ProducerState.ABORTABLE_ERROR)
        self.finish_sends()
        if self.failure is not None:
            raise self.failure
        self.transaction_state = ProducerState.COMMITTING
        await wait("commit")
        try:
            if offsets is not None:
                await self._send_offsets(wait, offsets, group_metadata)
            if self.epoch != self.kafka.epochs[self.id]:
                raise ProducerFenced()
            self.kafka.fault("commit")
        except TimeoutError:
            raise
        except Exception as error:
            self._fail(error)
            raise
        self.kafka.visible += self.records
        for places, group in self.offsets:
            self.kafka.offsets |= {partition: place.offset for partition, place in places.items()}
            self.kafka.groups.append(group)
        self._ended("commit")

    async def _abort(self, wait: Any) -> None:
        assert self.transaction_state in (ProducerState.IN_TRANSACTION, ProducerState.ABORTABLE_ERROR)
        await wait("abort")
        pending, self.pending = self.pending, []
        fail_futures(pending, TransactionAborted())
        try:
            if self.epoch != self.kafka.epochs[self.id]:
                raise ProducerFenced()
            self.kafka.fault("abort")
        except Exception as error:
            self._fail(error)
            raise
        self._ended("abort")

    def _ended(self, how: str) -> None:
        self.kafka.note(how, self.id)
        self.transaction_state = ProducerState.READY
        self.failure = None
        self.records, self.offsets = [], []

    # -- the two forms

    async def init_transactions_async(self, timeout: float | None = None) -> None:
        await self._wait_awaiting("init")
        self.kafka.fault("init")
        self.epoch = self.kafka.epochs.get(self.id, -1) + 1
        self.kafka.epochs[self.id] = self.epoch
        self.transaction_state = ProducerState.READY
        self.kafka.note("init", f"{self.id}@{self.epoch}")

    def begin_transaction(self) -> None:
        run_blocking(self._begin(self._wait_blocking))

    async def begin_transaction_async(self) -> None:
        await self._begin(self._wait_awaiting)

    def flush(self, timeout: float | None = None) -> None:
        self.kafka.note("flush", self.id)
        run_blocking(self._flush(self._wait_blocking))

    async def flush_async(self, timeout: float | None = None) -> None:
        await self._flush(self._wait_awaiting)

    def send_offsets_to_transaction(self, offsets: Any, group_metadata: Any) -> None:
        run_blocking(self._send_offsets(self._wait_blocking, offsets, group_metadata))

    async def send_offsets_to_transaction_async(self, offsets: Any, group_metadata: Any) -> None:
        await self._send_offsets(self._wait_awaiting, offsets, group_metadata)

    def commit_transaction(self, *, offsets: Any = None, group_metadata: Any = None) -> None:
        run_blocking(self._commit(self._wait_blocking, offsets, group_metadata))

    async def commit_transaction_async(self, *, offsets: Any = None, group_metadata: Any = None) -> None:
        if self.transaction_state is ProducerState.COMMITTING:  # the same call again
            while self.transaction_state is ProducerState.COMMITTING:
                await asyncio.sleep(0)
            return
        committing = asyncio.ensure_future(self._commit(self._wait_awaiting, offsets, group_metadata))
        await asyncio.shield(committing)

    def abort_transaction(self) -> None:
        run_blocking(self._abort(self._wait_blocking))

    async def abort_transaction_async(self) -> None:
        await self._abort(self._wait_awaiting)

    async def close_async(self, timeout: float | None = None) -> None:
        self.kafka.note("close", f"{self.id}@{self.epoch}")
        self.closed_with = timeout

    def close(self, timeout: float | None = None) -> None:
        self.kafka.note("close", self.id)

    async def _wait_awaiting(self, method: str) -> None:
        gate = self.kafka.gates.get(method)
        while gate is not None and not gate.is_set():
            await asyncio.sleep(0.001)

    async def _wait_blocking(self, method: str) -> None:
        gate = self.kafka.gates.get(method)
        assert gate is None or gate.wait(5)


class FakeFactory(ProducerFactory):
    """A ProducerFactory whose producers are fakes."""

    def __init__(self, kafka: FakeKafka, *args: Any, **arguments: Any) -> None:
        super().__init__(*args, **arguments)
        self.kafka = kafka

    def _make(self, transactional_id: str | None = None, engine: Engine | None = None) -> Any:
        return FakeProducer(self.kafka, transactional_id, engine)


@pytest.fixture(autouse=True)
def state_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Locks of its own for each test."""
    monkeypatch.setenv("OTTLA_STATE_DIR", str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.fixture
def fake_kafka() -> FakeKafka:
    return FakeKafka()


@pytest.fixture
def make_factory(fake_kafka: FakeKafka) -> Iterator[Callable[..., FakeFactory]]:
    made: list[FakeFactory] = []

    def make(**arguments: Any) -> FakeFactory:
        made.append(FakeFactory(fake_kafka, **arguments))
        return made[-1]

    yield make
    for factory in made:
        factory.close(5)


@pytest.fixture
def factory(make_factory: Callable[..., FakeFactory]) -> FakeFactory:
    """A factory with the prefix `tx-`."""
    return make_factory(transaction_id_prefix="tx-")


@pytest.fixture
def template(factory: FakeFactory) -> KafkaTemplate:
    return KafkaTemplate(factory)


# -- real brokers ------------------------------------------------------------------------------------------------------


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "cluster" in metafunc.fixturenames:
        metafunc.parametrize("cluster", cluster_params(metafunc.definition), indirect=True, scope="session")


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest, clusters: Any) -> Iterator[ClusterUnderTest]:
    """Our broker, and Apache Kafka."""
    with clusters.lease(request.param) as started:
        yield started


class Reader:
    """What a topic holds, for readers of either kind."""

    def __init__(self, cluster: ClusterUnderTest) -> None:
        self._cluster = cluster

    def values(self, topic: str, *, partitions: int = 1, isolation_level: str = "read_committed") -> list[str]:
        """All values that may be read now, in the order of partition and offset."""
        wanted = [TopicPartition(topic, index) for index in range(partitions)]
        settings = {"isolation_level": isolation_level, "auto_offset_reset": "earliest"}
        with KafkaConsumer(bootstrap_servers=self._cluster.bootstrap_servers, **settings) as consumer:
            consumer.assign(wanted)
            ends = consumer.end_offsets(wanted)
            found: list[Any] = []
            while any(consumer.position(partition) < ends[partition] for partition in wanted):
                found += consumer.poll(0.1)
        return [record.value.decode() for record in sorted(found, key=lambda one: (one.partition, one.offset))]

    def all_values(self, topic: str, *, partitions: int = 1) -> list[str]:
        """Also those of aborted and of open transactions."""
        return self.values(topic, partitions=partitions, isolation_level="read_uncommitted")

    def assert_sees(self, topic: str, *expected: str, partitions: int = 1) -> None:
        """What a reader of committed records sees. Apache Kafka answers a commit before its markers are written."""
        if self._cluster.name != "ottla":
            deadline = time.monotonic() + 20
            while self.values(topic, partitions=partitions) != list(expected) and time.monotonic() < deadline:
                time.sleep(0.05)
        assert self.values(topic, partitions=partitions) == list(expected)

    def assert_committed(self, group: str, expected: dict[int, int]) -> None:
        """The group's offsets are these; on Apache Kafka, soon."""
        if self._cluster.name != "ottla":
            deadline = time.monotonic() + 20
            while self.committed(group) != expected and time.monotonic() < deadline:
                time.sleep(0.05)
        assert self.committed(group) == expected

    def committed(self, group: str) -> dict[int, int]:
        """The group's offsets by partition."""
        offsets = self._cluster.admin.list_group_offsets(group)
        return {partition.partition: place.offset for partition, place in offsets.items() if place is not None}


@pytest.fixture
def reader(cluster: ClusterUnderTest) -> Reader:
    return Reader(cluster)


@pytest.fixture
def make_live_factory(cluster: ClusterUnderTest) -> Iterator[Callable[..., ProducerFactory]]:
    """Factories with a fresh prefix, unless one is given."""
    made: list[ProducerFactory] = []

    def make(**arguments: Any) -> ProducerFactory:
        arguments.setdefault("transaction_id_prefix", f"{cluster.fresh('tx')}-")
        made.append(ProducerFactory(bootstrap_servers=cluster.bootstrap_servers, linger_ms=0, **arguments))
        return made[-1]

    yield make
    for factory in made:
        factory.close(10)


@pytest.fixture
def live_template(make_live_factory: Callable[..., ProducerFactory]) -> KafkaTemplate:
    return KafkaTemplate(make_live_factory())


@pytest.fixture
def make_app(cluster: ClusterUnderTest, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ottla]:
    """Applications with a fresh name, whose transactional ids so are fresh, too."""

    def make(**arguments: Any) -> Ottla:
        arguments.setdefault("name", cluster.fresh("app"))
        return Ottla(cluster.bootstrap_servers, producer={"linger_ms": 0, **arguments.pop("producer", {})}, **arguments)

    return make
