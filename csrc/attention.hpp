// Attention of many rows to many slots without writing the scores: 64 slots at a time, with a running
// maximum and sum for each row.
//
// The query heads that share a key head are rows of one product. What a row may not see changes no bit
// of it: where the groups of 64 slots begin hangs on places alone (see `span_of`), a group of which a row
// sees nothing leaves its sums as they are, and groups of which a whole task sees nothing are skipped.
#pragma once

#include "head.hpp"

namespace sfumato::SFUMATO_ISA {

// Rows of one task: a multiple of every tile's rows. Where products are quick, more rows for what is made of values.
#if defined(SFUMATO_MATRIX_TILES)
constexpr int64_t kQueryRows = 128;
#else
constexpr int64_t kQueryRows = 96;
#endif

struct Span {
    int64_t begin, end;  // slots that some row of the batch entry sees
    int64_t lead;        // places before the first of them in its group of 64
};

struct Range {  // of places; empty where the least is above the most
    int32_t least, most;
    bool padded;  // whether there is padding beside them
};

SFUMATO_INLINE Range range_of(const int32_t* places, int64_t count) {
    Range range = {INT32_MAX, -1, false};
    for (int64_t i = 0; i < count; i++) {
        range.padded |= places[i] < 0;
        if (places[i] >= 0 && places[i] < range.least) range.least = places[i];
        if (places[i] > range.most) range.most = places[i];
    }
    return range;
}

// Sums begin at a multiple of 64 places or, unless they are to be aligned so, at the first slot seen.
SFUMATO_INLINE Span span_of(const Attention& job, int64_t batch) {
    if (!job.slot_places) return {0, job.slots, 0};
    const int32_t* places = job.slot_places + batch * job.slots;
    const Range rows = range_of(job.query_places + batch * job.rows, job.rows);
    Span span = {job.slots, 0, 0};
    int64_t first = -1;  // of the slots seen, padding left aside
    for (int64_t t = 0; t < job.slots; t++) {
        const bool before =
            places[t] >= 0 && places[t] <= rows.most && places[t] > rows.least - job.window;
        const int64_t own = t - (job.slots - job.rows);  // as a row
        const bool padding = own >= 0 && job.query_places[batch * job.rows + own] < 0;
        const bool grouped = own >= 0 && job.groups && job.groups[batch * job.rows + own] >= 0;
        if (!before && !padding && !grouped) continue;
        if (t < span.begin) span.begin = t;
        span.end = t + 1;
        if (first < 0 && places[t] >= 0) first = t;
    }
    if (job.aligned && first >= 0) {
        const int64_t place = places[first] - (first - span.begin);  // of `begin`, if it had one
        span.lead = (place % kGroup + kGroup) % kGroup;
    }
    return span;
}

// What one task holds: rows of the same key head, from `first` of heads * rows on.
struct Block {
    int64_t batch, kv_head, first, count;
};

SFUMATO_INLINE int64_t row_in(const Attention& job, const Block& block, int64_t i) {
    return (block.first + i) % job.rows;
}

SFUMATO_INLINE int64_t head_in(const Attention& job, const Block& block, int64_t i) {
    return block.kv_head * (job.heads / job.kv_heads) + (block.first + i) / job.rows;
}

// What a task's rows see of the slots [at, at + count): nothing, all, or one thing and another.
enum class Seen { nothing, some, all };

SFUMATO_INLINE Seen seen(const Attention& job, const Range& rows, const Range& slots, int64_t last) {
    if (!job.slot_places) return Seen::all;
    // Of the newest slots, padding sees itself and a group what may be after it.
    if (last > job.slots - job.rows && (job.groups || rows.padded)) return Seen::some;
    if (slots.least > rows.most || slots.most <= rows.least - job.window) return Seen::nothing;
    const bool whole = !rows.padded && !slots.padded && slots.most <= rows.least &&
                       slots.least > rows.most - job.window;
    return whole ? Seen::all : Seen::some;
}

// Scores of slots that a row does not see become minus infinity. `at` is the slot of the first score.
SFUMATO_INLINE void hide(const Attention& job, int64_t batch, int64_t row, int64_t at, int64_t count,
                         float* scores) {
    const int32_t place = job.query_places[batch * job.rows + row], first = place - job.window;
    const int32_t* slots = job.slot_places + batch * job.slots + at;
    const int64_t oldest = job.slots - job.rows - at;  // the newest slots begin there
    const int32_t* groups = job.groups ? job.groups + batch * job.rows - oldest : nullptr;
    const int32_t group = groups ? groups[oldest + row] : -1;
    for (int64_t t = 0; t < count; t++) {
        const bool before = (slots[t] >= 0) & (slots[t] <= place) & (slots[t] > first);
        const bool grouped = group >= 0 && t >= oldest && groups[t] == group;
        scores[t] = (before | grouped | (t == oldest + row)) ? scores[t] : -INFINITY;
    }
}

// Values of `count` slots as fp32 panels [dim / 16][64][16], `lead` empty places before them; what is
// empty is zero.
inline void value_panels(const Attention& job, const char* from, int64_t lead, int64_t count,
                         float* to) {
    const int64_t size = job.bf16 ? 2 : 4;
    for (int64_t panel = 0; panel < job.dim / kPanel; panel++)
        for (int64_t t = 0; t < kGroup; t++) {
            float* own = to + (panel * kGroup + t) * kPanel;
            const bool filled = t >= lead && t < lead + count;
            const char* row = filled ? from + (t - lead) * job.value_strides[2] * size : nullptr;
            for (int i = 0; i < kPanel; i += kLanes)
                store(own + i, filled ? widened(row, job.bf16, panel * kPanel + i) : vf{});
        }
}

#if defined(SFUMATO_MATRIX_TILES)
// The same as pairs of bf16 slots for registers of matrices, [32][dim][2].
inline void value_pairs(const Attention& job, const char* from, int64_t lead, int64_t count, uint32_t* to) {
    const auto values = [&](int64_t t, int64_t d) {
        const int64_t slot = t - lead;
        return slot < 0 || slot >= count ? vu{} : (vu)widened(from + slot * job.value_strides[2] * 2, true, d);
    };
    for (int64_t t = 0; t < kGroup; t += 2, to += job.dim)
        for (int64_t d = 0; d < job.dim; d += kLanes) store(to + d, (values(t, d) >> 16) | values(t + 1, d));
}

// Shares [rows][64] as the sums of two numbers in bf16, [part][rows][64]: within 2^-17 of each. An infinite value
// becomes NaN where a second part is zero.
SFUMATO_INLINE void split_shares(const float* shares, int64_t rows, uint16_t* to) {
    for (int64_t i = 0; i < rows * kGroup; i += kLanes) {
        const vf share = load<vf>(shares + i);
        uint16_t* rest = to + kQueryRows * kGroup + i;
#if defined(__AVX512BF16__)
        const __m256i high = (__m256i)_mm512_cvtneps_pbh((__m512)share);
        const vf wide = (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16);
        _mm256_storeu_si256((__m256i*)(to + i), high);
        _mm256_storeu_si256((__m256i*)rest, (__m256i)_mm512_cvtneps_pbh((__m512)(share - wide)));
#else
        store_bf16(to + i, share);
        store_bf16(rest, share - load_bf16(to + i));
#endif
    }
}

// N times 16 columns of the weighted values of 16 rows.
template <int N>
SFUMATO_INLINE void mix_columns(MatrixTiles& tiles, const uint16_t* shares, const uint32_t* values, int64_t dim,
                                float* mixed) {
    const auto sums = [&](const auto& work) {
        work.template operator()<0>();
        if constexpr (N > 1) work.template operator()<1>();
        if constexpr (N > 2) work.template operator()<2>();
        if constexpr (N > 3) work.template operator()<3>();
    };
    sums([&]<int I>() { tiles.load<I>(mixed + I * kBlock, 4 * dim); });
    for (int64_t at = 0; at < kGroup; at += kStep) {
        tiles.load<4>(shares + at, 2 * kGroup);
        tiles.load<5>(shares + kQueryRows * kGroup + at, 2 * kGroup);
        sums([&]<int I>() {
            tiles.load<6 + I % 2>(values + at / 2 * dim + I * kBlock, 4 * dim);
            tiles.multiply<I, 4, 6 + I % 2>();
            tiles.multiply<I, 5, 6 + I % 2>();
        });
    }
    sums([&]<int I>() { tiles.store<I>(mixed + I * kBlock, 4 * dim); });
}

// mixed[rows][dim] += shares . values; rows up to the next multiple of 16 get anything.
inline void mix_values(const uint16_t* shares, const uint32_t* values, int64_t rows, int64_t dim, float* mixed) {
    MatrixTiles tiles(kBlock);
    for (int64_t row = 0; row < rows; row += kBlock) {
        int64_t d = 0;
        for (; d + 4 * kBlock <= dim; d += 4 * kBlock)
            mix_columns<4>(tiles, shares + row * kGroup, values + d, dim, mixed + row * dim + d);
        for (; d < dim; d += kBlock)
            mix_columns<1>(tiles, shares + row * kGroup, values + d, dim, mixed + row * dim + d);
    }
}
#endif

// Scores of a row become shares relative to its running maximum; returns what the old sum and the old
// weighted values are multiplied by.
SFUMATO_INLINE float fold(float* scores, float* most, float* sum) {
    vf best = load<vf>(scores);
    for (int i = kLanes; i < kGroup; i += kLanes) best = maximum(best, load<vf>(scores + i));
    const float own = largest_of(best);
    const float top = own > *most ? own : *most;
    bool nothing = top == -INFINITY;  // seen so far; NaN, which no comparison finds, is something
    for (int i = 0; i < kGroup && nothing; i++) nothing = scores[i] == -INFINITY;
    if (nothing) {
        memset(scores, 0, sizeof(float) * kGroup);
        return 1.0f;
    }
    vf whole{};
    for (int i = 0; i < kGroup; i += kLanes) {
        const vf s = load<vf>(scores + i);
        const vf share = select(s == -INFINITY, vf{}, exponential(s - top));
        whole += share;
        store(scores + i, share);
    }
    const float shrink = *most == -INFINITY ? 0.0f : exponential(all(*most - top))[0];
    *sum = *sum * shrink + total(whole);
    *most = top;
    return shrink;
}

template <class Kind>
struct Rooms {
    typename Kind::Activation* queries;  // [kQueryRows][dim]
    float *scores, *mixed, *values, *most, *sum;
    uint32_t* words;
    uint16_t* parts;  // of shares, two; where registers of matrices mix values
};

// Some slots that stand in one group of 64, behind `lead` places that none of the task's rows sees.
struct Slots {
    int64_t at, count, lead;
    Seen seen;
};

// Where a block's keys or values begin at a slot.
SFUMATO_INLINE const char* at_slot(const Attention& job, const void* base, const int64_t* strides,
                                   const Block& block, int64_t at) {
    const int64_t place = block.batch * strides[0] + block.kv_head * strides[1] + at * strides[2];
    return (const char*)base + place * (job.bf16 ? 2 : 4);
}

// Scores [rows][64] of the slots; places without a slot are minus infinity.
template <class Kind>
inline void score(const Attention& job, const Block& block, const Slots& slots, int64_t lda,
                  const Rooms<Kind>& rooms) {
    Matrix keys = {};
    keys.format = job.bf16 ? Format::bf16_rows : Format::f32_rows;
    keys.data = at_slot(job, job.keys, job.key_strides, block, slots.at);
    keys.scale = keys.value_scale = 1.0f;
    keys.n = slots.count;
    keys.k = job.dim;
    keys.stride = job.key_strides[2];
    group_product<Kind>(rooms.queries, lda, block.count, keys, 0, rooms.scores, rooms.words);
    for (int64_t i = 0; i < block.count; i++) {
        float* scores = rooms.scores + i * kGroup;
        if (slots.seen == Seen::some)
            hide(job, block.batch, row_in(job, block, i), slots.at, slots.count, scores);
        if (slots.lead) memmove(scores + slots.lead, scores, sizeof(float) * slots.count);
        for (int64_t t = 0; t < slots.lead; t++) scores[t] = -INFINITY;
        for (int64_t t = slots.lead + slots.count; t < kGroup; t++) scores[t] = -INFINITY;
    }
}

template <class Kind>
inline void take_slots(const Attention& job, const Block& block, const Slots& slots, int64_t lda,
                       const Rooms<Kind>& rooms) {
    score<Kind>(job, block, slots, lda, rooms);
    for (int64_t i = 0; i < block.count; i++) {
        const float shrink = fold(rooms.scores + i * kGroup, rooms.most + i, rooms.sum + i);
        if (shrink == 1.0f) continue;
        for (int64_t d = 0; d < job.dim; d += kLanes) {
            float* mixed = rooms.mixed + i * job.dim + d;
            store(mixed, load<vf>(mixed) * shrink);
        }
    }
    const char* values = at_slot(job, job.values, job.value_strides, block, slots.at);
#if defined(SFUMATO_MATRIX_TILES)
    if constexpr (kInBlocks<Kind>) {
        value_pairs(job, values, slots.lead, slots.count, (uint32_t*)rooms.values);
        split_shares(rooms.scores, block.count, rooms.parts);
        mix_values(rooms.parts, (const uint32_t*)rooms.values, block.count, job.dim, rooms.mixed);
        return;
    }
#endif
    value_panels(job, values, slots.lead, slots.count, rooms.values);
    for (int64_t panel = 0; panel < job.dim / kPanel; panel++) {
        const uint32_t* words = (const uint32_t*)(rooms.values + panel * kGroup * kPanel);
        run_panels<FloatWeights, 1>(rooms.scores, kGroup, block.count, kGroup, &words,
                                    rooms.mixed + panel * kPanel, job.dim);
    }
}

// The places of a task's rows.
SFUMATO_INLINE Range rows_range(const Attention& job, const Block& block) {
    Range range = {INT32_MAX, -1, false};
    for (int64_t i = 0; job.slot_places && i < block.count; i++) {
        const Range one = range_of(job.query_places + block.batch * job.rows + row_in(job, block, i), 1);
        range.padded |= one.padded;
        if (one.least < range.least) range.least = one.least;
        if (one.most > range.most) range.most = one.most;
    }
    return range;
}

// A row's sums between parts of the slots.
SFUMATO_INLINE float* state_of(const Attention& job, const Block& block, int64_t i) {
    const int64_t line = (block.batch * job.heads + head_in(job, block, i)) * job.rows + row_in(job, block, i);
    return job.state + line * (job.dim + 2);
}

template <class Kind>
inline void begin_sums(const Attention& job, const Block& block, const Rooms<Kind>& rooms) {
    const int64_t dim = job.dim;
    for (int64_t i = 0; i < block.count; i++) {
        rooms.most[i] = -INFINITY;
        rooms.sum[i] = 0;
    }
    memset(rooms.mixed, 0, sizeof(float) * block.count * dim);
    if (!job.state || job.first) return;
    for (int64_t i = 0; i < block.count; i++) {
        const float* from = state_of(job, block, i);
        memcpy(rooms.mixed + i * dim, from, sizeof(float) * dim);
        rooms.sum[i] = from[dim];
        rooms.most[i] = from[dim + 1];
    }
}

template <class Kind>
inline void keep_sums(const Attention& job, const Block& block, const Rooms<Kind>& rooms) {
    const int64_t dim = job.dim;
    for (int64_t i = 0; i < block.count; i++) {
        float* to = state_of(job, block, i);
        memcpy(to, rooms.mixed + i * dim, sizeof(float) * dim);
        to[dim] = rooms.sum[i];
        to[dim + 1] = rooms.most[i];
    }
}

template <class Kind>
inline void run_block(const Attention& job, const Block& block, const Span& span,
                      const Rooms<Kind>& rooms) {
    const int64_t size = job.bf16 ? 2 : 4, dim = job.dim;
    const int64_t lda = distance<Kind>(block.count, dim);
    const auto query_at = [&](int64_t i) {
        return (const char*)job.queries +
               (block.batch * job.query_strides[0] + head_in(job, block, i) * job.query_strides[1] +
                row_in(job, block, i) * job.query_strides[2]) * size;
    };
    if constexpr (kInBlocks<Kind>) pack_rows(block.count, dim, block.count > 1, rooms.queries, query_at);
    for (int64_t i = 0; i < block.count && !kInBlocks<Kind>; i++) {
        if constexpr (__is_same(Kind, PairRows))
            memcpy(rooms.queries + i * lda, query_at(i), dim * 2);
        else
            for (int64_t d = 0; d < dim; d += kLanes)
                store((float*)rooms.queries + i * lda + d, widened(query_at(i), job.bf16, d));
    }
    begin_sums(job, block, rooms);
    const Range rows = rows_range(job, block);
    for (int64_t at = span.begin, lead = span.lead; at < span.end; lead = 0) {
        const int64_t left = span.end - at, room = kGroup - lead;
        Slots slots = {at, room < left ? room : left, lead, Seen::all};
        if (job.slot_places) {
            const Range range = range_of(job.slot_places + block.batch * job.slots + at, slots.count);
            slots.seen = seen(job, rows, range, at + slots.count);
        }
        if (slots.seen != Seen::nothing) take_slots<Kind>(job, block, slots, lda, rooms);
        at += slots.count;
    }
    if (job.state && !job.last) {
        keep_sums(job, block, rooms);
        return;
    }
    for (int64_t i = 0; i < block.count; i++) {
        const int64_t place =
            ((block.batch * job.rows + row_in(job, block, i)) * job.heads + head_in(job, block, i)) * dim;
        const vf whole = all(rooms.sum[i]);
        for (int64_t d = 0; d < dim; d += kLanes) {
            const vf value = load<vf>(rooms.mixed + i * dim + d) / whole;  // seeing nothing: NaN
            if (job.bf16)
                store_bf16((uint16_t*)job.out + place + d, value);
            else
                store((float*)job.out + place + d, value);
        }
    }
}

SFUMATO_INLINE double operations(const Attention& job) {
    return 4.0 * job.batch * job.heads * job.rows * job.slots * job.dim;
}

template <class Kind>
inline void attention_of(const Attention& job) {
    const int64_t heads = job.heads / job.kv_heads, lines = heads * job.rows;
    const int64_t blocks = (lines + kQueryRows - 1) / kQueryRows, dim = job.dim;
    Span* spans = (Span*)scratch(0, (int64_t)sizeof(Span) * job.batch);
    for (int64_t batch = 0; batch < job.batch; batch++) spans[batch] = span_of(job, batch);
#pragma omp parallel num_threads(worth_waking(operations(job), 1e6, job.threads))
    {
        Rooms<Kind> rooms;
        rooms.scores = (float*)scratch(2, sizeof(float) * kQueryRows * kGroup);
        rooms.words = (uint32_t*)scratch(3, sizeof(uint32_t) * kRoomWords);
        rooms.parts = kInBlocks<Kind> ? (uint16_t*)scratch(5, 2 * sizeof(uint16_t) * kQueryRows * kGroup) : nullptr;
        float* room = (float*)scratch(4, sizeof(float) * (2 * kQueryRows * dim + kGroup * dim + 2 * kQueryRows));
        rooms.queries = (typename Kind::Activation*)room;
        rooms.mixed = room + kQueryRows * dim;
        rooms.values = rooms.mixed + kQueryRows * dim;
        rooms.most = rooms.values + kGroup * dim;
        rooms.sum = rooms.most + kQueryRows;
#pragma omp for schedule(dynamic, 1)
        for (int64_t task = 0; task < job.batch * job.kv_heads * blocks; task++) {
            const int64_t first = task % blocks * kQueryRows;
            const Block block = {task / blocks / job.kv_heads, task / blocks % job.kv_heads, first,
                                 lines - first < kQueryRows ? lines - first : kQueryRows};
            run_block<Kind>(job, block, spans[block.batch], rooms);
        }
    }
}

inline void attention(const Attention& job) {
    if (!job.bf16)
        attention_of<FloatWeights>(job);
    else if (kPairedActivations)
        attention_of<Halves>(job);
    else
        attention_of<FloatRows>(job);
}

}  // namespace sfumato::SFUMATO_ISA
