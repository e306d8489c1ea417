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
