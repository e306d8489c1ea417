"""AdminClient and AsyncAdminClient: topics, configurations, groups and offsets of a cluster, in two faces."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final, Self

from ottla.client.admin_groups import GroupsAdmin
from ottla.client.admin_transactions import TransactionsAdmin
from ottla.client.admin_types import (
    AbortTransactionSpec,
    ClusterDescription,
    ConfigChange,
    ConfigEntry,
    ConfigKind,
    ConfigOperation,
    ConfigResource,
    CreatedTopic,
    EpochEndDescription,
    GroupDescription,
    GroupListing,
    HangingTransaction,
    MemberDescription,
    NewTopic,
    OffsetInfo,
    OffsetSpec,
    PartitionDescription,
    ProducerDescription,
    SomeFailed,
    TopicDescription,
    TopicListing,
    TransactionDescription,
    TransactionListing,
)
from ottla.client.backoff import Backoff
from ottla.client.config import AdminConfig, resolve
from ottla.client.engine import Engine
from ottla.client.faces import awaited, blocking

_numbers: Final = itertools.count(1)


class AdminCore(TransactionsAdmin, GroupsAdmin):
    """Everything that both faces offer."""


class _Admin:
    """What both faces share: where the core and the engine come from."""

    def __init__(
        self, config: Mapping[str, Any] | None = None, /, *, engine: Engine | None = None, **settings: Any
    ) -> None:
        self.config = resolve(AdminConfig, config, settings)
        if not self.config.client_id:
            self.config = replace(self.config, client_id=f"ottla-admin-{next(_numbers)}")
        self._owns_engine = engine is None
        self._engine = engine if engine is not None else Engine(self.config, name=self.config.client_id)
        backoff = Backoff(self.config.retry_backoff_ms, self.config.retry_backoff_max_ms, random.Random())
        self._admin_core = AdminCore(self._engine, self.config, backoff)

    @property
    def _core(self) -> AdminCore:
        return self._admin_core


class AdminClient(_Admin):
    """Looks after a cluster, for threads. Thread-safe. Each method takes a `timeout` in seconds.

    A call for several items that fails for some raises `SomeFailed`, which holds errors and results by item; a call for
    one item raises that item's error.

    Args:
        config: settings in a mapping.
        engine: the I/O thread to share with other clients; the client's own, if not given.
        settings: settings as keywords; they win over the mapping.

    Raises:
        ConfigError: a setting is unknown or wrong.
    """

    create_topics = blocking(AdminCore.create_topics)
    delete_topics = blocking(AdminCore.delete_topics)
    create_partitions = blocking(AdminCore.create_partitions)
    list_topics = blocking(AdminCore.list_topics)
    describe_topics = blocking(AdminCore.describe_topics)
    describe_cluster = blocking(AdminCore.describe_cluster)
    describe_configs = blocking(AdminCore.describe_configs)
    alter_configs = blocking(AdminCore.alter_configs)
    list_offsets = blocking(AdminCore.list_offsets)
    delete_records = blocking(AdminCore.delete_records)
    list_groups = blocking(AdminCore.list_groups)
    describe_groups = blocking(AdminCore.describe_groups)
    delete_groups = blocking(AdminCore.delete_groups)
    list_group_offsets = blocking(AdminCore.list_group_offsets)
    alter_group_offsets = blocking(AdminCore.alter_group_offsets)
    delete_group_offsets = blocking(AdminCore.delete_group_offsets)
    list_transactions = blocking(AdminCore.list_transactions)
    describe_transactions = blocking(AdminCore.describe_transactions)
    describe_producers = blocking(AdminCore.describe_producers)
    fence_producers = blocking(AdminCore.fence_producers)
    abort_transaction = blocking(AdminCore.abort_transaction)
    find_hanging_transactions = blocking(AdminCore.find_hanging_transactions)

    def close(self, timeout: float | None = None) -> None:
        """Close the connections, if the engine is the client's own."""
        if self._owns_engine:
            self._engine.close(timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class AsyncAdminClient(_Admin):
    """The same, awaited, from any event loop."""

    create_topics = awaited(AdminCore.create_topics)
    delete_topics = awaited(AdminCore.delete_topics)
    create_partitions = awaited(AdminCore.create_partitions)
    list_topics = awaited(AdminCore.list_topics)
    describe_topics = awaited(AdminCore.describe_topics)
    describe_cluster = awaited(AdminCore.describe_cluster)
    describe_configs = awaited(AdminCore.describe_configs)
    alter_configs = awaited(AdminCore.alter_configs)
    list_offsets = awaited(AdminCore.list_offsets)
    delete_records = awaited(AdminCore.delete_records)
    list_groups = awaited(AdminCore.list_groups)
    describe_groups = awaited(AdminCore.describe_groups)
    delete_groups = awaited(AdminCore.delete_groups)
    list_group_offsets = awaited(AdminCore.list_group_offsets)
    alter_group_offsets = awaited(AdminCore.alter_group_offsets)
    delete_group_offsets = awaited(AdminCore.delete_group_offsets)
    list_transactions = awaited(AdminCore.list_transactions)
    describe_transactions = awaited(AdminCore.describe_transactions)
    describe_producers = awaited(AdminCore.describe_producers)
    fence_producers = awaited(AdminCore.fence_producers)
    abort_transaction = awaited(AdminCore.abort_transaction)
    find_hanging_transactions = awaited(AdminCore.find_hanging_transactions)

    async def close(self, timeout: float | None = None) -> None:
        """Close the connections, if the engine is the client's own."""
        if self._owns_engine:
            await asyncio.to_thread(self._engine.close, timeout)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()


__all__ = [
    "AbortTransactionSpec",
    "AdminClient",
    "AsyncAdminClient",
    "ClusterDescription",
    "ConfigChange",
    "ConfigEntry",
    "ConfigKind",
    "ConfigOperation",
    "ConfigResource",
    "CreatedTopic",
    "EpochEndDescription",
    "GroupDescription",
    "GroupListing",
    "HangingTransaction",
    "MemberDescription",
    "NewTopic",
    "OffsetInfo",
    "OffsetSpec",
    "PartitionDescription",
    "ProducerDescription",
    "SomeFailed",
    "TopicDescription",
    "TopicListing",
    "TransactionDescription",
    "TransactionListing",
]
