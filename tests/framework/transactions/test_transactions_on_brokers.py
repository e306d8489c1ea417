"""`with template.transaction()` on our broker and on Apache Kafka: what readers see, and what happens to zombies."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ottla import KafkaTemplate, ProducerFactory, TopicPartition
from ottla.client import KafkaConsumer
from ottla.client.topic_partition import ConsumerGroupMetadata
from ottla.errors import (
    CommitFailed,
    MessageTooLarge,
    NotInTransaction,
    ProducerFenced,
    SendError,
    TransactionTimedOut,
)
from support.clusters import ClusterUnderTest, eventually


def test_both_sends_are_visible_at_once_after_the_commit_and_none_before(
    cluster: ClusterUnderTest, live_template: KafkaTemplate, reader: Any
) -> None:
    topic = cluster.create_topic()
    with live_template.transaction():
        live_template.send(topic, "a").result(10)
        live_template.send(topic, "b").result(10)
        assert reader.values(topic) == []
        assert reader.all_values(topic) == ["a", "b"]
    reader.assert_sees(topic, "a", "b")


def test_an_error_in_the_block_makes_both_sends_invisible(
    cluster: ClusterUnderTest, live_template: KafkaTemplate, reader: Any
) -> None:
    topic = cluster.create_topic()
    with pytest.raises(ValueError, match="own"), live_template.transaction():
        live_template.send(topic, "a").result(10)
        live_template.send(topic, "b").result(10)
        raise ValueError("own")
    assert reader.values(topic) == []
    assert reader.all_values(topic) == ["a", "b"]


def test_an_inner_transaction_of_its_own_is_visible_before_the_outer_one_and_survives_its_rollback(
    cluster: ClusterUnderTest, live_template: KafkaTemplate, reader: Any
) -> None:
    topic = cluster.create_topic()
    with pytest.raises(ValueError, match="outer"), live_template.transaction():
        live_template.send(topic, "outer")
        with live_template.transaction(propagation="requires_new"):
            live_template.send(topic, "inner").result(10)
        assert reader.all_values(topic)[-1:] == ["inner"]
        raise ValueError("outer")
    reader.assert_sees(topic, "inner")


def test_a_plain_send_is_refused_and_nothing_is_written(
    cluster: ClusterUnderTest, live_template: KafkaTemplate, reader: Any
) -> None:
    topic = cluster.create_topic()
    with pytest.raises(NotInTransaction):
        live_template.send(topic, "a")
    assert reader.all_values(topic) == []


def test_where_plain_sends_are_allowed_they_do_not_wait_for_a_commit(
    cluster: ClusterUnderTest, make_live_factory: Callable[..., ProducerFactory], reader: Any
) -> None:
    topic, other = cluster.create_topic(), cluster.create_topic()
    template = KafkaTemplate(make_live_factory(), allow_non_transactional=True)
    template.send(topic, "plain").result(10)
    reader.assert_sees(topic, "plain")
    with template.transaction():
        template.send(other, "inside").result(10)
        assert reader.values(other) == []
    reader.assert_sees(other, "inside")


def test_a_record_that_is_too_large_aborts_the_rest_and_is_what_is_raised(
    cluster: ClusterUnderTest, live_template: KafkaTemplate, reader: Any
) -> None:
    topic = cluster.create_topic()
    with pytest.raises(SendError) as caught, live_template.transaction():
        live_template.send(topic, "good")
        live_template.send(topic, "x" * 2_000_000)
        live_template.send(topic, "good, too")
    assert isinstance(caught.value.__cause__, MessageTooLarge)
    assert reader.values(topic) == []
    with live_template.transaction():
        live_template.send(topic, "the next one")
    reader.assert_sees(topic, "the next one")


def test_a_record_that_the_broker_refuses_aborts_the_rest(
    cluster: ClusterUnderTest, live_template: KafkaTemplate, reader: Any
) -> None:
    topic, small = cluster.create_topic(), cluster.create_topic(max_message_bytes="200")
    with pytest.raises(SendError) as caught, live_template.transaction():
        live_template.send(topic, "good")
        live_template.send(small, "x" * 1000)
    assert caught.value.record.topic == small
    assert reader.values(topic) == []
    with live_template.transaction():
        live_template.send(topic, "the next one")
    reader.assert_sees(topic, "the next one")


def test_offsets_are_committed_with_the_transaction_and_only_then(
    cluster: ClusterUnderTest, live_template: KafkaTemplate, reader: Any
) -> None:
    topic, group = cluster.create_topic(), cluster.fresh("group")
    partition = TopicPartition(topic, 0)
    with pytest.raises(KeyError), live_template.transaction() as tx:
        tx.send_offsets({partition: 5}, ConsumerGroupMetadata(group))
        raise KeyError
    assert reader.committed(group) == {}
    with live_template.transaction() as tx:
        tx.send_offsets({partition: 7}, ConsumerGroupMetadata(group))
    reader.assert_committed(group, {0: 7})


@pytest.mark.slow
def test_a_member_of_an_old_generation_cannot_commit_its_transaction(
    cluster: ClusterUnderTest, live_template: KafkaTemplate, reader: Any
) -> None:
    """The zombie needs no stable id to be fenced: its group metadata is checked (KIP-447)."""
    source, target, group = cluster.create_topic(2), cluster.create_topic(), cluster.fresh("group")
    settings = {"bootstrap_servers": cluster.bootstrap_servers, "group_id": group, "enable_auto_commit": False}
    with KafkaConsumer(settings) as first, KafkaConsumer(settings) as second:
        first.subscribe([source])
        eventually(lambda: first.poll(0.1) or first.assignment())
        stale = first.group_metadata()
        second.subscribe([source])

        def shared() -> bool:
            first.poll(0.1)
            second.poll(0.1)
            return bool(second.assignment())

        eventually(shared)
        with pytest.raises(CommitFailed), live_template.transaction() as tx:
            live_template.send(target, "of a zombie")
            tx.send_offsets({TopicPartition(source, 0): 1}, stale)
        assert reader.values(target) == []
        assert reader.committed(group) == {}
        with live_template.transaction() as tx:
            live_template.send(target, "of a member")
            tx.send_offsets({TopicPartition(source, 0): 1}, first.group_metadata())
    reader.assert_sees(target, "of a member")
    reader.assert_committed(group, {0: 1})


def test_two_hosts_with_one_id_show_as_a_fence_that_names_both_owners(
    cluster: ClusterUnderTest,
    make_live_factory: Callable[..., ProducerFactory],
    reader: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another host cannot see this one's locks; here another folder for the locks plays that host."""
    topic, prefix = cluster.create_topic(), f"{cluster.fresh('tx')}-"
    here = KafkaTemplate(make_live_factory(transaction_id_prefix=prefix, client_id="here"))
    with here.transaction():
        here.send(topic, "first")
    with pytest.raises(ProducerFenced) as caught, here.transaction() as tx:
        here.send(topic, "second").result(10)
        monkeypatch.setenv("OTTLA_STATE_DIR", str(tmp_path / "another host"))
        there = KafkaTemplate(make_live_factory(transaction_id_prefix=prefix, client_id="there"))
        with there.transaction() as theirs:
            assert theirs.transactional_id == tx.transactional_id
            there.send(topic, "theirs")
    message = "\n".join([str(caught.value), *getattr(caught.value, "__notes__", [])])
    assert f"{prefix}0" in message
    assert "here" in message, "this owner: its client id, process and host"
    assert str(os.getpid()) in message
    if cluster.name == "ottla":
        assert "there" in message
    reader.assert_sees(topic, "first", "theirs")


