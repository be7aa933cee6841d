// Compiled once for each instruction set, with SFUMATO_ISA its name and the flags that allow it.
#include "accept.hpp"
#include "attention.hpp"
#include "experts.hpp"
#include "head.hpp"
#include "linear.hpp"
#include "norm.hpp"
#include "route.hpp"

#if defined(__AMX_BF16__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace sfumato::SFUMATO_ISA {

#if defined(__AMX_BF16__)
// Registers of matrices are used after Linux (5.16 or later) has been asked for them, once for a process and all of
// its threads.
static bool has_matrix_tiles() {
    unsigned a, b, c, d;
    constexpr unsigned bf16 = 1u << 22, tile = 1u << 24;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d & bf16) || !(d & tile)) return false;
    constexpr long ask_for = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, ask_for, tile_data) == 0;
}
#endif

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
#if defined(__AMX_BF16__)
    static const bool tiles = has_matrix_tiles();
    found = found && tiles;
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

extern const Kernels kernels = {SFUMATO_NAME(SFUMATO_ISA), kMultipliesBytes, kInBlocks<Halves>, usable, linear,
                               experts, head, log_probabilities, soft, logits, gather, norm, heads, attention, route,
                               accept};

}  // namespace sfumato::SFUMATO_ISA
