"""The group protocol request by request: fences, rejoins, static members, commits, descriptions.

The conversations, and what Apache Kafka 4.3.1 said in them, are those of `tests/broker/api_groups`. There our
coordinator plays them in virtual time; here both brokers do, over sockets.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.group_scenarios import SCENARIOS, Play
from support.live_stage import LiveStage

RECORDED = Path(__file__).parents[1] / "broker" / "api_groups" / "kafka-4.3.1.json"
ELSEWHERE = {"too_many"}  # needs group.max.size=3


@pytest.fixture
def stage(cluster: Any) -> Iterator[LiveStage]:
    stage = LiveStage(cluster)
    yield stage
    stage.close()


@pytest.mark.parametrize("scenario", sorted(set(SCENARIOS) - ELSEWHERE))
def test_every_answer_is_the_recorded_one(cluster: Any, stage: LiveStage, scenario: str) -> None:
    play = Play(stage, cluster.fresh("scenario"))
    SCENARIOS[scenario](play)
    assert play.lines == json.loads(RECORDED.read_text())[scenario]
