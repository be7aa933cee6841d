// Attention of many rows to many slots without writing the scores: 64 slots at a time, with a running
// maximum and sum for each row.
//
// The query heads that share a key head are rows of one product. A row's groups of slots begin at the
// first slot that any row of its batch entry may see, so padding before it changes no bit. Under a
// mask that differs by rows, a row's last bits hang on what the others of its entry see.
#pragma once

#include "head.hpp"

namespace sfumato::SFUMATO_ISA {

constexpr int64_t kQueryRows = 96;  // rows of one task; a multiple of every tile's rows

struct Span {
    int64_t begin, end;  // slots that some row of the batch entry sees
};

SFUMATO_INLINE Span seen(const Attention& job, int64_t batch) {
    if (!job.mask) return {0, job.slots};
    Span span = {job.slots, 0};
    for (int64_t row = 0; row < job.rows; row++) {
        const uint8_t* mask = job.mask + batch * job.mask_strides[0] + row * job.mask_strides[1];
        int64_t first = 0, last = job.slots;
        while (first < span.begin && !mask[first]) first++;
        while (last > span.end && !mask[last - 1]) last--;
        if (first < span.begin) span.begin = first;
        if (last > span.end) span.end = last;
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

// Values of some slots as fp32 panels [dim / 16][slots][16]; slots beyond the last are zero.
inline void value_panels(const Attention& job, const char* from, int64_t count, float* to) {
    for (int64_t panel = 0; panel < job.dim / kPanel; panel++)
        for (int64_t t = 0; t < kGroup; t++) {
            float* own = to + (panel * kGroup + t) * kPanel;
            const char* row = from + t * job.value_strides[2] * (job.bf16 ? 2 : 4);
            for (int i = 0; i < kPanel; i += kLanes)
                store(own + i, t < count ? widened(row, job.bf16, panel * kPanel + i) : vf{});
        }
}

// Scores of a row become shares relative to its running maximum; returns what the old sum and the old
// weighted values are multiplied by.
SFUMATO_INLINE float fold(float* scores, float* most, float* sum) {
    vf best = load<vf>(scores);
    for (int i = kLanes; i < kGroup; i += kLanes) best = maximum(best, load<vf>(scores + i));
    float top = *most;
    for (int i = 0; i < kLanes; i++) top = best[i] > top ? best[i] : top;
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
};

template <class Kind>
inline void take_slots(const Attention& job, const Block& block, const Matrix& keys, int64_t group,
                       int64_t begin, int64_t lda, const Rooms<Kind>& rooms) {
    const int64_t size = job.bf16 ? 2 : 4, at = begin + group * kGroup;
    const int64_t left = keys.n - group * kGroup, own = left < kGroup ? left : kGroup;
    group_product<Kind>(rooms.queries, lda, block.count, keys, group, rooms.scores, rooms.words);
    const char* values = (const char*)job.values + (block.batch * job.value_strides[0] +
                                                    block.kv_head * job.value_strides[1] +
                                                    at * job.value_strides[2]) * size;
    value_panels(job, values, own, rooms.values);
    for (int64_t i = 0; i < block.count; i++) {
        float* scores = rooms.scores + i * kGroup;
        for (int64_t t = own; t < kGroup; t++) scores[t] = -INFINITY;
        if (job.mask) {
            const uint8_t* mask = job.mask + block.batch * job.mask_strides[0] +
                                  row_in(job, block, i) * job.mask_strides[1] + at;
            for (int64_t t = 0; t < own; t++) scores[t] = mask[t] ? scores[t] : -INFINITY;
        }
        const float shrink = fold(scores, rooms.most + i, rooms.sum + i);
        if (shrink == 1.0f) continue;
        for (int64_t d = 0; d < job.dim; d += kLanes) {
            float* mixed = rooms.mixed + i * job.dim + d;
            store(mixed, load<vf>(mixed) * shrink);
        }
    }
    for (int64_t panel = 0; panel < job.dim / kPanel; panel++) {
        const uint32_t* words = (const uint32_t*)(rooms.values + panel * kGroup * kPanel);
        run_panels<FloatWeights, 1>(rooms.scores, kGroup, block.count, kGroup, &words,
                                    rooms.mixed + panel * kPanel, job.dim);
    }
}

template <class Kind>
inline void run_block(const Attention& job, const Block& block, const Span& span,
                      const Rooms<Kind>& rooms) {
    const int64_t size = job.bf16 ? 2 : 4, dim = job.dim;
    const int64_t lda = Kind::per_activation == 2 ? dim / 2 : dim;
    for (int64_t i = 0; i < block.count; i++) {
        const char* from = (const char*)job.queries +
                           (block.batch * job.query_strides[0] + head_in(job, block, i) * job.query_strides[1] +
                            row_in(job, block, i) * job.query_strides[2]) * size;
        if constexpr (Kind::per_activation == 2)
            memcpy(rooms.queries + i * lda, from, dim * 2);
        else
            for (int64_t d = 0; d < dim; d += kLanes)
                store(rooms.queries + i * lda + d, widened(from, job.bf16, d));
        rooms.most[i] = -INFINITY;
        rooms.sum[i] = 0;
    }
    memset(rooms.mixed, 0, sizeof(float) * block.count * dim);
    Matrix keys = {};
    keys.format = job.bf16 ? Format::bf16_rows : Format::f32_rows;
    keys.data = (const char*)job.keys + (block.batch * job.key_strides[0] + block.kv_head * job.key_strides[1] +
                                         span.begin * job.key_strides[2]) * size;
    keys.scale = keys.value_scale = 1.0f;
    keys.n = span.end - span.begin;
    keys.k = dim;
    keys.stride = job.key_strides[2];
    for (int64_t group = 0; group < (keys.n + kGroup - 1) / kGroup; group++)
        take_slots<Kind>(job, block, keys, group, span.begin, lda, rooms);
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

template <class Kind>
inline void attention_of(const Attention& job) {
    const int64_t heads = job.heads / job.kv_heads, lines = heads * job.rows;
    const int64_t blocks = (lines + kQueryRows - 1) / kQueryRows, dim = job.dim;
    Span* spans = (Span*)scratch(0, (int64_t)sizeof(Span) * job.batch);
    for (int64_t batch = 0; batch < job.batch; batch++) spans[batch] = seen(job, batch);
#pragma omp parallel num_threads(job.threads)
    {
        Rooms<Kind> rooms;
        rooms.scores = (float*)scratch(2, sizeof(float) * kQueryRows * kGroup);
        rooms.words = (uint32_t*)scratch(3, sizeof(uint32_t) * kRoomWords);
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
        attention_of<PairRows>(job);
    else
        attention_of<FloatRows>(job);
}

}  // namespace sfumato::SFUMATO_ISA
