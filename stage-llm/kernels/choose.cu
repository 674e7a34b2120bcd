// From logits to a token (choose.rs).
#include "warp.cuh"

constexpr int THREADS = 1024;

// out = cap * tanh(z / cap), rounded to T after each of the three steps; without a cap, z.
template <class T> __device__ inline void soft_cap(const void* z, float* out, int n, float cap) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    auto rounded = [](float x) { return T::widen(T::narrow(x)); };
    float x = T::widen(static_cast<const typename T::Element*>(z)[i]);
    out[i] = cap > 0.f ? rounded(rounded(tanhf(rounded(x * (1.f / cap)))) * cap) : x;
}

extern "C" __global__ void soft_cap_bf16(const void* z, float* out, int n, float cap) { soft_cap<Bf16>(z, out, n, cap); }
extern "C" __global__ void soft_cap_f16(const void* z, float* out, int n, float cap) { soft_cap<F16>(z, out, n, cap); }
extern "C" __global__ void soft_cap_f32(const void* z, float* out, int n, float cap) { soft_cap<F32>(z, out, n, cap); }

// The index of the largest of a row's n numbers, of equals the first; all ones if one is none. Grid: a block for each row.
extern "C" __global__ void __launch_bounds__(THREADS) first_largest(const float* x, uint32_t* out, int n) {
    x += size_t(blockIdx.x) * n;
    __shared__ float values[THREADS / 32];
    __shared__ int indices[THREADS / 32];
    float best = 0.f;
    int at = n;
    bool none = false;
    // A later one wins only if it is larger; an earlier one also if it is equal.
    auto take = [&](float v, int i) {
        if (i < n && (at == n || v > best || (v == best && i < at))) best = v, at = i;
    };
#pragma unroll 8
    for (int i = threadIdx.x; i < n; i += THREADS) {
        float v = x[i];
        none |= v != v;
        take(v, i);
    }
    none = __syncthreads_or(none);
    for (int step = 16; step > 0; step /= 2) {
        float v = __shfl_xor_sync(0xFFFFFFFFu, best, step);
        int i = __shfl_xor_sync(0xFFFFFFFFu, at, step);
        take(v, i);
    }
    if (threadIdx.x % 32 == 0) values[threadIdx.x / 32] = best, indices[threadIdx.x / 32] = at;
    __syncthreads();
    if (threadIdx.x >= 32) return;
    best = values[threadIdx.x], at = indices[threadIdx.x];
    for (int step = 16; step > 0; step /= 2) {
        float v = __shfl_xor_sync(0xFFFFFFFFu, best, step);
        int i = __shfl_xor_sync(0xFFFFFFFFu, at, step);
        take(v, i);
    }
    if (threadIdx.x == 0) out[blockIdx.x] = none ? ~0u : uint32_t(at);
}
