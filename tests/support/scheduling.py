"""Which tests run in the same process where they run in several (`-n 2`)."""

from __future__ import annotations

import re
from typing import Final

from xdist.scheduler import LoadScopeScheduling

_CLUSTER: Final = re.compile(r"[\[-](ottla|apache(?:-\d+\.\d+)?)[]-]")


class ByClusterAndModule(LoadScopeScheduling):  # type: ignore[misc]
    """All tests of one shared cluster in one process, so that each is started once; all others by module."""

    def _split_scope(self, nodeid: str) -> str:
        module, _, test = nodeid.partition("::")
        cluster = _CLUSTER.search(test)
        return cluster[1] if cluster else module
