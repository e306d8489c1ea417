"""The inbox: which records have been worked off, in the same database and the same transaction as the work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import BigInteger, Column, Connection, Integer, MetaData, String, Table
from sqlalchemy.dialects import postgresql, sqlite

from ottla import ConsumerRecord


class Inbox:
    """What one consumer group has worked off: a table beside the application's own."""

    def __init__(self, group: str, metadata: MetaData) -> None:
        self.group = group
        self.table = Table(
            "inbox",
            metadata,
            Column("group_id", String(255), primary_key=True),
            Column("topic", String(249), primary_key=True),
            Column("partition_id", Integer, primary_key=True),
            Column("record_offset", BigInteger, primary_key=True),
        )

    @contextmanager
    def handle(self, record: ConsumerRecord, connection: Connection) -> Iterator[bool]:
        """Whether the record is new. That it was here is committed with the work, or rolled back with it.

        A second process that works on the same record waits here for the first one's commit.
        """
        insert = (postgresql if connection.dialect.name == "postgresql" else sqlite).insert(self.table)
        identity = (self.group, record.topic, record.partition, record.offset)
        written = insert.values(identity).on_conflict_do_nothing().returning(self.table.c.record_offset)
        yield connection.execute(written).first() is not None
