// NVFP4 to pairs of bf16 by tables, without arithmetic in fp32.
//
// Three bits of a code and three of its scale's fraction have 64 products, which are looked up as they are for
// scales in [256, 512). For any other scale the exponent is lowered: by subtracting, which stops at zero, so that
// zero stays zero. Scales have no sign: the checkpoint reader lets through none that has.
#pragma once

#include "kernels.hpp"
#include "simd.hpp"

namespace sfumato::SFUMATO_ISA {

// E2M1 by the three bits that are not its sign.
inline constexpr float kCodes[8] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};

// E4M3 by its bits, below 127, which is NaN: without a sign.
constexpr float scale_of(int bits) {
    float scale = bits < 8 ? bits / 8.0f * 2 : 1 + bits % 8 / 8.0f;
    for (int exponent = bits / 8; exponent < 7; exponent++) scale /= 2;
    for (int exponent = bits / 8; exponent > 7; exponent--) scale *= 2;
    return scale;
}

// Made by the compiler, and checked by it on every machine.
struct PairTables {
    // Of the code i % 8 and 256 (1 + i / 8 / 8): in bf16.
    alignas(64) uint16_t products[64] = {};
    // Of E4M3: its fraction's place in `products`, and two bytes of what is subtracted.
    alignas(64) uint8_t fraction[128] = {}, low[128] = {}, high[128] = {};

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

// Whether every code times every scale comes out of the tables as it does from arithmetic.
constexpr bool right(const PairTables& tables) {
    for (int byte = 0; byte < 127; byte++) {
        for (int code = 0; code < 8; code++) {
            const int product = tables.products[tables.fraction[byte] | code];
            const int lower = tables.low[byte] | tables.high[byte] << 8;
            const uint32_t bits = product < lower ? 0 : (uint32_t)(product - lower) << 16;
            if (__builtin_bit_cast(float, bits) != kCodes[code] * scale_of(byte)) return false;
        }
    }
    return true;
}
static_assert(right(kPairTables));

#if defined(__AVX512BF16__)

// The scales of 16 channels' groups, in both halves of each lane.
struct PairScale {
    __m512i fraction, lower;

    PairScale() = default;
    SFUMATO_INLINE explicit PairScale(const uint32_t* own)
        : fraction(_mm512_loadu_si512(own)), lower(_mm512_loadu_si512(own + kPanel)) {}

    static SFUMATO_INLINE __m512i find(const uint8_t (&table)[128], __m512i which) {
        return _mm512_permutex2var_epi8(_mm512_load_si512(table), which, _mm512_load_si512(table + 64));
    }

    // Four of them from 64 scales, one after the other.
    static SFUMATO_INLINE void widen(const uint8_t* from, uint32_t* to) {
        const __m512i bytes = _mm512_loadu_si512(from);
        const __m512i fractions = find(kPairTables.fraction, bytes), low = find(kPairTables.low, bytes);
        const __m512i high = find(kPairTables.high, bytes);
        // Each byte of lane j says channel j; its bit 6 which of two vectors.
        const __m512i lane = _mm512_mullo_epi32(
            _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15), _mm512_set1_epi32(0x01010101));
        for (int i = 0; i < 4; i++, to += 2 * kPanel) {
            const __m512i own = _mm512_add_epi8(lane, _mm512_set1_epi8((char)(16 * i)));
            const __m512i both = _mm512_or_si512(own, _mm512_set1_epi32(0x40004000));
            store(to, _mm512_maskz_permutexvar_epi8(0x5555555555555555, own, fractions));
            store(to + kPanel, _mm512_permutex2var_epi8(low, both, high));
        }
    }
};

// In each half of a lane one code's bits in the lowest places and its sign in the highest: of pair `i`.
SFUMATO_INLINE __m512i code_places(int i) {
    const int64_t own = (int64_t)((8 * i) | ((8 * i + 60) % 64) << 8 | (8 * i + 4) << 16 | (8 * i) << 24);
    return _mm512_set1_epi64(own | (own + 0x20202020) << 32);
}

// Pair `i` of the eight codes in each word, times the scale.
SFUMATO_INLINE vu code_pair(vu words, int i, const PairScale& scale) {
    const __m512i low = _mm512_load_si512(kPairTables.products);
    const __m512i high = _mm512_load_si512(kPairTables.products + 32);
    const __m512i code = _mm512_multishift_epi64_epi8(code_places(i), (__m512i)words);
    const __m512i which = _mm512_ternarylogic_epi32(code, _mm512_set1_epi16(7), scale.fraction, 0xea);
    const __m512i size = _mm512_subs_epu16(_mm512_permutex2var_epi16(low, which, high), scale.lower);
    return (vu)_mm512_ternarylogic_epi32(code, _mm512_set1_epi16((short)0x8000), size, 0xea);
}

#endif

}  // namespace sfumato::SFUMATO_ISA
