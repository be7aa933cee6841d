// The vocabulary head. The logits of 64 ids at a time live in a worker's cache and nowhere else.
//
// Of each group of 64 ids and each row are kept: the maximum m, the sum of e^(s - m), the sum of
// (s - m) e^(s - m), and which id has the maximum. From these, in the order of the ids and in
// double precision: argmax, log of the sum, entropy, and the group that a sample falls into, whose
// logits are then computed once more, to the same bits.
//
// Error bounds: s within 5e-6 (cap / 30) / temperature of the exact softcap of the computed product,
// entropy within 1e-4 nats for 2^18 ids.
#pragma once

#include <cmath>

#include "linear.hpp"

namespace sfumato::SFUMATO_ISA {

constexpr float kFloor = -10.0f;  // terms of the soft embeddings below e^-10 of the largest: dropped
constexpr int64_t kSoftIds = 1024;

struct Scores {
    float cap;
    float scale;  // of the weight
    int64_t own;  // ids in this group
};

// A row of products becomes s; ids beyond the end are far below everything. Returns the maximum.
SFUMATO_INLINE float finish_scores(float* c, const Scores& how, float temperature) {
    const float inside = how.scale / how.cap, outside = how.cap / temperature;
    for (int i = 0; i < kGroup; i += kLanes)
        store(c + i, hyperbolic_tangent(load<vf>(c + i) * inside) * outside);
    for (int64_t i = how.own; i < kGroup; i++) c[i] = -3e38f;
    vf most = load<vf>(c);
    for (int i = kLanes; i < kGroup; i += kLanes) most = maximum(most, load<vf>(c + i));
    return largest_of(most);
}

// e[i] = e^(c[i] - m), zero beyond the group's own ids.
SFUMATO_INLINE void exponentials(const float* c, float m, int64_t own, float* e) {
    for (int i = 0; i < kGroup; i += kLanes) store(e + i, exponential(load<vf>(c + i) - m));
    for (int64_t i = own; i < kGroup; i++) e[i] = 0;
}

struct Summary {
    float sum, moment;
    int32_t best;
};

SFUMATO_INLINE Summary summarise(const float* c, float m, int64_t own) {
    float e[kGroup];
    exponentials(c, m, own, e);
    vf sum{}, moment{};
    for (int i = 0; i < kGroup; i += kLanes) {
        const vf some = load<vf>(e + i);
        const vf distance = load<vf>(c + i) - m;
        sum += some;
        moment = multiply_add(some, select(some > 0.0f, distance, vf{}), moment);
    }
    uint64_t equal = 0, none = 0;  // a bit for each id: the maximum's, and those that are no number
    for (int i = 0; i < kGroup; i += kLanes) {
        const vf own = load<vf>(c + i);
        equal |= (uint64_t)lanes_of(own == all(m)) << i;
        none |= (uint64_t)lanes_of(own != own) << i;
    }
    if (own < kGroup) equal &= (1ull << own) - 1;
    Summary out = {total(sum), total(moment), equal ? __builtin_ctzll(equal) : (int32_t)own - 1};
    if (none) out.sum = NAN;  // shows in everything that is made of the sum
    return out;
}

template <class Kind>
struct Vocabulary {
    const typename Kind::Activation* x;
    int64_t lda;
    const Matrix* weight;
    float cap;

    // The 64 products of one row with a group.
    SFUMATO_INLINE void multiply_row(int64_t row, int64_t group, float* c, uint32_t* room) const {
        if constexpr (kInBlocks<Kind>) {
            uint32_t* own = (uint32_t*)scratch(4, sizeof(uint32_t) * (weight->k + kStep));
            group_product<Kind>(row_alone(x, lda, row, own), 0, 1, *weight, group, c, room);
        } else {
            group_product<Kind>(x + row * lda, lda, 1, *weight, group, c, room);
        }
    }

