"""InitProducerId (key 22): a producer id for an idempotent producer, from any broker.

Versions: 3 lets a producer name the id and epoch it has (KIP-360), 4 knows PRODUCER_FENCED. Version 6 is unstable in
Kafka and not advertised.

With a transactional id the request belongs to the transaction coordinator: `broker.transactions`. While that is None
the answer is COORDINATOR_NOT_AVAILABLE, as from a broker whose coordinator has not started; the log says why. (A client
does not come so far: FindCoordinator has told it the same.)
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from ottla_broker.pending import Pending
from ottla_wire.errors import CoordinatorNotAvailable, InvalidRequest
from ottla_wire.messages.init_producer_id import InitProducerIdRequest, InitProducerIdResponse

if TYPE_CHECKING:
    from ottla_broker.broker import Broker
    from ottla_broker.context import RequestContext

logger = logging.getLogger(__name__)

_NONE: Final = -1


def handle(
    broker: Broker, context: RequestContext, request: InitProducerIdRequest
) -> InitProducerIdResponse | Pending[InitProducerIdResponse]:
    """Answer with a producer id and its epoch."""
    if (request.producer_id == _NONE) != (request.producer_epoch == _NONE):
        raise InvalidRequest("a producer id and its epoch are given together")
    if request.transactional_id is None:
        return broker.controller.producer_ids.next().then(
            lambda producer_id: InitProducerIdResponse(producer_id=producer_id, producer_epoch=0)
        )
    if not request.transactional_id:
        raise InvalidRequest("a transactional id cannot be empty")
    if broker.transactions is None:
        logger.warning("client %s asks for transactions, which this broker does not have yet", context.client_id)
        raise CoordinatorNotAvailable
    answer: InitProducerIdResponse | Pending[InitProducerIdResponse]
    answer = broker.transactions.init_producer_id(context, request)
    return answer


def error_response(request: InitProducerIdRequest, code: int, message: str | None) -> InitProducerIdResponse:
    """The answer to a request that failed."""
    return InitProducerIdResponse(error_code=code, producer_id=_NONE, producer_epoch=_NONE)
