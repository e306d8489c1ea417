"""Features: what this version of the broker supports, and the levels a new cluster starts with.

ApiVersions tells clients both. A Java producer uses KIP-890 transactions only if `transaction.version` 2 is finalized,
KIP-848 groups need `group.version` 1. Eligible leader replicas, share groups and streams groups are not finalized.
"""

from __future__ import annotations

from typing import Final, NamedTuple

METADATA_VERSION: Final = "metadata.version"
METADATA_VERSION_4_3: Final = 30
TRANSACTION_VERSION: Final = "transaction.version"


class Feature(NamedTuple):
    """A feature with the levels this version supports and the level a new cluster gets (0: not finalized)."""

    name: str
    min_level: int
    max_level: int
    initial_level: int


FEATURES: Final = (
    Feature("group.version", 0, 1, 1),
    Feature(METADATA_VERSION, METADATA_VERSION_4_3, METADATA_VERSION_4_3, METADATA_VERSION_4_3),
    Feature(TRANSACTION_VERSION, 0, 2, 2),
)
