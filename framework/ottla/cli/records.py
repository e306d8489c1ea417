"""`ottla produce` and `ottla consume`: lines or JSON, in and out."""

from __future__ import annotations

import base64
import json
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ottla.client import KafkaConsumer, KafkaProducer, TopicPartition
from ottla.errors import OttlaError
from ottla.send import SendError
from ottla_wire.records import ConsumerRecord

LINGER_MS = 5


@dataclass(slots=True)
class Line:
    """One line of input, as what is to be sent."""

    value: str | None
    key: str | None = None
    headers: dict[str, str | None] = field(default_factory=dict)
    partition: int | None = None


def parse_lines(lines: Iterable[str], *, as_json: bool, separator: str | None) -> Iterator[Line]:
    """Plain lines, lines `KEY<separator>VALUE`, or JSON objects with value, key, headers and partition.

    Raises:
        OttlaError: a line is not what was promised; the message has its number.
    """
    for number, raw in enumerate(lines, 1):
        text = raw.rstrip("\n")
        if as_json:
            yield _parse_json(text, number)
        elif separator is not None:
            key, found, value = text.partition(separator)
            if not found:
                raise OttlaError(f"line {number} has no {separator!r} between key and value")
            yield Line(value, key)
        else:
            yield Line(text)


def _parse_json(text: str, number: int) -> Line:
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise OttlaError(f"line {number} is not JSON: {error}") from None
    if not isinstance(found, dict) or "value" not in found:
        raise OttlaError(f'line {number}: an object with at least "value" is needed, as `ottla consume --json` prints')
    value, key = found["value"], found.get("key")
    return Line(_text(value), _text(key), found.get("headers") or {}, found.get("partition"))


def _text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value)


def produce(servers: str, topic: str, lines: Iterable[Line], headers: dict[str, str], *, timeout: float) -> int:
    """Send every line; gives how many were stored.

    Raises:
        SendError: the first record that was not stored.
    """
    failures: list[SendError] = []
    count = 0
    limit_ms = int(timeout * 1000)
    # delivery.timeout.ms must not be below linger.ms + request.timeout.ms.
    limits = {
        "delivery.timeout.ms": limit_ms,
        "request.timeout.ms": max(1, limit_ms - LINGER_MS),
        "linger.ms": LINGER_MS,
        "max.block.ms": limit_ms,
    }
    with KafkaProducer(limits, bootstrap_servers=servers) as p:
        for line in lines:
            future = p.send(topic, line.value, line.key, line.partition, None, {**headers, **line.headers} or None)
            future.add_callback(None, failures.append)
            count += 1
        p.flush(timeout + 1)
    if failures:
        raise failures[0]
    return count


def consume(
    servers: str,
    topic: str,
    *,
    group: str | None,
    partition: int | None,
    from_beginning: bool,
    follow: bool,
    limit: int | None,
    as_json: bool,
    keys: bool,
    headers: bool,
    timeout: float,
) -> None:
    """Print records up to the present end of the topic; for ever with `follow`, or where only new ones are wanted."""
    settings: dict[str, Any] = {"auto_offset_reset": "earliest" if from_beginning else "latest"}
    if group is not None:
        settings["group_id"] = group
    with KafkaConsumer(bootstrap_servers=servers, isolation_level="read_committed", **settings) as consumer:
        ends = _start(consumer, topic, group, partition, from_beginning, timeout)
        follow = follow or (group is None and not from_beginning)
        left = sys.maxsize if limit is None else limit
        show = _as_json if as_json else (lambda record: _as_text(record, keys, headers))
        deadline = time.monotonic() + timeout
        while left > 0 and (follow or not _reached(consumer, ends)):
            records = consumer.poll(0.2, min(left, 500))
            for record in records:
                print(show(record), flush=False)
            sys.stdout.flush()
            left -= len(records)
            if records:
                deadline = time.monotonic() + timeout
            elif not follow and time.monotonic() > deadline:
                raise OttlaError(f"{topic}: no record came for {timeout:g} s, and the end was not reached")


def _start(
    consumer: KafkaConsumer, topic: str, group: str | None, partition: int | None, from_beginning: bool, timeout: float
) -> dict[TopicPartition, int]:
    """Assign or subscribe; gives where each partition ends now."""
    found = consumer.partitions_for(topic, timeout)
    if not found:
        raise OttlaError(f"there is no topic {topic!r}")
    partitions = [TopicPartition(topic, p.index) for p in found if partition in (None, p.index)]
    if not partitions:
        raise OttlaError(f"{topic} has no partition {partition}; it has {len(found)}")
    if group is not None and partition is None:
        consumer.subscribe([topic])
    else:
        consumer.assign(partitions)
        (consumer.seek_to_beginning if from_beginning else consumer.seek_to_end)(partitions)
    return consumer.end_offsets(partitions, timeout)


def _reached(consumer: KafkaConsumer, ends: dict[TopicPartition, int]) -> bool:
    assigned = consumer.assignment()
    return bool(assigned) and all(consumer.position(p) >= ends[p] for p in assigned if p in ends)


def _as_text(record: ConsumerRecord, keys: bool, headers: bool) -> str:
    parts = []
    if headers:
        parts.append(",".join(f"{name}:{_printable(value)}" for name, value in record.headers) or "-")
    if keys:
        parts.append(_printable(record.key))
    return "\t".join([*parts, _printable(record.value)])


def _printable(data: bytes | None) -> str:
    return "null" if data is None else data.decode(errors="backslashreplace")


def _as_json(record: ConsumerRecord) -> str:
    return json.dumps(
        {
            "topic": record.topic,
            "partition": record.partition,
            "offset": record.offset,
            "timestamp_ms": record.timestamp_ms,
            "key": _json_text(record.key),
            "value": _json_text(record.value),
            "headers": {name: _json_text(value) for name, value in record.headers},
        }
    )


def _json_text(data: bytes | None) -> Any:
    if data is None:
        return None
    try:
        return data.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data).decode()}