    SFUMATO_INLINE Scores scores(int64_t group) const {
        const int64_t left = weight->n - group * kGroup;
        return {cap, weight->scale, left < kGroup ? left : kGroup};
    }
};

// The id at which the distribution function of `row` passes `target` times its whole sum.
template <class Kind>
inline int64_t draw(const Head& job, const Vocabulary<Kind>& words, const Summary* kept,
                    int64_t groups, int64_t row, double whole, float* c, uint32_t* room) {
    const double target = job.uniforms[row] * whole;
    const float top = job.maximum[row];
    double before = 0;
    int64_t group = 0, last = 0;
    for (; group < groups; group++) {
        const double own = kept[group * job.x.count + row].sum *
                           exp((double)job.group_maximum[group * job.x.count + row] - top);
        if (own > 0) last = group;
        if (before + own > target) break;
        before += own;
    }
    if (group == groups) group = last;  // the last bits of the sums differ from the whole's
    const Scores how = words.scores(group);
    words.multiply_row(row, group, c, room);
    const float m = finish_scores(c, how, job.temperatures[row]);
    float e[kGroup];
    exponentials(c, m, how.own, e);
    const double factor = exp((double)m - top);
    int64_t id = 0;
    for (int64_t i = 0; i < how.own; i++) {
        if (e[i] > 0) id = i;
        before += e[i] * factor;
        if (before > target) break;
    }
    return group * kGroup + id;
}

template <class Kind>
inline void finish_row(const Head& job, const Vocabulary<Kind>& words, const Summary* kept,
                       int64_t groups, int64_t row, float* c, uint32_t* room) {
    const int64_t rows = job.x.count;
    float top = job.group_maximum[row];
    int64_t best = kept[row].best;
    for (int64_t g = 1; g < groups; g++)
        if (job.group_maximum[g * rows + row] > top) {
            top = job.group_maximum[g * rows + row];
            best = g * kGroup + kept[g * rows + row].best;
        }
    double whole = 0, moment = 0;
    for (int64_t g = 0; g < groups; g++) {
        const Summary& own = kept[g * rows + row];
        const double below = (double)job.group_maximum[g * rows + row] - top;
        const double factor = exp(below);
        whole += own.sum * factor;
        moment += (own.moment + own.sum * below) * factor;
    }
    job.argmax[row] = best;
    job.maximum[row] = top;
    job.log_sum[row] = (float)(log(whole) + top);
    job.entropy[row] = (float)(log(whole) - moment / whole);
    if (job.uniforms) job.sample[row] = draw(job, words, kept, groups, row, whole, c, room);
}

template <class Kind>
inline void head_of(const Head& job, const typename Kind::Activation* x, int64_t lda) {
    const Vocabulary<Kind> words = {x, lda, &job.weight, job.cap};
    const int64_t groups = (job.weight.n + kGroup - 1) / kGroup, rows = job.x.count;
    const int64_t together = neighbours(rows, groups, job.threads);
    Summary* kept = (Summary*)scratch(1, (int64_t)sizeof(Summary) * groups * rows);
#pragma omp parallel num_threads(job.threads)
    {
        float* c = (float*)scratch(2, sizeof(float) * kChunk * kGroup);
        uint32_t* room = (uint32_t*)scratch(3, sizeof(uint32_t) * kRoomWords);
#pragma omp for schedule(dynamic, together)
        for (int64_t group = 0; group < groups; group++) {
            const Scores how = words.scores(group);
            for (int64_t row = 0; row < rows; row += kChunk) {
                const int64_t some = rows - row < kChunk ? rows - row : kChunk;
                group_product<Kind>(x + row * lda, lda, some, job.weight, group, c, room);
                for (int64_t r = 0; r < some; r++) {
                    float* own = c + r * kGroup;
                    const float m = finish_scores(own, how, job.temperatures[row + r]);
                    job.group_maximum[group * rows + row + r] = m;
                    kept[group * rows + row + r] = summarise(own, m, how.own);
                }
            }
        }
#pragma omp for schedule(dynamic, 1)
        for (int64_t row = 0; row < rows; row++)
            finish_row<Kind>(job, words, kept, groups, row, c, room);
    }
}

// Whether some id of the group reaches a row's floor. NaN does, to show in the sums.
SFUMATO_INLINE bool reaches(const Soft& job, int64_t group, int64_t row) {
    return !(job.group_maximum[group * job.x.count + row] - job.maximum[row] < kFloor);
}

// From a row's products c with a group to its p.
SFUMATO_INLINE void finish_beliefs(const Soft& job, const Scores& how, int64_t row, float* c, float* to) {
    finish_scores(c, how, job.temperatures[row]);
    exponentials(c, job.log_sum[row], how.own, to);
    for (int64_t n = 0; n < kGroup; n++)
        if (n >= how.own || c[n] - job.maximum[row] < kFloor) to[n] = 0;
}

// The chosen rows, without gaps; all of a whole chunk where they are. Returns where, and their distance.
template <class Kind>
inline const typename Kind::Activation* gather_rows(const Soft& job, const Vocabulary<Kind>& words,
                                                    const int32_t* chosen, int64_t count,
                                                    typename Kind::Activation* to, int64_t* lda) {
    if (count == kChunk && chosen[kChunk - 1] - chosen[0] + 1 == kChunk && chosen[0] % kChunk == 0) {
        *lda = words.lda;
        return words.x + chosen[0] * words.lda;
    }
    const int64_t width = job.x.width;
    *lda = distance<Kind>(count, width);
    if constexpr (kInBlocks<Kind>)
        pack_rows(count, width, count > 1, to,
                  [&](int64_t i) { return (const uint16_t*)job.x.data + chosen[i] * job.x.stride; });
    else
        for (int64_t i = 0; i < count; i++) memcpy(to + i * *lda, words.x + chosen[i] * words.lda, 4 * *lda);
    return to;
}

// The p of `group` for all rows that reach its floor, into beliefs[rows][kSoftIds] at `place`; zeros for the others.
template <class Kind>
inline void believe(const Soft& job, const Vocabulary<Kind>& words, int64_t group, int64_t place,
                    float* beliefs, float* c, uint32_t* room, typename Kind::Activation* gathered,
                    int32_t* chosen) {
    const int64_t rows = job.x.count;
    const Scores how = words.scores(group);
    for (int64_t row = 0; row < rows;) {
        int64_t count = 0, lda = 0;
        for (; row < rows && count < kChunk; row++) {
            if (reaches(job, group, row))
                chosen[count++] = (int32_t)row;
            else
                memset(beliefs + row * kSoftIds + place, 0, sizeof(float) * kGroup);
        }
        if (count == 0) continue;
        const auto* x = gather_rows(job, words, chosen, count, gathered, &lda);
        group_product<Kind>(x, lda, count, *words.weight, group, c, room);
        for (int64_t i = 0; i < count; i++)
            finish_beliefs(job, how, chosen[i], c + i * kGroup, beliefs + chosen[i] * kSoftIds + place);
    }
}

SFUMATO_INLINE vf widened(const void* row, bool bf16, int64_t at) {
    if (!bf16) return load<vf>((const float*)row + at);
    return load_bf16((const uint16_t*)row + at);
}

// Values of a row of the table, without its scale: kLanes of them, or one.
template <Format F>
SFUMATO_INLINE vf table_values(const void* row, int64_t at) {
    typedef int8_t vb __attribute__((vector_size(kLanes)));
    if constexpr (F == Format::i8_rows) return __builtin_convertvector(load<vb>((const int8_t*)row + at), vf);
    return widened(row, F == Format::bf16_rows, at);
}
template <Format F>
SFUMATO_INLINE float table_value(const void* row, int64_t at) {
    if constexpr (F == Format::i8_rows) return ((const int8_t*)row)[at];
    if constexpr (F == Format::bf16_rows) return widen(((const uint16_t*)row)[at]);
    return ((const float*)row)[at];
}

// sum[at] += p[0] * row 0 + p[1] * row 1 + ..., in that order, for [begin, end).
template <Format F, int N>
SFUMATO_INLINE void add_rows(float* sum, const void* const* rows, const float* p, int64_t begin, int64_t end) {
    int64_t at = begin;
    for (; at + kLanes <= end; at += kLanes) {
        vf own = load<vf>(sum + at);
        for (int n = 0; n < N; n++) own = multiply_add(table_values<F>(rows[n], at), p[n], own);
        store(sum + at, own);
    }
    for (; at < end; at++)
        for (int n = 0; n < N; n++) sum[at] = __builtin_fmaf(p[n], table_value<F>(rows[n], at), sum[at]);
}

template <Format F>
inline void add_beliefs_of(const Matrix& weight, int64_t first, int64_t count, const float* beliefs,
                           float* sum, int64_t begin, int64_t end) {
    const int64_t size = F == Format::i8_rows ? 1 : F == Format::bf16_rows ? 2 : 4;
    const void* rows[4];
    float p[4];
    int held = 0;
    for (int64_t i = 0; i < count; i++) {
        if (i % kLanes == 0) {  // most ids are not probable
            while (i + kLanes <= count && !lanes_of(load<vf>(beliefs + i) != vf{})) i += kLanes;
            if (i == count) break;
        }
        if (beliefs[i] == 0) continue;  // not so for NaN
        rows[held] = (const char*)weight.data + (first + i) * weight.stride * size;
        p[held++] = weight.row_scales ? beliefs[i] * weight.row_scales[first + i] : beliefs[i];
        if (held < 4) continue;
        add_rows<F, 4>(sum, rows, p, begin, end);
        held = 0;
    }
    for (int i = 0; i < held; i++) add_rows<F, 1>(sum, rows + i, p + i, begin, end);
}

inline void add_beliefs(const Matrix& weight, int64_t first, int64_t count, const float* beliefs,
                        float* sum, int64_t begin, int64_t end) {
    if (weight.format == Format::i8_rows)
        add_beliefs_of<Format::i8_rows>(weight, first, count, beliefs, sum, begin, end);
    else if (weight.format == Format::f32_rows)
        add_beliefs_of<Format::f32_rows>(weight, first, count, beliefs, sum, begin, end);
    else
        add_beliefs_of<Format::bf16_rows>(weight, first, count, beliefs, sum, begin, end);
}

// Sums over the table of what `believe` puts into beliefs[rows][kSoftIds], 1,024 ids at a time, into
// sums[rows][width]; `Room` is what a worker needs for that.
template <class Room, class Believe>
inline void mix_table(const Matrix& table, int64_t rows, float factor, const Rows& out, int threads,
                      const Believe& believe_group) {
    const int64_t width = table.k, ids = table.n;
    // To find a row's probable ids takes as long as to add some columns of theirs: once a row, if there are enough.
    const int64_t slice = rows >= 4 * threads ? width : 256, slices = (width + slice - 1) / slice;
    float* sums = (float*)scratch(1, sizeof(float) * rows * (width + kSoftIds));
    float* beliefs = sums + rows * width;
    memset(sums, 0, sizeof(float) * rows * width);
#pragma omp parallel num_threads(threads)
    {
        const Room room(table.k);
        for (int64_t first = 0; first < ids; first += kSoftIds) {
            const int64_t count = ids - first < kSoftIds ? ids - first : kSoftIds;
#pragma omp for schedule(dynamic, 1)
            for (int64_t group = 0; group < (count + kGroup - 1) / kGroup; group++)
                believe_group(first / kGroup + group, group * kGroup, beliefs, room);
#pragma omp for schedule(dynamic, 1)
            for (int64_t task = 0; task < rows * slices; task++) {
                const int64_t row = task % rows, begin = task / rows * slice;
                const int64_t end = begin + slice < width ? begin + slice : width;
                add_beliefs(table, first, count, beliefs + row * kSoftIds, sums + row * width, begin, end);
            }
        }
#pragma omp for schedule(static)
        for (int64_t row = 0; row < rows; row++) put(out, row, 0, sums + row * width, width, factor);
    }
}

template <class Kind>
struct BeliefRoom {
    float* c;
    uint32_t* words;
    typename Kind::Activation* gathered;
    int32_t* chosen;

