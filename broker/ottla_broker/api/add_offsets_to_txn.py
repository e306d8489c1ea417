"""AddOffsetsToTxn (key 25): the offsets of a group join a transaction (KIP-98).

What joins is the partition of `__consumer_offsets` that the group lives in. Needless in transactions version 2, where
TxnOffsetCommit does it. Version 2 knows PRODUCER_FENCED.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ottla_broker.api.transaction_errors import code_for_version
from ottla_broker.controller.topic_names import OFFSETS_TOPIC
from ottla_broker.coordinator.transaction_id import ProducerIdAndEpoch
from ottla_broker.coordinator.transaction_state import TRANSACTIONS_V1
from ottla_wire.messages.add_offsets_to_txn import AddOffsetsToTxnRequest, AddOffsetsToTxnResponse

if TYPE_CHECKING:
    from ottla_broker.broker import Broker
    from ottla_broker.context import RequestContext
    from ottla_broker.pending import Pending

_FENCED_SINCE: Final = 2


def handle(
    broker: Broker, context: RequestContext, request: AddOffsetsToTxnRequest
) -> Pending[AddOffsetsToTxnResponse]:
    """Add the partition."""
    partition = (OFFSETS_TOPIC, broker.groups.partition_for(request.group_id))
    added = broker.transactions.add_partitions_as(
        TRANSACTIONS_V1,
        request.transactional_id,
        ProducerIdAndEpoch(request.producer_id, request.producer_epoch),
        [partition],
        verify_only=False,
        now_ms=context.now_ms,
    )
    return added.then(
        lambda codes: AddOffsetsToTxnResponse(
            error_code=code_for_version(codes[partition], context, fenced_since=_FENCED_SINCE)
        )
    )
