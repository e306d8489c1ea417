"""The clients' settings: Java's names, one table per client, and one place where they are read and checked.

Settings come as keywords in snake case (`linger_ms=5`) or in a mapping with Kafka's dotted names (`{"linger.ms": 5}`),
or both. Each field below is one setting with its default; a field's type and rule are what its value must satisfy.
Defaults are those of the Java client 4.x, except for those listed in `DIFFERENCES`.
"""

# ruff: noqa: RUF009 - `setting` is dataclasses.field with a rule attached, not a value that instances would share

from __future__ import annotations

import dataclasses
import difflib
import functools
import types
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar, Union, get_args, get_origin, get_type_hints

from ottla.errors import ConfigError

DIFFERENCES: Final[Mapping[str, str]] = types.MappingProxyType(
    {
        "client_id": "'ottla-producer-1' and so on where Java has 'producer-1': a broker's log then tells them apart",
        "key_serializer": "by type (bytes, str, pydantic, JSON; see ottla.serialization): Java has no default",
        "value_serializer": "by type, as key_serializer",
        "key_deserializer": "bytes as they are: Java has no default",
        "value_deserializer": "bytes as they are: Java has no default",
        "partitioner_class": "any callable (topic, key, value, partition count) -> partition: Java takes class names",
        "receive_buffer_bytes": "-1, the operating system's own, which grows, where Java asks for 32 or 64 KiB",
        "send_buffer_bytes": "-1, the operating system's own, which grows, where Java asks for 128 KiB",
    }
)
"""Where a default differs from the Java client 4.x, and why."""

_ABSENT: Final[Mapping[str, str]] = types.MappingProxyType(
    {
        "auto_include_jmx_reporter": "there is no JMX here; metrics() returns the figures",
        "config_providers": "settings are Python values here; read secrets before you pass them",
        "enable_metrics_push": "metrics are not pushed to brokers (KIP-714); metrics() returns them",
        "interceptor_classes": "interceptors are not loaded by name; wrap the serializer or use a template's hooks",
        "metric_reporters": "metrics() returns the figures; there is nothing to plug in",
        "metrics_num_samples": "metrics() returns totals; there are no sampling windows",
        "metrics_recording_level": "metrics() returns totals; there are no sampling windows",
        "metrics_sample_window_ms": "metrics() returns totals; there are no sampling windows",
        "transaction_two_phase_commit_enable": "two-phase commit (KIP-939) is unfinished in Kafka itself",
    }
)

_SECURITY_PREFIXES: Final = ("ssl_", "sasl_", "security_")
_METADATA_KEY: Final = "check"

Check = Callable[[str, Any], str | None]


def setting(default: Any, check: Check | None = None) -> Any:
    """A field of a config class: its default, and the rule that its value must satisfy."""
    return dataclasses.field(default=default, metadata={_METADATA_KEY: check})


def at_least(minimum: float) -> Check:
    """A number that is not below `minimum`."""
    return lambda name, value: None if value >= minimum else f"{name} must be at least {minimum}, got {value}"


def between(minimum: float, maximum: float) -> Check:
    """A number from `minimum` to `maximum`."""

    def check(name: str, value: Any) -> str | None:
        return None if minimum <= value <= maximum else f"{name} must be from {minimum} to {maximum}, got {value}"

    return check


def one_of(*allowed: str) -> Check:
    """One of some words."""

    def check(name: str, value: Any) -> str | None:
        return None if value in allowed else f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}"

    return check


def not_empty(name: str, value: Any) -> str | None:
    """A text or list with something in it."""
    return None if value is None or len(value) else f"{name} is empty; give it a value, or leave it out"


