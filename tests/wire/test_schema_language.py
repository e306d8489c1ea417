"""The schema language on messages made up for the purpose; expected bytes are written out by hand."""

from __future__ import annotations

import copy
import random
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ottla_wire.errors import DecodeError, EncodeError
from ottla_wire.schema import (
    Data,
    RecordData,
    Struct,
    Uuid,
    VersionRange,
    f64,
    field,
    fields_of,
    i8,
    i16,
    i32,
    i64,
    u16,
    u32,
)

ID = Uuid(bytes(range(16)))


class Point(Struct):
    x: i32 = 0
    y: i32 = field("1+", default=-1, ignorable=True)


class Everything(Data, versions="0-1", flexible="1+"):
    flag: bool = False
    tiny: i8 = 0
    short: i16 = 0
    number: i32 = 0
    long: i64 = 0
    port: u16 = 0
    unsigned: u32 = 0
    ratio: f64 = 0.0
    uuid: Uuid = field()
    text: str = ""
    note: str | None = None
    blob: bytes = field()
    records: RecordData | None = None
    numbers: list[i32] = field()
    ids: list[Uuid] = field()
    names: list[str] | None = field()
    points: list[Point] = field()
    origin: Point = field()
    goal: Point | None = field(default=None)


class Versioned(Data, versions="0-5", flexible="3+"):
    name: str = ""
    strict: i32 = field("1+", default=-1)
    lenient: i32 = field("1-2", ignorable=True)
    note: str | None = field("1+", nullable="2+")
    inner: list[Point] = field("2+")
    chosen: Point = field("4+")
    extra: str | None = field("3+", default=None, tag=2)
    more: list[i32] = field("3+", tag=0)
    late: i64 = field("2+", default=7, tag=5, tagged="4+")
    place: Point = field("3+", tag=1)
    spot: Point | None = field("3+", default=None, tag=3)


FULL: dict[str, Any] = {
    "flag": True, "tiny": -1, "short": -2, "number": -3, "long": -4, "port": 65535, "unsigned": 4294967295,
    "ratio": 1.5, "uuid": ID, "text": "aé", "note": "n", "blob": b"b", "records": b"r", "numbers": [1, 2],
    "ids": [ID], "names": ["", "z"], "points": [Point(x=9, y=8)], "origin": Point(x=5), "goal": Point(x=6),
}  # fmt: skip


def test_every_type_before_flexible_versions() -> None:
    expected = (
        "01 ff fffe fffffffd fffffffffffffffc ffff ffffffff 3ff8000000000000 000102030405060708090a0b0c0d0e0f"
        "0003 61c3a9  0001 6e  00000001 62  00000001 72"
        "00000002 00000001 00000002  00000001 000102030405060708090a0b0c0d0e0f  00000002 0000 0001 7a"
        "00000001 00000009  00000005  01 00000006"
    )
    assert Everything(**FULL).encode(0) == bytes.fromhex(expected)
    decoded = Everything.decode(bytes.fromhex(expected), 0)
    assert decoded == Everything(**{**FULL, "points": [Point(x=9)]})
    assert type(decoded.uuid) is Uuid
    assert type(decoded.ids[0]) is Uuid
    assert type(decoded.blob) is bytes


def test_every_type_in_a_flexible_version() -> None:
    expected = (
        "01 ff fffe fffffffd fffffffffffffffc ffff ffffffff 3ff8000000000000 000102030405060708090a0b0c0d0e0f"
        "04 61c3a9  02 6e  02 62  02 72"
        "03 00000001 00000002  02 000102030405060708090a0b0c0d0e0f  03 01 02 7a"
        "02 00000009 00000008 00  00000005 ffffffff 00  01 00000006 ffffffff 00  00"
    )
    assert Everything(**FULL).encode(1) == bytes.fromhex(expected)
    assert Everything.decode(bytes.fromhex(expected), 1) == Everything(**FULL)


