// The list of instruction sets, and the workers' memory: compiled for the plainest processor.
#include <cstdlib>
#include <new>

#include "kernels.hpp"

namespace sfumato {

#define SFUMATO_SET(name)          \
    namespace name {               \
    extern const Kernels kernels;  \
    }
#if defined(SFUMATO_AMX)
SFUMATO_SET(amx_bf16)
#endif
#if defined(SFUMATO_X86)
SFUMATO_SET(avx512_bf16)
SFUMATO_SET(avx512_vnni)
SFUMATO_SET(avx512)
SFUMATO_SET(avx2)
#endif
SFUMATO_SET(portable)
SFUMATO_SET(portable_amx)

#if defined(SFUMATO_X86)
namespace {

// An Intel Emerald Rapids runs the bf16 instruction at half the rate, in arithmetic, of fp32's (78 against
// 140 GFLOP/s on one core), and so, as far as tables of instructions go, do its relatives; an AMD Zen 5 at
// twice that rate (1.04 against 0.52 TFLOP/s on two).
bool bf16_is_slow() { return __builtin_cpu_is("intel"); }

}  // namespace
#endif

const Kernels* const* all_kernels(int* count) {
#if defined(SFUMATO_X86)
    static const Kernels* const sets[] = {
#if defined(SFUMATO_AMX)
        &amx_bf16::kernels,
#endif
        bf16_is_slow() ? &avx512_vnni::kernels : &avx512_bf16::kernels,
        bf16_is_slow() ? &avx512_bf16::kernels : &avx512_vnni::kernels,
        &avx512::kernels,
        &avx2::kernels,
        &portable::kernels,
        &portable_amx::kernels,
    };
#else
    static const Kernels* const sets[] = {&portable::kernels, &portable_amx::kernels};
#endif
    *count = sizeof sets / sizeof sets[0];
    return sets;
}

namespace {

constexpr int kSlots = kRoomSlot + 1;
constexpr int64_t kLarge = 32 << 20;  // more than a canvas of the released model leaves: 22 MB of experts

struct Memory {
    void* at[kSlots] = {};
    int64_t size[kSlots] = {};

    ~Memory() { give_back(0); }

    void give_back(int64_t least) {
        for (int slot = 0; slot < kSlots; slot++) {
            if (size[slot] < least) continue;
            std::free(at[slot]);
            at[slot] = nullptr;
            size[slot] = 0;
        }
    }
};

thread_local Memory memory;

}  // namespace

void* scratch(int slot, int64_t bytes) {
    if (memory.size[slot] < bytes) {
        std::free(memory.at[slot]);
        const int64_t rounded = (bytes + 4095) / 4096 * 4096;
        memory.at[slot] = std::aligned_alloc(64, (size_t)rounded);
        memory.size[slot] = memory.at[slot] ? rounded : 0;
        // Slots 0 and 1 and the layers' room hold what grows with the rows. They are asked for outside of parallel
        // regions, or where what is thrown is caught (by_parts in layer.cpp), and Python gets a MemoryError.
        if (!memory.at[slot] && (slot < 2 || slot == kRoomSlot)) throw std::bad_alloc();
        if (!memory.at[slot]) std::abort();  // a few MB that a worker, which cannot throw, must have
    }
    return memory.at[slot];
}

void give_back_scratch() { memory.give_back(kLarge); }

}  // namespace sfumato
