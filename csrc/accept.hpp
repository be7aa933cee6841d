// Which positions keep what was sampled for them: the surest first, while the entropies before them sum up
// to the bound at most. Of equal entropies the earlier position comes first, NaN comes last and is refused.
#pragma once

#include "tile.hpp"

namespace sfumato::SFUMATO_ISA {

// Whole numbers that stand in the order of the entropies; both zeros are one.
inline uint32_t rank_of(float entropy) {
    if (entropy != entropy) return 0xffffffffu;
    uint32_t bits;
    const float one_zero = entropy == 0 ? 0.0f : entropy;
    memcpy(&bits, &one_zero, 4);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// Sorts `count` keys by merging runs twice as long each time; returns which of the two holds the result.
inline uint64_t* sorted(uint64_t* from, uint64_t* to, int64_t count) {
    for (int64_t run = 1; run < count; run *= 2) {
        for (int64_t begin = 0; begin < count; begin += 2 * run) {
            const int64_t middle = begin + run < count ? begin + run : count;
            const int64_t end = middle + run < count ? middle + run : count;
            int64_t a = begin, b = middle;
            for (int64_t i = begin; i < end; i++)
                to[i] = b == end || (a < middle && from[a] <= from[b]) ? from[a++] : from[b++];
        }
        uint64_t* other = from;
        from = to;
        to = other;
    }
    return from;
}

inline void accept(const Accept& job) {
    uint64_t* keys = (uint64_t*)scratch(0, 2 * (int64_t)sizeof(uint64_t) * job.length);
    for (int64_t row = 0; row < job.rows; row++) {
        const int64_t first = row * job.length;
        for (int64_t i = 0; i < job.length; i++)
            keys[i] = (uint64_t)rank_of(job.entropies[first + i]) << 32 | (uint64_t)i;
        const uint64_t* order = sorted(keys, keys + job.length, job.length);
        double sum = 0;  // rounded to fp32 at each position, as torch's running sums are
        for (int64_t i = 0; i < job.length; i++) {
            const int64_t at = first + (int64_t)(order[i] & 0xffffffffu);
            sum += job.entropies[at];
            const bool kept = (float)sum - job.entropies[at] <= job.bound;
            job.accepted[at] = kept;
            job.renoised[at] = kept ? job.sampled[at] : job.fresh[at];
        }
    }
}

}  // namespace sfumato::SFUMATO_ISA
