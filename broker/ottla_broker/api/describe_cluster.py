"""DescribeCluster (key 60): the brokers, for admin clients.

Versions: 1 says which kind of endpoint is meant (only brokers can be asked here), 2 shows fenced brokers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ottla_broker.controller.operations import CLUSTER_OPERATIONS
from ottla_wire.errors import InvalidRequest, KafkaError, MismatchedEndpointType, UnsupportedEndpointType
from ottla_wire.messages.describe_cluster import (
    DescribeClusterBroker,
    DescribeClusterRequest,
    DescribeClusterResponse,
)

if TYPE_CHECKING:
    from ottla_broker.broker import Broker
    from ottla_broker.context import RequestContext

_BROKERS: Final = 1
_CONTROLLERS: Final = 2


def handle(broker: Broker, context: RequestContext, request: DescribeClusterRequest) -> DescribeClusterResponse:
    """Answer with the cluster's brokers."""
    if request.endpoint_type != _BROKERS:
        raise _wrong_endpoint(request.endpoint_type, context.api_version)
    image = broker.controller.image
    response = DescribeClusterResponse(
        error_message=None,
        cluster_id=image.cluster_id,
        controller_id=image.controller_id,
        brokers=[
            DescribeClusterBroker(
                broker_id=node.id,
                host=node.endpoints[0].host,
                port=node.endpoints[0].port,
                rack=node.rack,
                is_fenced=node.fenced and context.api_version >= 2,
            )
            for _, node in sorted(image.brokers.items())
            if not node.fenced or request.include_fenced_brokers
        ],
    )
    if request.include_cluster_authorized_operations:
        response.cluster_authorized_operations = CLUSTER_OPERATIONS
    return response


def _wrong_endpoint(endpoint_type: int, version: int) -> KafkaError:
    if version == 0:
        return InvalidRequest(f"Unsupported endpoint type {endpoint_type}")
    if endpoint_type == _CONTROLLERS:
        return MismatchedEndpointType(
            "The request was sent to an endpoint of type BROKER, but we wanted an endpoint of type CONTROLLER"
        )
    return UnsupportedEndpointType(f"Unsupported endpoint type {endpoint_type}")
