// The innermost products: a few rows times a few panels, sums held in registers.
#pragma once

#include "narrow.hpp"
#include "one_row.hpp"
#include "tile_rows.hpp"

namespace sfumato::SFUMATO_ISA {

// Whether bf16 activations stay bf16. Without the instruction only the plainest build does so, and
// there for the sake of the tests: they then run this path on every machine.
#if defined(__AVX512BF16__) || !defined(__AVX2__)
constexpr bool kPairedActivations = true;
#else
constexpr bool kPairedActivations = false;
#endif

// The odd values of pairs of bf16. AVX2's tile has sums in 12 of 16 registers: a mask that takes another
// for itself drives some of them to memory in every step, so it stays there instead. By its address: beside an
// operand in memory GCC 12 moves no store of a sum out of the loop, and writes all of them in every step. That no
// operand says what is read is right only as it is constant.
SFUMATO_INLINE vf odd_of(vu pairs) {
#if defined(__AVX2__) && !defined(__AVX512F__) && defined(__GNUC__)
    static constexpr vu high = {0xffff0000u, 0xffff0000u, 0xffff0000u, 0xffff0000u,
                                0xffff0000u, 0xffff0000u, 0xffff0000u, 0xffff0000u};
    vu odd;
    asm("vpand (%2), %1, %0" : "=x"(odd) : "x"(pairs), "r"(&high));
    return (vf)odd;
#else
    return second_of(pairs);
#endif
}

struct FloatRows {  // fp32 activations times bf16 pairs
    typedef float Activation;
    static constexpr As as = As::pairs;
    static constexpr int per_step = 2, rows = kTileRows;  // values of k in a step, rows of a tile
    static constexpr int64_t words(int64_t k) { return k; }
    template <int R, int V>
    static SFUMATO_INLINE void step(vf (&sum)[R][V], const float* a, int64_t lda,
                                    const uint32_t* const* w, int64_t at) {
        vf part[V];
        for (int v = 0; v < V; v++)
            part[v] = first_of(load<vu>(w[v / kVectors] + at * kPanel + v % kVectors * kLanes));
        for (int r = 0; r < R; r++)
            for (int v = 0; v < V; v++) sum[r][v] = multiply_add(part[v], a[r * lda + 2 * at], sum[r][v]);
        for (int v = 0; v < V; v++)
            part[v] = odd_of(load<vu>(w[v / kVectors] + at * kPanel + v % kVectors * kLanes));
        for (int r = 0; r < R; r++)
            for (int v = 0; v < V; v++) sum[r][v] = multiply_add(part[v], a[r * lda + 2 * at + 1], sum[r][v]);
    }
};

struct FloatWeights {  // fp32 activations times fp32
    typedef float Activation;
    static constexpr As as = As::pairs;
    static constexpr int per_step = 1, rows = kTileRows;
    static constexpr int64_t words(int64_t k) { return k; }
    template <int R, int V>
    static SFUMATO_INLINE void step(vf (&sum)[R][V], const float* a, int64_t lda,
                                    const uint32_t* const* w, int64_t at) {
        vf part[V];
        for (int v = 0; v < V; v++)
            part[v] = load<vf>(w[v / kVectors] + at * kPanel + v % kVectors * kLanes);
        for (int r = 0; r < R; r++)
            for (int v = 0; v < V; v++) sum[r][v] = multiply_add(part[v], a[r * lda + at], sum[r][v]);
    }
};

struct PairRows {  // bf16 pairs times bf16 pairs
    typedef uint32_t Activation;
    static constexpr As as = As::pairs;
    static constexpr int per_step = 2, rows = kTileRows;
    static constexpr int64_t words(int64_t k) { return k / 2; }
    template <int R, int V>
    static SFUMATO_INLINE void step(vf (&sum)[R][V], const uint32_t* a, int64_t lda,
                                    const uint32_t* const* w, int64_t at) {
        vu part[V];
        for (int v = 0; v < V; v++)
            part[v] = load<vu>(w[v / kVectors] + at * kPanel + v % kVectors * kLanes);
        for (int r = 0; r < R; r++) {
            const vu pair = vu{} + a[r * lda + at];
            for (int v = 0; v < V; v++) sum[r][v] = add_pairs(sum[r][v], pair, part[v]);
        }
    }
};

// c[r][channel] += the sum over one run, for R rows and P panels.
template <class Kind, int R, int P>
inline void tile(const typename Kind::Activation* a, int64_t lda, const uint32_t* const* w,
                 int64_t steps, float* c, int64_t ldc) {
    constexpr int V = P * kVectors;
    vf sum[R][V] = {};
    for (int64_t at = 0; at < steps; at++) Kind::template step<R, V>(sum, a, lda, w, at);
    for (int r = 0; r < R; r++)
        for (int v = 0; v < V; v++) {
            float* to = c + r * ldc + v * kLanes;
            store(to, load<vf>(to) + sum[r][v]);
        }
}

template <class Kind, int P, int R = Kind::rows>
SFUMATO_INLINE void tile_rows(int rows, const typename Kind::Activation* a, int64_t lda,
                      const uint32_t* const* w, int64_t steps, float* c, int64_t ldc) {
    if constexpr (R > 0) {
        if (rows == R)
            tile<Kind, R, P>(a, lda, w, steps, c, ldc);
        else
            tile_rows<Kind, P, R - 1>(rows, a, lda, w, steps, c, ldc);
    }
}

// One run of the products of all rows with P neighbouring panels.
template <class Kind, int P>
inline void run_panels(const typename Kind::Activation* x, int64_t lda, int64_t rows, int64_t count,
                       const uint32_t* const* words, float* c, int64_t ldc = kGroup) {
    for (int64_t r = 0; r < rows; r += Kind::rows) {
        const int some = (int)(rows - r < Kind::rows ? rows - r : Kind::rows);
        tile_rows<Kind, P>(some, x + r * lda, lda, words, count / Kind::per_step, c + r * ldc, ldc);
    }
}

// The same with `wide` panels, as many as a tile takes or the last one of a matrix.
template <class Kind>
SFUMATO_INLINE void run_tiles(int wide, const typename Kind::Activation* x, int64_t lda, int64_t rows,
                              int64_t count, const uint32_t* const* words, float* c) {
    if (wide == kTilePanels)
        run_panels<Kind, kTilePanels>(x, lda, rows, count, words, c);
    else
        run_panels<Kind, 1>(x, lda, rows, count, words, c);
}

constexpr int64_t kRoomWords = kRun * kPanel * kPanelsInGroup;  // for a group's panels in pairs
static_assert(kTilePanels * 2 <= kPanelsInGroup, "or for a tile's panels in fp32");

// Products with rows in 8 bits, times the rows' own scales.
SFUMATO_INLINE void scale_columns(const Matrix& w, int64_t group, int64_t rows, float* c) {
    float scales[kGroup] = {};
    const int64_t left = w.n - group * kGroup, own = left < kGroup ? left : kGroup;
    memcpy(scales, w.row_scales + group * kGroup, sizeof(float) * own);
    for (int64_t r = 0; r < rows; r++)
        for (int i = 0; i < kGroup; i += kLanes) {
            float* to = c + r * kGroup + i;
            store(to, load<vf>(to) * load<vf>(scales + i));
        }
}

// Whether one row of a kind goes the way of one_row.hpp.
#if defined(__AVX512BF16__)
template <class Kind>
constexpr bool kTakesOneRow = __is_same(Kind, FloatRows) || __is_same(Kind, PairRows);
#else
template <class Kind>
constexpr bool kTakesOneRow = __is_same(Kind, FloatRows);
#endif

// c[rows][64] = x . w by tiles of panels, without the rows' own scales; see group_product.
//
// How many panels a tile takes, and whether they are pairs or fp32 already, hangs on the number of rows;
// the order in which an element's products are added does not.
template <class Kind>
inline void panels_product(const typename Kind::Activation* x, int64_t lda, int64_t rows,
                           const Matrix& w, int64_t group, float* c, uint32_t* room) {
    const int64_t panels = (w.n + kPanel - 1) / kPanel, first = group * kPanelsInGroup;
    const int own = (int)(panels - first < kPanelsInGroup ? panels - first : kPanelsInGroup);
    memset(c, 0, sizeof(float) * rows * kGroup);
    if constexpr (kTakesOneRow<Kind>) {
        if (rows == 1 && own == kPanelsInGroup && serves_one_row(w)) {
            one_row(x, w, group, c);
            return;
        }
    }
    for (int64_t begin = 0; begin < w.k; begin += kRun) {
        const int64_t count = w.k - begin < kRun ? w.k - begin : kRun;
        const uint32_t* words[kPanelsInGroup];
        const auto* from = x + Kind::words(begin);
        if (rows * kPanelsInGroup <= Kind::rows * kTilePanels && own == kPanelsInGroup) {
            for (int p = 0; p < own; p++)
                words[p] = panel_words<Kind::as>(w, first + p, begin, count, room + p * kRun * kPanel);
            // So few rows that a whole group's sums fit the registers.
            tile_rows<Kind, kPanelsInGroup, Kind::rows * kTilePanels / kPanelsInGroup>(
                (int)rows, from, lda, words, count / Kind::per_step, c, kGroup);
            continue;
        }
        for (int p = 0; p < own; p += kTilePanels) {
            const int wide = own - p < kTilePanels ? own - p : kTilePanels;
            if constexpr (__is_same(Kind, FloatRows)) {
                if (decodes_to_floats(w, rows)) {
                    for (int i = 0; i < wide; i++) {
                        uint32_t* own_room = room + i * 2 * kRun * kPanel;
                        words[i] = panel_words<As::floats>(w, first + p + i, begin, count, own_room);
                    }
                    run_tiles<FloatWeights>(wide, from, lda, rows, count, words, c + p * kPanel);
                    continue;
                }
            }
            for (int i = 0; i < wide; i++)
                words[i] = panel_words<Kind::as>(w, first + p + i, begin, count, room + i * kRun * kPanel);
            run_tiles<Kind>(wide, from, lda, rows, count, words, c + p * kPanel);
        }
    }
}

// c[rows][64] = x . w for the channels of one group (its panels alone are computed). `lda` is the
// distance between rows in activations of the kind: floats, pairs, or words of records or blocks. `room` is kRoomWords
// words.
template <class Kind>
SFUMATO_INLINE void group_product(const typename Kind::Activation* x, int64_t lda, int64_t rows,
                                  const Matrix& w, int64_t group, float* c, uint32_t* room) {
#if defined(SFUMATO_MATRIX_TILES)
    if constexpr (kInBlocks<Kind>)
        tile_product(x, lda, rows, w, group, c, room);
    else
#endif
        panels_product<Kind>(x, lda, rows, w, group, c, room);
    if (w.row_scales) scale_columns(w, group, rows, c);
}

// How many groups a thread takes at once: of one row in sequence, as each asks memory for the next one's.
SFUMATO_INLINE int64_t neighbours(int64_t rows, int64_t groups, int threads) {
    const int64_t fair = rows == 1 ? groups / (4 * threads) : 1;
    return fair < 1 ? 1 : fair < 16 ? fair : 16;
}

// How many threads to wake for so much work, if each shall have `least` of it.
SFUMATO_INLINE int worth_waking(double work, double least, int threads) {
    return work < least ? 1 : work < least * threads ? (int)(work / least) : threads;
}

SFUMATO_INLINE void widen_row(const uint16_t* from, int64_t count, float* to) {
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) store(to + i, load_bf16(from + i));
    for (; i < count; i++) to[i] = widen(from[i]);
}

