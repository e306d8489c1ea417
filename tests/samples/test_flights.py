"""samples/flights on a user's own JSON lines, and that its checks find every kind of fault."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "samples" / "flights"
MODULES = ("data", "jobs", "demo")


@pytest.fixture
def sample(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The sample's modules, by name; gone again afterwards, as their names are short ones."""
    monkeypatch.syspath_prepend(str(FOLDER))
    yield SimpleNamespace(**{name: importlib.import_module(name) for name in MODULES})
    for name in MODULES:
        sys.modules.pop(name, None)


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    """Three hundred records of seven users, every tenth without one."""
    path = tmp_path / "my.jsonl"
    records = [{"n": n} if n % 10 == 0 else {"n": n, "user": f"u{n % 7}"} for n in range(300)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def demo(*arguments: str | Path) -> tuple[int, str]:
    command = [sys.executable, str(FOLDER / "demo.py"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
def test_json_lines_of_a_user_go_all_the_way(lines: Path) -> None:
    code, output = demo("--input", lines, "--key", "user")
    assert code == 0, output
    assert output.count("ok  ") == 8
    assert "300 by " in output
    assert "(no key)" in output


@pytest.mark.slow
def test_a_key_without_an_input_is_refused() -> None:
    code, output = demo("--key", "user")
    assert code == 2
    assert "--key is a field of your own records: it needs --input" in output


@pytest.mark.slow
def test_a_file_that_is_not_there_is_refused() -> None:
    code, output = demo("--input", "nowhere.jsonl")
    assert code == 2
    assert "there is no file nowhere.jsonl" in output


@pytest.mark.slow
def test_a_line_that_is_no_object_ends_the_program_before_anything_is_sent(lines: Path) -> None:
    with lines.open("a") as file:
        file.write("[1]\n")
    code, output = demo("--input", lines, "--key", "user")
    assert (code, output) == (1, f"{lines}, line 301: a JSON object is needed, not list\n")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b'{"user": "a"}\n{"user": \n', "line 2: this is not JSON"),
        (b'\n\n{"user": "\xff"}\n', "line 3: this is not JSON"),
        (b"5\n", "line 1: a JSON object is needed, not int"),
        (b"\n", "there is no record in it"),
        (b'{"usr": "a"}\n', "no record has a field 'user', which is to be the key"),
    ],
)
def test_what_is_wrong_with_the_input_is_one_sentence(
    sample: Any, tmp_path: Path, content: bytes, sentence: str
) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(content)
    with pytest.raises(SystemExit) as stopped:
        sample.jobs.JsonLinesJob(path, "user").look()
    assert str(stopped.value.code).startswith(str(path))
    assert sentence in str(stopped.value.code)


# -- its checks --------------------------------------------------------------------------------------------------------


@pytest.fixture
def flow(sample: Any, lines: Path) -> Any:
    """A flow that was never started and has seen what a good one sees."""
    job = sample.jobs.JsonLinesJob(lines, "user")
    found = sample.demo.Flow(job, "localhost:1")
    found.totals, found.totals_gone_on = job.expected()
    for number, (_, value) in enumerate(job.records()):
        found.sent_at_ns.append(0)
        found.acknowledged_after_ms.append(1.0)
        found.handled_after_ms.append(2.0)
        found.sent_fingerprint += job.fingerprint(value)
        found.handled_fingerprint += job.fingerprint(value)
        found.handled_by[f"handle-{number % 2}"] += 1
    return found


def test_a_good_run_passes_every_check(sample: Any, flow: Any) -> None:
    assert set(sample.demo.checks(flow).values()) == {True}


def lose_a_total(flow: Any) -> None:
    flow.totals["u1"] -= 1


def publish_twice(flow: Any) -> None:
    flow.totals_gone_on["u1"] += 1


@pytest.mark.parametrize(
    ("fault", "check"),
    [
        (lambda flow: flow.failures.append(OSError("gone")), "no send failed"),
        (lambda flow: flow.acknowledged_after_ms.pop(), "every record sent was acknowledged once"),
        (lambda flow: flow.handled_after_ms.append(2.0), "every record sent was handled once"),
        (lambda flow: setattr(flow, "handled_fingerprint", 1), "what was handled is what was sent, by checksum"),
        (lambda flow: setattr(flow, "out_of_order", 1), "the order of every key was kept"),
        (lambda flow: flow.handled_by.pop("handle-1"), "both consumers handled records"),
        (lose_a_total, "totals agree with an independent read of the input"),
        (publish_twice, "what went on agrees with it too"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_fault_is_found_by_its_check(sample: Any, flow: Any, fault: Callable[[Any], Any], check: str) -> None:
    fault(flow)
    assert [what for what, holds in sample.demo.checks(flow).items() if not holds] == [check]


def test_a_record_out_of_the_order_of_its_key_is_noticed(sample: Any, flow: Any) -> None:
    flow.job.goes_on = lambda _: False
    for row in (3, 5, 4, 5, 5):
        flow.saw({"n": row}, SimpleNamespace(key=b"u1"), row)
    assert flow.out_of_order == 2
