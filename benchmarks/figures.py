"""Medians, spreads and ratios of the measured runs, and how they are shown."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

BUSY = 0.85
"""From this share of one core on, a process is taken for what bounds the run."""

Figures = Mapping[str, float]


@dataclass(slots=True)
class Result:
    """All rounds of one scenario against one broker."""

    scenario: str
    broker: str
    baseline: str
    runs: dict[str, list[Figures]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    pairs: dict[str, str] = field(default_factory=dict)
    """Whom a client is compared with where that is not the baseline."""

    def rows(self) -> list[dict[str, Any]]:
        """One row per client, in the order of their first runs."""
        return [self._row(client, runs) for client, runs in self.runs.items() if runs]

    def _row(self, client: str, runs: Sequence[Figures]) -> dict[str, Any]:
        row: dict[str, Any] = {"client": client, "rounds": len(runs)}
        for name in ("import_seconds", "megabytes", "latency_ms", "latency_99_ms"):
            if name in runs[0]:
                row[name] = median(run[name] for run in runs)
        row.update({name: median(run[name] for run in runs) for name in runs[0] if name.endswith("_ns")})
        if "records" not in runs[0]:
            return row | {"start_seconds": median(run["seconds"] for run in runs)}
        rates = [rate(run) for run in runs]
        row |= {"records_per_second": median(rates), "slowest": min(rates), "fastest": max(rates)}
        against = self.runs.get(self.pairs.get(client, self.baseline))
        if against:
            # Rounds are compared pair by pair: what slowed the machine down in a round slowed both down.
            ratios = [rate(mine) / rate(theirs) for mine, theirs in zip(runs, against, strict=False)]
            row |= {"ratio": median(ratios), "ratio_low": min(ratios), "ratio_high": max(ratios)}
        for name in ("cpu_seconds", "java_cpu_seconds", "broker_cpu_seconds"):
            if name in runs[0]:
                row[f"{name}_per_million"] = median(run[name] / run["records"] * 1e6 for run in runs)
                row[f"{name[: -len('_seconds')]}_share"] = median(run[name] / run["seconds"] for run in runs)
        return row


def rate(run: Figures) -> float:
    """Records per second of a run."""
    return run["records"] / run["seconds"]


def median(values: Iterable[float]) -> float:
    """The middle one, as a float."""
    return float(statistics.median(values))


def bound_by(row: Mapping[str, Any]) -> str:
    """Which process was busy all the time: a run that the broker bounds says nothing about its client."""
    if "cpu_share" not in row:
        return ""
    busy = [name for name, share in (("client", "cpu_share"), ("broker", "broker_cpu_share")) if row[share] >= BUSY]
    return " and ".join(busy) or "waiting"


def show(console: Console, result: Result) -> None:
    """Print a scenario's table."""
    table = Table(title=f"{result.scenario} · broker: {result.broker}", title_justify="left")
    rows = result.rows()
    columns = [column for column in _COLUMNS if any(column.key in row for row in rows)]
    table.add_column("")
    for column in columns:
        table.add_column(column.title.format(baseline=result.baseline), justify="right")
    for row in rows:
        table.add_row(row["client"], *(column.text(row) for column in columns))
    for client, reason in result.missing.items():
        table.add_row(client, f"not measured: {reason}")
    console.print(table)


def write(path: Path, results: Iterable[Result], **about: Any) -> None:
    """Write everything, each run included, as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    machine = {"cpus": os.cpu_count(), "python": platform.python_version(), "system": platform.platform()}
    found = [
        {
            "scenario": result.scenario,
            "broker": result.broker,
            "baseline": result.baseline,
            "rows": result.rows(),
            "runs": result.runs,
            "missing": result.missing,
        }
        for result in results
    ]
    path.write_text(json.dumps({"machine": machine, **about, "results": found}, indent=2) + "\n")


@dataclass(frozen=True, slots=True)
class _Column:
    key: str
    title: str
    form: str

    def text(self, row: Mapping[str, Any]) -> str:
        if self.key not in row:
            return ""
        return self.form.format(**row, bound_by=bound_by(row))


_COLUMNS = (
    _Column("records_per_second", "records/s", "{records_per_second:,.0f}"),
    _Column("slowest", "min-max", "{slowest:,.0f}-{fastest:,.0f}"),
    _Column("ratio", "x {baseline}", "{ratio:.2f} ({ratio_low:.2f}-{ratio_high:.2f})"),
    _Column("cpu_seconds_per_million", "client CPU s/M", "{cpu_seconds_per_million:.2f}"),
    _Column("java_cpu_seconds_per_million", "client CPU s/M", "{java_cpu_seconds_per_million:.2f}"),
    _Column("broker_cpu_seconds_per_million", "broker CPU s/M", "{broker_cpu_seconds_per_million:.2f}"),
    _Column("cpu_share", "bound by", "{bound_by}"),
    _Column("latency_ms", "latency ms", "{latency_ms:.2f}"),
    _Column("latency_99_ms", "99 % ms", "{latency_99_ms:.2f}"),
    _Column("import_seconds", "import s", "{import_seconds:.4f}"),
    _Column("start_seconds", "start s", "{start_seconds:.4f}"),
    _Column("megabytes", "memory MB", "{megabytes:.0f}"),
    _Column("nothing_ns", "loop ns", "{nothing_ns:.0f}"),
    _Column("model_to_json_ns", "model to JSON ns", "{model_to_json_ns:.0f}"),
    _Column("send_ns", "send ns", "{send_ns:.0f}"),
    _Column("send_text_ns", "text ns", "{send_text_ns:.0f}"),
    _Column("send_headers_ns", "headers ns", "{send_headers_ns:.0f}"),
    _Column("send_model_ns", "model ns", "{send_model_ns:.0f}"),
    _Column("template_ns", "template ns", "{template_ns:.0f}"),
    _Column("template_model_ns", "template, model ns", "{template_model_ns:.0f}"),
    _Column("callback_ns", "add_callback ns", "{callback_ns:.0f}"),
    _Column("all_threads_ns", "send to ack, all threads ns", "{all_threads_ns:.0f}"),
)
