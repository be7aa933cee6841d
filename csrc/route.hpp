// The router's choice: softmax over the experts, the best few, their shares made to sum to one, times
// each expert's own scale. Of equal scores the expert with the lower number comes first. A score that
// is NaN makes all shares of its row NaN.
#pragma once

#include <cmath>

#include "tile.hpp"

namespace sfumato::SFUMATO_ISA {

inline void route_row(const Route& job, int64_t row, float* left, uint8_t* taken) {
    const float* scores = job.scores + row * job.experts;
    int64_t* chosen = job.chosen + row * job.slots;
    float* shares = job.shares + row * job.slots;
    memcpy(left, scores, sizeof(float) * job.experts);
    memset(taken, 0, job.experts);
    bool numbers = true;
    for (int64_t e = 0; e < job.experts; e++) numbers &= scores[e] == scores[e];
    float sum = 0;
    for (int64_t slot = 0; slot < job.slots; slot++) {
        int64_t best = -1;
        for (int64_t e = 0; e < job.experts; e++)
            if (!taken[e] && (best < 0 || left[e] > left[best])) best = e;
        chosen[slot] = best;
        taken[best] = 1;
        // Relative to the best of all: the softmax's own sum falls out when the shares are divided.
        const float below = scores[best] - scores[chosen[0]];
        shares[slot] = slot == 0 ? 1.0f : below == -INFINITY ? 0.0f : exponential(all(below))[0];
        sum += shares[slot];
    }
    for (int64_t slot = 0; slot < job.slots; slot++)
        shares[slot] = numbers ? shares[slot] / sum * job.scales[chosen[slot]] : NAN;
}

inline void route(const Route& job) {
    float* left = (float*)scratch(0, (sizeof(float) + 1) * job.experts);
    uint8_t* taken = (uint8_t*)(left + job.experts);
    for (int64_t row = 0; row < job.rows; row++) route_row(job, row, left, taken);
}

}  // namespace sfumato::SFUMATO_ISA
