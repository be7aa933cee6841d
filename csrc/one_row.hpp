// A row of activations times a group of channels, by way of the weights: with one row to use them for, to
// lay them out for tiles costs more than the products. For AVX2, and weights in 8 bits or NVFP4.
//
// Sixteen words of each channel at a time are turned over, so that a vector holds a word of eight channels,
// and its values become fp32 in registers. The sums and their order are those of the tiles.
#pragma once

#include "panels.hpp"

namespace sfumato::SFUMATO_ISA {

#if defined(__AVX2__) && !defined(__AVX512F__)

constexpr int64_t kSliceWords = 16;  // a cache line of each row
constexpr int kPanels = (int)(kGroup / kPanel), kSums = (int)(kGroup / kLanes);

struct ByteWords {  // four values in 8 bits, which have scales of their rows
    static constexpr int64_t each = 4;
    vi words;

    SFUMATO_INLINE explicit ByteWords(vu from) : words((vi)from) {}

    SFUMATO_INLINE vf value(int i, const float*) const {
        return __builtin_convertvector((words << (24 - 8 * i)) >> 24, vf);
    }
};

struct CodeWords {  // eight codes of NVFP4
    static constexpr int64_t each = 8;
    __m256i even, odd;  // doubled, in bytes

    SFUMATO_INLINE explicit CodeWords(vu from) {
        const __m256i table = _mm256_broadcastsi128_si256(
            _mm_setr_epi8(0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12));
        const __m256i nibble = _mm256_set1_epi8(15);
        even = _mm256_shuffle_epi8(table, _mm256_and_si256((__m256i)from, nibble));
        odd = _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16((__m256i)from, 4), nibble));
    }

    // A byte in the highest place is 2^24 times too large, which the scale makes good. Exact: a code and a
    // scale have six significant bits together.
    SFUMATO_INLINE vf value(int i, const float* scales) const {
        const char b = (char)(i / 2);
        const __m256i places = _mm256_broadcastsi128_si256(_mm_setr_epi8(
            -1, -1, -1, b, -1, -1, -1, b + 4, -1, -1, -1, b + 8, -1, -1, -1, b + 12));
        return (vf)_mm256_cvtepi32_ps(_mm256_shuffle_epi8(i % 2 ? odd : even, places)) * load<vf>(scales);
    }
};

// A group's rows, and a slice of them turned over. The second-level cache has room for them and the next ones:
// 180 KB each at k = 2816 in 8 bits. In bf16 it has not, and with half a group at once this was slower than tiles.
template <class Words>
struct OneRow {
    static constexpr bool scaled = __is_same(Words, CodeWords);
    static constexpr int64_t slice = kSliceWords * Words::each;  // values of k

    const Matrix& weight;
    PanelRows panels[kPanels];
    alignas(32) uint32_t words[kSliceWords * kGroup];
    alignas(32) float x[slice * kLanes];  // each value in all lanes
    alignas(32) float scales[slice / 16 * kGroup];
    alignas(32) uint8_t scale_room[kSpare * kPanels + kRun / 16 * kGroup];

    SFUMATO_INLINE OneRow(const Matrix& w, int64_t first) : weight(w) {
        for (int p = 0; p < kPanels; p++) panels[p] = PanelRows(w, first + p);
        if (scaled) memset(scale_room, 0, sizeof scale_room);  // what lies behind the last group counts, times zero
    }

    static constexpr int64_t bytes(int64_t values) { return values * 4 / Words::each; }

    // The scales of a run's groups, in bytes.
    SFUMATO_INLINE void turn_scales(int64_t begin, int64_t values) {
        for (int p = 0; p < kPanels; p++)
            columns(panels[p].scales, begin / 16, values / 16, scale_bytes() + p * kPanel, kGroup);
    }
    SFUMATO_INLINE uint8_t* scale_bytes() { return scale_room + kSpare * kPanels; }

