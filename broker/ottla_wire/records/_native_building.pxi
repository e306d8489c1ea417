# Records into a batch; a part of `_native.pyx`.

cdef inline uint64_t zigzag(int64_t value) noexcept:
    return <uint64_t>value << 1 ^ <uint64_t>(value >> 63)


cdef inline Py_ssize_t varint_size(uint64_t bits) noexcept:
    cdef Py_ssize_t size = 1
    while bits > 0x7f:
        bits >>= 7
        size += 1
    return size


cdef inline uint8_t* put_varint(uint8_t* p, uint64_t bits) noexcept:
    while bits > 0x7f:
        p[0] = <uint8_t>(bits & 0x7f | 0x80)
        bits >>= 7
        p += 1
    p[0] = <uint8_t>bits
    return p + 1


cdef inline uint8_t* put_data(uint8_t* p, const char* data, Py_ssize_t size) noexcept:
    p = put_varint(p, zigzag(size))
    memcpy(p, data, <size_t>size)
    return p + size


cdef inline Py_ssize_t data_size(Py_ssize_t size) noexcept:
    return varint_size(zigzag(size)) + size


cdef bytes as_bytes(value, str what):
    if value is None or PyBytes_CheckExact(value):
        return <bytes>value
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    raise TypeError(f"a {what} must be bytes or None, not {type(value).__name__}")


cdef tuple as_headers(headers):
    """A tuple of tuples (str, bytes | str | None): what no other thread can change while it is measured and written."""
    cdef list checked
    cdef bint plain = True
    cdef tuple given = tuple(headers)
    for header in given:
        if not PyTuple_CheckExact(header) or PyTuple_GET_SIZE(header) != 2:
            plain = False
            break
        name = <object>PyTuple_GET_ITEM(header, 0)
        value = <object>PyTuple_GET_ITEM(header, 1)
        if not PyUnicode_Check(name) or not (value is None or PyBytes_CheckExact(value) or PyUnicode_Check(value)):
            plain = False
            break
    if plain:
        return given
    checked = []
    for header in given:
        name, value = header
        if not isinstance(name, str):
            raise TypeError(f"the name of a header must be str, not {type(name).__name__}")
        checked.append((name, value if isinstance(value, str) else as_bytes(value, "header's value")))
    return tuple(checked)


cdef Py_ssize_t headers_size(tuple headers) except -1:
    cdef Py_ssize_t total = varint_size(zigzag(PyTuple_GET_SIZE(headers)))
    cdef Py_ssize_t size
    for header in headers:
        PyUnicode_AsUTF8AndSize(<object>PyTuple_GET_ITEM(header, 0), &size)
        total += data_size(size)
        value = <object>PyTuple_GET_ITEM(header, 1)
        if value is None:
            total += 1
        elif PyBytes_CheckExact(value):
            total += data_size(PyBytes_GET_SIZE(value))
        else:
            PyUnicode_AsUTF8AndSize(value, &size)
            total += data_size(size)
    return total


cdef uint8_t* put_headers(uint8_t* p, tuple headers) except NULL:
    cdef Py_ssize_t size
    cdef const char* text
    p = put_varint(p, zigzag(PyTuple_GET_SIZE(headers)))
    for header in headers:
        text = PyUnicode_AsUTF8AndSize(<object>PyTuple_GET_ITEM(header, 0), &size)
        p = put_data(p, text, size)
        value = <object>PyTuple_GET_ITEM(header, 1)
        if value is None:
            p = put_varint(p, 1)
        elif PyBytes_CheckExact(value):
            p = put_data(p, PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value))
        else:
            text = PyUnicode_AsUTF8AndSize(value, &size)
            p = put_data(p, text, size)
    return p


# A record is appended, and a batch is closed, in one step that no other thread divides: senders append to an open batch
# without a lock while the thread that talks to the brokers closes it. Such a step is a critical section, which is a lock
# under free threading and nothing under the GIL. There it is enough that nothing inside lets the GIL go, and that is
# easy to break: before Python 3.12 every allocation of an object that the garbage collector knows may start it, hence a
# finalizer, hence another thread:
#
# 1. a sender has written its record, and makes the future;
# 2. the collector runs a finalizer, the GIL changes hands;
# 3. another sender appends to the same batch: its record is the second, its future the first;
# 4. both futures bring the other record's offset.
#
# So futures and headers exist before `put` is called, and `put` makes no Python object unless it fails.

