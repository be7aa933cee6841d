// From a matrix in memory to what registers of matrices take: of 16 channels, lines of 32 values of k in bf16.
//
// Such a line is a piece of a row as a checkpoint stores it: bf16 can be taken from where it is mapped, and other
// formats are widened along their rows, without turning anything over.
#pragma once

#include "matrix_tiles.hpp"
#include "panels.hpp"

namespace sfumato::SFUMATO_ISA {

#if defined(SFUMATO_MATRIX_TILES)

// Where the lines of 16 channels stand.
struct WeightTiles {
    const char* at;
    int64_t stride, step;  // in bytes: between channels, and from 32 values of k to the next
};

// Every code of NVFP4 times every scale, exactly. The checkpoint reader lets no scale through that is no number or has
// a sign; here each byte has its row, so that none leads elsewhere.
struct CodeTable {
    alignas(32) uint16_t products[256][16] = {};

    constexpr CodeTable() {
        for (int byte = 0; byte < 256; byte++)
            for (int code = 0; code < 16; code++) {
                const float size = kCodes[code % 8] * scale_of(byte % 128);
                const uint32_t bits = byte % 128 == 127 ? 0x7fc0 : __builtin_bit_cast(uint32_t, size) >> 16;
                products[byte][code] = (uint16_t)((code < 8) == (byte < 128) ? bits : bits | 0x8000);
            }
    }
};
inline constexpr CodeTable kCodeTable;

// Sixteen values at place `at` of a channel's lines, which lie in tiles one after the other.
SFUMATO_INLINE uint16_t* place_in(uint32_t* line, int64_t at) {
    return (uint16_t*)(line + at / kStep * kTileWords) + at % kStep;
}

// N times 16 values of a row at the beginning of a tile's line: eight bytes of codes and a scale each.
template <int N>
SFUMATO_INLINE void decode_groups(const uint8_t* codes, const uint8_t* scales, uint32_t* line) {
    for (int g = 0; g < N; g++) {
        const uint16_t* products = kCodeTable.products[scales[g]];
        uint16_t* to = (uint16_t*)(line + g / 2 * kTileWords) + g % 2 * 16;
#if defined(__AVX512VBMI__)
        // Words with a code in their lowest bits; what is above them the permutation passes over. Half vectors leave
        // the processor one port more than whole ones.
        const __m256i places = _mm256_setr_epi16(0, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 48, 52, 56, 60);
        int64_t sixteen;
        memcpy(&sixteen, codes + 8 * g, 8);
        const __m256i which = _mm256_multishift_epi64_epi8(places, _mm256_set1_epi64x(sixteen));
        const __m256i values = _mm256_permutexvar_epi16(which, _mm256_load_si256((const __m256i*)products));
        _mm256_store_si256((__m256i*)to, values);
#else
        for (int i = 0; i < 16; i++) to[i] = products[codes[8 * g + i / 2] >> (i % 2 * 4) & 15];
#endif
    }
}

SFUMATO_INLINE void decode_line(const uint8_t* codes, const uint8_t* scales, int64_t count, uint32_t* line) {
    for (; count >= 128; count -= 128, codes += 64, scales += 8, line += 4 * kTileWords)
        decode_groups<8>(codes, scales, line);
    for (; count >= 32; count -= 32, codes += 16, scales += 2, line += kTileWords)
        decode_groups<2>(codes, scales, line);
    if (count) decode_groups<1>(codes, scales, line);
}

// A row's values in 8 bits, an even number of them; bf16 holds them exactly.
SFUMATO_INLINE void widen_line(const uint8_t* from, int64_t count, uint32_t* line) {
#if defined(__AVX512BF16__)
    for (; count >= kStep; count -= kStep, from += kStep, line += kTileWords) {
        const auto widened = [&](int i) {
            return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)(from + i))));
        };
        _mm512_store_si512(line, (__m512i)_mm512_cvtne2ps_pbh(widened(16), widened(0)));
    }
#endif
    for (int64_t at = 0; at < count; at += 2)
        for (int64_t i = at; i < at + 2; i++) *place_in(line, i) = narrow((float)(int8_t)from[i]);
}

SFUMATO_INLINE void copy_line(const uint8_t* from, int64_t count, uint32_t* line) {
    int64_t at = 0;
    for (; at + kStep <= count; at += kStep) memcpy(place_in(line, at), from + 2 * at, 2 * kStep);
    if (at < count) memcpy(place_in(line, at), from + 2 * at, 2 * (count - at));
}

