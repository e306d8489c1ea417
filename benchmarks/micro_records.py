"""What a record costs in the wire's loops: native twin, pure twin, and aiokafka's compiled codec where it is installed.

    python benchmarks/micro_records.py [--records 1000] [--value-bytes 100] [--rounds 9]

Prints nanoseconds per record, the best of all rounds, as a table.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

PACKAGE = "ottla_wire.records"
KEY = b"key-12345678"


def twin(pure: bool) -> ModuleType | None:
    """The package on one of its twins; None if it was not compiled."""
    for module in [module for module in sys.modules if module.startswith(PACKAGE)]:
        del sys.modules[module]
    os.environ["OTTLA_PURE"] = "1" if pure else ""
    package = importlib.import_module(PACKAGE)
    return package if package.native != pure else None


def best(action: Callable[[], object], rounds: int, count: int) -> float:
    """Nanoseconds per record of the fastest round."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter_ns()
        action()
        times.append(time.perf_counter_ns() - start)
    return min(times) / count


def ours(records: ModuleType, count: int, value: bytes) -> Iterator[tuple[str, Callable[[], object]]]:
    """The measured actions of one twin, each over `count` records."""
    headers = [("source", b"shop"), ("trace", b"0123456789abcdef")]

    def append(headers: Any = None) -> Any:
        builder = records.RecordBatchBuilder(1 << 30)
        add = builder.append
        for timestamp_ms in range(count):
            add(timestamp_ms, KEY, value, headers)
        return builder

    def append_send() -> None:
        add = records.RecordBatchBuilder(1 << 30).append_send
        for timestamp_ms in range(count):
            add(timestamp_ms, KEY, value, None, "orders", value, KEY)

    def nothing(_: object) -> None:
        pass

    def future() -> None:
        futures = [records.SendFuture("orders", value) for _ in range(count)]
        for one in futures:
            one.add_callback(nothing)
        records.complete_batch(futures, "orders", 0, 100)

    def murmur2() -> None:
        hash_of = records.partition_for_key
        for _ in range(count):
            hash_of(KEY, 12)

    plain = records.RecordBatch(append().build())
    with_headers = records.RecordBatch(append(headers).build())
    small = append().build()[:61]  # an empty batch of headers only, many times over
    empty = bytearray(small)
    empty[8:12] = (49).to_bytes(4, "big")
    many = bytes(empty) * count

    yield "encode", append
    yield "encode, two headers", lambda: append(headers)
    yield "encode and make the future", append_send
    yield "decode for a consumer", lambda: records.decode_batch(plain, "orders", 0)
    yield "decode, two headers", lambda: records.decode_batch(with_headers, "orders", 0)
    yield "decode as records", plain.records
    yield "future: make, callback, finish", future
    yield "partition of a key (12 bytes)", murmur2
    yield "checksum", plain.verify
    yield "scan batch headers (per batch)", lambda: sum(1 for _ in records.iter_batches(many))


def aiokafka(count: int, value: bytes) -> Iterator[tuple[str, Callable[[], object]]]:
    """The same of aiokafka, where it has it."""
    try:
        from aiokafka.partitioner import murmur2
        from aiokafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder
    except ImportError:
        return

    def append(headers: list[Any] | None = None) -> bytearray:
        builder = DefaultRecordBatchBuilder(2, 0, False, -1, -1, -1, 1 << 30)
        add = builder.append
        for offset in range(count):
            add(offset, offset, KEY, value, headers or [])
        built: bytearray = builder.build()
        return built

    def keys() -> None:
        for _ in range(count):
            (murmur2(KEY) & 0x7FFFFFFF) % 12

    headers = [("source", b"shop"), ("trace", b"0123456789abcdef")]
    built, with_headers = bytes(append()), bytes(append(headers))
    yield "encode", append
    yield "encode, two headers", lambda: append(headers)
    yield "decode as records", lambda: list(DefaultRecordBatch(built))
    yield "decode, two headers", lambda: list(DefaultRecordBatch(with_headers))
    yield "partition of a key (12 bytes)", keys
    yield "checksum", DefaultRecordBatch(built).validate_crc


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=1000)
    parser.add_argument("--value-bytes", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=200)
    options = parser.parse_args()
    value = b"v" * options.value_bytes

    table: dict[str, dict[str, float]] = {}
    pure = twin(pure=True)
    assert pure is not None
    for column, actions, rounds in (
        ("pure", ours(pure, options.records, value), max(5, options.rounds // 20)),
        ("native", None, options.rounds),
        ("aiokafka", aiokafka(options.records, value), options.rounds),
    ):
        if column == "native":
            native = twin(pure=False)
            actions = iter(()) if native is None else ours(native, options.records, value)
        assert actions is not None
        for name, action in actions:
            table.setdefault(name, {})[column] = best(action, rounds, options.records)

    print(f"ns per record; {options.records} records of {options.value_bytes} bytes, Python {sys.version.split()[0]}")
    print(f"{'':<32}{'native':>10}{'pure':>10}{'aiokafka':>10}")
    for name, row in table.items():
        cells = (
            f"{row[column]:>10.0f}" if column in row else f"{'-':>10}" for column in ("native", "pure", "aiokafka")
        )
        print(f"{name:<32}" + "".join(cells))


if __name__ == "__main__":
    main()