@dataclasses.dataclass(frozen=True)
class ClientConfig:
    """What producer, consumer and admin client have in common: how to reach the cluster, and how patient to be."""

    bootstrap_servers: str | list[str] | tuple[str, ...] = setting("localhost:9092", not_empty)
    client_id: str = setting("")
    client_dns_lookup: str = setting("use_all_dns_ips", one_of("use_all_dns_ips"))
    connections_max_idle_ms: int = setting(540_000, at_least(-1))
    default_api_timeout_ms: int = setting(60_000, at_least(0))
    metadata_max_age_ms: int = setting(300_000, at_least(0))
    metadata_max_idle_ms: int = setting(300_000, at_least(5_000))
    metadata_recovery_strategy: str = setting("rebootstrap", one_of("rebootstrap", "none"))
    metadata_recovery_rebootstrap_trigger_ms: int = setting(300_000, at_least(0))
    receive_buffer_bytes: int = setting(-1, at_least(-1))
    reconnect_backoff_ms: int = setting(50, at_least(0))
    reconnect_backoff_max_ms: int = setting(1_000, at_least(0))
    request_timeout_ms: int = setting(30_000, at_least(0))
    retries: int = setting(2**31 - 1, between(0, 2**31 - 1))
    retry_backoff_ms: int = setting(100, at_least(0))
    retry_backoff_max_ms: int = setting(1_000, at_least(0))
    security_protocol: str = setting("PLAINTEXT")
    send_buffer_bytes: int = setting(-1, at_least(-1))
    socket_connection_setup_timeout_ms: int = setting(10_000, at_least(0))
    socket_connection_setup_timeout_max_ms: int = setting(30_000, at_least(0))

    def __post_init__(self) -> None:
        self.addresses()  # a wrong address is found now, not at the first connection
        if self.security_protocol != "PLAINTEXT":
            raise ConfigError(_security_sentence("security_protocol"))
        self.validate()

    def validate(self) -> None:
        """Check what concerns more than one setting.

        Raises:
            ConfigError: two settings contradict each other.
        """

    def addresses(self) -> list[tuple[str, int]]:
        """`bootstrap_servers` as (host, port) pairs.

        Raises:
            ConfigError: one of them is not `host:port`.
        """
        servers = self.bootstrap_servers
        parts = servers.split(",") if isinstance(servers, str) else list(servers)
        return [parse_address(part.strip()) for part in parts if part.strip()]


@dataclasses.dataclass(frozen=True)
class ProducerConfig(ClientConfig):
    """Settings of `KafkaProducer`."""

    acks: str | int = setting("all")
    batch_size: int = setting(16_384, at_least(0))
    buffer_memory: int = setting(33_554_432, at_least(0))
    compression_type: str = setting("none", one_of("none", "gzip", "snappy", "lz4", "zstd"))
    compression_gzip_level: int = setting(-1, between(-1, 9))
    compression_lz4_level: int = setting(9, between(1, 17))
    compression_zstd_level: int = setting(3, between(-131_072, 22))
    delivery_timeout_ms: int = setting(120_000, at_least(0))
    enable_idempotence: bool | None = setting(None)
    key_serializer: Any = setting(None)
    linger_ms: float = setting(5, at_least(0))
    max_block_ms: int = setting(60_000, at_least(0))
    max_in_flight_requests_per_connection: int = setting(5, at_least(1))
    max_request_size: int = setting(1_048_576, at_least(0))
    partitioner_adaptive_partitioning_enable: bool = setting(True)
    partitioner_availability_timeout_ms: int = setting(0, at_least(0))
    partitioner_class: Any = setting(None)
    partitioner_ignore_keys: bool = setting(False)
    transaction_timeout_ms: int = setting(60_000, between(1, 2**31 - 1))
    transactional_id: str | None = setting(None, not_empty)
    value_serializer: Any = setting(None)

    def validate(self) -> None:
        """Refuse combinations that lose order or records, in the words of KafkaProducer's own checks."""
        acks = self.required_acks()
        if self.delivery_timeout_ms < self.linger_ms + self.request_timeout_ms:
            raise ConfigError(
                f"delivery_timeout_ms ({self.delivery_timeout_ms}) must not be below linger_ms + request_timeout_ms "
                f"({self.linger_ms} + {self.request_timeout_ms}): a record could expire before its first request does"
            )
        if not self.idempotent and self.transactional_id is not None:
            raise ConfigError(
                "transactional_id needs an idempotent producer: leave enable_idempotence, acks and retries"
            )
        if self.enable_idempotence:
            self._check_idempotence(acks)
        if self.idempotent and self.max_in_flight_requests_per_connection > 5:
            raise ConfigError(
                "an idempotent producer needs max_in_flight_requests_per_connection of at most 5, the number of "
                f"batches for which a broker recognises duplicates; got {self.max_in_flight_requests_per_connection}"
            )
        if self.partitioner_class is not None and not callable(self.partitioner_class):
            raise ConfigError(f"partitioner_class must be callable, got {self.partitioner_class!r}")

    def _check_idempotence(self, acks: int) -> None:
        if acks != -1:
            raise ConfigError(f"enable_idempotence needs acks='all', got {self.acks!r}")
        if self.retries == 0:
            raise ConfigError("enable_idempotence needs retries above 0: a lost answer could not be asked for again")

    def required_acks(self) -> int:
        """`acks` as the wire has it: -1 for all.

        Raises:
            ConfigError: it is none of 0, 1, -1 and 'all'.
        """
        text = str(self.acks)
        if text not in ("all", "-1", "0", "1"):
            raise ConfigError(f"acks must be 'all', 1 or 0, got {self.acks!r}")
        return -1 if text == "all" else int(text)

    @property
    def idempotent(self) -> bool:
        """Whether the producer is idempotent: unless it is switched off, or acks or retries given rule it out.

        As in Java, acks or retries that contradict it are an error only where idempotence was asked for by name.
        """
        if self.enable_idempotence is not None:
            return self.enable_idempotence
        return self.required_acks() == -1 and self.retries > 0


