// From a matrix in memory to what a tile reads: for 16 channels and a run of k, pairs of bf16 in
// [k / 2][16], fp32 in [k][16], or codes with their scales (nvfp4.hpp: kCodeGroup). A bf16 matrix in
// panels lies so already and is read in place, but where so many rows use it that it is widened for them.
#pragma once

#include "kernels.hpp"
#include "nvfp4.hpp"
#include "simd.hpp"

namespace sfumato::SFUMATO_ISA {

#if defined(__AVX2__) && !defined(__AVX512F__)
// An 8 x 8 square of 32-bit values: to[i * stride + j] = from[j][at + i]. Rows go to their halves as they are loaded,
// which leaves two thirds of the shuffles that turning registers takes.
SFUMATO_INLINE void transpose_8x8(const uint32_t* const* from, int64_t at, uint32_t* to,
                                  int64_t stride = kPanel) {
    for (int i = 0; i < 8; i += 4, to += 4 * stride) {
        __m256 a[4], b[4];
        for (int j = 0; j < 4; j++) {
            const auto row = [&](int which) { return _mm_loadu_ps((const float*)(from[which] + at + i)); };
            a[j] = _mm256_insertf128_ps(_mm256_castps128_ps256(row(j)), row(j + 4), 1);
        }
        for (int j = 0; j < 4; j += 2) {
            b[j] = _mm256_unpacklo_ps(a[j], a[j + 1]);
            b[j + 1] = _mm256_unpackhi_ps(a[j], a[j + 1]);
        }
        for (int j = 0; j < 2; j++) {
            _mm256_storeu_ps((float*)(to + 2 * j * stride), _mm256_shuffle_ps(b[j], b[j + 2], 0x44));
            _mm256_storeu_ps((float*)(to + (2 * j + 1) * stride), _mm256_shuffle_ps(b[j], b[j + 2], 0xee));
        }
    }
}

// to[i * stride + j] = word i of row j from byte `at` on, for 16 words of 16 rows: `there` bytes and zeros behind.
SFUMATO_INLINE void turn_line(const uint8_t* const* rows, int64_t at, int64_t there, uint32_t* to,
                              int64_t stride) {
    const uint32_t* words[kPanel];
    uint8_t last[kPanel][64];
    for (int j = 0; j < kPanel; j++) {
        words[j] = (const uint32_t*)(rows[j] + at);
        if (there >= 64) continue;
        memset(last[j], 0, sizeof last[j]);
        memcpy(last[j], words[j], there);
        words[j] = (const uint32_t*)last[j];
    }
    for (int i = 0; i < 16; i += 8)
        for (int half = 0; half < kPanel; half += 8)
            transpose_8x8(words + half, i, to + i * stride + half, stride);
}
#endif

// to[i * 16 + j] = word i of row j, for `count` words of 16 rows.
inline void transpose(const uint32_t* const* rows, int64_t count, uint32_t* to) {
    int64_t i = 0;
#if defined(__AVX512F__)
    for (; i + 16 <= count; i += 16) turn_line((const uint8_t* const*)rows, i * 4, 64, to + i * kPanel, kPanel);
    for (; i + 4 <= count; i += 4) {
        vu words[4];
        turn_words(rows, i * 4, words);
        for (int j = 0; j < 4; j++) store(to + (i + j) * kPanel, words[j]);
    }
#elif defined(__AVX2__)
    for (; i + 8 <= count; i += 8) {
        transpose_8x8(rows, i, to + i * kPanel);
        transpose_8x8(rows + 8, i, to + i * kPanel + 8);
    }
#endif
    for (; i < count; i++)
        for (int j = 0; j < kPanel; j++) memcpy(&to[i * kPanel + j], (const char*)(rows[j] + i), 4);
}

// The same of bytes: words of four, those that are whole.
inline void transpose_bytes(const uint8_t* const* rows, int64_t begin, int64_t count, uint32_t* to) {
    const uint32_t* words[kPanel];
    for (int j = 0; j < kPanel; j++) words[j] = (const uint32_t*)(rows[j] + begin);
    transpose(words, count / 4, to);
}

// Four values of 8 bits in each word, as fp32.
struct FourBytes {
#if defined(__AVX512F__)
    vu low, high;  // raised by 128

