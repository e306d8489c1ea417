# The life of a send's future; a part of `_native.pyx`.

# The first pair of callbacks has fields of its own, because most futures have one pair and no other watcher: a tuple for
# each record under way is work for the garbage collector. Further watchers: None, or one, or a list of them; a tuple is
# a pair of callbacks, anything else a waiter of `waiting`. Taking a step that no other thread divides means here: inside a critical section (a lock under free
# threading, nothing under the GIL) and without running foreign code in the middle. Under the GIL that second half is
# all there is, and easy to break: before Python 3.12 every allocation of a container may start the garbage collector,
# hence a finalizer, hence another thread:
#
# 1. a waiter looks: the future is pending, and has one watcher already;
# 2. it allocates a list for two; the collector runs a finalizer, the GIL changes hands;
# 3. the finisher makes the future done and takes the one watcher;
# 4. the waiter stores its list in a future that nobody will finish again, and sleeps for ever.
#
# So lists are made before the look, and what is replaced is let go after it.

cdef enum State:
    PENDING
    STORED
    FAILED

cdef int64_t NOT_ASKED = -0x7fffffffffffffff


@cython.final
@cython.freelist(64)
cdef class SendResult:
    """Where a record was stored."""

    cdef SendFuture future
    cdef readonly int32_t partition
    cdef readonly int64_t offset
    cdef readonly int64_t timestamp_ms

    def __init__(self, SendFuture future not None):
        self.future = future
        self.partition = future.partition
        self.offset = future.offset
        self.timestamp_ms = future.timestamp_ms

    @property
    def topic(self):
        """The topic of the record."""
        return self.future.topic

    @property
    def record(self):
        """The record as its sender gave it."""
        return self.future.record

    @property
    def metadata(self):
        """The same facts, and the serialized sizes, as a value of their own."""
        return self.future._metadata()

    def __eq__(self, other):
        if not isinstance(other, SendResult):
            return NotImplemented
        return self.metadata == other.metadata and self.record == other.record

    __hash__ = None

    def __repr__(self):
        return (
            f"SendResult(topic={self.topic!r}, partition={self.partition}, offset={self.offset}, "
            f"timestamp_ms={self.timestamp_ms})"
        )


cdef inline bint is_atomic(value):
    """Whether a value refers to no other object."""
    return value is None or type(value) is bytes or type(value) is str


cdef SendResult result_of(SendFuture future):
    cdef SendResult result = SendResult.__new__(SendResult)
    result.future = future
    result.partition = future.partition
    result.offset = future.offset
    result.timestamp_ms = future.timestamp_ms
    return result


