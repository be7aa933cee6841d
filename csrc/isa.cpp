// Compiled once for each instruction set, with SFUMATO_ISA its name and the flags that allow it.
#include "accept.hpp"
#include "attention.hpp"
#include "experts.hpp"
#include "head.hpp"
#include "linear.hpp"
#include "norm.hpp"
#include "route.hpp"

namespace sfumato::SFUMATO_ISA {

static bool usable() {
#if defined(__AVX512F__)
    bool found = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                 __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
#if defined(__AVX512VNNI__)
    found = found && __builtin_cpu_supports("avx512vnni");
#endif
#if defined(__AVX512BF16__)
    found = found && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vbmi");
#endif
    return found;
#elif defined(__AVX2__)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
    return true;
#endif
}

#define SFUMATO_TEXT(name) #name
#define SFUMATO_NAME(name) SFUMATO_TEXT(name)

extern const Kernels kernels = {SFUMATO_NAME(SFUMATO_ISA), kMultipliesBytes, usable, linear, experts, head,
                               log_probabilities, soft, logits, gather, norm, heads, attention, route, accept};

}  // namespace sfumato::SFUMATO_ISA
