// Words of sixteen channels' weights, and what a product takes from them: for one_row.hpp.
//
// Each kind tells how many values a word holds (`each`), in how many steps they are multiplied (`steps`) with
// factors of which type, how many 32-bit numbers stand for a group's scale (`scales`), and adds step `i` to a sum.
#pragma once

#include "panels.hpp"

namespace sfumato::SFUMATO_ISA {

#if defined(__AVX2__)

// to[i * stride + j] = word i of row j from byte `at` on, for 16 words: `there` bytes and zeros behind.
SFUMATO_INLINE void turn_line(const uint8_t* const* rows, int64_t at, int64_t there, uint32_t* to,
                              int64_t stride) {
#if defined(__AVX512F__)
    const __mmask64 own = there < 64 ? (1ull << there) - 1 : ~0ull;
    __m512i a[16], b[16];
    for (int j = 0; j < 16; j++) a[j] = _mm512_maskz_loadu_epi8(own, rows[j] + at);
    for (int j = 0; j < 16; j += 2) {
        b[j] = _mm512_unpacklo_epi32(a[j], a[j + 1]);
        b[j + 1] = _mm512_unpackhi_epi32(a[j], a[j + 1]);
    }
    for (int j = 0; j < 16; j += 4)
        for (int i = 0; i < 2; i++) {
            a[j + 2 * i] = _mm512_unpacklo_epi64(b[j + i], b[j + i + 2]);
            a[j + 2 * i + 1] = _mm512_unpackhi_epi64(b[j + i], b[j + i + 2]);
        }
    // Now quarter q of a[4 j + i] is word 4 q + i of rows 4 j to 4 j + 3.
    for (int i = 0; i < 4; i++) {
        const __m512i low = _mm512_shuffle_i32x4(a[i], a[i + 4], 0x44);
        const __m512i high = _mm512_shuffle_i32x4(a[i], a[i + 4], 0xee);
        const __m512i far = _mm512_shuffle_i32x4(a[i + 8], a[i + 12], 0x44);
        const __m512i last = _mm512_shuffle_i32x4(a[i + 8], a[i + 12], 0xee);
        store(to + i * stride, _mm512_shuffle_i32x4(low, far, 0x88));
        store(to + (i + 4) * stride, _mm512_shuffle_i32x4(low, far, 0xdd));
        store(to + (i + 8) * stride, _mm512_shuffle_i32x4(high, last, 0x88));
        store(to + (i + 12) * stride, _mm512_shuffle_i32x4(high, last, 0xdd));
    }
#else
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
        for (int half = 0; half < kPanel; half += 8) transpose_8x8(words + half, i, to + i * stride + half, stride);
#endif
}

// The product that tiles add: of fp32, or the instruction for pairs of bf16 with its rounding and what it takes for
// zero. One value is half of a pair then, the high half of an fp32 whose low half is zero.
template <bool kPairs>
SFUMATO_INLINE vf add_product(vf sum, float x, vf weight) {
    const vf factor = x - vf{};  // in all lanes; adding zero would lose the sign of another
    if constexpr (kPairs) return add_pairs(sum, (vu)factor, (vu)weight);
    return sum + factor * weight;
}

#if defined(__AVX512F__)
// A few bits put into the place of a number's last ones: the number and they together, without a conversion.
SFUMATO_INLINE vf beside(vu words, uint32_t bits, float number) {
    const __m512i held = _mm512_castps_si512(_mm512_set1_ps(number));
    return (vf)_mm512_ternarylogic_epi32((__m512i)words, _mm512_set1_epi32((int)bits), held, 0xea);
}
#endif

struct ByteWords {  // four values in 8 bits, which have scales of their rows
    typedef float Factor;
    static constexpr int each = 4, steps = 4, scales = 0;
#if defined(__AVX512F__)
    vu low, high;  // raised by 128

    ByteWords() = default;
    SFUMATO_INLINE ByteWords(vu from, const uint32_t*) : low(from ^ 0x80808080u), high(low >> 16) {}

    SFUMATO_INLINE vf value(int i) const {
        const vu two = i < 2 ? low : high;
        return i % 2 ? beside(two, 0xff00, 0x1p15f) - (0x1p15f + 128)
                     : beside(two, 0xff, 0x1p23f) - (0x1p23f + 128);
    }
#else
    vi words;

