"""The harness of the benchmarks: rounds, ratios, and one smallest run of everything between them."""

from __future__ import annotations

import importlib
import io
import json
from pathlib import Path
from types import ModuleType

import pytest
from rich.console import Console

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module("benchmarks.run")


@pytest.fixture
def figures(run: ModuleType) -> ModuleType:
    return importlib.import_module("benchmarks.figures")


def test_ratios_compare_runs_of_the_same_round(figures: ModuleType) -> None:
    result = figures.Result("produce", "Ottla", "theirs")
    # the second round was ten times slower for both: a ratio of medians would not be 2
    result.runs["mine"] = [{"records": 200, "seconds": 1.0}, {"records": 20, "seconds": 1.0}]
    result.runs["theirs"] = [{"records": 100, "seconds": 1.0}, {"records": 10, "seconds": 1.0}]

    mine, theirs = result.rows()

    assert (mine["ratio_low"], mine["ratio"], mine["ratio_high"]) == (2.0, 2.0, 2.0)
    assert theirs["ratio"] == 1.0
    assert (mine["slowest"], mine["records_per_second"], mine["fastest"]) == (20.0, 110.0, 200.0)


def test_a_pair_goes_before_the_baseline(figures: ModuleType) -> None:
    result = figures.Result("broker", "as named", "nobody", pairs={"mine, all": "theirs, all"})
    result.runs["mine, all"] = [{"records": 10, "seconds": 1.0}]
    result.runs["theirs, all"] = [{"records": 20, "seconds": 1.0}]

    assert result.rows()[0]["ratio"] == 0.5


@pytest.mark.parametrize(
    ("client_cpu", "broker_cpu", "bound"),
    [(0.95, 0.2, "client"), (0.4, 0.9, "broker"), (0.4, 0.4, "waiting"), (1.1, 1.0, "client and broker")],
)
def test_a_row_says_which_process_was_busy_all_the_time(
    figures: ModuleType, client_cpu: float, broker_cpu: float, bound: str
) -> None:
    result = figures.Result("produce", "Ottla", "")
    result.runs["mine"] = [{"records": 10, "seconds": 1.0, "cpu_seconds": client_cpu, "broker_cpu_seconds": broker_cpu}]

    assert figures.bound_by(result.rows()[0]) == bound


def test_every_client_takes_every_place_in_the_order(run: ModuleType) -> None:
    orders = [run._rotated(["a", "b", "c"], number) for number in range(3)]

    assert orders == [["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"]]


def test_an_unknown_scenario_is_refused_by_name(run: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run.parse(["--only", "produce,prodduce"])

    assert "--only: prodduce is none of produce, consume" in capsys.readouterr().err


def test_a_peer_that_is_not_installed_is_named_in_the_table(
    run: ModuleType, figures: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(run._PACKAGES, "aiokafka", "not_installed_here")
    result = figures.Result("produce", "Ottla", "", missing={"aiokafka": run._missing("aiokafka")})
    result.runs["ottla"] = [{"records": 10, "seconds": 1.0}]
    console = Console(file=io.StringIO(), width=160)

    figures.show(console, result)

    assert "the Python package not_installed_here is not installed" in console.file.getvalue()


@pytest.mark.slow
def test_the_smallest_round_measures_our_producer_and_consumer(
    run: ModuleType, figures: ModuleType, tmp_path: Path
) -> None:
    options = run.Options(rounds=1, records=1000, broker="ours", only=("produce", "consume"), clients=("ottla",))

    results = run.measure_all(options, Console(file=io.StringIO()))
    figures.write(tmp_path / "results.json", results)

    assert [result.scenario for result in results] == [
        "produce 100 B",
        "produce 1 KB",
        "produce 1 KB, one partition, 50 us of work",
        "consume 100 B",
        "consume 1 KB",
    ]
    for result in results:
        (measured,) = result.runs["ottla"]
        assert 0 < measured["records"] <= 2000
        assert measured["seconds"] > 0
        assert measured["cpu_seconds"] > 0
    assert len(json.loads((tmp_path / "results.json").read_text())["results"]) == 5


@pytest.mark.slow
def test_the_smallest_round_measures_the_stations_of_a_send(run: ModuleType) -> None:
    mine = ("stations", "ottla, idle")
    options = run.Options(rounds=1, records=2000, broker="ours", only=("send",), clients=mine)

    stations, awaited = run.measure_all(options, Console(file=io.StringIO()))

    (found,) = stations.runs["stations"]
    assert all(found[name] > 0 for name in found)
    assert {"send_ns", "send_text_ns", "send_model_ns", "template_ns", "callback_ns"} <= set(found)
    assert awaited.runs["ottla, idle"][0]["latency_ms"] > 0


@pytest.mark.slow
def test_the_smallest_round_measures_our_transactions(run: ModuleType) -> None:
    mine = ("ottla, template", "transactions", "exactly")
    options = run.Options(rounds=1, records=1000, broker="ours", only=("transactions", "exactly-once"), clients=mine)

    results = run.measure_all(options, Console(file=io.StringIO()))

    assert [(result.scenario, *result.runs) for result in results] == [
        ("transactions of one record", "ottla, template"),
        ("transactions of 100 ms", "transactions of 100 ms"),
        ("exactly-once listener", "exactly once"),
    ]
    assert all(measured["records"] >= 1000 for result in results for (measured,) in result.runs.values())


def test_small_differences_get_more_rounds_unless_one_is_asked_for(run: ModuleType) -> None:
    scenario = run.Scenario("transactions of 100 ms", "benchmarks.transaction_throughput", least_rounds=11)

    assert [scenario.rounds(run.Options(rounds=rounds)) for rounds in (1, 7, 15)] == [1, 11, 15]