def test_null_is_minus_one_before_flexible_versions_and_zero_after() -> None:
    empty = {"note": None, "records": None, "names": None, "goal": None}
    fixed = "00" * 46
    old = bytes.fromhex(fixed + "0000 ffff 00000000 ffffffff 00000000 00000000 ffffffff 00000000 00000000 ff")
    new = bytes.fromhex(fixed + "01 00 01 00 01 01 00 01 00000000 ffffffff 00 ff 00")
    for version, expected in ((0, old), (1, new)):
        assert Everything(**empty).encode(version) == expected
        assert Everything.decode(expected, version) == Everything(**empty)


def test_lengths_above_126_have_two_bytes_where_they_are_compact() -> None:
    for length, prefix in ((126, "7f"), (127, "8001"), (300, "ad02")):
        encoded = Versioned(name="x" * length, strict=0).encode(3)
        assert encoded.startswith(bytes.fromhex(prefix) + b"x" * length)
        assert Versioned.decode(encoded, 3).name == "x" * length


def test_tagged_fields_are_written_by_their_tags_and_only_if_they_differ_from_their_defaults() -> None:
    head = "01 ffffffff 01 01"  # name, strict, note, inner
    assert Versioned().encode(4) == bytes.fromhex(head + "00000000 ffffffff 00  00")
    message = Versioned(extra="e", more=[1], late=8, place=Point(x=1), spot=Point(), chosen=Point())
    tagged = (
        "05  0005 02 00000001  0109 00000001 ffffffff 00  0202 02 65030a 01 00000000 ffffffff 00  0508 0000000000000008"
    )
    assert message.encode(4) == bytes.fromhex(head + "00000000 ffffffff 00" + tagged)
    assert Versioned.decode(message.encode(4), 4) == message


def test_a_tagged_field_may_be_null_or_empty() -> None:
    for message in (Versioned(extra=""), Versioned(extra=None)):
        assert Versioned.decode(message.encode(4), 4) == message
    assert Versioned(extra="").encode(4) != Versioned(extra=None).encode(4)


def test_a_field_that_was_untagged_before_becomes_tagged() -> None:
    assert Versioned(late=8, strict=0, note="").encode(
        2
    ).hex() == "0000 00000000 00000000 0000 00000000 0000000000000008".replace(" ", "")
    assert Versioned.decode(Versioned(late=8).encode(3), 3).late == 8


def test_unknown_tagged_fields_are_passed_over_wherever_they_are() -> None:
    known = Versioned(name="n", inner=[Point(x=1)], extra="e")
    encoded = (
        "026e ffffffff 01 02 00000001 ffffffff 01 09 02 abcd"  # up to an element that has a tagged field
        "0000000000000007  03 0202 0265 8001 01 ff 9003 00"  # extra, and tags 128 and 400
    )
    assert Versioned.decode(bytes.fromhex(encoded), 3) == known
    with pytest.raises(DecodeError):
        Versioned.decode(bytes.fromhex(encoded)[:-1], 3)


def test_a_tagged_field_whose_size_is_wrong_is_a_decode_error() -> None:
    for size in ("01", "03", "7f"):
        with pytest.raises(DecodeError, match="size"):
            Versioned.decode(bytes.fromhex("026e ffffffff 01 01 0000000000000007 01 02" + size + "0265"), 3)


def test_a_field_that_the_version_lacks_keeps_its_default() -> None:
    decoded = Versioned.decode(Versioned(name="n").encode(0), 0)
    assert decoded == Versioned(name="n")
    assert (decoded.strict, decoded.late, decoded.inner, decoded.chosen) == (-1, 7, [], Point())


def test_an_ignorable_value_is_dropped_by_a_version_without_the_field() -> None:
    assert Versioned(lenient=9).encode(0) == Versioned().encode(0)
    assert Versioned(lenient=9).encode(3) == Versioned().encode(3)


