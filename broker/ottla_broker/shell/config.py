"""BrokerConfig: the settings of one broker under Kafka's names, as a frozen dataclass.

`group.initial.rebalance.delay.ms` in a properties file is `group_initial_rebalance_delay_ms` here. Only settings
that do something are listed: an unknown name is refused with the nearest one, so a typing mistake never runs with a
default.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

_DAY_MS = 24 * 60 * 60 * 1000
_INT_MAX = 2**31 - 1
_LONG_MAX = 2**63 - 1


class BrokerConfigError(ValueError):
    """A broker setting is unknown or has a wrong value. The message is one sentence for the person who wrote it."""


@dataclass(frozen=True)
class BrokerConfig:
    """Settings of a broker. Names, units and defaults are Kafka 4.3's; times in milliseconds, sizes in bytes."""

    # identity and place
    node_id: int = 1
    listeners: str = "PLAINTEXT://localhost:9092"
    advertised_listeners: str | None = None
    log_dirs: str = "ottla-data"  # Kafka: /tmp/kafka-logs, which a real one may be using
    broker_rack: str | None = None

    # topics
    num_partitions: int = 1
    default_replication_factor: int = 1
    auto_create_topics_enable: bool = True
    delete_topic_enable: bool = True
    min_insync_replicas: int = 1
    message_max_bytes: int = 1_048_588
    compression_type: str = "producer"
    unclean_leader_election_enable: bool = False
    replica_lag_time_max_ms: int = 30_000

    # logs
    log_segment_bytes: int = 1_073_741_824
    log_roll_ms: int | None = None
    log_roll_hours: int = 168
    log_roll_jitter_ms: int | None = None
    log_roll_jitter_hours: int = 0
    log_retention_ms: int | None = None
    log_retention_minutes: int | None = None
    log_retention_hours: int = 168
    log_retention_bytes: int = -1
    log_retention_check_interval_ms: int = 300_000
    log_cleanup_policy: str = "delete"
    log_cleaner_enable: bool = True
    log_cleaner_backoff_ms: int = 15_000
    log_cleaner_delete_retention_ms: int = _DAY_MS
    log_cleaner_min_compaction_lag_ms: int = 0
    log_cleaner_max_compaction_lag_ms: int = _LONG_MAX
    log_cleaner_min_cleanable_ratio: float = 0.5
    log_index_interval_bytes: int = 4096
    log_index_size_max_bytes: int = 10 * 1024 * 1024
    log_flush_interval_messages: int = _LONG_MAX
    log_flush_interval_ms: int | None = None
    log_flush_scheduler_interval_ms: int = _LONG_MAX
    log_flush_offset_checkpoint_interval_ms: int = 60_000
    log_flush_start_offset_checkpoint_interval_ms: int = 60_000
    log_preallocate: bool = False
    log_message_timestamp_type: str = "CreateTime"
    log_message_timestamp_before_max_ms: int = _LONG_MAX
    log_message_timestamp_after_max_ms: int = 3_600_000
    log_segment_delete_delay_ms: int = 60_000
    replica_high_watermark_checkpoint_interval_ms: int = 5_000

    # producers and transactions
    producer_id_expiration_ms: int = _DAY_MS
    producer_id_expiration_check_interval_ms: int = 600_000
    transactional_id_expiration_ms: int = 7 * _DAY_MS
    transaction_max_timeout_ms: int = 900_000
    transaction_abort_timed_out_transaction_cleanup_interval_ms: int = 10_000
    transaction_remove_expired_transaction_cleanup_interval_ms: int = 3_600_000
    transaction_partition_verification_enable: bool = True
    add_partitions_to_txn_retry_backoff_ms: int = 20
    add_partitions_to_txn_retry_backoff_max_ms: int = 100
    transaction_state_log_num_partitions: int = 50
    transaction_state_log_replication_factor: int = 1  # Kafka: 3; there is one node
    transaction_state_log_min_isr: int = 1  # Kafka: 2; there is one node
    transaction_state_log_segment_bytes: int = 100 * 1024 * 1024

    # groups
    offsets_topic_num_partitions: int = 50
    offsets_topic_replication_factor: int = 1  # Kafka: 3; there is one node
    offsets_topic_segment_bytes: int = 100 * 1024 * 1024
    offsets_topic_compression_codec: int = 0
    offsets_retention_minutes: int = 7 * 24 * 60
    offsets_retention_check_interval_ms: int = 600_000
    offset_metadata_max_bytes: int = 4096
    group_initial_rebalance_delay_ms: int = 3_000
    group_min_session_timeout_ms: int = 6_000
    group_max_session_timeout_ms: int = 1_800_000
    group_max_size: int = _INT_MAX
    group_coordinator_append_linger_ms: int = -1
    group_consumer_session_timeout_ms: int = 45_000
    group_consumer_min_session_timeout_ms: int = 45_000
    group_consumer_max_session_timeout_ms: int = 60_000
    group_consumer_heartbeat_interval_ms: int = 5_000
    group_consumer_min_heartbeat_interval_ms: int = 5_000
    group_consumer_max_heartbeat_interval_ms: int = 15_000
    group_consumer_max_size: int = _INT_MAX
    group_consumer_assignors: str = "uniform,range"

    # requests and connections
    request_timeout_ms: int = 30_000
    fetch_max_bytes: int = 57_671_680
    max_incremental_fetch_session_cache_slots: int = 1_000
    max_request_partition_size_limit: int = 2_000
    socket_request_max_bytes: int = 104_857_600
    socket_listen_backlog_size: int = 50
    connections_max_idle_ms: int = 600_000
    max_connections: int = _INT_MAX
    max_connections_per_ip: int = _INT_MAX

    def __post_init__(self) -> None:
        """Refuse what cannot work, with the name the user wrote."""
        for name, minimum in _MINIMUM.items():
            value = getattr(self, name)
            if value is not None and value < minimum:
                raise BrokerConfigError(f"{kafka_name(name)}={value}: the smallest value is {minimum}")
        _endpoint("listeners", self.listeners)
        if self.advertised_listeners is not None:
            _endpoint("advertised.listeners", self.advertised_listeners)
        if "," in self.log_dirs:
            raise BrokerConfigError("log.dirs names one folder; several are not supported")

    @property
    def host(self) -> str:
        """The address to listen on."""
        return _endpoint("listeners", self.listeners)[0]

    @property
    def port(self) -> int:
        """The port to listen on; 0 lets the system choose."""
        return _endpoint("listeners", self.listeners)[1]

    @property
    def data(self) -> Path:
        """The folder of all logs."""
        return Path(self.log_dirs)

    def advertised(self, bound_port: int) -> tuple[str, int]:
        """Host and port that clients are told, given the port that `listeners` came to."""
        if self.advertised_listeners is not None:
            host, port = _endpoint("advertised.listeners", self.advertised_listeners)
            return host, port or bound_port
        host = self.host
        return ("localhost" if host in ("", "0.0.0.0", "::") else host), bound_port

    @property
    def retention_ms(self) -> int:
        """`log.retention.ms`, else `.minutes`, else `.hours`; -1 is for ever."""
        if self.log_retention_ms is not None:
            return self.log_retention_ms
        if self.log_retention_minutes is not None:
            return -1 if self.log_retention_minutes < 0 else self.log_retention_minutes * 60_000
        return -1 if self.log_retention_hours < 0 else self.log_retention_hours * 3_600_000

    @property
    def roll_ms(self) -> int:
        """`log.roll.ms`, else `log.roll.hours`."""
        return self.log_roll_hours * 3_600_000 if self.log_roll_ms is None else self.log_roll_ms

    @property
    def roll_jitter_ms(self) -> int:
        """`log.roll.jitter.ms`, else `log.roll.jitter.hours`."""
        return self.log_roll_jitter_hours * 3_600_000 if self.log_roll_jitter_ms is None else self.log_roll_jitter_ms

    @property
    def flush_ms(self) -> int:
        """`log.flush.interval.ms`, else `log.flush.scheduler.interval.ms`."""
        return (
            self.log_flush_scheduler_interval_ms if self.log_flush_interval_ms is None else self.log_flush_interval_ms
        )

    def as_mapping(self) -> dict[str, object]:
        """All settings under Kafka's names, for DescribeConfigs of a broker."""
        return {kafka_name(field.name): getattr(self, field.name) for field in fields(self)}


