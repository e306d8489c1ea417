"""Conversations of group members with a coordinator, whichever it is, written down as a transcript.

A scenario is played by members with names (`a`, `b`, ...). What a coordinator answers becomes one line each, with
member ids replaced by the names, so that the transcripts of two coordinators can be compared. The players send each
request on a connection of its own, as far as the coordinator can tell.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from ottla_wire.errors import MemberIdRequired
from ottla_wire.messages.consumer_protocol import ConsumerProtocolSubscription
from ottla_wire.messages.delete_groups import DeleteGroupsRequest
from ottla_wire.messages.describe_groups import DescribeGroupsRequest
from ottla_wire.messages.heartbeat import HeartbeatRequest
from ottla_wire.messages.join_group import JoinGroupResponse
from ottla_wire.messages.leave_group import LeaveGroupRequest, MemberIdentity
from ottla_wire.messages.list_groups import ListGroupsRequest
from ottla_wire.messages.offset_commit import OffsetCommitRequest
from ottla_wire.messages.offset_delete import (
    OffsetDeleteRequest,
    OffsetDeleteRequestPartition,
    OffsetDeleteRequestTopic,
)
from ottla_wire.messages.offset_fetch import (
    OffsetFetchRequest,
    OffsetFetchRequestGroup,
    OffsetFetchRequestTopic,
    OffsetFetchRequestTopics,
)
from ottla_wire.messages.sync_group import SyncGroupRequest, SyncGroupRequestAssignment
from ottla_wire.schema import Request, Uuid
from support.groups import commit_request, error_name, join_request

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
NO_ID = Uuid(b"no-topic-has-me.")


class Stage(Protocol):
    """A coordinator that a scenario can be played on."""

    topic: str
    topic_id: Uuid

    def ask(self, request: Request, version: int) -> Callable[[], Any | None]:
        """Send; the returned function gives the answer once it is there, before that None."""
        ...

    def wait(self, milliseconds: int) -> None:
        """Let time go by."""
        ...


class Play:
    """One performance of a scenario."""

    def __init__(self, stage: Stage, group: str) -> None:
        self.stage = stage
        self.group = group
        self.lines: list[str] = []
        self.ids: dict[str, str] = {}
        self.parked: dict[str, Callable[[], Any | None]] = {}

    def note(self, what: str, response: Any) -> None:
        self.lines.append(f"{what}: {self._shown(response)}")

    def tell(self, what: str, request: Request, version: int) -> Any:
        """Ask what is answered at once."""
        answer = self.stage.ask(request, version)()
        assert answer is not None, f"{what} was parked"
        self.note(what, answer)
        return answer

    def park(self, what: str, request: Request, version: int) -> None:
        """Ask what may be answered later: see `answered`."""
        poll = self.stage.ask(request, version)
        answer = poll()
        if answer is None:
            self.lines.append(f"{what}: parked")
            self.parked[what] = poll
        else:
            self.note(what, answer)

    def answered(self) -> None:
        """Note which parked requests have been answered by now."""
        for what, poll in sorted(self.parked.items()):
            answer = poll()
            if answer is not None:
                self.note(f"then {what}", answer)
                del self.parked[what]

    def join(self, who: str, *, version: int = 9, member_id: str | None = None, **fields: Any) -> None:
        """Join, with the id known for the member; a new id is remembered."""
        known = self.ids.get(who, "") if member_id is None else member_id
        request = join_request(known, group=self.group, **fields)
        poll = self.stage.ask(request, version)
        what = f"{who} joins"
        answer = poll()
        if answer is None:
            self.lines.append(f"{what}: parked")
            self.parked[what] = self._learning(who, poll)
            return
        self._learn(who, answer)
        self.note(what, answer)

    def enter(self, who: str, **fields: Any) -> None:
        """Ask for an id, then join with it."""
        self.join(who, **fields)
        self.join(who, **fields)

    def sync(
        self,
        who: str,
        generation: int,
        shares: Mapping[str, bytes] | None = None,
        *,
        version: int = 5,
        protocol: str | None = "range",
        protocol_type: str | None = "consumer",
        **fields: Any,
    ) -> None:
        assignments = [
            SyncGroupRequestAssignment(member_id=self.ids.get(name, name), assignment=share)
            for name, share in (shares or {}).items()
        ]
        request = SyncGroupRequest(
            group_id=self.group,
            generation_id=generation,
            member_id=self.ids.get(who, who),
            protocol_type=protocol_type if version >= 5 else None,
            protocol_name=protocol if version >= 5 else None,
            assignments=assignments,
            **fields,
        )
        self.park(f"{who} syncs", request, version)

    def heartbeat(self, who: str, generation: int, *, version: int = 4, **fields: Any) -> None:
        request = HeartbeatRequest(
            group_id=self.group, generation_id=generation, member_id=self.ids.get(who, who), **fields
        )
        self.tell(f"{who} beats", request, version)

    def leave(self, *who: str, version: int = 5, instance: str | None = None) -> None:
        names = [self.ids.get(name, name) for name in who]
        members = [MemberIdentity(member_id=name, group_instance_id=instance) for name in names]
        if version < 3:
            request = LeaveGroupRequest(group_id=self.group, member_id=names[0], members=[])
        else:
            request = LeaveGroupRequest(group_id=self.group, members=members)
        self.tell(f"{' '.join(who)} leaves", request, version)

    def commit(self, who: str, generation: int, offset: int, *, version: int = 9, **fields: Any) -> None:
        fields.setdefault("topic", self.stage.topic if version < 10 else "")
        fields.setdefault("topic_id", self.stage.topic_id if version >= 10 else Uuid.ZERO)
        member_id = self.ids.get(who, "" if who == "nobody" else who)
        request: OffsetCommitRequest = commit_request(offset, member_id, generation, group=self.group, **fields)
        self.tell(f"{who} commits", request, version)

    def fetch(
        self, version: int = 9, *, partitions: tuple[int, ...] = (0, 1), everything: bool = False, stable: bool = False
    ) -> None:
        if version < 8:
            topics = [OffsetFetchRequestTopic(name=self.stage.topic, partition_indexes=[*partitions])]
            request = OffsetFetchRequest(
                group_id=self.group,
                topics=None if everything else topics,
                groups=[],
                require_stable=stable and version >= 7,
            )
        else:
            topic = OffsetFetchRequestTopics(
                name=self.stage.topic, topic_id=self.stage.topic_id, partition_indexes=[*partitions]
            )
            asked = OffsetFetchRequestGroup(group_id=self.group, topics=None if everything else [topic])
            request = OffsetFetchRequest(groups=[asked], topics=[], require_stable=stable)
        self.tell(f"fetch v{version}", request, version)

    def describe(self, version: int = 6, *, operations: bool = False) -> None:
        request = DescribeGroupsRequest(groups=[self.group], include_authorized_operations=operations)
        self.tell("describe", request, version)

    def is_listed(self, version: int = 5, *, states: tuple[str, ...] = (), types: tuple[str, ...] = ()) -> None:
        request = ListGroupsRequest(states_filter=[*states], types_filter=[*types])
        answer = self.stage.ask(request, version)()
        assert answer is not None
        found = [group for group in answer.groups if group.group_id == self.group]
        self.lines.append(f"listed: {[(group.protocol_type, group.group_state, group.group_type) for group in found]}")

    def delete(self) -> None:
        self.tell("delete", DeleteGroupsRequest(groups_names=[self.group, self.group]), 2)

    def delete_offset(self, partition: int = 0, topic: str | None = None) -> None:
        partitions = [OffsetDeleteRequestPartition(partition_index=partition)]
        asked = OffsetDeleteRequestTopic(name=topic or self.stage.topic, partitions=partitions)
        self.tell("delete offset", OffsetDeleteRequest(group_id=self.group, topics=[asked]), 0)

    # how answers are written

    def _learning(self, who: str, poll: Callable[[], Any | None]) -> Callable[[], Any | None]:
        def learn() -> Any | None:
            answer = poll()
            if answer is not None:
                self._learn(who, answer)
            return answer

        return learn

    def _learn(self, who: str, answer: Any) -> None:
        if answer.member_id and answer.error_code in (0, MemberIdRequired.code):
            self.ids[who] = answer.member_id

    def _shown(self, value: Any) -> str:
        names = {member_id: name for name, member_id in self.ids.items()}
        return _show(value, names | {self.stage.topic: "TOPIC", self.group: "GROUP"}, self.stage.topic_id)


def _show(value: Any, names: Mapping[str, str], topic_id: Uuid) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(sorted(_show(item, names, topic_id) for item in value)) + "]"
    if isinstance(value, str):
        for known, name in names.items():
            value = value.replace(known, name)
        return repr(_UUID.sub("UUID", value))
    if isinstance(value, Uuid):
        return "TOPIC-ID" if value == topic_id else "NO-ID" if value == NO_ID else "-"
    if isinstance(value, bytes | memoryview):
        return repr(bytes(value))
    if hasattr(type(value), "_annotations"):
        shown = [
            _field(name, getattr(value, name), names, topic_id)
            for name in type(value)._annotations
            if name != "throttle_time_ms" and not (name == "member_id" and _joins_in_vain(value))
        ]
        return "{" + " ".join(text for text in shown if text) + "}"
    return repr(value)


def _joins_in_vain(value: Any) -> bool:
    """Whether it is the answer of a failed join: no client looks at the member id in it."""
    return isinstance(value, JoinGroupResponse) and value.error_code not in (0, MemberIdRequired.code)


def _field(name: str, value: Any, names: Mapping[str, str], topic_id: Uuid) -> str:
    if name == "error_code":
        return error_name(value)
    if (
        name in ("error_message", "client_host", "client_id")
        or value in ("", b"", None, False, -(2**31))
        or value == []
    ):
        return ""
    return f"{name}={_show(value, names, topic_id)}"


def subscription(*topics: str) -> bytes:
    """A consumer's metadata."""
    return ConsumerProtocolSubscription(topics=[*topics], user_data=None).encode_with_version(0)