    SFUMATO_INLINE explicit FourBytes(vu from) : low(from ^ 0x80808080u), high(low >> 16) {}

    // A few bits put into the place of a number's last ones: both together, without a conversion.
    static SFUMATO_INLINE vf beside(vu words, uint32_t bits, float number) {
        const __m512i held = _mm512_castps_si512(_mm512_set1_ps(number));
        return (vf)_mm512_ternarylogic_epi32((__m512i)words, _mm512_set1_epi32((int)bits), held, 0xea);
    }

    SFUMATO_INLINE vf value(int i) const {
        const vu two = i < 2 ? low : high;
        return i % 2 ? beside(two, 0xff00, 0x1p15f) - (0x1p15f + 128)
                     : beside(two, 0xff, 0x1p23f) - (0x1p23f + 128);
    }
#else
    vi words;

    SFUMATO_INLINE explicit FourBytes(vu from) : words((vi)from) {}

    SFUMATO_INLINE vf value(int i) const { return __builtin_convertvector((words << (24 - 8 * i)) >> 24, vf); }
#endif
};

#if defined(__AVX2__) && !defined(__AVX512F__)
// Pairs of bf16 as fp32, [count / 2][16] words to twice as many. They may be the last half of where they go to: what
// is written overtakes nothing that is still to be read.
inline void widen_pairs(const uint32_t* from, int64_t count, uint32_t* to) {
    for (int64_t i = 0; i < count / 2; i++, from += kPanel, to += 2 * kPanel) {
        vu pairs[kVectors];
        for (int v = 0; v < kVectors; v++) pairs[v] = load<vu>(from + v * kLanes);
        for (int v = 0; v < kVectors; v++) {
            store(to + v * kLanes, first_of(pairs[v]));
            store(to + kPanel + v * kLanes, second_of(pairs[v]));
        }
    }
}
#endif

// Eight-bit values of 16 rows as bf16, which holds them exactly.
inline void widen_bytes(const uint8_t* const* rows, int64_t begin, int64_t count, uint32_t* to) {
    uint32_t room[kRun / 4 * kPanel];
    transpose_bytes(rows, begin, count, room);
    for (int64_t word = 0; word < count / 4; word++)
        for (int lane = 0; lane < kPanel; lane += kLanes) {
            const FourBytes four(load<vu>(room + word * kPanel + lane));
            for (int half = 0; half < 2; half++) {
                const vf first = four.value(2 * half), second = four.value(2 * half + 1);
                store(to + (2 * word + half) * kPanel + lane, ((vu)first >> 16) | (vu)second);
            }
        }
    if (count % 4 == 0) return;
    for (int j = 0; j < kPanel; j++) {  // two values are left, k being even
        const int8_t* last = (const int8_t*)rows[j] + begin + count - 2;
        to[(count / 2 - 1) * kPanel + j] = (uint32_t)narrow((float)last[0]) | (uint32_t)narrow((float)last[1]) << 16;
    }
}

// The same as codes raised by 128, [k / 16][4 words of four k][16], and no scales: a panel's groups are
// kCodeGroup words apart.
inline void raise_bytes(const uint8_t* const* rows, int64_t begin, int64_t count, uint32_t* to) {
    uint32_t room[kRun / 4 * kPanel];
    transpose_bytes(rows, begin, count, room);
    for (int64_t group = 0; group < count / 16; group++)
        for (int i = 0; i < 4 * kPanel; i += kLanes)
            store(to + group * kCodeGroup + i, load<vu>(room + group * 4 * kPanel + i) ^ 0x80808080u);
}

// What a panel becomes.
enum class As { pairs, floats, codes };

// Whether so many rows have a panel in fp32. NVFP4 is had so as fast as in pairs of bf16. To widen others' pairs costs
// more than three tiles save by it, and less than four.
SFUMATO_INLINE bool decodes_to_floats([[maybe_unused]] const Matrix& w, [[maybe_unused]] int64_t rows) {
#if defined(__AVX512F__)
    return w.format == Format::nvfp4_rows;
#elif defined(__AVX2__)
    return w.format == Format::nvfp4_rows || rows >= 4 * kTileRows;
#else
    return false;
#endif
}

// The beginnings of a panel's 16 rows in memory, beyond the end of the matrix the last one again: computed,
// not kept. Of NVFP4 those of codes, and of scales.
struct PanelRows {
    const uint8_t *rows[kPanel], *scales[kPanel];

