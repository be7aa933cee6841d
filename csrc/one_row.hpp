// A row of activations times a group of channels, by way of the weights: with one row to use them for, to
// lay them out for tiles costs more than the products. For AVX2 and AVX-512.
//
// Sixteen words of each channel at a time are turned over, so that a vector holds a word of as many channels as
// it has lanes, and its values are made in registers. The sums and their order are those of the tiles or, with
// kApart, of registers of matrices (matrix_tiles.hpp).
#pragma once

#include "words.hpp"

namespace sfumato::SFUMATO_ISA {

#if defined(__AVX2__)

constexpr int64_t kSliceWords = 16;  // a cache line of each row
constexpr int kPanels = (int)(kGroup / kPanel), kSums = (int)(kGroup / kLanes);
constexpr int kTogether = kLanes == 16 ? kSums : 1;  // sums whose words are in registers at once

// A group's rows, and a slice of them turned over. The second-level cache has room for them and the next ones:
// 180 KB each at k = 2816 in 8 bits, twice that in bf16, for which AVX2's machines have not.
template <class Words, bool kApart = false>
struct OneRow {
    typedef typename Words::Factor Factor;
    static constexpr bool kRaised = requires { Words::unit; };
    static constexpr int64_t slice = kSliceWords * Words::each;  // values of k
    static constexpr int64_t per_factor = Words::each / Words::steps;
    static constexpr int64_t scale_words = Words::scales * slice / 16 * kGroup;
    // Zeros behind the last group: scales are widened a slice or 64 at a time, and those behind are not used.
    static constexpr int64_t scale_bytes = Words::scales ? kSpare * kPanels + kRun / 16 * kGroup : 1;

    const Matrix& weight;
    PanelRows panels[kPanels];
    alignas(64) uint32_t words[kSliceWords * kGroup];
    alignas(64) uint32_t scales[scale_words ? scale_words : 1];
    alignas(64) Factor x[kRun / per_factor];
    alignas(64) uint8_t scale_room[scale_bytes] = {};

    SFUMATO_INLINE OneRow(const Matrix& w, int64_t first) : weight(w) {
        for (int p = 0; p < kPanels; p++) panels[p] = PanelRows(w, first + p);
    }

    static constexpr int64_t bytes(int64_t values) { return values * 4 / Words::each; }

    // A run's activations, and zeros behind them. Raised words have them times their unit; false if that loses
    // something or one is no number, and x then has them as they are.
    SFUMATO_INLINE bool take(const Factor* from, int64_t count) {
        const int64_t there = sizeof(Factor) * (count / per_factor);
        memcpy(x, from, there);
        memset((char*)x + there, 0, sizeof x - there);
        if constexpr (kRaised) {
            static_assert(per_factor == 1 && !kApart);
            vi exact = ~vi{};
            for (int64_t i = 0; i < kRun; i += kLanes) {
                const vf own = load<vf>(x + i), small = own * Words::unit;
                exact &= small * (1 / Words::unit) == own;
                store(x + i, small);
            }
            if (lanes_of(exact) == (1u << kLanes) - 1) return true;
            memcpy(x, from, there);
            return false;
        }
        return true;
    }
    SFUMATO_INLINE bool take(const uint16_t* from, int64_t count) {
        int64_t i = 0;
        for (; i + kLanes <= count; i += kLanes) store(x + i, load_bf16(from + i));
        for (; i < count; i++) x[i] = widen(from[i]);
        memset(x + count, 0, sizeof(Factor) * (kRun - count));
        return true;
    }

    // The scales of a run's groups, in bytes.
    SFUMATO_INLINE void turn_scales(int64_t begin, int64_t values) {
        for (int p = 0; p < kPanels; p++)
            columns(panels[p].scales, begin / 16, values / 16, scale_room + kSpare * kPanels + p * kPanel, kGroup);
    }

    // The rows' own next lines, from the second-level cache. Measured to pay where a line is used up fast.
    SFUMATO_INLINE void fetch_rows(int64_t at) const {
        for (const PanelRows& panel : panels)
            for (int j = 0; j < kPanel; j++) __builtin_prefetch((const char*)((uintptr_t)panel.rows[j] + at), 0, 3);
    }