# The scenarios.


def first_member(play: Play) -> None:
    play.enter("a")
    play.stage.wait(50)
    play.answered()
    play.describe()
    play.sync("a", 1, {"a": b"all"})
    play.answered()
    play.heartbeat("a", 1)
    play.describe(operations=True)
    play.describe(version=0)
    play.is_listed()
    play.is_listed(version=3)
    play.is_listed(states=("stable",), types=("Classic",))
    play.is_listed(states=("Empty",))
    play.is_listed(types=("consumer",))


def old_clients(play: Play) -> None:
    for version in (0, 3):
        play.join(f"v{version}", version=version)
        play.stage.wait(50)
        play.answered()
        play.sync(f"v{version}", 1 + version, {f"v{version}": b"x"}, version=0)
        play.answered()
        play.leave(f"v{version}", version=1)
        play.leave(f"v{version}", version=1)
        play.describe()
        play.stage.wait(50)
        play.ids.clear()
        play.group += "-"


def second_member(play: Play) -> None:
    play.enter("a")
    play.stage.wait(50)
    play.answered()
    play.sync("a", 1, {"a": b"all"})
    play.answered()
    play.enter("b")
    play.heartbeat("a", 1)
    play.sync("a", 1)
    play.commit("a", 1, 5)
    play.describe()
    play.join("a")
    play.answered()
    play.heartbeat("b", 2)
    play.heartbeat("a", 1)
    play.commit("a", 2, 6)
    play.sync("b", 2)
    play.join("b")
    play.sync("b", 1)
    play.sync("b", 2, protocol="other")
    play.sync("b", 2, protocol_type="other")
    play.sync("a", 2, {"a": b"half"})
    play.answered()
    play.sync("b", 2)
    play.commit("a", 2, 7)
    play.commit("b", 1, 8)
    play.fetch()
    play.describe()


