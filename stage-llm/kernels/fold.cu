// Columns of a matrix that meet the same input, added up: o_proj's query heads of one kv head (fold.rs).
#include "warp.cuh"

// w [rows, heads * group, width] to out [rows, heads, width], summed in f32 and rounded once. A thread has 16 bytes.
template <class T> __device__ inline void fold(const void* w, void* out, int rows, int heads, int group, int width) {
    using E = typename T::Element;
    constexpr int N = 16 / sizeof(E);
    struct alignas(16) Pack {
        E v[N];
    };
    int packs = width / N;
    long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= (long long)rows * heads * packs) return;
    const Pack* from = static_cast<const Pack*>(w) + i / packs * group * packs + i % packs;
    float sum[N] = {};
    for (int g = 0; g < group; g++) {
        Pack p = from[g * packs];
#pragma unroll
        for (int j = 0; j < N; j++) sum[j] += T::widen(p.v[j]);
    }
    Pack p;
#pragma unroll
    for (int j = 0; j < N; j++) p.v[j] = T::narrow(sum[j]);
    static_cast<Pack*>(out)[i] = p;
}

#define FOLD(NAME, T)                                                                                                \
    extern "C" __global__ void fold_##NAME(const void* w, void* out, int rows, int heads, int group, int width) {    \
        fold<T>(w, out, rows, heads, group, width);                                                                  \
    }
FOLD(bf16, Bf16)
FOLD(f16, F16)
FOLD(f32, F32)
