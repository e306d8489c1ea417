"""AlterConfigs (key 33): replace everything that is set on a resource. The old API; see IncrementalAlterConfigs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ottla_broker.controller.alter_results import all_refused
from ottla_broker.pending import Pending
from ottla_wire.messages.alter_configs import AlterConfigsRequest, AlterConfigsResourceResponse, AlterConfigsResponse

if TYPE_CHECKING:
    from ottla_broker.broker import Broker
    from ottla_broker.context import RequestContext


def handle(broker: Broker, context: RequestContext, request: AlterConfigsRequest) -> Pending[AlterConfigsResponse]:
    """Replace configurations of topics and brokers, or only check the replacements."""
    return broker.controller.alter_configs(request)


def error_response(request: AlterConfigsRequest, code: int, message: str | None) -> AlterConfigsResponse:
    """The answer to a request that failed as a whole: every resource carries the error."""
    return AlterConfigsResponse(responses=all_refused(AlterConfigsResourceResponse, request, code, message))
