# Records out of a payload; a part of `_native.pyx`.

@cython.no_gc
cdef class Record:
    """A record of a batch."""

    cdef readonly int64_t offset
    cdef readonly int64_t timestamp_ms
    cdef readonly bytes key
    cdef readonly bytes value
    cdef readonly tuple headers

    def __init__(self, int64_t offset, int64_t timestamp_ms, bytes key, bytes value, tuple headers):
        self.offset = offset
        self.timestamp_ms = timestamp_ms
        self.key = key
        self.value = value
        self.headers = headers

    def __eq__(self, other):
        cdef Record o
        if not isinstance(other, Record):
            return NotImplemented
        o = <Record>other
        return (
            self.offset == o.offset and self.timestamp_ms == o.timestamp_ms and self.key == o.key
            and self.value == o.value and self.headers == o.headers
        )

    __hash__ = None

    def __repr__(self):
        return (
            f"Record(offset={self.offset}, timestamp_ms={self.timestamp_ms}, key={self.key!r}, value={self.value!r}, "
            f"headers={self.headers!r})"
        )


@cython.freelist(256)
cdef class ConsumerRecord:
    """A record as a consumer receives it; deserializers replace `key` and `value`."""

    cdef readonly str topic
    cdef readonly int32_t partition
    cdef readonly int64_t offset
    cdef readonly int64_t timestamp_ms
    cdef readonly object timestamp_type
    cdef object _key
    cdef object _value
    cdef object _headers
    cdef int32_t epoch, attempt

    def __cinit__(self):
        self.epoch = self.attempt = -1

    def __init__(
        self, str topic not None, int32_t partition, int64_t offset, int64_t timestamp_ms=-1,
        timestamp_type=TimestampType.CREATE_TIME, key=None, value=None, headers=(), leader_epoch=None,
        delivery_attempt=None,
    ):
        self.topic = topic
        self.partition = partition
        self.offset = offset
        self.timestamp_ms = timestamp_ms
        self.timestamp_type = timestamp_type
        self._key = key
        self._value = value
        self._headers = headers
        self.leader_epoch = leader_epoch
        self.delivery_attempt = delivery_attempt

    # As decoded, a record refers to bytes and strings only and cannot be part of a cycle: the garbage collector is not
    # told of it, which saves a third of the time (`decode_consumer_records`). What is assigned may refer to anything.

    @property
    def key(self):
        """The key; bytes or None, or what a deserializer made of them."""
        return self._key

    @key.setter
    def key(self, key):
        self._key = key
        track(self)

    @property
    def value(self):
        """The value; bytes or None, or what a deserializer made of them."""
        return self._value

    @value.setter
    def value(self, value):
        self._value = value
        track(self)

    @property
    def headers(self):
        """Pairs of a name and a value, which is bytes or None."""
        return self._headers

    @headers.setter
    def headers(self, headers):
        self._headers = headers
        track(self)

    @property
    def leader_epoch(self):
        """The leader epoch under which the record was appended; None if the broker does not tell."""
        return None if self.epoch < 0 else self.epoch

    @leader_epoch.setter
    def leader_epoch(self, epoch):
        self.epoch = -1 if epoch is None else epoch

    @property
    def delivery_attempt(self):
        """Which attempt to process the record this is; None where nobody counts."""
        return None if self.attempt < 0 else self.attempt

    @delivery_attempt.setter
    def delivery_attempt(self, attempt):
        self.attempt = -1 if attempt is None else attempt

    def header(self, str name not None):
        """The last value under this name; None if there is none, or if it is null."""
        for key, value in reversed(self._headers):
            if key == name:
                return value
        return None

    def _fields(self):
        return (
            self.topic, self.partition, self.offset, self.timestamp_ms, self.timestamp_type, self._key, self._value,
            self._headers, self.leader_epoch, self.delivery_attempt,
        )

    def __eq__(self, other):
        if not isinstance(other, ConsumerRecord):
            return NotImplemented
        return self._fields() == (<ConsumerRecord>other)._fields()

    __hash__ = None

    def __reduce__(self):
        return ConsumerRecord, self._fields()

    def __repr__(self):
        return (
            f"ConsumerRecord(topic={self.topic!r}, partition={self.partition}, offset={self.offset}, "
            f"timestamp_ms={self.timestamp_ms}, key={self.key!r}, value={self.value!r}, headers={self.headers!r})"
        )


