"""Who leads a partition, for answers that send a client there at once (KIP-951)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from ottla_broker.broker import Broker


class CurrentLeader(NamedTuple):
    """The leader as this broker knows it; -1 where it knows none."""

    node_id: int = -1
    epoch: int = -1
    host: str | None = None
    port: int = -1
    rack: str | None = None

    def add_endpoint(self, endpoints: list[Any], endpoint_class: Any) -> None:
        """Add the leader's address to an answer's endpoints, once."""
        if self.host is not None and all(endpoint.node_id != self.node_id for endpoint in endpoints):
            endpoints.append(endpoint_class(node_id=self.node_id, host=self.host, port=self.port, rack=self.rack))


def current_leader(broker: Broker, topic: str, index: int) -> CurrentLeader:
    """The leader of a partition from the metadata."""
    image = broker.controller.image
    partition = image.partition(topic, index)
    if partition is None:
        return CurrentLeader()
    node = image.brokers.get(partition.leader)
    if node is None or not node.endpoints:
        return CurrentLeader(partition.leader, partition.leader_epoch)
    endpoint = node.endpoints[0]
    return CurrentLeader(partition.leader, partition.leader_epoch, endpoint.host, endpoint.port, node.rack)
