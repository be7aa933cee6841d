// NVFP4 as a checkpoint stores it, row after row, to what a tile reads: pairs of bf16 or fp32 by
// channels, or whole numbers for activations in 8 bits.
//
// Sixteen rows are turned over in registers: then one vector holds the same codes of all channels, and
// a group's scales lie as its channels do. What is read may begin at any address.
// Code times scale has at most six significant bits: exact in bf16, so cutting off bits is exact.
#pragma once

#include "code_pairs.hpp"
#include "kernels.hpp"
#include "simd.hpp"

namespace sfumato::SFUMATO_ISA {

typedef uint8_t v16 __attribute__((vector_size(16)));

// The low, or high, halves of two vectors woven byte by byte.
SFUMATO_INLINE v16 weave_low(v16 a, v16 b) {
#if defined(__clang__)
    return __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
#else
    return __builtin_shuffle(a, b, (v16){0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23});
#endif
}
SFUMATO_INLINE v16 weave_high(v16 a, v16 b) {
#if defined(__clang__)
    return __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
#else
    return __builtin_shuffle(a, b, (v16){8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31});
#endif
}

#if defined(__AVX2__)
typedef uint8_t v32 __attribute__((vector_size(32)));  // two of them side by side
SFUMATO_INLINE v32 weave_low(v32 a, v32 b) { return (v32)_mm256_unpacklo_epi8((__m256i)a, (__m256i)b); }
SFUMATO_INLINE v32 weave_high(v32 a, v32 b) { return (v32)_mm256_unpackhi_epi8((__m256i)a, (__m256i)b); }
#endif

// to[i * stride + j] = rows[j][at + i], for 16 bytes of 16 rows, or 32 at once.
template <class V>
SFUMATO_INLINE void turn(const uint8_t* const* rows, int64_t at, uint8_t* to, int64_t stride = kPanel) {
    V a[kPanel], b[kPanel];
    for (int j = 0; j < kPanel; j++) a[j] = load<V>(rows[j] + at);
    // A byte's address is four bits of its vector and four of its place in it. Each round turns the
    // eight by one: after four, vector and place have changed parts.
    for (int round = 0; round < 4; round++) {
        for (int j = 0; j < kPanel / 2; j++) {
            b[2 * j] = weave_low(a[j], a[j + kPanel / 2]);
            b[2 * j + 1] = weave_high(a[j], a[j + kPanel / 2]);
        }
        for (int j = 0; j < kPanel; j++) a[j] = b[j];
    }
    for (int j = 0; j < kPanel; j++) {
        if constexpr (sizeof(V) == 16) {
            store(to + j * stride, a[j]);
        } else {
#if defined(__AVX2__)
            const __m256i both = (__m256i)a[j];
            _mm_storeu_si128((__m128i*)(to + j * stride), _mm256_castsi256_si128(both));
            _mm_storeu_si128((__m128i*)(to + (j + 16) * stride), _mm256_extracti128_si256(both, 1));
#endif
        }
    }
}

constexpr int64_t kSpare = 16 * kPanel;  // bytes before `to` that `columns` may write

// to[i * stride + j] = rows[j][at + i] for `count` bytes, nothing outside of [0, at + count) being read.
// What is written before `to` is 16 * stride bytes at most.
inline void columns(const uint8_t* const* rows, int64_t at, int64_t count, uint8_t* to,
                    int64_t stride = kPanel) {
    int64_t i = 0;
#if defined(__AVX2__)
    for (; i + 32 <= count; i += 32) turn<v32>(rows, at + i, to + i * stride, stride);
#endif
    for (; i + 16 <= count; i += 16) turn<v16>(rows, at + i, to + i * stride, stride);
    if (i == count) return;
    if (at + count >= 16) {  // the last 16 bytes, some of them once more or before what was asked for
        turn<v16>(rows, at + count - 16, to + (count - 16) * stride, stride);
        return;
    }
    for (; i < count; i++)
        for (int j = 0; j < kPanel; j++) to[i * stride + j] = rows[j][at + i];
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

// Sixteen rows in short pieces are more than a processor foresees by itself. What is beyond the
// matrix's end is asked for in vain, and is no error.
SFUMATO_INLINE void fetch(const uint8_t* const* rows, int64_t at) {
    for (int j = 0; j < kPanel; j++) __builtin_prefetch((const char*)((uintptr_t)rows[j] + at), 0, 2);
}

#if defined(__AVX2__) && !defined(__AVX512F__)
// Eight channels' pairs of codes, as bf16, times the channels' scales: pairs again, or fp32 in two rows.
template <bool kWide>
SFUMATO_INLINE void scale_pairs(__m256i pairs, __m256 scale, uint32_t* to) {
    const __m256i high = _mm256_set1_epi32((int)0xffff0000u);
    const __m256 even = _mm256_mul_ps(_mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16)), scale);
    const __m256 odd = _mm256_mul_ps(_mm256_castsi256_ps(_mm256_and_si256(pairs, high)), scale);
    if constexpr (kWide) {
        _mm256_storeu_ps((float*)to, even);
        _mm256_storeu_ps((float*)to + kPanel, odd);
        return;
    }
    const __m256i low = _mm256_srli_epi32(_mm256_castps_si256(even), 16);
    _mm256_storeu_si256((__m256i*)to, _mm256_blend_epi16(low, _mm256_castps_si256(odd), 0xaa));
}

