// What all kernels share: the three types that models compute in, and 16 bytes of them at a time.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

#include "order.cuh"
#include "quick.cuh"

using bf16 = __nv_bfloat16;
using f16 = __half;

__device__ __forceinline__ float wide(float x) { return x; }
__device__ __forceinline__ float wide(bf16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float wide(f16 x) { return __half2float(x); }

// To the nearest T, ties to even.
template <class T> __device__ __forceinline__ T narrow(float x);
template <> __device__ __forceinline__ float narrow<float>(float x) { return x; }
// As halves of pairs: conversions of one number go through a unit that has a quarter of the others' throughput or less.
template <> __device__ __forceinline__ bf16 narrow<bf16>(float x) { return __floats2bfloat162_rn(x, 0.f).x; }
template <> __device__ __forceinline__ f16 narrow<f16>(float x) { return __floats2half2_rn(x, 0.f).x; }

// What is left of x where the reference stores it as T.
template <class T> __device__ __forceinline__ float rounded(float x) { return wide(narrow<T>(x)); }

// The same of two and of many.
template <class T> __device__ __forceinline__ float2 rounded(float2 x);
template <> __device__ __forceinline__ float2 rounded<float>(float2 x) { return x; }
template <> __device__ __forceinline__ float2 rounded<bf16>(float2 x) { return __bfloat1622float2(__float22bfloat162_rn(x)); }
template <> __device__ __forceinline__ float2 rounded<f16>(float2 x) { return __half22float2(__float22half2_rn(x)); }
template <class T, int N> __device__ __forceinline__ void round_all(float (&x)[N]) {
    static_assert(N % 2 == 0, "pairs");
#pragma unroll
    for (int i = 0; i < N; i += 2) {
        const float2 two = rounded<T>(make_float2(x[i], x[i + 1]));
        x[i] = two.x, x[i + 1] = two.y;
    }
}

// Elements of T in 16 bytes, the most that a thread moves at once.
template <class T> constexpr int PACK = 16 / sizeof(T);

// Elements `first .. first + N` of a row of `columns`, zeros beyond its end. `aligned`: every row starts and ends on
// 16 bytes, so that a pack is whole or not there at all.
template <int N, class T>
__device__ __forceinline__ void load(float (&out)[N], const T *row, int first, int columns, bool aligned) {
    constexpr int P = PACK<T>;
    static_assert(N % P == 0, "whole packs");
    if (aligned && first + N <= columns) {
#pragma unroll
        for (int j = 0; j < N / P; ++j) {
            const uint4 bits = *reinterpret_cast<const uint4 *>(row + first + j * P);
            const T *x = reinterpret_cast<const T *>(&bits);
#pragma unroll
            for (int i = 0; i < P; ++i) out[j * P + i] = wide(x[i]);
        }
    } else {
#pragma unroll
        for (int i = 0; i < N; ++i) out[i] = first + i < columns ? wide(row[first + i]) : 0.f;
    }
}

// The opposite of load; nothing is written beyond the row's end.
template <int N, class T>
__device__ __forceinline__ void store(const float (&x)[N], T *row, int first, int columns, bool aligned) {
    constexpr int P = PACK<T>;
    static_assert(N % P == 0, "whole packs");
    if (aligned && first + N <= columns) {
#pragma unroll
        for (int j = 0; j < N / P; ++j) {
            uint4 bits;
            T *out = reinterpret_cast<T *>(&bits);
#pragma unroll
            for (int i = 0; i < P; ++i) out[i] = narrow<T>(x[j * P + i]);
            *reinterpret_cast<uint4 *>(row + first + j * P) = bits;
        }
    } else {
#pragma unroll
        for (int i = 0; i < N; ++i)
            if (first + i < columns) row[first + i] = narrow<T>(x[i]);
    }
}

// One kernel per type: M(suffix of the name, type).
#define FOR_EACH_TYPE(M) M(bf16, bf16) M(f16, f16) M(f32, float)