cdef class BatchWriter:
    """The records of a batch that is being built, encoded. Any thread may append, or close it."""

    cdef uint8_t* data
    cdef Py_ssize_t size, capacity
    cdef readonly Py_ssize_t limit
    cdef readonly int64_t horizon_ms
    cdef readonly int32_t count
    cdef readonly bint closed
    cdef readonly int32_t last_offset_delta
    cdef readonly int64_t base_timestamp_ms
    cdef readonly int64_t max_timestamp_ms
    cdef readonly list futures

    def __init__(self, Py_ssize_t limit, int64_t horizon_ms=OWN_TIMESTAMPS):
        self.limit = limit
        self.horizon_ms = horizon_ms
        self.last_offset_delta = -1
        self.base_timestamp_ms = horizon_ms if horizon_ms >= -1 else -1
        self.max_timestamp_ms = -1
        self.futures = []
        # The collector would walk over all futures of open batches every few hundred sends. No cycle of garbage leads
        # through the list: it is its batch's alone, and a batch that holds unfinished sends is held by the producer.
        PyObject_GC_UnTrack(<void*>self.futures)

    def __dealloc__(self):
        free(self.data)

    @property
    def size_bytes(self):
        """The bytes of the batch so far, uncompressed, header included."""
        return HEADER + self.size

    @property
    def is_full(self):
        """Whether no further record will be taken."""
        return self.closed or (self.count > 0 and HEADER + self.size >= self.limit)

    cdef bint put(
        self, int64_t timestamp_ms, const char* key, Py_ssize_t key_size, const char* value, Py_ssize_t value_size,
        tuple headers, int32_t offset_delta, SendFuture future
    ) except -1:
        """Add a record and its future, if it has one; a size of -1 means null. One step, see above."""
        cdef int64_t base
        cdef uint64_t delta
        cdef Py_ssize_t body, total
        cdef uint8_t* p
        with cython.critical_section(self):
            if self.closed:
                return False
            if offset_delta < 0:
                offset_delta = self.last_offset_delta + 1
            elif offset_delta <= self.last_offset_delta:
                raise ValueError(f"offset delta {offset_delta} does not follow {self.last_offset_delta}")
            base = self.base_timestamp_ms
            if self.count == 0 and self.horizon_ms <= OWN_TIMESTAMPS:
                base = timestamp_ms
            delta = zigzag(<int64_t>(<uint64_t>timestamp_ms - <uint64_t>base))
            body = 1 + varint_size(delta) + varint_size(zigzag(offset_delta))
            body += 1 if key_size < 0 else data_size(key_size)
            body += 1 if value_size < 0 else data_size(value_size)
            body += 1 if headers is None else headers_size(headers)
            if body > 0x7fffffff - HEADER:
                raise ValueError(f"a record of {body} bytes fits into no batch")
            total = varint_size(zigzag(body)) + body
            if self.count > 0 and HEADER + self.size + total > self.limit:
                self.closed = True
                return False
            self.reserve(total)
            if future is not None:
                self.futures.append(future)
                future.timestamp_ms = timestamp_ms
                future.key_size = <int32_t>key_size
                future.value_size = <int32_t>value_size
            p = put_varint(self.data + self.size, zigzag(body))
            p[0] = 0
            p = put_varint(p + 1, delta)
            p = put_varint(p, zigzag(offset_delta))
            p = put_varint(p, 1) if key_size < 0 else put_data(p, key, key_size)
            p = put_varint(p, 1) if value_size < 0 else put_data(p, value, value_size)
            p = put_varint(p, 0) if headers is None else put_headers(p, headers)
            assert p == self.data + self.size + total
            self.size += total
            self.base_timestamp_ms = base
            if self.count == 0 or timestamp_ms > self.max_timestamp_ms:
                self.max_timestamp_ms = timestamp_ms
            self.last_offset_delta = offset_delta
            self.count += 1
            return True

    cdef bint put_bytes(
        self, int64_t timestamp_ms, bytes key, bytes value, tuple headers, int32_t offset_delta, SendFuture future
    ) except -1:
        return self.put(
            timestamp_ms,
            NULL if key is None else PyBytes_AS_STRING(key), -1 if key is None else PyBytes_GET_SIZE(key),
            NULL if value is None else PyBytes_AS_STRING(value), -1 if value is None else PyBytes_GET_SIZE(value),
            headers, offset_delta, future,
        )

    cdef int reserve(self, Py_ssize_t total) except -1:
        cdef Py_ssize_t capacity
        cdef uint8_t* data
        if self.size + total <= self.capacity:
            return 0
        # Doubling, but towards the limit and no further: most batches end there.
        capacity = max(2 * self.capacity, 512)
        if capacity > self.limit > 0:
            capacity = self.limit
        capacity = max(capacity, self.size + total)
        data = <uint8_t*>realloc(self.data, <size_t>capacity)
        if data == NULL:
            raise MemoryError(f"no memory for a batch of {capacity} bytes")
        self.data = data
        self.capacity = capacity
        return 0

    def append(self, int64_t timestamp_ms, key, value, headers=None, int32_t offset_delta=-1):
        """Add a record; False if it does not fit, and then the batch is closed."""
        cdef tuple fixed_headers = None if headers is None else as_headers(headers)
        return self.put_bytes(
            timestamp_ms, as_bytes(key, "key"), as_bytes(value, "value"), fixed_headers, offset_delta, None
        )

    def append_send(
        self, int64_t timestamp_ms, key, value, headers, str topic not None, original_value=None, original_key=None,
        partition=None, original_timestamp_ms=None,
    ):
        """Add a record and make its future, which is kept in `futures`; None if the record does not fit."""
        cdef SendFuture future = SendFuture.__new__(SendFuture)
        cdef tuple fixed_headers = None
        future.set_asked(topic, original_value, original_key, partition, original_timestamp_ms, headers)
        if headers is not None:
            fixed_headers = as_headers(headers)
        elif is_atomic(original_value) and is_atomic(original_key):
            future.leave_to_reference_counts()
        if self.put_bytes(timestamp_ms, as_bytes(key, "key"), as_bytes(value, "value"), fixed_headers, -1, future):
            return future
        return None

    def append_future(self, SendFuture future not None, int64_t timestamp_ms, key, value, headers=None):
        """Add a record whose future exists (it waited for metadata, or its batch was split); False if it does not fit."""
        cdef tuple fixed_headers = None if headers is None else as_headers(headers)
        return self.put_bytes(timestamp_ms, as_bytes(key, "key"), as_bytes(value, "value"), fixed_headers, -1, future)

    def close(self):
        """Take no more records."""
        with cython.critical_section(self):
            self.closed = True

    def payload(self):
        """The records, encoded, not compressed."""
        return PyBytes_FromStringAndSize(<const char*>self.data, self.size)

    def assemble(
        self, int64_t base_offset, int32_t leader_epoch, int16_t attributes, int32_t last_offset_delta,
        int64_t producer_id, int16_t producer_epoch, int32_t base_sequence,
    ):
        """The batch with the records as they are, not compressed; it takes no more."""
        self.close()
        return whole_batch(
            self.data, self.size, base_offset, leader_epoch, attributes, last_offset_delta, self.base_timestamp_ms,
            self.max_timestamp_ms, producer_id, producer_epoch, base_sequence, self.count,
        )

    def release(self):
        """Close the batch and give the encoded records back to the memory."""
        self.close()
        free(self.data)
        self.data = NULL
        self.size = self.capacity = 0


