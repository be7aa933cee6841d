// What Python hands over, checked: everything that a kernel takes for granted is verified here, in
// words that name the argument.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <optional>
#include <string>
#include <vector>

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
    if (a.size() == 0) return;
    int64_t step = 1;
    for (size_t i = a.ndim(); i-- > 0;) {
        need(a.shape(i) <= 1 || a.stride(i) == step, std::string(name) + " must be contiguous");
        step *= (int64_t)a.shape(i);
    }
}

// Matrices of one format and shape, as long as Python keeps them. They come as stacks, each a tensor
// [matrices, ..]; `values`, `scales` and `value_scales` are empty or one for each stack.
struct Weight {
    std::vector<Matrix> matrices;
    Matrix first;  // of them
    int64_t experts;
    bool values;  // whether each matrix is a gated one in two halves

    Weight(const std::string& format, const std::vector<Array>& data, const std::vector<Array>& other,
           const std::vector<Array>& scales, const std::vector<Array>& other_scales,
           const std::optional<Array>& scale, int64_t n, bool narrow)
        : values(!other.empty()) {
        const bool nvfp4 = format == "nvfp4_rows", panels = format == "bf16_panels";
        const bool bytes = format == "i8_rows";
        need(nvfp4 || bytes || panels || format == "f32_rows" || format == "bf16_rows",
             "unknown weight format " + format);
        need(!data.empty() && n >= 1 && n < (1ll << 31), "a weight has matrices and rows");
        need(!values || (other.size() == data.size() && !panels && !bytes), "values do not fit the data");
        need(!values || n % 32 == 0, "a gated weight's rows come in 32s");
        need(scales.size() == (nvfp4 ? data.size() : 0), "scales belong to NVFP4, one for each of data");
        need(other_scales.size() == (nvfp4 ? other.size() : 0), "values' scales belong to NVFP4's values");
        need(scale.has_value() == (nvfp4 || bytes), "a scale belongs to NVFP4 and to 8 bits");
        for (size_t i = 0; i < data.size(); i++) {
            const Array* halves = values ? &other[i] : nullptr;
            if (nvfp4)
                add_nvfp4(data[i], scales[i], halves, values ? &other_scales[i] : nullptr, n);
            else if (panels)
                add_panels(data[i], n);
            else if (bytes)
                add_bytes(data[i], *scale, n);
            else
                add_rows(data[i], halves, format == "bf16_rows", n);
        }
        need(!matrices.empty(), "a weight has at least one matrix");
        experts = (int64_t)matrices.size();
        need(!narrow || nvfp4 || bytes, "activations in 8 bits are for NVFP4 and rows in 8 bits");
        for (Matrix& one : matrices) one.narrow = narrow;
        if (nvfp4) set_scales(*scale);
        first = matrices[0];
        for (const Matrix& one : matrices) need(one.k == first.k, "all matrices must have one shape");
        need(first.k > 0 && first.k < (1ll << 31), "a weight's sizes are out of range");
        for (const auto* held : {&data, &other, &scales, &other_scales})
            held_.insert(held_.end(), held->begin(), held->end());
        if (bytes) held_.push_back(*scale);
    }

  private:
    std::vector<Array> held_;  // what the matrices lie in

    void add_rows(const Array& data, const Array* other, bool bf16, int64_t n) {
        need(data.ndim() == 3 && (bf16 ? is_bf16(data) : is_f32(data)),
             "rows must be [matrices, n, k] of the format's dtype");
        need((int64_t)data.shape(1) * (other ? 2 : 1) == n, "n must be the rows' number");
        if (other) {
            need(other->dtype() == data.dtype() && other->ndim() == 3, "values must be like data");
            for (size_t i = 0; i < 3; i++)
                need(other->shape(i) == data.shape(i) && other->stride(i) == data.stride(i),
                     "values must lie as data does");
        }
        const int64_t k = (int64_t)data.shape(2), size = bf16 ? 2 : 4;
        need(data.stride(2) == 1, "rows must lie without gaps");
        need(!bf16 || k % 2 == 0, "k must be even");
        for (int64_t i = 0; i < (int64_t)data.shape(0); i++) {
            Matrix one = plain(bf16 ? Format::bf16_rows : Format::f32_rows, n, k);
            one.data = (const char*)data.data() + i * data.stride(0) * size;
            if (other) one.values = (const char*)other->data() + i * data.stride(0) * size;
            one.stride = data.stride(1);
            matrices.push_back(one);
        }
    }

