"""A transaction step by step, for tests that kill: what it writes, and what has to be left of it.

`python -m support.transaction_steps SERVERS TOPIC commit|abort` is the process to kill: it says `ready`, writes
transaction 1, says `written`, ends it, and says `ended`; after each of these it waits for a line.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass

from ottla.client import AdminClient, ConsumerGroupMetadata, KafkaConsumer, KafkaProducer, TopicPartition
from ottla.client.admin import OffsetSpec
from support.clusters import eventually

SOURCE, PARTITIONS = "source", 3
TIMEOUT_MS = 3_000


@dataclass
class Case:
    """One transactional id, its own topic and group, and the transactions it tries."""

    servers: str
    topic: str

    @property
    def places(self) -> list[TopicPartition]:
        return [TopicPartition(self.topic, index) for index in range(PARTITIONS)]

    def producer(self, timeout_ms: int = TIMEOUT_MS) -> KafkaProducer:
        """The instance of this id: it ends what another one has left open."""
        producer = KafkaProducer(
            bootstrap_servers=self.servers,
            transactional_id=self.topic,
            transaction_timeout_ms=timeout_ms,
            delivery_timeout_ms=60_000,
            retry_backoff_ms=20,
        )
        producer.init_transactions(60)
        return producer

    def write(self, producer: KafkaProducer, number: int) -> None:
        """What a transaction holds: a record in each partition, one request after the other, and a position."""
        producer.begin_transaction()
        for place in self.places:
            producer.send(self.topic, b"%d" % number, partition=place.partition)
            producer.flush(60)
        position = {TopicPartition(SOURCE, 0): number + 1}
        producer.send_offsets_to_transaction(position, ConsumerGroupMetadata(self.topic), 60)

    def committed(self) -> list[int]:
        """The transactions that a reader of committed records finds; each must be in all partitions, in order."""
        found: list[list[int]] = [[] for _ in self.places]
        with KafkaConsumer(
            bootstrap_servers=self.servers, auto_offset_reset="earliest", isolation_level="read_committed"
        ) as consumer:
            consumer.assign(self.places)
            ends = consumer.end_offsets(self.places, 30)
            deadline = time.monotonic() + 30
            while any(consumer.position(place, 30) < end for place, end in ends.items()):
                assert time.monotonic() < deadline, f"{found} in 30 s of {ends}"
                for record in consumer.poll(0.5):
                    found[record.partition].append(int(record.value))
        assert found[0] == found[1] == found[2], f"a transaction is there in part: {found}"
        return found[0]

    def open_transactions(self) -> list[str]:
        with AdminClient(bootstrap_servers=self.servers) as admin:
            listed = admin.list_transactions(pattern=self.topic)
            found = [one.state for one in listed if one.state not in ("Empty", "CompleteCommit", "CompleteAbort")]
            described = admin.describe_producers(self.places).items()
            found += [f"{place}" for place, ps in described if any(p.transaction_start_offset is not None for p in ps)]
            latest = dict.fromkeys(self.places, OffsetSpec.LATEST)
            stable = admin.list_offsets(latest, read_committed=True)
            ends = admin.list_offsets(latest)
            return found + [f"{place} is held up" for place in self.places if stable[place] != ends[place]]

    def position(self) -> int | None:
        with AdminClient(bootstrap_servers=self.servers) as admin:
            place = TopicPartition(SOURCE, 0)
            found = admin.list_group_offsets(self.topic, [place], require_stable=True)[place]
            return None if found is None else found.offset

    def assert_over(self, *transactions: int) -> None:
        """No transaction is open, or soon none; these are committed, and no others."""
        eventually(lambda: self.open_transactions() == [], 30)
        assert self.committed() == list(transactions)
        assert self.position() == (transactions[-1] + 1 if transactions else None)


def main(servers: str, topic: str, end: str) -> None:
    case = Case(servers, topic)
    producer = case.producer()
    print("ready", flush=True)
    sys.stdin.readline()
    case.write(producer, 1)
    print("written", flush=True)
    sys.stdin.readline()
    if end == "commit":
        producer.commit_transaction(60)
    else:
        producer.abort_transaction(60)
    print("ended", flush=True)
    sys.stdin.readline()


if __name__ == "__main__":
    main(*sys.argv[1:])
