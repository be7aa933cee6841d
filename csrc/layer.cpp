#include "layer.hpp"

#include <algorithm>
#include <cstring>
#include <exception>

namespace sfumato {

namespace {

constexpr int64_t kPartRows = 12;     // of a thread, at least, for it to go through a half alone
constexpr int64_t kMostPartRows = 256;  // of a thread, at most: then what is shared is balanced better
constexpr int64_t kPartBytes = 4 << 20;  // of a layer's weights, which every such thread reads all of
constexpr int64_t kProjectedRows = 512;  // of which raw queries, keys and values are held at once
constexpr int kGains = 10, kWeights = 9;

int64_t padded(int64_t bytes) { return (bytes + 63) / 64 * 64; }

Rows rows_at(void* data, bool bf16, int64_t count, int64_t width) { return {data, bf16, count, width, width}; }

// Scores as the router takes them: fp32, whatever the activations are.
const float* wide_scores(const Rows& scores, float* room) {
    if (!scores.bf16) return (const float*)scores.data;
    for (int64_t i = 0; i < scores.count * scores.width; i++) {
        const uint32_t bits = (uint32_t)((const uint16_t*)scores.data)[i] << 16;
        memcpy(room + i, &bits, 4);
    }
    return room;
}

Rows part_of(const Rows& rows, const Part& part) {
    return rows_from(rows, part.begin, part.count);
}

}  // namespace

// Memory is handed out piece after piece, of what the calling thread keeps.
class Layer::Room {
   public:
    explicit Room(int64_t bytes) : at_((char*)scratch(kRoomSlot, bytes)), end_(at_ + bytes) {}

    void* take(int64_t bytes) {
        void* given = at_;
        at_ += padded(bytes);
        need(at_ <= end_, "room is too small");
        return given;
    }

