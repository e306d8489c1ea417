"""Relay: the thread that sends an outbox's rows to Kafka, in the order of their ids, each exactly once.

Theory of operation. A round is: read the next settled rows (`outbox_store`), send them and the id of the last in one
Kafka transaction (`relay_kafka`), and then tell the database, which deletes the rows. The truth is Kafka's position:

- killed before Kafka's commit: nobody sees the rows, the position is what it was, and they are sent again;
- killed after it, before the database hears of it: the rows are still there, but the position is behind them, and the
  next relay begins after it;
- a commit whose outcome is not known: the producer is given up. Registering the id anew ends that transaction, and the
  position then tells how.

So after *any* failure of Kafka's the same is done: a new producer, whose registration fences the old one, and the
position read again. The position in the database is a lower bound, for the day on which the topic is lost.

Only one relay sends, since there is one transactional id. So that the relays of several processes do not fence each
other all the time, one of them has a lease in the database and the others stand by; the lease is no lock, and a relay
that has lost it without noticing is fenced.

A row that Kafka refuses (too large, no such topic) would hold up all others for ever, and must not be passed over in
silence: those behind it may depend on it. A batch with such a row is sent again up to the row, then the row alone. What
comes then is `on_refused`'s choice: "stop", with a reason, or "park" the row with its error and go on.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import threading
import time
from enum import Enum
from typing import TYPE_CHECKING, Final, Literal

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from ottla.application_part import ApplicationPart
from ottla.errors import ConfigError, OutboxStopped
from ottla.producer_factory import ProducerFactory
from ottla.transaction.outbox import Outbox, OutboxRow
from ottla.transaction.outbox_store import OutboxStore
from ottla.transaction.relay_kafka import RelayKafka, RowRefused

if TYPE_CHECKING:
    from ottla.app import Ottla

logger = logging.getLogger("ottla.outbox")

_FIRST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 5.0
_SHORT_PAUSE: Final = 0.005
_COMPLAIN_SECONDS: Final = 30.0
_PURGE_SECONDS: Final = 60.0
_END_SECONDS: Final = 5.0


class RelayState(Enum):
    """What a relay is doing."""

    STOPPED = "stopped"
    STARTING = "starting"
    STANDBY = "standby"
    """Another relay of this outbox has the lease."""
    ACTIVE = "active"
    FAILED = "failed"
    """It has stopped by itself; `reason` says why."""


class Relay(ApplicationPart):
    """Sends an outbox's rows. `outbox.relay(engine)` makes one.

    Give it to `app.include(...)`, and it runs with the application: it is stopped after the listeners, and first sends
    what is there. On its own it is a context manager, or `start` and `stop`.

    Args:
        outbox: whose rows.
        engine: a plain SQLAlchemy engine of the database; a relay uses one connection at a time.
        producer_factory: whose client settings are used; the application's, if not given.
        poll_interval: seconds between two looks while there is nothing to do. What this process writes is looked for
            at once.
        batch_rows: how many rows are one Kafka transaction at most.
        batch_bytes: as many bytes of keys and values, unless a single row has more.
        retention: seconds for which rows are kept after they were written, and relayed; 0 deletes them when they are.
        on_refused: what to do about a row that Kafka refuses: "stop" (the order is kept), or "park".
        lease: seconds after which a relay that is not heard of is replaced by one that stands by.
    """

    def __init__(
        self,
        outbox: Outbox,
        engine: Engine,
        producer_factory: ProducerFactory | None = None,
        *,
        poll_interval: float = 0.5,
        batch_rows: int = 500,
        batch_bytes: int = 8 << 20,
        retention: float = 0.0,
        on_refused: Literal["stop", "park"] = "stop",
        lease: float = 15.0,
    ) -> None:
        if on_refused not in ("stop", "park"):
            raise ConfigError(f"on_refused is 'stop' or 'park', got {on_refused!r}")
        for name, number in (("poll_interval", poll_interval), ("batch_rows", batch_rows), ("lease", lease)):
            if number <= 0:
                raise ConfigError(f"{name} is positive, got {number!r}")
        self.outbox = outbox
        self.state = RelayState.STOPPED
        self.reason: BaseException | None = None
        """Why it failed, if it did."""
        self.relayed = 0
        """How many rows it has sent."""
        self._engine = engine
        self._factory = producer_factory
        self._poll_interval = poll_interval
        self._batch_rows = batch_rows
        self._batch_bytes = batch_bytes
        self._retention = retention
        self._on_refused = on_refused
        self._lease = lease
        self._owner = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self._store = OutboxStore(outbox, engine)
        self._thread: threading.Thread | None = None
        self._wake = threading.Event()
        self._expecting = False
        self._draining = False
        self._abandoned = False

    # -- lifecycle -----------------------------------------------------------------------------------------------------

    def attach(self, app: Ottla) -> None:
        """Use the application's client settings, unless a producer factory was given."""
        if self._factory is None:
            self._factory = app.producer_factory

    def start(self) -> None:
        """Begin, on a thread of its own. A database or a Kafka that is away is waited for.

        Raises:
            ConfigError: the tables are missing, or there are no client settings.
        """
        ended = self.state in (RelayState.STOPPED, RelayState.FAILED)  # its thread may still have to return
        if self._thread is not None and self._thread.is_alive() and not ended:
            return
        if self._factory is None:
            raise ConfigError("a relay needs client settings: app.include(relay), or outbox.relay(engine, factory)")
        try:
            self._store.check_tables()
        except DBAPIError as error:
            logger.warning("the outbox's database is not there yet: %s", error)
        self.reason = None
        self._draining = self._abandoned = False
        self.state = RelayState.STARTING
        self._thread = threading.Thread(target=self._run, name=f"relay-{self.outbox.table.name}", daemon=True)
        self._thread.start()

    def request_stop(self) -> None:
        """Stop once everything that is there is sent; does not wait."""
        self._draining = True
        self._wake.set()

    def stop(self, timeout: float = 30.0) -> None:
        """Send what is there, and stop. What is left after `timeout` seconds stays in the database for the next start.

        Raises:
            TimeoutError: the thread did not end; it does not begin anything new.
        """
        self.request_stop()
        thread = self._thread
        if thread is None:
            return
        thread.join(max(0.0, timeout - _END_SECONDS) if timeout > 2 * _END_SECONDS else timeout / 2)
        if thread.is_alive():
            logger.warning("the relay of %s is stopped before all rows are sent", self.outbox.table.fullname)
            self._abandoned = True
            self._wake.set()
            thread.join(_END_SECONDS if timeout > 2 * _END_SECONDS else timeout / 2)
        if thread.is_alive():
            raise TimeoutError(f"the relay of {self.outbox.table.fullname} did not stop within {timeout:g} s")

    @property
    def failure(self) -> BaseException | None:
        """See ApplicationPart."""
        return self.reason if self.state is RelayState.FAILED else None

    @property
    def processed(self) -> int:
        """See ApplicationPart."""
        return self.relayed

    def wake(self) -> None:
        """Something was committed: look now."""
        self._wake.set()

    def expect(self) -> None:
        """Something was written, and will be committed soon: look often for a while."""
        self._expecting = True
        self._wake.set()

    def __enter__(self) -> Relay:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    # -- the thread ----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        session = _Relaying(self, self._store, self._factory_given())
        reason: BaseException | None = None
        try:
            self._relay(session)
        except Exception as error:  # noqa: BLE001 - it is kept as the reason
            logger.error("the relay of %s has stopped: %s", self.outbox.table.fullname, error)
            reason = error
        try:
            session.end()
        finally:  # last, because whoever sees it may start anew
            self.reason = reason
            self.state = RelayState.STOPPED if reason is None else RelayState.FAILED

    def _relay(self, session: _Relaying) -> None:
        """Round after round, until there is nothing left to do after a stop was asked for."""
        pause = _FIRST_PAUSE
        while not self._abandoned and not (self._draining and self.state is RelayState.STANDBY):
            try:
                if session.go_on():
                    break
                pause = _FIRST_PAUSE
            except (OutboxStopped, ConfigError):
                raise
            except Exception as error:  # noqa: BLE001 - whatever it is, it is tried again, and said
                logger.warning(
                    "the relay of %s failed and tries again in %g s: %s: %s",
                    self.outbox.table.fullname,
                    pause,
                    type(error).__name__,
                    error,
                )
                session.give_up_producer()
                self._pause(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)

    def _factory_given(self) -> ProducerFactory:
        assert self._factory is not None, "start() has looked"
        return self._factory

    def _pause(self, seconds: float) -> None:
        """Failures are not made more frequent by rows that are written meanwhile; a stop is not held up."""
        deadline = time.monotonic() + seconds
        while not self._abandoned and (left := deadline - time.monotonic()) > 0:
            self._wake.wait(min(left, 0.05))
            if not self._wake.is_set():
                continue
            self._wake.clear()
            time.sleep(min(left, 0.05))


