"""Which versions of requests leave in which mode, and what is said where a broker does not have them."""

from __future__ import annotations

from typing import Any

import pytest

from ottla.client.producer.producer_sequences import ProducerIdAndEpoch
from ottla.client.producer.sender_task import _version
from ottla.client.producer.transaction_requests import TransactionRequest, commit_offsets, end
from ottla.client.producer.transaction_tables import VERSIONS_V1, VERSIONS_V2, RequestKind
from ottla.errors import UnsupportedVersion
from ottla_wire.schema import Uuid
from support.transaction_model import GROUP, TransactionWorld


class Broker:
    """A connection to a broker with one version as its highest of everything."""

    node = "broker 1"

    def __init__(self, highest: int) -> None:
        self.highest = highest

    def version_for(self, request: Any, max_version: int | None = None) -> int:
        return min(self.highest, request.versions.max if max_version is None else max_version)


OURS = ProducerIdAndEpoch(7, 0)
MESSAGES = {
    RequestKind.END: end("tx", OURS, committed=True),
    RequestKind.COMMIT_OFFSETS: commit_offsets("tx", OURS, GROUP, {}),
}


@pytest.mark.parametrize(
    ("kind", "versions", "highest", "expected"),
    [
        (RequestKind.END, VERSIONS_V1, 5, 4),
        (RequestKind.END, VERSIONS_V1, 3, 3),
        (RequestKind.END, VERSIONS_V2, 5, 5),
        (RequestKind.COMMIT_OFFSETS, VERSIONS_V1, 6, 4),
        (RequestKind.COMMIT_OFFSETS, VERSIONS_V2, 6, 5),
    ],
)
def test_each_mode_has_its_versions(kind: RequestKind, versions: Any, highest: int, expected: int) -> None:
    request = TransactionRequest(kind, 1, MESSAGES[kind], versions[kind])
    assert _version(Broker(highest), request) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", list(MESSAGES))
def test_version_2_does_not_fall_back_to_requests_of_version_1(kind: RequestKind) -> None:
    """They would be taken for it, with other rules about epochs."""
    request = TransactionRequest(kind, 1, MESSAGES[kind], VERSIONS_V2[kind])
    with pytest.raises(UnsupportedVersion, match="needs version 5, there is 4"):
        _version(Broker(4), request)  # type: ignore[arg-type]


@pytest.mark.parametrize(("version", "lowest", "highest"), [(1, 3, 11), (2, 12, 13)])
def test_produce_tells_brokers_which_version_of_transactions_is_meant(version: int, lowest: int, highest: int) -> None:
    world = TransactionWorld(version=version).started()
    world.send()
    world.run()
    while world.asked:
        world.answer()
    attempt = world.in_flight[0][0].attempt
    assert (attempt.versions, attempt.max_version) == ((lowest, highest), highest)
    assert attempt.transactional_id == "tx"
    attempt.batches[0].queue.topic.topic_id = Uuid.ZERO
    assert attempt.max_version == min(highest, 12), "13 names topics by ids only"
