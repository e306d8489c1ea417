"""Which segments of a log may go: always the oldest, as many in a row as a rule lets go.

A rule stops at the first segment it wants to keep, and no rule touches what is not below the high watermark.
"""

from __future__ import annotations

from collections.abc import Callable

from ottla_broker.log.config import LogConfig
from ottla_broker.log.segment import Segment


def below_start(segments: list[Segment], log_start_offset: int, limit: int) -> int:
    """How many of the oldest segments lie below the log's start."""
    return _count(segments, limit, lambda _, end_offset: end_offset <= log_start_offset, spare_last=True)


def by_size(segments: list[Segment], config: LogConfig, limit: int) -> int:
    """How many may go so that `retention.bytes` are still there."""
    if config.retention_bytes < 0:
        return 0
    excess = sum(segment.size for segment in segments) - config.retention_bytes

    def is_excess(segment: Segment, _: int) -> bool:
        nonlocal excess
        if excess < segment.size:
            return False
        excess -= segment.size
        return True

    return _count(segments, limit, is_excess)


def by_time(segments: list[Segment], config: LogConfig, limit: int, now_ms: int) -> int:
    """How many hold nothing younger than `retention.ms`. A record from the future keeps its segment."""
    if config.retention_ms < 0:
        return 0
    return _count(segments, limit, lambda segment, _: now_ms - segment.largest_timestamp_ms > config.retention_ms)


def _count(
    segments: list[Segment], limit: int, may_go: Callable[[Segment, int], bool], *, spare_last: bool = False
) -> int:
    """How many of the oldest segments end at or below `limit` and satisfy the rule (segment, end offset)."""
    for index, segment in enumerate(segments):
        is_last = index + 1 == len(segments)
        end_offset = segment.next_offset if is_last else segments[index + 1].base_offset
        is_kept = is_last and (spare_last or not segment.size)
        if is_kept or end_offset > limit or not may_go(segment, end_offset):
            return index
    return len(segments)
