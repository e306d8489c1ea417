"""Frames, headers and the reader that cuts a stream into frames."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ottla_wire import framing
from ottla_wire.errors import DecodeError, EncodeError, FrameError
from ottla_wire.framing import FrameReader
from ottla_wire.messages.api_versions import ApiVersion, ApiVersionsRequest, ApiVersionsResponse
from ottla_wire.messages.heartbeat import HeartbeatRequest, HeartbeatResponse
from ottla_wire.messages.produce import PartitionProduceData, ProduceRequest, TopicProduceData
from ottla_wire.messages.sync_group import SyncGroupResponse


def one_frame(parts: list[bytes | memoryview]) -> bytes:
    """The frame without its size, which must be right."""
    frame = b"".join(parts)
    assert int.from_bytes(frame[:4], "big") == len(frame) - 4
    return frame[4:]


def test_a_request_before_flexible_versions_has_header_version_1() -> None:
    request = HeartbeatRequest(group_id="g", generation_id=7, member_id="m")
    frame = one_frame(framing.encode_request(request, 0, 5, "me"))
    assert frame.hex(" ") == "00 0c 00 00 00 00 00 05 00 02 6d 65 00 01 67 00 00 00 07 00 01 6d"
    header = framing.decode_request_header(frame)
    assert (header.api_key, header.api_version, header.correlation_id, header.client_id) == (12, 0, 5, "me")
    assert HeartbeatRequest.decode(frame, 0, header.body_offset) == request


def test_a_flexible_request_has_a_tagged_section_after_a_client_id_that_is_not_compact() -> None:
    request = HeartbeatRequest(group_id="g", generation_id=7, member_id="m")
    frame = one_frame(framing.encode_request(request, 4, 5, "me"))
    assert frame.hex(" ") == "00 0c 00 04 00 00 00 05 00 02 6d 65 00 02 67 00 00 00 07 02 6d 00 00"
    header = framing.decode_request_header(frame)
    assert header.body_offset == 13
    assert HeartbeatRequest.decode(frame, 4, header.body_offset) == request


def test_a_client_without_a_name_sends_null() -> None:
    frame = one_frame(framing.encode_request(HeartbeatRequest(), 0, 5, None))
    assert frame[8:10] == b"\xff\xff"
    assert framing.decode_request_header(frame).client_id is None


def test_a_client_id_that_is_too_long_is_an_encode_error() -> None:
    one_frame(framing.encode_request(HeartbeatRequest(), 0, 5, "x" * 32767))
    with pytest.raises(EncodeError, match="32768"):
        framing.encode_request(HeartbeatRequest(), 0, 5, "x" * 32768)


def test_unknown_tagged_fields_of_a_header_are_passed_over() -> None:
    frame = bytes.fromhex("000c0004000000050000 02 00 02 aabb 81 01 00 c0ffee")
    assert framing.decode_request_header(frame).body_offset == len(frame) - 3
    answer = bytes.fromhex("00000009 01 05 01 aa 00000003 001b 00")
    assert framing.decode_response(HeartbeatResponse, 4, answer) == (
        9,
        HeartbeatResponse(throttle_time_ms=3, error_code=27),
    )


def test_the_header_of_an_unknown_api_can_be_read() -> None:
    header = framing.decode_request_header(bytes.fromhex("03e7 0000 00000001 0001 78"))
    assert (header.api_key, header.client_id, header.body_offset) == (999, "x", 11)


def test_the_header_of_a_version_that_is_not_known_yet_is_flexible_if_the_known_ones_are() -> None:
    header = framing.decode_request_header(bytes.fromhex("0012 0063 00000001 0001 78 00"))
    assert (header.api_version, header.body_offset) == (99, 12)


@pytest.mark.parametrize(
    "frame", ["", "0012", "0012 0003 00000001", "0012 0003 00000001 0005 78", "0012000300000001000178"]
)
def test_a_header_that_is_cut_off_is_a_decode_error(frame: str) -> None:
    with pytest.raises(DecodeError, match="header"):
        framing.decode_request_header(bytes.fromhex(frame))


@given(st.binary(max_size=40))
def test_arbitrary_bytes_as_header_are_a_decode_error_or_a_header(frame: bytes) -> None:
    try:
        header = framing.decode_request_header(frame)
    except DecodeError:
        return
    assert header.body_offset <= len(frame)


@given(st.binary(max_size=40), st.sampled_from([0, 4]))
def test_arbitrary_bytes_as_response_are_a_decode_error_or_a_response(frame: bytes, version: int) -> None:
    try:
        framing.decode_response(HeartbeatResponse, version, frame)
    except DecodeError:
        return


def test_a_response_has_a_tagged_section_in_its_header_if_it_is_flexible() -> None:
    response = SyncGroupResponse(assignment=b"a")
    assert one_frame(framing.encode_response(response, 0, 3)).hex(" ") == "00 00 00 03 00 00 00 00 00 01 61"
    flexible = one_frame(framing.encode_response(response, 4, 3))
    assert flexible.hex(" ") == "00 00 00 03 00 00 00 00 00 00 00 02 61 00"
    assert framing.decode_response(SyncGroupResponse, 4, flexible) == (3, response)


def test_the_answer_to_api_versions_never_has_a_tagged_section_in_its_header() -> None:
    response = ApiVersionsResponse(api_keys=[ApiVersion(api_key=18, max_version=4)])
    for version in ApiVersionsRequest.versions:
        frame = one_frame(framing.encode_response(response, version, 3))
        assert frame[:6].hex() == "000000030000"
        assert framing.decode_response(ApiVersionsResponse, version, frame) == (3, response)


def test_large_records_are_not_copied_into_the_frame() -> None:
    records = bytearray(b"r" * 100_000)
    data = [PartitionProduceData(index=0, records=records), PartitionProduceData(index=1, records=b"small")]
    request = ProduceRequest(acks=-1, topic_data=[TopicProduceData(name="t", partition_data=data)])
    parts = framing.encode_request(request, 9, 1, "c")
    assert len(parts) == 3
    assert isinstance(parts[1], memoryview)
    assert parts[1].obj is records
    frame = one_frame(parts)
    header = framing.decode_request_header(frame)
    assert ProduceRequest.decode(frame, 9, header.body_offset) == request


def test_records_at_the_very_end_leave_no_empty_piece() -> None:
    request = ProduceRequest(topic_data=[TopicProduceData(partition_data=[PartitionProduceData(records=b"r" * 1000)])])
    parts = framing.encode_request(request, 3, 1, None)
    assert [len(part) for part in parts][1:] == [1000]
    one_frame(parts)


# ---------------------------------------------------------------------------------------------------- FrameReader


def feed(reader: FrameReader, stream: bytes, chunks: list[int]) -> list[bytearray]:
    """Put a stream into a reader as an event loop would: never more than its buffer takes, in reads of these sizes."""
    frames: list[bytearray] = []
    sizes = iter(chunks)
    position = 0
    while position < len(stream):
        buffer = reader.get_buffer(65536)
        assert len(buffer) > 0
        count = min(len(buffer), len(stream) - position, next(sizes, 1 << 30))
        buffer[:count] = stream[position : position + count]
        position += count
        frames += reader.received(count)
    return frames


def framed(*frames: bytes) -> bytes:
    return b"".join(len(frame).to_bytes(4, "big") + frame for frame in frames)


@given(
    st.lists(st.binary(max_size=8) | st.integers(0, 300).map(lambda size: b"L" * size), max_size=12),
    st.lists(st.integers(1, 40), max_size=60),
)
def test_frames_come_out_whole_however_the_stream_is_cut(frames: list[bytes], chunks: list[int]) -> None:
    reader = FrameReader(1000, receive_bytes=64, trusted_bytes=70)
    assert feed(reader, framed(*frames), chunks) == frames
    assert reader.is_between_frames


def test_many_small_frames_come_out_of_one_read() -> None:
    reader = FrameReader(1000)
    stream = framed(*[b"frame"] * 500)
    buffer = reader.get_buffer(-1)
    buffer[: len(stream)] = stream
    assert reader.received(len(stream)) == [b"frame"] * 500


def test_a_large_frame_is_received_into_its_own_buffer() -> None:
    reader = FrameReader(10_000, receive_bytes=64)
    assert feed(reader, framed(b"x" * 5000)[:100], []) == []
    rest = reader.get_buffer(-1)
    assert len(rest) == 5000 - 96  # exactly what is missing: the next frame cannot slip in
    rest[:] = b"x" * len(rest)
    (frame,) = reader.received(len(rest))
    assert frame == b"x" * 5000
    assert frame is rest.obj


def test_a_frame_that_is_only_announced_takes_no_memory() -> None:
    reader = FrameReader(100_000_000)
    tracemalloc.start()
    try:
        assert feed(reader, (90_000_000).to_bytes(4, "big") + b"x" * 96, []) == []
        assert tracemalloc.get_traced_memory()[1] < 3_000_000
    finally:
        tracemalloc.stop()


def test_the_buffer_of_a_large_frame_grows_with_what_arrives_while_the_transport_still_holds_the_last_view() -> None:
    reader = FrameReader(10_000, receive_bytes=64, trusted_bytes=100)
    payload = bytes(range(250)) * 20
    stream = framed(payload)
    sizes, views, position = [], [], 0
    frames: list[bytearray] = []
    while position < len(stream):
        view = reader.get_buffer(-1)
        views.append(view)
        count = min(len(view), len(stream) - position)
        view[:count] = stream[position : position + count]
        position += count
        frames += reader.received(count)
        sizes.append(len(view))
    assert frames == [payload]
    assert sizes == [64, 240 - 60, 720, 2880, 1160]


def test_a_frame_belongs_to_its_receiver() -> None:
    reader = FrameReader(1000, receive_bytes=64)
    (first,) = feed(reader, framed(b"first"), [])
    first[:5] = b"FIRST"
    (second,) = feed(reader, framed(b"other"), [])
    assert (first, second) == (b"FIRST", b"other")


def test_a_frame_of_exactly_the_limit_is_taken_and_one_byte_more_is_not() -> None:
    assert feed(FrameReader(100), framed(b"x" * 100), []) == [b"x" * 100]
    with pytest.raises(FrameError, match="101 bytes"):
        feed(FrameReader(100), framed(b"x" * 101), [])


def test_a_negative_size_is_a_frame_error() -> None:
    with pytest.raises(FrameError, match="-2 bytes"):
        feed(FrameReader(100), b"\xff\xff\xff\xfe", [])


def test_a_size_is_refused_before_its_frame_arrives() -> None:
    reader = FrameReader(100)
    with pytest.raises(FrameError):
        feed(reader, b"GET / HTTP/1.1", [])


def test_a_stream_that_ends_within_a_frame_is_noticed() -> None:
    for stream in (b"\0", framed(b"abc")[:-1], framed(b"x" * 500)[:200]):
        reader = FrameReader(1000, receive_bytes=64)
        feed(reader, stream, [])
        assert not reader.is_between_frames
