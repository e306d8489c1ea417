"""ListTransactions (key 66, KIP-664): the transactional ids that this broker coordinates.

1 a filter by duration (KIP-994), 2 a filter by a regular expression for the whole id (KIP-1152). While a partition is
loading the list would not be complete: COORDINATOR_LOAD_IN_PROGRESS.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ottla_broker.coordinator.transaction_queries import TransactionFilter, states_named
from ottla_broker.linear_pattern import LinearPattern, PatternError
from ottla_wire.errors import InvalidRegularExpression
from ottla_wire.messages.list_transactions import ListTransactionsRequest, ListTransactionsResponse

if TYPE_CHECKING:
    from ottla_broker.broker import Broker
    from ottla_broker.context import RequestContext
    from ottla_broker.pending import Pending


def handle(
    broker: Broker, context: RequestContext, request: ListTransactionsRequest
) -> Pending[ListTransactionsResponse]:
    """List the ids that pass the filters."""
    states, unknown = states_named(request.state_filters)
    wanted = TransactionFilter(
        states,
        frozenset(request.producer_id_filters),
        request.duration_filter,
        _compiled(request.transactional_id_pattern),
    )
    return broker.transactions.list_transactions(context, wanted).then(
        lambda found: ListTransactionsResponse(unknown_state_filters=unknown, transaction_states=found)
    )


def _compiled(pattern: str | None) -> LinearPattern | None:
    if not pattern:
        return None
    try:
        return LinearPattern(pattern)
    except PatternError as error:
        raise InvalidRegularExpression(
            f"Transaction ID pattern `{pattern}` is not a valid regular expression: {error}."
        ) from None
