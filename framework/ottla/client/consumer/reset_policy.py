"""Where a consumer starts when its group has no offset for a partition: `auto.offset.reset`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar, Literal

EARLIEST_TIMESTAMP = -2
LATEST_TIMESTAMP = -1

_DURATION = re.compile(
    r"P(?:(?P<days>\d+)D)?(?:T(?:(?P<hours>\d+)H)?(?:(?P<minutes>\d+)M)?(?:(?P<seconds>\d+(?:\.\d{1,9})?)S)?)?",
    re.IGNORECASE,
)
_DURATION_PREFIX = "by_duration:"


@dataclass(frozen=True, slots=True)
class ResetPolicy:
    """`earliest`, `latest`, `none`, or `by_duration:P1DT2H` (so far back from now, KIP-1106)."""

    kind: Literal["earliest", "latest", "none", "by_duration"]
    duration_ms: int = 0

    EARLIEST: ClassVar[ResetPolicy]
    LATEST: ClassVar[ResetPolicy]
    NONE: ClassVar[ResetPolicy]

    @classmethod
    def parse(cls, text: str) -> ResetPolicy:
        """Read a setting's text; ValueError says what is allowed."""
        lowered = text.lower()
        match lowered:
            case "earliest" | "latest" | "none":
                return cls(lowered)
        if lowered.startswith(_DURATION_PREFIX):
            duration = _DURATION.fullmatch(text[len(_DURATION_PREFIX) :])
            if duration and any(duration.groups()):
                return cls("by_duration", _milliseconds(duration))
        raise ValueError(
            f"auto_offset_reset is {text!r}; it is 'earliest', 'latest', 'none', or 'by_duration:' followed by "
            "an ISO 8601 duration such as P1D or PT2H30M"
        )

    def timestamp(self, wall_ms: int) -> int:
        """The timestamp that ListOffsets is asked for."""
        match self.kind:
            case "earliest":
                return EARLIEST_TIMESTAMP
            case "latest":
                return LATEST_TIMESTAMP
            case "by_duration":
                return wall_ms - self.duration_ms
            case "none":
                raise AssertionError("a policy of 'none' resets nothing")


ResetPolicy.EARLIEST = ResetPolicy("earliest")
ResetPolicy.LATEST = ResetPolicy("latest")
ResetPolicy.NONE = ResetPolicy("none")


def _milliseconds(duration: re.Match[str]) -> int:
    def part(name: str) -> float:
        return float(duration[name] or 0)

    return round(
        part("days") * 86_400_000 + part("hours") * 3_600_000 + part("minutes") * 60_000 + part("seconds") * 1000
    )
