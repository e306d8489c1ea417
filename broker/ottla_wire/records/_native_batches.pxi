# Batch headers in a buffer; a part of `_native.pyx`.

cdef class BatchHeader:
    """The fields of a batch in a buffer."""

    cdef readonly object buffer
    cdef readonly Py_ssize_t position
    cdef readonly Py_ssize_t size_bytes
    cdef readonly int64_t base_offset
    cdef readonly int32_t leader_epoch
    cdef readonly int magic
    cdef readonly uint32_t crc
    cdef readonly int attributes
    cdef readonly int32_t last_offset_delta
    cdef readonly int64_t base_timestamp_ms
    cdef readonly int64_t max_timestamp_ms
    cdef readonly int64_t producer_id
    cdef readonly int producer_epoch
    cdef readonly int32_t base_sequence
    cdef readonly int32_t count

    def __init__(self, buffer, Py_ssize_t position=0):
        cdef Py_buffer view
        cdef Py_ssize_t size
        if position < 0:
            raise ValueError(f"a batch cannot begin at position {position}")
        PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE)
        try:
            size = batch_size(<const uint8_t*>view.buf, view.len, position)
            if size < 0 or size > view.len - position:
                raise CorruptMessage(f"the buffer ends inside the batch at position {position}")
            self.buffer = buffer
            self.position = position
            self.load(<const uint8_t*>view.buf + position)
        finally:
            PyBuffer_Release(&view)

    def _reload(self):
        # The size may have changed under us; it must not carry the reading out of the buffer.
        BatchHeader.__init__(self, self.buffer, self.position)

    @property
    def last_offset(self):
        """The offset of the batch's last record, also if compaction has removed it."""
        return <int64_t>(<uint64_t>self.base_offset + <uint64_t>self.last_offset_delta)

    @property
    def next_offset(self):
        """The offset behind the batch."""
        return <int64_t>(<uint64_t>self.base_offset + <uint64_t>self.last_offset_delta + 1)

    cdef void load(self, const uint8_t* p) noexcept:
        self.base_offset = <int64_t>get64(p)
        self.size_bytes = <Py_ssize_t>get32(p + 8) + BEFORE_LENGTH
        self.leader_epoch = <int32_t>get32(p + 12)
        self.magic = p[16]
        if self.magic != 2:
            return
        self.crc = get32(p + 17)
        self.attributes = <int16_t>get16(p + 21)
        self.last_offset_delta = <int32_t>get32(p + 23)
        self.base_timestamp_ms = <int64_t>get64(p + 27)
        self.max_timestamp_ms = <int64_t>get64(p + 35)
        self.producer_id = <int64_t>get64(p + 43)
        self.producer_epoch = <int16_t>get16(p + 51)
        self.base_sequence = <int32_t>get32(p + 53)
        self.count = <int32_t>get32(p + 57)


cdef Py_ssize_t batch_size(const uint8_t* buffer, Py_ssize_t size, Py_ssize_t position) except? -1:
    """The bytes of the batch at `position`; -1 if the buffer ends before this can be told."""
    cdef int32_t length, least
    if size - position < 17:
        return -1
    length = <int32_t>get32(buffer + position + 8)
    if buffer[position + 16] > 2:
        raise CorruptMessage(f"the batch at position {position} has the unknown magic {buffer[position + 16]}")
    least = LEAST_LENGTH if buffer[position + 16] == 2 else LEAST_LEGACY_LENGTH
    if length < least:
        raise CorruptMessage(f"the batch at position {position} has length {length}, and {least} is the least")
    return <Py_ssize_t>length + BEFORE_LENGTH


