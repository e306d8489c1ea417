"""Back-off: how often and how long apart."""

from __future__ import annotations

import pytest

from ottla import ErrorHandler, Retry
from ottla.errors import ConversionError


def delays(retry: Retry, attempts: int) -> list[float | None]:
    return [retry.next_delay(attempt, RuntimeError()) for attempt in range(1, attempts + 1)]


def test_by_default_nine_redeliveries_follow_the_first_delivery_at_once() -> None:
    assert delays(Retry(), 10) == [0.0] * 9 + [None]


def test_fixed_back_off_waits_the_same_each_time() -> None:
    assert delays(Retry.fixed(0.5, attempts=3), 3) == [0.5, 0.5, None]


def test_exponential_back_off_doubles_up_to_its_maximum() -> None:
    assert delays(Retry.exponential(0.1, 0.5, jitter=0, attempts=5), 5) == [0.1, 0.2, 0.4, 0.5, None]


def test_jitter_adds_up_to_its_own_size() -> None:
    retry = Retry.exponential(1.0, 1.0, jitter=0.25)
    for _ in range(50):
        delay = retry.next_delay(1, RuntimeError())
        assert delay is not None
        assert 1.0 <= delay <= 1.25


def test_never_means_one_delivery() -> None:
    assert delays(Retry.never(), 1) == [None]


@pytest.mark.parametrize("error", [ConversionError("no"), ValueError("no")])
def test_errors_that_are_not_retryable_are_recovered_at_once(error: Exception) -> None:
    assert ErrorHandler(not_retryable=(ConversionError, ValueError)).next_delay(1, error) is None


def test_retry_on_names_the_only_errors_that_are_retried() -> None:
    handler = ErrorHandler(retry_on=(OSError,))
    assert handler.next_delay(1, ConnectionError()) == 0.0
    assert handler.next_delay(1, ValueError()) is None
