// Activations that several kernels apply.
#pragma once
#include "real.cuh"

// x (1 + tanh u) / 2 with u = sqrt(2/pi) (x + 0.044715 x^3), which is x / (1 + exp(-2u)).
template <class T> __device__ __forceinline__ float gelu_tanh(float x) {
    constexpr float TWICE = 1.5957691216057308f, CUBE = 0.044715f, LOG2_E = 1.4426950408889634f;
    // The quick forms are off by some 1e-6 of their value, which no half of 16 bits shows.
    if constexpr (sizeof(T) == 2)
        return x * reciprocal_quick(1.f + exp2_quick(x * fmaf(x * x, -TWICE * CUBE * LOG2_E, -TWICE * LOG2_E)));
    return x / (1.f + expf(-TWICE * x * (1.f + CUBE * x * x)));
}

__device__ __forceinline__ float gelu_erf(float x) { return 0.5f * x * (1.f + erff(x * 0.70710678118654752f)); }

// x sigmoid(x), which is x / (1 + exp(-x)); quick as above. Far below zero the exponential is infinite and the outcome 0.
template <class T> __device__ __forceinline__ float silu(float x) {
    constexpr float LOG2_E = 1.4426950408889634f;
    if constexpr (sizeof(T) == 2) return x * reciprocal_quick(1.f + exp2_quick(-LOG2_E * x));
    return x / (1.f + expf(-x));
}
