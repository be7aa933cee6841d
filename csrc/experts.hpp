// The mixture of experts as one operation: rows sorted by expert; for some rows of one expert the
// gate, the value, the activation and the way down are one task, without a barrier between them.
// A row's parts are weighted and summed in the order of its slots, as the reference does.
#pragma once

#include "linear.hpp"

namespace sfumato::SFUMATO_ISA {

constexpr int64_t kTaskRows = 64;

struct Task {
    int64_t expert, begin, count;  // places in the sorted order
};

// Sort the (row, slot) numbers by expert, stably, and cut what each expert has into tasks.
inline int64_t sort_by_expert(const Experts& job, int64_t* order, int64_t* starts, Task* tasks) {
    const int64_t total = job.x.count * job.slots;
    memset(starts, 0, sizeof(int64_t) * (job.experts + 1));
    for (int64_t i = 0; i < total; i++) starts[job.chosen[i] + 1]++;
    for (int64_t e = 0; e < job.experts; e++) starts[e + 1] += starts[e];
    for (int64_t i = 0; i < total; i++) order[starts[job.chosen[i]]++] = i;
    int64_t count = 0;
    for (int64_t e = 0, begin = 0; e < job.experts; begin = starts[e++])
        for (int64_t at = begin; at < starts[e]; at += kTaskRows)
            tasks[count++] = {e, at, starts[e] - at < kTaskRows ? starts[e] - at : kTaskRows};
    return count;
}

// Rows of `x` gathered by the order of a task, as the kind's activations, without gaps. Of rows in 8 bits
// the records of all rows are there.
template <class Kind>
inline void gather(const Experts& job, const int64_t* order, const Task& task, const uint32_t* records,
                   typename Kind::Activation* to) {
    const int64_t width = job.x.width, words = Kind::words(width);
    if constexpr (kInBlocks<Kind>) {
        pack_rows(task.count, width, task.count > 1, to, [&](int64_t i) {
            return (const uint16_t*)job.x.data + order[task.begin + i] / job.slots * job.x.stride;
        });
        return;
    }
    for (int64_t i = 0; i < task.count; i++) {
        const int64_t row = order[task.begin + i] / job.slots;
        if constexpr (kIsNarrow<Kind>) {
            memcpy(to + i * words, records + row * words, sizeof(uint32_t) * words);
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

// The activations between a task's two products, rounded to their own dtype, whatever the kind.
template <class Kind>
inline const typename Kind::Activation* between_products(const Rows& between, bool bf16, uint32_t* records) {
    typedef typename Kind::Activation Activation;
    if (bf16 && !between.bf16)
        for (int64_t i = 0; i < between.count * between.width; i++)
            ((float*)between.data)[i] = widen(narrow(((float*)between.data)[i]));
    if constexpr (kIsNarrow<Kind>) {
        for (int64_t i = 0; i < between.count; i++)
            narrow_row((const float*)between.data + i * between.width, false, between.width,
                       offset_of(true), records + i * Kind::words(between.width));
        return records;
    } else if constexpr (kInBlocks<Kind>) {
        pack_rows(between.count, between.width, between.count > 1, records,
                  [&](int64_t i) { return (const uint16_t*)between.data + i * between.width; });
        return records;
    } else {
        return (const Activation*)between.data;
    }
}

template <class Kind>
inline void run_task(const Experts& job, const int64_t* order, const Task& task, const uint32_t* records,
                     float* parts) {
    typedef typename Kind::Activation Activation;
    const Matrix &up = job.gate_up[task.expert], &down = job.down[task.expert];
    const int64_t width = job.x.width, inner = down.k;
    float* c = (float*)scratch(2, sizeof(float) * kTaskRows * kGroup);
    uint32_t* room = (uint32_t*)scratch(3, sizeof(uint32_t) * kRoomWords);
    Activation* x = (Activation*)scratch(4, sizeof(float) * kTaskRows * (width + kStep));
    void* h = scratch(5, sizeof(float) * kTaskRows * inner);
    gather<Kind>(job, order, task, records, x);
    const Rows between = {h, __is_same(Kind, Halves), task.count, inner, inner};
    const Linear first = {job.x, up, between, true, 1};
    for (int64_t group = 0; group < (up.n + kGroup - 1) / kGroup; group++) {
        group_product<Kind>(x, distance<Kind>(task.count, width), task.count, up, group, c, room);
        finish_group(first, c, 0, task.count, group);
    }
    const bool again = kIsNarrow<Kind> || kInBlocks<Kind>;
    uint32_t* turned = again ? (uint32_t*)scratch(6, sizeof(float) * kTaskRows * (inner + kStep)) : nullptr;
    const Activation* active = between_products<Kind>(between, job.x.bf16, turned);
    for (int64_t group = 0; group < (down.n + kGroup - 1) / kGroup; group++) {
        group_product<Kind>(active, distance<Kind>(task.count, inner), task.count, down, group, c, room);
        const int64_t left = down.n - group * kGroup, own = left < kGroup ? left : kGroup;
        for (int64_t i = 0; i < task.count; i++) {
            const int64_t number = order[task.begin + i];
            const float share = job.shares[number] * down.scale;
            float* to = parts + number * down.n + group * kGroup;
            const Rows part = {to, false, 1, own, own};
            put(part, 0, 0, c + i * kGroup, own, share);
        }
    }
}

// The sum of a row's parts, in the order of its slots; the first part's memory is used up.
SFUMATO_INLINE void mix_parts(const Experts& job, float* parts, int64_t row, int64_t width) {
    for (int64_t s = 1; s < job.slots; s++) {
        const float* part = parts + s * width;
        int64_t i = 0;
        for (; i + kLanes <= width; i += kLanes)
            store(parts + i, load<vf>(parts + i) + load<vf>(part + i));
        for (; i < width; i++) parts[i] += part[i];
    }
    put(job.out, row, 0, parts, width, 1.0f);
}

template <class Kind>
inline void experts_of(const Experts& job) {
    const int64_t total = job.x.count * job.slots, width = job.down->n;
    const int64_t most = total / kTaskRows + (job.experts < total ? job.experts : total);
    int64_t* order = (int64_t*)scratch(
        0, (int64_t)(sizeof(int64_t) * (total + job.experts + 1) + sizeof(Task) * most));
    int64_t* starts = order + total;
    Task* tasks = (Task*)(starts + job.experts + 1);
    const int64_t words = kIsNarrow<Kind> ? job.x.count * Kind::words(job.x.width) : 0;
    float* parts = (float*)scratch(1, (int64_t)sizeof(float) * (total * width + words));
    uint32_t* records = (uint32_t*)(parts + total * width);
    if constexpr (kIsNarrow<Kind>) narrow_rows(job.x, offset_of(true), job.threads, records);
    const int64_t count = sort_by_expert(job, order, starts, tasks);
#pragma omp parallel num_threads(job.threads)
    {
#pragma omp for schedule(dynamic, 1)
        for (int64_t t = 0; t < count; t++) run_task<Kind>(job, order, tasks[t], records, parts);
#pragma omp for schedule(static)
        for (int64_t row = 0; row < job.x.count; row++)
            mix_parts(job, parts + row * job.slots * width, row, width);
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
