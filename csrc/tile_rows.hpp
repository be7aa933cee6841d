// Products by registers of matrices: 16 channels times 16 rows of activations, 32 values of k at a time.
//
// Weights stand on the left, as they lie in memory; activations, of which there is less, are turned over once for
// all groups of channels. An element's sum is one chain over all of k, whatever is kept in registers or in memory.
#pragma once

#include "one_row.hpp"
#include "weight_tiles.hpp"

namespace sfumato::SFUMATO_ISA {

// Rows of bf16 as registers take them: blocks of 16 rows, [k / 2][16 rows][2], zeros behind k up to a multiple of 32.
// A row alone is no block but its pairs one after the other; the distance between rows is then given as zero.
struct TileRows {
    typedef uint32_t Activation;
    static constexpr int64_t words(int64_t k) { return (k + 31) / 32 * 16; }
};

template <class Kind>
constexpr bool kInBlocks = __is_same(Kind, TileRows);

// Between rows of activations of a kind, where `count` of them stand together and nothing else.
template <class Kind>
SFUMATO_INLINE int64_t distance(int64_t count, int64_t k) {
    return kInBlocks<Kind> && count == 1 ? 0 : Kind::words(k);
}

// `count` rows of k values, 16 at most and each anywhere, to a block; its other rows have anything.
inline void pack_block(const uint8_t* const* rows, int64_t count, int64_t k, uint32_t* to) {
    const uint8_t* own[kBlock];
    for (int64_t j = 0; j < kBlock; j++) own[j] = rows[j < count ? j : count - 1];
    for (int64_t at = 0; at < k; at += kStep, to += kTileWords) {
#if defined(__AVX512F__)
        turn_line(own, 2 * at, 2 * (k - at), to, kBlock);
#else
        memset(to, 0, 4 * kTileWords);
        const int64_t bytes = k - at < kStep ? 2 * (k - at) : 2 * kStep;
        for (int64_t j = 0; j < kBlock; j++)
            for (int64_t i = 0; 4 * i < bytes; i++) memcpy(to + i * kBlock + j, own[j] + 2 * at + 4 * i, 4);
#endif
    }
}

// `count` rows of k values, in blocks or as they are. `row_at` gives where each begins.
template <class RowAt>
inline void pack_rows(int64_t count, int64_t k, bool blocks, uint32_t* to, const RowAt& row_at) {
    if (!blocks) {
        memcpy(to, row_at(0), 2 * k);
        memset((char*)to + 2 * k, 0, 4 * TileRows::words(k) - 2 * k);
        return;
    }
    for (int64_t row = 0; row < count; row += kBlock) {
        const int64_t some = count - row < kBlock ? count - row : kBlock;
        const uint8_t* rows[kBlock];
        for (int64_t j = 0; j < some; j++) rows[j] = (const uint8_t*)row_at(row + j);
        pack_block(rows, some, k, to + row * TileRows::words(k));
    }
}

// One row of blocks, alone; `room` is words(k) of them, used if needed.
SFUMATO_INLINE const uint32_t* row_alone(const uint32_t* x, int64_t lda, int64_t row, uint32_t* room) {
    if (lda == 0) return x;
    const uint32_t* from = x + row / kBlock * kBlock * lda + row % kBlock;
    for (int64_t i = 0; i < lda; i++) room[i] = from[i * kBlock];
    return room;
}

#if defined(SFUMATO_MATRIX_TILES)

// Memory that is asked for while registers multiply: so many bytes in every step.
struct Ahead {
    uintptr_t at = 0;
    int64_t bytes = 0;

    SFUMATO_INLINE void step() {
        const uintptr_t end = at + bytes;
        for (uintptr_t line = (at + 63) & ~(uintptr_t)63; line < end; line += 64)
            __builtin_prefetch((const char*)line, 0, 2);
        at = end;
    }
};

// A panel's share of the next group, in the order of memory, if `passes` steps go through the same values of k;
// beyond the end of the matrix that is no error.
struct PanelAhead {
    Ahead values, scales;

    PanelAhead() = default;
    PanelAhead(const Matrix& w, const PanelRows& own, int64_t passes) {
        if (w.format == Format::bf16_panels) return;
        const int64_t group = w.values ? kGroup / 2 : kGroup;
        const bool codes = w.format == Format::nvfp4_rows;
        const int64_t pair = codes ? 1 : 2 * PanelRows::size_of(w.format);  // bytes of two values
        const int64_t row = codes ? w.k / 2 : w.stride * pair / 2;
        values = {(uintptr_t)own.rows[0] + group * row, kPanel * kStep * pair / 2 / passes};
        if (codes) scales = {(uintptr_t)own.scales[0] + group * w.k / 16, kPanel * kStep / 16 / passes};
    }

