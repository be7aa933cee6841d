// What Python hands over, checked: everything that a kernel takes for granted is verified here, in
// words that name the argument.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <optional>
#include <string>

#include "kernels.hpp"

namespace sfumato {

namespace nb = nanobind;

using Array = nb::ndarray<nb::device::cpu>;

inline bool is_bf16(const Array& a) {
    return a.dtype().code == (uint8_t)nb::dlpack::dtype_code::Bfloat && a.dtype().bits == 16;
}
inline bool is_f32(const Array& a) { return a.dtype() == nb::dtype<float>(); }

inline void need(bool condition, const std::string& message) {
    if (!condition) throw nb::value_error(message.c_str());
}

inline void need_contiguous(const Array& a, const char* name) {
    int64_t step = 1;
    for (size_t i = a.ndim(); i-- > 0;) {
        need(a.shape(i) <= 1 || a.stride(i) == step, std::string(name) + " must be contiguous");
        step *= (int64_t)a.shape(i);
    }
}

// One matrix or a stack of them, as long as Python keeps it.
struct Weight {
    Array data;
    std::optional<Array> values, scales, scale;
    Matrix first;  // of the stack
    int64_t experts, step, scales_step;

    Weight(const std::string& format, Array data_, std::optional<Array> values_,
           std::optional<Array> scales_, std::optional<Array> scale_, int64_t n)
        : data(std::move(data_)),
          values(std::move(values_)),
          scales(std::move(scales_)),
          scale(std::move(scale_)) {
        need(data.ndim() >= 1 && n >= 1, "a weight has matrices and rows");
        experts = (int64_t)data.shape(0);
        need(experts >= 1, "a weight has at least one matrix");
        first = {Format::f32_rows, data.data(), nullptr, nullptr, 1.0f, 1.0f, n, 0, 0};
        scales_step = 0;
        if (format == "f32_rows" || format == "bf16_rows")
            rows(format == "bf16_rows");
        else if (format == "bf16_panels")
            panels();
        else if (format == "nvfp4_panels")
            nvfp4();
        else
            need(false, "unknown weight format " + format);
        if (scale) {
            need(is_f32(*scale) && scale->ndim() == 2 && (int64_t)scale->shape(0) == experts &&
                     scale->shape(1) == 2,
                 "scale must be fp32 [matrices, 2]");
            need_contiguous(*scale, "scale");
            first.scale = ((const float*)scale->data())[0];
            first.value_scale = ((const float*)scale->data())[1];
        }
        need(first.k > 0 && first.k < (1ll << 31) && n < (1ll << 31), "a weight's sizes are out of range");
    }

    void rows(bool bf16) {
        need(data.ndim() == 3 && (bf16 ? is_bf16(data) : is_f32(data)),
             "rows must be [matrices, n, k] of the format's dtype");
        need((int64_t)data.shape(1) * (values ? 2 : 1) == first.n, "n must be the rows' number");
        need(!scales && !scale, "rows have no scales");
        if (values) {
            need(values->dtype() == data.dtype() && values->ndim() == 3, "values must be like data");
            for (size_t i = 0; i < 3; i++)
                need(values->shape(i) == data.shape(i) && values->stride(i) == data.stride(i),
                     "values must lie as data does");
            need(first.n % 32 == 0, "a gated weight's rows come in 32s");
            first.values = values->data();
        }
        first.format = bf16 ? Format::bf16_rows : Format::f32_rows;
        first.k = (int64_t)data.shape(2);
        need(data.stride(2) == 1, "rows must lie without gaps");
        need(!bf16 || first.k % 2 == 0, "k must be even");
        first.stride = data.stride(1);
        step = data.stride(0) * (bf16 ? 2 : 4);
    }

    void panels() {
        need(data.ndim() == 5 && is_bf16(data) && data.shape(3) == 16 && data.shape(4) == 2,
             "panels must be bf16 [matrices, panels, k / 2, 16, 2]");
        need_contiguous(data, "panels");
        need((int64_t)data.shape(1) == (first.n + kPanel - 1) / kPanel, "panels must cover n");
        need(!scales && !scale && !values, "bf16 panels have no scales and no values of their own");
        first.format = Format::bf16_panels;
        first.k = (int64_t)data.shape(2) * 2;
        step = (int64_t)data.shape(1) * first.k * kPanel * 2;
    }

