# The shortest way of a record into its batch; a part of `_native.pyx`.

cdef extern from *:
    """
    #include <time.h>
    static int64_t ottla_now_ms(void) {
        struct timespec now;
        timespec_get(&now, TIME_UTC);
        return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
    }
    """
    int64_t now_ms "ottla_now_ms" () noexcept

cdef struct Span:
    const char* start
    Py_ssize_t size             # -1: null

cdef Py_ssize_t NOT_PLAIN = -2


cdef inline object plain_bytes(data, Span* span):
    """The bytes of bytes, text or None, and the object that holds them; a size of NOT_PLAIN for anything else."""
    span.start = NULL
    if data is None:
        span.size = -1
        return None
    if PyUnicode_CheckExact(data):
        if PyUnicode_IS_COMPACT_ASCII(data):
            span.start = <const char*>PyUnicode_DATA(data)
            span.size = PyUnicode_GET_LENGTH(data)
            return data
        try:
            data = PyUnicode_AsUTF8String(data)
        except UnicodeEncodeError:
            span.size = NOT_PLAIN
            return None
    if PyBytes_CheckExact(data):
        span.start = PyBytes_AS_STRING(data)
        span.size = PyBytes_GET_SIZE(data)
        return data
    span.size = NOT_PLAIN
    return None


cdef tuple plain_headers(headers):
    """A tuple of (text, bytes or text or None), which `BatchWriter.put` takes without failing; None for anything else."""
    cdef tuple given
    if type(headers) is list:
        given = tuple(<list>headers)
    elif type(headers) is tuple:
        given = <tuple>headers
    else:
        return None
    for header in given:
        if not PyTuple_CheckExact(header) or PyTuple_GET_SIZE(header) != 2:
            return None
        value = <object>PyTuple_GET_ITEM(header, 1)
        if not is_encodable(<object>PyTuple_GET_ITEM(header, 0)):
            return None
        if not (value is None or PyBytes_CheckExact(value) or is_encodable(value)):
            return None
    return given


cdef bint is_encodable(text):
    """Whether it is text that UTF-8 can express."""
    cdef Py_ssize_t size
    if not PyUnicode_CheckExact(text):
        return False
    if not PyUnicode_IS_COMPACT_ASCII(text):
        try:
            PyUnicode_AsUTF8AndSize(text, &size)
        except UnicodeEncodeError:
            return False
    return True


cdef inline bint plain_number(value, int64_t* number) noexcept:
    """Whether it is an int of at most 64 bits and not negative."""
    cdef int overflow = 0
    if not PyLong_CheckExact(value):
        return False
    number[0] = PyLong_AsLongLongAndOverflow(value, &overflow)
    return overflow == 0 and number[0] >= 0


@cython.final
cdef class OpenBatches:
    """The open batches of one topic, one at most for each partition."""

    cdef list writers
    cdef public int32_t count
    cdef public int32_t sticky

    def __init__(self):
        self.writers = []
        self.sticky = -1

    def begin(self, int32_t partition, BatchWriter writer not None):
        """A batch takes the records of a partition from now on."""
        if partition < 0:
            raise ValueError(f"there is no partition {partition}")
        while partition >= PyList_GET_SIZE(self.writers):
            self.writers.append(None)
        self.writers[partition] = writer

    def end(self, int32_t partition):
        """No batch does any more."""
        if 0 <= partition < PyList_GET_SIZE(self.writers):
            self.writers[partition] = None

    cdef BatchWriter writer_for(self, int64_t partition, Span* key):
        """Where a record goes, if a batch is open there; a partition of -1 is chosen by the key, or the sticky one."""
        if partition < 0:
            if key.size < 0:
                partition = self.sticky
            elif self.count > 0:
                partition = (murmur2_of(<const uint8_t*>key.start, key.size) & 0x7fffffff) % <uint32_t>self.count
        if 0 <= partition < min(self.count, PyList_GET_SIZE(self.writers)):
            return <BatchWriter>self.writers[partition]
        return None


@cython.final
cdef class OpenTopics:
    """The way into the open batches of all topics: time, partition, batch, bytes and future in one call, and no lock."""

    cdef readonly dict topics

    def __init__(self, dict topics not None):
        self.topics = topics

    def send(self, topic, value=None, key=None, partition=None, timestamp_ms=None, headers=None):
        """Send what needs no serializer, or return None: then nothing has happened, and it has to go another way."""
        cdef Span raw_value, raw_key
        cdef tuple fixed_headers = None
        if headers is not None:
            fixed_headers = plain_headers(headers)
            if fixed_headers is None:
                return None
        value_holder = plain_bytes(value, &raw_value)
        key_holder = plain_bytes(key, &raw_key)
        if raw_value.size == NOT_PLAIN or raw_key.size == NOT_PLAIN:
            return None
        return self.put(topic, &raw_value, &raw_key, fixed_headers, value, key, partition, timestamp_ms, headers)

    def append(
        self, topic, raw_value, raw_key, raw_headers, original_value=None, original_key=None, partition=None,
        timestamp_ms=None,
    ):
        """The same of a record whose key, value and headers are bytes already."""
        cdef Span value, key
        cdef tuple fixed_headers = None
        if raw_headers is not None:
            fixed_headers = plain_headers(raw_headers)
            if fixed_headers is None:
                return None
        value_holder = plain_bytes(raw_value, &value)
        key_holder = plain_bytes(raw_key, &key)
        if value.size == NOT_PLAIN or key.size == NOT_PLAIN:
            return None
        return self.put(topic, &value, &key, fixed_headers, original_value, original_key, partition, timestamp_ms, raw_headers)

    cdef SendFuture put(
        self, topic, Span* value, Span* key, tuple headers, original_value, original_key, asked_partition,
        asked_timestamp_ms, original_headers
    ):
        cdef int64_t partition = -1
        cdef int64_t timestamp_ms
        cdef SendFuture future
        cdef BatchWriter writer
        if not PyUnicode_CheckExact(topic):
            return None
        if asked_partition is not None and not plain_number(asked_partition, &partition):
            return None
        if asked_timestamp_ms is None:
            timestamp_ms = now_ms()
        elif not plain_number(asked_timestamp_ms, &timestamp_ms):
            return None
        future = SendFuture.__new__(SendFuture)
        future.topic = <str>topic
        future.value = original_value
        future.key = original_key
        future.headers = original_headers
        future.asked_partition = <int32_t>partition if partition <= 0x7fffffff else -1
        future.asked_timestamp_ms = NOT_ASKED if asked_timestamp_ms is None else timestamp_ms
        if headers is None and is_atomic(original_value) and is_atomic(original_key):
            future.leave_to_reference_counts()
        # From here on nothing lets the GIL go (see BatchWriter), not that it would have to be so: a batch that is closed
        # between the look and the step refuses the record.
        batches = self.topics.get(topic)
        if batches is None:
            return None
        writer = (<OpenBatches?>batches).writer_for(partition, key)
        if writer is None:
            return None
        if writer.put(timestamp_ms, key.start, key.size, value.start, value.size, headers, -1, future):
            return future
        return None
