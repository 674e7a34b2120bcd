// Rows in E4M3, 8 bits with 3 of mantissa, each scaled so that its largest value becomes the type's largest, 448.
#pragma once
#include <stdint.h>

constexpr float E4M3_LARGEST = 448.f;

// Four values, the first in the lowest byte, ties to even, saturated; what is not a number stays none.
__device__ __forceinline__ uint32_t e4m3(float a, float b, float c, float d) {
    uint16_t low, high;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(low) : "f"(b), "f"(a));
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(high) : "f"(d), "f"(c));
    return low | uint32_t(high) << 16;
}

// The largest over the block, for every thread.
__device__ __forceinline__ float block_largest(float x, float (&warps)[32]) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, step));
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = x;
    __syncthreads();
    for (int w = 0; w < blockDim.x / 32; ++w) x = fmaxf(x, warps[w]);
    return x;
}

// A row's scale, from its largest value.
struct E4m3Scale {
    float to, of_row;
    __device__ __forceinline__ explicit E4m3Scale(float largest)
        : to(largest > 0.f ? __fdiv_rn(E4M3_LARGEST, largest) : 0.f), of_row(__fdiv_rn(largest, E4M3_LARGEST)) {}
    __device__ __forceinline__ uint32_t four(const float *v) const {
        return e4m3(v[0] * to, v[1] * to, v[2] * to, v[3] * to);
    }
};

// A block makes one row of `columns` values, a multiple of 8 and at most 8 HELD a thread, which stay in registers between
// the search for the largest and the writing. `source.ask(column)` loads what `source.make(v, asked, column)` then makes eight
// neighbouring values of: all of it is asked for before any is looked at.
template <int HELD, class Source>
__device__ __forceinline__ void row_to_e4m3(const Source &source, int columns, uint8_t *bytes, float *of_row) {
    __shared__ float warps[32];
    typename Source::Asked asked[HELD];
#pragma unroll
    for (int h = 0; h < HELD; ++h) {
        const int column = (h * blockDim.x + threadIdx.x) * 8;
        if (column < columns) asked[h] = source.ask(column);
    }
    float v[HELD][8], largest = 0.f;
#pragma unroll
    for (int h = 0; h < HELD; ++h) {
        const int column = (h * blockDim.x + threadIdx.x) * 8;
        if (column >= columns) continue;
        source.make(v[h], asked[h], column);
#pragma unroll
        for (int i = 0; i < 8; ++i) largest = fmaxf(largest, fabsf(v[h][i]));
    }
    const E4m3Scale scale(block_largest(largest, warps));
#pragma unroll
    for (int h = 0; h < HELD; ++h) {
        const int column = (h * blockDim.x + threadIdx.x) * 8;
        if (column >= columns) continue;
        *reinterpret_cast<uint2 *>(bytes + column) = make_uint2(scale.four(v[h]), scale.four(v[h] + 4));
    }
    if (threadIdx.x == 0) *of_row = scale.of_row;
}