// From pairs [k / 2][16 channels] to channel `j`.
SFUMATO_INLINE void unturn_line(const uint32_t* words, int64_t j, int64_t count, uint32_t* line) {
    for (int64_t pair = 0; pair < count / 2; pair++)
        line[pair / 16 * kTileWords + pair % 16] = words[pair * kPanel + j];
}

// The channels of one group. Panels that the last group of a matrix lacks are computed as another one, for nothing.
struct GroupRows {
    const Matrix& w;
    int64_t first, own;  // panels of the matrix
    bool whole;          // no row is missing in them
    PanelRows places[kPanelsInGroup];

    GroupRows(const Matrix& weight, int64_t group) : w(weight), first(group * kPanelsInGroup) {
        const int64_t left = (w.n + kPanel - 1) / kPanel - first;
        own = left < kPanelsInGroup ? left : kPanelsInGroup;
        whole = (first + kPanelsInGroup) * kPanel <= w.n;
        for (int64_t p = 0; p < own; p++) places[p] = PanelRows(w, first + p);
    }

    // Whether registers can be loaded from where the matrix is.
    bool in_place() const { return whole && w.format == Format::bf16_rows && w.k % kStep == 0; }

    // `count` values from `begin` on of channels [j, end) of panel `p`; what is behind them in the last tile is left.
    // Not inlined, for compilers keep its loops in fewer registers then than they need.
    __attribute__((noinline)) void take_lines(int64_t p, int64_t j, int64_t end, int64_t begin, int64_t count,
                                              uint32_t* room) const {
        const uint8_t *const *from = places[p].rows, *const *scales = places[p].scales;
        if (w.format == Format::nvfp4_rows)
            for (; j < end; j++)
                decode_line(from[j] + begin / 2, scales[j] + begin / 16, count, room + j * kBlock);
        else if (w.format == Format::i8_rows)
            for (; j < end; j++) widen_line(from[j] + begin, count, room + j * kBlock);
        else if (w.format == Format::bf16_rows)
            for (; j < end; j++) copy_line(from[j] + 2 * begin, count, room + j * kBlock);
        else
            for (const uint32_t* words = (const uint32_t*)w.data + ((first + p) * (w.k / 2) + begin / 2) * kPanel;
                 j < end; j++)
                unturn_line(words, j, count, room + j * kBlock);
    }
};

// Lines of some of a group's panels for runs of k, of which one is made while another is multiplied.
template <int64_t R>
struct RunLines {
    static constexpr int64_t panel_words = R / kStep * kTileWords;
    static_assert(2 * kPanelsInGroup * panel_words <= kRun / 2 * kGroup, "half of a group's room holds two runs");

    const GroupRows& rows;
    uint32_t* room;
    bool in_place;
    int64_t first, panels;  // of the group
    int64_t begin = 0, made = 0;  // of the run that is being made: its first k, and lines

    SFUMATO_INLINE int64_t count() const { return rows.w.k - begin < R ? rows.w.k - begin : R; }

    SFUMATO_INLINE uint32_t* panel(int64_t p) const {
        return room + (begin / R % 2 * kPanelsInGroup + p) * panel_words;
    }

    SFUMATO_INLINE void start(int64_t at) {
        begin = at;
        made = in_place || begin >= rows.w.k ? panels * kPanel : 0;
        if (made || count() % kStep == 0) return;
        for (int64_t p = 0; p < panels; p++) memset(panel(p) + count() / kStep * kTileWords, 0, 4 * kTileWords);
    }

    SFUMATO_INLINE void make(int64_t lines) {
        const int64_t all = panels * kPanel;
        while (lines > 0 && made < all) {
            const int64_t p = first + made / kPanel, j = made % kPanel, end = j + lines < kPanel ? j + lines : kPanel;
            rows.take_lines(p < rows.own ? p : rows.own - 1, j, end, begin, count(), panel(made / kPanel));
            lines -= end - j;
            made += end - j;
        }
    }

    // How many lines to make in each of so many steps, for all to be there in the end.
    SFUMATO_INLINE int64_t in_each_of(int64_t steps) const { return (panels * kPanel + steps - 1) / steps; }

    // What has been made, for registers.
    SFUMATO_INLINE void finish(WeightTiles* to) {
        make(panels * kPanel);
        for (int64_t p = 0; p < panels; p++) {
            if (in_place)
                to[p] = {(const char*)rows.places[first + p].rows[0] + 2 * begin, 2 * rows.w.stride, 2 * kStep};
            else
                to[p] = {(const char*)panel(p), 4 * kBlock, 4 * kTileWords};
        }
    }
};

#endif

}  // namespace sfumato::SFUMATO_ISA
