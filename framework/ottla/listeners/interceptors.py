"""What an application has done around each delivery: records looked at, replaced, dropped, timed, counted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ottla_wire.records import ConsumerRecord


class RecordInterceptor:
    """Surrounds each call of a listener that takes one record (Spring: RecordInterceptor). Override what you need.

    Methods run on the listener's thread, or in its task, where they may be `async def`, too. Around a transactional
    listener they are inside the transaction. Each method of several interceptors is called in the order of these.
    """

    def intercept(self, record: ConsumerRecord, consumer: Any) -> Any:
        """Before the listener. Gives the record that it is to have, or None: it is not called, the record is done with.

        What it raises counts as raised by the listener.
        """
        return record

    def success(self, record: ConsumerRecord, consumer: Any) -> Any:
        """The listener has returned. What this raises counts as raised by the listener, too."""

    def failure(self, record: ConsumerRecord, error: BaseException, consumer: Any) -> Any:
        """The listener has raised, or an interceptor. What this raises is logged."""

    def after_record(self, record: ConsumerRecord, consumer: Any) -> Any:
        """In the end, in each case. What this raises is logged."""


class BatchInterceptor:
    """Surrounds each call of a listener that takes a list (Spring: BatchInterceptor). See RecordInterceptor."""

    def intercept(self, records: Sequence[ConsumerRecord], consumer: Any) -> Any:
        """Before the listener. Gives as many records as came, in their order; or None: the batch is done with.

        To drop some of the records use the listener's `filter`.
        """
        return records

    def success(self, records: Sequence[ConsumerRecord], consumer: Any) -> Any:
        """See RecordInterceptor."""

    def failure(self, records: Sequence[ConsumerRecord], error: BaseException, consumer: Any) -> Any:
        """See RecordInterceptor."""

    def after_batch(self, records: Sequence[ConsumerRecord], consumer: Any) -> Any:
        """See RecordInterceptor."""


Interceptor = RecordInterceptor | BatchInterceptor
