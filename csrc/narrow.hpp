// Activations in 8 bits, for weights that asked for it: NVFP4 and, where bytes multiply bytes without
// saturating (AVX-512 VNNI), rows in 8 bits.
//
// Of 16 values of a row at a time: a scale, the largest value over 127, and codes, the nearest whole
// numbers. Their products with a weight's codes are whole numbers, summed exactly; then one fp32 product
// of both scales and one fp32 addition for each 16. Infinity or NaN among the 16 makes the row's results
// NaN; values of which the largest is below 2^-100 count as zero.
#pragma once

#include "panels.hpp"

namespace sfumato::SFUMATO_ISA {

#if defined(__AVX512VNNI__)
constexpr bool kMultipliesBytes = true;
#else
constexpr bool kMultipliesBytes = false;
#endif

constexpr int64_t kRecord = 6;  // words for 16 values: codes in four, minus offset times their sum, scale

// Weights' codes are raised by an offset, so that they have no sign.
constexpr int32_t offset_of(bool nvfp4) { return nvfp4 ? kCodeOffset : 128; }

// sum + w . x in each lane, of 16 values: w's bytes without a sign, x's with one.
SFUMATO_INLINE vi add_products(vi sum, const vu (&w)[4], const uint32_t* x) {
#if defined(__AVX512VNNI__)
    for (int i = 0; i < 4; i++)
        sum = (vi)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)w[i], _mm512_set1_epi32((int)x[i]));
    return sum;
#elif defined(__AVX512F__)
    // No sum of eight products of NVFP4's codes leaves 16 bits: 8 * 24 * 127 < 2^15.
    __m512i part = _mm512_maddubs_epi16((__m512i)w[0], _mm512_set1_epi32((int)x[0]));
    for (int i = 1; i < 4; i++)
        part = _mm512_add_epi16(part, _mm512_maddubs_epi16((__m512i)w[i], _mm512_set1_epi32((int)x[i])));
    return sum + (vi)_mm512_madd_epi16(part, _mm512_set1_epi16(1));
#elif defined(__AVX2__)
    __m256i part = _mm256_maddubs_epi16((__m256i)w[0], _mm256_set1_epi32((int)x[0]));
    for (int i = 1; i < 4; i++)
        part = _mm256_add_epi16(part, _mm256_maddubs_epi16((__m256i)w[i], _mm256_set1_epi32((int)x[i])));
    return sum + (vi)_mm256_madd_epi16(part, _mm256_set1_epi16(1));
#else
    for (int i = 0; i < 4; i++)
        for (int b = 0; b < 4; b++)
            sum += (vi)((w[i] >> (8 * b)) & 0xffu) * (int32_t)(int8_t)(x[i] >> (8 * b));
    return sum;
#endif
}

// Rows in 8 bits times codes; with kScaled each 16 of a channel have a scale of their own.
template <bool kScaled>
struct NarrowRows {
    typedef uint32_t Activation;
    static constexpr As as = As::codes;
    static constexpr int per_step = 16;
#if defined(__AVX512F__)
    static constexpr int rows = 8, together = 2;  // rows of a tile, vectors that share a row's words
#elif defined(__AVX2__)
    static constexpr int rows = 4, together = 1;  // of 16 registers four hold weights
#else
    static constexpr int rows = kTileRows, together = 1;
#endif
    static constexpr int64_t words(int64_t k) { return k / 16 * kRecord; }

    template <int R, int V>
    static SFUMATO_INLINE void step(vf (&sum)[R][V], const uint32_t* a, int64_t lda,
                                    const uint32_t* const* w, int64_t at) {
        constexpr int T = V < together ? V : together;
        for (int first = 0; first < V; first += T) {
            vu codes[T][4];
            vf scales[T];
            for (int t = 0; t < T; t++) {
                const int v = first + t;
                const uint32_t* from = w[v / kVectors] + at * kCodeGroup + v % kVectors * kLanes;
                for (int i = 0; i < 4; i++) codes[t][i] = load<vu>(from + i * kPanel);
                scales[t] = kScaled ? load<vf>(from + 4 * kPanel) : vf{};
            }
            // Else the compiler keeps every row's broadcast words for the next vectors, on the stack.
            asm("" : "+r"(a));
            for (int r = 0; r < R; r++) {
                const uint32_t* x = a + r * lda + at * kRecord;
                float scale;
                memcpy(&scale, x + 5, 4);
                for (int t = 0; t < T; t++) {
                    const vi products = add_products(vi{} + (int32_t)x[4], codes[t], x);
                    const vf whole = __builtin_convertvector(products, vf);
                    vf& own = sum[r][first + t];
                    own = multiply_add(whole, kScaled ? scales[t] * scale : all(scale), own);
                }
            }
        }
    }
};

template <class Kind>
constexpr bool kIsNarrow = __is_same(Kind, NarrowRows<true>) || __is_same(Kind, NarrowRows<false>);

constexpr float kLargestCode = 127.0f, kLeastOfRecord = 0x1p-100f;

// The record of 16 values.
SFUMATO_INLINE void narrow_group(const float* x, int32_t offset, uint32_t* to) {
    vf most{}, sick{};
    for (int i = 0; i < kPanel; i += kLanes) {
        const vf value = load<vf>(x + i);
        most = maximum(most, (vf)((vu)value & 0x7fffffffu));
        sick += value * 0.0f;
    }
    const float largest = largest_of(most), bad = total(sick);
    float scale = bad == bad ? largest * (1.0f / kLargestCode) : bad;
    if (!(largest >= kLeastOfRecord) || bad != bad) {
        memset(to, 0, 5 * sizeof(uint32_t));
        if (bad == bad) scale = 0;
        memcpy(to + 5, &scale, 4);
        return;
    }
    const vf inverse = all(kLargestCode / largest);
    vi sums{};
    for (int i = 0; i < kPanel; i += kLanes) {
        // Adding 1.5 * 2^23 rounds to a whole number, ties to even, and leaves it in the low bits. The product is
        // rounded before, so that every set has the same codes.
        const vf magic = all(12582912.0f);
        const vi code = (vi)(load<vf>(x + i) * inverse + magic) - 0x4b400000;
        typedef int8_t vb __attribute__((vector_size(kLanes)));
        store((char*)to + i, __builtin_convertvector(code, vb));
        sums += code;
    }
    to[4] = (uint32_t)(-offset * total(sums));
    memcpy(to + 5, &scale, 4);
}

// The records of a row of `width` values, a multiple of 16.
inline void narrow_row(const void* from, bool bf16, int64_t width, int32_t offset, uint32_t* to) {
    for (int64_t at = 0; at < width; at += kPanel, to += kRecord) {
        if (!bf16) {
            narrow_group((const float*)from + at, offset, to);
            continue;
        }
        float wide[kPanel];
        for (int i = 0; i < kPanel; i += kLanes) store(wide + i, load_bf16((const uint16_t*)from + at + i));
        narrow_group(wide, offset, to);
    }
}

// Whether a weight takes its activations in 8 bits here.
SFUMATO_INLINE bool narrows(const Matrix& w) {
    if (!w.narrow || w.k % 16) return false;
    return w.format == Format::nvfp4_rows || (kMultipliesBytes && w.format == Format::i8_rows);
}

}  // namespace sfumato::SFUMATO_ISA
