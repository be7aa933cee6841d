// Eight registers that hold matrices: AMX's, or the same computed plainly, for the tests of every machine.
//
// Register 0 to 3 hold sums, fp32 [16 channels][rows]; 4 and 5 weights, bf16 [16 channels][32 values of k];
// 6 and 7 activations, bf16 [16 pairs of k][rows][2]. Rows of activations are 16, or one.
//
// sum += weights . activations adds the products of the even values of k one after the other, those of the odd ones
// too, then both to each other and to the sum; each with one rounding. AMX takes and leaves zero for subnormal numbers,
// arrays keep them.
#pragma once

#include "simd.hpp"

namespace sfumato::SFUMATO_ISA {

#if defined(__AMX_BF16__) || defined(SFUMATO_PLAIN_TILES)
#define SFUMATO_MATRIX_TILES
#endif

constexpr int64_t kBlock = 16;               // rows of activations, or channels, in a register
constexpr int64_t kStep = 32;                // values of k in a register
constexpr int64_t kTileWords = 16 * kBlock;  // of a whole register, which are kilobytes

#if defined(__AMX_BF16__)

class MatrixTiles {
   public:
    SFUMATO_INLINE explicit MatrixTiles(int64_t rows) {
        struct alignas(64) {
            uint8_t palette = 1, start = 0, reserved[14] = {};
            uint16_t bytes[16] = {};
            uint8_t rows[16] = {};
        } shapes;
        for (int i = 0; i < 8; i++) {
            shapes.bytes[i] = i / 2 == 2 ? 64 : (uint16_t)(4 * rows);
            shapes.rows[i] = 16;
        }
        asm volatile("ldtilecfg %0" ::"m"(shapes));
    }
    // A thread that keeps registers in use costs its processor power, and time when it changes threads.
    SFUMATO_INLINE ~MatrixTiles() { asm volatile("tilerelease"); }
    MatrixTiles(const MatrixTiles&) = delete;

    template <int N>
    SFUMATO_INLINE void clear() {
        asm volatile("tilezero %%tmm%c0" ::"i"(N));
    }
    // Lines `stride` bytes apart.
    template <int N>
    SFUMATO_INLINE void load(const void* from, int64_t stride) {
        asm volatile("tileloadd (%1,%2,1), %%tmm%c0" ::"i"(N), "r"(from), "r"(stride) : "memory");
    }
    template <int N>
    SFUMATO_INLINE void store(void* to, int64_t stride) const {
        asm volatile("tilestored %%tmm%c0, (%1,%2,1)" ::"i"(N), "r"(to), "r"(stride) : "memory");
    }
    template <int Sum, int Weights, int Activations>
    SFUMATO_INLINE void multiply() {
        asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(Sum), "i"(Weights), "i"(Activations));
    }
};

#elif defined(SFUMATO_PLAIN_TILES)

class MatrixTiles {
   public:
    explicit MatrixTiles(int64_t rows) : rows_(rows) {}

    template <int N>
    void clear() {
        memset(words_[N], 0, sizeof words_[N]);
    }
    template <int N>
    void load(const void* from, int64_t stride) {
        for (int64_t i = 0; i < 16; i++)
            memcpy(words_[N] + i * kBlock, (const char*)from + i * stride, line<N>());
    }
    template <int N>
    void store(void* to, int64_t stride) const {
        for (int64_t i = 0; i < 16; i++) memcpy((char*)to + i * stride, words_[N] + i * kBlock, line<N>());
    }
    template <int Sum, int Weights, int Activations>
    void multiply() {
        for (int64_t channel = 0; channel < 16; channel++) {
            uint32_t* sums = words_[Sum] + channel * kBlock;
            for (int64_t row = 0; row < rows_; row += kLanes) {
                vf even{}, odd{};
                for (int64_t pair = 0; pair < 16; pair++) {
                    const vu w = vu{} + words_[Weights][channel * kBlock + pair];
                    const vu x = load_words(words_[Activations] + pair * kBlock + row);
                    // Products of bf16 are exact in fp32: fused or not, there is one rounding.
                    even += first_of(w) * first_of(x);
                    odd += second_of(w) * second_of(x);
                }
                const vf sum = (vf)load_words(sums + row) + (even + odd);
                memcpy(sums + row, &sum, sizeof sum);
            }
        }
    }

   private:
    static vu load_words(const uint32_t* from) { return sfumato::SFUMATO_ISA::load<vu>(from); }
    template <int N>
    int64_t line() const {
        return N / 2 == 2 ? 64 : 4 * rows_;
    }

    int64_t rows_;
    alignas(64) uint32_t words_[8][kTileWords] = {};
};

#endif

}  // namespace sfumato::SFUMATO_ISA
