"""EndTxn (key 26): commit or abort a transaction (KIP-98).

Answered as soon as the outcome is certain; the partitions have it a little later. Versions: 2 knows PRODUCER_FENCED, 5
is transactions version 2 (KIP-890): each end has an epoch of its own, and a retry is known as one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ottla_broker.api.transaction_errors import for_version
from ottla_wire.messages.end_txn import EndTxnRequest, EndTxnResponse

if TYPE_CHECKING:
    from ottla_broker.broker import Broker
    from ottla_broker.context import RequestContext
    from ottla_broker.pending import Pending

_FENCED_SINCE: Final = 2


def handle(broker: Broker, context: RequestContext, request: EndTxnRequest) -> Pending[EndTxnResponse]:
    """End the transaction."""
    ended = broker.transactions.end_transaction(context, request)
    return for_version(ended, context, fenced_since=_FENCED_SINCE).then(
        lambda following: EndTxnResponse(producer_id=following.producer_id, producer_epoch=following.producer_epoch)
    )