def test_a_fence_by_an_administrator_gives_no_advice_on_prefixes(
    cluster: ClusterUnderTest, live_template: KafkaTemplate, reader: Any
) -> None:
    topic = cluster.create_topic()
    with pytest.raises(ProducerFenced) as caught, live_template.transaction() as tx:
        live_template.send(topic, "a").result(10)
        cluster.admin.fence_producers([tx.transactional_id])
    assert tx.transactional_id in str(caught.value)
    if cluster.name == "ottla":
        assert caught.value.reason is not None
        assert caught.value.reason.by_administrator
        assert "an administrator's client" in str(caught.value)
        assert "OTTLA_INSTANCE" not in str(caught.value)
    assert reader.values(topic) == []
    with live_template.transaction():
        live_template.send(topic, "b")
    reader.assert_sees(topic, "b")


def test_a_transaction_that_takes_too_long_is_not_fenced_and_its_producer_goes_on(
    cluster: ClusterUnderTest, live_template: KafkaTemplate, reader: Any
) -> None:
    topic = cluster.create_topic()
    with pytest.raises(TransactionTimedOut), live_template.transaction(timeout=0.2):
        live_template.send(topic, "too slow").result(10)
        eventually(lambda: not live_template.in_transaction)
    with live_template.transaction() as tx:
        live_template.send(topic, "quick enough")
        assert tx.transactional_id.endswith("-0")
    reader.assert_sees(topic, "quick enough")