def rejoining(play: Play) -> None:
    old, new, newer = ({"range": subscription(topic)} for topic in ("old", "new", "newer"))
    play.enter("a", protocols=old)
    play.stage.wait(50)
    play.answered()
    play.enter("b", protocols=old)
    play.join("a", protocols=old)
    play.answered()
    play.sync("a", 2, {"a": b"1", "b": b"2"})
    play.answered()
    play.join("b", protocols=old)  # same metadata, Stable: this generation again
    play.sync("b", 2)
    play.join("b", protocols=new)  # parked: a rebalance
    play.join("a", protocols=old)
    play.answered()
    play.join("a", protocols=old)  # same metadata, CompletingRebalance: the answer again, with the members
    play.join("b", protocols=newer)
    play.join("a", protocols=old)
    play.answered()
    play.sync("a", 4)
    play.answered()
    play.join("a", protocols=old)  # the leader again: a rebalance
    play.heartbeat("b", 4)


def strangers(play: Play) -> None:
    play.heartbeat("x", 1)
    play.sync("x", 1)
    play.leave("x")
    play.leave("x", version=2)
    play.join("x", member_id="x")
    play.commit("x", 1, 1, version=8)
    play.commit("x", 1, 1, version=9)
    play.describe(version=5)
    play.describe(version=6)
    play.fetch(version=9)
    play.fetch(version=9, everything=True)
    play.delete()
    play.delete_offset()
    play.is_listed()
    play.enter("a")
    play.stage.wait(50)
    play.answered()
    play.sync("a", 1)
    play.answered()
    play.heartbeat("x", 1)
    play.heartbeat("a", 2)
    play.heartbeat("a", 1, group_instance_id="i")
    play.sync("x", 1)
    play.sync("a", 9)
    play.join("x", member_id="x")
    play.commit("x", 1, 1)
    play.commit("a", 9, 1)
    play.commit("nobody", -1, 1)
    play.leave("x", "a")
    play.describe()
    play.heartbeat("a", 1)
    play.sync("a", 1)
    play.join("a")


