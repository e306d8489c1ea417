"""Our bytes read by Kafka's generated classes and written again: they must come back the same."""

from __future__ import annotations

import os
import random
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ottla_wire import errors
from ottla_wire.framing import encode_request, encode_response
from ottla_wire.messages import ApiKey
from ottla_wire.schema import Data, Message, Request, Response, Struct, Uuid, WireType, fields_of
from support.kafka_schemas import jar
from support.messages import class_versions

pytestmark = [pytest.mark.slow, pytest.mark.peer("java", "kafka-jars")]

NEWEST = "4.4.0"
INSTANCES = 8
SEED = 20_260_101


def run_java(*arguments: str, lines: list[str] | None = None, kafka: str = NEWEST) -> list[str]:
    program = Path(__file__).parent / "java" / "KafkaMessages.java"
    clients = jar(kafka)
    classpath = os.pathsep.join(map(str, [clients, *clients.parent.glob("slf4j-api-*.jar")]))
    command = ["java", "-XX:TieredStopAtLevel=1", "-cp", classpath, str(program), *arguments]
    text = "".join(f"{line}\n" for line in lines or [])
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def random_instance(cls: type[Struct], version: int, rng: random.Random) -> Any:
    values = {}
    for spec in fields_of(cls):
        if version in spec.versions and rng.random() < 0.9:
            null = version in spec.nullable and rng.random() < 0.25
            values[spec.name] = None if null else random_value(spec.type, version, rng)
    return cls(**values)


def random_value(wire_type: WireType, version: int, rng: random.Random) -> Any:
    if wire_type.kind == "array":
        assert wire_type.element is not None
        return [random_value(wire_type.element, version, rng) for _ in range(rng.choice([0, 1, 2, 3]))]
    if wire_type.kind == "struct":
        return random_instance(wire_type.struct, version, rng)
    if wire_type.name in ("bool", "float64"):
        return rng.random() < 0.5 if wire_type.name == "bool" else rng.uniform(-1e9, 1e9)
    if wire_type.kind == "fixed":
        bits = wire_type.size * 8
        low = 0 if wire_type.name.startswith("u") else -(1 << bits - 1)
        return rng.choice([low, low + (1 << bits) - 1, 0, 1, rng.randrange(low, low + (1 << bits))])
    if wire_type.kind == "uuid":
        return Uuid(rng.randbytes(16))
    if wire_type.kind == "str":
        return "".join(rng.choice("abc-é語") for _ in range(rng.choice([0, 1, 5, 150])))
    return rng.randbytes(rng.choice([0, 1, 20, 700]))


def java_name(cls: type[Message]) -> str:
    return cls.__name__ if issubclass(cls, Data) else f"{cls.__name__}Data"


def test_kafka_reads_what_we_write_and_writes_the_same() -> None:
    rng = random.Random(SEED)
    lines = []
    for cls, version in class_versions():
        for _ in range(INSTANCES):
            encoded = random_instance(cls, version, rng).encode(version)
            lines.append(f"{java_name(cls)} {version} {encoded.hex()}")
    answers = run_java(lines=lines)
    assert len(answers) == len(lines) > 3000
    pairs = zip(lines, answers, strict=True)
    wrong = [f"{line}\n   {answer}" for line, answer in pairs if line.split(" ")[2] != answer]
    assert not wrong, "\n".join(wrong[:5])


def test_kafka_reads_our_headers() -> None:
    lines = []
    for cls, version in class_versions():
        if issubclass(cls, (Request, Response)):
            message = cls()
            if isinstance(message, Request):
                frame = b"".join(encode_request(message, version, 77, "klient"))
                kind = "RequestHeaderData"
            else:
                frame = b"".join(encode_response(message, version, 77))  # type: ignore[arg-type]
                kind = "ResponseHeaderData"
            header = frame[4 : len(frame) - len(message.encode(version))]
            lines.append(f"{kind} {cls.header_version(version)} {header.hex()}")
    answers = run_java(lines=lines)
    assert [line.split(" ")[2] for line in lines] == answers


def test_the_table_of_error_codes_is_kafkas() -> None:
    table = re.search(r'KAFKA = """\n(.*?)"""', Path(__file__).with_name("test_errors.py").read_text(), re.DOTALL)
    assert table is not None
    answers = [line for line in run_java("errors", kafka="4.3.1") if not line.startswith("0 ")]
    assert answers == table[1].splitlines()


def test_an_error_code_that_a_newer_kafka_has_is_not_taken_here_by_another_error() -> None:
    for line in run_java("errors"):
        code, name, _ = line.split()
        known = errors.error_class(int(code))
        if known is not None and int(code) != 13:
            assert known.__name__ == name.removesuffix("_EXCEPTION").title().replace("_", "")
    assert ApiKey.UNREGISTER_CONTROLLER == 94
