// The kernels' interface: plain structs and one table of functions for each instruction set.
//
// Every kernel obeys two laws. A row's result has the same bits whichever rows stand beside it and
// however many threads work, because each output element is one fixed sum, whose order is the set's own:
// partial sums over runs of kRun values of k in ascending order, added in ascending order, or those of
// matrix_tiles.hpp. And nothing is read or written outside the shapes that the caller has checked
// (module.cpp checks them).
#pragma once

#include <cstdint>

namespace sfumato {

constexpr int64_t kPanel = 16;   // channels that stand side by side in a panel
constexpr int64_t kGroup = 64;   // channels that are computed together: four panels
constexpr int64_t kPanelsInGroup = kGroup / kPanel;
constexpr int64_t kRun = 512;    // values of k in one partial sum
constexpr int64_t kChunk = 256;  // rows that are computed together

// How a matrix [n, k] lies in memory.
enum class Format : int {
    f32_rows,      // row-major, as in a checkpoint
    bf16_rows,     // row-major, as in a checkpoint; k even
    bf16_panels,   // [n / 16][k / 2][16 channels][2], rows beyond n zero
    i8_rows,       // row-major, values of 8 bits with a scale for each row; k even
    nvfp4_rows,    // codes [n][k / 2], low nibble the even k, and scales E4M3 [n][k / 16], as in a
                   // checkpoint: at any address; k a multiple of 16
};

struct Matrix {
    Format format;
    const void* data;
    const void* values;  // rows formats of a gated weight: its other half; null otherwise
    const uint8_t *scales, *value_scales;  // nvfp4 only
    const float* row_scales;               // [n], i8_rows only; null otherwise
    float scale;        // times everything; 1 but for nvfp4
    float value_scale;  // of a gated weight's values; its `scale` is the gate's alone
    int64_t n, k;
    int64_t stride;  // between rows, in elements; f32_rows, bf16_rows and i8_rows only
    bool narrow;     // activations may be rounded to 8 bits for it (narrow.hpp); nvfp4 and i8_rows only
};

// Activations or results [count, width], fp32 or bf16, rows `stride` elements apart.
struct Rows {
    void* data;
    bool bf16;
    int64_t count, width, stride;
};

// Some of them, which lie where they were.
inline Rows rows_from(Rows rows, int64_t begin, int64_t count) {
    rows.data = (char*)rows.data + begin * rows.stride * (rows.bf16 ? 2 : 4);
    rows.count = count;
    return rows;
}

struct Linear {
    Rows x;
    Matrix weight;
    Rows out;    // width n, or n / 2 if gated
    bool gated;  // out = gelu(gate) * value; weight's rows: 16 of the gate, 16 of the value, in turn
    int threads;
};

// out[r] = sum over slots s of share[r, s] * down[e](gelu(gate) * value), e = chosen[r, s].
struct Experts {
    Rows x;
    const int64_t* chosen;  // [rows, slots]
    const float* shares;    // [rows, slots]
    int64_t slots, experts;
    const Matrix *gate_up, *down;  // [experts], of one format and shape each
    Rows out;
    int threads;
};

// One pass over the vocabulary: s = cap * tanh(x . w / cap) / temperature, never written out.
struct Head {
    Rows x;
    Matrix weight;
    float cap;
    const float* temperatures;  // [rows]
    const double* uniforms;     // [rows] in [0, 1), or null: no sample
    int64_t* argmax;            // [rows], the first of equals
    int64_t* sample;            // [rows], by the inverse of the distribution function
    float* entropy;             // [rows], nats
    float* maximum;             // [rows], of s
    float* log_sum;             // [rows], log of the sum of exp(s)
    float* group_maximum;       // [n / 64 rounded up, rows]
    int threads;
};

// out[r, i] = s - log_sum[r] of the id ids[r, i], with the bits of the s that `Head` has summed.
struct LogProbabilities {
    Rows x;
    Matrix weight;
    float cap;
    const float *temperatures, *log_sum;  // [rows]
    const int64_t* ids;                   // [rows, count]
    int64_t count;
    float* out;  // [rows, count]
    int threads;
};

// Which positions keep what was sampled, and the canvas that this makes; all are [rows, length].
struct Accept {
    const float* entropies;
    const int64_t *sampled, *fresh;
    int64_t rows, length;
    float bound;
    uint8_t* accepted;
    int64_t* renoised;
};

// out[r] = cap * tanh(x . w / cap), written out for all ids.
struct Logits {
    Rows x;
    Matrix weight;
    float cap;
    float* out;  // [rows, n]
    int threads;
};

// out[r] = factor * sum of p * row of weight, over the p = softmax(logits) >= e^-10 of the largest.
struct Gather {
    const float* logits;  // [rows, n]
    int64_t rows;
    Matrix weight;  // as for Soft
    float factor;
    Rows out;
    int threads;
};

// out[r] = factor * sum of p * row of weight, over the p = exp(s - log_sum) >= e^-10 of the largest.
struct Soft {
    Rows x;
    Matrix weight;  // bf16_rows, f32_rows or i8_rows
    float cap;
    const float* temperatures;
    const float* maximum;
    const float* log_sum;
    const float* group_maximum;
    float factor;
    Rows out;
    int threads;
};

// out = (residual + x / rms(x) * weight) * scale, by rows; weight and residual may be missing.
struct Norm {
    Rows x;
    const float* weight;  // [width] or null for ones
    Rows residual;        // data null for none
    float eps, scale;
    Rows out;
    int threads;
};

// Heads of one position after the other become [head][position], normalised and, with tables,
// rotated: dimension i is paired with i + dim / 2.
struct Heads {
    const void* x;  // [end - begin, heads, dim], rows of heads * dim `stride` apart
    bool bf16;
    int64_t batch, positions, heads, dim, stride;
    int64_t begin, end;             // of the batch * positions, those of x
    const float* weight;            // [dim] or null for ones
    const float *cosines, *sines;   // [batch, positions, dim] or null: not rotated
    float eps;
    void* out;  // [batch, heads, positions, dim], without gaps, of x's dtype
    int threads;
};

// out[b, q, n] = softmax over t of (query . key) times value; query heads share key heads in groups.
struct Attention {
    const void *queries, *keys, *values;
    bool bf16;
    int64_t batch, heads, kv_heads, rows, slots, dim;
    int64_t query_strides[3], key_strides[3], value_strides[3];  // of batch, head, position
    // Who sees whom; without slot_places every row sees every slot. A row at place q sees the slots whose
    // places p obey q - window < p <= q and p >= 0, and of the newest `rows` slots its own and its group's.
    const int32_t *query_places, *slot_places;  // [batch, rows], [batch, slots]; below 0: padding
    const int32_t* groups;                      // [batch, rows], below 0: in none; or null
    int32_t window;
    bool aligned;  // groups of slots begin at places that are multiples of 64, not at the first seen
    // Where slots come in parts, without places: what a row's sums are after a part, [batch, heads, rows,
    // dim + 2]: weighted values, sum, maximum. The first part ignores what it finds there, the last alone
    // writes `out`. With parts that are multiples of 64 the bits are those of one call.
    float* state;
    bool first, last;
    void* out;                // [batch, rows, heads, dim], without gaps
    int threads;
};

// For each row the `slots` best of its scores, as expert numbers and shares.
struct Route {
    const float* scores;  // [rows, experts], before the softmax
    const float* scales;  // [experts]
    int64_t rows, experts, slots;
    int64_t* chosen;  // [rows, slots]
    float* shares;    // [rows, slots]
};

struct Kernels {
    const char* name;
    bool multiplies_bytes;  // whether rows in 8 bits may take activations in 8 bits
    // Whether registers of matrices multiply bf16: then neither activations in 8 bits nor packed weights are faster.
    bool matrix_registers;
    bool (*usable)();       // whether this processor has what the code needs
    void (*linear)(const Linear&);
    void (*experts)(const Experts&);
    void (*head)(const Head&);
    void (*log_probabilities)(const LogProbabilities&);
    void (*soft)(const Soft&);
    void (*logits)(const Logits&);
    void (*gather)(const Gather&);
    void (*norm)(const Norm&);
    void (*heads)(const Heads&);
    void (*attention)(const Attention&);
    void (*route)(const Route&);
    void (*accept)(const Accept&);
};

// Every instruction set this library was compiled for, the fastest on this processor first.
const Kernels* const* all_kernels(int* count);

// Memory of the calling thread, 64-byte aligned, kept until it asks for more of the same slot or gives it back.
// Slots: 0 and 1 belong to a kernel's caller, the last one to a layer, which calls kernels, the others to workers.
constexpr int kRoomSlot = 6;
void* scratch(int slot, int64_t bytes);

// Frees the calling thread's slots of 32 MB and more, which many rows at once leave behind.
void give_back_scratch();

}  // namespace sfumato
