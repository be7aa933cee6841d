// Vectors of the instruction set that the including file is compiled for, by the compiler's own
// vector types: one source for SSE2, AVX2, AVX-512 and NEON, with intrinsics where a set has
// something better than lanes one by one. Everything lives in a namespace of its instruction set, and nothing of the standard
// library with code in headers is used here: the linker must never choose one set's copy for another.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define SFUMATO_INLINE inline __attribute__((always_inline))

namespace sfumato::SFUMATO_ISA {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
constexpr int kTileRows = 12;
constexpr int kTilePanels = 2;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
constexpr int kTileRows = 6;
constexpr int kTilePanels = 1;
#else
constexpr int kLanes = 4;
constexpr int kTileRows = 2;
constexpr int kTilePanels = 1;
#endif

typedef float vf __attribute__((vector_size(kLanes * 4)));
typedef uint32_t vu __attribute__((vector_size(kLanes * 4)));
typedef int32_t vi __attribute__((vector_size(kLanes * 4)));

constexpr int kVectors = 16 / kLanes;  // vectors in a panel's 16 channels

template <class V>
SFUMATO_INLINE V load(const void* from) {
    V v;
    memcpy(&v, from, sizeof v);
    return v;
}

template <class V>
SFUMATO_INLINE void store(void* to, V v) {
    memcpy(to, &v, sizeof v);
}

// In all lanes. Subtracting zero leaves a number as it is and costs nothing; adding it would lose a zero's sign.
SFUMATO_INLINE vf all(float x) { return x - vf{}; }

// A pair of bf16 in 32 bits: the low half comes first.
SFUMATO_INLINE vf first_of(vu pairs) { return (vf)(pairs << 16); }
SFUMATO_INLINE vf second_of(vu pairs) { return (vf)(pairs & 0xffff0000u); }

// a * b + c, rounded once where the set can. Written out, and nothing else is ever fused (CMakeLists.txt): a compiler
// that may choose does so loop by loop, and a row would have other bits beside others than alone.
SFUMATO_INLINE vf multiply_add(vf a, vf b, vf c) {
#if defined(__AVX512F__)
    return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__)
    return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
    return (vf)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
    return a * b + c;
#endif
}

SFUMATO_INLINE vf multiply_add(vf a, float b, vf c) { return multiply_add(a, all(b), c); }

#if defined(__AVX512BF16__)
// Both products of a pair are added with one rounding each, the high halves' first; subnormal inputs count as zero.
SFUMATO_INLINE vf add_pairs(vf sum, vu a, vu b) {
    return (vf)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
}
#else
SFUMATO_INLINE vf add_pairs(vf sum, vu a, vu b) {
    return multiply_add(second_of(a), second_of(b), multiply_add(first_of(a), first_of(b), sum));
}
#endif

SFUMATO_INLINE float widen(uint16_t bits) {
    const uint32_t wide = (uint32_t)bits << 16;
    float out;
    memcpy(&out, &wide, 4);
    return out;
}

// Round to nearest, ties to even; NaN stays NaN.
SFUMATO_INLINE uint16_t narrow(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((bits >> 16) | 0x40);
    return (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);
}

typedef uint16_t vh __attribute__((vector_size(kLanes * 2)));

SFUMATO_INLINE vf load_bf16(const uint16_t* from) {
#if defined(__AVX512F__)
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)from));
    return (vf)_mm512_slli_epi32(wide, 16);  // compilers widen a vector of 16 in halves
#else
    return (vf)(__builtin_convertvector(load<vh>(from), vu) << 16);
#endif
}

SFUMATO_INLINE void store_bf16(uint16_t* to, vf x) {
    const vu bits = (vu)x;
    const vu rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const vu nan = (bits >> 16) | 0x40u;
    const vu is_nan = (vu)((bits & 0x7fffffffu) > 0x7f800000u);
    store(to, __builtin_convertvector((rounded & ~is_nan) | (nan & is_nan), vh));
}

SFUMATO_INLINE vf select(vi condition, vf yes, vf no) {
    return (vf)(((vi)yes & condition) | ((vi)no & ~condition));
}

SFUMATO_INLINE vf minimum(vf a, vf b) { return select(a < b, a, b); }
SFUMATO_INLINE vf maximum(vf a, vf b) { return select(a > b, a, b); }

// Across the lanes of one vector. NaN in some lanes may be passed over by `largest_of`.
SFUMATO_INLINE float largest_of(vf v) {
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps((__m512)v);
#else
    float most = v[0];
    for (int lane = 1; lane < kLanes; lane++) most = v[lane] > most ? v[lane] : most;
    return most;
#endif
}

