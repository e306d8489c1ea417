"""Heartbeat (key 12): a member is alive; the answer tells it when to join again.

3 static members (KIP-345).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ottla_broker.api import error_code_of
from ottla_broker.coordinator.pendings import recover
from ottla_wire.errors import CoordinatorLoadInProgress
from ottla_wire.messages.heartbeat import HeartbeatRequest, HeartbeatResponse

if TYPE_CHECKING:
    from ottla_broker.broker import Broker
    from ottla_broker.context import RequestContext
    from ottla_broker.pending import Pending


def handle(broker: Broker, context: RequestContext, request: HeartbeatRequest) -> Pending[HeartbeatResponse]:
    """Answer without error while the group is loading: the member's session starts when it is loaded."""

    def refused(error: Exception) -> HeartbeatResponse:
        loading = isinstance(error, CoordinatorLoadInProgress)
        return HeartbeatResponse(error_code=0 if loading else error_code_of(error))

    return recover(broker.groups.heartbeat(context, request), refused)