def wrong_requests(play: Play) -> None:
    play.join("a", session_ms=10)
    play.join("a", session_ms=2_000_000)
    play.join("a", protocols={})
    play.join("a", protocol_type="")
    play.enter("a", protocols={"range": b"", "sticky": b""})
    play.stage.wait(50)
    play.answered()
    play.join("b", protocols={"other": b""})
    play.join("b", protocol_type="connect")
    play.join("a", protocols={"third": b""})
    play.sync("a", 1, protocol=None)
    play.sync("a", 1, version=4)
    play.answered()
    play.group = ""
    play.join("c")
    play.sync("c", 1)
    play.heartbeat("c", 1)
    play.leave("c")
    play.delete_offset()


def voting(play: Play) -> None:
    play.enter("a", protocols={"one": b"a1", "two": b"a2", "three": b"a3"})
    play.stage.wait(50)
    play.answered()
    play.enter("b", protocols={"two": b"b2", "three": b"b3"})
    play.join("a", protocols={"one": b"a1", "two": b"a2", "three": b"a3"})
    play.answered()
    play.enter("c", protocols={"three": b"c3", "two": b"c2"})
    play.join("a", protocols={"one": b"a1", "two": b"a2", "three": b"a3"})
    play.join("b", protocols={"three": b"b3", "two": b"b2"})
    play.answered()


def static_members(play: Play) -> None:
    play.join("a", instance="i1")
    play.stage.wait(50)
    play.answered()
    play.sync("a", 1, {"a": b"all"}, group_instance_id="i1")
    play.answered()
    play.ids["old"] = play.ids["a"]
    del play.ids["a"]
    play.join("a", instance="i1")  # comes back: the leader, told to skip the assignment
    play.heartbeat("old", 1, group_instance_id="i1")
    play.sync("old", 1, group_instance_id="i1")
    play.commit("old", 1, 1, instance="i1")
    play.join("old", instance="i1")
    play.heartbeat("old", 1)
    play.heartbeat("a", 1, group_instance_id="i1")
    play.heartbeat("a", 1)
    play.heartbeat("a", 1, group_instance_id="i2")
    play.sync("a", 1, group_instance_id="i1")
    play.ids["old"] = play.ids.pop("a")
    play.join("a", instance="i1", version=8)  # an older client: told that somebody else leads
    play.heartbeat("a", 1, group_instance_id="i1")
    play.describe()
    play.ids["old"] = play.ids.pop("a")
    play.join("a", instance="i1", protocols={"range": b"", "sticky": b""})
    play.ids["old"] = play.ids.pop("a")
    play.join("a", instance="i1", protocols={"range": b"", "sticky": b""})
    play.leave("", instance="i1")
    play.leave("", instance="i1")
    play.describe()


