"""Which tests run in the same process where they run in several (`-n 2`)."""

from __future__ import annotations

import re
from typing import Final

from xdist.scheduler import LoadScopeScheduling

_CLUSTER: Final = re.compile(r"[\[-](ottla|apache(?:-\d+\.\d+)?)[]-]")


def scope_of(test_id: str) -> str:
    """All tests of one shared cluster are together, so that each is started once; all others by module."""
    module, _, test = test_id.partition("::")
    cluster = _CLUSTER.search(test)
    return cluster[1] if cluster else module


class ByClusterAndModule(LoadScopeScheduling):  # type: ignore[misc]
    """pytest-xdist's scheduling with `scope_of`. (Its own groups do nothing with pytest 9.2.)"""

    def _split_scope(self, nodeid: str) -> str:
        return scope_of(nodeid)
