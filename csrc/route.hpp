// The router's choice: softmax over the experts, the best few, their shares made to sum to one, times
// each expert's own scale. Of equal scores the expert with the lower number comes first.
#pragma once

#include <cmath>

#include "tile.hpp"

namespace sfumato::SFUMATO_ISA {

inline void route_row(const Route& job, int64_t row, float* left) {
    const float* scores = job.scores + row * job.experts;
    int64_t* chosen = job.chosen + row * job.slots;
    float* shares = job.shares + row * job.slots;
    memcpy(left, scores, sizeof(float) * job.experts);
    float sum = 0;
    for (int64_t slot = 0; slot < job.slots; slot++) {
        int64_t best = 0;
        for (int64_t e = 1; e < job.experts; e++)
            if (left[e] > left[best]) best = e;
        chosen[slot] = best;
        left[best] = -INFINITY;
        // Relative to the best of all: the softmax's own sum falls out when the shares are divided.
        shares[slot] = exponential(all(scores[best] - scores[chosen[0]]))[0];
        sum += shares[slot];
    }
    for (int64_t slot = 0; slot < job.slots; slot++)
        shares[slot] = shares[slot] / sum * job.scales[chosen[slot]];
}

inline void route(const Route& job) {
    float* left = (float*)scratch(0, sizeof(float) * job.experts);
    for (int64_t row = 0; row < job.rows; row++) route_row(job, row, left);
}

}  // namespace sfumato::SFUMATO_ISA
