"""CreatePartitions (key 37): decided and recorded by the controller. The number of partitions only grows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ottla_broker.pending import Pending
from ottla_wire.messages.create_partitions import (
    CreatePartitionsRequest,
    CreatePartitionsResponse,
    CreatePartitionsTopicResult,
)

if TYPE_CHECKING:
    from ottla_broker.broker import Broker
    from ottla_broker.context import RequestContext


def handle(
    broker: Broker, context: RequestContext, request: CreatePartitionsRequest
) -> Pending[CreatePartitionsResponse]:
    """Add partitions, or only check whether they could be added."""
    return broker.controller.create_partitions(request)


def error_response(request: CreatePartitionsRequest, code: int, message: str | None) -> CreatePartitionsResponse:
    """The answer to a request that failed as a whole: every topic carries the error."""
    return CreatePartitionsResponse(
        results=[
            CreatePartitionsTopicResult(name=topic.name, error_code=code, error_message=message)
            for topic in request.topics
        ]
    )
