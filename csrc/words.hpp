// Words of sixteen channels' weights, and what a product takes from them: for one_row.hpp.
//
// Each kind tells how many values a word holds (`each`), in how many steps they are multiplied (`steps`) with
// factors of which type, how many 32-bit numbers stand for a group's scale (`scales`), and adds step `i` to a sum.
#pragma once

#include "panels.hpp"

namespace sfumato::SFUMATO_ISA {

#if defined(__AVX2__)

// The product that tiles add: of fp32, or the instruction for pairs of bf16 with its rounding and what it takes for
// zero. One value is half of a pair then, the high half of an fp32 whose low half is zero.
template <bool kPairs>
SFUMATO_INLINE vf add_product(vf sum, float x, vf weight) {
    const vf factor = x - vf{};  // in all lanes; adding zero would lose the sign of another
    if constexpr (kPairs) return add_pairs(sum, (vu)factor, (vu)weight);
    return sum + factor * weight;
}

struct ByteWords {  // four values in 8 bits, which have scales of their rows
    typedef float Factor;
    static constexpr int each = 4, steps = 4, scales = 0;
    FourBytes values;

    SFUMATO_INLINE ByteWords() : values(vu{}) {}
    SFUMATO_INLINE ByteWords(vu from, const uint32_t*) : values(from) {}

    template <bool kPairs>
    SFUMATO_INLINE vf add(vf sum, float x, int i) const {
        return add_product<kPairs>(sum, x, values.value(i));
    }
};

#if defined(__AVX512BF16__)
// The same as pairs of bf16: how the instruction rounds between a pair's products is its own affair, and two calls
// with half a pair each are not the same to the last bit.
struct PairedBytes {
    typedef uint32_t Factor;
    static constexpr int each = 4, steps = 2, scales = 0;
    FourBytes values;

    SFUMATO_INLINE PairedBytes() : values(vu{}) {}
    SFUMATO_INLINE PairedBytes(vu from, const uint32_t*) : values(from) {}

    template <bool>
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
// The same as pairs of bf16 (code_pairs.hpp).
struct PairedCodes {
    typedef uint32_t Factor;
    static constexpr int each = 8, steps = 4, scales = 2;
    vu words;
    PairScale scale;

    PairedCodes() = default;
    SFUMATO_INLINE PairedCodes(vu from, const uint32_t* own) : words(from), scale(own) {}

    static SFUMATO_INLINE void widen(const uint8_t* from, uint32_t* to) { PairScale::widen(from, to); }

    template <bool>
    SFUMATO_INLINE vf add(vf sum, uint32_t x, int i) const {
        return add_pairs(sum, vu{} + x, code_pair(words, i, scale));
    }
};

template <bool kPairs>
struct CodesFor {
    typedef SingleCodes Words;
    typedef ByteWords Bytes;
};
template <>
struct CodesFor<true> {
    typedef PairedCodes Words;
    typedef PairedBytes Bytes;
};
template <bool kPairs>
using CodeWords = typename CodesFor<kPairs>::Words;
template <bool kPairs>
using BytesFor = typename CodesFor<kPairs>::Bytes;
#else
template <bool>
using CodeWords = SingleCodes;
template <bool>
using BytesFor = ByteWords;
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
