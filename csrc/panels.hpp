// From a matrix in memory to what a tile reads: for 16 channels and a run of k, pairs of bf16 in
// [k / 2][16], or fp32 in [k][16]. A bf16 matrix in panels lies so already and is read in place.
#pragma once

#include "kernels.hpp"
#include "simd.hpp"

namespace sfumato::SFUMATO_ISA {

#if defined(__AVX2__)
// An 8 x 8 square of 32-bit values: to[i * 16 + j] = from[j][i].
SFUMATO_INLINE void transpose_8x8(const uint32_t* const* from, int64_t at, uint32_t* to) {
    __m256 a[8], b[8];
    for (int j = 0; j < 8; j++) a[j] = _mm256_loadu_ps((const float*)(from[j] + at));
    for (int j = 0; j < 8; j += 2) {
        b[j] = _mm256_unpacklo_ps(a[j], a[j + 1]);
        b[j + 1] = _mm256_unpackhi_ps(a[j], a[j + 1]);
    }
    for (int j = 0; j < 8; j += 4) {
        a[j] = _mm256_shuffle_ps(b[j], b[j + 2], 0x44);
        a[j + 1] = _mm256_shuffle_ps(b[j], b[j + 2], 0xee);
        a[j + 2] = _mm256_shuffle_ps(b[j + 1], b[j + 3], 0x44);
        a[j + 3] = _mm256_shuffle_ps(b[j + 1], b[j + 3], 0xee);
    }
    for (int i = 0; i < 4; i++) {
        _mm256_storeu_ps((float*)(to + i * 16), _mm256_permute2f128_ps(a[i], a[i + 4], 0x20));
        _mm256_storeu_ps((float*)(to + (i + 4) * 16), _mm256_permute2f128_ps(a[i], a[i + 4], 0x31));
    }
}
#endif

// to[i * 16 + j] = word i of row j, for `count` words of 16 rows.
inline void transpose(const uint32_t* const* rows, int64_t count, uint32_t* to) {
    int64_t i = 0;
#if defined(__AVX2__)
    for (; i + 8 <= count; i += 8) {
        transpose_8x8(rows, i, to + i * kPanel);
        transpose_8x8(rows + 8, i, to + i * kPanel + 8);
    }
#endif
    for (; i < count; i++)
        for (int j = 0; j < kPanel; j++) memcpy(&to[i * kPanel + j], (const char*)(rows[j] + i), 4);
}

// E4M3 to fp32, exactly, subnormals included; the checkpoint reader lets no NaN through.
SFUMATO_INLINE vf wide_scale(vu bytes) {
    // Without subnormals on the way, which a process may have switched off: those of E4M3 are eighths
    // of 2^-6, normal numbers of fp32 all of them.
    const vu plain = bytes & 0x7fu;
    const vf normal = (vf)((plain << 20) + (120u << 23));
    const vf small = __builtin_convertvector((vi)plain, vf) * 0x1p-9f;
    const vf value = select((vi)(plain < 8u), small, normal);
    return (vf)((vu)value | ((bytes & 0x80u) << 24));
}

// Eight bytes of codes' halves: magnitudes of E2M1 by their three bits, the sign in bit 3.
SFUMATO_INLINE vf magnitude(vu code) {
#if defined(__AVX512F__)
    const __m512 table = _mm512_setr_ps(0, .5f, 1, 1.5f, 2, 3, 4, 6, 0, -.5f, -1, -1.5f, -2, -3, -4, -6);
    return (vf)_mm512_permutexvar_ps((__m512i)code, table);
#elif defined(__AVX2__)
    const __m256 table = _mm256_setr_ps(0, .5f, 1, 1.5f, 2, 3, 4, 6);
    const vf plain = (vf)_mm256_permutevar8x32_ps(table, (__m256i)code);
    return (vf)((vu)plain | ((code & 8u) << 28));
#else
    static const float table[16] = {0, .5f, 1, 1.5f, 2, 3, 4, 6, -0.f, -.5f, -1, -1.5f, -2, -3, -4, -6};
    vf out{};
    for (int i = 0; i < kLanes; i++) out[i] = table[code[i] & 15];
    return out;
#endif
}

SFUMATO_INLINE vu wide_bytes(const uint8_t* from) {
#if defined(__AVX512F__)
    return (vu)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)from));
#elif defined(__AVX2__)
    return (vu)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)from));
#else
    vu out{};
    for (int i = 0; i < kLanes; i++) out[i] = from[i];
    return out;
#endif
}

// Code times scale has at most six significant bits: exact in bf16, so cutting off bits is exact.
inline void decode_nvfp4(const uint8_t* codes, const uint8_t* scales, int64_t groups, uint32_t* to) {
    for (int64_t g = 0; g < groups; g++) {
        for (int lane = 0; lane < kPanel; lane += kLanes) {
            const vf scale = wide_scale(wide_bytes(scales + g * kPanel + lane));
            for (int p = 0; p < 8; p++) {
                const vu both = wide_bytes(codes + (g * 8 + p) * kPanel + lane);
                const vf even = magnitude(both & 15u) * scale;
                const vf odd = magnitude(both >> 4) * scale;
                store(to + (g * 8 + p) * kPanel + lane, ((vu)even >> 16) | ((vu)odd & 0xffff0000u));
            }
        }
    }
}

// What tiles read for panel `panel` and k in [begin, begin + count); `room` holds count * 16 words.
inline const uint32_t* panel_words(const Matrix& w, int64_t panel, int64_t begin, int64_t count,
                                   uint32_t* room) {
    if (w.format == Format::bf16_panels)
        return (const uint32_t*)w.data + (panel * (w.k / 2) + begin / 2) * kPanel;
    if (w.format == Format::nvfp4_panels) {
        const int64_t group = panel * (w.k / 16) + begin / 16;
        decode_nvfp4((const uint8_t*)w.data + group * 128, w.scales + group * kPanel, count / 16, room);
        return room;
    }
    const int64_t size = w.format == Format::f32_rows ? 4 : 2;
    const bool other = w.values && panel % 2;
    const char* base = (const char*)(other ? w.values : w.data);
    const int64_t row = (w.values ? panel / 2 : panel) * kPanel, all = w.values ? w.n / 2 : w.n;
    const uint32_t* rows[kPanel];
    for (int64_t j = 0; j < kPanel; j++) {
        const int64_t own = row + j < all ? row + j : all - 1;  // beyond the end: computed, not kept
        rows[j] = (const uint32_t*)(base + (own * w.stride + begin) * size);
    }
    transpose(rows, count * size / 4, room);
    return room;
}

}  // namespace sfumato::SFUMATO_ISA
