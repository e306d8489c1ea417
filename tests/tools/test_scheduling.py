"""Which tests run in the same process."""

from __future__ import annotations

import pytest

from support.scheduling import scope_of


@pytest.mark.parametrize(
    ("test", "scope"),
    [
        ("tests/contract/test_fetch.py::test_a_read[ottla]", "ottla"),
        ("tests/contract/test_fetch.py::TestSizes::test_a_read[apache-100-gzip]", "apache"),
        ("tests/contract/test_groups.py::test_a_group[range-apache-3.9]", "apache-3.9"),
        ("tests/contract/test_groups.py::test_a_group[apache-4.0-range]", "apache-4.0"),
        ("tests/client/test_config.py::test_a_name", "tests/client/test_config.py"),
        ("tests/samples/test_readme.py::test_lines[ottla run shop:app]", "tests/samples/test_readme.py"),
    ],
)
def test_those_of_a_shared_cluster_are_together_and_those_of_a_module(test: str, scope: str) -> None:
    assert scope_of(test) == scope