# Not for the garbage collector: it would clear a memoryview in a cycle although the buffer taken of it here is not
# released yet, and CPython's memoryview does not survive that (its own release then follows a null pointer). Unseen,
# this reference keeps the memoryview alive until the buffer is released, and it is never part of a cycle itself.
@cython.no_gc
cdef class scan:
    """The batches in a buffer; one that is incomplete ends it, or is a CorruptMessage if `strict`."""

    cdef Py_buffer view
    cdef bint has_view
    cdef object batch_class
    cdef object buffer
    cdef Py_ssize_t position
    cdef bint strict

    def __cinit__(self, batch_class, buffer, Py_ssize_t position=0, bint strict=False):
        if not (isinstance(batch_class, type) and issubclass(batch_class, BatchHeader)):
            raise TypeError(f"{batch_class!r} is not a class of batches")
        if position < 0:
            raise ValueError(f"a batch cannot begin at position {position}")
        PyObject_GetBuffer(buffer, &self.view, PyBUF_SIMPLE)
        self.has_view = True
        self.batch_class = batch_class
        self.buffer = buffer
        self.position = position
        self.strict = strict

    def __dealloc__(self):
        if self.has_view:
            PyBuffer_Release(&self.view)

    def __iter__(self):
        return self

    def __next__(self):
        cdef BatchHeader batch
        cdef Py_ssize_t size
        if self.position >= self.view.len:
            raise StopIteration
        size = batch_size(<const uint8_t*>self.view.buf, self.view.len, self.position)
        if size < 0 or size > self.view.len - self.position:
            if self.strict:
                raise CorruptMessage(f"the buffer ends inside the batch at position {self.position}")
            self.position = self.view.len
            raise StopIteration
        # The class's tp_new, without its __init__: that would take the buffer and look at the size once more.
        batch = <BatchHeader>(<PyTypeObject*>self.batch_class).tp_new(<type>self.batch_class, <PyObject*>(), NULL)
        batch.buffer = self.buffer
        batch.position = self.position
        batch.load(<const uint8_t*>self.view.buf + self.position)
        self.position += size
        return batch


def end_of_batches(buffer, int64_t default):
    """The offset behind the last complete batch of a buffer; `default` if there is none."""
    cdef Py_buffer view
    cdef Py_ssize_t position = 0
    cdef int32_t length
    cdef const uint8_t* p
    PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE)
    try:
        while view.len - position >= HEADER:
            p = <const uint8_t*>view.buf + position
            length = <int32_t>get32(p + 8)
            if length < 0 or length > view.len - position - BEFORE_LENGTH:
                break
            default = <int64_t>(get64(p) + <uint64_t><int64_t><int32_t>get32(p + 23) + 1)
            position += length + BEFORE_LENGTH
    finally:
        PyBuffer_Release(&view)
    return default


def decode_batches(
    buffer, Py_ssize_t position, Py_ssize_t max_records, str topic not None, int32_t partition, int64_t from_offset,
    bint check_crcs,
):
    """The records of the batches from a position on, and (position, next offset, leader epoch) behind the last."""
    cdef Py_buffer view
    cdef BatchHeader header = BatchHeader.__new__(BatchHeader)
    cdef BatchFacts batch
    cdef Py_ssize_t before
    cdef int64_t next_offset = -1
    cdef int32_t leader_epoch = -1
    cdef list records = []
    PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE)
    try:
        while PyList_GET_SIZE(records) < max_records and is_plain(&view, position, header, check_crcs):
            batch = BatchFacts(header.count, partition, header.leader_epoch, from_offset)
            before = PyList_GET_SIZE(records)
            try:
                add_consumer_records(
                    RecordReader(
                        buffer, position + HEADER, position + header.size_bytes, header.count, header.base_offset,
                        header.base_timestamp_ms,
                        header.max_timestamp_ms if header.attributes & LOG_APPEND_TIME else OWN_TIMESTAMPS,
                    ),
                    records, &batch, topic,
                    TimestampType.LOG_APPEND_TIME if header.attributes & LOG_APPEND_TIME else TimestampType.CREATE_TIME,
                )
            except InvalidRecord:
                del records[before:]
                break
            position += header.size_bytes
            next_offset = header.next_offset
            leader_epoch = header.leader_epoch
    finally:
        PyBuffer_Release(&view)
    return records, position, next_offset, leader_epoch


cdef bint is_plain(Py_buffer* view, Py_ssize_t position, BatchHeader header, bint check_crc) except -1:
    """Whether a whole batch is there, with data as it is to be read and its CRC right; `header` becomes its own."""
    cdef const uint8_t* p = <const uint8_t*>view.buf + position
    cdef Py_ssize_t size
    cdef uint32_t crc
    try:
        size = batch_size(<const uint8_t*>view.buf, view.len, position)
    except CorruptMessage:
        return False
    if size < 0 or size > view.len - position:
        return False
    header.load(p)
    if header.magic != 2 or header.attributes & (CODEC | CONTROL):
        return False
    if not check_crc:
        return True
    if size >= RELEASE_GIL_FROM:
        with nogil:
            crc = crc_of(0, p + CRC_FROM, <size_t>(size - CRC_FROM), False)
    else:
        crc = crc_of(0, p + CRC_FROM, <size_t>(size - CRC_FROM), False)
    return crc == header.crc