def assemble(
    bytes payload not None, int64_t base_offset, int32_t leader_epoch, int16_t attributes, int32_t last_offset_delta,
    int64_t base_timestamp_ms, int64_t max_timestamp_ms, int64_t producer_id, int16_t producer_epoch,
    int32_t base_sequence, int32_t count,
):
    """Header and payload, with length and checksum."""
    return whole_batch(
        <const uint8_t*>PyBytes_AS_STRING(payload), PyBytes_GET_SIZE(payload), base_offset, leader_epoch, attributes,
        last_offset_delta, base_timestamp_ms, max_timestamp_ms, producer_id, producer_epoch, base_sequence, count,
    )


cdef bytes whole_batch(
    const uint8_t* payload, Py_ssize_t payload_size, int64_t base_offset, int32_t leader_epoch, int16_t attributes,
    int32_t last_offset_delta, int64_t base_timestamp_ms, int64_t max_timestamp_ms, int64_t producer_id,
    int16_t producer_epoch, int32_t base_sequence, int32_t count
):
    cdef Py_ssize_t covered = HEADER - CRC_FROM + payload_size
    cdef bytes batch
    cdef uint8_t* p
    cdef uint32_t crc
    if payload_size > 0x7fffffff - HEADER:
        raise ValueError(f"a batch cannot have {payload_size} bytes of records")
    batch = PyBytes_FromStringAndSize(NULL, HEADER + payload_size)
    p = <uint8_t*>PyBytes_AS_STRING(batch)
    put64(p, <uint64_t>base_offset)
    put32(p + 8, <uint32_t>(LEAST_LENGTH + payload_size))
    put32(p + 12, <uint32_t>leader_epoch)
    p[16] = 2
    put16(p + 21, <uint16_t>attributes)
    put32(p + 23, <uint32_t>last_offset_delta)
    put64(p + 27, <uint64_t>base_timestamp_ms)
    put64(p + 35, <uint64_t>max_timestamp_ms)
    put64(p + 43, <uint64_t>producer_id)
    put16(p + 51, <uint16_t>producer_epoch)
    put32(p + 53, <uint32_t>base_sequence)
    put32(p + 57, <uint32_t>count)
    if payload_size:
        memcpy(p + HEADER, payload, <size_t>payload_size)
    if covered >= RELEASE_GIL_FROM:
        with nogil:
            crc = crc_of(0, p + CRC_FROM, <size_t>covered, False)
    else:
        crc = crc_of(0, p + CRC_FROM, <size_t>covered, False)
    put32(p + 17, crc)
    return batch
