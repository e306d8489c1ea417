"""BrokerConfig: Kafka's names in, one sentence out where something is wrong."""

from __future__ import annotations

import pytest

from ottla_broker.shell.config import BrokerConfig, BrokerConfigError, parse_config, read_properties


def test_kafkas_names_and_field_names_mean_the_same() -> None:
    assert parse_config({"log.retention.ms": "5", "num_partitions": 3}) == BrokerConfig(
        log_retention_ms=5, num_partitions=3
    )


def test_aliases_of_kafka() -> None:
    config = parse_config({"broker.id": "7", "log.dir": "/data"})
    assert (config.node_id, str(config.data)) == (7, "/data")


def test_every_kind_of_value_is_read() -> None:
    config = parse_config(
        {
            "auto.create.topics.enable": "FALSE",
            "log.cleaner.min.cleanable.ratio": "0.25",
            "log.retention.ms": "",
            "broker.rack": "r1",
        }
    )
    assert config.auto_create_topics_enable is False
    assert config.log_cleaner_min_cleanable_ratio == 0.25
    assert config.log_retention_ms is None
    assert config.broker_rack == "r1"


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"log.retenton.ms": "5"}, "unknown broker setting log.retenton.ms; did you mean log.retention.ms?"),
        ({"zzz": "5"}, "unknown broker setting zzz"),
        ({"num.partitions": "many"}, "num.partitions=many: expected a whole number"),
        ({"auto.create.topics.enable": "yes"}, "auto.create.topics.enable=yes: expected true or false"),
        ({"num.partitions": "0"}, "num.partitions=0: the smallest value is 1"),
        ({"listeners": "SSL://localhost:9092"}, "listeners=SSL://localhost:9092: only PLAINTEXT listeners exist"),
        ({"listeners": "PLAINTEXT://a:1,PLAINTEXT://b:2"}, "one listener is supported"),
        ({"listeners": "PLAINTEXT://localhost"}, "expected PLAINTEXT://HOST:PORT"),
        ({"listeners": "PLAINTEXT://localhost:70000"}, "a port from 0 to 65535"),
        ({"log.dirs": "/a,/b"}, "log.dirs names one folder"),
    ],
)
def test_mistakes_are_named(settings: dict[str, object], sentence: str) -> None:
    with pytest.raises(BrokerConfigError) as caught:
        parse_config(settings)
    assert sentence in str(caught.value)


def test_settings_of_a_kafka_server_properties_file_that_mean_nothing_here_are_accepted() -> None:
    text = """
    # A comment
    process.roles=broker,controller
    node.id = 4
    listeners=\\
      PLAINTEXT://0.0.0.0:9092
    num.network.threads=3
    """
    config = parse_config(read_properties(text))
    assert (config.node_id, config.host, config.port) == (4, "0.0.0.0", 9092)


def test_a_line_that_is_no_setting() -> None:
    with pytest.raises(BrokerConfigError, match="write name=value"):
        read_properties("just words")


@pytest.mark.parametrize(
    ("listeners", "advertised", "expected"),
    [
        ("PLAINTEXT://localhost:0", None, ("localhost", 4711)),
        ("PLAINTEXT://0.0.0.0:0", None, ("localhost", 4711)),
        ("PLAINTEXT://:0", None, ("localhost", 4711)),
        ("PLAINTEXT://[::1]:0", None, ("::1", 4711)),
        ("PLAINTEXT://0.0.0.0:0", "PLAINTEXT://kafka.example:19092", ("kafka.example", 19092)),
        ("PLAINTEXT://0.0.0.0:0", "PLAINTEXT://kafka.example:0", ("kafka.example", 4711)),
    ],
)
def test_what_clients_are_told(listeners: str, advertised: str | None, expected: tuple[str, int]) -> None:
    assert BrokerConfig(listeners=listeners, advertised_listeners=advertised).advertised(4711) == expected


def test_the_finer_unit_wins() -> None:
    assert BrokerConfig(log_retention_hours=1).retention_ms == 3_600_000
    assert BrokerConfig(log_retention_hours=1, log_retention_minutes=2).retention_ms == 120_000
    assert BrokerConfig(log_retention_hours=1, log_retention_minutes=2, log_retention_ms=3).retention_ms == 3
    assert BrokerConfig(log_retention_hours=-1).retention_ms == -1
    assert BrokerConfig(log_roll_hours=2).roll_ms == 7_200_000
    assert BrokerConfig(log_roll_ms=5).roll_ms == 5


def test_a_config_written_out_and_read_again_is_the_same() -> None:
    config = BrokerConfig(log_roll_ms=5, broker_rack="r")
    assert parse_config(config.as_mapping()) == config
