"""Transactional ids: unique among the processes of a host, the same again after a restart."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ottla import KafkaTemplate, Ottla
from ottla.errors import ConfigError, CoordinatorNotAvailable
from ottla.testing import wait_for
from ottla.transaction.slots import Slots, default_prefix, state_folder

HOLD = """
import sys
from ottla.transaction.slots import Slots
slots = Slots()
held = [slots.take(sys.argv[1]) for _ in range(int(sys.argv[2]))]
print(*[slot.transactional_id for slot in held], flush=True)
sys.stdin.readline()
for slot in held:
    slot.release()
"""


class Holder:
    """Another process of this host that holds slots."""

    def __init__(self, prefix: str, count: int) -> None:
        command = [sys.executable, "-c", HOLD, prefix, str(count)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.ids = self.process.stdout.readline().split()

    def kill(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.communicate(timeout=10)

    def end(self) -> None:
        self.process.communicate("\n", timeout=10)


@pytest.fixture
def hold() -> Iterator[Callable[..., Holder]]:
    holders: list[Holder] = []

    def make(prefix: str, count: int = 1) -> Holder:
        holders.append(Holder(prefix, count))
        return holders[-1]

    yield make
    for holder in holders:
        if holder.process.poll() is None:
            holder.kill()


def test_two_processes_of_a_host_never_share_an_id(hold: Any) -> None:
    first, second = hold("app-", 2), hold("app-", 2)
    assert (first.ids, second.ids) == (["app-0", "app-1"], ["app-2", "app-3"])
    assert Slots().take("app-").transactional_id == "app-4"
    assert Slots().take("other-").transactional_id == "other-0"


def test_a_process_that_was_killed_leaves_its_ids_to_the_next(hold: Any) -> None:
    first = hold("app-", 2)
    first.kill()
    assert hold("app-", 2).ids == first.ids


def test_what_a_killed_process_left_behind_is_found_and_what_a_running_one_holds_is_not_taken(hold: Any) -> None:
    dead, alive = hold("app-", 2), hold("app-", 1)
    dead.kill()
    slots = Slots()
    assert slots.left_behind("app-") == [0, 1, 2]
    taken = [slots.take_number("app-", number) for number in slots.left_behind("app-")]
    assert [slot.transactional_id if slot else None for slot in taken] == ["app-0", "app-1", None]
    assert alive.ids == ["app-2"]
    for slot in taken[:2]:
        assert slot is not None
        slot.release()
    assert Slots().left_behind("app-") == [2]


def test_a_process_that_ended_in_good_order_leaves_nothing_behind(hold: Any) -> None:
    hold("app-", 2).end()
    assert Slots().left_behind("app-") == []


def test_a_note_names_its_owner(state_folder: Path) -> None:
    Slots(client_id="shop").take("app-")
    note = json.loads(next(state_folder.rglob("0.json")).read_text())
    assert (note["pid"], note["client_id"]) == (os.getpid(), "shop")


def test_two_factories_of_a_process_have_ids_of_their_own(make_factory: Callable[..., Any]) -> None:
    templates = [KafkaTemplate(make_factory(transaction_id_prefix="app-")) for _ in range(2)]
    with templates[0].transaction() as first, templates[1].transaction() as second:
        assert (first.transactional_id, second.transactional_id) == ("app-0", "app-1")


def test_every_id_that_a_killed_process_left_is_registered_again_at_the_first_transaction(
    hold: Any, make_factory: Callable[..., Any], fake_kafka: Any
) -> None:
    """So that what it left open is aborted, also under ids that this process does not need itself."""
    dead, alive = hold("app-", 3), hold("app-", 1)
    dead.kill()
    factory = make_factory(transaction_id_prefix="app-")
    with KafkaTemplate(factory).transaction():
        pass
    wait_for(lambda: len(fake_kafka.happened("init")) == 3)
    assert sorted(fake_kafka.happened("init")) == [f"init app-{number}@0" for number in range(3)]
    assert alive.ids == ["app-3"]
    factory.close()
    assert Slots().left_behind("app-") == [3]


def test_what_could_not_be_ended_is_left_for_the_next_process(
    hold: Any, make_factory: Callable[..., Any], fake_kafka: Any
) -> None:
    hold("app-", 1).kill()
    fake_kafka.fail("init", CoordinatorNotAvailable())
    factory = make_factory(transaction_id_prefix="app-")
    assert factory.producer_pools().end_left_behind_soon("app-").result(5) == 0
    assert Slots().left_behind("app-") == [0]
    assert factory.producer_pools().end_left_behind_soon("app-").result(5) == 1
    assert Slots().left_behind("app-") == []


def test_a_factory_ends_what_was_left_behind_without_a_transaction_of_its_own(
    hold: Any, make_factory: Callable[..., Any], fake_kafka: Any
) -> None:
    factory = make_factory(transaction_id_prefix="app-")
    factory.end_left_behind()
    assert factory._pools is None, "there is nothing, and nothing is started for it"
    hold("app-", 1).kill()
    factory.end_left_behind()
    wait_for(lambda: fake_kafka.happened("init") == ["init app-0@0"])


def test_after_a_commit_of_unknown_outcome_the_id_counts_as_left_behind(
    template: KafkaTemplate, fake_kafka: Any
) -> None:
    fake_kafka.fail("commit", TimeoutError())
    with pytest.raises(TimeoutError), template.transaction():
        template.send("t", "x")
    assert Slots().left_behind("tx-") == [0]


def test_the_default_prefix_names_program_host_and_user_or_program_and_instance(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "web1")
    monkeypatch.setattr("getpass.getuser", lambda: "shop")
    assert default_prefix("orders") == "orders-web1-shop-"
    assert default_prefix("orders", "blue") == "orders-blue-"
    monkeypatch.setenv("OTTLA_INSTANCE", "green")
    assert default_prefix("orders") == "orders-green-"


def test_an_applications_ids_name_it_and_its_instance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTTLA_INSTANCE", "blue")
    assert Ottla("localhost:1", name="shop").producer_factory.default_prefix() == "shop-blue-"


def test_a_prefix_may_hold_what_file_names_may_not() -> None:
    strange = "a/b:c*" + "x" * 300
    assert Slots().take(strange).transactional_id == f"{strange}0"
    assert Slots().left_behind(strange) == [0]


def test_a_folder_that_cannot_be_written_to_is_named_with_the_variable_that_names_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("OTTLA_STATE_DIR", str(tmp_path / "file"))
    with pytest.raises(ConfigError, match="OTTLA_STATE_DIR"):
        Slots().take("app-")


def test_the_folder_is_the_users_own_for_state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("OTTLA_STATE_DIR")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert state_folder().parts[-1] == "ottla"
    assert tmp_path in state_folder().parents
