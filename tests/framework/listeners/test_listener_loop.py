"""The loop of a container, without thread, client or clock."""

from __future__ import annotations

from typing import Any

import pytest

from ottla import AckMode, BatchListenerFailed, ErrorHandler, Retry, TopicPartition, stop_container
from ottla.error_handling.error_handler import StopContainer
from ottla.errors import ConversionError, GroupAuthorizationFailed
from ottla.listeners.conversion import UnfitRecord
from ottla.listeners.effects import Delivered, Poll
from ottla.listeners.unit_of_work import COMMIT_CHECK_SECONDS


class Boom(Exception):
    pass


class OtherBoom(Exception):
    pass


def failing_at(*offsets: int, times: int = 10**9, error: type[Exception] = Boom) -> Any:
    left = dict.fromkeys(offsets, times)

    def listener(record: Any) -> None:
        if left.get(record.offset, 0) > 0:
            left[record.offset] -= 1
            raise error(f"offset {record.offset}")

    return listener


def three_attempts(seconds: float = 0.0, **more: Any) -> ErrorHandler:
    return ErrorHandler(retry=Retry.fixed(seconds, attempts=3), **more)


def test_in_batch_mode_one_commit_follows_all_records_of_a_poll(rig: Any, make_record: Any) -> None:
    run = rig().run([make_record(0), make_record(1), make_record(7, partition=1)])
    assert run.commits == [{("orders", 0): 2, ("orders", 1): 8}]


def test_in_record_mode_each_record_is_committed_by_itself(rig: Any, make_record: Any) -> None:
    run = rig(ack=AckMode.RECORD).run([make_record(0), make_record(1)])
    assert run.commits == [{("orders", 0): 1}, {("orders", 0): 2}]


def test_in_record_mode_a_failing_record_commits_nothing_for_itself(rig: Any, make_record: Any) -> None:
    run = rig(ack=AckMode.RECORD, errors=three_attempts())
    run.listener = failing_at(1, times=1)
    run.run([make_record(0), make_record(1)])
    assert run.events == [
        ("commit", {("orders", 0): 1}),
        ("pause", [0]),
        ("commit", {("orders", 0): 2}),
        ("resume", [0]),
    ]


def test_count_mode_commits_once_enough_records_are_processed(rig: Any, make_record: Any) -> None:
    run = rig(ack=AckMode.COUNT, ack_count=3).run([make_record(0), make_record(1)], [make_record(2)], [make_record(3)])
    assert run.commits == [{("orders", 0): 3}, {("orders", 0): 4}]  # the second one when the container stops


def test_a_failed_record_is_delivered_again_before_what_follows_it_in_its_partition(rig: Any, make_record: Any) -> None:
    run = rig(errors=three_attempts(1.0))
    run.listener = failing_at(1, times=2)
    run.run([make_record(0), make_record(1), make_record(2)])
    assert run.delivered == [(0, 0, 1), (0, 1, 1), (0, 1, 2), (0, 1, 3), (0, 2, 1)]


def test_other_partitions_go_on_while_one_waits_for_its_back_off(rig: Any, make_record: Any) -> None:
    run = rig(errors=three_attempts(5.0))
    run.listener = failing_at(0, times=1)
    run.run([make_record(0), make_record(1), make_record(50, partition=1)], [make_record(51, partition=1)])
    assert run.delivered == [(0, 0, 1), (1, 50, 1), (1, 51, 1), (0, 0, 2), (0, 1, 1)]
    assert run.now_ms >= 5000


def test_a_partition_is_paused_while_it_waits_and_resumed_when_nothing_is_held(rig: Any, make_record: Any) -> None:
    run = rig(errors=three_attempts(1.0))
    run.listener = failing_at(0, times=2)
    run.run([make_record(0)])
    assert [e for e in run.events if e[0] in ("pause", "resume")] == [("pause", [0]), ("pause", [0]), ("resume", [0])]


