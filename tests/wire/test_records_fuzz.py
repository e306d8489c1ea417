"""Damaged batches: both twins read the same records or raise the same error, and nothing outside the buffer is read."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ottla_wire.errors import OttlaError
from support.record_twins import twin

MAX_BYTES = 100_000


def outcome(records: ModuleType, buffer: bytes) -> list[Any]:
    """All that a reader can learn from a buffer."""
    seen: list[Any] = []
    try:
        for batch in records.iter_batches(buffer):
            fields = (batch.base_offset, batch.last_offset, batch.attributes, batch.count, batch.crc, batch.position)
            seen.append((*fields, batch.last_sequence, batch.producer_id, batch.producer_epoch, batch.size_bytes))
            for read in (
                lambda batch=batch: [(r.offset, r.timestamp_ms, r.key, r.value, r.headers) for r in records_of(batch)],
                lambda batch=batch: [
                    (r.offset, r.timestamp_ms, r.key, r.value, r.headers, r.leader_epoch)
                    for r in records.decode_batch(batch, "t", 1, from_offset=3, max_bytes=MAX_BYTES)
                ],
                lambda batch=batch: batch.verify(),
            ):
                try:
                    seen.append(read())
                except OttlaError as error:
                    seen.append(type(error))
    except OttlaError as error:
        seen.append(type(error))
    return seen


def records_of(batch: Any) -> Any:
    return batch.records(max_bytes=MAX_BYTES)


def seeds() -> list[bytes]:
    records = twin("pure")
    contents = [
        [(1000, b"key", b"value", ())],
        [
            (1000 - i, b"k" * i or None, None if i % 3 == 0 else b"v" * 90, [("h", b"1"), ("i", None)][: i % 3])
            for i in range(6)
        ],
        [(2**62, b"", b"", [("n" * 70, b"v" * 70)])],
    ]
    found = [
        records.build_batch(content, compression=codec, base_offset=2**40, producer_id=5, base_sequence=2**31 - 1)
        for content in contents
        for codec in records.Compression
    ]
    return [*found, found[0] + found[5] + found[6][:40]]


SEEDS = seeds()
INTERESTING = [0, 1, 2, 0x7F, 0x80, 0x81, 0xFE, 0xFF]


def damaged(rng: random.Random) -> bytes:
    buffer = bytearray(rng.choice(SEEDS))
    for _ in range(rng.randint(1, 4)):
        # Most damage goes behind the header, where the lengths of records are.
        position = rng.randrange(61, len(buffer)) if rng.random() < 0.8 else rng.randrange(len(buffer))
        action = rng.randrange(4)
        if action == 0:
            buffer[position] = rng.choice(INTERESTING)
        elif action == 1:
            buffer[position] ^= 1 << rng.randrange(8)
        elif action == 2:
            buffer[position : position + rng.randint(1, 9)] = bytes(rng.choice(INTERESTING) for _ in range(9))
        elif len(buffer) > 80:
            del buffer[position : position + rng.randint(1, 5)]
            if len(buffer) < 62:
                buffer += bytes(62 - len(buffer))
    return bytes(buffer)


def refit(buffer: bytes) -> bytes:
    """The same with the length of its first batch as long as the buffer: damage must reach the records."""
    return buffer[:8] + (len(buffer) - 12).to_bytes(4, "big") + buffer[12:]


@given(seed=st.integers(0, 2**32), fit=st.booleans())
@settings(max_examples=400)
def test_both_twins_make_the_same_of_a_damaged_batch(seed: int, fit: bool) -> None:
    buffer = damaged(random.Random(seed))
    if fit:
        buffer = refit(buffer)
    assert outcome(twin("native"), buffer) == outcome(twin("pure"), buffer), buffer.hex()


@given(payload=st.binary(max_size=60), count=st.integers(0, 4))
@settings(max_examples=400)
def test_both_twins_make_the_same_of_any_bytes(payload: bytes, count: int) -> None:
    header = bytearray(SEEDS[0][:61])
    header[57:61] = count.to_bytes(4, "big")
    buffer = refit(bytes(header) + payload)
    assert outcome(twin("native"), buffer) == outcome(twin("pure"), buffer)


@pytest.mark.slow
def test_both_twins_agree_on_thousands_of_damaged_batches() -> None:
    rng = random.Random(20)
    kinds: set[str] = set()
    for _ in range(6000):
        buffer = damaged(rng)
        for candidate in (buffer, refit(buffer)):
            native = outcome(twin("native"), candidate)
            assert native == outcome(twin("pure"), candidate), candidate.hex()
            kinds.update(item.__name__ for item in native if isinstance(item, type))
    # The damage is of every kind that has an error of its own.
    assert kinds == {"CorruptMessage", "InvalidRecord", "UnsupportedCompressionType"}


# The pages behind the buffer belong to nobody: reading one byte of them ends the process.
GUARDED = """
import ctypes, mmap, os, sys
import ottla_wire.records as records
from ottla_wire.errors import OttlaError
assert records.native
page = mmap.PAGESIZE
area = mmap.mmap(-1, 4 * page)
address = ctypes.addressof(ctypes.c_char.from_buffer(area))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.mprotect(ctypes.c_void_p(address + 3 * page), ctypes.c_size_t(page), 0) == 0
view = memoryview(area)
if sys.argv[1] == "beyond":
    view[3 * page]
lines = sys.stdin.read().split()
for line in lines:
    data = bytes.fromhex(line)
    assert len(data) < 3 * page
    at_the_edge = view[3 * page - len(data) : 3 * page]
    at_the_edge[:] = data
    records.crc32c(at_the_edge), records.crc32c(at_the_edge, by_tables=True), records.murmur2(at_the_edge)
    try:
        for batch in records.iter_batches(at_the_edge):
            for read in (batch.verify, batch.records, lambda: records.decode_batch(batch, "t", 0)):
                try:
                    read()
                except OttlaError:
                    pass
    except OttlaError:
        pass
print(len(lines), flush=True)
os._exit(0)
"""


@pytest.mark.slow
def test_the_native_twin_reads_nothing_behind_the_buffer() -> None:
    twin("native")
    rng = random.Random(7)
    buffers = [seed[:cut] for seed in SEEDS[:6] for cut in range(len(seed) + 1)]
    buffers += [refit(seed[:cut]) for seed in SEEDS for cut in range(61, len(seed))]
    buffers += [refit(damaged(rng)) for _ in range(3000)]
    text = "\n".join(buffer.hex() for buffer in buffers if buffer)

    def run(mode: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", GUARDED, mode],
            env={**os.environ, "OTTLA_PURE": ""},
            input=text,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )

    assert run("beyond").returncode < 0, "the guard page guards nothing"
    done = run("within")
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])
    assert int(done.stdout) == len(text.split())
