// The mixture of experts as one operation: rows sorted by expert; for some rows of one expert the gate, the value
// and the activation are one task, and the way down of some columns another.
//
// A row's parts are weighted and summed in the order of its slots, as the reference does: they are kept for as many
// columns as memory is given to, so that many rows can share an expert's weights. No bit hangs on how many do.
#pragma once

#include "linear.hpp"

namespace sfumato::SFUMATO_ISA {

// What is held of many rows at once: activations between the two products and parts of their results. On top come what
// fills blocks of 16 rows up, at most 15 rows a task, and with 8-bit activations the rows themselves in 8 bits.
constexpr int64_t kIntermediateBytes = 24 << 20, kPartsBytes = 16 << 20, kGroupBytes = (int64_t)sizeof(float) * kGroup;
// Rows of a task. In blocks they are as many as a linear product takes, so that weights are decoded once for them.
constexpr int64_t kTaskRows = 64;
template <class Kind>
constexpr int64_t kMostTaskRows = kInBlocks<Kind> ? kChunk : kTaskRows;

struct Task {
    int64_t expert, begin, count;  // places in the sorted order
    int64_t offset;                // of its rows among all intermediate ones
};

// How many rows' memory is taken by `count` rows of a kind.
template <class Kind>
SFUMATO_INLINE int64_t padded_rows(int64_t count) {
    return kInBlocks<Kind> && count > 1 ? (count + kBlock - 1) / kBlock * kBlock : count;
}

// Some rows on their way through the experts.
template <class Kind>
struct Mixture {
    typedef typename Kind::Activation Activation;

    Experts job;
    int64_t* order;           // the (row, slot) numbers by expert
    Task* tasks;
    int64_t count;            // of tasks
    const uint32_t* records;  // of all rows, where they are in 8 bits
    Activation* intermediate;
    float* parts;             // [row][slot][columns of a slice]

    int64_t inner() const { return job.down->k; }

    Activation* intermediate_of(const Task& task) const { return intermediate + task.offset * Kind::words(inner()); }

    int64_t groups() const { return (job.down->n + kGroup - 1) / kGroup; }

