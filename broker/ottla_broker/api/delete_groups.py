"""DeleteGroups (key 42): delete groups without members, and their offsets.

Versions 0 to 2 say the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ottla_broker.api import error_code_of
from ottla_broker.coordinator.pendings import gather, recover
from ottla_wire.messages.delete_groups import DeletableGroupResult, DeleteGroupsRequest, DeleteGroupsResponse

if TYPE_CHECKING:
    from ottla_broker.broker import Broker
    from ottla_broker.context import RequestContext
    from ottla_broker.pending import Pending


def handle(broker: Broker, context: RequestContext, request: DeleteGroupsRequest) -> Pending[DeleteGroupsResponse]:
    """Delete each group for itself; a name that comes twice is one group."""
    results = [_delete(broker, context, group_id) for group_id in dict.fromkeys(request.groups_names)]
    return gather(results).then(lambda deleted: DeleteGroupsResponse(results=deleted))


def error_response(request: DeleteGroupsRequest, code: int, message: str | None) -> DeleteGroupsResponse:
    """The answer to a request that failed as a whole: every group carries the error."""
    return DeleteGroupsResponse(
        results=[DeletableGroupResult(group_id=group_id, error_code=code) for group_id in request.groups_names]
    )


def _delete(broker: Broker, context: RequestContext, group_id: str) -> Pending[DeletableGroupResult]:
    deleted = broker.groups.delete_group(context, group_id).then(lambda _: DeletableGroupResult(group_id=group_id))
    return recover(deleted, lambda error: DeletableGroupResult(group_id=group_id, error_code=error_code_of(error)))
