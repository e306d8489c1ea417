"""DescribeTransactions (key 65, KIP-664): state, producer and partitions of transactional ids.

Whoever asks for it (a tag of ours) is also told why the last epoch of an id ended.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ottla_broker.api import error_code_of
from ottla_broker.coordinator.pendings import gather, recover
from ottla_wire.messages.describe_transactions import (
    DescribeTransactionsRequest,
    DescribeTransactionsResponse,
    TransactionState,
)

if TYPE_CHECKING:
    from ottla_broker.broker import Broker
    from ottla_broker.context import RequestContext
    from ottla_broker.pending import Pending


def handle(
    broker: Broker, context: RequestContext, request: DescribeTransactionsRequest
) -> Pending[DescribeTransactionsResponse]:
    """Describe the ids, each with an error of its own."""
    described = gather([_describe(broker, context, request, each) for each in request.transactional_ids])
    return described.then(lambda states: DescribeTransactionsResponse(transaction_states=states))


def error_response(
    request: DescribeTransactionsRequest, code: int, message: str | None
) -> DescribeTransactionsResponse:
    """The answer to a request that failed as a whole: every id carries the error."""
    states = [_refused(transactional_id, code) for transactional_id in request.transactional_ids]
    return DescribeTransactionsResponse(transaction_states=states)


def _describe(
    broker: Broker, context: RequestContext, request: DescribeTransactionsRequest, transactional_id: str
) -> Pending[TransactionState]:
    described = broker.transactions.describe_transaction(
        context, transactional_id, with_epoch_end=request.describe_epoch_end
    )
    return recover(described, lambda error: _refused(transactional_id, error_code_of(error)))


def _refused(transactional_id: str, code: int) -> TransactionState:
    return TransactionState(error_code=code, transactional_id=transactional_id)