@pytest.mark.parametrize(
    ("values", "version", "named"),
    [
        ({"strict": 5}, 0, "strict"),
        ({"note": "x"}, 0, "note"),
        ({"inner": [Point()]}, 1, "inner"),
        ({"chosen": Point(x=1)}, 3, "chosen"),
        ({"extra": ""}, 2, "extra"),
        ({"more": [1]}, 2, "more"),
        ({"late": 0}, 1, "late"),
        ({"place": Point(y=4)}, 2, "place"),
        ({"spot": Point()}, 2, "spot"),
    ],
)
def test_a_value_that_would_be_lost_is_an_encode_error_that_names_field_and_version(
    values: dict[str, Any], version: int, named: str
) -> None:
    with pytest.raises(EncodeError, match=rf"Versioned\.{named} .*version {version}"):
        Versioned(**values).encode(version)
    Versioned(**values).encode(4)


@pytest.mark.parametrize(
    ("values", "version", "named"),
    [
        ({"name": None}, 3, r"Versioned\.name is None"),
        ({"name": 5}, 3, r"Versioned\.name is 5"),
        ({"name": "x" * 40_000}, 2, r"Versioned\.name has 40000 bytes"),
        ({"name": "\ud800"}, 2, r"Versioned\.name .*UTF-8"),
        ({"strict": 1 << 31}, 1, r"Versioned\.strict is 2147483648, which is not int32"),
        ({"strict": "1"}, 1, r"Versioned\.strict is '1'"),
        ({"note": None}, 1, r"Versioned\.note is None"),
        ({"inner": None}, 3, r"Versioned\.inner is None"),
        ({"inner": [Point(), Point(x=1.5)]}, 3, r"Versioned\.inner\[1\]\.x is 1\.5"),  # type: ignore[arg-type]
        ({"inner": [5]}, 3, r"Versioned\.inner\[0\] is 5"),
        ({"inner": 5}, 3, r"Versioned\.inner is 5"),
        ({"chosen": None}, 4, r"Versioned\.chosen is None"),
        ({"more": ["1"]}, 4, r"Versioned\.more\[0\] is '1'"),
    ],
)
def test_a_value_of_the_wrong_kind_is_an_encode_error_that_names_field_and_version(
    values: dict[str, Any], version: int, named: str
) -> None:
    with pytest.raises(EncodeError, match=rf"{named}.*version {version}"):
        Versioned(**values).encode(version)


@pytest.mark.parametrize("value", [b"", b"x" * 15, b"x" * 17])
def test_bytes_of_the_wrong_length_are_no_id(value: bytes) -> None:
    for version in (0, 1):
        with pytest.raises(EncodeError, match=rf"Everything\.uuid .* 16 bytes .*version {version}"):
            Everything(uuid=value).encode(version)  # type: ignore[arg-type]
        with pytest.raises(EncodeError, match=rf"Everything\.ids\[0\] .* 16 bytes .*version {version}"):
            Everything(ids=[value]).encode(version)  # type: ignore[list-item]


def test_a_version_out_of_range_is_refused_by_name() -> None:
    with pytest.raises(EncodeError, match="Versioned has versions 0-5, not 6"):
        Versioned().encode(6)
    for version in (-1, 6):
        with pytest.raises(DecodeError, match=f"Versioned has versions 0-5, not {version}"):
            Versioned.decode(b"", version)


@pytest.mark.parametrize(
    ("encoded", "reason"),
    [
        ("00000001" + "00", "ends early"),
        ("ffff", "name is null"),
        ("0001ff", "not UTF-8"),
        ("0005 6162", "ends early"),
        ("0000 00000000 00000000 ffff", "note is null"),
    ],
)
def test_what_is_not_a_message_is_a_decode_error_that_says_why(encoded: str, reason: str) -> None:
    with pytest.raises(DecodeError, match=reason):
        Versioned.decode(bytes.fromhex(encoded), 1)