    explicit BeliefRoom(int64_t width)
        : c((float*)scratch(2, sizeof(float) * kChunk * kGroup)),
          words((uint32_t*)scratch(3, sizeof(uint32_t) * kRoomWords)),
          gathered((typename Kind::Activation*)scratch(4, 4 * kChunk * (width + kStep))),
          chosen((int32_t*)scratch(5, sizeof(int32_t) * kChunk)) {}
};

template <class Kind>
inline void soft_of(const Soft& job, const typename Kind::Activation* x, int64_t lda) {
    const Vocabulary<Kind> words = {x, lda, &job.weight, job.cap};
    mix_table<BeliefRoom<Kind>>(
        job.weight, job.x.count, job.factor, job.out, job.threads,
        [&](int64_t group, int64_t place, float* beliefs, const BeliefRoom<Kind>& room) {
            believe<Kind>(job, words, group, place, beliefs, room.c, room.words, room.gathered, room.chosen);
        });
}

// The maximum of a row of logits, and the log of the sum of their exponentials.
SFUMATO_INLINE void sum_row(const float* row, int64_t count, float* maximum, float* log_sum) {
    vf best = all(-INFINITY);
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) best = sfumato::SFUMATO_ISA::maximum(best, load<vf>(row + i));
    float top = largest_of(best);
    for (int64_t t = i; t < count; t++) top = row[t] > top ? row[t] : top;
    double whole = 0;  // of pieces, so that each small sum is exact enough in fp32
    for (int64_t begin = 0; begin < count; begin += kSoftIds) {
        const int64_t end = begin + kSoftIds < count ? begin + kSoftIds : count;
        vf sum{};
        for (i = begin; i + kLanes <= end; i += kLanes) sum += exponential(load<vf>(row + i) - top);
        whole += total(sum);
        for (; i < end; i++) whole += exponential(all(row[i] - top))[0];
    }
    *maximum = top;
    *log_sum = (float)(log(whole) + top);
}

