"""IncrementalAlterConfigs (key 44): set, delete, append to and subtract from single configuration keys (KIP-339)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ottla_broker.controller.alter_results import all_refused
from ottla_broker.pending import Pending
from ottla_wire.messages.incremental_alter_configs import (
    AlterConfigsResourceResponse,
    IncrementalAlterConfigsRequest,
    IncrementalAlterConfigsResponse,
)

if TYPE_CHECKING:
    from ottla_broker.broker import Broker
    from ottla_broker.context import RequestContext


def handle(
    broker: Broker, context: RequestContext, request: IncrementalAlterConfigsRequest
) -> Pending[IncrementalAlterConfigsResponse]:
    """Change configurations of topics and brokers, or only check the changes."""
    return broker.controller.incremental_alter_configs(request)


def error_response(
    request: IncrementalAlterConfigsRequest, code: int, message: str | None
) -> IncrementalAlterConfigsResponse:
    """The answer to a request that failed as a whole: every resource carries the error."""
    return IncrementalAlterConfigsResponse(responses=all_refused(AlterConfigsResourceResponse, request, code, message))
