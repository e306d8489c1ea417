from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from typing import Any

import pytest

from ottla.client.config import ClientConfig
from ottla.client.engine import Engine
from ottla.errors import ClientClosed, NoAnswer


@pytest.fixture
def engine() -> Any:
    made = Engine(ClientConfig(bootstrap_servers="127.0.0.1:1"))
    yield made
    made.close(5)


async def thread_name() -> str:
    return threading.current_thread().name


async def forever() -> None:
    await asyncio.get_running_loop().create_future()


def test_nothing_starts_before_the_first_use() -> None:
    before = threading.active_count()
    Engine(ClientConfig())
    assert threading.active_count() == before


def test_a_coroutine_runs_on_the_io_thread_and_its_result_comes_back(engine: Engine) -> None:
    assert engine.run(thread_name()) == "ottla-client"


def test_what_takes_too_long_is_cancelled_and_named(engine: Engine) -> None:
    with pytest.raises(NoAnswer, match=r"AdminClient\.list_topics"):
        engine.run(forever(), 0.01, name="AdminClient.list_topics")


def test_a_call_that_ends_while_no_broker_can_be_reached_says_so(engine: Engine) -> None:
    cluster = engine.cluster
    with pytest.raises(NoAnswer):
        engine.run(cluster.refresh(timeout_ms=200))
    with pytest.raises(
        NoAnswer, match=r"did not finish within 0\.01 s; the last attempt: .*127\.0\.0\.1:1.*cannot be reached"
    ):
        engine.run(forever(), 0.01)


def test_a_blocking_call_on_an_event_loop_is_refused_and_names_the_async_form(engine: Engine) -> None:
    async def scenario() -> None:
        with pytest.raises(RuntimeError, match=r"await AsyncThing\.do"):
            engine.run(thread_name(), name="AsyncThing.do(...)")

    asyncio.run(scenario())


def test_a_blocking_call_on_the_io_thread_itself_is_refused(engine: Engine) -> None:
    async def scenario() -> None:
        with pytest.raises(RuntimeError, match="callback"):
            engine.run(thread_name())

    engine.run(scenario())


def test_call_is_awaited_from_any_loop(engine: Engine) -> None:
    async def scenario() -> str:
        return await engine.call(thread_name())

    assert asyncio.run(scenario()) == "ottla-client"


def test_posts_run_in_order_and_a_failing_one_stops_nobody(engine: Engine) -> None:
    seen: list[int] = []
    done = threading.Event()

    def fail() -> None:
        raise ValueError("not yours")

    engine.post(seen.append, 1)
    engine.post(fail)
    engine.post(seen.append, 2)
    engine.post(done.set)
    assert done.wait(5)
    assert seen == [1, 2]


def test_a_closed_engine_says_so_and_lets_its_thread_end(engine: Engine) -> None:
    engine.run(thread_name())
    thread = engine._thread
    engine.close(5)
    assert thread is not None
    assert not thread.is_alive()
    with pytest.raises(ClientClosed):
        engine.run(thread_name())
    engine.post(print, "nobody is there")


def test_closing_on_the_io_thread_does_not_wait_for_itself(engine: Engine) -> None:
    async def close() -> None:
        engine.close()

    engine.run(close())
    assert engine._thread is not None
    engine._thread.join(5)
    assert not engine._thread.is_alive()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_in_a_forked_child_the_parents_engine_refuses_to_work() -> None:
    program = """
import os, sys
from ottla.client.config import ClientConfig
from ottla.client.engine import Engine
from ottla.errors import ClientClosed

async def nothing(): return 1

engine = Engine(ClientConfig(bootstrap_servers="127.0.0.1:1"))
assert engine.run(nothing()) == 1
child = os.fork()
if child == 0:
    try:
        engine.run(nothing())
    except ClientClosed as error:
        own = Engine(ClientConfig(bootstrap_servers="127.0.0.1:1"))
        os._exit(0 if "fork" in str(error) and own.run(nothing()) == 1 else 3)
    os._exit(4)
_, status = os.waitpid(child, 0)
assert engine.run(nothing()) == 1
sys.exit(os.waitstatus_to_exitcode(status))
"""
    done = subprocess.run([sys.executable, "-c", program], timeout=60, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_duties_are_done_at_interpreter_exit_before_the_thread_ends() -> None:
    program = """
from ottla.client.config import ClientConfig
from ottla.client.engine import Engine

async def nothing(): return 1

engine = Engine(ClientConfig(bootstrap_servers="127.0.0.1:1"))
engine.run(nothing())
engine.at_exit(lambda: print("duty", engine.run(nothing())))
forgotten = lambda: print("forgotten")
engine.at_exit(forgotten)
engine.forget_exit(forgotten)
"""
    done = subprocess.run([sys.executable, "-c", program], timeout=60, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["duty", "1"]
    assert done.stderr == ""