// Two groups of 16 rows, or the second of them alone: 16 bytes of codes a row, scales in columns.
// AVX2 looks up bytes faster than words, so both bytes of a code's bf16 come from tables of their own.
template <bool kBoth, bool kWide>
inline void decode_groups(const uint8_t* const* codes, int64_t at, const uint8_t* scales, uint32_t* to) {
    const __m256i low_bytes = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 0, -128, -64, 0, 64, -128, -64, 0, 0, -128, -64, 0, 64, -128, -64));
    const __m256i high_bytes = _mm256_broadcastsi128_si256(_mm_setr_epi8(
        0, 63, 63, 63, 64, 64, 64, 64, -128, -65, -65, -65, -64, -64, -64, -64));
    const __m256i nibble = _mm256_set1_epi8(15);
    // Rows 0-3 and 8-11 in the low halves, so that weaving ends with channels in their order. Three
    // rounds of what `turn` does leave bytes 2 i and 2 i + 1 of eight rows in each half of vector i.
    v32 a[8], b[8];
    for (int j = 0; j < 8; j++) {
        const int row = j < 4 ? j : j + 4;
        const __m128i low = _mm_loadu_si128((const __m128i*)(codes[row] + at));
        const __m128i high = _mm_loadu_si128((const __m128i*)(codes[row + 4] + at));
        a[j] = (v32)_mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
    }
    for (int round = 0; round < 3; round++) {
        for (int j = 0; j < 4; j++) {
            b[2 * j] = weave_low(a[j], a[j + 4]);
            b[2 * j + 1] = weave_high(a[j], a[j + 4]);
        }
        for (int j = 0; j < 8; j++) a[j] = b[j];
    }
    __m256 first{}, second{};
    for (int i = kBoth ? 0 : 4; i < 8; i++) {
        if (i % 4 == 0) {
            first = (__m256)wide_scale(wide_bytes(scales + i / 4 * kPanel));
            second = (__m256)wide_scale(wide_bytes(scales + i / 4 * kPanel + 8));
        }
        const __m256i even = _mm256_and_si256((__m256i)a[i], nibble);
        const __m256i odd = _mm256_and_si256(_mm256_srli_epi16((__m256i)a[i], 4), nibble);
        const v32 even_low = (v32)_mm256_shuffle_epi8(low_bytes, even);
        const v32 even_high = (v32)_mm256_shuffle_epi8(high_bytes, even);
        const v32 odd_low = (v32)_mm256_shuffle_epi8(low_bytes, odd);
        const v32 odd_high = (v32)_mm256_shuffle_epi8(high_bytes, odd);
        for (int byte = 0; byte < 2; byte++) {
            const v32 evens = byte ? weave_high(even_low, even_high) : weave_low(even_low, even_high);
            const v32 odds = byte ? weave_high(odd_low, odd_high) : weave_low(odd_low, odd_high);
            uint32_t* pair = to + (2 * i + byte) * kPanel * (kWide ? 2 : 1);
            scale_pairs<kWide>(_mm256_unpacklo_epi16((__m256i)evens, (__m256i)odds), first, pair);
            scale_pairs<kWide>(_mm256_unpackhi_epi16((__m256i)evens, (__m256i)odds), second, pair + 8);
        }
    }
}

