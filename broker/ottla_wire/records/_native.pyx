# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, binding=False, auto_pickle=False, embedsignature=True
"""The loops over records in C. `_pure` has the same names in Python, and says what they do; the same tests run on both.

What is here runs once per record: encode, decode, CRC-32C, murmur2, and the life of a send's future. Lengths that came
from outside are compared with what is left before anything is read.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.list cimport PyList_GET_SIZE
from cpython.object cimport PyObject, PyTypeObject
from cpython.ref cimport Py_INCREF
from cpython.tuple cimport PyTuple_GET_ITEM, PyTuple_GET_SIZE, PyTuple_New, PyTuple_SET_ITEM
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcmp, memcpy

from ottla_wire.errors import CorruptMessage, InvalidRecord
from ottla_wire.records import waiting
from ottla_wire.records.model import ProducerRecord, RecordMetadata, SendError, TimestampType

cdef extern from "Python.h":
    const char* PyUnicode_AsUTF8AndSize(object text, Py_ssize_t* size) except NULL
    bint PyUnicode_Check(object o)
    bint PyTuple_CheckExact(object o)
    bint PyCallable_Check(object o)
    bint PyObject_GC_IsTracked(object o)
    void PyObject_GC_Track(object o)
    void PyObject_GC_UnTrack(void* o)

cdef extern from *:
    """
    #include <stdint.h>
    #include <stddef.h>
    #include <string.h>

    /* CRC-32C: the processor's own instruction where it has one, else eight tables (slicing-by-8). */
    static uint32_t ottla_crc_table[8][256];
    static int ottla_crc_in_hardware = 0;

    static uint32_t ottla_crc_by_tables(uint32_t crc, const uint8_t *p, size_t n) {
        for (; n >= 8; p += 8, n -= 8) {
            uint32_t low = crc ^ ((uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24);
            crc = ottla_crc_table[7][low & 0xff] ^ ottla_crc_table[6][low >> 8 & 0xff]
                ^ ottla_crc_table[5][low >> 16 & 0xff] ^ ottla_crc_table[4][low >> 24]
                ^ ottla_crc_table[3][p[4]] ^ ottla_crc_table[2][p[5]]
                ^ ottla_crc_table[1][p[6]] ^ ottla_crc_table[0][p[7]];
        }
        for (; n; p++, n--) crc = ottla_crc_table[0][(crc ^ *p) & 0xff] ^ crc >> 8;
        return crc;
    }

    #if defined(__x86_64__) && defined(__GNUC__)
    #include <nmmintrin.h>
    __attribute__((target("sse4.2")))
    static uint32_t ottla_crc_by_instruction(uint32_t crc, const uint8_t *p, size_t n) {
        uint64_t wide = crc, word;
        for (; n >= 8; p += 8, n -= 8) { memcpy(&word, p, 8); wide = _mm_crc32_u64(wide, word); }
        crc = (uint32_t)wide;
        for (; n; p++, n--) crc = _mm_crc32_u8(crc, *p);
        return crc;
    }
    static int ottla_crc_has_instruction(void) { return __builtin_cpu_supports("sse4.2"); }
    #elif defined(__aarch64__) && defined(__ARM_FEATURE_CRC32)
    #include <arm_acle.h>
    static uint32_t ottla_crc_by_instruction(uint32_t crc, const uint8_t *p, size_t n) {
        uint64_t word;
        for (; n >= 8; p += 8, n -= 8) { memcpy(&word, p, 8); crc = __crc32cd(crc, word); }
        for (; n; p++, n--) crc = __crc32cb(crc, *p);
        return crc;
    }
    static int ottla_crc_has_instruction(void) { return 1; }
    #else
    #define ottla_crc_by_instruction ottla_crc_by_tables
    static int ottla_crc_has_instruction(void) { return 0; }
    #endif

    static void ottla_crc_start(void) {
        for (int i = 0; i < 256; i++) {
            uint32_t c = (uint32_t)i;
            for (int bit = 0; bit < 8; bit++) c = c & 1 ? c >> 1 ^ 0x82f63b78u : c >> 1;
            ottla_crc_table[0][i] = c;
        }
        for (int t = 1; t < 8; t++)
            for (int i = 0; i < 256; i++) {
                uint32_t c = ottla_crc_table[t - 1][i];
                ottla_crc_table[t][i] = c >> 8 ^ ottla_crc_table[0][c & 0xff];
            }
        ottla_crc_in_hardware = ottla_crc_has_instruction();
    }

    static uint32_t ottla_crc32c(uint32_t value, const uint8_t *p, size_t n, int by_tables) {
        return ~(ottla_crc_in_hardware && !by_tables ? ottla_crc_by_instruction : ottla_crc_by_tables)(~value, p, n);
    }

    /* Big-endian fields, at any address. */
    #define OTTLA_FIELD(bits) \\
        static uint##bits##_t ottla_get##bits(const uint8_t *p) { \\
            uint##bits##_t v = 0; \\
            for (int i = 0; i < bits / 8; i++) v = (uint##bits##_t)(v << 8 | p[i]); \\
            return v; \\
        } \\
        static void ottla_put##bits(uint8_t *p, uint##bits##_t v) { \\
            for (int i = bits / 8; i-- > 0; v = (uint##bits##_t)(v >> 8)) p[i] = (uint8_t)v; \\
        }
    OTTLA_FIELD(16)
    OTTLA_FIELD(32)
    OTTLA_FIELD(64)
    """
    void crc_start "ottla_crc_start" ()
    bint crc_in_hardware "ottla_crc_in_hardware"
    uint32_t crc_of "ottla_crc32c" (uint32_t value, const uint8_t* data, size_t size, bint by_tables) noexcept nogil
    uint16_t get16 "ottla_get16" (const uint8_t* p) noexcept nogil
    uint32_t get32 "ottla_get32" (const uint8_t* p) noexcept nogil
    uint64_t get64 "ottla_get64" (const uint8_t* p) noexcept nogil
    void put16 "ottla_put16" (uint8_t* p, uint16_t v) noexcept nogil
    void put32 "ottla_put32" (uint8_t* p, uint32_t v) noexcept nogil
    void put64 "ottla_put64" (uint8_t* p, uint64_t v) noexcept nogil

crc_start()

cdef enum:
    HEADER = 61                 # bytes of a batch before its records
    BEFORE_LENGTH = 12          # what the length does not count
    CRC_FROM = 21               # the CRC covers the rest, from the attributes on
    LEAST_LENGTH = 49
    LEAST_LEGACY_LENGTH = 14
    OWN_TIMESTAMPS = -2         # in place of an append time: each record has its own timestamp
    MOST_NAMES = 64             # of headers whose names a reader remembers
    RELEASE_GIL_FROM = 65536    # bytes from which a checksum takes longer than giving the GIL away


# ---------------------------------------------------------------------------------------------- checksum and hash


def crc32c(data, uint32_t value=0, *, bint by_tables=False):
    """CRC-32C (Castagnoli) of `data`, continued from `value`; `by_tables` is for the tests of the slower way."""
    cdef Py_buffer view
    cdef uint32_t result
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        if view.len >= RELEASE_GIL_FROM:
            with nogil:
                result = crc_of(value, <const uint8_t*>view.buf, <size_t>view.len, by_tables)
        else:
            result = crc_of(value, <const uint8_t*>view.buf, <size_t>view.len, by_tables)
    finally:
        PyBuffer_Release(&view)
    return result


cdef uint32_t murmur2_of(const uint8_t* p, Py_ssize_t length) noexcept:
    cdef uint32_t m = 0x5bd1e995
    cdef uint32_t h = <uint32_t>0x9747b28c ^ <uint32_t>length
    cdef uint32_t k
    cdef Py_ssize_t left = length
    while left >= 4:
        k = <uint32_t>p[0] | <uint32_t>p[1] << 8 | <uint32_t>p[2] << 16 | <uint32_t>p[3] << 24
        k *= m
        k ^= k >> 24
        h = h * m ^ k * m
        p += 4
        left -= 4
    if left:
        if left == 3:
            h ^= <uint32_t>p[2] << 16
        if left >= 2:
            h ^= <uint32_t>p[1] << 8
        h = (h ^ p[0]) * m
    h = (h ^ h >> 13) * m
    return h ^ h >> 15


cdef uint32_t murmur2_of_object(data) except? 0:
    cdef Py_buffer view
    if PyBytes_CheckExact(data):
        return murmur2_of(<const uint8_t*>PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        return murmur2_of(<const uint8_t*>view.buf, view.len)
    finally:
        PyBuffer_Release(&view)


def murmur2(data):
    """The 32-bit Murmur2 hash with the seed of Kafka's Java client, signed as Java has it."""
    return <int32_t>murmur2_of_object(data)


def partition_for_key(key, int32_t partitions):
    """The partition that Java's default partitioner gives a key."""
    if partitions <= 0:
        raise ValueError(f"a topic has at least one partition, not {partitions}")
    return (murmur2_of_object(key) & 0x7fffffff) % <uint32_t>partitions


# ---------------------------------------------------------------------------------------------- decoding records


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


def decode_consumer_records(
    payload, Py_ssize_t start, Py_ssize_t end, int32_t count, int64_t base_offset, int64_t base_timestamp_ms,
    int64_t append_time_ms, str topic not None, int32_t partition, timestamp_type, int32_t leader_epoch,
    int64_t from_offset,
):
    """As `decode_records`, for a consumer: without records below `from_offset`."""
    cdef RecordReader reader = RecordReader(
        payload, start, end, count, base_offset, base_timestamp_ms, append_time_ms
    )
    cdef list records = []
    cdef ConsumerRecord record
    cdef int32_t i
    for i in range(count):
        headers = reader.step()
        if reader.offset < from_offset:
            continue
        record = ConsumerRecord.__new__(ConsumerRecord)
        record.topic = topic
        record.partition = partition
        record.offset = reader.offset
        record.timestamp_ms = reader.timestamp_ms
        record.timestamp_type = timestamp_type
        record._key = bytes_of(&reader.key)
        record._value = bytes_of(&reader.value)
        record._headers = headers
        record.epoch = leader_epoch
        PyObject_GC_UnTrack(<void*>record)
        records.append(record)
    reader.finish(count)
    return records


# ---------------------------------------------------------------------------------------------- batches


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
        return self.base_offset + self.last_offset_delta

    @property
    def next_offset(self):
        """The offset behind the batch."""
        return self.base_offset + self.last_offset_delta + 1

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


# ---------------------------------------------------------------------------------------------- building


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


cdef class BatchWriter:
    """The records of a batch that is being built, encoded; not thread-safe: one thread appends at a time."""

    cdef uint8_t* data
    cdef Py_ssize_t size, capacity
    cdef readonly Py_ssize_t limit
    cdef readonly int64_t horizon_ms
    cdef readonly int32_t count
    cdef public bint closed
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

    cdef bint add(
        self, int64_t timestamp_ms, bytes key, bytes value, headers, int32_t offset_delta
    ) except -1:
        cdef Py_ssize_t key_size = -1 if key is None else PyBytes_GET_SIZE(key)
        cdef Py_ssize_t value_size = -1 if value is None else PyBytes_GET_SIZE(value)
        cdef int64_t base = self.base_timestamp_ms
        cdef uint64_t delta
        cdef Py_ssize_t body, total
        cdef tuple encoded_headers = None
        cdef uint8_t* p
        if self.closed:
            return False
        if offset_delta < 0:
            offset_delta = self.last_offset_delta + 1
        elif offset_delta <= self.last_offset_delta:
            raise ValueError(f"offset delta {offset_delta} does not follow {self.last_offset_delta}")
        if self.count == 0 and self.horizon_ms <= OWN_TIMESTAMPS:
            base = timestamp_ms
        delta = zigzag(<int64_t>(<uint64_t>timestamp_ms - <uint64_t>base))
        body = 1 + varint_size(delta) + varint_size(zigzag(offset_delta))
        body += 1 if key is None else data_size(key_size)
        body += 1 if value is None else data_size(value_size)
        if headers is None:
            body += 1
        else:
            encoded_headers = as_headers(headers)
            body += headers_size(encoded_headers)
        if body > 0x7fffffff - HEADER:
            raise ValueError(f"a record of {body} bytes fits into no batch")
        total = varint_size(zigzag(body)) + body
        if self.count > 0 and HEADER + self.size + total > self.limit:
            self.closed = True
            return False
        self.reserve(total)
        p = put_varint(self.data + self.size, zigzag(body))
        p[0] = 0
        p = put_varint(p + 1, delta)
        p = put_varint(p, zigzag(offset_delta))
        p = put_varint(p, 1) if key is None else put_data(p, PyBytes_AS_STRING(key), key_size)
        p = put_varint(p, 1) if value is None else put_data(p, PyBytes_AS_STRING(value), value_size)
        p = put_varint(p, 0) if encoded_headers is None else put_headers(p, encoded_headers)
        assert p == self.data + self.size + total
        self.size += total
        self.base_timestamp_ms = base
        if self.count == 0 or timestamp_ms > self.max_timestamp_ms:
            self.max_timestamp_ms = timestamp_ms
        self.last_offset_delta = offset_delta
        self.count += 1
        return True

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
        return self.add(timestamp_ms, as_bytes(key, "key"), as_bytes(value, "value"), headers, offset_delta)

    def append_send(
        self, int64_t timestamp_ms, key, value, headers, str topic not None, original_value=None, original_key=None,
        partition=None, original_timestamp_ms=None,
    ):
        """Add a record and make its future, which is kept in `futures`; None if the record does not fit."""
        cdef SendFuture future
        key = as_bytes(key, "key")
        value = as_bytes(value, "value")
        if not self.add(timestamp_ms, key, value, headers, -1):
            return None
        future = SendFuture.__new__(SendFuture)
        future.set_asked(topic, original_value, original_key, partition, original_timestamp_ms, headers)
        future.timestamp_ms = timestamp_ms
        future.key_size = -1 if key is None else PyBytes_GET_SIZE(key)
        future.value_size = -1 if value is None else PyBytes_GET_SIZE(value)
        self.futures.append(future)
        return future

    def append_future(self, SendFuture future not None, int64_t timestamp_ms, key, value, headers=None):
        """Add a record whose future exists (it waited for metadata, or its batch was split); False if it does not fit."""
        key = as_bytes(key, "key")
        value = as_bytes(value, "value")
        if not self.add(timestamp_ms, key, value, headers, -1):
            return False
        future.timestamp_ms = timestamp_ms
        future.key_size = -1 if key is None else PyBytes_GET_SIZE(key)
        future.value_size = -1 if value is None else PyBytes_GET_SIZE(value)
        self.futures.append(future)
        return True

    def payload(self):
        """The records, encoded, not compressed."""
        return PyBytes_FromStringAndSize(<const char*>self.data, self.size)

    def release(self):
        """Close the batch and give the encoded records back to the memory."""
        self.closed = True
        free(self.data)
        self.data = NULL
        self.size = self.capacity = 0


def assemble(
    bytes payload not None, int64_t base_offset, int32_t leader_epoch, int16_t attributes, int32_t last_offset_delta,
    int64_t base_timestamp_ms, int64_t max_timestamp_ms, int64_t producer_id, int16_t producer_epoch,
    int32_t base_sequence, int32_t count,
):
    """Header and payload, with length and checksum."""
    cdef Py_ssize_t payload_size = PyBytes_GET_SIZE(payload)
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
    memcpy(p + HEADER, PyBytes_AS_STRING(payload), <size_t>payload_size)
    if covered >= RELEASE_GIL_FROM:
        with nogil:
            crc = crc_of(0, p + CRC_FROM, <size_t>covered, False)
    else:
        crc = crc_of(0, p + CRC_FROM, <size_t>covered, False)
    put32(p + 17, crc)
    return batch


# ---------------------------------------------------------------------------------------------- the future of a send

# Watchers of a future: None, or one watcher, or a list of them. A tuple is a pair of callbacks, anything else a waiter
# of `waiting`. Taking a step that no other thread divides means here: inside a critical section (a lock under free
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
        callbacks = (on_success, on_failure)
        if not self.push(callbacks):
            self.run(callbacks)
        return self

    def __await__(self):
        return SendAwait(self)

    def __repr__(self):
        if self.state == PENDING:
            watched = self.watchers is not None and self.watchers != []
            return f"<SendFuture {self.topic} pending{', watched' if watched else ''}>"
        if self.state == STORED:
            return f"<SendFuture {self.topic} stored at {self.partition}:{self.offset}>"
        return f"<SendFuture {self.topic} failed: {self.error!r}>"

    # For the engine

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

    cdef int run(self, tuple callbacks) except -1:
        callback = callbacks[0] if self.state == STORED else callbacks[1]
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


def complete_batch(futures, str topic, int32_t partition, int64_t base_offset, int64_t log_append_time_ms=-1):
    """Finish the futures of a stored batch, in order: the first has `base_offset`, each further one the next offset.

    `base_offset` is -1 if the broker did not tell it (acks=0), `log_append_time_ms` if the producer's timestamps stand.
    Waiters wake first, each loop once; then the callbacks run, in order, on this thread. Futures that are done stay.
    """
    cdef list taken = []
    cdef int64_t offset = base_offset
    cdef SendFuture future
    for item in list(futures):
        future = <SendFuture?>item
        watchers = None
        with cython.critical_section(future):
            if future.state == PENDING:
                future.partition = partition
                future.offset = offset
                if log_append_time_ms >= 0:
                    future.timestamp_ms = log_append_time_ms
                future.state = STORED
                watchers = future.watchers
                future.watchers = None
        if watchers is not None:
            taken.append(future)
            taken.append(watchers)
        if base_offset >= 0:
            offset += 1
    if taken:
        notify(taken)


def fail_futures(futures, error, int32_t partition=-1):
    """Finish futures with an error: each raises a `SendError` of its own whose `__cause__` is `error`."""
    cdef list taken = []
    cdef SendFuture future
    if not isinstance(error, BaseException):
        raise TypeError(f"a send fails with an exception, not with {error!r}")
    for item in list(futures):
        future = <SendFuture?>item
        watchers = None
        with cython.critical_section(future):
            if future.state == PENDING:
                future.partition = partition
                future.error = error
                future.state = FAILED
                watchers = future.watchers
                future.watchers = None
        if watchers is not None:
            taken.append(future)
            taken.append(watchers)
    if taken:
        notify(taken)


cdef int notify(list taken) except -1:
    """Wake and call the watchers of futures; `taken` is future, watchers, future, watchers, ..."""
    cdef list waiters = []
    cdef Py_ssize_t i
    cdef SendFuture future
    for i in range(1, len(taken), 2):
        watchers = taken[i]
        if type(watchers) is list:
            waiters.extend([watcher for watcher in <list>watchers if type(watcher) is not tuple])
        elif type(watchers) is not tuple:
            waiters.append(watchers)
    if waiters:
        waiting.wake(waiters)
    for i in range(1, len(taken), 2):
        future = <SendFuture>taken[i - 1]
        watchers = taken[i]
        if type(watchers) is tuple:
            future.run(<tuple>watchers)
        elif type(watchers) is list:
            for watcher in <list>watchers:
                if type(watcher) is tuple:
                    future.run(<tuple>watcher)
    return 0