_MINIMUM = {
    "node_id": 0,
    "num_partitions": 1,
    "default_replication_factor": 1,
    "min_insync_replicas": 1,
    "message_max_bytes": 0,
    "log_segment_bytes": 1024 * 1024,
    "log_retention_bytes": -1,
    "log_retention_ms": -1,
    "log_retention_minutes": -1,
    "log_retention_hours": -1,
    "log_retention_check_interval_ms": 1,
    "log_index_interval_bytes": 0,
    "log_index_size_max_bytes": 4,
    "log_flush_interval_messages": 1,
    "transactional_id_expiration_ms": 1,
    "transaction_max_timeout_ms": 1,
    "transaction_abort_timed_out_transaction_cleanup_interval_ms": 1,
    "transaction_remove_expired_transaction_cleanup_interval_ms": 1,
    "transaction_state_log_num_partitions": 1,
    "offsets_topic_num_partitions": 1,
    "offset_metadata_max_bytes": 0,
    "group_initial_rebalance_delay_ms": 0,
    "group_max_size": 1,
    "add_partitions_to_txn_retry_backoff_ms": 1,
    "add_partitions_to_txn_retry_backoff_max_ms": 0,
    "request_timeout_ms": 1,
    "fetch_max_bytes": 1024,
    "max_incremental_fetch_session_cache_slots": 0,
    "socket_request_max_bytes": 1,
    "socket_listen_backlog_size": 1,
    "max_connections": 0,
    "max_connections_per_ip": 0,
}