// Values [begin, begin + count) of 16 rows, both multiples of 16, from the beginnings of the rows' codes
// and scales. Codes `ahead` bytes further on are what will be wanted next. As pairs of bf16 or, with
// kWide, as fp32.
template <bool kWide = false>
inline void decode_nvfp4(const uint8_t* const* codes, const uint8_t* const* scales, int64_t begin,
                         int64_t count, int64_t ahead, uint32_t* to) {
    const int64_t groups = count / 16;
    uint8_t scale_room[kSpare + kRun / 16 * kPanel], *own = scale_room + kSpare;
    constexpr int64_t group = 8 * kPanel * (kWide ? 2 : 1);  // words
    columns(scales, begin / 16, groups, own);
    int64_t g = 0;
    for (; g + 2 <= groups; g += 2) {
        if (g % 8 == 0) fetch(codes, begin / 2 + g * 8 + ahead);
        decode_groups<true, kWide>(codes, begin / 2 + g * 8, own + g * kPanel, to + g * group);
    }
    if (g == groups) return;
    uint8_t last[kPanel][16] = {};  // the one group left as the second of two
    const uint8_t* rows[kPanel];
    for (int j = 0; j < kPanel; j++) {
        memcpy(last[j] + 8, codes[j] + begin / 2 + g * 8, 8);
        rows[j] = last[j];
    }
    decode_groups<false, kWide>(rows, 0, own + (g - 1) * kPanel, to + (g - 1) * group);
}
#elif defined(__AVX512F__)
// E2M1 to fp32, by the low four bits of each lane.
SFUMATO_INLINE vf value_of(vu code) {
    const __m512 table = _mm512_setr_ps(0, .5f, 1, 1.5f, 2, 3, 4, 6, -0.f, -.5f, -1, -1.5f, -2, -3, -4, -6);
    return (vf)_mm512_permutexvar_ps((__m512i)code, table);
}

// Four words of codes of 16 rows: of the two groups from place `group` on, the second one's in the last
// two. The one group that may be left at the end is the first, and what follows it nothing.
SFUMATO_INLINE void group_words(const uint8_t* const* codes, int64_t at, bool both, vu (&words)[4]) {
    if (both) {
        turn_words(codes, at, words);
        return;
    }
    uint8_t last[kPanel][16] = {};
    const uint8_t* rows[kPanel];
    for (int j = 0; j < kPanel; j++) {
        memcpy(last[j], codes[j] + at, 8);
        rows[j] = last[j];
    }
    turn_words(rows, 0, words);
}

#if defined(__AVX512BF16__)
// As above as pairs of bf16, by lines of 128 codes.
inline void decode_lines(const uint8_t* const* codes, const uint8_t* const* scales, int64_t begin,
                         int64_t count, int64_t ahead, uint32_t* to) {
    const int64_t groups = count / 16;
    uint8_t scale_room[kSpare + kRun / 16 * kPanel] = {}, *own = scale_room + kSpare;
    alignas(64) uint32_t words[16 * kPanel], marks[8 * kPanel];
    columns(scales, begin / 16, groups, own);
    for (int64_t g = 0; g < groups; g++) {
        if (g % 8 == 0) {
            fetch(codes, begin / 2 + g * 8 + ahead);
            turn_line(codes, begin / 2 + g * 8, (groups - g) * 8, words, kPanel);
        }
        if (g % 4 == 0) PairScale::widen(own + g * kPanel, marks);
        const PairScale scale(marks + g % 4 * 2 * kPanel);
        for (int p = 0; p < 8; p++) {
            const vu word = load<vu>(words + (g % 8 * 2 + p / 4) * kPanel);
            store(to + (g * 8 + p) * kPanel, code_pair(word, p % 4, scale));
        }
    }
}
#endif