@cython.final
@cython.freelist(256)
cdef class SendFuture:
    """A record under way: awaited from any loop, waited for on any thread, or given callbacks."""

    cdef readonly str topic
    cdef readonly object value
    cdef readonly object key
    cdef readonly object headers
    cdef object on_success, on_failure
    cdef object watchers
    cdef object error
    cdef int64_t asked_timestamp_ms, offset, timestamp_ms
    cdef int32_t asked_partition, partition, key_size, value_size
    cdef State state

    forbid_waiting_on_this_thread = staticmethod(waiting.forbid_waiting_on_this_thread)

    def __cinit__(self):
        self.partition = self.key_size = self.value_size = -1
        self.offset = self.timestamp_ms = -1

    def __init__(self, str topic not None, value=None, key=None, partition=None, timestamp_ms=None, headers=None):
        self.set_asked(topic, value, key, partition, timestamp_ms, headers)
        if timestamp_ms is not None:
            self.timestamp_ms = timestamp_ms

    cdef int set_asked(self, str topic, value, key, partition, timestamp_ms, headers) except -1:
        self.topic = topic
        self.value = value
        self.key = key
        self.headers = headers
        self.asked_partition = -1 if partition is None else partition
        self.asked_timestamp_ms = NOT_ASKED if timestamp_ms is None else timestamp_ms
        return 0

    cdef int leave_to_reference_counts(self) except -1:
        """Hide a future from the cycle collector, which walks over all that are under way again and again.

        It holds nothing that could lead back to it (Python does the same with tuples of such things), except for its
        watchers and an error. Watchers are there only while it is pending, and then the producer holds it; an error
        brings it back to the collector.
        """
        PyObject_GC_UnTrack(<void*>self)
        return 0

    @property
    def record(self):
        """The record as its sender gave it."""
        return ProducerRecord(
            self.topic,
            self.value,
            self.key,
            None if self.asked_partition < 0 else self.asked_partition,
            None if self.asked_timestamp_ms == NOT_ASKED else self.asked_timestamp_ms,
            self.headers,
        )

    def done(self):
        """Whether the record is stored, or failed for good."""
        return self.state != PENDING

    def result(self, timeout=None):
        """Wait for the answer, `timeout` seconds at most.

        Raises:
            SendError: the record was not stored; `__cause__` says why.
            TimeoutError: no answer yet; the record may still be stored.
            RuntimeError: this thread runs an event loop (`await` the future), or it is the one that receives answers.
        """
        if self.state == PENDING:
            waiting.wait_in_thread(self, timeout)
        return self.outcome()

    def exception(self, timeout=None):
        """Wait as `result` does, and return the error in place of raising it; None if the record is stored."""
        if self.state == PENDING:
            waiting.wait_in_thread(self, timeout)
        return self.failure() if self.state == FAILED else None

    def add_callback(self, on_success, on_failure=None):
        """Call one of the two when the record is done: on the client's I/O thread, or at once if it is done already."""
        if on_success is not None and not PyCallable_Check(on_success):
            raise TypeError(f"on_success is called with the result; {on_success!r} cannot be called")
        if on_failure is not None and not PyCallable_Check(on_failure):
            raise TypeError(f"on_failure is called with the error; {on_failure!r} cannot be called")
        cdef bint kept = on_success is None and on_failure is None
        if not kept:
            with cython.critical_section(self):
                kept = self.state == PENDING and not self.is_watched()
                if kept:
                    self.on_success = on_success
                    self.on_failure = on_failure
        if not kept and not self.push((on_success, on_failure)):
            self.run(on_success, on_failure)
        return self

    def __await__(self):
        return SendAwait(self)

    def __repr__(self):
        if self.state == PENDING:
            watched = self.is_watched() and self.watchers != []
            return f"<SendFuture {self.topic} pending{', watched' if watched else ''}>"
        if self.state == STORED:
            return f"<SendFuture {self.topic} stored at {self.partition}:{self.offset}>"
        return f"<SendFuture {self.topic} failed: {self.error!r}>"

    # For the engine

    cdef bint is_watched(self) noexcept:
        return self.on_success is not None or self.on_failure is not None or self.watchers is not None

    cdef bint push(self, watcher):
        cdef list spare = None
        cdef bint retry = True
        cdef bint pending = False
        while retry:
            if self.watchers is not None:
                spare = []
            with cython.critical_section(self):
                pending = self.state == PENDING
                retry = False
                if pending:
                    if self.watchers is None:
                        self.watchers = watcher
                    elif type(self.watchers) is list:
                        (<list>self.watchers).append(watcher)
                    elif spare is not None:
                        spare.append(self.watchers)
                        spare.append(watcher)
                        self.watchers = spare
                    else:
                        retry = True    # somebody else became the first since we looked
        return pending

    def _push(self, watcher):
        return self.push(watcher)

    def _drop(self, watcher):
        cdef list watchers
        with cython.critical_section(self):
            if self.watchers is watcher:
                self.watchers = None
            elif type(self.watchers) is list:
                watchers = <list>self.watchers
                if watcher in watchers:
                    watchers.remove(watcher)

    cdef SendResult outcome(self):
        if self.state == FAILED:
            raise self.failure()
        return result_of(self)

    def _outcome(self):
        return self.outcome()

    cdef failure(self):
        # A new one each time: many tasks may raise it, and each would add its traceback to a shared one.
        return SendError.of(self.record, self.error, None if self.partition < 0 else self.partition)

    def _metadata(self):
        return RecordMetadata(
            self.topic, self.partition, self.offset, self.timestamp_ms, self.key_size, self.value_size
        )

    cdef int run_all(self, watchers) except -1:
        """Call the callbacks: the first pair, and those among the watchers that were taken out."""
        on_success, on_failure = self.on_success, self.on_failure
        self.on_success = self.on_failure = None    # they may lead to what holds this future
        self.run(on_success, on_failure)
        if type(watchers) is tuple:
            self.run((<tuple>watchers)[0], (<tuple>watchers)[1])
        elif type(watchers) is list:
            for watcher in <list>watchers:
                if type(watcher) is tuple:
                    self.run((<tuple>watcher)[0], (<tuple>watcher)[1])
        return 0

    cdef int run(self, on_success, on_failure) except -1:
        callback = on_success if self.state == STORED else on_failure
        if callback is None:
            return 0
        try:
            callback(result_of(self) if self.state == STORED else self.failure())
        except BaseException:
            waiting.log_failure(callback)
        return 0