    // The share of a slice from place `at` of the rows on of the next group's scales, as they lie in memory.
    SFUMATO_INLINE void fetch_scales(int64_t at) const {
        const int64_t next = (weight.values ? kGroup / 2 : kGroup) * weight.k / 16 + at;
        for (const PanelRows& panel : panels)
            for (int64_t line = 0; line < slice; line += 64)
                __builtin_prefetch((const char*)((uintptr_t)panel.scales[0] + next + line), 0, 2);
    }

    // Those of a slice from place `at` of the run on.
    SFUMATO_INLINE void widen_scales(int64_t at) {
        const uint8_t* from = scale_room + kSpare * kPanels + at / 16 * kGroup;
        for (int64_t i = 0; i < slice / 16 * kGroup; i += kGroup)
            Words::widen(from + i, scales + Words::scales * i);
    }

    // A slice of the rows from byte `at` on, `there` bytes of it and zeros behind.
    SFUMATO_INLINE void turn_over(int64_t at, int64_t there) {
        for (int p = 0; p < kPanels; p++) turn_line(panels[p].rows, at, there, words + p * kPanel, kGroup);
    }

    // A slice's share of the next group, `next` bytes on, in the order of memory: so many rows at once are more than
    // a processor foresees by itself, and more than it can ask for at a time. Beyond the end of the matrix that is
    // no error.
    SFUMATO_INLINE void fetch_next(int64_t next, int64_t word) const {
        for (const PanelRows& panel : panels)
            __builtin_prefetch((const char*)((uintptr_t)panel.rows[0] + next + word * 64), 0, 2);
    }

    // Calls `take` with each of `word`'s values as `Kind` has them: their vector, their step and their place in the
    // sums.
    template <class Kind, class Take>
    SFUMATO_INLINE void each_value(int64_t word, const Take& take) const {
        static_assert(Kind::each == Words::each && Kind::steps == Words::steps && Kind::scales == Words::scales);
        const uint32_t* scale = scales + Words::scales * (word * Words::each / 16 * kGroup);
        for (int first = 0; first < kSums; first += kTogether) {
            Kind own[kTogether];
            for (int v = 0; v < kTogether; v++)
                own[v] = Kind(load<vu>(words + word * kGroup + (first + v) * kLanes),
                              scale + Words::scales * (first + v) * kLanes);
            for (int i = 0; i < Words::steps; i++)
                for (int v = 0; v < kTogether; v++) take(own[v], i, first + v);
        }
    }

    // sum += x . words, in the order of k, for the first `count` words, `from` being their activations.
    template <class Kind>
    SFUMATO_INLINE void add(vf (&sum)[kSums], const Factor* from, int64_t count, int64_t next) const {
        for (int64_t word = 0; word < count; word++, from += Words::steps) {
            fetch_next(next, word);
            each_value<Kind>(word, [&](const Kind& own, int i, int v) { sum[v] = own.add(sum[v], from[i], i); });
        }
    }

    // The same, with raised words where their activations could be had.
    SFUMATO_INLINE void add_run(vf (&sum)[kSums], const Factor* from, int64_t count, int64_t next,
                                [[maybe_unused]] bool raised) const {
        if constexpr (kRaised)
            if (!raised) return add<typename Words::Unraised>(sum, from, count, next);
        add<Words>(sum, from, count, next);
    }

    // The same in steps of 32 values, even and odd ones apart.
    SFUMATO_INLINE void add_apart(vf (&sum)[kSums], const Factor* from, int64_t count, int64_t next) const {
        constexpr int64_t step = 32 / Words::each;
        for (int64_t word = 0; word < count;) {
            vf part[2][kSums] = {};
            const int64_t end = word + step < count ? word + step : count;
            for (; word < end; word++, from += Words::steps) {
                fetch_next(next, word);
                each_value<Words>(word, [&](const Words& own, int i, int v) {
                    part[i % 2][v] = own.add(part[i % 2][v], from[i], i);
                });
            }
            for (int v = 0; v < kSums; v++) sum[v] += part[0][v] + part[1][v];
        }
    }

