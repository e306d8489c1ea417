# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, binding=False, auto_pickle=False, embedsignature=True
"""The loops over records in C. `_pure` has the same names in Python, and says what they do; the same tests run on both.

What is here runs once per record: encode, decode, CRC-32C, murmur2, and the life of a send's future. Lengths that came
from outside are compared with what is left before anything is read.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytearray cimport PyByteArray_FromStringAndSize
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.list cimport PyList_GET_SIZE
from cpython.object cimport PyObject, PyTypeObject
from cpython.ref cimport Py_INCREF
from cpython.tuple cimport PyTuple_GET_ITEM, PyTuple_GET_SIZE, PyTuple_New, PyTuple_SET_ITEM
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcmp, memcpy

from ottla_wire.errors import CorruptMessage, InvalidRecord
from ottla_wire.records import waiting
from ottla_wire.records.model import ProducerRecord, RecordMetadata, SendError, TimestampType

cdef extern from "Python.h":
    const char* PyUnicode_AsUTF8AndSize(object text, Py_ssize_t* size) except NULL
    bint PyUnicode_Check(object o)
    bint PyUnicode_CheckExact(object o)
    bint PyUnicode_IS_COMPACT_ASCII(object text)
    void* PyUnicode_DATA(object text)
    Py_ssize_t PyUnicode_GET_LENGTH(object text)
    bytes PyUnicode_AsUTF8String(object text)
    bint PyLong_CheckExact(object o)
    long long PyLong_AsLongLongAndOverflow(object number, int* overflow)
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
    uint16_t get16 "ottla_get16" (const uint8_t* p) noexcept nogil
    uint32_t get32 "ottla_get32" (const uint8_t* p) noexcept nogil
    uint64_t get64 "ottla_get64" (const uint8_t* p) noexcept nogil
    void put16 "ottla_put16" (uint8_t* p, uint16_t v) noexcept nogil
    void put32 "ottla_put32" (uint8_t* p, uint32_t v) noexcept nogil
    void put64 "ottla_put64" (uint8_t* p, uint64_t v) noexcept nogil

cdef enum:
    HEADER = 61                 # bytes of a batch before its records
    BEFORE_LENGTH = 12          # what the length does not count
    CRC_FROM = 21               # the CRC covers the rest, from the attributes on
    LEAST_LENGTH = 49
    LEAST_LEGACY_LENGTH = 14
    OWN_TIMESTAMPS = -2         # in place of an append time: each record has its own timestamp
    CODEC = 0x07                # of the attributes
    LOG_APPEND_TIME = 0x08
    CONTROL = 0x20
    MOST_NAMES = 64             # of headers whose names a reader remembers
    RELEASE_GIL_FROM = 1 << 20  # bytes from which a checksum (0.1 ms) is worth that: a thread that computes keeps it 5 ms

include "_native_hashing.pxi"
include "_native_decoding.pxi"
include "_native_batches.pxi"
include "_native_building.pxi"
include "_native_sending.pxi"
include "_native_open_batches.pxi"


def new_buffer(Py_ssize_t size):
    """A bytearray of a size, whatever is in it: for someone who is about to fill it."""
    return PyByteArray_FromStringAndSize(NULL, size)