SFUMATO_INLINE float total(vf v) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps((__m512)v);
#else
    float sum = 0;
    for (int lane = 0; lane < kLanes; lane++) sum += v[lane];
    return sum;
#endif
}

SFUMATO_INLINE int32_t total(vi v) {
    int32_t sum = 0;
    for (int lane = 0; lane < kLanes; lane++) sum += v[lane];
    return sum;
}

// A bit for each lane in which a comparison held.
SFUMATO_INLINE uint32_t lanes_of(vi condition) {
#if defined(__AVX512F__)
    return _mm512_movepi32_mask((__m512i)condition);
#elif defined(__AVX2__)
    return (uint32_t)_mm256_movemask_ps((__m256)condition);
#else
    uint32_t lanes = 0;
    for (int lane = 0; lane < kLanes; lane++) lanes |= (uint32_t)(condition[lane] & 1) << lane;
    return lanes;
#endif
}

#if defined(__AVX512F__)
// Four words from an address of each of 16 rows: lane j of to[i] is word i of row j. Rows go to their
// places as they are loaded, which leaves half of the shuffles that turning registers takes.
template <class T>
SFUMATO_INLINE void turn_words(const T* const* rows, int64_t at, vu (&to)[4]) {
    __m512i part[4];
    for (int j = 0; j < 4; j++) {
        const auto row = [&](int i) { return _mm_loadu_si128((const __m128i*)((const char*)rows[i + j] + at)); };
        part[j] = _mm512_inserti32x4(_mm512_castsi128_si512(row(0)), row(4), 1);
        part[j] = _mm512_inserti32x4(_mm512_inserti32x4(part[j], row(8), 2), row(12), 3);
    }
    const __m512i a = _mm512_unpacklo_epi32(part[0], part[1]), b = _mm512_unpackhi_epi32(part[0], part[1]);
    const __m512i c = _mm512_unpacklo_epi32(part[2], part[3]), d = _mm512_unpackhi_epi32(part[2], part[3]);
    to[0] = (vu)_mm512_unpacklo_epi64(a, c);
    to[1] = (vu)_mm512_unpackhi_epi64(a, c);
    to[2] = (vu)_mm512_unpacklo_epi64(b, d);
    to[3] = (vu)_mm512_unpackhi_epi64(b, d);
}

// to[i * stride + j] = word i of row j from byte `at` on, for 16 words of 16 rows: `there` bytes and zeros behind.
SFUMATO_INLINE void turn_line(const uint8_t* const* rows, int64_t at, int64_t there, uint32_t* to,
                              int64_t stride) {
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
}
#endif

// e^x with an error of at most 2 ulp for x in [-87, 88]; x is held within. NaN gives NaN.
SFUMATO_INLINE vf exponential(vf x) {
    const vf held = minimum(maximum(x, all(-87.0f)), all(88.0f));
    const vf magic = all(12582912.0f);  // 1.5 * 2^23: adding it rounds to a whole number
    const vf whole = multiply_add(held, 1.44269504f, magic);
    const vf n = whole - magic;
    // ln 2 in two parts, the first exact in few bits, so that the difference loses nothing.
    const vf r = multiply_add(n, 2.12194440e-4f, multiply_add(n, -0.693359375f, held));
    vf p = all(1.9875691500e-4f);
    p = multiply_add(p, r, all(1.3981999507e-3f));
    p = multiply_add(p, r, all(8.3334519073e-3f));
    p = multiply_add(p, r, all(4.1665795894e-2f));
    p = multiply_add(p, r, all(1.6666665459e-1f));
    p = multiply_add(p, r, all(5.0000001201e-1f));
    p = multiply_add(p * r, r, r) + 1.0f;
    const vi power = ((vi)whole - 0x4b400000) << 23;
    return select(x == x, (vf)((vi)p + power), x);
}

// GELU in its tanh approximation: x / (1 + e^(-2u)), u = sqrt(2 / pi) (x + 0.044715 x^3). Where e^(-2u)
// overflows the value is zero, and minus infinity gives NaN, as zero times infinity does.
SFUMATO_INLINE vf gelu(vf x) {
    const vf u = multiply_add(0.044715f * x * x, x, x) * 0.7978845608f;
    const vf value = x / (1.0f + exponential(-2.0f * u));
    return select(u < -44.0f, x * 0.0f, value);
}

// tanh(x) with an absolute error of about 1e-7.
SFUMATO_INLINE vf hyperbolic_tangent(vf x) {
    const vf e = exponential(minimum(maximum(2.0f * x, all(-40.0f)), all(40.0f)));
    const vf t = (e - 1.0f) / (e + 1.0f);
    return select(x == x, t, x);
}

}  // namespace sfumato::SFUMATO_ISA
