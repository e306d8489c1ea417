"""Types of configuration values: reading what somebody wrote, checking it, and writing it as Kafka's tools show it.

The sentences of refusals are part of what users of Kafka's tools know ("Invalid value x for configuration y: ..."),
so they are Kafka's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Final, NamedTuple

from ottla_wire.errors import InvalidConfig

ConfigValue = bool | int | float | str | list[str] | None
Check = Callable[[str, ConfigValue], None]

INT_MAX: Final = 2**31 - 1
LONG_MAX: Final = 2**63 - 1


class ConfigType(IntEnum):
    """Types as DescribeConfigs (v3+) numbers them."""

    UNKNOWN = 0
    BOOLEAN = 1
    STRING = 2
    INT = 3
    SHORT = 4
    LONG = 5
    DOUBLE = 6
    LIST = 7
    CLASS = 8
    PASSWORD = 9


class ConfigDef(NamedTuple):
    """One configuration key.

    `default` is of the parsed type, None for a key that may be absent. For a topic's key, `synonyms` are the broker
    keys that give its default, the first that is set wins, each with the factor that converts it. For a broker's key
    they are the keys that mean the same, itself included, in order of precedence. A `dynamic` broker key may be
    changed while the broker runs; all topic keys may.
    """

    name: str
    type: ConfigType
    default: ConfigValue
    doc: str
    check: Check | None = None
    synonyms: tuple[tuple[str, int], ...] = ()
    dynamic: bool = True
    listed: bool = True

    def parse(self, text: str) -> ConfigValue:
        """The checked value of what was written.

        Raises:
            InvalidConfig: it cannot be read, or is out of bounds.
        """
        value = _PARSE[self.type](self.name, text.strip())
        if self.check is not None:
            self.check(self.name, value)
        return value


def to_text(value: ConfigValue) -> str | None:
    """A value as tools show it; None for an absent one."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return ",".join(value)
    return str(value)


def invalid_value(name: str, value: object, why: str) -> InvalidConfig:
    """The refusal of one value."""
    shown = to_text(value) if isinstance(value, (bool, int, float, str)) else value
    if isinstance(value, list):
        shown = f"[{', '.join(value)}]"
    return InvalidConfig(f"Invalid value {shown} for configuration {name}: {why}")


# -- reading ---------------------------------------------------------------------------------------------------------

_WHOLE = re.compile(r"[+-]?[0-9]+")


def _integer(kind: str, bits: int) -> Callable[[str, str], int]:
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1

    def parse(name: str, text: str) -> int:
        if not _WHOLE.fullmatch(text) or not low <= int(text) <= high:
            raise invalid_value(name, text, f"Not a number of type {kind}")
        return int(text)

    return parse


def _double(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise invalid_value(name, text, "Not a number of type DOUBLE") from None


def _boolean(name: str, text: str) -> bool:
    lowered = text.lower()
    if lowered not in ("true", "false"):
        raise invalid_value(name, text, "Expected value to be either true or false")
    return lowered == "true"


def _string(name: str, text: str) -> str:
    return text


def _list(name: str, text: str) -> list[str]:
    # A repeated word counts once, as in Kafka.
    return list(dict.fromkeys(re.split(r"\s*,\s*", text))) if text else []


_PARSE: Final[dict[ConfigType, Callable[[str, str], ConfigValue]]] = {
    ConfigType.BOOLEAN: _boolean,
    ConfigType.STRING: _string,
    ConfigType.INT: _integer("INT", 32),
    ConfigType.SHORT: _integer("SHORT", 16),
    ConfigType.LONG: _integer("LONG", 64),
    ConfigType.DOUBLE: _double,
    ConfigType.LIST: _list,
}


# -- checking --------------------------------------------------------------------------------------------------------


def at_least(low: int) -> Check:
    """A number from `low`."""

    def check(name: str, value: ConfigValue) -> None:
        assert isinstance(value, (int, float))
        if value < low:
            raise invalid_value(name, value, f"Value must be at least {low}")

    return check


def between(low: int, high: int) -> Check:
    """A number from `low` to `high`."""

    def check(name: str, value: ConfigValue) -> None:
        assert isinstance(value, (int, float))
        if not value >= low:  # also refuses NaN
            raise invalid_value(name, value, f"Value must be at least {low}")
        if value > high:
            raise invalid_value(name, value, f"Value must be no more than {high}")

    return check


def one_of(*allowed: str) -> Check:
    """One of a few words."""

    def check(name: str, value: ConfigValue) -> None:
        if value not in allowed:
            raise invalid_value(name, value, f"String must be one of: {', '.join(allowed)}")

    return check


def some_of(*allowed: str) -> Check:
    """A list of a few words; it may be empty."""
    single = one_of(*allowed)

    def check(name: str, value: ConfigValue) -> None:
        assert isinstance(value, list)
        for word in value:
            if not word:
                raise InvalidConfig(f"Configuration '{name}' values must not be empty.")
            single(name, word)

    return check


def level(low: int, high: int, also: int | None = None) -> Check:
    """A compression level."""

    def check(name: str, value: ConfigValue) -> None:
        assert isinstance(value, int)
        if not low <= value <= high and value != also:
            alternative = "" if also is None else f" or equal to {also}"
            raise invalid_value(name, value, f"Value must be between {low} and {high}{alternative}")

    return check


_THROTTLED_REPLICA = re.compile(r"(?:[0-9]+:[0-9]+)?")


def throttled_replicas(name: str, value: ConfigValue) -> None:
    """`partition:broker` pairs, or a single asterisk."""
    assert isinstance(value, list)
    words: Sequence[str] = [word.strip() for word in value]
    if not all(_THROTTLED_REPLICA.fullmatch(word) for word in words) and "".join(words) != "*":
        raise invalid_value(
            name,
            value,
            f"{name} must be the literal '*' or a list of replicas in the following format: "
            "[partitionId]:[brokerId],[partitionId]:[brokerId],...",
        )
