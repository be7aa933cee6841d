// A text layer's two halves, each as one call from Python: what stands before attention, and what
// stands behind it. They only chain kernels, each with the arguments that the operations of
// sfumato.ops give it, so that the bits are those of the composed layer (model/fast_layer.py).
#pragma once

#include <vector>

#include "arguments.hpp"

namespace sfumato {

// An RMS norm's weight, null for ones, and its eps.
struct Gain {
    const float* weight;
    float eps;
};

// Rows that go through kernels together, and the threads that share them.
struct Part {
    int64_t begin, count;
    int threads;
};

class Layer {
   public:
    // `gains`: of the input, queries, keys, attention's output, the dense MLP's input and output, the
    // router, the experts' input and output, and the whole. `weights`: of queries, keys, values (None
    // where keys serve as values), output, dense MLP up and down, router, experts up and down.
    Layer(std::vector<Array> gains, std::vector<float> eps, nb::list weights, Array expert_scales,
          int64_t head_dim, int64_t slots);

    void project(const std::string& set, const Array& x, const Array& cosines, const Array& sines,
                 const Array& queries, const Array& keys, const Array& values,
                 const std::optional<Array>& raw, int threads) const;
    void finish(const std::string& set, const Array& x, const Array& mixed, float scale,
                const Array& out, int threads) const;

   private:
    enum { kInput, kQueries, kKeys, kAttended, kDenseIn, kDenseOut, kRouter, kExpertsIn, kExpertsOut, kOut };
    enum { kQ, kK, kV, kO, kUp, kDown, kRoute, kExpertsUp, kExpertsDown };

    class Room;

    // What `finish` computes on its way, of all rows.
    struct Between {
        Rows middle, normed, dense, active, scores;
        float* wide;
        int64_t* chosen;
        float* shares;
    };

    void norm(const Kernels& kernels, int gain, const Rows& x, const Rows& residual, float scale,
              const Rows& out, int threads) const;
    void linear(const Kernels& kernels, int weight, const Rows& x, const Rows& out, bool gated,
                int threads) const;
    void heads(const Kernels& kernels, const Rows& x, const Part& part, const Array& out, const Gain& gain,
               const float* cosines, const float* sines) const;
    Between take_between(int64_t rows, bool bf16) const;
    void feed_forward(const Kernels& kernels, const Between& all, const Part& part, float scale,
                      const Rows& out) const;
    template <class Work>
    void by_parts(const Kernels& kernels, int64_t rows, int64_t all, int threads, const Work& work) const;
    void experts(const Kernels& kernels, const Rows& x, const int64_t* chosen, const float* shares,
                 const Rows& out, int threads) const;
    int64_t width_of(int weight) const { return weights_[weight]->first.n; }

    std::vector<Array> held_;
    nb::list objects_;
    std::vector<Gain> gains_;
    std::vector<const Weight*> weights_;
    const float* expert_scales_;
    Array scales_;
    int64_t hidden_, head_dim_, slots_;
    bool small_, packed_, plain_;  // weights for every thread's cache; all in panels; all in bf16 as they are
};

}  // namespace sfumato
