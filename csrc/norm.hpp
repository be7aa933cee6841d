// Root-mean-square norms, alone, with a residual, and with rotary positions for attention's heads.
//
// Arithmetic is fp32 and rounded once, on the way out. Sums of squares go by kLanes running sums,
// added in a fixed order; error at most (width / kLanes + kLanes) * 2^-24, relatively.
#pragma once

#include <cmath>

#include "tile.hpp"

namespace sfumato::SFUMATO_ISA {

// `width` values from memory as fp32, in place if they are so already.
SFUMATO_INLINE const float* floats(const void* from, bool bf16, int64_t width, float* room) {
    if (!bf16) return (const float*)from;
    widen_row((const uint16_t*)from, width, room);
    return room;
}

SFUMATO_INLINE float inverse_rms(const float* x, int64_t width, float eps) {
    vf sums{};
    int64_t i = 0;
    for (; i + kLanes <= width; i += kLanes) {
        const vf some = load<vf>(x + i);
        sums = multiply_add(some, some, sums);
    }
    float sum = total(sums);
    for (; i < width; i++) sum += x[i] * x[i];
    return 1.0f / sqrtf(sum / (float)width + eps);
}

SFUMATO_INLINE const void* row_of(const Rows& rows, int64_t row) {
    return (const char*)rows.data + row * rows.stride * (rows.bf16 ? 2 : 4);
}

inline void norm_row(const Norm& job, int64_t row, float* room) {
    const int64_t width = job.x.width;
    const float* x = floats(row_of(job.x, row), job.x.bf16, width, room);
    const float factor = inverse_rms(x, width, job.eps);
    const float* add = nullptr;
    if (job.residual.data)
        add = floats(row_of(job.residual, row), job.residual.bf16, width, room + width);
    float* out = job.out.bf16 ? room : (float*)row_of(job.out, row);
    int64_t i = 0;
    for (; i + kLanes <= width; i += kLanes) {
        vf value = load<vf>(x + i) * factor;
        if (job.weight) value *= load<vf>(job.weight + i);
        if (add) value += load<vf>(add + i);
        store(out + i, value * job.scale);
    }
    for (; i < width; i++) {
        float value = x[i] * factor;
        if (job.weight) value *= job.weight[i];
        if (add) value += add[i];
        out[i] = value * job.scale;
    }
    if (job.out.bf16) put(job.out, row, 0, out, width, 1.0f);
}

constexpr double kWorthOfNorms = 16384;  // values: some microseconds. One row has not so many.

inline void norm(const Norm& job) {
#pragma omp parallel num_threads(worth_waking(job.x.count * job.x.width, kWorthOfNorms, job.threads))
    {
        float* room = (float*)scratch(2, 2 * sizeof(float) * job.x.width);
#pragma omp for schedule(static)
        for (int64_t row = 0; row < job.x.count; row++) norm_row(job, row, room);
    }
}

inline void head_row(const Heads& job, int64_t position, int64_t head, float* room) {
    const int64_t size = job.bf16 ? 2 : 4, dim = job.dim, half = dim / 2;
    const char* from = (const char*)job.x + ((position - job.begin) * job.stride + head * dim) * size;
    const float* x = floats(from, job.bf16, dim, room);
    const float factor = inverse_rms(x, dim, job.eps);
    float* out = room + dim;
    for (int64_t i = 0; i < dim; i++) out[i] = x[i] * factor;
    if (job.weight)
        for (int64_t i = 0; i < dim; i++) out[i] *= job.weight[i];
    if (job.cosines) {
        const float *cosines = job.cosines + position * dim, *sines = job.sines + position * dim;
        for (int64_t i = 0; i < half; i++) {
            const float first = out[i], second = out[i + half];
            out[i] = first * cosines[i] - second * sines[i];
            out[i + half] = second * cosines[i + half] + first * sines[i + half];
        }
    }
    const int64_t batch = position / job.positions, place = position % job.positions;
    char* to = (char*)job.out + ((batch * job.heads + head) * job.positions + place) * dim * size;
    if (!job.bf16)
        memcpy(to, out, sizeof(float) * dim);
    else
        put({to, true, 1, dim, dim}, 0, 0, out, dim, 1.0f);
}

inline void heads(const Heads& job) {
    const int64_t values = (job.end - job.begin) * job.heads * job.dim;
#pragma omp parallel num_threads(worth_waking(values, kWorthOfNorms, job.threads))
    {
        float* room = (float*)scratch(2, 2 * sizeof(float) * job.dim);
#pragma omp for schedule(static)
        for (int64_t position = job.begin; position < job.end; position++)
            for (int64_t head = 0; head < job.heads; head++) head_row(job, position, head, room);
    }
}

}  // namespace sfumato::SFUMATO_ISA
