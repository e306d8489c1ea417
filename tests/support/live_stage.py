"""The scenarios of `group_scenarios` on a coordinator that runs somewhere: each request on a connection of its own."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

from ottla.client.admin import NewTopic
from ottla.errors import TopicAlreadyExists
from ottla_wire.schema import Request
from support.clusters import ClusterUnderTest, eventually
from support.groups import TOPIC
from support.wire_client import WireClient

PARKED_SECONDS = 0.5  # what has not been answered by then is parked


class LiveStage:
    """A stage on a cluster; it makes the topic that the scenarios speak of."""

    topic = TOPIC

    def __init__(self, cluster: ClusterUnderTest) -> None:
        self._cluster = cluster
        self._clients: list[WireClient] = []
        with contextlib.suppress(TopicAlreadyExists):
            cluster.admin.create_topics([NewTopic(TOPIC, partitions=2, replication_factor=1)])
        self.topic_id = eventually(self._find_topic)

    def _find_topic(self) -> Any:
        found = self._cluster.admin.list_topics().get(TOPIC)
        return found and found.topic_id

    def ask(self, request: Request, version: int) -> Callable[[], Any | None]:
        client = self._cluster.connect()
        self._clients.append(client)
        client.send(request, version)
        answers: list[Any] = []

        def poll() -> Any | None:
            if not answers and not client.is_silent(PARKED_SECONDS):
                answers.append(client.receive(request, version)[1])
            return answers[0] if answers else None

        return poll

    def wait(self, milliseconds: int) -> None:
        time.sleep(milliseconds / 1000)

    def close(self) -> None:
        for client in self._clients:
            client.close()