    ByteWords() = default;
    SFUMATO_INLINE ByteWords(vu from, const uint32_t*) : words((vi)from) {}

    SFUMATO_INLINE vf value(int i) const { return __builtin_convertvector((words << (24 - 8 * i)) >> 24, vf); }
#endif
    template <bool kPairs>
    SFUMATO_INLINE vf add(vf sum, float x, int i) const {
        return add_product<kPairs>(sum, x, value(i));
    }
};

// Eight codes of NVFP4, one by one.
struct SingleCodes {
    typedef float Factor;
    static constexpr int each = 8, steps = 8, scales = 1;
    vf scale;

    SingleCodes() = default;
#if defined(__AVX512F__)
    vu words;

    SFUMATO_INLINE SingleCodes(vu from, const uint32_t* own) : scale(load<vf>(own)), words(from) {}

    static SFUMATO_INLINE void widen(const uint8_t* from, uint32_t* to) {
        for (int64_t j = 0; j < kGroup; j += kLanes) store(to + j, wide_scale(wide_bytes(from + j)));
    }

    SFUMATO_INLINE vf value(int i) const { return value_of(words >> (4 * i)) * scale; }
#else
    __m256i even, odd;  // doubled, in bytes

    SFUMATO_INLINE SingleCodes(vu from, const uint32_t* own) : scale(load<vf>(own)) {
        const __m256i table = _mm256_broadcastsi128_si256(
            _mm_setr_epi8(0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12));
        const __m256i nibble = _mm256_set1_epi8(15);
        even = _mm256_shuffle_epi8(table, _mm256_and_si256((__m256i)from, nibble));
        odd = _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16((__m256i)from, 4), nibble));
    }

    static SFUMATO_INLINE void widen(const uint8_t* from, uint32_t* to) {
        for (int64_t j = 0; j < kGroup; j += kLanes) store(to + j, wide_scale(wide_bytes(from + j)) * 0x1p-25f);
    }

    // A byte in the highest place is 2^24 times too large, which the scale makes good. Exact: a code and a
    // scale have six significant bits together.
    SFUMATO_INLINE vf value(int i) const {
        const char b = (char)(i / 2);
        const __m256i places = _mm256_broadcastsi128_si256(_mm_setr_epi8(
            -1, -1, -1, b, -1, -1, -1, b + 4, -1, -1, -1, b + 8, -1, -1, -1, b + 12));
        return (vf)_mm256_cvtepi32_ps(_mm256_shuffle_epi8(i % 2 ? odd : even, places)) * scale;
    }
#endif
    template <bool kPairs>
    SFUMATO_INLINE vf add(vf sum, float x, int i) const {
        return add_product<kPairs>(sum, x, value(i));
    }
};

#if defined(__AVX512BF16__)
// The tables of `PairedCodes`, made by the compiler.
struct PairTables {
    alignas(64) uint16_t products[64] = {};                       // of code i % 8 and 256 (1 + i / 8 / 8)
    alignas(64) uint8_t fraction[128] = {}, low[128] = {}, high[128] = {};  // of E4M3 without its sign

    constexpr PairTables() {
        constexpr int doubled[8] = {0, 1, 2, 3, 4, 6, 8, 12};
        for (int i = 0; i < 64; i++) {
            const float product = 16.0f * doubled[i % 8] * (8 + i / 8);
            products[i] = (uint16_t)(__builtin_bit_cast(uint32_t, product) >> 16);
        }
        for (int i = 0; i < 128; i++) {
            int exponent = i / 8, eighths = i % 8 + 8;  // the number is eighths / 8 * 2^(exponent - 7)
            if (exponent == 0)
                for (exponent = 1, eighths -= 8; eighths && eighths < 8; eighths *= 2) exponent--;
            fraction[i] = (uint8_t)(eighths % 8 * 8);
            const int lower = eighths ? (15 - exponent) << 7 : 0xffff;
            low[i] = (uint8_t)lower;
            high[i] = (uint8_t)(lower >> 8);
        }
    }
};
inline constexpr PairTables kPairTables;