def test_what_came_before_a_failed_record_is_committed_while_it_waits(rig: Any, make_record: Any) -> None:
    run = rig(errors=three_attempts(1.0))
    run.listener = failing_at(2, times=1)
    run.run([make_record(0), make_record(1), make_record(2)])
    assert run.commits == [{("orders", 0): 2}, {("orders", 0): 3}]


def test_after_the_last_attempt_the_record_is_recovered_committed_and_passed_over(rig: Any, make_record: Any) -> None:
    recovered = []
    run = rig(errors=three_attempts(recover=lambda record, error: recovered.append((record.offset, str(error)))))
    run.listener = failing_at(1)
    run.run([make_record(0), make_record(1), make_record(2)])
    assert [d[1] for d in run.delivered] == [0, 1, 1, 1, 2]
    assert recovered == [(1, "offset 1")]
    assert run.commits[-1] == {("orders", 0): 3}


def test_by_default_there_are_ten_deliveries(rig: Any, make_record: Any) -> None:
    run = rig()
    run.listener = failing_at(0)
    run.run([make_record(0)])
    assert [d[2] for d in run.delivered] == list(range(1, 11))


def test_an_error_that_no_delivery_can_mend_is_recovered_at_once(rig: Any, make_record: Any) -> None:
    run = rig()
    run.listener = failing_at(0, error=ConversionError)
    run.run([make_record(0), make_record(1)])
    assert [d[1] for d in run.delivered] == [0, 1]
    assert ("recover", 0) in run.events


def test_the_cause_of_an_error_decides_too(rig: Any, make_record: Any) -> None:
    def listener(record: Any) -> None:
        raise Boom from ConversionError("the payload does not fit")

    run = rig()
    run.listener = listener
    run.run([make_record(0)])
    assert len(run.delivered) == 1


def test_an_error_of_another_type_starts_the_back_off_anew(rig: Any, make_record: Any) -> None:
    errors = iter([Boom, Boom, OtherBoom, OtherBoom, OtherBoom])

    def listener(record: Any) -> None:
        raise next(errors)

    run = rig(errors=three_attempts())
    run.listener = listener
    run.run([make_record(0)])
    assert len(run.delivered) == 5


def test_a_recovery_that_fails_means_more_deliveries_not_a_lost_record(rig: Any, make_record: Any) -> None:
    outcomes = iter([RuntimeError("the dead-letter topic is full"), None])

    def recover(record: Any, error: BaseException) -> None:
        failure = next(outcomes)
        if failure:
            raise failure

    run = rig(errors=three_attempts(recover=recover))
    run.listener = failing_at(0)
    run.run([make_record(0)])
    assert [e for e in run.events if e[0] == "recover"] == [("recover", 0), ("recover", 0)]
    assert len(run.delivered) == 6
    assert run.commits == [{("orders", 0): 1}]


def test_the_stopping_error_handler_ends_the_loop_at_the_record(rig: Any, make_record: Any) -> None:
    run = rig(errors=ErrorHandler(retry=Retry.never(), recover=stop_container))
    run.listener = failing_at(1)
    with pytest.raises(StopContainer, match="orders-0@1"):
        run.run([make_record(0), make_record(1)])


def test_a_revoked_partition_takes_its_held_records_with_it(rig: Any, make_record: Any) -> None:
    run = rig(errors=three_attempts(1.0))
    run.listener = failing_at(1, times=1)

    def revoke(_: Any) -> None:
        run.paused.clear()
        run.events.append(("revoked", run.loop.revoked([TopicPartition("orders", 0)])))

    def failing_then_revoking(record: Any, fail: Any = run.listener) -> None:
        try:
            fail(record)
        except Boom:
            run.control.requests.append(revoke)
            raise

    run.listener = failing_then_revoking
    run.run([make_record(0), make_record(1), make_record(2)], [])
    assert [d[1] for d in run.delivered] == [0, 1]
    assert run.commits == [{("orders", 0): 1}]


