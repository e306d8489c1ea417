# CRC-32C and murmur2; a part of `_native.pyx`.

cdef extern from *:
    """
    #include <stdint.h>
    #include <stddef.h>
    #include <string.h>

    /* CRC-32C: the processor's own instruction where it has one, else eight tables (slicing-by-8).
     *
     * One step of the instruction waits for the one before it, though three could be under way. So long data is read in
     * three lanes at once. As the CRC is linear, they are put together by moving a lane's CRC over as many zeros as the
     * bytes behind it; ottla_crc_over_a_lane has that for each byte of a CRC. What was just received is in no cache of
     * this core: lanes are short, so that they are one stream for the memory, and ask for what they need in two rounds. */
    #define OTTLA_LANE 256
    #define OTTLA_CRC_AHEAD (6 * OTTLA_LANE)
    static uint32_t ottla_crc_table[8][256];
    static uint32_t ottla_crc_over_a_lane[4][256];
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
    #define OTTLA_CRC_TARGET __attribute__((target("sse4.2")))
    #define OTTLA_CRC_OF_8(crc, word) _mm_crc32_u64(crc, word)
    #define OTTLA_CRC_OF_1(crc, byte) _mm_crc32_u8((uint32_t)(crc), byte)
    #define OTTLA_CRC_HAS_INSTRUCTION __builtin_cpu_supports("sse4.2")
    #elif defined(__aarch64__) && defined(__ARM_FEATURE_CRC32)
    #include <arm_acle.h>
    #define OTTLA_CRC_TARGET
    #define OTTLA_CRC_OF_8(crc, word) __crc32cd((uint32_t)(crc), word)
    #define OTTLA_CRC_OF_1(crc, byte) __crc32cb((uint32_t)(crc), byte)
    #define OTTLA_CRC_HAS_INSTRUCTION 1
    #endif

    #ifdef OTTLA_CRC_TARGET
    OTTLA_CRC_TARGET static inline uint64_t ottla_crc_step(uint64_t crc, const uint8_t *p) {
        uint64_t word;
        memcpy(&word, p, 8);
        return OTTLA_CRC_OF_8(crc, word);
    }
    static uint32_t ottla_crc_behind_a_lane(uint32_t crc) {
        return ottla_crc_over_a_lane[0][crc & 0xff] ^ ottla_crc_over_a_lane[1][crc >> 8 & 0xff]
            ^ ottla_crc_over_a_lane[2][crc >> 16 & 0xff] ^ ottla_crc_over_a_lane[3][crc >> 24];
    }
    OTTLA_CRC_TARGET static uint32_t ottla_crc_by_instruction(uint32_t crc, const uint8_t *p, size_t n) {
        uint64_t first = crc, second, third;
        for (; n >= 3 * OTTLA_LANE; p += 3 * OTTLA_LANE, n -= 3 * OTTLA_LANE) {
            second = third = 0;
            for (size_t i = 0; i < OTTLA_LANE; i += 8) {
                if (i % 64 == 0) {
                    __builtin_prefetch(p + OTTLA_CRC_AHEAD + i);
                    __builtin_prefetch(p + OTTLA_CRC_AHEAD + OTTLA_LANE + i);
                    __builtin_prefetch(p + OTTLA_CRC_AHEAD + 2 * OTTLA_LANE + i);
                }
                first = ottla_crc_step(first, p + i);
                second = ottla_crc_step(second, p + OTTLA_LANE + i);
                third = ottla_crc_step(third, p + 2 * OTTLA_LANE + i);
            }
            second ^= ottla_crc_behind_a_lane((uint32_t)first);
            first = third ^ ottla_crc_behind_a_lane((uint32_t)second);
        }
        for (; n >= 8; p += 8, n -= 8) first = ottla_crc_step(first, p);
        for (; n; p++, n--) first = OTTLA_CRC_OF_1(first, *p);
        return (uint32_t)first;
    }
    static void ottla_crc_start_lanes(void) {
        static const uint8_t zeros[OTTLA_LANE];
        for (int k = 0; k < 4; k++) {
            for (int bit = 0; bit < 8; bit++)
                ottla_crc_over_a_lane[k][1 << bit] = ottla_crc_by_instruction(1u << (8 * k + bit), zeros, OTTLA_LANE);
            for (int i = 1; i < 256; i++)
                ottla_crc_over_a_lane[k][i] = ottla_crc_over_a_lane[k][i & (i - 1)] ^ ottla_crc_over_a_lane[k][i & -i];
        }
    }
    static int ottla_crc_has_instruction(void) { return OTTLA_CRC_HAS_INSTRUCTION; }
    #else
    #define ottla_crc_by_instruction ottla_crc_by_tables
    #define ottla_crc_start_lanes() ((void)0)
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
        if (ottla_crc_in_hardware) ottla_crc_start_lanes();
    }

    static uint32_t ottla_crc32c(uint32_t value, const uint8_t *p, size_t n, int by_tables) {
        return ~(ottla_crc_in_hardware && !by_tables ? ottla_crc_by_instruction : ottla_crc_by_tables)(~value, p, n);
    }
    """
    void crc_start "ottla_crc_start" ()
    uint32_t crc_of "ottla_crc32c" (uint32_t value, const uint8_t* data, size_t size, bint by_tables) noexcept nogil

crc_start()


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
