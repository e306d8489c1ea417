"""Which names a topic may have, and which topics are the broker's own."""

from __future__ import annotations

import re
from typing import Final

from ottla_wire.errors import InvalidTopic

OFFSETS_TOPIC: Final = "__consumer_offsets"
TRANSACTION_STATE_TOPIC: Final = "__transaction_state"
SHARE_GROUP_STATE_TOPIC: Final = "__share_group_state"
INTERNAL_TOPICS: Final = frozenset({OFFSETS_TOPIC, TRANSACTION_STATE_TOPIC, SHARE_GROUP_STATE_TOPIC})

MAX_NAME_LENGTH: Final = 249
_LEGAL: Final = re.compile(r"[a-zA-Z0-9._-]+")


def is_internal(name: str) -> bool:
    """Whether the broker keeps its own state in this topic (the `is_internal` of a metadata answer)."""
    return name in INTERNAL_TOPICS


def validate_topic_name(name: str) -> None:
    """Raise `InvalidTopic` with Kafka's reason if no topic can have this name."""
    reason = _why_invalid(name)
    if reason is not None:
        raise InvalidTopic(f"Topic name is invalid: {reason}")


def is_valid_topic_name(name: str) -> bool:
    """Whether a topic can have this name."""
    return _why_invalid(name) is None


def _why_invalid(name: str) -> str | None:
    if not name:
        return "the empty string is not allowed"
    if name in (".", ".."):
        return f"'{name}' is not allowed"
    if len(name) > MAX_NAME_LENGTH:
        return f"the length of '{name}' is longer than the max allowed length {MAX_NAME_LENGTH}"
    if not _LEGAL.fullmatch(name):
        return f"'{name}' contains one or more characters other than ASCII alphanumerics, '.', '_' and '-'"
    return None


def collision_key(name: str) -> str | None:
    """What two names must not share: '.' and '_' are the same in metric names. None if the name has neither."""
    return name.replace(".", "_") if "." in name or "_" in name else None