cdef inline void track(ConsumerRecord record) noexcept:
    if not PyObject_GC_IsTracked(record):
        PyObject_GC_Track(record)


cdef struct Cursor:
    const uint8_t* at
    const uint8_t* end


cdef int raise_truncated() except -1:
    raise InvalidRecord("a record ends outside its batch")


cdef inline int read_varint(Cursor* cursor, int most, int64_t* result) except -1:
    """A zigzag varint of at most `most` bits."""
    if cursor.at < cursor.end and cursor.at[0] < 0x80:
        result[0] = <int64_t>(cursor.at[0] >> 1) ^ -<int64_t>(cursor.at[0] & 1)
        cursor.at += 1
        return 0
    return read_long_varint(cursor, most, result)


cdef int read_long_varint(Cursor* cursor, int most, int64_t* result) except -1:
    cdef uint64_t bits = 0
    cdef uint64_t byte
    cdef int shift = 0
    while True:
        if cursor.at >= cursor.end:
            raise_truncated()
        byte = cursor.at[0]
        cursor.at += 1
        bits |= (byte & 0x7f) << shift
        if byte < 0x80:
            break
        shift += 7
        if shift >= most:
            raise InvalidRecord(f"a number of a record takes more than {most} bits")
    if most == 32:
        bits = <uint32_t>bits
    result[0] = <int64_t>(bits >> 1) ^ -<int64_t>(bits & 1)
    return 0


cdef struct Slice:
    const uint8_t* data
    int64_t size                    # -1: null


cdef inline int read_slice(Cursor* cursor, Slice* slice) except -1:
    read_varint(cursor, 32, &slice.size)
    slice.data = cursor.at
    if slice.size > 0:
        if slice.size > cursor.end - cursor.at:
            raise_truncated()
        cursor.at += slice.size
    return 0


cdef inline object bytes_of(Slice* slice):
    if slice.size < 0:
        return None
    return PyBytes_FromStringAndSize(<const char*>slice.data, <Py_ssize_t>slice.size)


cdef class RecordReader:
    """Steps through the records of a payload; after `step` its fields are those of the record."""

    cdef Py_buffer view
    cdef bint has_view
    cdef Cursor rest
    cdef int64_t base_offset, base_timestamp_ms, append_time_ms, offset, timestamp_ms
    cdef Slice key, value
    cdef list names             # of the headers of the records so far, by place: records of a topic repeat them

    def __cinit__(
        self, payload, Py_ssize_t start, Py_ssize_t end, int32_t count, int64_t base_offset,
        int64_t base_timestamp_ms, int64_t append_time_ms,
    ):
        PyObject_GetBuffer(payload, &self.view, PyBUF_SIMPLE)
        self.has_view = True
        self.names = []
        if start < 0 or end < start or end > self.view.len:
            raise ValueError(f"records from {start} to {end} in a buffer of {self.view.len} bytes")
        if count < 0:
            raise InvalidRecord(f"a batch claims to have {count} records")
        self.rest.at = <const uint8_t*>self.view.buf + start
        self.rest.end = <const uint8_t*>self.view.buf + end
        self.base_offset = base_offset
        self.base_timestamp_ms = base_timestamp_ms
        self.append_time_ms = append_time_ms

    def __dealloc__(self):
        if self.has_view:
            PyBuffer_Release(&self.view)

    cdef tuple step(self):
        """Read a record: its headers are returned, the rest is in the fields."""
        cdef Cursor record
        cdef int64_t size, timestamp_delta, offset_delta, header_count
        cdef tuple headers = ()
        read_varint(&self.rest, 32, &size)
        if size <= 0 or size > self.rest.end - self.rest.at:
            raise_truncated()
        record.at = self.rest.at + 1        # behind the attributes, of which no bit has a meaning yet
        record.end = self.rest.at + size
        self.rest.at = record.end
        read_varint(&record, 64, &timestamp_delta)
        read_varint(&record, 32, &offset_delta)
        read_slice(&record, &self.key)
        read_slice(&record, &self.value)
        read_varint(&record, 32, &header_count)
        if header_count != 0:
            headers = self.read_headers(&record, header_count)
        if record.at != record.end:
            raise InvalidRecord(f"a record of {size} bytes ends {record.end - record.at} bytes early")
        # Unsigned: a sum that leaves the range wraps, as it does in the twin, and is not undefined.
        self.offset = <int64_t>(<uint64_t>self.base_offset + <uint64_t>offset_delta)
        if self.append_time_ms <= OWN_TIMESTAMPS:
            self.timestamp_ms = <int64_t>(<uint64_t>self.base_timestamp_ms + <uint64_t>timestamp_delta)
        else:
            self.timestamp_ms = self.append_time_ms
        return headers

    cdef tuple read_headers(self, Cursor* cursor, int64_t count):
        cdef tuple headers
        cdef Slice name, value
        cdef int64_t i
        if count < 0 or count > cursor.end - cursor.at:
            raise InvalidRecord(f"a record claims to have {count} headers")
        headers = PyTuple_New(<Py_ssize_t>count)
        for i in range(count):
            read_slice(cursor, &name)
            if name.size < 0:
                raise InvalidRecord("a record has a header without a name")
            read_slice(cursor, &value)
            header = (self.name_of(&name, i), bytes_of(&value))
            # Tuples of strings and bytes: what the collector would find out at its first visit.
            PyObject_GC_UnTrack(<void*>header)
            Py_INCREF(header)
            PyTuple_SET_ITEM(headers, <Py_ssize_t>i, header)
        PyObject_GC_UnTrack(<void*>headers)
        return headers

    cdef name_of(self, Slice* slice, int64_t place):
        cdef Py_ssize_t size
        cdef const char* known
        if place < PyList_GET_SIZE(self.names):
            name = self.names[place]
            known = PyUnicode_AsUTF8AndSize(name, &size)
            if size == slice.size and memcmp(known, slice.data, <size_t>size) == 0:
                return name
        name = PyUnicode_DecodeUTF8(<char*>slice.data, <Py_ssize_t>slice.size, "replace")
        if place < PyList_GET_SIZE(self.names):
            self.names[place] = name
        elif place < MOST_NAMES:
            self.names.append(name)
        return name

    cdef int finish(self, int32_t count) except -1:
        if self.rest.at != self.rest.end:
            raise InvalidRecord(f"{self.rest.end - self.rest.at} bytes follow the last of {count} records of a batch")
        return 0


