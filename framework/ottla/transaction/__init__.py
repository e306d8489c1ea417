"""Transactions: `with template.transaction()`, `@transactional`, and what is below them; outbox and inbox.

`producer_pool` and `slots` are the producers and their ids, `transaction` one transaction, `context` which one a thread
or task is part of, `boundaries` how one begins and ends, `blocks` what a user writes. `outbox` and `inbox` are what a
database needs to have a part in it; they need SQLAlchemy, so they are imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ottla.transaction.inbox import Inbox
    from ottla.transaction.outbox import Outbox, OutboxRow
    from ottla.transaction.relay import Relay, RelayState

__all__ = ["Inbox", "Outbox", "OutboxRow", "Relay", "RelayState"]

_HOME_OF = {
    "Inbox": "ottla.transaction.inbox",
    "Outbox": "ottla.transaction.outbox",
    "OutboxRow": "ottla.transaction.outbox",
    "Relay": "ottla.transaction.relay",
    "RelayState": "ottla.transaction.relay",
}


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'ottla.transaction' has no attribute {name!r}")
    try:
        value = getattr(importlib.import_module(home), name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "sqlalchemy":
            raise
        raise ImportError(f"{name} needs SQLAlchemy: pip install 'ottla[database]'") from error
    globals()[name] = value
    return value
