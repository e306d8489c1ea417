"""DeleteTopics (key 20): decided and recorded by the controller.

Versions: 3 can say that deletion is switched off, 5 has messages, 6 takes topic ids.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ottla_broker.pending import Pending
from ottla_wire.errors import InvalidRequest, TopicDeletionDisabled
from ottla_wire.messages.delete_topics import DeletableTopicResult, DeleteTopicsRequest, DeleteTopicsResponse

if TYPE_CHECKING:
    from ottla_broker.broker import Broker
    from ottla_broker.context import RequestContext


def handle(broker: Broker, context: RequestContext, request: DeleteTopicsRequest) -> Pending[DeleteTopicsResponse]:
    """Delete the topics; raises what is answered for all of them if deletion is switched off."""
    if not broker.config.delete_topic_enable:
        if context.api_version < 3:
            raise InvalidRequest("This version does not support topic deletion.")
        raise TopicDeletionDisabled
    return broker.controller.delete_topics(request)


def error_response(request: DeleteTopicsRequest, code: int, message: str | None) -> DeleteTopicsResponse:
    """The answer to a request that failed as a whole: every topic carries the error."""
    named = [DeletableTopicResult(name=name, error_code=code, error_message=message) for name in request.topic_names]
    states = [
        DeletableTopicResult(name=topic.name, topic_id=topic.topic_id, error_code=code, error_message=message)
        for topic in request.topics
    ]
    return DeleteTopicsResponse(responses=named + states)
