"""ListGroups (key 16): the groups that this broker coordinates.

4 states, and a filter for them (KIP-518). 5 types, and a filter for them (KIP-848). While a partition is loading the
list would not be complete: COORDINATOR_LOAD_IN_PROGRESS.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ottla_wire.messages.list_groups import ListGroupsRequest, ListGroupsResponse

if TYPE_CHECKING:
    from ottla_broker.broker import Broker
    from ottla_broker.context import RequestContext


def handle(broker: Broker, context: RequestContext, request: ListGroupsRequest) -> ListGroupsResponse:
    """List the groups that pass the filters."""
    return ListGroupsResponse(groups=broker.groups.list_groups(request.states_filter, request.types_filter))