def kafka_name(field_name: str) -> str:
    """`log_retention_ms` -> `log.retention.ms`."""
    return field_name.replace("_", ".")


# Names that stand for another one, and names of Apache Kafka's own server.properties that have nothing to say to
# one process.
_ALIASES = {"broker.id": "node.id", "log.dir": "log.dirs"}
_WITHOUT_EFFECT = frozenset(
    {
        "process.roles",
        "controller.quorum.voters",
        "controller.quorum.bootstrap.servers",
        "controller.listener.names",
        "inter.broker.listener.name",
        "listener.security.protocol.map",
        "num.network.threads",
        "num.io.threads",
        "num.recovery.threads.per.data.dir",
        "socket.send.buffer.bytes",
        "socket.receive.buffer.bytes",
    }
)


def parse_config(settings: Mapping[str, object]) -> BrokerConfig:
    """A BrokerConfig from a mapping of Kafka's names (or field names) to strings or values.

    Raises:
        BrokerConfigError: unknown name (the nearest one is named) or a value that cannot be read.
    """
    known = {kafka_name(field.name): field for field in fields(BrokerConfig)}
    values: dict[str, Any] = {}
    for written, value in settings.items():
        name = written.replace("_", ".")
        name = _ALIASES.get(name, name)
        if name in _WITHOUT_EFFECT:
            continue
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {nearest[0]}?" if nearest else ""
            raise BrokerConfigError(f"unknown broker setting {written}{hint}")
        values[known[name].name] = _read(name, value, str(known[name].type))
    return BrokerConfig(**values)


def read_properties(text: str) -> dict[str, str]:
    """The settings of a `server.properties` file: `name=value` lines, `#` comments, a backslash continues a line."""
    settings: dict[str, str] = {}
    for line in _logical_lines(text.splitlines()):
        if line.startswith(("#", "!")) or not line:
            continue
        name, separator, value = line.partition("=")
        if not separator:
            raise BrokerConfigError(f"not a setting: {line!r}; write name=value")
        settings[name.strip()] = value.strip()
    return settings


def _logical_lines(lines: Iterable[str]) -> Iterable[str]:
    held = ""
    for line in lines:
        line = held + line.strip()
        if line.endswith("\\") and not line.startswith(("#", "!")):
            held = line[:-1]
            continue
        held = ""
        yield line
    if held:
        yield held


def _read(name: str, value: object, declared: str) -> object:
    optional = declared.endswith("| None")
    kind = declared.removesuffix("| None").strip()
    if optional and (value is None or value == ""):
        return None
    try:
        return _READERS[kind](value)
    except (TypeError, ValueError):
        raise BrokerConfigError(f"{name}={value}: expected {_EXPECTED[kind]}") from None


def _read_bool(value: object) -> bool:
    text = str(value).strip().lower()
    if text not in ("true", "false"):
        raise ValueError(text)
    return text == "true"


_READERS: dict[str, Any] = {
    "int": lambda value: int(str(value)),
    "float": lambda value: float(str(value)),
    "bool": _read_bool,
    "str": str,
}
_EXPECTED = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text"}


def _endpoint(name: str, text: str) -> tuple[str, int]:
    if "," in text:
        raise BrokerConfigError(f"{name}={text}: one listener is supported")
    try:
        parts = urlsplit(text if "://" in text else f"PLAINTEXT://{text}")
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise BrokerConfigError(f"{name}={text}: expected PLAINTEXT://HOST:PORT with a port from 0 to 65535") from None
    if parts.scheme != "plaintext":
        raise BrokerConfigError(f"{name}={text}: only PLAINTEXT listeners exist")
    if port is None:
        raise BrokerConfigError(f"{name}={text}: expected PLAINTEXT://HOST:PORT")
    return host, port