struct NoRoom {
    explicit NoRoom(int64_t) {}
};

inline void gather(const Gather& job) {
    const int64_t ids = job.weight.n;
    float* maxima = (float*)scratch(0, (int64_t)sizeof(float) * 2 * job.rows);
    float* log_sums = maxima + job.rows;
#pragma omp parallel for num_threads(job.threads) schedule(dynamic, 1)
    for (int64_t row = 0; row < job.rows; row++)
        sum_row(job.logits + row * ids, ids, maxima + row, log_sums + row);
    mix_table<NoRoom>(job.weight, job.rows, job.factor, job.out, job.threads,
                      [&](int64_t group, int64_t place, float* beliefs, const NoRoom&) {
        const int64_t left = ids - group * kGroup, own = left < kGroup ? left : kGroup;
        for (int64_t row = 0; row < job.rows; row++) {
            float c[kGroup];
            float* to = beliefs + row * kSoftIds + place;
            for (int64_t i = own; i < kGroup; i++) c[i] = -INFINITY;
            memcpy(c, job.logits + row * ids + group * kGroup, sizeof(float) * own);
            for (int i = 0; i < kGroup; i += kLanes) {
                const vf score = load<vf>(c + i);
                // NaN goes on, to show in the sums.
                const vi low = score - maxima[row] < all(kFloor);
                store(to + i, select(low, vf{}, exponential(score - log_sums[row])));
            }
        }
    });
}

