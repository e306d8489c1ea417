from __future__ import annotations

import random

from ottla.client.backoff import Backoff


def test_pauses_double_up_to_the_greatest_with_a_fifth_of_jitter() -> None:
    backoff = Backoff(100, 1000, random.Random(1))
    for failures, middle in ((1, 100), (2, 200), (3, 400), (4, 800), (5, 1000), (90, 1000)):
        pauses = [backoff.pause_ms(failures) for _ in range(200)]
        assert middle * 0.8 <= min(pauses) < middle * 0.9
        assert middle * 1.1 < max(pauses) <= middle * 1.2


def test_no_failure_and_no_backoff_mean_no_pause() -> None:
    assert Backoff(100, 1000, random.Random(1)).pause_ms(0) == 0
    assert Backoff(0, 1000, random.Random(1)).pause_ms(5) == 0