    SFUMATO_INLINE void step() {
        values.step();
        scales.step();
    }
};

// The sums of P panels and B blocks of rows over the tiles of a run.
template <int P, int B, int I = 0>
SFUMATO_INLINE void add_panels(MatrixTiles& tiles, const WeightTiles* w, int64_t step) {
    if constexpr (I < P) {
        constexpr int own = 4 + I % 2;
        tiles.load<own>(w[I].at + step * w[I].step, w[I].stride);
        tiles.multiply<I * B, own, 6>();
        if constexpr (B == 2) tiles.multiply<I * B + 1, own, 7>();
        add_panels<P, B, I + 1>(tiles, w, step);
    }
}

// The same over a run of `count` steps, with `side` rows side by side (16, or one) and blocks `block` words apart. In
// each step `each` lines of the next run are made.
template <int P, int B, class Lines>
SFUMATO_INLINE void add_run(MatrixTiles& tiles, const WeightTiles* w, const uint32_t* x, int64_t block, int64_t side,
                            int64_t count, Lines& lines, int64_t each, PanelAhead* ahead) {
    for (int64_t s = 0; s < count; s++) {
        tiles.load<6>(x + s * 16 * side, 4 * side);
        if constexpr (B == 2) tiles.load<7>(x + block + s * 16 * side, 4 * side);
        add_panels<P, B>(tiles, w, s);
        for (int p = 0; p < P; p++) ahead[p].step();
        lines.make(each);
    }
}

// Two panels' sums in memory, [block][panel], to registers; zeros where they are `fresh`.
template <int B>
SFUMATO_INLINE void load_sums(MatrixTiles& tiles, const float* sums, bool fresh) {
    constexpr int64_t next = kPanelsInGroup * kTileWords, line = 4 * kBlock;
    if (fresh) {
        tiles.clear<0>(), tiles.clear<B>();
        if constexpr (B == 2) tiles.clear<1>(), tiles.clear<3>();
        return;
    }
    tiles.load<0>(sums, line), tiles.load<B>(sums + kTileWords, line);
    if constexpr (B == 2) tiles.load<1>(sums + next, line), tiles.load<3>(sums + next + kTileWords, line);
}

template <int B>
SFUMATO_INLINE void store_sums(const MatrixTiles& tiles, float* sums) {
    constexpr int64_t next = kPanelsInGroup * kTileWords, line = 4 * kBlock;
    tiles.store<0>(sums, line), tiles.store<B>(sums + kTileWords, line);
    if constexpr (B == 2) tiles.store<1>(sums + next, line), tiles.store<3>(sums + next + kTileWords, line);
}

// Sums [16 channels][16 rows] to some rows of c, 64 channels each.
SFUMATO_INLINE void turn_sums(const float* sums, int64_t rows, float* c) {
#if defined(__AVX512F__)
    alignas(64) uint32_t room[kTileWords];
    const bool whole = rows == kBlock;
    const uint8_t* lines[kBlock];
    for (int64_t j = 0; j < kBlock; j++) lines[j] = (const uint8_t*)(sums + j * kBlock);
    turn_line(lines, 0, 64, whole ? (uint32_t*)c : room, whole ? kGroup : kBlock);
    for (int64_t r = 0; r < rows && !whole; r++) memcpy(c + r * kGroup, room + r * kBlock, 4 * kBlock);
#else
    for (int64_t r = 0; r < rows; r++)
        for (int64_t j = 0; j < kBlock; j++) c[r * kGroup + j] = sums[j * kBlock + r];
#endif
}

SFUMATO_INLINE void look_ahead(const GroupRows& rows, int64_t passes, PanelAhead* ahead) {
    for (int64_t p = 0; p < rows.own; p++) ahead[p] = PanelAhead(rows.w, rows.places[p], passes);
}

// B blocks of rows, or one row, with 4 / B panels from `first` on, whose sums stay in registers 0 to 3.
template <int B>
inline void multiply_few(MatrixTiles& tiles, const uint32_t* x, int64_t block, int64_t side, const GroupRows& rows,
                         int64_t first, float* sums, uint32_t* room) {
    constexpr int64_t run = 128;
    constexpr int panels = 4 / B;
    RunLines<run> lines = {rows, room, rows.in_place(), first, panels};
    PanelAhead ahead[kPanelsInGroup];
    if (!lines.in_place) look_ahead(rows, 1, ahead);
    tiles.clear<0>(), tiles.clear<1>(), tiles.clear<2>(), tiles.clear<3>();
    lines.start(0);
    for (int64_t begin = 0; begin < rows.w.k; begin += run) {
        WeightTiles at[kPanelsInGroup];
        const int64_t steps = (lines.count() + kStep - 1) / kStep;
        lines.finish(at);
        lines.start(begin + run);
        const int64_t each = lines.in_each_of(steps);
        add_run<panels, B>(tiles, at, x + begin / 2 * side, block, side, steps, lines, each, ahead + first);
    }
    if constexpr (B == 2) {
        store_sums<2>(tiles, sums + first * kTileWords);
    } else {
        const int64_t line = 4 * side, next = kBlock * side;
        tiles.store<0>(sums, line), tiles.store<1>(sums + next, line);
        tiles.store<2>(sums + 2 * next, line), tiles.store<3>(sums + 3 * next, line);
    }
}

// Bytes of activations that stay in the second-level cache, 2 MB where there are such registers, beside what passes by.
constexpr int64_t kStaying = 5 << 18;

// More blocks of rows, with 2 or 4 panels from `first` on, whose sums are in memory between runs. Two panels' run stays
// in the first-level cache for all blocks.
inline void multiply_many(MatrixTiles& tiles, const uint32_t* x, int64_t block, int64_t blocks, const GroupRows& rows,
                          int64_t first, int64_t panels, float* sums, uint32_t* room) {
    constexpr int64_t run = 256;
    RunLines<run> lines = {rows, room, rows.in_place(), first, panels};
    PanelAhead ahead[kPanelsInGroup];
    if (!lines.in_place) look_ahead(rows, (blocks + 1) / 2, ahead);
    lines.start(0);
    for (int64_t begin = 0; begin < rows.w.k; begin += run) {
        WeightTiles at[kPanelsInGroup];
        const int64_t count = (lines.count() + kStep - 1) / kStep;
        const int64_t each = lines.in_each_of(count * ((blocks + 1) / 2) * (panels / 2));
        lines.finish(at);
        lines.start(begin + run);
        for (int64_t p = 0; p < panels; p += 2)
            for (int64_t b = 0; b < blocks; b += 2) {
                float* to = sums + (b * kPanelsInGroup + first + p) * kTileWords;
                const uint32_t* from = x + begin / 2 * kBlock + b * block;
                const auto add = [&]<int B>() {
                    load_sums<B>(tiles, to, begin == 0);
                    add_run<2, B>(tiles, at + p, from, block, kBlock, count, lines, each, ahead + first + p);
                    store_sums<B>(tiles, to);
                };
                if (b + 1 < blocks)
                    add.template operator()<2>();
                else
                    add.template operator()<1>();
            }
    }
}

// c[rows][64] = x . w for the channels of one group; `lda` and `room` as group_product has them.
inline void tile_product(const uint32_t* x, int64_t lda, int64_t rows, const Matrix& w, int64_t group, float* c,
                         uint32_t* room) {
    const int64_t side = lda ? kBlock : 1, blocks = (rows + kBlock - 1) / kBlock;
#if defined(__AVX512F__)
    const bool narrow = w.format == Format::i8_rows || w.format == Format::nvfp4_rows;
    if (side == 1 && narrow && (group + 1) * kGroup <= w.n)
        return one_row_apart((const uint16_t*)x, w, group, c);
#endif
    float* sums = side == 1 ? c : (float*)(room + kRun / 2 * kGroup);
    const GroupRows own(w, group);
    MatrixTiles tiles(side);
    if (blocks == 1) {
        multiply_few<1>(tiles, x, 0, side, own, 0, sums, room);
        if (side == 1) return;
    } else if (blocks == 2) {
        for (int64_t p = 0; p < own.own; p += 2) multiply_few<2>(tiles, x, kBlock * lda, kBlock, own, p, sums, room);
    } else {
        // Activations pass by once for each of these, and fewer of them leave more of the cache to themselves.
        const int64_t panels = own.own > 2 && rows * lda * 4 > kStaying ? kPanelsInGroup : 2;
        for (int64_t p = 0; p < own.own; p += panels)
            multiply_many(tiles, x, kBlock * lda, blocks, own, p, panels, sums, room);
    }
    for (int64_t row = 0; row < rows; row += kBlock)
        for (int64_t p = 0; p < own.own; p++)
            turn_sums(sums + (row / kBlock * kPanelsInGroup + p) * kTileWords,
                      rows - row < kBlock ? rows - row : kBlock, c + row * kGroup + p * kPanel);
}

#endif

}  // namespace sfumato::SFUMATO_ISA
