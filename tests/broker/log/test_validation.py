"""What a leader refuses, with which error, and in which order."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from log_batches import NOW, append, batch, open_log, read_all
from log_simulated_files import SimulatedFiles

from ottla_broker.log.config import LogConfig
from ottla_broker.log.producer_state import AppendOrigin
from ottla_wire.errors import (
    CorruptMessage,
    InvalidRecord,
    InvalidTimestamp,
    KafkaError,
    MessageTooLarge,
    RecordListTooLarge,
)
from ottla_wire.records import Compression, RecordBatchBuilder, TimestampType, crc32c, iter_batches

HOUR_MS = 3_600_000

# where the fields of a batch are, and what a client may not put there
FIELDS = {
    "base_offset": (0, ">q"),
    "length": (8, ">i"),
    "magic": (16, ">b"),
    "attributes": (21, ">h"),
    "last_offset_delta": (23, ">i"),
    "max_timestamp": (35, ">q"),
    "producer_id": (43, ">q"),
    "base_sequence": (53, ">i"),
    "count": (57, ">i"),
}


def change(records: bytearray, *, crc: bool = True, **fields: int) -> bytearray:
    """Write header fields, and make the CRC right again."""
    for name, value in fields.items():
        position, layout = FIELDS[name]
        struct.pack_into(layout, records, position, value)
    if crc:
        struct.pack_into(">I", records, 17, crc32c(memoryview(records)[21:]))
    return records


def refusal(records: bytes | bytearray, config: LogConfig | None = None, **how: object) -> KafkaError:
    """The error that a fresh log answers with; it must be as empty after it as before."""
    log = open_log(SimulatedFiles(), config=config)
    with pytest.raises(KafkaError) as raised:
        append(log, records, **how)
    assert log.log_end_offset == 0
    assert log.size_bytes == 0
    assert len(log.producers) == 0
    return raised.value


def test_a_base_offset_other_than_zero_is_refused() -> None:
    assert type(refusal(change(batch(), base_offset=5))) is InvalidRecord


def test_a_batch_above_the_largest_size_is_refused_before_its_crc_is_looked_at() -> None:
    records = change(batch(value=bytes(500)), count=9, crc=False)
    assert type(refusal(records, LogConfig(max_message_bytes=300))) is MessageTooLarge


def test_a_batch_of_exactly_the_largest_size_is_taken() -> None:
    records = batch(value=bytes(500))
    log = open_log(SimulatedFiles(), config=LogConfig(max_message_bytes=len(records)))
    assert append(log, records).last_offset == 0


def test_a_wrong_crc_wins_over_wrong_content() -> None:
    records = change(batch(), count=9, attributes=0x20, crc=False)
    assert type(refusal(records)) is CorruptMessage


@pytest.mark.parametrize(
    ("last_offset_delta", "count"), [(-1, 1), (-1, 0), (0, 0), (0, -1), (0, 2), (5, 1), (2**31 - 1, 1)]
)
def test_offsets_and_count_that_disagree_are_refused(last_offset_delta: int, count: int) -> None:
    records = change(batch(), last_offset_delta=last_offset_delta, count=count)
    assert type(refusal(records)) is InvalidRecord


def test_a_client_may_not_write_control_records() -> None:
    assert type(refusal(change(batch(), attributes=0x20))) is InvalidRecord


def test_a_producer_without_a_sequence_is_refused() -> None:
    assert type(refusal(change(batch(), producer_id=5, base_sequence=-1))) is InvalidRecord


def test_old_formats_are_refused() -> None:
    assert type(refusal(change(batch(), magic=1))) is InvalidRecord


def test_an_unknown_codec_is_refused() -> None:
    assert type(refusal(change(batch(), attributes=7))) is InvalidRecord


def test_two_batches_in_one_request_are_refused() -> None:
    assert type(refusal(batch() + batch())) is InvalidRecord


def test_a_request_without_a_whole_batch_is_refused() -> None:
    assert type(refusal(batch()[:-1])) is InvalidRecord
    assert type(refusal(b"")) is InvalidRecord


def test_a_piece_of_a_batch_behind_the_first_is_not_stored() -> None:
    log = open_log(SimulatedFiles())
    records = batch()
    append(log, records + batch()[:-1])
    assert log.size_bytes == len(records)


def test_records_above_a_segment_are_refused() -> None:
    config = LogConfig(segment_bytes=200, max_message_bytes=10_000)
    assert type(refusal(batch(value=bytes(500)), config)) is RecordListTooLarge


def test_a_compacted_topic_refuses_records_without_a_key_and_names_them() -> None:
    builder = RecordBatchBuilder(10_000)
    for key in (b"a", None, b"b", None):
        builder.append(NOW, key, b"value", None)
    error = refusal(builder.build(), LogConfig(cleanup_policy=("compact",)))
    assert type(error) is InvalidRecord
    assert [index for index, _ in error.record_errors] == [1, 3]


def test_a_timestamp_too_far_ahead_is_refused_and_names_the_records() -> None:
    error = refusal(batch(3, timestamp_ms=NOW + HOUR_MS - 1, step_ms=1))
    assert type(error) is InvalidTimestamp
    assert [index for index, _ in error.record_errors] == [2]


def test_a_timestamp_at_the_bound_is_taken() -> None:
    append(open_log(SimulatedFiles()), batch(timestamp_ms=NOW + HOUR_MS))


def test_a_timestamp_too_old_is_refused_where_that_is_configured() -> None:
    config = LogConfig(message_timestamp_before_max_ms=1000)
    error = refusal(batch(3, timestamp_ms=NOW - 1001, step_ms=1), config)
    assert type(error) is InvalidTimestamp
    assert [index for index, _ in error.record_errors] == [0]


def test_a_record_without_timestamp_is_taken_whatever_the_bounds() -> None:
    log = open_log(SimulatedFiles(), config=LogConfig(message_timestamp_before_max_ms=1000))
    assert append(log, batch(timestamp_ms=-1)).max_timestamp_ms == -1


def test_a_bad_timestamp_wins_over_a_missing_key() -> None:
    builder = RecordBatchBuilder(10_000)
    builder.append(NOW, None, b"value", None)
    builder.append(NOW + HOUR_MS * 2, b"key", b"value", None)
    error = refusal(builder.build(), LogConfig(cleanup_policy=("compact",)))
    assert type(error) is InvalidTimestamp
    assert [index for index, _ in error.record_errors] == [0, 1]


def test_a_header_that_lies_about_its_largest_timestamp_is_corrected() -> None:
    """Far in the future it would keep its segment from ever being deleted."""
    log = open_log(SimulatedFiles())
    info = append(log, change(batch(3, step_ms=5), max_timestamp=NOW + 100 * HOUR_MS))
    (stored,) = read_all(log)
    assert info.max_timestamp_ms == stored.max_timestamp_ms == NOW + 10


def test_a_client_may_not_claim_log_append_time_on_a_topic_that_has_it() -> None:
    config = LogConfig(message_timestamp_type="LogAppendTime")
    assert type(refusal(change(batch(), attributes=0x08), config)) is InvalidTimestamp


def test_a_client_may_not_claim_log_append_time_without_a_timestamp() -> None:
    assert type(refusal(change(batch(timestamp_ms=-1), attributes=0x08))) is InvalidTimestamp


def test_a_claim_of_log_append_time_on_a_create_time_topic_is_taken_back() -> None:
    log = open_log(SimulatedFiles())
    append(log, change(batch(), attributes=0x08))
    (stored,) = read_all(log)
    assert stored.timestamp_type is TimestampType.CREATE_TIME


def test_log_append_time_is_written_and_the_crc_is_right() -> None:
    log = open_log(SimulatedFiles(), config=LogConfig(message_timestamp_type="LogAppendTime"))
    info = append(log, batch(3, timestamp_ms=5, step_ms=7), now_ms=NOW + 42)
    (stored,) = read_all(log)  # which verifies
    assert (info.log_append_time_ms, info.max_timestamp_ms) == (NOW + 42, NOW + 42)
    assert stored.timestamp_type is TimestampType.LOG_APPEND_TIME
    assert [record.timestamp_ms for record in stored.records()] == [NOW + 42] * 3


def test_create_time_answers_no_append_time() -> None:
    assert append(open_log(SimulatedFiles()), batch()).log_append_time_ms == -1


@pytest.mark.parametrize("codec", ["uncompressed", "gzip", "snappy", "lz4", "zstd"])
@pytest.mark.parametrize("sent", list(Compression))
def test_the_topics_codec_is_applied(codec: str, sent: Compression) -> None:
    log = open_log(SimulatedFiles(), config=LogConfig(compression_type=codec))
    records = batch(20, value=b"v" * 50, compression=sent, producer=(4, 2, 11), transactional=True, step_ms=3)
    append(log, batch())
    info = append(log, records)
    _, stored = read_all(log)
    assert stored.compression.name.lower() == codec.replace("uncompressed", "none")
    assert (info.first_offset, info.last_offset, stored.base_offset) == (1, 20, 1)
    assert (stored.producer_id, stored.producer_epoch, stored.base_sequence) == (4, 2, 11)
    assert stored.is_transactional
    assert [(r.offset, r.timestamp_ms, r.key, r.value) for r in stored.records()] == [
        (1 + index, NOW + index * 3, b"key", b"v" * 50) for index in range(20)
    ]


def test_a_batch_that_grows_above_the_largest_size_is_refused() -> None:
    records = batch(value=bytes(5000), compression=Compression.ZSTD)
    config = LogConfig(compression_type="uncompressed", max_message_bytes=1000)
    assert type(refusal(records, config)) is MessageTooLarge


def test_records_that_do_not_decode_are_refused_where_they_must_be_seen() -> None:
    records = batch(2)
    records[-8:] = b"\xff" * 8
    assert type(refusal(change(records), LogConfig(cleanup_policy=("compact",)))) is InvalidRecord


def test_the_leaders_epoch_and_offset_are_written_outside_the_crc() -> None:
    log = open_log(SimulatedFiles())
    append(log, batch(3))
    append(log, batch(2), leader_epoch=4)
    first, second = read_all(log)
    assert (first.base_offset, first.leader_epoch) == (0, 0)
    assert (second.base_offset, second.last_offset, second.leader_epoch) == (3, 4, 4)


def test_a_read_only_buffer_is_not_written_to() -> None:
    records = bytes(batch())
    log = open_log(SimulatedFiles())
    append(log, batch())
    append(log, memoryview(records))
    assert next(iter_batches(records)).base_offset == 0


def test_a_coordinator_may_write_control_batches_without_a_sequence() -> None:
    log = open_log(SimulatedFiles())
    records = change(batch(producer=(5, 0, 0), transactional=True), base_sequence=-1)
    append(log, records, origin=AppendOrigin.COORDINATOR)
    assert log.log_end_offset == 1


_COVERED_BY_CRC = range(17, 61)


@given(position=st.integers(0, 60), bit=st.integers(0, 7))
def test_a_flipped_bit_in_the_header_is_never_stored_as_it_came(position: int, bit: int) -> None:
    """Every field of a client's header is checked, or is the broker's own to write."""
    records = batch(3, producer=(5, 0, 0))
    size = len(records)
    records[position] ^= 1 << bit
    log = open_log(SimulatedFiles())
    leader_epoch = range(12, 16)
    if position in leader_epoch:
        append(log, records)
        assert read_all(log)[0].leader_epoch == 0
        return
    with pytest.raises(KafkaError) as raised:
        append(log, records)
    error = type(raised.value)
    if position in range(8):
        assert error is InvalidRecord  # base offset
    elif position in range(8, 12):
        (length,) = struct.unpack_from(">i", records, 8)
        too_long = length + 12 > size
        assert error is (InvalidRecord if too_long else CorruptMessage)
    elif position == 16:
        assert error is (InvalidRecord if records[16] in (0, 1) else CorruptMessage)
    else:
        assert position in _COVERED_BY_CRC
        assert error is CorruptMessage
    assert log.log_end_offset == 0
