"""DescribeGroups (key 15): state, protocol and members of groups.

3 authorized operations (KIP-430). 4 instance ids (KIP-345). Before 6 a group that does not exist is described as Dead
without an error, then it is GROUP_ID_NOT_FOUND with a message (KIP-1043).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ottla_broker.api import error_code_of
from ottla_wire.errors import GroupIdNotFound, KafkaError
from ottla_wire.messages.describe_groups import DescribedGroup, DescribeGroupsRequest, DescribeGroupsResponse

if TYPE_CHECKING:
    from ottla_broker.broker import Broker
    from ottla_broker.context import RequestContext

_NOT_FOUND_SINCE: Final = 6
_DEAD: Final = "Dead"

# The operations a group knows, as bits of Kafka's AclOperation codes: READ 3, DELETE 6, DESCRIBE 8,
# DESCRIBE_CONFIGS 10, ALTER_CONFIGS 11. Everybody may do all of them until there is an authorizer that says no.
ALL_OPERATIONS: Final = 1 << 3 | 1 << 6 | 1 << 8 | 1 << 10 | 1 << 11


def handle(broker: Broker, context: RequestContext, request: DescribeGroupsRequest) -> DescribeGroupsResponse:
    """Describe the groups, each with an error of its own."""
    return DescribeGroupsResponse(groups=[_describe(broker, context, request, name) for name in request.groups])


def error_response(request: DescribeGroupsRequest, code: int, message: str | None) -> DescribeGroupsResponse:
    """The answer to a request that failed as a whole: every group carries the error."""
    groups = [DescribedGroup(group_id=group_id, error_code=code, members=[]) for group_id in request.groups]
    return DescribeGroupsResponse(groups=groups)


def _describe(broker: Broker, context: RequestContext, request: DescribeGroupsRequest, group_id: str) -> DescribedGroup:
    try:
        group = broker.groups.describe_group(group_id)
    except KafkaError as error:
        return _refused(context, group_id, error)
    if request.include_authorized_operations:
        group.authorized_operations = ALL_OPERATIONS
    return group


def _refused(context: RequestContext, group_id: str, error: KafkaError) -> DescribedGroup:
    missing = isinstance(error, GroupIdNotFound)
    described = DescribedGroup(group_id=group_id, group_state=_DEAD if missing else "", members=[])
    if not missing or context.api_version >= _NOT_FOUND_SINCE:
        described.error_code = error_code_of(error)
    if context.api_version >= _NOT_FOUND_SINCE:
        described.error_message = error.message
    return described