   private:
    char *at_, *end_;
};

Layer::Layer(std::vector<Array> gains, std::vector<float> eps, nb::list weights, Array expert_scales,
             int64_t head_dim, int64_t slots)
    : held_(std::move(gains)), objects_(std::move(weights)), scales_(std::move(expert_scales)),
      head_dim_(head_dim), slots_(slots) {
    need(held_.size() == kGains && eps.size() == kGains, "a layer has ten norms");
    need(nb::len(objects_) == kWeights, "a layer has nine weights, one of which may be None");
    for (size_t i = 0; i < kWeights; i++) {
        nb::object one = objects_[i];
        weights_.push_back(one.is_none() ? nullptr : nb::cast<const Weight*>(one));
        need(weights_[i] || i == kV, "only the values' weight may be None");
    }
    hidden_ = weights_[kQ]->first.k;
    for (int i = 0; i < kGains; i++) {
        const bool head = i == kQueries || i == kKeys;
        gains_.push_back({vector_of<float>(held_[i], "gain", head ? head_dim : hidden_), eps[i]});
    }
    for (int i : {kQ, kK, kV, kO, kUp, kDown, kRoute})
        need(!weights_[i] || weights_[i]->experts == 1, "a linear map has one matrix");
    for (int i : {kQ, kK, kV, kUp, kRoute, kExpertsUp})
        need(!weights_[i] || weights_[i]->first.k == hidden_, "a weight does not take the layer's input");
    for (int i : {kO, kDown, kExpertsDown})
        need(weights_[i]->first.n == hidden_, "a weight does not give the layer's output");
    for (int i : {kQ, kK, kV, kO, kDown, kRoute, kExpertsDown})
        need(!weights_[i] || !weights_[i]->values, "a weight with values is a gated one");
    for (int i : {kUp, kExpertsUp}) need_gated(*weights_[i]);
    need(weights_[kUp]->first.n == 2 * weights_[kDown]->first.k, "the dense MLP's weights do not fit");
    need(head_dim > 0 && head_dim % 2 == 0, "heads must have an even size");
    for (int i : {kQ, kK}) need(width_of(i) % head_dim == 0, "projections must be whole heads");
    need(!weights_[kV] || width_of(kV) == width_of(kK), "values must be as wide as keys");
    need(weights_[kO]->first.k == width_of(kQ), "the output's weight does not take all heads");
    need_experts(*weights_[kExpertsUp], *weights_[kExpertsDown]);
    need(width_of(kRoute) == weights_[kExpertsUp]->experts, "the router scores other experts");
    need(slots > 0 && slots <= width_of(kRoute), "there are fewer experts than slots");
    expert_scales_ = vector_of<float>(scales_, "expert_scales", width_of(kRoute));
    int64_t bytes = 0;
    packed_ = plain_ = true;
    for (const Weight* one : weights_) {
        if (!one) continue;
        bytes += 2 * one->experts * one->first.n * one->first.k;
        packed_ &= one->first.format == Format::bf16_panels;
        plain_ &= one->first.format == Format::bf16_rows && one->first.k % 32 == 0;
    }
    small_ = bytes <= kPartBytes;
}

void Layer::norm(const Kernels& kernels, int gain, const Rows& x, const Rows& residual, float scale,
                 const Rows& out, int threads) const {
    const Gain& own = gains_[gain];
    kernels.norm({x, own.weight, residual, own.eps, scale, out, threads});
}

void Layer::linear(const Kernels& kernels, int weight, const Rows& x, const Rows& out, bool gated,
                   int threads) const {
    kernels.linear({x, weights_[weight]->first, out, gated, threads});
}

void Layer::heads(const Kernels& kernels, const Rows& x, const Part& part, const Array& out,
                  const Gain& gain, const float* cosines, const float* sines) const {
    Heads job = {};
    job.x = x.data;
    job.bf16 = x.bf16;
    job.batch = (int64_t)out.shape(0);
    job.heads = (int64_t)out.shape(1);
    job.positions = (int64_t)out.shape(2);
    job.dim = head_dim_;
    job.begin = part.begin;
    job.end = part.begin + part.count;
    job.stride = job.heads * job.dim;
    job.weight = gain.weight;
    job.cosines = cosines;
    job.sines = sines;
    job.eps = gain.eps;
    job.out = const_cast<void*>(out.data());
    job.threads = part.threads;
    kernels.heads(job);
}

// Rows meet in attention alone. Where weights are small enough for every thread's cache, each takes its
// rows through a half of a layer without waiting for the others after every kernel: quicker, and where
// others want the processors too, a thread that has none holds up the rest once and not twenty times.
// `rows` are some of `all`, whose number decides.
template <class Work>
void Layer::by_parts(const Kernels& kernels, int64_t rows, int64_t all, int threads, const Work& work) const {
    const int parts = (int)std::min<int64_t>(threads, std::max<int64_t>(1, rows / kPartRows));
    // As they are: nothing may be turned over or decoded by each thread again, but bf16 widened where a thread's own
    // rows pay for it (panels.hpp).
    const bool in_cache = small_ && (packed_ || (kernels.matrix_registers && plain_));
    const bool shared = !in_cache || all > kMostPartRows * parts;
    if (shared || parts == 1) return work(Part{0, rows, shared ? threads : 1});
    std::exception_ptr problem;  // none may leave the region by itself: memory may run out
#pragma omp parallel for num_threads(parts) schedule(static)
    for (int t = 0; t < parts; t++) {
        const int64_t begin = rows * t / parts, end = rows * (t + 1) / parts;
        try {
            work(Part{begin, end - begin, 1});
        } catch (...) {
#pragma omp critical
            problem = std::current_exception();
        }
    }
    if (problem) std::rethrow_exception(problem);
}

void Layer::project(const std::string& set, const Array& x, const Array& cosines, const Array& sines,
                    const Array& queries, const Array& keys, const Array& values,
                    const std::optional<Array>& raw, int threads) const {
    const Rows in = rows_of(x, "x", hidden_);
    for (const Array* one : {&queries, &keys, &values}) {
        need(one->ndim() == 4 && one->dtype() == x.dtype() && (int64_t)one->shape(3) == head_dim_,
             "queries, keys and values must be [batch, heads, positions, dim] of x's dtype");
        need((int64_t)(one->shape(0) * one->shape(2)) == in.count && one->shape(0) == queries.shape(0),
             "queries, keys and values must have x's positions");
        need_contiguous(*one, "queries, keys and values");
    }
    need((int64_t)queries.shape(1) * head_dim_ == width_of(kQ), "queries have other heads");
    need((int64_t)keys.shape(1) * head_dim_ == width_of(kK) && values.shape(1) == keys.shape(1),
         "keys have other heads");
    need(raw.has_value() == !weights_[kV], "raw keys are given where they serve as values");
    Rows raw_keys = {};
    if (raw) {
        raw_keys = rows_of(*raw, "raw", width_of(kK));
        need(raw_keys.count == in.count && raw->dtype() == x.dtype(), "raw must be like x");
        need_contiguous(*raw, "raw");
    }
    const float* cos = table_of<float>(cosines, "cosines", in.count, head_dim_);
    const float* sin = table_of<float>(sines, "sines", in.count, head_dim_);
    need_pairs(in, weights_[kQ]->first);
    const int64_t size = in.bf16 ? 2 : 4;
    threads_of(threads);
    const Kernels& kernels = set_of(set);
    nb::gil_scoped_release free;
    const int64_t most = std::min(in.count, kProjectedRows), wide = width_of(kQ), narrow = width_of(kK);
    if (most == 0) return;
    const int64_t own_keys = raw ? 0 : narrow, own_values = weights_[kV] ? narrow : 0;
    int64_t bytes = 0;
    for (int64_t width : {hidden_, wide, own_keys, own_values}) bytes += padded(most * width * size);
    Room room(bytes);
    const auto take = [&](int64_t width) { return rows_at(room.take(most * width * size), in.bf16, most, width); };
    const Rows normed = take(hidden_), q = take(wide), k_room = take(own_keys), v_room = take(own_values);
    for (int64_t begin = 0; begin < in.count; begin += most) {
        by_parts(kernels, std::min(most, in.count - begin), in.count, threads, [&](const Part& part) {
            const Part own = {begin + part.begin, part.count, part.threads};  // of all rows
            const Rows x = part_of(normed, part), queries_ = part_of(q, part);
            const Rows k = raw ? part_of(raw_keys, own) : part_of(k_room, part);
            const Rows v = raw ? k : part_of(v_room, part);
            norm(kernels, kInput, part_of(in, own), {}, 1.0f, x, part.threads);
            linear(kernels, kQ, x, queries_, false, part.threads);
            heads(kernels, queries_, own, queries, gains_[kQueries], cos, sin);
            linear(kernels, kK, x, k, false, part.threads);
            heads(kernels, k, own, keys, gains_[kKeys], cos, sin);
            if (weights_[kV]) linear(kernels, kV, x, v, false, part.threads);
            heads(kernels, v, own, values, {nullptr, gains_[kKeys].eps}, nullptr, nullptr);
        });
    }
}

void Layer::finish(const std::string& set, const Array& x, const Array& mixed, float scale,
                   const Array& out, int threads) const {
    const Rows in = rows_of(x, "x", hidden_), to = rows_of(out, "out", hidden_);
    const Rows heads = rows_of(mixed, "mixed", width_of(kQ));
    need(heads.count == in.count && to.count == in.count, "x, mixed and out must have as many rows");
    need(mixed.dtype() == x.dtype() && out.dtype() == x.dtype(), "x, mixed and out must be of one dtype");
    need_pairs(heads, weights_[kO]->first);
    threads_of(threads);
    const Kernels& kernels = set_of(set);
    nb::gil_scoped_release free;
    if (in.count == 0) return;
    const Between between = take_between(in.count, in.bf16);
    by_parts(kernels, in.count, in.count, threads, [&](const Part& part) {
        const Rows middle = part_of(between.middle, part);
        linear(kernels, kO, part_of(heads, part), middle, false, part.threads);
        norm(kernels, kAttended, middle, part_of(in, part), 1.0f, middle, part.threads);
        feed_forward(kernels, between, part, scale, part_of(to, part));
    });
}

Layer::Between Layer::take_between(int64_t rows, bool bf16) const {
    const int64_t size = bf16 ? 2 : 4, inner = weights_[kDown]->first.k, many = width_of(kRoute);
    Room room(3 * padded(rows * hidden_ * size) + padded(rows * inner * size) + padded(rows * many * size) +
              padded(rows * many * 4) + padded(rows * slots_ * 8) + padded(rows * slots_ * 4));
    const auto take = [&](int64_t width) { return rows_at(room.take(rows * width * size), bf16, rows, width); };
    Between out = {};
    for (Rows* one : {&out.middle, &out.normed, &out.dense}) *one = take(hidden_);
    out.active = take(inner);
    out.scores = take(many);
    out.wide = (float*)room.take(rows * many * 4);
    out.chosen = (int64_t*)room.take(rows * slots_ * 8);
    out.shares = (float*)room.take(rows * slots_ * 4);
    return out;
}

void Layer::feed_forward(const Kernels& kernels, const Between& all, const Part& part, float scale,
                         const Rows& out) const {
    const Rows x = part_of(all.middle, part), normed = part_of(all.normed, part);
    const Rows dense = part_of(all.dense, part);
    const Rows active = part_of(all.active, part), scores = part_of(all.scores, part);
    const int64_t many = width_of(kRoute);
    int64_t* chosen = all.chosen + part.begin * slots_;
    float* shares = all.shares + part.begin * slots_;
    const int threads = part.threads;
    norm(kernels, kDenseIn, x, {}, 1.0f, normed, threads);
    linear(kernels, kUp, normed, active, true, threads);
    linear(kernels, kDown, active, dense, false, threads);
    norm(kernels, kDenseOut, dense, {}, 1.0f, dense, threads);
    norm(kernels, kRouter, x, {}, 1.0f, normed, threads);
    linear(kernels, kRoute, normed, scores, false, threads);
    const float* wide = wide_scores(scores, all.wide + part.begin * many);
    kernels.route({wide, expert_scales_, part.count, many, slots_, chosen, shares});
    norm(kernels, kExpertsIn, x, {}, 1.0f, normed, threads);
    experts(kernels, normed, chosen, shares, out, threads);
    norm(kernels, kExpertsOut, out, dense, 1.0f, out, threads);
    norm(kernels, kOut, out, x, scale, out, threads);
}

void Layer::experts(const Kernels& kernels, const Rows& x, const int64_t* chosen, const float* shares,
                    const Rows& out, int threads) const {
    Experts job = experts_job(*weights_[kExpertsUp], *weights_[kExpertsDown]);
    job.x = x;
    job.out = out;
    job.chosen = chosen;
    job.shares = shares;
    job.slots = slots_;
    job.threads = threads;
    kernels.experts(job);
}

}  // namespace sfumato
