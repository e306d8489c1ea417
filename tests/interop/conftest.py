"""Our broker, a process of its own, and the clients of other people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from support.clusters import ClusterUnderTest, ottla_cluster
from support.foreign_clients import AioKafka, Confluent, KafkaPython, Ottla
from support.foreign_tools import Java, Kcat

_MARKS = {"java": ("java", "apache-4.3"), "ottla": ()}
_PEERS: list[Any] = [Confluent(), AioKafka(), KafkaPython(), Kcat(), Java()]


def _parameter(peer: Any, *more: Any) -> Any:
    marks = [pytest.mark.peer(*names)] if (names := _MARKS.get(peer.name, (peer.name,))) else []
    return pytest.param(peer, *more, id="-".join([peer.name, *map(str, more)]), marks=marks)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`foreign`: each foreign client; `anybody`: and ours; `foreign, codec`: with each codec."""
    names = set(metafunc.fixturenames)
    if {"foreign", "codec"} <= names:
        codecs = ("none", "gzip", "snappy", "lz4", "zstd")
        metafunc.parametrize("foreign,codec", [_parameter(peer, codec) for peer in _PEERS for codec in codecs])
    elif "foreign" in names:
        metafunc.parametrize("foreign", [_parameter(peer) for peer in _PEERS])
    elif "anybody" in names:
        metafunc.parametrize("anybody", [_parameter(peer) for peer in [Ottla(), *_PEERS]])


@pytest.fixture(scope="session")
def cluster() -> Iterator[ClusterUnderTest]:
    with ottla_cluster() as started:
        yield started


@pytest.fixture
def servers(cluster: ClusterUnderTest) -> str:
    return cluster.bootstrap_servers


@pytest.fixture(scope="session")
def peers() -> dict[str, Any]:
    return {peer.name: peer for peer in [Ottla(), *_PEERS]}
