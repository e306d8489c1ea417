"""What is left when everything has stopped, looked at from several sides, and whether they agree."""

from __future__ import annotations

import struct
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from models import Payment, Receipt, Status

from ottla.client import AdminClient, KafkaConsumer, TopicPartition
from ottla.client.admin import OffsetSpec
from ottla_wire.records import Record, iter_batches

UNFINISHED = ("Ongoing", "PrepareCommit", "PrepareAbort", "PrepareEpochFence")
ABORT, COMMIT = 0, 1


@dataclass
class Evidence:
    """Everything that the checks look at.

    Attributes:
        sent: the payments whose send was acknowledged, in order.
        opening: the balances at the beginning.
        balances: those in the database now.
        charges: the database's receipts.
        receipts: those that a reader of committed records finds in the topic, partition after partition.
        told: the receipts that such a reader was given while everything went on.
        in_the_files: the committed receipts in the broker's files, read without broker and client.
        unfinished: transactional ids whose transaction is not over, and partitions in which one is open.
        lag: for each partition of the input, how far the group is behind.
        ended_by_themselves: workers that nobody had killed, and that were not there any more.
    """

    sent: Sequence[Payment]
    opening: Mapping[str, int]
    balances: Mapping[str, int]
    charges: Sequence[Receipt]
    receipts: Sequence[Receipt]
    told: Sequence[Receipt]
    in_the_files: Sequence[Receipt]
    unfinished: Sequence[str] = ()
    lag: Mapping[TopicPartition, int] = field(default_factory=dict)
    ended_by_themselves: Sequence[str] = ()


def checks(found: Evidence) -> dict[str, bool]:
    """What must hold, whatever was killed when."""
    once = Counter(payment.id for payment in found.sent)
    charged = {receipt.payment_id: receipt for receipt in found.charges}
    return {
        "every payment is in the database exactly once": Counter(r.payment_id for r in found.charges) == once,
        "every payment has exactly one committed receipt": Counter(r.payment_id for r in found.receipts) == once,
        "the receipts say what the database says": all(charged.get(r.payment_id) == r for r in found.receipts),
        "the receipts of a payer are in the order of the payments": is_in_order(found.receipts),
        "the balances are what the receipts add up to": balances_after(found.opening, found.receipts) == found.balances,
        "no money was made or lost, and nobody owes any": sum(found.balances.values()) == sum(found.opening.values())
        and min(found.balances.values(), default=0) >= 0,
        "a reader was told the same while it went on": same(found.told, found.receipts),
        "the files of the broker have the same": same(found.in_the_files, found.receipts),
        "no transaction is left open": not found.unfinished,
        "the group's lag is 0": bool(found.lag) and not any(found.lag.values()),
        "no worker ended by itself": not found.ended_by_themselves,
    }


def same(one: Sequence[Receipt], other: Sequence[Receipt]) -> bool:
    """Whether they hold the same receipts, equally often."""
    return Counter(r.model_dump_json() for r in one) == Counter(r.model_dump_json() for r in other)


def is_in_order(receipts: Sequence[Receipt]) -> bool:
    last: dict[str, int] = {}
    for receipt in receipts:
        if receipt.number <= last.get(receipt.payer, -1):
            return False
        last[receipt.payer] = receipt.number
    return True


def balances_after(opening: Mapping[str, int], receipts: Sequence[Receipt]) -> dict[str, int]:
    balances = dict(opening)
    for receipt in receipts:
        if receipt.status is Status.PAID:
            balances[receipt.payer] -= receipt.cents
            balances[receipt.payee] += receipt.cents
    return balances


def read_committed(bootstrap_servers: str, topic: str, partitions: int, *, committed: bool = True) -> list[Receipt]:
    """The receipts in a topic, from its first to its last; with `committed=False` also those that were rolled back."""
    isolation = "read_committed" if committed else "read_uncommitted"
    with KafkaConsumer(
        bootstrap_servers=bootstrap_servers, auto_offset_reset="earliest", isolation_level=isolation
    ) as consumer:
        places = [TopicPartition(topic, index) for index in range(partitions)]
        consumer.assign(places)
        ends = consumer.end_offsets(places, 30)
        found: list[Receipt] = []
        deadline = time.monotonic() + 120
        while any(consumer.position(place, 30) < end for place, end in ends.items()):
            if time.monotonic() > deadline:
                raise SystemExit(f"{topic} could not be read to its end in 120 s")
            found += [Receipt.model_validate_json(record.value) for record in consumer.poll(0.5)]
        return found


def lag(admin: AdminClient, group: str, topic: str, partitions: int) -> dict[TopicPartition, int]:
    """How many records the group has not committed, markers included."""
    places = [TopicPartition(topic, index) for index in range(partitions)]
    ends = admin.list_offsets(dict.fromkeys(places, OffsetSpec.LATEST))
    committed = admin.list_group_offsets(group, places)
    at = {place: offset.offset if offset else 0 for place, offset in committed.items()}
    return {place: ends[place].offset - at.get(place, 0) for place in places}


def unfinished(admin: AdminClient, topics: Mapping[str, int]) -> list[str]:
    """What the coordinator and the partitions know of transactions that are not over."""
    open_ids = [f"{one.transactional_id}: {one.state}" for one in admin.list_transactions(states=UNFINISHED)]
    places = [TopicPartition(topic, index) for topic, count in topics.items() for index in range(count)]
    for place, producers in admin.describe_producers(places).items():
        starts = [one.transaction_start_offset for one in producers if one.transaction_start_offset is not None]
        open_ids += [f"{place.topic}-{place.partition} at offset {start}" for start in starts]
    return open_ids


@dataclass
class Files:
    """What the files of one topic hold: the committed records' values, and the transactions that ended there."""

    committed: list[bytes] = field(default_factory=list)
    rolled_back: int = 0
    ended: dict[int, set[tuple[int, int]]] = field(default_factory=lambda: defaultdict(set))


def in_the_files(data: Path, topic: str) -> Files:
    """Read a topic as the format says, from the files of a broker that has stopped."""
    found = Files()
    for folder in sorted(data.glob(f"{topic}-*")):
        open_records: dict[int, list[Record]] = defaultdict(list)
        for segment in sorted(folder.glob("*.log")):
            for batch in iter_batches(bytearray(segment.read_bytes()), strict=True):
                if not batch.is_control:
                    open_records[batch.producer_id] += batch.records()
                    continue
                _, end = struct.unpack(">hh", batch.records()[0].key or b"")
                records = open_records.pop(batch.producer_id, [])
                found.ended[end].add((batch.producer_id, batch.producer_epoch))
                if end == COMMIT:
                    found.committed += [record.value or b"" for record in records]
                else:
                    found.rolled_back += len(records)
        found.rolled_back += sum(map(len, open_records.values()))
    return found