def test_a_last_string_that_is_cut_off_is_noticed_also_where_more_may_follow() -> None:
    encoded = Versioned(name="abc").encode(0)
    assert Versioned.decode_prefix(encoded + b"more", 0) == (Versioned(name="abc"), 5)
    for length in range(len(encoded)):
        with pytest.raises(DecodeError, match="ends early"):
            Versioned.decode_prefix(encoded[:length], 0)


@pytest.mark.parametrize("count", ["7fffffff", "00000002"])
def test_an_array_that_cannot_be_in_the_bytes_that_are_left_is_refused_before_it_is_made(count: str) -> None:
    encoded = bytes.fromhex("0000 00000000 00000000 0000" + count + "00000000")
    with pytest.raises(DecodeError, match=r"Versioned\.inner announces \d+ elements with 4 bytes left"):
        Versioned.decode(encoded, 2)


def test_a_compact_length_of_more_than_five_bytes_is_a_decode_error() -> None:
    with pytest.raises(DecodeError, match="more than five bytes"):
        Versioned.decode(b"\x80" * 5 + b"\x01", 3)
    with pytest.raises(DecodeError):
        Versioned.decode(b"\xff\xff\xff\xff\x7f", 3)


def test_records_come_back_as_slices_of_the_buffer_that_can_be_patched() -> None:
    buffer = bytearray(Everything(records=b"abc").encode(1))
    decoded = Everything.decode(buffer, 1)
    assert isinstance(decoded.records, memoryview)
    decoded.records[0] = ord("X")
    assert b"Xbc" in buffer


def test_large_records_are_handed_on_without_a_copy_and_small_ones_are_merged() -> None:
    large, small = b"L" * 4096, b"s" * 16
    assert [len(part) for part in Everything(records=small).encode_parts(1)] == [
        len(Everything(records=small).encode(1))
    ]
    parts = Everything(records=large).encode_parts(1)
    assert len(parts) == 3
    assert parts[1] is large


def test_an_encoding_into_a_buffer_goes_on_where_the_buffer_ends() -> None:
    parts: list[bytes | memoryview] = []
    last = Versioned(name="n").encode_into(bytearray(b"head"), parts, 0)
    assert (bytes(last), parts) == (b"head\0\x01n", [])


def test_instances_share_no_lists_and_no_structs() -> None:
    first, second = Everything(), Everything()
    first.numbers.append(1)
    first.origin.x = 5
    assert (second.numbers, second.origin.x) == ([], 0)
    empty = Versioned().encode(0)
    decoded = Versioned.decode(empty, 0)
    decoded.inner.append(Point())
    decoded.chosen.x = 5
    assert Versioned.decode(empty, 0) == Versioned()


def test_a_name_that_is_not_a_field_cannot_be_given_or_set() -> None:
    with pytest.raises(TypeError, match="nmae"):
        Versioned(nmae="x")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="positional"):
        Versioned("x")  # type: ignore[misc]
    with pytest.raises(AttributeError):
        Versioned().nmae = "x"  # type: ignore[attr-defined]


def test_messages_are_equal_by_their_fields_and_not_hashable() -> None:
    assert Point(x=1) == Point(x=1) != Point(x=2)
    assert Point() != Versioned()
    assert copy.deepcopy(Versioned(inner=[Point(x=3)])) == Versioned(inner=[Point(x=3)])
    with pytest.raises(TypeError):
        hash(Point())


def test_a_repr_can_be_read_and_does_not_print_records() -> None:
    assert repr(Point(x=1)) == "Point(x=1, y=-1)"
    assert "records=<5000 bytes>" in repr(Everything(records=b"x" * 5000))
    assert "records=b'abc'" in repr(Everything(records=memoryview(b"abc")))


