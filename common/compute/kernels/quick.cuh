// Functions that are quick and nearly right.
#pragma once

// 2^x within 2 ulp, 0 far below; 1 / x within 1 ulp.
__device__ __forceinline__ float exp2_quick(float x) {
    float r;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
    return r;
}
__device__ __forceinline__ float reciprocal_quick(float x) {
    float r;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
    return r;
}
