"""SyncGroup (key 14): get one's share; the leader brings the shares of all.

3 static members (KIP-345). 5 protocol type and name, which must be there and match the group's (KIP-559).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ottla_wire.errors import InconsistentGroupProtocol
from ottla_wire.messages.sync_group import SyncGroupRequest, SyncGroupResponse

if TYPE_CHECKING:
    from ottla_broker.broker import Broker
    from ottla_broker.context import RequestContext
    from ottla_broker.pending import Pending

_PROTOCOL_SINCE = 5


def handle(broker: Broker, context: RequestContext, request: SyncGroupRequest) -> Pending[SyncGroupResponse]:
    """Answer when the leader's assignment is replicated; errors go into the answer's error code."""
    named = request.protocol_type is not None and request.protocol_name is not None
    if context.api_version >= _PROTOCOL_SINCE and not named:
        raise InconsistentGroupProtocol("from version 5 on SyncGroup names the protocol")
    return broker.groups.sync_group(context, request)
