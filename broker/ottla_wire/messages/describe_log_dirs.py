"""What lies in a broker's log directories (KIP-113).

Versions:

    1  the broker answers before it throttles (KIP-219)
    2  flexible
    3  an error code for the whole answer (KIP-784)
    4  size and free space of the volume (KIP-827)
    5  cordoned directories (KIP-1066)
"""

from __future__ import annotations

from ottla_wire.schema import Request, Response, Struct, field, i16, i32, i64


class DescribableLogDirTopic(Struct):
    """The partitions of one topic."""

    topic: str = ""
    partitions: list[i32] = field()


class DescribeLogDirsRequest(Request, key=35, versions="1-5", flexible="2+"):
    """Ask about log directories; null means all topics."""

    topics: list[DescribableLogDirTopic] | None = field()


class DescribeLogDirsPartition(Struct):
    """The log of one partition."""

    partition_index: i32 = 0
    partition_size: i64 = 0
    offset_lag: i64 = 0
    is_future_key: bool = False


class DescribeLogDirsTopic(Struct):
    """The partitions of one topic."""

    name: str = ""
    partitions: list[DescribeLogDirsPartition] = field()


class DescribeLogDirsResult(Struct):
    """One log directory; sizes in bytes, -1 if not known."""

    error_code: i16 = 0
    log_dir: str = ""
    topics: list[DescribeLogDirsTopic] = field()
    total_bytes: i64 = field("4+", default=-1, ignorable=True)
    usable_bytes: i64 = field("4+", default=-1, ignorable=True)
    is_cordoned: bool = field("5+", ignorable=True)


class DescribeLogDirsResponse(Response, key=35, versions="1-5", flexible="2+"):
    """The log directories of the broker."""

    throttle_time_ms: i32 = 0
    error_code: i16 = field("3+", ignorable=True)
    results: list[DescribeLogDirsResult] = field()
