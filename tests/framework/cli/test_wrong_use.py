"""What is wrong on a command line is one clear sentence and an exit code that is not 0."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import pytest

from ottla import cli

NOBODY = "127.0.0.1:1"


@pytest.fixture
def wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a command line; gives its exit code and what it said on standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "shop.py").write_text("number = 1\n")

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["ottla", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert isinstance(ended.value.code, int)
        output = capsys.readouterr()
        assert output.out == ""
        return ended.value.code, output.err

    yield run
    sys.modules.pop("shop", None)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("run", "shop"), "'shop' names no application: write MODULE:APP, such as shop:app"),
        (("run", "nowhere:app"), "there is no module 'nowhere' in "),
        (("run", "shop:app"), "there is no 'app' in the module 'shop'"),
        (("run", "shop:number"), "shop.number is not an Ottla application but int"),
        (("topics", "list", "-b", "nonsense"), "'nonsense' is not HOST:PORT"),
        (("topics", "list", "-b", "localhost:99999"), "99999"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_it_says_what_is_wrong_in_one_line(wrong: Any, arguments: tuple[str, ...], sentence: str) -> None:
    code, errors = wrong(*arguments)
    assert code == 1
    assert sentence in errors
    assert errors.startswith("ottla: ")
    assert errors.count("\n") == 1


@pytest.mark.parametrize(
    "arguments", [("topics", "list", "--jsno"), ("produse", "t"), ("run", "shop:app", "--workers", "0")]
)
def test_an_unknown_option_command_or_value_is_named(wrong: Any, arguments: tuple[str, ...]) -> None:
    code, errors = wrong(*arguments)
    assert code == 2
    assert any(word in errors for word in ("--jsno", "produse", "--workers"))


@pytest.mark.parametrize(
    "arguments",
    [("topics", "list"), ("groups", "list"), ("consume", "t")],
    ids=lambda value: " ".join(value),
)
@pytest.mark.slow
def test_an_address_where_nobody_listens_is_named_with_the_reason(wrong: Any, arguments: tuple[str, ...]) -> None:
    code, errors = wrong(*arguments, "-b", NOBODY, "--timeout", "0.3")
    last = errors.splitlines()[-1]
    assert code == 1
    assert NOBODY in last
    assert "cannot be reached" in last


@pytest.mark.slow
def test_records_that_cannot_be_sent_in_time_name_it_too(wrong: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("a\n"))
    code, errors = wrong("produce", "t", "-b", NOBODY, "--timeout", "0.5")
    last = errors.splitlines()[-1]
    assert code == 1
    assert "within 500 ms" in last
    assert f"({NOBODY}) cannot be reached" in last
