// What Python sees: weights held by reference, and one function a kernel.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "layer.hpp"

using namespace sfumato;

namespace {

std::vector<std::tuple<std::string, bool>> instruction_sets() {
    int count = 0;
    const Kernels* const* sets = all_kernels(&count);
    std::vector<std::tuple<std::string, bool>> out;
    for (int i = 0; i < count; i++) out.emplace_back(sets[i]->name, sets[i]->usable());
    return out;
}

bool multiplies_bytes(const std::string& set) { return set_of(set).multiplies_bytes; }
bool matrix_registers(const std::string& set) { return set_of(set).matrix_registers; }

void run_linear(const std::string& set, const Array& x, const Weight& weight, const Array& out,
                bool gated, int threads) {
    need(weight.experts == 1, "linear takes one matrix");
    need(!gated || weight.first.n % 32 == 0, "a gated weight's rows come in 32s");
    need(gated || !weight.values, "a weight with values is a gated one");
    if (gated) need_gated(weight);
    const int64_t width = gated ? weight.first.n / 2 : weight.first.n;
    const Linear job = {rows_of(x, "x", weight.first.k), weight.first, rows_of(out, "out", width), gated,
                        threads_of(threads)};
    need(job.x.count == job.out.count, "x and out must have as many rows");
    need_pairs(job.x, weight.first);
    const Kernels& kernels = set_of(set);
    nb::gil_scoped_release free;
    if (job.x.count > 0) kernels.linear(job);
}

void run_experts(const std::string& set, const Array& x, const Array& chosen, const Array& shares,
                 const Weight& gate_up, const Weight& down, const Array& out, int threads) {
    need(chosen.ndim() == 2, "chosen must have two dimensions");
    need_experts(gate_up, down);
    Experts job = experts_job(gate_up, down);
    job.x = rows_of(x, "x", gate_up.first.k);
    job.out = rows_of(out, "out", down.first.n);
    job.slots = (int64_t)chosen.shape(1);
    need(job.slots > 0, "each row needs a slot");
    job.chosen = table_of<int64_t>(chosen, "chosen", job.x.count, job.slots);
    job.shares = table_of<float>(shares, "shares", job.x.count, job.slots);
    job.threads = threads_of(threads);
    need(job.x.count == job.out.count, "x and out must have as many rows");
    for (int64_t i = 0; i < job.x.count * job.slots; i++)
        need(job.chosen[i] >= 0 && job.chosen[i] < job.experts, "chosen names an expert that is not there");
    const Kernels& kernels = set_of(set);
    nb::gil_scoped_release free;
    if (job.x.count > 0) kernels.experts(job);
}

void run_head(const std::string& set, const Array& x, const Weight& weight, float cap,
              const Array& temperatures, const std::optional<Array>& uniforms, const Array& argmax,
              const std::optional<Array>& sample, const Array& entropy, const Array& maximum,
              const Array& log_sum, const Array& group_maximum, int threads) {
    need(weight.experts == 1 && !weight.values, "the head takes one matrix");
    need(uniforms.has_value() == sample.has_value(), "uniforms and sample come together");
    Head job = {};
    job.x = rows_of(x, "x", weight.first.k);
    job.weight = weight.first;
    job.cap = cap;
    const int64_t rows = job.x.count;
    need_pairs(job.x, weight.first);
    job.temperatures = vector_of<float>(temperatures, "temperatures", rows);
    if (uniforms) {
        job.uniforms = vector_of<double>(*uniforms, "uniforms", rows);
        job.sample = vector_of<int64_t>(*sample, "sample", rows);
    }
    job.argmax = vector_of<int64_t>(argmax, "argmax", rows);
    job.entropy = vector_of<float>(entropy, "entropy", rows);
    job.maximum = vector_of<float>(maximum, "maximum", rows);
    job.log_sum = vector_of<float>(log_sum, "log_sum", rows);
    job.group_maximum = table_of<float>(group_maximum, "group_maximum",
                                        (weight.first.n + kGroup - 1) / kGroup, rows);
    job.threads = threads_of(threads);
    need(cap > 0, "cap must be above zero");
    const Kernels& kernels = set_of(set);
    nb::gil_scoped_release free;
    if (rows > 0) kernels.head(job);
}

void run_log_probabilities(const std::string& set, const Array& x, const Weight& weight, float cap,
                           const Array& temperatures, const Array& log_sum, const Array& ids,
                           const Array& out, int threads) {
    need(weight.experts == 1 && !weight.values, "the head takes one matrix");
    need(ids.ndim() == 2, "ids must have two dimensions");
    LogProbabilities job = {};
    job.x = rows_of(x, "x", weight.first.k);
    job.weight = weight.first;
    job.cap = cap;
    need_pairs(job.x, weight.first);
    job.temperatures = vector_of<float>(temperatures, "temperatures", job.x.count);
    job.log_sum = vector_of<float>(log_sum, "log_sum", job.x.count);
    job.count = (int64_t)ids.shape(1);
    job.ids = table_of<int64_t>(ids, "ids", job.x.count, job.count);
    job.out = const_cast<float*>(table_of<float>(out, "out", job.x.count, job.count));
    job.threads = threads_of(threads);
    need(cap > 0, "cap must be above zero");
    for (int64_t i = 0; i < job.x.count * job.count; i++)
        need(job.ids[i] >= 0 && job.ids[i] < weight.first.n, "ids name one that is not there");
    const Kernels& kernels = set_of(set);
    nb::gil_scoped_release free;
    if (job.x.count > 0) kernels.log_probabilities(job);
}

// Whether soft embeddings can be made of a table.
void need_rows(const Weight& table) {
    need(table.experts == 1 && !table.values, "there is one table");
    const Format format = table.first.format;
    need(format == Format::f32_rows || format == Format::bf16_rows || format == Format::i8_rows,
         "soft embeddings are made of rows as in a checkpoint");
}

void run_soft(const std::string& set, const Array& x, const Weight& weight, float cap,
              const Array& temperatures, const Array& maximum, const Array& log_sum,
              const Array& group_maximum, float factor, const Array& out, int threads) {
    need_rows(weight);
    Soft job = {};
    job.x = rows_of(x, "x", weight.first.k);
    job.weight = weight.first;
    job.cap = cap;
    const int64_t rows = job.x.count;
    need_pairs(job.x, weight.first);
    job.temperatures = vector_of<float>(temperatures, "temperatures", rows);
    job.maximum = vector_of<float>(maximum, "maximum", rows);
    job.log_sum = vector_of<float>(log_sum, "log_sum", rows);
    job.group_maximum = table_of<float>(group_maximum, "group_maximum",
                                        (weight.first.n + kGroup - 1) / kGroup, rows);
    job.factor = factor;
    job.out = rows_of(out, "out", weight.first.k);
    job.threads = threads_of(threads);
    need(job.out.count == rows, "x and out must have as many rows");
    need(cap > 0, "cap must be above zero");
    const Kernels& kernels = set_of(set);
    nb::gil_scoped_release free;
    if (rows > 0) kernels.soft(job);
}

void run_logits(const std::string& set, const Array& x, const Weight& weight, float cap, const Array& out,
                int threads) {
    need(weight.experts == 1 && !weight.values, "the head takes one matrix");
    Logits job = {};
    job.x = rows_of(x, "x", weight.first.k);
    job.weight = weight.first;
    job.cap = cap;
    need_pairs(job.x, weight.first);
    job.out = const_cast<float*>(table_of<float>(out, "out", job.x.count, weight.first.n));
    job.threads = threads_of(threads);
    need(cap > 0, "cap must be above zero");
    const Kernels& kernels = set_of(set);
    nb::gil_scoped_release free;
    if (job.x.count > 0) kernels.logits(job);
}

void run_gather(const std::string& set, const Array& logits, const Weight& weight, float factor,
                const Array& out, int threads) {
    need_rows(weight);
    Gather job = {};
    job.out = rows_of(out, "out", weight.first.k);
    job.rows = job.out.count;
    job.logits = table_of<float>(logits, "logits", job.rows, weight.first.n);
    job.weight = weight.first;
    job.factor = factor;
    job.threads = threads_of(threads);
    const Kernels& kernels = set_of(set);
    nb::gil_scoped_release free;
    if (job.rows > 0) kernels.gather(job);
}

const float* weight_of(const std::optional<Array>& a, int64_t width) {
    return a ? vector_of<float>(*a, "weight", width) : nullptr;
}

void run_norm(const std::string& set, const Array& x, const std::optional<Array>& weight,
              const std::optional<Array>& residual, float eps, float scale, const Array& out, int threads) {
    need(x.ndim() == 2, "x must have two dimensions");
    const int64_t width = (int64_t)x.shape(1);
    need(width > 0, "x must have columns");
    Norm job = {};
    job.x = rows_of(x, "x", width);
    job.weight = weight_of(weight, width);
    if (residual) job.residual = rows_of(*residual, "residual", width);
    job.eps = eps;
    job.scale = scale;
    job.out = rows_of(out, "out", width);
    job.threads = threads_of(threads);
    need(job.x.count == job.out.count && (!residual || job.residual.count == job.x.count),
         "x, residual and out must have as many rows");
    const Kernels& kernels = set_of(set);
    nb::gil_scoped_release free;
    if (job.x.count > 0) kernels.norm(job);
}

void run_heads(const std::string& set, const Array& x, const std::optional<Array>& weight,
               const std::optional<Array>& cosines, const std::optional<Array>& sines, float eps,
               const Array& out, int threads) {
    need(x.ndim() == 4 && out.ndim() == 4, "x and out must have four dimensions");
    need((is_f32(x) || is_bf16(x)) && x.dtype() == out.dtype(), "x and out must both be fp32 or bf16");
    Heads job = {};
    job.x = x.data();
    job.bf16 = is_bf16(x);
    job.batch = (int64_t)x.shape(0);
    job.positions = (int64_t)x.shape(1);
    job.heads = (int64_t)x.shape(2);
    job.dim = (int64_t)x.shape(3);
    job.end = job.batch * job.positions;
    job.stride = job.heads * job.dim;
    need_contiguous(x, "x");
    need_contiguous(out, "out");
    need(job.dim % 2 == 0 && job.dim > 0, "heads must have an even size");
    need((int64_t)out.shape(0) == job.batch && (int64_t)out.shape(1) == job.heads &&
             (int64_t)out.shape(2) == job.positions && (int64_t)out.shape(3) == job.dim,
         "out must be [batch, heads, positions, dim]");
    job.weight = weight_of(weight, job.dim);
    need(cosines.has_value() == sines.has_value(), "cosines and sines come together");
    if (cosines) {
        job.cosines = table_of<float>(*cosines, "cosines", job.batch * job.positions, job.dim);
        job.sines = table_of<float>(*sines, "sines", job.batch * job.positions, job.dim);
    }
    job.eps = eps;
    job.out = const_cast<void*>(out.data());
    job.threads = threads_of(threads);
    const Kernels& kernels = set_of(set);
    nb::gil_scoped_release free;
    kernels.heads(job);
}

void strides_of(const Array& a, int64_t* strides) {
    for (int i = 0; i < 3; i++) strides[i] = a.stride(i);
}

void run_attention(const std::string& set, const Array& queries, const Array& keys, const Array& values,
                   const std::optional<Array>& query_places, const std::optional<Array>& slot_places,
                   const std::optional<Array>& groups, int64_t window, bool aligned, const Array& out,
                   int threads, const std::optional<Array>& state, bool first, bool last) {
    const Array* each[4] = {&queries, &keys, &values, &out};
    for (const Array* a : each) {
        need(a->ndim() == 4 && a->dtype() == queries.dtype(), "all must be [., ., ., dim] of one dtype");
        need(a->shape(3) == queries.shape(3) && a->stride(3) == 1, "heads must be of one size, without gaps");
    }
    need(is_f32(queries) || is_bf16(queries), "attention is fp32 or bf16");
    Attention job = {};
    job.queries = queries.data();
    job.keys = keys.data();
    job.values = values.data();
    job.bf16 = is_bf16(queries);
    job.batch = (int64_t)queries.shape(0);
    job.heads = (int64_t)queries.shape(1);
    job.rows = (int64_t)queries.shape(2);
    job.dim = (int64_t)queries.shape(3);
    job.kv_heads = (int64_t)keys.shape(1);
    job.slots = (int64_t)keys.shape(2);
    need(job.dim > 0 && job.dim % kPanel == 0, "the heads' size must be a multiple of 16");
    need((int64_t)keys.shape(0) == job.batch && job.kv_heads > 0 && job.heads % job.kv_heads == 0,
         "keys must be [batch, kv_heads, slots, dim]");
    for (size_t i = 0; i < 4; i++) need(values.shape(i) == keys.shape(i), "values must be like keys");
    need((int64_t)out.shape(0) == job.batch && (int64_t)out.shape(1) == job.rows &&
             (int64_t)out.shape(2) == job.heads,
         "out must be [batch, rows, heads, dim]");
    need_contiguous(out, "out");
    need(job.slots > 0 && job.slots < (1ll << 31), "there must be slots to attend to");
    strides_of(queries, job.query_strides);
    strides_of(keys, job.key_strides);
    strides_of(values, job.value_strides);
    need(query_places.has_value() == slot_places.has_value(), "queries and slots have places, or neither");
    if (slot_places) {
        job.query_places = table_of<int32_t>(*query_places, "query_places", job.batch, job.rows);
        job.slot_places = table_of<int32_t>(*slot_places, "slot_places", job.batch, job.slots);
        need(job.rows <= job.slots, "the newest slots are the rows' own");
        need(window >= 1 && window <= 1 << 30, "window must be from 1 to 2^30");
        job.window = (int32_t)window;
        job.aligned = aligned;
    }
    need(!groups || slot_places, "groups belong to places");
    need(!state || !slot_places, "slots in parts have no places");
    if (state)
        job.state = const_cast<float*>(table_of<float>(*state, "state", job.batch * job.heads * job.rows,
                                                       job.dim + 2));
    job.first = first;
    job.last = last;
    if (groups) job.groups = table_of<int32_t>(*groups, "groups", job.batch, job.rows);
    job.out = const_cast<void*>(out.data());
    job.threads = threads_of(threads);
    const Kernels& kernels = set_of(set);
    nb::gil_scoped_release free;
    if (job.batch > 0 && job.rows > 0) kernels.attention(job);
}

void run_route(const std::string& set, const Array& scores, const Array& scales, const Array& chosen,
               const Array& shares) {
    need(scores.ndim() == 2 && chosen.ndim() == 2, "scores and chosen must have two dimensions");
    Route job = {};
    job.rows = (int64_t)scores.shape(0);
    job.experts = (int64_t)scores.shape(1);
    job.slots = (int64_t)chosen.shape(1);
    need(job.slots > 0 && job.slots <= job.experts, "there are fewer experts than slots");
    job.scores = table_of<float>(scores, "scores", job.rows, job.experts);
    job.scales = vector_of<float>(scales, "scales", job.experts);
    job.chosen = table_of<int64_t>(chosen, "chosen", job.rows, job.slots);
    job.shares = table_of<float>(shares, "shares", job.rows, job.slots);
    const Kernels& kernels = set_of(set);
    nb::gil_scoped_release free;
    kernels.route(job);
}

void run_accept(const std::string& set, const Array& entropies, const Array& sampled, const Array& fresh,
                float bound, const Array& accepted, const Array& renoised) {
    need(entropies.ndim() == 2, "entropies must have two dimensions");
    Accept job = {};
    job.rows = (int64_t)entropies.shape(0);
    job.length = (int64_t)entropies.shape(1);
    need(job.length < (1ll << 31), "a canvas is too long");
    job.entropies = table_of<float>(entropies, "entropies", job.rows, job.length);
    job.sampled = table_of<int64_t>(sampled, "sampled", job.rows, job.length);
    job.fresh = table_of<int64_t>(fresh, "fresh", job.rows, job.length);
    job.bound = bound;
    job.accepted = const_cast<uint8_t*>(table_of<uint8_t>(accepted, "accepted", job.rows, job.length));
    job.renoised = const_cast<int64_t*>(table_of<int64_t>(renoised, "renoised", job.rows, job.length));
    const Kernels& kernels = set_of(set);
    nb::gil_scoped_release free;
    kernels.accept(job);
}

}  // namespace

