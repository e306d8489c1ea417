"""ApiVersions (key 18): what this broker serves. The first request of most connections.

3 flexible, name and version of the client software (KIP-511). 4 features whose smallest version is 0 (KAFKA-17011).

Any version gets an answer: one that is not served is answered in version 0 with UNSUPPORTED_VERSION and the versions of
ApiVersions itself, and the client tries again. The response header is always version 0.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ottla_broker.api import APIS, PRODUCE_ADVERTISED_MIN_VERSION
from ottla_broker.controller.features import FEATURES
from ottla_wire import errors
from ottla_wire.messages.api_versions import (
    ApiVersion,
    ApiVersionsRequest,
    ApiVersionsResponse,
    FinalizedFeatureKey,
    SupportedFeatureKey,
)

if TYPE_CHECKING:
    from ottla_broker.broker import Broker
    from ottla_broker.context import RequestContext

_PRODUCE = 0
_API_VERSIONS = 18
_FIRST_VERSION_WITH_CLIENT_SOFTWARE = 3
_FIRST_VERSION_WITH_MIN_ZERO = 4
_SOFTWARE = re.compile(r"[a-zA-Z0-9](?:[a-zA-Z0-9\-.]*[a-zA-Z0-9])?")

# A feature is told to clients once the API that it switches on is served: a Java producer that sees transaction.version
# 2 stops sending AddPartitionsToTxn, one that sees group.version 1 may join with the KIP-848 protocol.
_FEATURE_NEEDS_API = {"transaction.version": 26, "group.version": 68}


def handle(broker: Broker, context: RequestContext, request: ApiVersionsRequest) -> ApiVersionsResponse:
    """Everything in the table, and the features of the cluster."""
    version = context.api_version
    if version >= _FIRST_VERSION_WITH_CLIENT_SOFTWARE:
        for name in (request.client_software_name, request.client_software_version):
            if _SOFTWARE.fullmatch(name) is None:
                return _refusal(errors.InvalidRequest.code)
    image = broker.controller.image
    return ApiVersionsResponse(
        api_keys=[_advertised(key) for key in sorted(APIS)],
        supported_features=[
            SupportedFeatureKey(name=feature.name, min_version=feature.min_level, max_version=feature.max_level)
            for feature in FEATURES
            if _is_served(feature.name) and (feature.min_level > 0 or version >= _FIRST_VERSION_WITH_MIN_ZERO)
        ],
        finalized_features_epoch=image.end_offset,
        finalized_features=[
            FinalizedFeatureKey(name=name, max_version_level=level, min_version_level=level)
            for name, level in sorted(image.features.items())
            if _is_served(name)
        ],
    )


def unsupported_version() -> ApiVersionsResponse:
    """The answer, in version 0, to a version that is not served."""
    return _refusal(errors.UnsupportedVersion.code)


def _refusal(code: int) -> ApiVersionsResponse:
    keys = [_advertised(_API_VERSIONS)] if code == errors.UnsupportedVersion.code else []
    return ApiVersionsResponse(error_code=code, api_keys=keys)


def _advertised(key: int) -> ApiVersion:
    api = APIS[key]
    least = PRODUCE_ADVERTISED_MIN_VERSION if key == _PRODUCE else api.min_version
    return ApiVersion(api_key=key, min_version=least, max_version=api.max_version)


def _is_served(feature: str) -> bool:
    needed = _FEATURE_NEEDS_API.get(feature)
    return needed is None or needed in APIS