def decode_records(
    payload, Py_ssize_t start, Py_ssize_t end, int32_t count, int64_t base_offset, int64_t base_timestamp_ms,
    int64_t append_time_ms,
):
    """The records in payload[start:end], which is no longer compressed."""
    cdef RecordReader reader = RecordReader(
        payload, start, end, count, base_offset, base_timestamp_ms, append_time_ms
    )
    cdef list records = []
    cdef Record record
    cdef int32_t i
    for i in range(count):
        headers = reader.step()
        record = Record.__new__(Record)
        record.offset = reader.offset
        record.timestamp_ms = reader.timestamp_ms
        record.key = bytes_of(&reader.key)
        record.value = bytes_of(&reader.value)
        record.headers = headers
        records.append(record)
    reader.finish(count)
    return records


cdef struct BatchFacts:
    int32_t count, partition, leader_epoch
    int64_t from_offset


cdef int add_consumer_records(RecordReader reader, list records, BatchFacts* batch, str topic, timestamp_type) except -1:
    """Append the records of a batch that are not below its `from_offset`."""
    cdef ConsumerRecord record
    cdef int32_t i
    for i in range(batch.count):
        headers = reader.step()
        if reader.offset < batch.from_offset:
            continue
        record = ConsumerRecord.__new__(ConsumerRecord)
        record.topic = topic
        record.partition = batch.partition
        record.offset = reader.offset
        record.timestamp_ms = reader.timestamp_ms
        record.timestamp_type = timestamp_type
        record._key = bytes_of(&reader.key)
        record._value = bytes_of(&reader.value)
        record._headers = headers
        record.epoch = batch.leader_epoch
        PyObject_GC_UnTrack(<void*>record)
        records.append(record)
    return reader.finish(batch.count)


def decode_consumer_records(
    payload, Py_ssize_t start, Py_ssize_t end, int32_t count, int64_t base_offset, int64_t base_timestamp_ms,
    int64_t append_time_ms, str topic not None, int32_t partition, timestamp_type, int32_t leader_epoch,
    int64_t from_offset,
):
    """As `decode_records`, for a consumer: without records below `from_offset`."""
    cdef RecordReader reader = RecordReader(
        payload, start, end, count, base_offset, base_timestamp_ms, append_time_ms
    )
    cdef BatchFacts batch = BatchFacts(count, partition, leader_epoch, from_offset)
    cdef list records = []
    add_consumer_records(reader, records, &batch, topic, timestamp_type)
    return records