NB_MODULE(_kernels, module) {
    module.doc() = "Kernels for the processor; see csrc/kernels.hpp.";
    nb::class_<Weight>(module, "Weight")
        .def(nb::init<const std::string&, const std::vector<Array>&, const std::vector<Array>&,
                      const std::vector<Array>&, const std::vector<Array>&, const std::optional<Array>&,
                      int64_t, bool>(),
             nb::arg("format"), nb::arg("data"), nb::arg("values"), nb::arg("scales"),
             nb::arg("value_scales"), nb::arg("scale").none(), nb::arg("n"), nb::arg("narrow") = false)
        .def_prop_ro("n", [](const Weight& w) { return w.first.n; })
        .def_prop_ro("k", [](const Weight& w) { return w.first.k; })
        .def_prop_ro("experts", [](const Weight& w) { return w.experts; });
    nb::class_<Layer>(module, "Layer")
        .def(nb::init<std::vector<Array>, std::vector<float>, nb::list, Array, int64_t, int64_t>(),
             nb::arg("gains"), nb::arg("eps"), nb::arg("weights"), nb::arg("expert_scales"),
             nb::arg("head_dim"), nb::arg("slots"))
        .def("project", &Layer::project, nb::arg("set"), nb::arg("x"), nb::arg("cosines"), nb::arg("sines"),
             nb::arg("queries"), nb::arg("keys"), nb::arg("values"), nb::arg("raw").none(),
             nb::arg("threads"))
        .def("finish", &Layer::finish, nb::arg("set"), nb::arg("x"), nb::arg("mixed"), nb::arg("scale"),
             nb::arg("out"), nb::arg("threads"));
    module.def("instruction_sets", instruction_sets);
    module.def("give_back_scratch", give_back_scratch);
    module.def("multiplies_bytes", multiplies_bytes, nb::arg("set"));
    module.def("matrix_registers", matrix_registers, nb::arg("set"));
    module.def("linear", run_linear, nb::arg("set"), nb::arg("x"), nb::arg("weight"), nb::arg("out"),
               nb::arg("gated"), nb::arg("threads"));
    module.def("experts", run_experts, nb::arg("set"), nb::arg("x"), nb::arg("chosen"), nb::arg("shares"),
               nb::arg("gate_up"), nb::arg("down"), nb::arg("out"), nb::arg("threads"));
    module.def("head", run_head, nb::arg("set"), nb::arg("x"), nb::arg("weight"), nb::arg("cap"),
               nb::arg("temperatures"), nb::arg("uniforms").none(), nb::arg("argmax"),
               nb::arg("sample").none(), nb::arg("entropy"), nb::arg("maximum"), nb::arg("log_sum"),
               nb::arg("group_maximum"), nb::arg("threads"));
    module.def("log_probabilities", run_log_probabilities, nb::arg("set"), nb::arg("x"), nb::arg("weight"),
               nb::arg("cap"), nb::arg("temperatures"), nb::arg("log_sum"), nb::arg("ids"), nb::arg("out"),
               nb::arg("threads"));
    module.def("soft", run_soft, nb::arg("set"), nb::arg("x"), nb::arg("weight"), nb::arg("cap"),
               nb::arg("temperatures"), nb::arg("maximum"), nb::arg("log_sum"), nb::arg("group_maximum"),
               nb::arg("factor"), nb::arg("out"), nb::arg("threads"));
    module.def("logits", run_logits, nb::arg("set"), nb::arg("x"), nb::arg("weight"), nb::arg("cap"),
               nb::arg("out"), nb::arg("threads"));
    module.def("gather", run_gather, nb::arg("set"), nb::arg("logits"), nb::arg("weight"), nb::arg("factor"),
               nb::arg("out"), nb::arg("threads"));
    module.def("route", run_route, nb::arg("set"), nb::arg("scores"), nb::arg("scales"), nb::arg("chosen"),
               nb::arg("shares"));
    module.def("accept", run_accept, nb::arg("set"), nb::arg("entropies"), nb::arg("sampled"),
               nb::arg("fresh"), nb::arg("bound"), nb::arg("accepted"), nb::arg("renoised"));
    module.def("norm", run_norm, nb::arg("set"), nb::arg("x"), nb::arg("weight").none(),
               nb::arg("residual").none(), nb::arg("eps"), nb::arg("scale"), nb::arg("out"),
               nb::arg("threads"));
    module.def("heads", run_heads, nb::arg("set"), nb::arg("x"), nb::arg("weight").none(),
               nb::arg("cosines").none(), nb::arg("sines").none(), nb::arg("eps"), nb::arg("out"),
               nb::arg("threads"));
    module.def("attention", run_attention, nb::arg("set"), nb::arg("queries"), nb::arg("keys"),
               nb::arg("values"), nb::arg("query_places").none(), nb::arg("slot_places").none(),
               nb::arg("groups").none(), nb::arg("window"), nb::arg("aligned"), nb::arg("out"),
               nb::arg("threads"), nb::arg("state").none() = nb::none(), nb::arg("first") = true,
               nb::arg("last") = true);
}