    // c[64] += from . weight, by runs or, with kApart, in one chain. `from` is bf16 then.
    template <class Activation>
    SFUMATO_INLINE void multiply(const Activation* from, float* c) {
        const int64_t stride = Words::scales ? bytes(weight.k) : weight.stride * PanelRows::size_of(weight.format);
        int64_t next = (weight.values ? kGroup / 2 : kGroup) * stride;
        for (int64_t begin = 0; begin < weight.k; begin += kRun) {
            const int64_t run = weight.k - begin < kRun ? weight.k - begin : kRun;
            [[maybe_unused]] const bool raised = take(from + begin / (kApart ? 1 : per_factor), run);
            if constexpr (Words::scales > 0) turn_scales(begin, run);
            vf sum[kSums] = {};
            for (int v = 0; v < kSums && kApart; v++) sum[v] = load<vf>(c + v * kLanes);
            for (int64_t at = 0; at < run; at += slice, next += kSliceWords * 64) {
                const int64_t some = run - at < slice ? run - at : slice;
                if constexpr (Words::scales > 0) fetch_scales(begin + at);
                if constexpr (kLanes == 16 && Words::scales == 0) fetch_rows(bytes(begin + at + slice));
                turn_over(bytes(begin + at), bytes(some));
                if constexpr (Words::scales > 0) widen_scales(at);
                const int64_t count = (some + Words::each - 1) / Words::each;
                if constexpr (kApart)
                    add_apart(sum, x + at / per_factor, count, next);
                else
                    add_run(sum, x + at / per_factor, count, next, raised);
            }
            for (int v = 0; v < kSums; v++) {
                float* to = c + v * kLanes;
                store(to, kApart ? sum[v] : load<vf>(to) + sum[v]);
            }
        }
    }
};

SFUMATO_INLINE bool serves_one_row(const Matrix& w) {
    return w.format == Format::nvfp4_rows || w.format == Format::i8_rows ||
           (kLanes == 16 && w.format == Format::bf16_rows);
}

// c[64] += x . w for the channels of a whole group.
template <class Activation>
inline void one_row(const Activation* x, const Matrix& w, int64_t group, float* c) {
    typedef WordsFor<Activation> Words;
    if (w.format == Format::nvfp4_rows)
        OneRow<typename Words::Codes>(w, group * kPanels).multiply(x, c);
    else if (kLanes < 16 || w.format == Format::i8_rows)
        OneRow<typename Words::Bytes>(w, group * kPanels).multiply(x, c);
#if defined(__AVX512F__)
    else
        OneRow<typename Words::Halves>(w, group * kPanels).multiply(x, c);
#endif
}

#if defined(__AVX512F__)
// Subnormal numbers count as zero for as long as this lives, as they do in registers of matrices.
class NoSubnormals {
   public:
    SFUMATO_INLINE NoSubnormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ | kNoSubnormals); }
    SFUMATO_INLINE ~NoSubnormals() { _mm_setcsr(before_); }
    NoSubnormals(const NoSubnormals&) = delete;

   private:
    static constexpr unsigned kNoSubnormals = _MM_FLUSH_ZERO_ON | _MM_DENORMALS_ZERO_ON;
    unsigned before_;
};

// c[64] = x . w for the channels of a whole group in NVFP4 or 8 bits, x in bf16: to the bits of registers of
// matrices, which for one row take longer.
inline void one_row_apart(const uint16_t* x, const Matrix& w, int64_t group, float* c) {
    const NoSubnormals none;
    memset(c, 0, sizeof(float) * kGroup);
    if (w.format == Format::nvfp4_rows)
        OneRow<SingleCodes, true>(w, group * kPanels).multiply(x, c);
    else
        OneRow<SingleBytes, true>(w, group * kPanels).multiply(x, c);
}
#endif

#else

SFUMATO_INLINE bool serves_one_row(const Matrix&) { return false; }
inline void one_row(const float*, const Matrix&, int64_t, float*) {}

#endif

}  // namespace sfumato::SFUMATO_ISA
