"""The configuration of a topic in force, in the form that its logs read."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from ottla_broker.log.config import LogConfig

if TYPE_CHECKING:
    from ottla_broker.controller.effective_configs import EffectiveConfigs

_FIELDS = {field.name.replace("_", "."): field.name for field in fields(LogConfig)}


def log_config(configs: EffectiveConfigs, topic: str) -> LogConfig:
    """What is set on the topic, else what the broker gives, else Kafka's default."""
    in_force = configs.topic(topic)
    if in_force["internal.segment.bytes"] is not None:  # for tests: segments below the lower bound of segment.bytes
        in_force["segment.bytes"] = in_force["internal.segment.bytes"]
    values: dict[str, Any] = {
        _FIELDS[name]: tuple(value) if isinstance(value, list) else value
        for name, value in in_force.items()
        if name in _FIELDS and value is not None
    }
    return LogConfig(**values)
