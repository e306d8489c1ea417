"""LeaveGroup (key 13): members leave, or an administrator removes them.

Until 2 one member, whose error is the answer's; from 3 on several, each with its own error, static ones by their
instance id too (KIP-345). 5 a reason (KIP-800).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ottla_broker.api import error_code_of
from ottla_broker.coordinator.pendings import recover
from ottla_wire.errors import UnknownMemberId
from ottla_wire.messages.leave_group import LeaveGroupRequest, LeaveGroupResponse, MemberIdentity, MemberResponse

if TYPE_CHECKING:
    from ottla_broker.broker import Broker
    from ottla_broker.context import RequestContext
    from ottla_broker.pending import Pending

_BATCHED_SINCE = 3


def handle(broker: Broker, context: RequestContext, request: LeaveGroupRequest) -> Pending[LeaveGroupResponse]:
    """Remove the members."""
    batched = context.api_version >= _BATCHED_SINCE
    if not batched:
        request.members = [MemberIdentity(member_id=request.member_id)]

    def refused(error: Exception) -> LeaveGroupResponse:
        if not isinstance(error, UnknownMemberId):
            return LeaveGroupResponse(error_code=error_code_of(error), members=[])
        # There is no such group, so each of the members is unknown.
        return LeaveGroupResponse(
            members=[
                MemberResponse(
                    member_id=member.member_id, group_instance_id=member.group_instance_id, error_code=error.code
                )
                for member in request.members
            ]
        )

    def for_version(response: LeaveGroupResponse) -> LeaveGroupResponse:
        if batched or response.error_code:
            return response
        return LeaveGroupResponse(error_code=response.members[0].error_code, members=[])

    return recover(broker.groups.leave_group(context, request), refused).then(for_version)