    PanelRows() = default;

    SFUMATO_INLINE PanelRows(const Matrix& w, int64_t panel) {
        const bool other = w.values && panel % 2;
        const uint8_t* base = (const uint8_t*)(other ? w.values : w.data);
        const uint8_t* first = other ? w.value_scales : w.scales;
        const int64_t row = (w.values ? panel / 2 : panel) * kPanel, all = w.values ? w.n / 2 : w.n;
        const int64_t bytes = w.format == Format::nvfp4_rows ? w.k / 2 : w.stride * size_of(w.format);
        for (int64_t j = 0; j < kPanel; j++) {
            const int64_t own = row + j < all ? row + j : all - 1;
            rows[j] = base + own * bytes;
            scales[j] = w.format == Format::nvfp4_rows ? first + own * (w.k / 16) : nullptr;
        }
    }

    static SFUMATO_INLINE int64_t size_of(Format format) {
        return format == Format::f32_rows ? 4 : format == Format::bf16_rows ? 2 : 1;
    }
};

// What tiles read for panel `panel` and k in [begin, begin + count); `room` holds count * 16 words, of which pairs take
// half. Floats are to be had where `decodes_to_floats`, codes where `narrows` (narrow.hpp).
template <As kAs = As::pairs>
inline const uint32_t* panel_words(const Matrix& w, int64_t panel, int64_t begin, int64_t count,
                                   uint32_t* room) {
#if defined(__AVX2__) && !defined(__AVX512F__)
    if constexpr (kAs == As::floats)
        if (w.format != Format::nvfp4_rows) {
            widen_pairs(panel_words(w, panel, begin, count, room + count / 2 * kPanel), count, room);
            return room;
        }
#endif
    if (w.format == Format::bf16_panels)
        return (const uint32_t*)w.data + (panel * (w.k / 2) + begin / 2) * kPanel;
    const PanelRows own(w, panel);
    if (w.format == Format::nvfp4_rows) {
        // Next to be read: these rows' next run, or after the last one the next group's rows.
        const int64_t group = w.values ? kGroup / 2 : kGroup;
        const int64_t ahead = begin + count < w.k ? count / 2 : (group * w.k - begin) / 2;
        if constexpr (kAs == As::codes) {
            raise_nvfp4(own.rows, own.scales, begin, count, ahead, room);
            return room;
        }
#if defined(__AVX2__)
        decode_nvfp4<kAs == As::floats>(own.rows, own.scales, begin, count, ahead, room);
#else
        decode_nvfp4(own.rows, own.scales, begin, count, ahead, room);
#endif
        return room;
    }
    if (w.format == Format::i8_rows) {
        if constexpr (kAs == As::codes)
            raise_bytes(own.rows, begin, count, room);
        else
            widen_bytes(own.rows, begin, count, room);
        return room;
    }
    const int64_t size = PanelRows::size_of(w.format);
    const uint32_t* rows[kPanel];
    for (int64_t j = 0; j < kPanel; j++) rows[j] = (const uint32_t*)(own.rows[j] + begin * size);
    transpose(rows, count * size / 4, room);
    return room;
}

}  // namespace sfumato::SFUMATO_ISA