def test_revocation_gives_what_is_processed_and_not_committed_yet(rig: Any, make_record: Any) -> None:
    run = rig(ack=AckMode.COUNT, ack_count=100)
    given: list[Any] = []
    run.control.requests.append(lambda _: None)
    run.listener = lambda record: run.control.requests.append(
        lambda _: given.append(run.loop.revoked([TopicPartition("orders", 0)]))
    )
    run.run([make_record(4)])
    assert [offset.offset for offset in given[0].values()] == [5]
    assert run.commits == []


def test_for_a_lost_partition_nothing_is_committed(rig: Any, make_record: Any) -> None:
    run = rig(ack=AckMode.COUNT, ack_count=100)
    run.listener = lambda record: run.control.requests.append(lambda _: run.loop.lost([TopicPartition("orders", 0)]))
    run.run([make_record(4)])
    assert run.commits == []


def test_a_commit_that_may_be_tried_again_is_tried_again(rig: Any, make_record: Any) -> None:
    run = rig()
    run.commit_failures = [TimeoutError()]
    run.run([make_record(0)])
    assert run.commits == [{("orders", 0): 1}]


def test_one_commit_is_under_way_at_a_time_and_the_next_has_all_that_came_since(rig: Any, make_record: Any) -> None:
    run = rig()
    run.confirms = False

    def listener(record: Any) -> None:
        if record.offset == 3:
            run.loop.work.committed(None)

    run.listener = listener
    run.run([make_record(0)], [make_record(1)], [make_record(2)], [make_record(3)])
    assert run.commits[:2] == [{("orders", 0): 1}, {("orders", 0): 4}]


def test_a_commit_that_was_not_confirmed_is_repeated_and_waited_for_at_the_end(rig: Any, make_record: Any) -> None:
    run = rig()
    run.confirms = False
    run.run([make_record(0)])
    assert run.commits == [{("orders", 0): 1}, {("orders", 0): 1}]


def test_revocation_repeats_a_commit_that_was_not_confirmed(rig: Any, make_record: Any) -> None:
    run = rig()
    run.confirms = False
    given: list[Any] = []
    run.polls = [[make_record(4)]]

    def revoke(_: Any) -> None:
        given.append(run.loop.revoked([TopicPartition("orders", 0)]))

    effects = run.loop.run()
    outcome = None
    while not run.commits:
        outcome = run._perform(effects.send(outcome))
    revoke(None)
    assert [offset.offset for offset in given[0].values()] == [5]


def test_polls_within_a_few_milliseconds_share_a_commit(rig: Any, make_record: Any) -> None:
    run = rig(commits_apart_ms=10)
    times = iter([0, 4, 9, 10, 25])

    def listener(record: Any) -> None:
        run.now_ms = next(times)

    run.listener = listener
    run.run(*([make_record(offset)] for offset in range(5)))
    assert run.commits == [{("orders", 0): offset} for offset in (1, 4, 5)]


def test_what_waits_for_the_next_commit_shortens_the_poll(rig: Any, make_record: Any) -> None:
    run = rig(commits_apart_ms=10)
    timeouts = []
    run.polls = [[make_record(0)], [make_record(1)], []]
    effects = run.loop.run()
    outcome: Any = None
    while len(timeouts) < 3:
        effect = effects.send(outcome)
        if isinstance(effect, Poll):
            timeouts.append(effect.timeout)
        outcome = run._perform(effect)
    assert timeouts == [1.0, 1.0, COMMIT_CHECK_SECONDS]


def test_a_commit_that_cannot_be_mended_ends_the_loop(rig: Any, make_record: Any) -> None:
    run = rig()
    run.commit_failures = [GroupAuthorizationFailed("no")]
    with pytest.raises(GroupAuthorizationFailed):
        run.run([make_record(0)], [make_record(1)])


def test_filtered_records_never_reach_the_listener_and_are_committed(rig: Any, make_record: Any) -> None:
    run = rig(record_filter=lambda record: record.offset == 1).run([make_record(0), make_record(1)])
    assert [d[1] for d in run.delivered] == [0]
    assert run.commits == [{("orders", 0): 2}]


