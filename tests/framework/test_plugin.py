"""The pytest plugin as a project that uses it has it: its fixtures, and where `--ottla-broker` lets them run."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

TESTS = """
def test_one(kafka, kafka_topic):
    print("at", kafka.bootstrap_servers, kafka_topic)

def test_two(kafka, kafka_topic):
    print("at", kafka.bootstrap_servers, kafka_topic)
"""

pytestmark = pytest.mark.slow


@pytest.fixture
def project(tmp_path: Path) -> Callable[..., tuple[int, str]]:
    (tmp_path / "test_it.py").write_text(TESTS)

    def run(*options: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "pytest", "-qs", "-p", "no:cacheprovider", "-p", "no:randomly", *options]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
        return done.returncode, done.stdout + done.stderr

    return run


def places(output: str) -> list[list[str]]:
    return [line.split()[-2:] for line in output.splitlines() if "at " in line and ":" in line]


def test_tests_share_a_broker_and_each_has_a_topic_of_its_own(project: Any) -> None:
    code, output = project()
    assert code == 0, output
    (one, first), (two, second) = places(output)
    assert one == two
    assert first != second


def test_they_run_on_a_kafka_of_the_users(project: Any, kafka: Any) -> None:
    code, output = project(f"--ottla-broker={kafka.bootstrap_servers}")
    assert code == 0, output
    assert {address for address, _ in places(output)} == {kafka.bootstrap_servers}


@pytest.mark.parametrize("where", ["apahce", "localhost", "localhost:", ":9092", "localhost:x"])
def test_what_is_no_place_is_refused_before_any_test_runs(project: Any, where: str) -> None:
    code, output = project(f"--ottla-broker={where}")
    assert code == pytest.ExitCode.USAGE_ERROR
    assert output == f"ERROR: --ottla-broker={where}: choose embedded, apache or HOST:PORT\n\n"


def test_apache_without_docker_is_one_sentence(project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    code, output = project("--ottla-broker=apache")
    assert code == pytest.ExitCode.TESTS_FAILED
    assert "--ottla-broker=apache needs Docker, which does not answer" in output
    assert "Traceback" not in output