// As above, by words of eight codes.
template <bool kWide = false>
inline void decode_nvfp4(const uint8_t* const* codes, const uint8_t* const* scales, int64_t begin,
                         int64_t count, int64_t ahead, uint32_t* to) {
#if defined(__AVX512BF16__)
    if constexpr (!kWide) return decode_lines(codes, scales, begin, count, ahead, to);
#endif
    const int64_t groups = count / 16;
    uint8_t scale_room[kSpare + kRun / 16 * kPanel], *own = scale_room + kSpare;
    columns(scales, begin / 16, groups, own);
    for (int64_t g = 0; g < groups; g += 2) {
        if (g % 8 == 0) fetch(codes, begin / 2 + g * 8 + ahead);
        vu words[4];
        const bool both = g + 2 <= groups;
        group_words(codes, begin / 2 + g * 8, both, words);
        for (int half = 0; half < (both ? 2 : 1); half++) {
            const vf scale = wide_scale(wide_bytes(own + (g + half) * kPanel));
            for (int p = 0; p < 8; p++) {
                const vu word = words[2 * half + p / 4];
                const vf even = value_of(word >> (8 * (p % 4))) * scale;
                const vf odd = value_of(word >> (8 * (p % 4) + 4)) * scale;
                uint32_t* pair = to + ((g + half) * 8 + p) * kPanel * (kWide ? 2 : 1);
                if constexpr (kWide) {
                    store(pair, even);
                    store(pair + kPanel, odd);
                } else {
                    store(pair, ((vu)even >> 16) | ((vu)odd & 0xffff0000u));
                }
            }
        }
    }
}
#else
// E2M1 to fp32: a magnitude by three bits, the sign in bit 3.
SFUMATO_INLINE vf value_of(vu code) {
    static const float table[16] = {0, .5f, 1, 1.5f, 2, 3, 4, 6, -0.f, -.5f, -1, -1.5f, -2, -3, -4, -6};
    vf out{};
    for (int i = 0; i < kLanes; i++) out[i] = table[code[i] & 15];
    return out;
}

// From columns: codes [groups][8 pairs of k][16], scales [groups][16].
inline void decode_columns(const uint8_t* codes, const uint8_t* scales, int64_t groups, uint32_t* to) {
    for (int64_t g = 0; g < groups; g++) {
        for (int lane = 0; lane < kPanel; lane += kLanes) {
            const vf scale = wide_scale(wide_bytes(scales + g * kPanel + lane));
            for (int p = 0; p < 8; p++) {
                const vu both = wide_bytes(codes + (g * 8 + p) * kPanel + lane);
                const vf even = value_of(both & 15u) * scale;
                const vf odd = value_of(both >> 4) * scale;
                store(to + (g * 8 + p) * kPanel + lane, ((vu)even >> 16) | ((vu)odd & 0xffff0000u));
            }
        }
    }
}

// As above, by whole columns.
inline void decode_nvfp4(const uint8_t* const* codes, const uint8_t* const* scales, int64_t begin,
                         int64_t count, int64_t ahead, uint32_t* to) {
    constexpr int64_t most = 4;  // groups at once: 32 bytes of codes a row
    uint8_t code_room[kSpare + most * 8 * kPanel], scale_room[kSpare + kRun / 16 * kPanel];
    uint8_t *own_codes = code_room + kSpare, *own_scales = scale_room + kSpare;
    const int64_t groups = count / 16;
    columns(scales, begin / 16, groups, own_scales);
    for (int64_t g = 0; g < groups; g += most) {
        const int64_t some = groups - g < most ? groups - g : most;
        if (g % 8 == 0) fetch(codes, begin / 2 + g * 8 + ahead);
        columns(codes, begin / 2 + g * 8, some * 8, own_codes);
        decode_columns(own_codes, own_scales + g * kPanel, some, to + g * 8 * kPanel);
    }
}
#endif