def test_many_tasks_with_a_transaction_each(
    cluster: ClusterUnderTest, live_template: KafkaTemplate, reader: Any
) -> None:
    topic = cluster.create_topic(4)

    async def work(number: int) -> None:
        try:
            async with live_template.transaction():
                await live_template.send(topic, f"{number:02}", partition=number % 4)
                await asyncio.to_thread(live_template.send, topic, f"{number:02}!", partition=(number + 1) % 4)
                if number % 3 == 0:
                    raise ValueError
        except ValueError:
            pass

    async def main() -> None:
        await asyncio.gather(*[work(number) for number in range(30)])

    asyncio.run(main())
    expected = {f"{number:02}{mark}" for number in range(30) if number % 3 for mark in ("", "!")}
    eventually(lambda: set(reader.values(topic, partitions=4)) == expected)


def test_ids_are_those_in_the_brokers_list_of_transactions(
    cluster: ClusterUnderTest, live_template: KafkaTemplate
) -> None:
    topic = cluster.create_topic()
    with live_template.transaction() as tx:
        live_template.send(topic, "x").result(10)
        open_ones = {one.transactional_id: one for one in cluster.admin.list_transactions()}
        assert tx.transactional_id in open_ones


CRASH = """
import os, signal, sys
from ottla import KafkaTemplate, ProducerFactory
servers, prefix, topic = sys.argv[1:]
template = KafkaTemplate(ProducerFactory(bootstrap_servers=servers, transaction_id_prefix=prefix, linger_ms=0))
with template.transaction() as outer:
    template.send(topic, "of the dead").result(10)
    with template.transaction(propagation="requires_new") as inner:
        template.send(topic, "of the dead, too").result(10)
        print(outer.transactional_id, inner.transactional_id, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_a_process_that_was_killed_leaves_no_transaction_open_once_it_is_started_again(
    cluster: ClusterUnderTest, make_live_factory: Callable[..., ProducerFactory], reader: Any
) -> None:
    """Also not that of an id which the new process would not have needed by itself."""
    topic, prefix = cluster.create_topic(), f"{cluster.fresh('tx')}-"
    script = [sys.executable, "-c", textwrap.dedent(CRASH), cluster.bootstrap_servers, prefix, topic]
    done = subprocess.run(script, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert done.stdout.split() == [f"{prefix}0", f"{prefix}1"]
    restarted = KafkaTemplate(make_live_factory(transaction_id_prefix=prefix))
    with restarted.transaction() as tx:
        assert tx.transactional_id == f"{prefix}0"
        restarted.send(topic, "of the living")
    eventually(lambda: reader.values(topic) == ["of the living"], seconds=20)