    // Those of a slice from place `at` of the run on, halved as the codes are doubled.
    SFUMATO_INLINE void widen_scales(int64_t at) {
        for (int64_t i = 0; i < slice / 16 * kGroup; i += kLanes)
            store(scales + i, wide_scale(wide_bytes(scale_bytes() + at / 16 * kGroup + i)) * 0x1p-25f);
    }

    // A slice of the rows from byte `at` on, `there` bytes of it and zeros behind.
    SFUMATO_INLINE void turn_over(int64_t at, int64_t there) {
        for (int p = 0; p < kPanels; p++)
            for (int64_t half = 0; half < kPanel; half += 8) {
                const uint32_t* rows[8];
                uint8_t last[8][kSliceWords * 4];
                for (int64_t j = 0; j < 8; j++) {
                    rows[j] = (const uint32_t*)(panels[p].rows[half + j] + at);
                    if (there == sizeof last[j]) continue;
                    memset(last[j], 0, sizeof last[j]);
                    memcpy(last[j], rows[j], there);
                    rows[j] = (const uint32_t*)last[j];
                }
                for (int64_t i = 0; i < kSliceWords; i += 8)
                    transpose_8x8(rows, i, words + i * kGroup + p * kPanel + half, kGroup);
            }
    }

    SFUMATO_INLINE void spread(const float* from, int64_t values) {
        for (int64_t k = 0; k < slice; k++) store(x + k * kLanes, all(k < values ? from[k] : 0.0f));
    }

    // sum += x . words, in the order of k. Meanwhile a slice's share of the next group is asked for, `next`
    // bytes on, in the order of memory: so many rows at once are more than a processor foresees by itself, and
    // more than it can ask for at a time. Beyond the end of the matrix that is no error.
    SFUMATO_INLINE void add(vf (&sum)[kSums], int64_t next) const {
        for (int64_t word = 0; word < kSliceWords; word++) {
            for (const PanelRows& panel : panels)
                __builtin_prefetch((const char*)((uintptr_t)panel.rows[0] + next + word * 64), 0, 2);
            for (int v = 0; v < kSums; v++) {
                const Words values(load<vu>(words + word * kGroup + v * kLanes));
                const float* scale = scales + word * Words::each / 16 * kGroup + v * kLanes;
                for (int i = 0; i < Words::each; i++)
                    sum[v] += load<vf>(x + (word * Words::each + i) * kLanes) * values.value(i, scale);
            }
        }
    }

    // c[64] += from . weight
    SFUMATO_INLINE void multiply(const float* from, float* c) {
        const int64_t stride = scaled ? bytes(weight.k) : bytes(weight.stride);
        int64_t next = (weight.values ? kGroup / 2 : kGroup) * stride;
        for (int64_t begin = 0; begin < weight.k; begin += kRun) {
            const int64_t run = weight.k - begin < kRun ? weight.k - begin : kRun;
            if (scaled) turn_scales(begin, run);
            vf sum[kSums] = {};
            for (int64_t at = 0; at < run; at += slice, next += kSliceWords * 64) {
                const int64_t some = run - at < slice ? run - at : slice;
                turn_over(bytes(begin + at), bytes(some));
                spread(from + begin + at, some);
                if (scaled) widen_scales(at);
                add(sum, next);
            }
            for (int v = 0; v < kSums; v++) {
                float* to = c + v * kLanes;
                store(to, load<vf>(to) + sum[v]);
            }
        }
    }
};

SFUMATO_INLINE bool serves_one_row(const Matrix& w) {
    return w.format == Format::nvfp4_rows || w.format == Format::i8_rows;
}

// c[64] += x . w for the channels of a whole group.
inline void one_row(const float* x, const Matrix& w, int64_t group, float* c) {
    if (w.format == Format::nvfp4_rows)
        OneRow<CodeWords>(w, group * kPanels).multiply(x, c);
    else
        OneRow<ByteWords>(w, group * kPanels).multiply(x, c);
}

#else

SFUMATO_INLINE bool serves_one_row(const Matrix&) { return false; }
inline void one_row(const float*, const Matrix&, int64_t, float*) {}

#endif

}  // namespace sfumato::SFUMATO_ISA
