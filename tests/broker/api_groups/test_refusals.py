"""A request that is refused before a handler sees it (by the authorizer, say) is answered where clients look."""

from __future__ import annotations

from typing import Any

import pytest

from ottla_broker import api
from ottla_wire.errors import GroupAuthorizationFailed
from ottla_wire.messages import ApiKey, request_class
from ottla_wire.messages.delete_groups import DeleteGroupsRequest
from ottla_wire.messages.describe_groups import DescribeGroupsRequest
from ottla_wire.messages.heartbeat import HeartbeatRequest
from ottla_wire.messages.leave_group import LeaveGroupRequest
from ottla_wire.messages.list_groups import ListGroupsRequest
from ottla_wire.messages.offset_delete import OffsetDeleteRequest
from ottla_wire.messages.offset_fetch import (
    OffsetFetchRequest,
    OffsetFetchRequestGroup,
    OffsetFetchRequestTopic,
)
from ottla_wire.messages.sync_group import SyncGroupRequest
from ottla_wire.schema import Request
from support.groups import TOPIC, Groups, commit_request, error, join_request


class DenyAll:
    def authorize(self, context: Any, request: Any) -> None:
        raise GroupAuthorizationFailed


def requests(version: int, key: int) -> Request:
    single = [OffsetFetchRequestTopic(name=TOPIC, partition_indexes=[0])]
    fetch = (
        OffsetFetchRequest(group_id="g", topics=single, groups=[])
        if version < 8
        else OffsetFetchRequest(groups=[OffsetFetchRequestGroup(group_id="g", topics=None)], topics=[])
    )
    return {
        ApiKey.OFFSET_COMMIT: commit_request(1),
        ApiKey.OFFSET_FETCH: fetch,
        ApiKey.JOIN_GROUP: join_request(),
        ApiKey.HEARTBEAT: HeartbeatRequest(group_id="g"),
        ApiKey.LEAVE_GROUP: LeaveGroupRequest(group_id="g", members=[]),
        ApiKey.SYNC_GROUP: SyncGroupRequest(group_id="g", assignments=[]),
        ApiKey.DESCRIBE_GROUPS: DescribeGroupsRequest(groups=["g"]),
        ApiKey.LIST_GROUPS: ListGroupsRequest(states_filter=[], types_filter=[]),
        ApiKey.DELETE_GROUPS: DeleteGroupsRequest(groups_names=["g"]),
        ApiKey.OFFSET_DELETE: OffsetDeleteRequest(group_id="g", topics=[]),
    }[ApiKey(key)]


GROUP_APIS = [8, 9, 11, 12, 13, 14, 15, 16, 42, 47]


@pytest.mark.parametrize(
    ("key", "version"),
    [
        (key, version)
        for key in GROUP_APIS
        for version in range(api.APIS[key].min_version, api.APIS[key].max_version + 1)
    ],
)
def test_every_version_of_every_group_api_can_say_no(key: int, version: int) -> None:
    groups = Groups()
    groups._broker.authorizer = DenyAll()
    answer = groups.ask(requests(version, key), version)
    if key == ApiKey.DELETE_GROUPS:
        assert answer.result().results[0].error_code == GroupAuthorizationFailed.code
    else:
        assert error(answer) == "GroupAuthorizationFailed"
    assert request_class(key).versions.max >= version