class _Relaying:
    """What the thread knows between two rounds."""

    def __init__(self, relay: Relay, store: OutboxStore, factory: ProducerFactory) -> None:
        self._relay = relay
        self._store = store
        self._factory = factory
        self._kafka: RelayKafka | None = None
        self._position = 0
        self._limit = relay._batch_rows
        self._quick = _SHORT_PAUSE
        self._leased_at = -1e9
        self._purged_at = time.monotonic()
        self._waiting_since: float | None = None

    def go_on(self) -> bool:
        """One round, and the wait before the next. True: there is nothing left to do, and nothing more will come."""
        relay = self._relay
        if not self._has_lease():
            relay.state = RelayState.STANDBY
            self.give_up_producer()
            self._wait(relay._lease / 3)
            return False
        if self._kafka is None:
            self._open()
        relay.state = RelayState.ACTIVE
        if self._round():
            self._quick = _SHORT_PAUSE
            return False
        if relay._draining and not self._store.is_waiting:
            return True
        self._purge()
        self._rest()
        return False

    def _has_lease(self) -> bool:
        now = time.monotonic()
        if now - self._leased_at > self._relay._lease / 3:
            self._store.state()  # there has to be something to lease
            if not self._store.lease(self._relay._owner, self._relay._lease):
                self._leased_at = -1e9
                return False
            self._leased_at = now
        return True

    def _open(self) -> None:
        state = self._store.state()
        kafka = self._kafka = RelayKafka(state.outbox_id, self._factory)
        found = kafka.open()
        self._position = max(state.position, found or 0)
        self._store.check_not_older(self._position)
        self._store.advance(self._position, forget=self._relay._retention == 0)

    def _round(self) -> bool:
        """Send a batch, if there is one."""
        relay = self._relay
        settled = self._store.settled(self._position)
        if settled <= self._position and self._store.is_waiting:
            settled = self._store.settled(self._position)  # nobody else writes, mostly: then this settles it
        self._complain_if_blocked(settled)
        if settled <= self._position:
            return False
        rows = self._store.batch(self._position, settled, self._limit, relay._batch_bytes)
        if not rows:
            self._position = settled  # rolled back, or parked
            return True
        assert self._kafka is not None
        try:
            self._kafka.relay(rows)
        except RowRefused as refused:
            self._refused(rows, refused)
            return True
        self._position = rows[-1].id
        relay.relayed += len(rows)
        self._limit = min(2 * self._limit, relay._batch_rows)
        try:
            self._store.advance(self._position, forget=relay._retention == 0)
        except DBAPIError as error:  # Kafka knows
            logger.warning("the database was not told of the position %d: %s", self._position, error)
        return True

    def _refused(self, rows: list[OutboxRow], refused: RowRefused) -> None:
        if len(rows) > 1:
            self._limit = max(1, refused.index)
            return
        row, relay = rows[0], self._relay
        what = f"{type(refused.reason).__name__}: {refused.reason}"
        if relay._on_refused == "park":
            self._store.park(row, what)
            logger.error("row %d of %s for %r is parked: %s", row.id, relay.outbox.table.fullname, row.topic, what)
            return
        raise OutboxStopped(
            f"Kafka refuses row {row.id} of {relay.outbox.table.fullname}, for the topic {row.topic!r} ({what}). No "
            "row behind it is sent, so that the order is kept: remove the cause (create the topic, raise the limit, "
            'delete or correct the row) and start again, or make the relay with on_refused="park"'
        ) from refused.reason

    def _complain_if_blocked(self, settled: int) -> None:
        """A transaction that is left open holds everybody up, and nobody would know why."""
        now = time.monotonic()
        if not self._store.is_waiting or settled > self._position:
            self._waiting_since = None
        elif self._waiting_since is None:
            self._waiting_since = now
        elif now - self._waiting_since > _COMPLAIN_SECONDS:
            self._waiting_since = now
            logger.warning(
                "the relay of %s waits for transactions that are open in the database: %s",
                self._relay.outbox.table.fullname,
                "; ".join(self._store.blocked_by()) or "prepared ones",
            )

    def _purge(self) -> None:
        now = time.monotonic()
        if self._relay._retention > 0 and now - self._purged_at > min(_PURGE_SECONDS, self._relay._retention):
            self._purged_at = now
            self._store.purge(self._position, int((time.time() - self._relay._retention) * 1000))

    def _rest(self) -> None:
        relay = self._relay
        if relay._expecting or self._store.is_waiting:
            self._wait(self._quick)
            self._quick = min(2 * self._quick, relay._poll_interval)
            if self._quick >= relay._poll_interval:
                relay._expecting = False
        else:
            self._quick = _SHORT_PAUSE
            self._wait(relay._poll_interval)

    def _wait(self, seconds: float) -> None:
        if not self._relay._draining:
            self._relay._wake.wait(seconds)
            self._relay._wake.clear()
        else:
            time.sleep(min(seconds, 0.05))

    def give_up_producer(self) -> None:
        """After a failure, or without the lease: whoever comes next begins with a new one."""
        kafka, self._kafka = self._kafka, None
        if kafka is not None:
            kafka.close()

    def end(self) -> None:
        """The thread ends."""
        kafka, self._kafka = self._kafka, None
        if kafka is not None:
            kafka.close(_END_SECONDS)
        try:
            self._store.release(self._relay._owner)
        except DBAPIError as error:
            logger.debug("the lease was not given up: %s", error)