    void add_panels(const Array& data, int64_t n) {
        need(data.ndim() == 5 && is_bf16(data) && data.shape(3) == 16 && data.shape(4) == 2,
             "panels must be bf16 [matrices, panels, k / 2, 16, 2]");
        need_contiguous(data, "panels");
        need((int64_t)data.shape(1) == (n + kPanel - 1) / kPanel, "panels must cover n");
        const int64_t k = (int64_t)data.shape(2) * 2;
        for (int64_t i = 0; i < (int64_t)data.shape(0); i++) {
            Matrix one = plain(Format::bf16_panels, n, k);
            one.data = (const char*)data.data() + i * (int64_t)data.shape(1) * k * kPanel * 2;
            matrices.push_back(one);
        }
    }

    void add_bytes(const Array& data, const Array& scale, int64_t n) {
        need(data.dtype() == nb::dtype<int8_t>() && data.ndim() == 3 && data.shape(0) == 1 &&
                 (int64_t)data.shape(1) == n,
             "rows in 8 bits must be int8 [1, n, k]");
        need(data.shape(2) % 2 == 0 && data.stride(2) == 1, "k must be even, and rows without gaps");
        need(matrices.empty() && is_f32(scale) && scale.ndim() == 1 && (int64_t)scale.shape(0) == n,
             "scale must be fp32 [n]");
        need_contiguous(scale, "scale");
        Matrix one = plain(Format::i8_rows, n, (int64_t)data.shape(2));
        one.data = data.data();
        one.stride = data.stride(1);
        one.row_scales = (const float*)scale.data();
        matrices.push_back(one);
    }

    void add_nvfp4(const Array& codes, const Array& scales, const Array* other,
                   const Array* other_scales, int64_t n) {
        const int64_t rows = other ? n / 2 : n;
        need(codes.ndim() == 3, "codes must be uint8 [matrices, n, k / 2]");
        const int64_t count = (int64_t)codes.shape(0), k = (int64_t)codes.shape(2) * 2;
        need(k % 16 == 0, "k must be a multiple of 16");
        need_bytes(codes, "codes", count, rows, k / 2);
        need_bytes(scales, "scales", count, rows, k / 16);
        if (other) {
            need_bytes(*other, "values", count, rows, k / 2);
            need_bytes(*other_scales, "the values' scales", count, rows, k / 16);
        }
        for (int64_t i = 0; i < count; i++) {
            Matrix one = plain(Format::nvfp4_rows, n, k);
            one.data = (const char*)codes.data() + i * rows * (k / 2);
            one.scales = (const uint8_t*)scales.data() + i * rows * (k / 16);
            if (other) {
                one.values = (const char*)other->data() + i * rows * (k / 2);
                one.value_scales = (const uint8_t*)other_scales->data() + i * rows * (k / 16);
            }
            matrices.push_back(one);
        }
    }

    static void need_bytes(const Array& a, const char* name, int64_t count, int64_t rows,
                           int64_t columns) {
        need(a.dtype() == nb::dtype<uint8_t>() && a.ndim() == 3 && (int64_t)a.shape(0) == count &&
                 (int64_t)a.shape(1) == rows && (int64_t)a.shape(2) == columns,
             std::string(name) + " must be uint8 [" + std::to_string(count) + ", " +
                 std::to_string(rows) + ", " + std::to_string(columns) + "]");
        need_contiguous(a, name);
    }

    static Matrix plain(Format format, int64_t n, int64_t k) {
        Matrix one = {};
        one.format = format;
        one.scale = one.value_scale = 1.0f;
        one.n = n;
        one.k = k;
        return one;
    }

    void set_scales(const Array& scale) {
        need(is_f32(scale) && scale.ndim() == 2 && (int64_t)scale.shape(0) == experts &&
                 scale.shape(1) == 2,
             "scale must be fp32 [matrices, 2]");
        need_contiguous(scale, "scale");
        const float* from = (const float*)scale.data();
        for (Matrix& one : matrices) {
            one.scale = *from++;
            one.value_scale = *from++;
        }
    }
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
    const bool rows = weight.first.format != Format::bf16_panels;
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
    need((gate_up.first.format == Format::i8_rows) == (down.first.format == Format::i8_rows),
         "gate_up and down must both be in 8 bits or neither");  // 8-bit activations suit the one or the other
}

// The weights' part of a task for the experts.
inline Experts experts_job(const Weight& gate_up, const Weight& down) {
    Experts job = {};
    job.experts = gate_up.experts;
    job.gate_up = gate_up.matrices.data();
    job.down = down.matrices.data();
    return job;
}

}  // namespace sfumato