def test_data_starts_with_its_version() -> None:
    assert Versioned(name="n").encode_with_version(0).hex() == "000000016e"
    assert Versioned.decode_with_version(bytes.fromhex("000000016e")) == Versioned(name="n")
    for encoded in ("", "00", "0006 0000", "ffff 0000"):
        with pytest.raises(DecodeError):
            Versioned.decode_with_version(bytes.fromhex(encoded))


def test_a_schema_can_be_asked_for_its_fields() -> None:
    by_name = {spec.name: spec for spec in fields_of(Versioned)}
    assert str(by_name["note"].nullable) == "2+"
    assert str(by_name["late"].tagged) == "4+"
    assert by_name["inner"].type.name == "[]Point"
    assert str(by_name["extra"].nullable) == "3+"
    assert str(by_name["strict"].nullable) == "none"


def test_a_field_cannot_have_the_name_of_a_method() -> None:
    with pytest.raises(TypeError, match=r"Odd\.versions is a name that every message has"):

        class Odd(Data, versions="0"):
            versions: i32 = 0  # type: ignore[assignment,misc]


def test_an_annotation_outside_of_the_language_is_refused_at_first_use() -> None:
    class Odd(Data, versions="0"):
        value: complex = field()

    with pytest.raises(TypeError, match=r"Odd\.value: .*complex"):
        Odd()


def test_importing_all_messages_builds_no_codec() -> None:
    script = (
        "import sys\n"
        "from ottla_wire.messages import ApiKey, fetch, produce, request_class\n"
        "assert 'ottla_wire.messages.metadata' not in sys.modules\n"
        "request_class(3)\n"
        "assert 'ottla_wire.messages.metadata' in sys.modules\n"
        "assert not fetch.FetchRequest._encoders and fetch.FetchRequest._specs is None\n"
        "heavy = {'dataclasses', 'inspect', 'pydantic', 'asyncio', 'ottla_wire.schema.encoder'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


# ------------------------------------------------------------------------------------------------- ids and ranges


def test_an_id_is_printed_as_kafka_prints_it() -> None:
    assert str(ID) == "AAECAwQFBgcICQoLDA0ODw"
    assert str(Uuid(b"\xff" * 16)) == "_____________________w"
    assert str(Uuid.ZERO) == "AAAAAAAAAAAAAAAAAAAAAA"
    assert f"{ID}" == str(ID)


@given(st.binary(min_size=16, max_size=16))
def test_an_id_is_read_back_from_its_text(value: bytes) -> None:
    assert Uuid.from_string(str(Uuid(value))) == value


@pytest.mark.parametrize(
    "text", ["", "x", "AAECAwQFBgcICQoLDA0OD", "AAECAwQFBgcICQoLDA0ODwA", "AAECAwQFBgcICQoLDA0O!w", "ü" * 22]
)
def test_other_text_is_no_id(text: str) -> None:
    with pytest.raises(ValueError, match="is not an id"):
        Uuid.from_string(text)


def test_an_id_has_sixteen_bytes() -> None:
    with pytest.raises(ValueError, match="16 bytes, not 3"):
        Uuid(b"abc")


def test_random_ids_differ_and_can_stand_on_a_command_line() -> None:
    ids = [Uuid.random(random.Random(seed)) for seed in range(500)]
    assert len(set(ids)) == 500
    assert not any(str(id).startswith("-") for id in ids)
    assert all(id[6] >> 4 == 4 and id[8] >> 6 == 2 for id in ids)


@pytest.mark.parametrize("text", ["0-13", "9+", "4", "none"])
def test_a_version_range_is_printed_as_it_is_written(text: str) -> None:
    assert str(VersionRange.parse(text)) == text


def test_a_version_range_contains_its_ends() -> None:
    versions = VersionRange.parse("3-5")
    assert [version for version in range(10) if version in versions] == list(versions) == [3, 4, 5]
    assert 0 not in VersionRange.parse("none")
    assert 30_000 in VersionRange.parse("9+")
    assert versions == VersionRange(3, 5) != VersionRange(3, 6)