    void nvfp4() {
        need(data.ndim() == 5 && data.dtype() == nb::dtype<uint8_t>() && data.shape(3) == 8 &&
                 data.shape(4) == 16,
             "codes must be uint8 [matrices, panels, k / 16, 8, 16]");
        need_contiguous(data, "codes");
        need((int64_t)data.shape(1) == (first.n + kPanel - 1) / kPanel, "codes must cover n");
        need(scales && scale && !values, "codes need scales and a scale, and no values of their own");
        need(scales->dtype() == nb::dtype<uint8_t>() && scales->ndim() == 4 &&
                 scales->shape(0) == data.shape(0) && scales->shape(1) == data.shape(1) &&
                 scales->shape(2) == data.shape(2) && scales->shape(3) == 16,
             "scales must be uint8 [matrices, panels, k / 16, 16]");
        need_contiguous(*scales, "scales");
        first.format = Format::nvfp4_panels;
        first.k = (int64_t)data.shape(2) * 16;
        first.scales = (const uint8_t*)scales->data();
        step = (int64_t)data.shape(1) * first.k / 16 * 128;
        scales_step = (int64_t)data.shape(1) * first.k / 16 * 16;
    }

    const float* all_scales() const { return scale ? (const float*)scale->data() : nullptr; }
};

inline Rows rows_of(const Array& a, const char* name, int64_t width) {
    const std::string text = name;
    need(a.ndim() == 2, text + " must have two dimensions");
    need(is_bf16(a) || is_f32(a), text + " must be fp32 or bf16");
    need((int64_t)a.shape(1) == width,
         text + " must be " + std::to_string(width) + " wide, not " + std::to_string(a.shape(1)));
    need(a.shape(1) <= 1 || a.stride(1) == 1, text + " must lie without gaps in a row");
    need(a.shape(0) <= 1 || a.stride(0) >= width, text + " must have rows one after the other");
    const int64_t stride = a.shape(0) > 1 ? a.stride(0) : width;
    return {const_cast<void*>(a.data()), is_bf16(a), (int64_t)a.shape(0), width, stride};
}

// Kernels read bf16 rows as pairs, unless the weight is fp32.
inline void need_pairs(const Rows& x, const Matrix& weight) {
    need(!x.bf16 || weight.format == Format::f32_rows || x.stride % 2 == 0,
         "x must have its bf16 rows at even places");
}

template <class T>
T* vector_of(const Array& a, const char* name, int64_t size) {
    need(a.dtype() == nb::dtype<T>() && a.ndim() == 1 && (int64_t)a.shape(0) == size,
         std::string(name) + " must have " + std::to_string(size) + " values of its type");
    need_contiguous(a, name);
    return (T*)const_cast<void*>(a.data());
}

template <class T>
T* table_of(const Array& a, const char* name, int64_t rows, int64_t columns) {
    need(a.dtype() == nb::dtype<T>() && a.ndim() == 2 && (int64_t)a.shape(0) == rows &&
             (int64_t)a.shape(1) == columns,
         std::string(name) + " has the wrong shape or type");
    need_contiguous(a, name);
    return (T*)const_cast<void*>(a.data());
}

inline int threads_of(int threads) {
    need(threads >= 1 && threads <= 4096, "threads must be from 1 to 4096");
    return threads;
}

inline const Kernels& set_of(const std::string& name) {
    int count = 0;
    const Kernels* const* sets = all_kernels(&count);
    for (int i = 0; i < count; i++)
        if (name == sets[i]->name) {
            need(sets[i]->usable(), "this processor cannot run the kernels for " + name);
            return *sets[i];
        }
    throw nb::value_error(("there are no kernels for " + name).c_str());
}

// In rows a gated weight comes in two halves; in panels they are woven already.
inline void need_gated(const Weight& weight) {
    const bool rows = weight.first.format == Format::f32_rows || weight.first.format == Format::bf16_rows;
    need(!rows || weight.values, "a gated weight in rows needs its values");
}

// Whether a way up and a way down belong together.
inline void need_experts(const Weight& gate_up, const Weight& down) {
    need(!down.values, "down has no values");
    need_gated(gate_up);
    need(down.experts == gate_up.experts, "gate_up and down must have as many experts");
    need(gate_up.first.n == 2 * down.first.k && down.first.k % 16 == 0, "gate_up and down do not fit");
    need((gate_up.first.format == Format::f32_rows) == (down.first.format == Format::f32_rows),
         "gate_up and down must both be fp32 or neither");
}

// The weights' part of a task for the experts.
inline Experts experts_job(const Weight& gate_up, const Weight& down) {
    Experts job = {};
    job.experts = gate_up.experts;
    job.gate_up = gate_up.first;
    job.down = down.first;
    job.gate_up_step = gate_up.step;
    job.down_step = down.step;
    job.gate_up_scales = gate_up.scales_step;
    job.down_scales = down.scales_step;
    job.gate_up_scale = gate_up.all_scales();
    job.down_scale = down.all_scales();
    return job;
}

}  // namespace sfumato
