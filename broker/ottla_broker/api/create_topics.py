"""CreateTopics (key 19): decided and recorded by the controller.

Versions: 5 answers with the topic's configuration and size, 7 with its id. The timeout is not looked at: the answer
leaves when the records are committed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ottla_broker.pending import Pending
from ottla_wire.messages.create_topics import CreatableTopicResult, CreateTopicsRequest, CreateTopicsResponse

if TYPE_CHECKING:
    from ottla_broker.broker import Broker
    from ottla_broker.context import RequestContext


def handle(broker: Broker, context: RequestContext, request: CreateTopicsRequest) -> Pending[CreateTopicsResponse]:
    """Create the topics, or only check them."""
    return broker.controller.create_topics(request)


def error_response(request: CreateTopicsRequest, code: int, message: str | None) -> CreateTopicsResponse:
    """The answer to a request that failed as a whole: every topic carries the error."""
    return CreateTopicsResponse(
        topics=[CreatableTopicResult(name=t.name, error_code=code, error_message=message) for t in request.topics]
    )