def static_rebalances(play: Play) -> None:
    play.join("a", instance="i1")
    play.stage.wait(50)
    play.answered()
    play.sync("a", 1)
    play.answered()
    play.join("b", instance="i2")
    play.heartbeat("a", 1, group_instance_id="i1")
    play.join("a", instance="i1")
    play.answered()
    play.sync("b", 2, group_instance_id="i2")
    play.ids["old b"] = play.ids.pop("b")
    play.join("b", instance="i2")  # CompletingRebalance: the old one's sync is fenced, all join again
    play.answered()
    play.ids["older b"] = play.ids.pop("b", "?")
    play.join("b", instance="i2")  # PreparingRebalance: the old one's join is fenced
    play.parked = {f"first {what}" if what == "b joins" else what: poll for what, poll in play.parked.items()}
    play.join("b", instance="i2")
    play.answered()
    play.heartbeat("a", 2, group_instance_id="i1")
    play.join("a", instance="i1")
    play.answered()
    play.leave("old b", "a", instance="i1")


def commits(play: Play) -> None:
    play.commit("nobody", -1, 10, version=2)
    play.describe()
    play.is_listed()
    play.commit("nobody", -1, 11, version=9, metadata="m" * 4096, leader_epoch=3)
    play.fetch()
    play.commit("nobody", -1, 12, version=9, metadata="m" * 4097)
    play.commit("nobody", -1, 12, version=9, metadata=None, partition=1)
    play.commit("nobody", -1, 12, version=9, partition=9)
    play.commit("nobody", -1, 12, version=9, topic="nowhere")
    play.commit("nobody", -1, 13, version=10, partition=1)
    play.commit("nobody", -1, 13, version=10, topic_id=NO_ID)
    play.commit("nobody", -1, -5)
    play.commit("x", -1, 14)
    play.commit("x", 0, 14)
    for version in range(1, 11):
        play.fetch(version)
    for version in (2, 7, 8, 10):
        play.fetch(version, everything=True)
    play.fetch(stable=True)
    play.fetch(partitions=(7,))
    play.enter("a", protocols={"range": subscription(play.stage.topic)})
    play.stage.wait(50)
    play.answered()
    play.sync("a", 1)
    play.answered()
    play.commit("nobody", -1, 15)
    play.commit("a", 1, 16)
    play.delete_offset()
    play.delete_offset(partition=9)
    play.delete_offset(topic="nowhere")
    play.delete()
    play.leave("a")
    play.delete_offset()
    play.fetch()
    play.delete()
    play.delete()
    play.fetch()
    play.is_listed()


def too_many(play: Play) -> None:
    play.join("a", version=3)
    play.stage.wait(50)
    play.answered()
    for name in ("b", "c"):
        play.join(name, version=3)
    play.join("d", version=3)
    play.is_listed()
    play.join("a", version=3)  # three others are in, and it was not counted


def leaving(play: Play) -> None:
    play.enter("a")
    play.stage.wait(50)
    play.answered()
    play.enter("b")
    play.join("pending")
    play.join("a")
    play.answered()
    play.leave("pending")
    play.answered()
    play.leave("b", "x", "a")
    play.describe()
    play.enter("c")
    play.stage.wait(50)
    play.answered()
    play.enter("d")
    play.leave("d")
    play.answered()
    play.heartbeat("c", 4)


def connect_group(play: Play) -> None:
    play.enter("a", protocol_type="connect", protocols={"default": b"x"})
    play.stage.wait(50)
    play.answered()
    play.sync("a", 1, {"a": b"w"}, protocol="default", protocol_type="connect")
    play.answered()
    play.commit("a", 1, 1)
    play.delete_offset()
    play.describe()
    play.is_listed()


SCENARIOS: dict[str, Callable[[Play], None]] = {
    scenario.__name__: scenario
    for scenario in (
        first_member,
        old_clients,
        second_member,
        rejoining,
        strangers,
        wrong_requests,
        voting,
        static_members,
        static_rebalances,
        commits,
        too_many,
        leaving,
        connect_group,
    )
}
