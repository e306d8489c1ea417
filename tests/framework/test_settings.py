"""Settings from arguments, environment and file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ottla import Ottla
from ottla.errors import ConfigError
from ottla.settings import load

ROOT = Path(__file__).resolve().parents[2]
MISTAKES_THAT_ARE_TESTED = {"OTTLA_BOOTSTRAP_SERVER", "OTTLA_NONSENSE", "OTTLA_XYZ"}


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_arguments_win_over_the_environment_and_that_over_the_file(
    empty_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (empty_folder / "ottla.toml").write_text('group = "file"\nname = "file"\nbootstrap_servers = "file:1"\n')
    monkeypatch.setenv("OTTLA_NAME", "environment")
    monkeypatch.setenv("OTTLA_BOOTSTRAP_SERVERS", "environment:1")
    settings = load(bootstrap_servers="argument:1")
    assert (settings.bootstrap_servers, settings.name, settings.group) == ("argument:1", "environment", "file")


def test_client_settings_come_from_nested_variables_and_tables(
    empty_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (empty_folder / "ottla.toml").write_text("[consumer]\nmax_poll_records = 100\n")
    monkeypatch.setenv("OTTLA_PRODUCER__LINGER_MS", "20")
    app = Ottla("localhost:1", name="x")
    assert app.producer_factory.settings()["linger_ms"] == "20"
    assert app.consumer_factory.settings()["max_poll_records"] == 100


def test_an_unknown_variable_is_refused_with_the_nearest_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTTLA_BOOTSTRAP_SERVER", "x:1")
    with pytest.raises(ConfigError, match="OTTLA_BOOTSTRAP_SERVER is not known; did you mean OTTLA_BOOTSTRAP_SERVERS"):
        load()


def test_a_variable_that_is_near_to_none_is_refused_with_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTTLA_XYZ", "1")
    with pytest.raises(
        ConfigError, match=r"OTTLA_XYZ is not known; there are: OTTLA_BOOTSTRAP_SERVERS, .*OTTLA_STATE_DIR"
    ):
        load()


def variables_of_a_checkout() -> set[str]:
    """Every variable that the package, its tests, benchmarks, samples and the files that run them name."""
    files = [ROOT / "Makefile", ROOT / ".ci" / "run"]
    for folder in ("framework", "broker", "tests", "benchmarks", "samples"):
        files += (ROOT / folder).rglob("*.py")
    names = {name for file in files for name in re.findall(r"\bOTTLA_[A-Z_]*[A-Z]\b", file.read_text())}
    return names - MISTAKES_THAT_ARE_TESTED


def test_every_variable_that_a_checkout_uses_may_be_set_where_an_application_starts(
    monkeypatch: pytest.MonkeyPatch, empty_folder: Path
) -> None:
    (empty_folder / "settings.toml").touch()
    names = variables_of_a_checkout()
    assert {"OTTLA_CRASH_ROUNDS", "OTTLA_REQUIRE", "OTTLA_PURE", "OTTLA_DATA"} <= names
    for name in names:
        if "__" not in name and name not in ("OTTLA_PRODUCER", "OTTLA_CONSUMER"):
            monkeypatch.setenv(name, "settings.toml")
    load()


def test_an_unknown_name_in_the_file_is_refused_with_the_nearest_name(empty_folder: Path) -> None:
    (empty_folder / "ottla.toml").write_text('grup = "x"\n')
    with pytest.raises(ConfigError, match="'grup' is not known; did you mean group"):
        load()


def test_a_settings_file_that_is_named_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTTLA_SETTINGS", "nowhere.toml")
    with pytest.raises(ConfigError, match=r"nowhere\.toml"):
        load()


def test_an_unknown_client_setting_is_refused_when_the_client_is_made() -> None:
    app = Ottla("localhost:1", producer={"lingr_ms": 5})
    with pytest.raises(ConfigError, match="linger"):
        app.template.send("orders", "x")
    app.stop()


def test_nothing_is_read_before_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTTLA_NONSENSE", "1")
    app = Ottla()
    assert app.template is not None
    with pytest.raises(ConfigError, match="OTTLA_NONSENSE"):
        app.start()