@dataclasses.dataclass(frozen=True)
class ConsumerConfig(ClientConfig):
    """Settings of `KafkaConsumer`."""

    allow_auto_create_topics: bool = setting(True)
    auto_commit_interval_ms: int = setting(5_000, at_least(0))
    auto_offset_reset: str = setting("latest")
    check_crcs: bool = setting(True)
    client_rack: str = setting("")
    enable_auto_commit: bool | None = setting(None)
    exclude_internal_topics: bool = setting(True)
    fetch_max_bytes: int = setting(52_428_800, at_least(0))
    fetch_max_wait_ms: int = setting(500, at_least(0))
    fetch_min_bytes: int = setting(1, at_least(0))
    group_id: str | None = setting(None)
    group_instance_id: str | None = setting(None, not_empty)
    group_protocol: str = setting("classic", one_of("classic", "consumer"))
    group_remote_assignor: str | None = setting(None)
    heartbeat_interval_ms: int = setting(3_000, at_least(1))
    isolation_level: str = setting("read_uncommitted", one_of("read_uncommitted", "read_committed"))
    key_deserializer: Any = setting(None)
    max_partition_fetch_bytes: int = setting(1_048_576, at_least(0))
    max_poll_interval_ms: int = setting(300_000, at_least(1))
    max_poll_records: int = setting(500, at_least(1))
    partition_assignment_strategy: Any = setting(("range", "cooperative-sticky"), not_empty)
    session_timeout_ms: int = setting(45_000, at_least(1))
    value_deserializer: Any = setting(None)

    def validate(self) -> None:
        """Check what belongs together: heartbeats and session, group and commits, the reset policy."""
        if self.heartbeat_interval_ms >= self.session_timeout_ms:
            raise ConfigError(
                f"heartbeat_interval_ms ({self.heartbeat_interval_ms}) must be below session_timeout_ms "
                f"({self.session_timeout_ms}): the group would take the consumer for dead"
            )
        if self.enable_auto_commit and self.group_id is None:
            raise ConfigError("enable_auto_commit needs a group_id: offsets are committed for a group")
        if self.group_id == "":
            raise ConfigError("group_id is empty; leave it out for a consumer without a group")
        policy = self.auto_offset_reset
        if policy not in ("earliest", "latest", "none") and not policy.startswith("by_duration:"):
            raise ConfigError(
                f"auto_offset_reset must be 'earliest', 'latest', 'none' or 'by_duration:PT...', got {policy!r}"
            )