// Rows of activations as a kernel's kind wants them: in place if they lie so already.
SFUMATO_INLINE const float* as_floats(const Rows& x, int64_t row, int64_t rows, float* room,
                                      int64_t* lda) {
    if (!x.bf16) {
        *lda = x.stride;
        return (const float*)x.data + row * x.stride;
    }
    *lda = x.width;
    for (int64_t r = 0; r < rows; r++)
        widen_row((const uint16_t*)x.data + (row + r) * x.stride, x.width, room + r * x.width);
    return room;
}

// `count` values times `scale` to a row of results, from `column` on.
SFUMATO_INLINE void put(const Rows& out, int64_t row, int64_t column, const float* values,
                        int64_t count, float scale) {
    int64_t i = 0;
    if (out.bf16) {
        uint16_t* to = (uint16_t*)out.data + row * out.stride + column;
        for (; i + kLanes <= count; i += kLanes) store_bf16(to + i, load<vf>(values + i) * scale);
        for (; i < count; i++) to[i] = narrow(values[i] * scale);
        return;
    }
    float* to = (float*)out.data + row * out.stride + column;
    for (; i + kLanes <= count; i += kLanes) store(to + i, load<vf>(values + i) * scale);
    for (; i < count; i++) to[i] = values[i] * scale;
}

