// Words of sixteen channels' weights, and what a product takes from them: for one_row.hpp.
//
// Each kind tells how many values a word holds (`each`), in how many steps they are multiplied (`steps`) with
// factors of which type, how many 32-bit numbers stand for a group's scale (`scales`), and adds step `i` to a sum, x
// being its activations: one in fp32, or two in bf16.
#pragma once

#include "panels.hpp"

namespace sfumato::SFUMATO_ISA {

#if defined(__AVX2__)

#if !defined(__AVX512F__)
// Byte `i` of each word in the highest place, and zeros.
SFUMATO_INLINE __m256i highest(__m256i words, int i) {
    const char b = (char)i;
    return _mm256_shuffle_epi8(words, _mm256_broadcastsi128_si256(_mm_setr_epi8(
        -1, -1, -1, b, -1, -1, -1, b + 4, -1, -1, -1, b + 8, -1, -1, -1, b + 12)));
}
#endif

struct SingleBytes {  // four values in 8 bits, which have scales of their rows
    typedef float Factor;
    static constexpr int each = 4, steps = 4, scales = 0;
    FourBytes values;

    SFUMATO_INLINE SingleBytes() : values(vu{}) {}
    SFUMATO_INLINE SingleBytes(vu from, const uint32_t*) : values(from) {}

    SFUMATO_INLINE vf add(vf sum, float x, int i) const { return multiply_add(values.value(i), x, sum); }
};

#if !defined(__AVX512F__)
// The same with each byte in its word's highest place, 2^24 times too large: four instructions for a word's, where
// shifts there and back take seven. Activations times `unit` make that good; those that lose something by it go by
// way of `Unraised`.
struct RaisedBytes {
    typedef float Factor;
    typedef SingleBytes Unraised;
    static constexpr int each = 4, steps = 4, scales = 0;
    static constexpr float unit = 0x1p-24f;
    __m256i words;

    RaisedBytes() = default;
    SFUMATO_INLINE RaisedBytes(vu from, const uint32_t*) : words((__m256i)from) {}

    SFUMATO_INLINE vf add(vf sum, float x, int i) const {
        return multiply_add((vf)_mm256_cvtepi32_ps(highest(words, i)), x, sum);
    }
};
#endif

#if defined(__AVX512BF16__)
// The same as pairs of bf16.
struct PairedBytes {
    typedef uint32_t Factor;
    static constexpr int each = 4, steps = 2, scales = 0;
    FourBytes values;

    SFUMATO_INLINE PairedBytes() : values(vu{}) {}
    SFUMATO_INLINE PairedBytes(vu from, const uint32_t*) : values(from) {}

    SFUMATO_INLINE vf add(vf sum, uint32_t x, int i) const {
        return add_pairs(sum, vu{} + x, ((vu)values.value(2 * i) >> 16) | (vu)values.value(2 * i + 1));
    }
};
#endif

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
        return (vf)_mm256_cvtepi32_ps(highest(i % 2 ? odd : even, i / 2)) * scale;
    }
#endif
    SFUMATO_INLINE vf add(vf sum, float x, int i) const { return multiply_add(value(i), x, sum); }
};

#if defined(__AVX512BF16__)
// The same as pairs of bf16 (code_pairs.hpp).
struct PairedCodes {
    typedef uint32_t Factor;
    static constexpr int each = 8, steps = 4, scales = 2;
    vu words;
    PairScale scale;

    PairedCodes() = default;
    SFUMATO_INLINE PairedCodes(vu from, const uint32_t* own) : words(from), scale(own) {}

    static SFUMATO_INLINE void widen(const uint8_t* from, uint32_t* to) { PairScale::widen(from, to); }

    SFUMATO_INLINE vf add(vf sum, uint32_t x, int i) const {
        return add_pairs(sum, vu{} + x, code_pair(words, i, scale));
    }
};

struct PairedHalves {
    typedef uint32_t Factor;
    static constexpr int each = 2, steps = 1, scales = 0;
    vu words;

    PairedHalves() = default;
    SFUMATO_INLINE PairedHalves(vu from, const uint32_t*) : words(from) {}

    SFUMATO_INLINE vf add(vf sum, uint32_t x, int) const { return add_pairs(sum, vu{} + x, words); }
};
#endif

#if defined(__AVX512F__)
// Two values in bf16.
struct SingleHalves {
    typedef float Factor;
    static constexpr int each = 2, steps = 2, scales = 0;
    vu words;

    SingleHalves() = default;
    SFUMATO_INLINE SingleHalves(vu from, const uint32_t*) : words(from) {}

    SFUMATO_INLINE vf add(vf sum, float x, int i) const {
        return multiply_add(i ? second_of(words) : first_of(words), x, sum);
    }
};
#endif

// What serves which activations: single ones in fp32, and pairs in bf16 where the set multiplies those.
template <class Activation>
struct WordsFor {
    typedef SingleCodes Codes;
#if defined(__AVX512F__)
    typedef SingleBytes Bytes;
    typedef SingleHalves Halves;
#else
    typedef RaisedBytes Bytes;
#endif
};
#if defined(__AVX512BF16__)
template <>
struct WordsFor<uint32_t> {
    typedef PairedCodes Codes;
    typedef PairedBytes Bytes;
    typedef PairedHalves Halves;
};
#endif

#endif

}  // namespace sfumato::SFUMATO_ISA