@dataclasses.dataclass(frozen=True)
class AdminConfig(ClientConfig):
    """Settings of `AdminClient`."""


C = TypeVar("C", bound=ClientConfig)


def resolve(cls: type[C], mapping: Mapping[str, Any] | None = None, keywords: Mapping[str, Any] | None = None) -> C:
    """The config of type `cls` from a mapping (dotted or snake-case names), keywords, or both; keywords win.

    Raises:
        ConfigError: a name is unknown (the nearest one is named), or a value is not one that the setting can have.
    """
    given: dict[str, Any] = {}
    for name, value in (mapping or {}).items():
        given[_known_name(cls, name)] = value
    for name, value in (keywords or {}).items():
        given[_known_name(cls, name)] = value
    hints = _hints(cls)  # type: ignore[arg-type] # mypy: the class of a frozen dataclass would have no hash
    fields = {field.name: field for field in dataclasses.fields(cls)}
    values = {name: _checked(fields[name], hints[name], value) for name, value in given.items()}
    return cls(**values)


@functools.cache
def _hints(cls: type[ClientConfig]) -> dict[str, Any]:
    return get_type_hints(cls)  # evaluates the text of each annotation, which takes longer than all the rest


def parse_address(text: str) -> tuple[str, int]:
    """`host:port` or `[v6]:port` taken apart.

    Raises:
        ConfigError: it is neither.
    """
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 < int(port) < 65_536:
        raise ConfigError(f"bootstrap_servers: {text!r} is not HOST:PORT")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    return host, int(port)


def _known_name(cls: type[ClientConfig], name: str) -> str:
    snake = name.replace(".", "_")
    known = [field.name for field in dataclasses.fields(cls)]
    if snake in known:
        return snake
    if snake.startswith(_SECURITY_PREFIXES):
        raise ConfigError(_security_sentence(name))
    if snake in _ABSENT:
        raise ConfigError(f"{name} is not supported: {_ABSENT[snake]}")
    kind = cls.__name__.removesuffix("Config").lower()
    nearest = difflib.get_close_matches(snake, known, n=1, cutoff=0.5)
    hint = f"; did you mean {nearest[0]}?" if nearest else ""
    raise ConfigError(f"{name} is not a setting of the {kind}{hint}")


def _security_sentence(name: str) -> str:
    return f"{name}: TLS and SASL are not supported yet, connections are PLAINTEXT"


def _checked(field: dataclasses.Field[Any], hint: Any, value: Any) -> Any:
    value = _converted(field.name, hint, value)
    check = field.metadata[_METADATA_KEY]
    complaint = check(field.name, value) if check is not None and value is not None else None
    if complaint is not None:
        raise ConfigError(complaint)
    return value


def _converted(name: str, hint: Any, value: Any) -> Any:
    """`value` as the field's type, also from the texts that property files hold ("5", "true")."""
    if hint is Any:
        return value
    alternatives = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    for alternative in alternatives:
        plain = get_origin(alternative) or alternative
        if plain is float and type(value) is int:
            return value
        if isinstance(value, plain) and not (isinstance(value, bool) and plain is not bool):
            return value
    if isinstance(value, str):
        for alternative in alternatives:
            try:
                return _from_text(alternative, value.strip())
            except ValueError:
                continue
    wanted = " or ".join("None" if a is type(None) else getattr(a, "__name__", str(a)) for a in alternatives)
    raise ConfigError(f"{name} must be {wanted}, got {value!r}")


def _from_text(wanted: Any, text: str) -> Any:
    if wanted is bool and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if wanted in (int, float):
        return wanted(text)
    raise ValueError(text)