// Whether bf16 activations go as pairs. An odd distance between rows cannot be told in pairs: the
// caller (module.cpp) allows none where k is even.
SFUMATO_INLINE bool paired(const Rows& x, const Matrix& w) {
    return kPairedActivations && x.bf16 && w.format != Format::f32_rows;
}

// The records of all rows, one after the other.
inline void narrow_rows(const Rows& x, int32_t offset, int threads, uint32_t* to) {
    const int64_t size = x.bf16 ? 2 : 4, words = NarrowRows<true>::words(x.width);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < x.count; row++)
        narrow_row((const char*)x.data + row * x.stride * size, x.bf16, x.width, offset, to + row * words);
}

// Rows of bf16 as the set multiplies them.
#if defined(SFUMATO_MATRIX_TILES)
typedef TileRows Halves;
#else
typedef PairRows Halves;
#endif

// All rows of `x` for registers of matrices.
inline void pack_all(const Rows& x, int threads, uint32_t* to) {
    const int64_t words = TileRows::words(x.width);
#pragma omp parallel for num_threads(worth_waking((double)x.count * x.width, 1 << 16, threads)) schedule(static)
    for (int64_t row = 0; row < x.count; row += kBlock) {
        const int64_t some = x.count - row < kBlock ? x.count - row : kBlock;
        const uint16_t* from = (const uint16_t*)x.data + row * x.stride;
        // The last of many, alone in its block, is a block nevertheless.
        pack_rows(some, x.width, x.count > 1, to + row * words, [&](int64_t i) { return from + i * x.stride; });
    }
}