// E2M1 doubled is a whole number from -12 to 12; raised by the offset it has no sign.
constexpr int32_t kCodeOffset = 12;
constexpr int64_t kCodeGroup = 5 * kPanel;  // words for 16 k: codes [4 words of four k][16], scales [16]

// Four codes a lane, each in the low half of a byte, to raised whole numbers.
SFUMATO_INLINE vu raised(vu codes) {
#if defined(__AVX2__)
    const __m128i table = _mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0);
#endif
#if defined(__AVX512F__)
    return (vu)_mm512_shuffle_epi8(_mm512_broadcast_i32x4(table), (__m512i)codes);
#elif defined(__AVX2__)
    return (vu)_mm256_shuffle_epi8(_mm256_broadcastsi128_si256(table), (__m256i)codes);
#else
    static const uint8_t table[16] = {12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};
    uint8_t bytes[sizeof codes];
    store(bytes, codes);
    for (uint8_t& byte : bytes) byte = table[byte & 15];
    return load<vu>(bytes);
#endif
}

// Values [begin, begin + count) of 16 rows as codes with scales, halved for what the codes are doubled.
inline void raise_nvfp4(const uint8_t* const* codes, const uint8_t* const* scales, int64_t begin,
                        int64_t count, int64_t ahead, uint32_t* to) {
    const int64_t groups = count / 16;
    uint8_t scale_room[kSpare + kRun / 16 * kPanel], *own_scales = scale_room + kSpare;
    columns(scales, begin / 16, groups, own_scales);
    for (int64_t g = 0; g < groups; g++)
        for (int lane = 0; lane < kPanel; lane += kLanes) {
            const vf scale = wide_scale(wide_bytes(own_scales + g * kPanel + lane));
            store(to + g * kCodeGroup + 4 * kPanel + lane, scale * 0.5f);
        }
#if defined(__AVX512F__)
    for (int64_t g = 0; g < groups; g += 2) {
        if (g % 8 == 0) fetch(codes, begin / 2 + g * 8 + ahead);
        vu words[4];
        const bool both = g + 2 <= groups;
        group_words(codes, begin / 2 + g * 8, both, words);
        for (int i = 0; i < (both ? 8 : 4); i++) {
            const vu four = i % 2 ? words[i / 2] >> 16 : words[i / 2] & 0xffffu;
            const vu apart = (four | (four << 8)) & 0x00ff00ffu;
            store(to + (g + i / 4) * kCodeGroup + i % 4 * kPanel, raised((apart | (apart << 4)) & 0x0f0f0f0fu));
        }
    }
#else
    constexpr int64_t most = 4;  // groups at once: 32 bytes of codes a row
    uint8_t code_room[kSpare + most * 8 * kPanel], *own_codes = code_room + kSpare;
    for (int64_t g = 0; g < groups; g++) {
        if (g % 8 == 0) fetch(codes, begin / 2 + g * 8 + ahead);
        if (g % most == 0) {
            const int64_t some = groups - g < most ? groups - g : most;
            columns(codes, begin / 2 + g * 8, some * 8, own_codes);
        }
        const uint8_t* from = own_codes + g % most * 8 * kPanel;
        for (int lane = 0; lane < kPanel; lane += kLanes)
            for (int i = 0; i < 4; i++) {
                const vu first = wide_bytes(from + 2 * i * kPanel + lane);
                const vu both = first | (wide_bytes(from + (2 * i + 1) * kPanel + lane) << 16);
                store(to + g * kCodeGroup + i * kPanel + lane, raised((both | (both << 4)) & 0x0f0f0f0fu));
            }
    }
#endif
}

}  // namespace sfumato::SFUMATO_ISA
