"""Transactions under trouble: what is run, what goes wrong, and what has to hold in the end.

* *Senders* write transactions over several partitions, and commit or abort them. Some know version 1 only, some share
  their transactional id, some begin with an epoch that is nearly exhausted.
* A *feeder* fills a topic without transactions; *workers* of a group send one record for each of it, with the offsets
  in the transaction.
* *Readers* read committed records all the time.
* *Trouble*: connections are cut and stall, processes are paused for longer than their transactions may take, killed and
  started again, the broker crashes and starts again.

Then the trouble ends, and after some time everything has to be as the `ledger` demands, no transaction open, and each
partition readable to its end.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from dataclasses import dataclass
from typing import Any

from ottla.client import AsyncKafkaConsumer, AsyncKafkaProducer
from ottla.client.topic_partition import OffsetAndMetadata, TopicPartition
from ottla.errors import NoAnswer, OttlaError
from ottla_broker.coordinator.decision import Decision
from ottla_broker.coordinator.transaction_records import transaction_record
from ottla_broker.coordinator.transaction_state import LAST_CLIENT_EPOCH, RESTING, value_of
from ottla_wire.messages.offset_fetch import OffsetFetchRequestGroup
from simulation.ledger import Ledger, Outcome, Place, Transaction, Violation
from simulation.processes import Process
from simulation.world import SimulatedBroker, SimulatedEngine, World, world

TOPICS = {"a": 3, "b": 2, "in": 2, "out": 2}
BROKER = {
    "offsets.topic.num.partitions": 1,
    "transaction.state.log.num.partitions": 2,
    "transaction.abort.timed.out.transaction.cleanup.interval.ms": 200,
    "group.initial.rebalance.delay.ms": 0,
    "group.min.session.timeout.ms": 100,
}
# Everything is quick here, so that a seed is short: a program's minute is a few seconds.
TRANSACTION_TIMEOUT_MS = 1_500
TOO_LONG_SECONDS = 2 * TRANSACTION_TIMEOUT_MS / 1000
CALL_SECONDS = 3.0
INPUTS = 12
TROUBLE_SECONDS = (1.0, 2.0, 5.0)
LONGEST_QUIET_SECONDS = 30.0
EPOCHS_LEFT = 3

ALL_PARTITIONS = [TopicPartition(topic, index) for topic, count in TOPICS.items() for index in range(count)]


@dataclass
class Report:
    """What a simulation was made of."""

    outcomes: Counter[Outcome]
    events: Counter[str]
    virtual_seconds: float


def simulate(seed: int) -> Report:
    """Run one seed.

    Raises:
        Violation: something happened that must not.
    """
    with world(seed) as here:
        return here.loop.run_until_complete(Simulation(here).run())


class Client:
    """A program that runs again whenever it was killed or has given up."""

    def __init__(self, simulation: Simulation, name: str, transactional_id: str | None = None) -> None:
        self.simulation = simulation
        self.world = simulation.world
        self.name = name
        self.transactional_id = transactional_id
        self.instances = 0
        self.process = Process(name)
        self.process.is_dead = True
        self.task: asyncio.Task[Any] | None = None

    def start(self) -> None:
        self.instances += 1
        self.process = Process(self.instance)
        if self.simulation.v1[self.name]:
            self.world.speaks_v1.add(self.process.name)
        self.task = self.process.start(self._run())

    @property
    def instance(self) -> str:
        return f"{self.name}#{self.instances}"

    def kill(self) -> None:
        self.world.network.cut(self.process, lossy=self.world.chance(0.3))
        self.process.kill()

    async def _run(self) -> None:
        while not self.simulation.is_over:
            try:
                await self.live()
                return
            except OttlaError as error:
                self.world.trace("%s starts over: %r", self.instance, error)
                await asyncio.sleep(self.world.rng.uniform(0.02, 0.2))

    async def live(self) -> None:
        raise NotImplementedError

    def producer(self, engine: SimulatedEngine) -> AsyncKafkaProducer:
        return AsyncKafkaProducer(
            bootstrap_servers="127.0.0.1:9092",
            engine=engine,
            client_id=self.instance,
            transactional_id=self.transactional_id,
            transaction_timeout_ms=TRANSACTION_TIMEOUT_MS,
            request_timeout_ms=700,
            delivery_timeout_ms=2_000,
            max_block_ms=3_000,
            retry_backoff_ms=20,
            retry_backoff_max_ms=150,
            linger_ms=2,
            batch_size=200,
        )

    def consumer(self, engine: SimulatedEngine, **settings: Any) -> AsyncKafkaConsumer:
        return AsyncKafkaConsumer(
            bootstrap_servers="127.0.0.1:9092",
            engine=engine,
            client_id=self.instance,
            isolation_level="read_committed",
            auto_offset_reset="earliest",
            enable_auto_commit=False,
            session_timeout_ms=1_000,
            heartbeat_interval_ms=300,
            max_poll_interval_ms=3_000,
            request_timeout_ms=700,
            default_api_timeout_ms=3_000,
            retry_backoff_ms=20,
            retry_backoff_max_ms=150,
            fetch_max_wait_ms=500,
            max_partition_fetch_bytes=self.world.rng.choice((300, 10_000)),
            **settings,
        )

    async def pause(self, longest: float) -> None:
        await asyncio.sleep(self.world.rng.uniform(0.0, longest))

    async def commit(self, producer: AsyncKafkaProducer, transaction: Transaction | None) -> None:
        """Commit; what is not answered may only be asked again."""
        for attempt in range(4):
            try:
                await producer.commit_transaction(timeout=self.world.rng.choice((0.02, 0.3, CALL_SECONDS)))
                if transaction is not None:
                    transaction.outcome = Outcome.COMMITTED
                return
            except NoAnswer:
                if attempt == 3:
                    raise


class Sender(Client):
    """Writes transactions of its own."""

    async def live(self) -> None:
        producer = self.producer(SimulatedEngine(self.instance))
        try:
            await producer.init_transactions(timeout=CALL_SECONDS)
            while not self.simulation.is_quiet:
                await self.transaction(producer)
                await self.pause(0.4)
        finally:
            await producer.close(1)

    async def transaction(self, producer: AsyncKafkaProducer) -> None:
        await producer.begin_transaction()
        transaction = self.simulation.ledger.begin(self.instance)
        try:
            for index in range(self.world.rng.choice((0, 1, 1, 2, 5, 12))):
                topic, partition = self.world.rng.choice(ALL_PARTITIONS[:5])
                value = json.dumps([transaction.client, transaction.number, index])
                transaction.records.append(value)
                producer.send(topic, value, partition=partition, timestamp_ms=1_700_000_000_000)
                if self.world.chance(0.2):
                    await self.pause(0.2)
                if self.world.chance(0.02):
                    await self.pause(TOO_LONG_SECONDS)
            if self.world.chance(0.2):
                await producer.abort_transaction(timeout=CALL_SECONDS)
                return
            transaction.outcome = Outcome.UNKNOWN
            await self.commit(producer, transaction)
        except OttlaError as error:
            self.world.trace("%s, transaction %d: %r", self.instance, transaction.number, error)
            await producer.abort_transaction(timeout=CALL_SECONDS)
            transaction.outcome = Outcome.ABORTED


class Feeder(Client):
    """Fills the topic that the workers read."""

    async def live(self) -> None:
        ledger = self.simulation.ledger
        producer = self.producer(SimulatedEngine(self.instance))
        try:
            while self.simulation.fed < INPUTS:
                number, self.simulation.fed = self.simulation.fed, self.simulation.fed + 1
                value = f"input {number}"
                ledger.inputs_sent.add(value)
                future = producer.send("in", value, partition=number % 2, timestamp_ms=1_700_000_000_000)
                if self.world.chance(0.5):
                    try:
                        stored = await future
                    except OttlaError as error:
                        self.world.trace("%s is not stored: %r", value, error)
                        raise
                    ledger.inputs_stored[value] = Place(stored.topic, stored.partition, stored.offset)
                await self.pause(self.simulation.trouble_seconds / INPUTS)
        finally:
            await producer.close(5)


class Worker(Client):
    """One output for each input, with the offsets in the transaction."""

    async def live(self) -> None:
        engine = SimulatedEngine(self.instance)
        producer = self.producer(engine)
        consumer = self.consumer(engine, group_id="workers", max_poll_records=3)
        try:
            await producer.init_transactions(timeout=CALL_SECONDS)
            consumer.subscribe(["in"])
            while not self.simulation.is_over:
                records = await consumer.poll(0.5)
                if records:
                    await self.transaction(producer, consumer, records)
        finally:
            await producer.close(1)
            await consumer.close(1)

    async def transaction(self, producer: AsyncKafkaProducer, consumer: AsyncKafkaConsumer, records: Any) -> None:
        await producer.begin_transaction()
        try:
            for record in records:
                producer.send("out", record.value, partition=record.partition, timestamp_ms=1_700_000_000_000)
                if self.world.chance(0.1):
                    await self.pause(0.2)
                if self.world.chance(0.01):
                    await self.pause(TOO_LONG_SECONDS)
            offsets = {
                TopicPartition(each.topic, each.partition): OffsetAndMetadata(each.offset + 1) for each in records
            }
            await producer.send_offsets_to_transaction(offsets, consumer.group_metadata(), timeout=CALL_SECONDS)
            await self.commit(producer, None)
        except OttlaError as error:
            self.world.trace("%s: %r", self.instance, error)
            await producer.abort_transaction(timeout=CALL_SECONDS)
            # What was read is to be read again: from what is committed.
            committed = await consumer.committed(consumer.assignment())
            for partition, place in committed.items():
                consumer.seek(partition, 0 if place is None else place.offset)


class Reader(Client):
    """Reads what is committed, from the beginning, again and again."""

    async def live(self) -> None:
        consumer = self.consumer(SimulatedEngine(self.instance))
        try:
            consumer.assign(ALL_PARTITIONS)
            while not self.simulation.is_over:
                for record in await consumer.poll(0.5):
                    place = Place(record.topic, record.partition, record.offset)
                    self.simulation.ledger.saw(place, record.value.decode())
                await self.pause(0.3)
                if self.world.chance(0.1):
                    consumer.seek_to_beginning()
        finally:
            await consumer.close(1)


class Simulation:
    """One world with its clients, its trouble and its end."""

    def __init__(self, here: World) -> None:
        self.world = here
        self.ledger = Ledger()
        self.events: Counter[str] = Counter()
        self.fed = 0
        self.is_quiet = False
        self.is_over = False
        rng = here.rng
        self.trouble_seconds = rng.choice(TROUBLE_SECONDS)
        ids = ["one", "two", "two"] if rng.random() < 0.3 else ["one", "two", "three"]
        self.clients: list[Client] = [Sender(self, f"sender {i}", name) for i, name in enumerate(ids)]
        self.clients += [Worker(self, f"worker {i}", f"worker-{i}") for i in range(2)]
        self.clients += [Feeder(self, "feeder"), Reader(self, "reader")]
        self.v1 = {client.name: rng.random() < 0.3 for client in self.clients}
        self.transactional_ids = sorted({*ids, "worker-0", "worker-1"})

    async def run(self) -> Report:
        here = self.world
        here.broker = SimulatedBroker(here, TOPICS, dict(BROKER))
        await here.broker.start()
        if here.chance(0.3):
            await self.use_epochs_up()
        for client in self.clients:
            client.start()
        await self.make_trouble()
        await self.calm_down()
        await self.settle()
        outcomes = self.ledger.check(await self.read_everything())
        self.check_nothing_is_open()
        return Report(outcomes, self.events, here.loop.time())

    # -- trouble -----------------------------------------------------------------------------------------------------

    async def make_trouble(self) -> None:
        here, rng, faults = self.world, self.world.rng, self.world.network.faults
        faults.cut_rate = rng.choice((0.0, 0.001, 0.01))
        faults.stall_rate = rng.choice((0.0, 0.005, 0.02))
        faults.longest_stall_seconds = rng.choice((0.2, 1.0, 3.0))
        faults.refuse_rate = rng.choice((0.0, 0.1))
        faults.split_rate = rng.choice((0.0, 0.3))
        pause = rng.choice((0.15, 0.5, 1.5))
        troubles = [self.kill_a_client, self.pause_a_client, self.crash_the_broker, self.pause_the_broker, self.cut]
        until = here.loop.time() + self.trouble_seconds
        while here.loop.time() < until:
            await asyncio.sleep(rng.uniform(0.0, 2 * pause))
            trouble = rng.choice(troubles)
            self.events[trouble.__name__] += 1
            await trouble()

    async def kill_a_client(self) -> None:
        client = self.any_client()
        self.world.trace("%s is killed", client.instance)
        client.kill()
        self.world.loop.call_later(self.world.rng.uniform(0.0, 1.0), self.start_again, client)

    def start_again(self, client: Client) -> None:
        if client.process.is_dead:
            client.start()

    async def pause_a_client(self) -> None:
        client = self.any_client()
        seconds = self.world.rng.choice((0.05, 0.5, 1.5 * TRANSACTION_TIMEOUT_MS / 1000))
        self.world.trace("%s is paused for %.1f s", client.instance, seconds)
        client.process.pause()
        self.world.loop.call_later(seconds, client.process.resume)

    async def crash_the_broker(self) -> None:
        broker = self.world.broker
        assert broker is not None
        if self.world.chance(0.5):
            broker.writes_left = self.world.rng.randint(1, 12)
            await asyncio.sleep(0.3)
        if broker.process.is_dead:
            self.events["killed_while_writing"] += 1
        else:
            self.world.trace("the broker crashes")
            broker.crash()
        await asyncio.sleep(self.world.rng.choice((0.0, 0.1, 0.8)))
        await broker.start()
        self.world.trace("the broker is back")

    async def pause_the_broker(self) -> None:
        broker = self.world.broker
        assert broker is not None
        seconds = self.world.rng.choice((0.05, 0.3, 1.0))
        self.world.trace("the broker is paused for %.1f s", seconds)
        broker.process.pause()
        await asyncio.sleep(seconds)
        broker.process.resume()

    async def cut(self) -> None:
        client = self.any_client()
        self.world.trace("the connections of %s are cut", client.instance)
        self.world.network.cut(client.process, lossy=self.world.chance(0.5))

    def any_client(self) -> Client:
        return self.world.rng.choice(self.clients)

    async def use_epochs_up(self) -> None:
        """Let each transactional id have few epochs left."""
        for transactional_id in self.transactional_ids:
            client = Sender(self, f"opener of {transactional_id}", transactional_id)
            self.v1[client.name] = False
            client.process = Process(client.name)
            await client.process.start(self._open(client))
        coordinator = self.world.broker.parts.transactions  # type: ignore[union-attr]

        def exhaust(shard: Any, _now_ms: int) -> Decision[None]:
            records = []
            for name, known in shard.ids.items():
                metadata = known.metadata._replace(producer_epoch=LAST_CLIENT_EPOCH - EPOCHS_LEFT)
                records.append(transaction_record(name, value_of(metadata), 2))
            return Decision(None, records)

        for partition in coordinator.runtime.partitions():
            coordinator.runtime.run(partition, exhaust, 0)

    async def _open(self, client: Client) -> None:
        producer = client.producer(SimulatedEngine(client.name))
        await producer.init_transactions(timeout=CALL_SECONDS)
        await producer.close(1)

    # -- the end -----------------------------------------------------------------------------------------------------

    async def calm_down(self) -> None:
        self.world.trace("the trouble is over")
        self.world.network.faults.heal()
        self.is_quiet = True
        for client in self.clients:
            if client.process.is_paused:
                client.process.resume()
            self.start_again(client)

    async def settle(self) -> None:
        """Time for what is under way, for time-outs, and for the workers to come to an end."""
        deadline = self.world.loop.time() + LONGEST_QUIET_SECONDS
        while not self.are_all_done():
            if self.world.loop.time() > deadline:
                raise Violation(f"not done {LONGEST_QUIET_SECONDS} s after the trouble: {self.unfinished()}")
            await asyncio.sleep(0.3)
        self.is_over = True
        await asyncio.sleep(1.0)
        for client in self.clients:
            assert client.task is not None
            if not client.process.is_dead and client.task.done():
                client.task.result()  # what is not an error of Kafka's is one of ours
            client.kill()
        await asyncio.sleep(2.5 * TRANSACTION_TIMEOUT_MS / 1000)

    def are_all_done(self) -> bool:
        return not self.unfinished()

    def unfinished(self) -> list[str]:
        """Who still has something to do: senders with a transaction, the feeder, the workers' group, the network."""
        busy = [
            client.instance
            for client in self.clients
            if isinstance(client, Sender | Feeder) and (client.task is None or not client.task.done())
        ]
        if self.world.network.has_late_bytes:
            busy.append("what was sent before a connection ended")
        assert self.world.broker is not None
        parts = self.world.broker.parts
        ends = {index: parts.replicas.find("in", index).log.log_end_offset for index in range(TOPICS["in"])}
        asked = OffsetFetchRequestGroup(group_id="workers", topics=None)
        place = parts.groups.partition_for("workers")
        if place in parts.groups.runtime.partitions():
            answer = parts.groups.runtime.read(place, lambda shard: shard.offsets.fetch_committed(asked))
            for topic in answer.topics:
                for partition in topic.partitions:
                    if partition.committed_offset == ends[partition.partition_index]:
                        ends.pop(partition.partition_index)
        return busy + [f"workers, before offset {end} of {index}" for index, end in ends.items() if end]

    async def read_everything(self) -> dict[Place, str]:
        client = Reader(self, "the last reader")
        client.process = Process(client.name)
        return await client.process.start(self._read_everything(client))

    async def _read_everything(self, client: Client) -> dict[Place, str]:
        found: dict[Place, str] = {}
        consumer = client.consumer(SimulatedEngine(client.name))
        consumer.assign(ALL_PARTITIONS)
        ends = await consumer.end_offsets(ALL_PARTITIONS)
        deadline = self.world.loop.time() + 60
        while True:
            positions = {partition: await consumer.position(partition) for partition in ALL_PARTITIONS}
            behind = {name: at for name, at in positions.items() if at < ends[name]}
            if not behind:
                return found
            if self.world.loop.time() > deadline:
                raise Violation(f"a reader does not get to the end: it is at {behind} of {ends}")
            for record in await consumer.poll(0.5):
                place = Place(record.topic, record.partition, record.offset)
                if place in found:
                    raise Violation(f"{place} was given twice")
                found[place] = record.value.decode()

    def check_nothing_is_open(self) -> None:
        broker = self.world.broker
        assert broker is not None
        for partition in ALL_PARTITIONS:
            replica = broker.parts.replicas.find(*partition)
            stable, high = replica.last_stable_offset, replica.high_watermark
            if not stable == high == replica.log.log_end_offset:
                raise Violation(f"{partition} hangs: last stable offset {stable}, high watermark {high}")
        runtime = broker.parts.transactions.runtime
        for index in runtime.partitions():
            for name, known in runtime.read(index, lambda shard: shard.ids).items():
                if known.metadata.state not in RESTING or known.pending is not None:
                    raise Violation(f"the transaction of {name} hangs: {known.metadata}")
