"""InitProducerId (key 22): a producer id for an idempotent producer, from any broker; with a transactional id, from
its coordinator, and the end of its older producers.

Versions: 3 lets a producer name the id and epoch it has (KIP-360), 4 knows PRODUCER_FENCED. Version 6 is unstable in
Kafka and not advertised.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ottla_broker.api.transaction_errors import for_version
from ottla_wire.errors import InvalidRequest
from ottla_wire.messages.init_producer_id import InitProducerIdRequest, InitProducerIdResponse

if TYPE_CHECKING:
    from ottla_broker.broker import Broker
    from ottla_broker.context import RequestContext
    from ottla_broker.pending import Pending

_NONE: Final = -1
_FENCED_SINCE: Final = 4


def handle(broker: Broker, context: RequestContext, request: InitProducerIdRequest) -> Pending[InitProducerIdResponse]:
    """Answer with a producer id and its epoch."""
    if (request.producer_id == _NONE) != (request.producer_epoch == _NONE):
        raise InvalidRequest("a producer id and its epoch are given together")
    if request.transactional_id is None:
        return broker.controller.producer_ids.next().then(
            lambda producer_id: InitProducerIdResponse(producer_id=producer_id, producer_epoch=0)
        )
    started = broker.transactions.init_producer_id(context, request)
    return for_version(started, context, fenced_since=_FENCED_SINCE).then(
        lambda producer: InitProducerIdResponse(
            producer_id=producer.producer_id, producer_epoch=producer.producer_epoch
        )
    )


def error_response(request: InitProducerIdRequest, code: int, message: str | None) -> InitProducerIdResponse:
    """The answer to a request that failed."""
    return InitProducerIdResponse(error_code=code, producer_id=_NONE, producer_epoch=_NONE)
