"""JoinGroup (key 11): become a member of a classic group, or join its rebalance.

0 has no rebalance time-out (the session's counts). From 4 on a dynamic member must come again with the id it is given
(MEMBER_ID_REQUIRED, KIP-394). 5 static members (KIP-345). 7 protocol type in the answer, and a protocol name that is
null instead of empty. 9 SkipAssignment (KIP-814).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ottla_broker.api import error_code_of
from ottla_broker.coordinator.pendings import recover
from ottla_wire.errors import GroupMaxSizeReached
from ottla_wire.messages.join_group import JoinGroupRequest, JoinGroupResponse

if TYPE_CHECKING:
    from ottla_broker.broker import Broker
    from ottla_broker.context import RequestContext
    from ottla_broker.pending import Pending

_NULL_PROTOCOL_SINCE = 7


def handle(broker: Broker, context: RequestContext, request: JoinGroupRequest) -> Pending[JoinGroupResponse]:
    """Answer when the join phase is over."""

    def refused(error: Exception) -> JoinGroupResponse:
        # A member that has no room in the group does not keep its id.
        member_id = "" if isinstance(error, GroupMaxSizeReached) else request.member_id
        return JoinGroupResponse(error_code=error_code_of(error), protocol_name=None, member_id=member_id, members=[])

    def for_version(response: JoinGroupResponse) -> JoinGroupResponse:
        if context.api_version < _NULL_PROTOCOL_SINCE:
            response.protocol_name = response.protocol_name or ""
        else:
            response.protocol_name = response.protocol_name or None
        return response

    return recover(broker.groups.join_group(context, request), refused).then(for_version)
