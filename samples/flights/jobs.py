"""What is sent, and which of it goes on to the second topic: the flights, or a user's JSON lines."""

from __future__ import annotations

import json
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import data
from pydantic import BaseModel

DELAY_MINUTES = 15


class Flight(BaseModel):
    """One scheduled departure. Times in minutes; None where the flight was cancelled."""

    carrier: str
    flight: int
    tailnum: str | None
    origin: str
    dest: str
    time_hour: str
    distance: int
    dep_delay: int | None
    arr_delay: int | None


FIELDS = tuple(Flight.model_fields)


class FlightJob:
    """Every flight, keyed by aircraft; those that left 15 minutes late or more go on; totals are kept per carrier."""

    title = "336,776 flights from New York, 2013"
    model = Flight

    def records(self) -> Iterator[tuple[str | None, Flight]]:
        for row in data.rows():
            # The other columns are left alone: the model does not have them.
            flight = Flight.model_validate({name: None if row[name] in ("", "NA") else row[name] for name in FIELDS})
            yield flight.tailnum, flight

    def goes_on(self, flight: Flight) -> bool:
        return flight.dep_delay is not None and flight.dep_delay >= DELAY_MINUTES

    def group_of(self, flight: Flight) -> str:
        return flight.carrier

    def fingerprint(self, flight: Flight) -> int:
        return zlib.crc32(flight.model_dump_json().encode())

    def expected(self) -> tuple[Counter[str], Counter[str]]:
        """Totals per carrier by an independent read of the CSV: all flights, and those that go on."""
        everything: Counter[str] = Counter()
        late: Counter[str] = Counter()
        for row in data.rows():
            everything[row["carrier"]] += 1
            if row["dep_delay"] not in ("", "NA") and float(row["dep_delay"]) >= DELAY_MINUTES:
                late[row["carrier"]] += 1
        return everything, late


class JsonLinesJob:
    """A user's JSON lines, keyed by a field of theirs; all that have it go on; totals are kept per key."""

    model = dict[str, Any]

    def __init__(self, path: Path, key: str | None) -> None:
        self.title = str(path)
        self._path = path
        self._key = key

    def look(self) -> None:
        """Read the whole input once, before anything is started: what is wrong with it ends the program here."""
        everything, keyed = self.expected()
        if not everything:
            raise SystemExit(f"{self._path}: there is no record in it")
        if self._key and not keyed:
            raise SystemExit(f"{self._path}: no record has a field {self._key!r}, which is to be the key")

    def records(self) -> Iterator[tuple[str | None, dict[str, Any]]]:
        for value in data.json_lines(self._path):
            yield self._key_of(value), value

    def goes_on(self, value: dict[str, Any]) -> bool:
        return self._key_of(value) is not None

    def group_of(self, value: dict[str, Any]) -> str:
        return self._key_of(value) or "(no key)"

    def fingerprint(self, value: dict[str, Any]) -> int:
        return zlib.crc32(json.dumps(value, sort_keys=True).encode())

    def _key_of(self, value: dict[str, Any]) -> str | None:
        found = value.get(self._key) if self._key else None
        return None if found is None else str(found)

    def expected(self) -> tuple[Counter[str], Counter[str]]:
        everything: Counter[str] = Counter()
        keyed: Counter[str] = Counter()
        for value in data.json_lines(self._path):
            everything[self.group_of(value)] += 1
            if self.goes_on(value):
                keyed[self.group_of(value)] += 1
        return everything, keyed


Job = FlightJob | JsonLinesJob