// The same as pairs of bf16. Three bits of a code and three of its scale's fraction have 64 products, which are
// looked up as they are for scales in [256, 512). For any other the exponent is lowered: by subtracting, which stops
// at zero, so that zero stays zero. A scale, which has no sign, is the fraction's bits and what is subtracted.
struct PairedCodes {
    typedef uint32_t Factor;
    static constexpr int each = 8, steps = 4, scales = 2;
    __m512i words, fraction, lower;

    PairedCodes() = default;
    SFUMATO_INLINE PairedCodes(vu from, const uint32_t* own)
        : words((__m512i)from), fraction(_mm512_loadu_si512(own)), lower(_mm512_loadu_si512(own + kLanes)) {}

    static SFUMATO_INLINE __m512i find(const uint8_t (&table)[128], __m512i which) {
        return _mm512_permutex2var_epi8(_mm512_load_si512(table), which, _mm512_load_si512(table + 64));
    }

    static SFUMATO_INLINE void widen(const uint8_t* from, uint32_t* to) {
        const __m512i bytes = _mm512_loadu_si512(from);
        const __m512i fractions = find(kPairTables.fraction, bytes), low = find(kPairTables.low, bytes);
        const __m512i high = find(kPairTables.high, bytes);
        // Lane j has channel j of a panel in each byte; from bit 6 on, which of two vectors it comes from.
        const __m512i lane = _mm512_mullo_epi32(
            _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15), _mm512_set1_epi32(0x01010101));
        for (int p = 0; p < kGroup / kPanel; p++, to += scales * kPanel) {
            const __m512i own = _mm512_add_epi8(lane, _mm512_set1_epi8((char)(16 * p)));
            const __m512i both = _mm512_or_si512(own, _mm512_set1_epi32(0x40004000));
            store(to, _mm512_maskz_permutexvar_epi8(0x5555555555555555, own, fractions));
            store(to + kPanel, _mm512_permutex2var_epi8(low, both, high));
        }
    }

    // In each half of a lane one code's bits in the lowest places and its sign in the highest.
    static SFUMATO_INLINE __m512i places(int i) {
        const int64_t own = (int64_t)((8 * i) | ((8 * i + 60) % 64) << 8 | (8 * i + 4) << 16 | (8 * i) << 24);
        return _mm512_set1_epi64(own | (own + 0x20202020) << 32);
    }

    template <bool>
    SFUMATO_INLINE vf add(vf sum, uint32_t x, int i) const {
        const __m512i low = _mm512_load_si512(kPairTables.products);
        const __m512i high = _mm512_load_si512(kPairTables.products + 32);
        const __m512i code = _mm512_multishift_epi64_epi8(places(i), words);
        const __m512i which = _mm512_ternarylogic_epi32(code, _mm512_set1_epi16(7), fraction, 0xea);
        const __m512i size = _mm512_subs_epu16(_mm512_permutex2var_epi16(low, which, high), lower);
        const __m512i pair = _mm512_ternarylogic_epi32(code, _mm512_set1_epi16((short)0x8000), size, 0xea);
        return add_pairs(sum, vu{} + x, (vu)pair);
    }
};

template <bool kPairs>
struct CodesFor {
    typedef SingleCodes Words;
};
template <>
struct CodesFor<true> {
    typedef PairedCodes Words;
};
template <bool kPairs>
using CodeWords = typename CodesFor<kPairs>::Words;
#else
template <bool>
using CodeWords = SingleCodes;
#endif

#if defined(__AVX512F__)
// Two values in bf16: with a pair of activations, or one by one.
template <bool kPairs>
struct PairWords {
    typedef uint32_t Factor;
    static constexpr int each = 2, steps = 1, scales = 0;
    vu words;

    PairWords() = default;
    SFUMATO_INLINE PairWords(vu from, const uint32_t*) : words(from) {}

    template <bool>
    SFUMATO_INLINE vf add(vf sum, uint32_t x, int) const {
        return add_pairs(sum, vu{} + x, words);
    }
};

template <>
struct PairWords<false> {
    typedef float Factor;
    static constexpr int each = 2, steps = 2, scales = 0;
    vu words;

    PairWords() = default;
    SFUMATO_INLINE PairWords(vu from, const uint32_t*) : words(from) {}

    template <bool>
    SFUMATO_INLINE vf add(vf sum, float x, int i) const {
        return sum + (x - vf{}) * (i ? second_of(words) : first_of(words));
    }
};
#endif

#endif

}  // namespace sfumato::SFUMATO_ISA