def test_a_nack_redelivers_the_record_and_what_follows_after_its_delay(rig: Any, make_record: Any) -> None:
    nacks = iter([True, False, False])

    def listener(record: Any) -> Delivered | None:
        if record.offset == 1 and next(nacks):
            return Delivered(0, nack_delay=2.0)
        run.acks.acknowledge(record)
        return None

    run = rig(ack=AckMode.MANUAL)
    run.listener = listener
    run.run([make_record(0), make_record(1), make_record(2)])
    assert [d[1] for d in run.delivered] == [0, 1, 1, 2]
    assert run.now_ms >= 2000
    assert run.commits == [{("orders", 0): 1}, {("orders", 0): 3}]


def test_a_stop_without_drain_leaves_the_rest_of_the_poll_uncommitted(rig: Any, make_record: Any) -> None:
    def listener(record: Any) -> Delivered | None:
        run.control.stopping = True
        return Delivered(0, stopped=True) if record.offset == 1 else None

    run = rig()
    run.listener = listener
    run.run([make_record(0), make_record(1), make_record(2)])
    assert run.commits == [{("orders", 0): 1}]


def test_a_paused_container_polls_on_and_delivers_nothing_that_is_held(rig: Any, make_record: Any) -> None:
    run = rig(errors=three_attempts(0.0))

    def listener(record: Any) -> None:
        if not run.control.paused:
            run.control.paused = True
            raise Boom
        raise AssertionError("delivered while paused")

    run.listener = listener
    run.polls = [[make_record(0)], [], [], []]
    effects = run.loop.run()
    outcome: Any = None
    for _ in range(12):
        outcome = run._perform(effects.send(outcome))
    assert run.loop.is_paused
    assert "PauseAll" in run.events
    assert len(run.delivered) == 1


def test_a_seek_of_a_held_partition_does_not_undo_the_pause_of_its_container(rig: Any, make_record: Any) -> None:
    run = rig(errors=three_attempts(60.0))

    def listener(record: Any) -> None:
        run.control.paused = True
        raise Boom

    run.listener = listener
    run.polls = [[make_record(0)], [], []]
    effects = run.loop.run()
    outcome: Any = None
    while not run.all_paused:
        outcome = run._perform(effects.send(outcome))
    run.control.requests.append(lambda _: run.loop.seeking(TopicPartition("orders", 0)))
    while run.polls:
        outcome = run._perform(effects.send(outcome))
    assert ("resume", [0]) not in run.events
    assert run.all_paused
    run.control.paused = False
    while run.all_paused:
        outcome = run._perform(effects.send(outcome))
    assert not run.paused


def test_newly_assigned_partitions_of_a_paused_container_start_paused(rig: Any) -> None:
    run = rig()
    run.control.paused = True
    assert run.loop.to_pause([TopicPartition("orders", 0)]) == [TopicPartition("orders", 0)]


def test_a_batch_that_fails_is_delivered_again_whole(rig: Any, make_record: Any) -> None:
    outcomes = iter([Delivered(0, Boom()), None])
    run = rig(batch=True, errors=three_attempts())
    run.listener = lambda records: next(outcomes)
    run.run([make_record(0), make_record(1)])
    assert run.batches == [[0, 1], [0, 1]]
    assert run.commits == [{("orders", 0): 2}]


def test_a_batch_listener_that_points_at_a_record_has_the_ones_before_committed(rig: Any, make_record: Any) -> None:
    outcomes = iter([Delivered(0, BatchListenerFailed(2)), None])
    run = rig(batch=True, errors=three_attempts())
    run.listener = lambda records: next(outcomes)
    run.run([make_record(n) for n in range(4)])
    assert run.batches == [[0, 1, 2, 3], [2, 3]]
    assert run.commits == [{("orders", 0): 2}, {("orders", 0): 4}]


def test_a_pointed_at_record_is_recovered_alone_and_the_rest_delivered(rig: Any, make_record: Any) -> None:
    outcomes = iter([*(Delivered(0, BatchListenerFailed(i)) for i in (1, 0, 0)), None])
    run = rig(batch=True, errors=three_attempts())
    run.listener = lambda records: next(outcomes)
    run.run([make_record(n) for n in range(3)])
    assert run.batches == [[0, 1, 2], [1, 2], [1, 2], [2]]
    assert [e for e in run.events if e[0] == "recover"] == [("recover", 1)]