    // Of the result, in the groups [begin, end).
    int64_t columns(int64_t begin, int64_t end) const {
        const int64_t left = job.down->n - begin * kGroup, own = (end - begin) * kGroup;
        return left < own ? left : own;
    }
};

// Sort the (row, slot) numbers by expert, stably, and cut what each expert has into tasks; returns the rows taken
// between the products.
template <class Kind>
inline int64_t sort_by_expert(Mixture<Kind>& all, int64_t* starts) {
    const Experts& job = all.job;
    const int64_t total = job.x.count * job.slots;
    // Fewer rows where there would be too few tasks for the threads.
    const int64_t fair = (total / (4 * job.threads) + kBlock - 1) / kBlock * kBlock, most = kMostTaskRows<Kind>;
    const int64_t rows = fair < kTaskRows ? kTaskRows : fair < most ? fair : most;
    memset(starts, 0, sizeof(int64_t) * (job.experts + 1));
    for (int64_t i = 0; i < total; i++) starts[job.chosen[i] + 1]++;
    for (int64_t e = 0; e < job.experts; e++) starts[e + 1] += starts[e];
    for (int64_t i = 0; i < total; i++) all.order[starts[job.chosen[i]]++] = i;
    int64_t offset = 0;
    all.count = 0;
    for (int64_t e = 0, begin = 0; e < job.experts; begin = starts[e++])
        for (int64_t at = begin; at < starts[e]; at += rows) {
            const int64_t some = starts[e] - at < rows ? starts[e] - at : rows;
            all.tasks[all.count++] = {e, at, some, offset};
            offset += padded_rows<Kind>(some);
        }
    return offset;
}

// Rows of `x` gathered by the order of a task, as the kind's activations, without gaps.
template <class Kind>
inline void gather(const Mixture<Kind>& all, const Task& task, typename Kind::Activation* to) {
    const Experts& job = all.job;
    const int64_t width = job.x.width, words = Kind::words(width);
    if constexpr (kInBlocks<Kind>) {
        pack_rows(task.count, width, task.count > 1, to, [&](int64_t i) {
            return (const uint16_t*)job.x.data + all.order[task.begin + i] / job.slots * job.x.stride;
        });
        return;
    }
    for (int64_t i = 0; i < task.count; i++) {
        const int64_t row = all.order[task.begin + i] / job.slots;
        if constexpr (kIsNarrow<Kind>) {
            memcpy(to + i * words, all.records + row * words, sizeof(uint32_t) * words);
        } else if constexpr (__is_same(Kind, Halves)) {
            memcpy(to + i * words, (const uint16_t*)job.x.data + row * job.x.stride, width * 2);
        } else {
            int64_t lda;
            float* own = (float*)to + i * width;
            const float* from = as_floats(job.x, row, 1, own, &lda);
            if (from != own) memcpy(own, from, sizeof(float) * width);
        }
    }
}

// Whether what is between the products has to be brought into the kind's form.
template <class Kind>
constexpr bool kConverts = kIsNarrow<Kind> || kInBlocks<Kind>;

// The activations between a task's two products, rounded to their own dtype, whatever the kind; to `to` if they have
// to be converted, or where they are.
template <class Kind>
inline void round_intermediate(const Rows& rows, bool bf16, uint32_t* to) {
    if (bf16 && !rows.bf16)
        for (int64_t i = 0; i < rows.count * rows.width; i++)
            ((float*)rows.data)[i] = widen(narrow(((float*)rows.data)[i]));
    if constexpr (kIsNarrow<Kind>)
        for (int64_t i = 0; i < rows.count; i++)
            narrow_row((const float*)rows.data + i * rows.width, false, rows.width, offset_of(true),
                       to + i * Kind::words(rows.width));
    if constexpr (kInBlocks<Kind>)
        pack_rows(rows.count, rows.width, rows.count > 1, to,
                  [&](int64_t i) { return (const uint16_t*)rows.data + i * rows.width; });
}

// A task's first product and the activation.
template <class Kind>
inline void project_up(const Mixture<Kind>& all, const Task& task) {
    typedef typename Kind::Activation Activation;
    const Matrix& up = all.job.gate_up[task.expert];
    const int64_t rows = kMostTaskRows<Kind>, width = all.job.x.width;
    float* c = (float*)scratch(2, sizeof(float) * rows * kGroup);
    uint32_t* room = (uint32_t*)scratch(3, sizeof(uint32_t) * kRoomWords);
    Activation* x = (Activation*)scratch(4, (int64_t)sizeof(Activation) * rows * Kind::words(width));
    void* h = kConverts<Kind> ? scratch(5, (int64_t)sizeof(float) * rows * all.inner()) : all.intermediate_of(task);
    gather<Kind>(all, task, x);
    const Rows active = {h, __is_same(Kind, Halves), task.count, all.inner(), all.inner()};
    const Linear first = {all.job.x, up, active, true, 1};
    for (int64_t group = 0; group < (up.n + kGroup - 1) / kGroup; group++) {
        group_product<Kind>(x, distance<Kind>(task.count, width), task.count, up, group, c, room);
        finish_group(first, c, 0, task.count, group);
    }
    round_intermediate<Kind>(active, all.job.x.bf16, (uint32_t*)all.intermediate_of(task));
}

// Some groups of a task's second product, weighted.
template <class Kind>
inline void project_down(const Mixture<Kind>& all, const Task& task, int64_t begin, int64_t end) {
    const Matrix& down = all.job.down[task.expert];
    const int64_t columns = all.columns(begin, end), lda = distance<Kind>(task.count, all.inner());
    float* c = (float*)scratch(2, sizeof(float) * kMostTaskRows<Kind> * kGroup);
    uint32_t* room = (uint32_t*)scratch(3, sizeof(uint32_t) * kRoomWords);
    for (int64_t group = begin; group < end; group++) {
        group_product<Kind>(all.intermediate_of(task), lda, task.count, down, group, c, room);
        const int64_t left = down.n - group * kGroup, own = left < kGroup ? left : kGroup;
        for (int64_t i = 0; i < task.count; i++) {
            const int64_t number = all.order[task.begin + i];
            const float share = all.job.shares[number] * down.scale;
            const Rows part = {all.parts + number * columns + (group - begin) * kGroup, false, 1, own, own};
            put(part, 0, 0, c + i * kGroup, own, share);
        }
    }
}

// The sum of a row's parts, in the order of its slots, to its place from `column` on; overwrites the first part.
SFUMATO_INLINE void mix_parts(const Experts& job, float* parts, int64_t row, int64_t column, int64_t width) {
    for (int64_t s = 1; s < job.slots; s++) {
        const float* part = parts + s * width;
        int64_t i = 0;
        for (; i + kLanes <= width; i += kLanes)
            store(parts + i, load<vf>(parts + i) + load<vf>(part + i));
        for (; i < width; i++) parts[i] += part[i];
    }
    put(job.out, row, column, parts, width, 1.0f);
}

// All tasks of a mixture, `slice` groups of the result at a time.
template <class Kind>
inline void run_tasks(const Mixture<Kind>& all, int64_t slice) {
    const Experts& job = all.job;
    const int64_t groups = all.groups();
#pragma omp parallel num_threads(job.threads)
    {
#pragma omp for schedule(dynamic, 1)
        for (int64_t t = 0; t < all.count; t++) project_up<Kind>(all, all.tasks[t]);
        for (int64_t begin = 0; begin < groups; begin += slice) {
            const int64_t end = begin + slice < groups ? begin + slice : groups;
            const int64_t columns = all.columns(begin, end);
#pragma omp for schedule(dynamic, 1)
            for (int64_t t = 0; t < all.count; t++) project_down<Kind>(all, all.tasks[t], begin, end);
#pragma omp for schedule(static)
            for (int64_t row = 0; row < job.x.count; row++)
                mix_parts(job, all.parts + row * job.slots * columns, row, begin * kGroup, columns);
        }
    }
}

// As many rows as memory is held for.
template <class Kind>
inline void mix_rows(const Experts& job) {
    typedef typename Kind::Activation Activation;
    Mixture<Kind> all = {};
    all.job = job;
    const int64_t total = job.x.count * job.slots;
    const int64_t most = total / kTaskRows + (job.experts < total ? job.experts : total);
    all.order = (int64_t*)scratch(0, (int64_t)(sizeof(int64_t) * (total + job.experts + 1) + sizeof(Task) * most));
    int64_t* starts = all.order + total;
    all.tasks = (Task*)(starts + job.experts + 1);
    const int64_t words = sort_by_expert(all, starts) * Kind::words(all.inner());
    const int64_t groups = all.groups(), fit = kPartsBytes / (total * kGroupBytes);
    const int64_t slice = fit < 1 ? 1 : fit < groups ? fit : groups, parts = total * all.columns(0, slice);
    const int64_t narrowed = kIsNarrow<Kind> ? job.x.count * Kind::words(job.x.width) : 0;
    static_assert(sizeof(Activation) == sizeof(float));
    all.intermediate = (Activation*)scratch(1, (int64_t)sizeof(float) * (words + parts + narrowed));
    all.parts = (float*)(all.intermediate + words);
    uint32_t* records = (uint32_t*)(all.parts + parts);
    if constexpr (kIsNarrow<Kind>) narrow_rows(job.x, offset_of(true), job.threads, records);
    all.records = records;
    run_tasks(all, slice);
}

template <class Kind>
inline void experts_of(const Experts& job) {
    const int64_t row = job.slots * Kind::words(job.down->k) * (int64_t)sizeof(uint32_t);
    const int64_t inner = kIntermediateBytes / row, parts = kPartsBytes / (job.slots * kGroupBytes);
    const int64_t least = inner < parts ? inner : parts, fit = least < 1 ? 1 : least;
    const int64_t times = (job.x.count + fit - 1) / fit;
    for (int64_t i = 0, begin = 0; i < times; i++) {
        const int64_t end = job.x.count * (i + 1) / times;
        Experts some = job;
        some.x = rows_from(job.x, begin, end - begin);
        some.out = rows_from(job.out, begin, end - begin);
        some.chosen += begin * job.slots;
        some.shares += begin * job.slots;
        mix_rows<Kind>(some);
        begin = end;
    }
}

inline void experts(const Experts& job) {
    if (narrows(*job.gate_up) && narrows(*job.down))
        experts_of<NarrowRows<true>>(job);
    else if (job.gate_up->format == Format::f32_rows)
        experts_of<FloatWeights>(job);
    else if (paired(job.x, *job.gate_up))
        experts_of<Halves>(job);
    else
        experts_of<FloatRows>(job);
}

}  // namespace sfumato::SFUMATO_ISA
