// out = x . weight^T, with the gated activation of an MLP if asked for.
//
// Error bound: |out - exact| <= 1.1 * (k / 512 + 512) * 2^-24 * sum |x| |w|, before rounding to bf16; by registers of
// matrices 1.1 * (k / 32 + 18) * 2^-24 instead, where no number is subnormal: those they may take for zero.
#pragma once

#include "tile.hpp"

namespace sfumato::SFUMATO_ISA {

// From a group's products c[rows][64] to `out` at `row`: 64 columns, or 32 if gated.
inline void finish_group(const Linear& job, const float* c, int64_t row, int64_t rows,
                         int64_t group) {
    const float scale = job.weight.scale, value_scale = job.weight.value_scale;
    const int64_t left = job.weight.n - group * kGroup, own = left < kGroup ? left : kGroup;
    for (int64_t r = 0; r < rows; r++) {
        const float* from = c + r * kGroup;
        if (!job.gated) {
            put(job.out, row + r, group * kGroup, from, own, scale);
            continue;
        }
        for (int64_t p = 0; p + 2 * kPanel <= own; p += 2 * kPanel) {
            float active[kPanel];
            for (int i = 0; i < kPanel; i += kLanes)
                store(active + i, gelu(load<vf>(from + p + i) * scale) *
                                      (load<vf>(from + p + kPanel + i) * value_scale));
            put(job.out, row + r, group * (kGroup / 2) + p / 2, active, kPanel, 1.0f);
        }
    }
}

template <class Kind>
inline void linear_groups(const Linear& job, const typename Kind::Activation* x, int64_t lda) {
    const int64_t groups = (job.weight.n + kGroup - 1) / kGroup;
    const int64_t together = neighbours(job.x.count, groups, job.threads);
#pragma omp parallel num_threads(job.threads)
    {
        float* c = (float*)scratch(2, sizeof(float) * kChunk * kGroup);
        uint32_t* room = (uint32_t*)scratch(3, sizeof(uint32_t) * kRoomWords);
#pragma omp for schedule(dynamic, together)
        for (int64_t group = 0; group < groups; group++)
            for (int64_t row = 0; row < job.x.count; row += kChunk) {
                const int64_t rows = job.x.count - row < kChunk ? job.x.count - row : kChunk;
                group_product<Kind>(x + row * lda, lda, rows, job.weight, group, c, room);
                finish_group(job, c, row, rows, group);
            }
    }
}

inline void linear(const Linear& job) {
    with_rows(job.x, job.weight, job.threads,
              [&]<class Kind>(const typename Kind::Activation* x, int64_t lda) { linear_groups<Kind>(job, x, lda); });
}

}  // namespace sfumato::SFUMATO_ISA