@cython.final
@cython.freelist(64)
cdef class SendAwait:
    """The iterator behind `await future`: done at once, or by way of a future of the running loop."""

    cdef SendFuture future
    cdef object inner

    def __cinit__(self, SendFuture future not None):
        self.future = future

    def __iter__(self):
        return self

    def __next__(self):
        return self.advance(None)

    def send(self, value):
        """Go on, as a generator does."""
        return self.advance(value)

    def throw(self, *error):
        """Raise at the place of waiting, as a generator does."""
        if self.inner is None:
            if isinstance(error[0], type):
                raise error[0](*error[1:2])
            raise error[0]
        try:
            return self.inner.throw(*error)
        except StopIteration:
            raise StopIteration(self.future.outcome()) from None

    def close(self):
        """Stop waiting."""
        if self.inner is not None:
            self.inner.close()

    cdef advance(self, value):
        if self.inner is None:
            if self.future.state != PENDING:
                raise StopIteration(self.future.outcome())
            self.inner = waiting.wait_in_loop(self.future)
        try:
            return self.inner.send(value)
        except StopIteration:
            raise StopIteration(self.future.outcome()) from None


cdef inline list fixed(futures):
    """A list that nobody changes: that of a closed batch as it is, a copy of anything else."""
    return <list>futures if type(futures) is list else list(futures)


def complete_batch(futures, str topic, int32_t partition, int64_t base_offset, int64_t log_append_time_ms=-1):
    """Finish the futures of a stored batch, in order: the first has `base_offset`, each further one the next offset.

    `base_offset` is -1 if the broker did not tell it (acks=0), `log_append_time_ms` if the producer's timestamps stand.
    Waiters wake first, each loop once; then the callbacks run, in order, on this thread. Futures that are done stay.
    """
    cdef list taken = []
    cdef int64_t offset = base_offset
    cdef SendFuture future
    cdef bint watched
    for item in fixed(futures):
        future = <SendFuture?>item
        watched = False
        with cython.critical_section(future):
            if future.state == PENDING:
                future.partition = partition
                future.offset = offset
                if log_append_time_ms >= 0:
                    future.timestamp_ms = log_append_time_ms
                future.state = STORED
                watched = future.is_watched()
        if watched:
            taken.append(future)
        if base_offset >= 0:
            offset += 1
    if taken:
        notify(taken)


def fail_futures(futures, error, int32_t partition=-1):
    """Finish futures with an error: each raises a `SendError` of its own whose `__cause__` is `error`."""
    cdef list taken = []
    cdef SendFuture future
    cdef bint watched
    if not isinstance(error, BaseException):
        raise TypeError(f"a send fails with an exception, not with {error!r}")
    for item in fixed(futures):
        future = <SendFuture?>item
        watched = False
        with cython.critical_section(future):
            if future.state == PENDING:
                future.partition = partition
                future.error = error
                future.state = FAILED
                if not PyObject_GC_IsTracked(future):
                    PyObject_GC_Track(future)   # its error's traceback may lead to frames that hold it
                watched = future.is_watched()
        if watched:
            taken.append(future)
    if taken:
        notify(taken)


def first_pending(futures):
    """The first of the futures that is not done; None if all are."""
    for item in futures:
        if (<SendFuture?>item).state == PENDING:
            return item
    return None


cdef int notify(list taken) except -1:
    """Wake and call the watchers of futures that are done now."""
    cdef list all_watchers = []
    cdef list waiters = []
    cdef SendFuture future
    cdef Py_ssize_t i
    for i in range(len(taken)):
        future = <SendFuture>taken[i]
        with cython.critical_section(future):
            watchers = future.watchers      # a waiter that gives up takes itself out of there
            future.watchers = None
        all_watchers.append(watchers)
        if type(watchers) is list:
            waiters.extend([watcher for watcher in <list>watchers if type(watcher) is not tuple])
        elif watchers is not None and type(watchers) is not tuple:
            waiters.append(watchers)
    if waiters:
        waiting.wake(waiters)
    for i in range(len(taken)):
        (<SendFuture>taken[i]).run_all(all_watchers[i])
    return 0