template <class Kind>
inline void logits_of(const Logits& job, const typename Kind::Activation* x, int64_t lda) {
    const Vocabulary<Kind> words = {x, lda, &job.weight, job.cap};
    const int64_t ids = job.weight.n, rows = job.x.count, groups = (ids + kGroup - 1) / kGroup;
    const int64_t together = neighbours(rows, groups, job.threads);
#pragma omp parallel num_threads(job.threads)
    {
        float* c = (float*)scratch(2, sizeof(float) * kChunk * kGroup);
        uint32_t* room = (uint32_t*)scratch(3, sizeof(uint32_t) * kRoomWords);
#pragma omp for schedule(dynamic, together)
        for (int64_t group = 0; group < groups; group++) {
            const Scores how = words.scores(group);
            for (int64_t row = 0; row < rows; row += kChunk) {
                const int64_t some = rows - row < kChunk ? rows - row : kChunk;
                group_product<Kind>(x + row * lda, lda, some, job.weight, group, c, room);
                for (int64_t r = 0; r < some; r++) {
                    finish_scores(c + r * kGroup, how, 1.0f);
                    memcpy(job.out + (row + r) * ids + group * kGroup, c + r * kGroup, sizeof(float) * how.own);
                }
            }
        }
    }
}

template <class Kind>
inline void log_probabilities_of(const LogProbabilities& job, const typename Kind::Activation* x, int64_t lda) {
    const Vocabulary<Kind> words = {x, lda, &job.weight, job.cap};
#pragma omp parallel num_threads(job.threads)
    {
        float* c = (float*)scratch(2, sizeof(float) * kGroup);
        uint32_t* room = (uint32_t*)scratch(3, sizeof(uint32_t) * kRoomWords);
#pragma omp for schedule(dynamic, 1)
        for (int64_t row = 0; row < job.x.count; row++) {
            int64_t held = -1;  // the group that is in c
            for (int64_t i = row * job.count; i < (row + 1) * job.count; i++) {
                const int64_t group = job.ids[i] / kGroup;
                if (group != held) {
                    words.multiply_row(row, group, c, room);
                    finish_scores(c, words.scores(group), job.temperatures[row]);
                    held = group;
                }
                job.out[i] = c[job.ids[i] % kGroup] - job.log_sum[row];
            }
        }
    }
}

// A head and its soft embeddings must take the same way through the tiles: their bits must agree.
inline void head(const Head& job) {
    with_rows(job.x, job.weight, job.threads,
              [&]<class Kind>(const typename Kind::Activation* x, int64_t lda) { head_of<Kind>(job, x, lda); });
}

inline void log_probabilities(const LogProbabilities& job) {
    with_rows(job.x, job.weight, job.threads, [&]<class Kind>(const typename Kind::Activation* x, int64_t lda) {
        log_probabilities_of<Kind>(job, x, lda);
    });
}

inline void logits(const Logits& job) {
    with_rows(job.x, job.weight, job.threads,
              [&]<class Kind>(const typename Kind::Activation* x, int64_t lda) { logits_of<Kind>(job, x, lda); });
}

inline void soft(const Soft& job) {
    with_rows(job.x, job.weight, job.threads,
              [&]<class Kind>(const typename Kind::Activation* x, int64_t lda) { soft_of<Kind>(job, x, lda); });
}

}  // namespace sfumato::SFUMATO_ISA
