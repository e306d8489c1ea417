"""Slots: which transactional ids this process may use, so that no two processes of a host ever use the same one.

Theory of operation. A transactional id is `prefix + number`. A process that wants one takes the lowest number that is
free on this host: it holds an exclusive lock on a file of that name. The operating system gives the lock up with the
process, however it ends, so a restart finds its numbers free again, and a number is never stale. Taking the same id
again is what ends a transaction that the dead process left open (InitProducerId aborts it).

Beside each lock lies a note of its owner, written when the lock is taken and removed when it is given up in good order.
A note without a lock is therefore the trace of a process that died: `left_behind` finds those numbers, also the ones
that the new process would not need by itself, so that no transaction stays open until its time-out.

The files lie in a folder of the user (`OTTLA_STATE_DIR`, else the platform's own for application state). Two users, or
two hosts, cannot see each other's locks; that is why the default prefix names both (`default_prefix`).
"""

from __future__ import annotations

import getpass
import json
import os
import socket
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from ottla.errors import ConfigError

if TYPE_CHECKING:
    from filelock import BaseFileLock

STATE_VARIABLE = "OTTLA_STATE_DIR"
INSTANCE_VARIABLE = "OTTLA_INSTANCE"
HIGHEST_NUMBER = 9_999
_LONGEST_NAME = 120


def default_prefix(application: str, instance: str | None = None) -> str:
    """The prefix of an application whose user gave none: `<app>-<instance>-`, or `<app>-<host>-<user>-`.

    Args:
        application: its name.
        instance: what tells this place from others that run the application; `OTTLA_INSTANCE` if not given.
    """
    where = instance or os.environ.get(INSTANCE_VARIABLE) or f"{socket.gethostname()}-{_user()}"
    return f"{application}-{where}-"


def state_folder() -> Path:
    """Where the locks lie: `OTTLA_STATE_DIR`, else the user's folder for application state, else a temporary one."""
    chosen = os.environ.get(STATE_VARIABLE)
    if chosen:
        return Path(chosen)
    from platformdirs import user_state_path

    folder = user_state_path("ottla", appauthor=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # a service account without a home
        return Path(tempfile.gettempdir()) / f"ottla-{_user()}"
    return folder


class Slot:
    """A transactional id that is this process's own until `release`."""

    __slots__ = ("_lock", "_note", "_slots", "number", "prefix")

    def __init__(self, slots: Slots, prefix: str, number: int, lock: BaseFileLock, note: Path) -> None:
        self.prefix = prefix
        self.number = number
        self._slots = slots
        self._lock = lock
        self._note = note

    @property
    def transactional_id(self) -> str:
        """The id."""
        return f"{self.prefix}{self.number}"

    def release(self, *, clean: bool = True) -> None:
        """Give the id up. Unless `clean`, its note stays: a transaction may be open, and the next process ends it."""
        if clean:
            self._note.unlink(missing_ok=True)  # before the lock: after it the note may be the next owner's
        self._lock.release()
        self._slots._release(self)


class Slots:
    """The slots of one process. Any thread may call it; the file system is touched without holding a lock.

    Args:
        folder: where the lock files are; `state_folder()` if not given.
        client_id: named in the notes, for whoever looks at them.
    """

    def __init__(self, folder: Path | None = None, *, client_id: str = "") -> None:
        self._folder = folder
        self._client_id = client_id
        self._guard = threading.Lock()
        self._taken: set[tuple[str, int]] = set()

    def take(self, prefix: str, first: int = 0, *, shared: bool = True) -> Slot:
        """The lowest free number from `first` on.

        Args:
            prefix: what the number is appended to.
            first: where to begin.
            shared: pass over numbers that this process uses with any other prefix, too (Spring's shared counter).

        Raises:
            ConfigError: the folder cannot be written to, or has no free number.
        """
        number = first
        while number <= HIGHEST_NUMBER:
            if self._reserve(prefix, number, shared=shared):
                slot = None
                try:
                    slot = self._lock(prefix, number)
                finally:
                    if slot is None:
                        with self._guard:
                            self._taken.discard((prefix, number))
                if slot is not None:
                    return slot
            number += 1
        raise ConfigError(
            f"all transactional ids from {prefix}{first} to {prefix}{HIGHEST_NUMBER} are in use on this host"
        )

    def take_number(self, prefix: str, number: int) -> Slot | None:
        """This very number, or None if it is in use."""
        if not self._reserve(prefix, number, shared=False):
            return None
        slot = self._lock(prefix, number)
        if slot is None:
            with self._guard:
                self._taken.discard((prefix, number))
        return slot

    def left_behind(self, prefix: str) -> list[int]:
        """The numbers of processes that died (or run still: only taking them tells), besides those of this one."""
        folder = self._prefix_folder(prefix)
        try:
            names = os.listdir(folder)
        except FileNotFoundError:
            return []
        numbers = [int(name.removesuffix(".json")) for name in names if name.removesuffix(".json").isdigit()]
        with self._guard:
            return sorted(number for number in numbers if (prefix, number) not in self._taken)

    def _reserve(self, prefix: str, number: int, *, shared: bool) -> bool:
        with self._guard:
            if shared and any(taken == number for _, taken in self._taken):
                return False
            if (prefix, number) in self._taken:
                return False
            self._taken.add((prefix, number))
            return True

    def _lock(self, prefix: str, number: int) -> Slot | None:
        from filelock import FileLock, Timeout

        folder = self._prefix_folder(prefix)
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = FileLock(folder / f"{number}.lock", thread_local=False, blocking=False)
            lock.acquire()
        except Timeout:
            return None
        except (OSError, NotImplementedError) as error:
            raise _unusable(folder, error) from error
        note = folder / f"{number}.json"
        try:
            note.write_text(json.dumps(self._owner()))
        except OSError as error:
            lock.release()
            raise _unusable(folder, error) from error
        return Slot(self, prefix, number, lock, note)

    def _owner(self) -> dict[str, Any]:
        return {"pid": os.getpid(), "client_id": self._client_id, "program": sys.argv[0], "since": int(time.time())}

    def _release(self, slot: Slot) -> None:
        with self._guard:
            self._taken.discard((slot.prefix, slot.number))

    def _prefix_folder(self, prefix: str) -> Path:
        folder = self._folder if self._folder is not None else state_folder()
        name = quote(prefix, safe="")
        if len(name) > _LONGEST_NAME:  # a file's name holds 255 bytes at most
            import hashlib

            name = f"{name[:_LONGEST_NAME]}~{hashlib.sha256(prefix.encode()).hexdigest()[:16]}"
        return folder / "transactional-ids" / name


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a number without a name, as containers have
        return str(os.getuid()) if hasattr(os, "getuid") else "user"


def _unusable(folder: Path, error: Exception) -> ConfigError:
    return ConfigError(
        f"transactional ids are kept apart by locks in {folder}, and that does not work there ({error}); "
        f"name another folder with {STATE_VARIABLE}"
    )