// Calls `work` with the rows of `x` as the kind that suits them and the weight takes them. Scratch slot 0
// holds them if they had to be widened, or rounded to 8 bits.
template <class Work>
inline void with_rows(const Rows& x, const Matrix& w, int threads, const Work& work) {
    if (narrows(w)) {
        const bool nvfp4 = w.format == Format::nvfp4_rows;
        const int64_t lda = NarrowRows<true>::words(x.width);
        uint32_t* records = (uint32_t*)scratch(0, (int64_t)sizeof(uint32_t) * x.count * lda);
        narrow_rows(x, offset_of(nvfp4), threads, records);
        if (nvfp4)
            work.template operator()<NarrowRows<true>>(records, lda);
        else if constexpr (kMultipliesBytes)
            work.template operator()<NarrowRows<false>>(records, lda);
        return;
    }
    if (paired(x, w)) {
        if constexpr (kInBlocks<Halves>) {
            const int64_t rows = x.count == 1 ? 1 : (x.count + kBlock - 1) / kBlock * kBlock;
            uint32_t* packed = (uint32_t*)scratch(0, (int64_t)sizeof(uint32_t) * rows * TileRows::words(x.width));
            pack_all(x, threads, packed);
            work.template operator()<TileRows>(packed, distance<TileRows>(x.count, x.width));
        } else {
            work.template operator()<PairRows>((const uint32_t*)x.data, x.stride / 2);
        }
        return;
    }
    int64_t lda = 0;
    float* room = x.bf16 ? (float*)scratch(0, sizeof(float) * x.count * x.width) : nullptr;
    const float* floats = as_floats(x, 0, x.count, room, &lda);
    if (w.format == Format::f32_rows)
        work.template operator()<FloatWeights>(floats, lda);
    else
        work.template operator()<FloatRows>(floats, lda);
}

}  // namespace sfumato::SFUMATO_ISA
