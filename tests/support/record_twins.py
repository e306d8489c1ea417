"""`ottla_wire.records` on either twin in one process, and what is in a batch as text."""

from __future__ import annotations

import hashlib
import importlib
import os
import sys
from functools import cache
from types import ModuleType
from typing import Any

import pytest

PACKAGE = "ottla_wire.records"
TWINS = ["native", "pure"]


@cache
def twin(name: str) -> ModuleType:
    """The package, imported once more, with the twin of this name; skips the test if it was not compiled."""
    import ottla_wire
    import ottla_wire.records as imported

    if imported.native == (name == "native"):
        return imported
    if name == "native" and not os.environ.get("OTTLA_PURE"):
        pytest.skip("the native twin was not compiled")
    kept = {module: sys.modules.pop(module) for module in list(sys.modules) if module.startswith(PACKAGE)}
    environment = os.environ.get("OTTLA_PURE")
    try:
        os.environ["OTTLA_PURE"] = "" if name == "native" else "1"
        loaded = importlib.import_module(PACKAGE)
    finally:
        if environment is None:
            del os.environ["OTTLA_PURE"]
        else:
            os.environ["OTTLA_PURE"] = environment
        for module in [module for module in sys.modules if module.startswith(PACKAGE)]:
            del sys.modules[module]
        sys.modules.update(kept)
        ottla_wire.records = imported
    if loaded.native != (name == "native"):
        pytest.skip("the native twin was not compiled")
    return loaded


def _hex(data: bytes | None) -> str:
    if data is None:
        return "null"
    return data.hex() if len(data) <= 1000 else f"{len(data)}/{hashlib.sha256(data).hexdigest()}"


def dump(records: ModuleType, buffer: Any) -> str:
    """What is in the batches of a buffer, in the words of `java/RecordBatches.java`."""
    lines = []
    for batch in records.iter_batches(buffer, strict=True):
        batch.verify()
        horizon = "none" if batch.delete_horizon_ms is None else batch.delete_horizon_ms
        time = {0: "CreateTime", 1: "LogAppendTime"}[batch.timestamp_type]
        lines.append(
            f"batch base={batch.base_offset} last={batch.last_offset} epoch={batch.leader_epoch} "
            f"codec={batch.compression.name.lower()} time={time} transactional={str(batch.is_transactional).lower()} "
            f"control={str(batch.is_control).lower()} horizon={horizon} max={batch.max_timestamp_ms} "
            f"producer={batch.producer_id}:{batch.producer_epoch} sequence={batch.base_sequence}-{batch.last_sequence} "
            f"count={batch.count} size={batch.size_bytes}"
        )
        for record in batch.records():
            headers = ",".join(f"{name.encode().hex()}:{_hex(value)}" for name, value in record.headers)
            lines.append(
                f"record offset={record.offset} time={record.timestamp_ms} key={_hex(record.key)} "
                f"value={_hex(record.value)} headers={headers}"
            )
    return "".join(line + "\n" for line in lines)
