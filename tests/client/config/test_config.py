from __future__ import annotations

from typing import Any

import pytest

from ottla.client.config import (
    DIFFERENCES,
    AdminConfig,
    ClientConfig,
    ConsumerConfig,
    ProducerConfig,
    parse_address,
    resolve,
)
from ottla.errors import ConfigError


def test_dotted_and_snake_names_are_the_same_setting_and_keywords_win() -> None:
    config = resolve(ProducerConfig, {"linger.ms": 7, "batch_size": 5}, {"linger_ms": 9})
    assert config.linger_ms == 9
    assert config.batch_size == 5


def test_defaults_are_javas() -> None:
    config = ProducerConfig()
    assert (config.acks, config.batch_size, config.linger_ms, config.buffer_memory) == ("all", 16384, 5, 33_554_432)
    assert (config.delivery_timeout_ms, config.request_timeout_ms, config.max_block_ms) == (120_000, 30_000, 60_000)
    assert config.idempotent
    consumer = ConsumerConfig()
    assert (consumer.auto_offset_reset, consumer.max_poll_records, consumer.fetch_max_bytes) == (
        "latest",
        500,
        52_428_800,
    )


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("linger", "linger_ms"),
        ("lingerms", "linger_ms"),
        ("bootstrap.server", "bootstrap_servers"),
        ("compression", "compression_type"),
        ("max.in.flight", "max_in_flight_requests_per_connection"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest_one(name: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} is not a setting of the producer; did you mean {hint}"):
        resolve(ProducerConfig, {name: 1})


def test_a_setting_of_another_client_is_not_this_ones() -> None:
    with pytest.raises(ConfigError, match="of the producer"):
        resolve(ProducerConfig, {"group.id": "g"})


@pytest.mark.parametrize("name", ["ssl.keystore.location", "sasl_mechanism", "security_providers", "ssl_context"])
def test_security_settings_are_refused_with_one_sentence(name: str) -> None:
    with pytest.raises(ConfigError, match="TLS and SASL are not supported yet"):
        resolve(AdminConfig, {name: "x"})


def test_plaintext_is_the_one_protocol() -> None:
    assert resolve(AdminConfig, {"security.protocol": "PLAINTEXT"}).security_protocol == "PLAINTEXT"
    with pytest.raises(ConfigError, match="TLS and SASL"):
        resolve(AdminConfig, {"security.protocol": "SSL"})


def test_what_java_has_and_this_client_cannot_have_is_refused_with_its_reason() -> None:
    with pytest.raises(ConfigError, match=r"interceptor\.classes is not supported: "):
        resolve(ProducerConfig, {"interceptor.classes": "com.example.Interceptor"})


@pytest.mark.parametrize(
    ("name", "value", "result"),
    [
        ("linger.ms", "12", 12),
        ("enable.idempotence", "true", True),
        ("enable.idempotence", "False", False),
        ("retries", "3", 3),
        ("acks", 1, 1),
        ("transactional.id", None, None),
    ],
)
def test_texts_from_property_files_become_what_they_say(name: str, value: Any, result: Any) -> None:
    extra = {"acks": "all"} if name != "acks" else {}
    assert getattr(resolve(ProducerConfig, {name: value, **extra}), name.replace(".", "_")) == result


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("linger_ms", "soon"),
        ("linger_ms", -1),
        ("batch_size", 1.5),
        ("batch_size", True),
        ("enable_idempotence", "maybe"),
        ("enable_idempotence", 1),
        ("acks", "most"),
        ("acks", 2),
        ("compression_type", "brotli"),
        ("client_id", 7),
        ("compression_lz4_level", 0),
        ("partitioner_class", "murmur2"),
        ("transactional_id", ""),
        ("bootstrap_servers", "localhost"),
        ("bootstrap_servers", ""),
    ],
)
def test_a_wrong_value_is_refused_and_named(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=name):
        resolve(ProducerConfig, {}, {name: value})


@pytest.mark.parametrize(
    "settings",
    [
        {"enable_idempotence": True, "acks": 1},
        {"enable_idempotence": True, "retries": 0},
        {"enable_idempotence": True, "max_in_flight_requests_per_connection": 6},
        {"max_in_flight_requests_per_connection": 6},
        {"enable_idempotence": False, "transactional_id": "t"},
        {"acks": 1, "transactional_id": "t"},
        {"delivery_timeout_ms": 1000},
    ],
)
def test_what_contradicts_idempotence_or_time_is_refused_as_java_does(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        resolve(ProducerConfig, settings)


@pytest.mark.parametrize("settings", [{"acks": 1}, {"acks": "0"}, {"retries": 0}])
def test_idempotence_by_default_gives_way_to_acks_and_retries(settings: dict[str, Any]) -> None:
    assert not resolve(ProducerConfig, settings).idempotent


def test_more_than_five_in_flight_are_allowed_without_idempotence() -> None:
    assert not resolve(
        ProducerConfig, {"enable_idempotence": False, "max_in_flight_requests_per_connection": 50}
    ).idempotent


def test_addresses_are_taken_apart() -> None:
    config = ClientConfig(bootstrap_servers=" a:1, [::1]:2 ,b:3")
    assert config.addresses() == [("a", 1), ("::1", 2), ("b", 3)]
    assert parse_address("host:65535") == ("host", 65535)


@pytest.mark.parametrize("address", ["host", ":9092", "host:", "host:0", "host:70000", "host:http"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="HOST:PORT"):
        parse_address(address)


@pytest.mark.parametrize(
    "settings",
    [
        {"heartbeat_interval_ms": 50_000},
        {"enable_auto_commit": True},
        {"group_id": ""},
        {"auto_offset_reset": "newest"},
        {"isolation_level": "serializable"},
    ],
)
def test_a_consumers_contradictions_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        resolve(ConsumerConfig, settings)


def test_the_table_of_differences_names_real_settings() -> None:
    known = {name for cls in (ProducerConfig, ConsumerConfig, AdminConfig) for name in cls.__dataclass_fields__}
    assert set(DIFFERENCES) <= known