def test_every_record_of_a_batch_is_recovered_when_none_was_pointed_at(rig: Any, make_record: Any) -> None:
    run = rig(batch=True, errors=three_attempts())
    run.listener = lambda records: Delivered(0, Boom())
    run.run([make_record(0), make_record(1)])
    assert len(run.batches) == 3
    assert [e for e in run.events if e[0] == "recover"] == [("recover", 0), ("recover", 1)]
    assert run.commits == [{("orders", 0): 2}]


def unfit_at(*offsets: int) -> Any:
    """A batch listener that some records cannot be given to."""

    def listener(records: Any) -> Delivered | None:
        for index, one in enumerate(records):
            if one.offset in offsets:
                cause = ConversionError(f"offset {one.offset}")
                error = UnfitRecord(index, cause)
                return Delivered(0, error)
        return None

    return listener


def test_a_record_that_a_batch_listener_cannot_take_is_recovered_alone(rig: Any, make_record: Any) -> None:
    recovered = []
    run = rig(batch=True, errors=ErrorHandler(recover=lambda record, error: recovered.append((record.offset, error))))
    run.listener = unfit_at(1, 3)
    run.run([make_record(n) for n in range(5)])
    assert run.batches == [[0, 1, 2, 3, 4], [0], [2, 3, 4], [2], [4]]
    assert [(offset, type(error)) for offset, error in recovered] == [(1, ConversionError), (3, ConversionError)]
    assert run.commits == [{("orders", 0): 5}]


def test_a_batch_of_nothing_but_unfit_records_is_recovered_one_by_one(rig: Any, make_record: Any) -> None:
    run = rig(batch=True, errors=ErrorHandler(recover=lambda record, error: None))
    run.listener = unfit_at(*range(1000))
    run.run([make_record(n) for n in range(1000)])
    assert [e[1] for e in run.events if e[0] == "recover"] == list(range(1000))


def test_an_unfit_record_waits_behind_what_failed_before_it_in_its_partition(rig: Any, make_record: Any) -> None:
    failures = iter([Boom(), None, None, None, None])
    unfit = unfit_at(2)

    def listener(records: Any) -> Delivered | None:
        outcome: Delivered | None = unfit(records)
        failure = None if outcome else next(failures)
        return Delivered(0, failure) if failure else outcome

    run = rig(batch=True, errors=three_attempts(1.0, recover=lambda record, error: None))
    run.listener = listener
    records = [make_record(0), make_record(1), make_record(2), make_record(7, partition=1), make_record(3)]
    run.run(records)
    # [0, 1] fails: 2 and 3 stay behind it, and partition 1 goes on.
    assert run.batches == [[0, 1, 2, 7, 3], [0, 1], [7], [0, 1, 2, 3], [0, 1], [3]]
    assert run.commits[-1] == {("orders", 0): 4}


def test_an_unfit_record_may_be_tried_again_if_the_error_handler_says_so(rig: Any, make_record: Any) -> None:
    run = rig(batch=True, errors=three_attempts(1.0, not_retryable=(), recover=lambda record, error: None))
    run.listener = unfit_at(1)
    run.run([make_record(0), make_record(1), make_record(2)])
    assert run.batches == [[0, 1, 2], [0], [1, 2], [1, 2], [2]]
    assert run.now_ms >= 2000


def test_a_filtered_record_does_not_take_a_failed_one_before_it_along(rig: Any, make_record: Any) -> None:
    """The offset behind it would cover the failed one: after a crash nobody would deliver that again."""
    loop = rig(record_filter=lambda record: record.offset == 1)

    def fails_once(record: Any) -> None:
        assert loop.commits == []
        if record.delivery_attempt == 1:
            raise ValueError

    loop.listener = fails_once
    loop.run([make_record(0), make_record(1)])
    assert [attempt for _, _, attempt in loop.delivered] == [1, 2]
    assert loop.commits == [{("orders", 0): 1}]
