// Tensor cores and asynchronous copies as sm_80 and everything since has them, sm_89 among it: no Hopper instruction.
#pragma once
#include "real.cuh"

// Two neighbours of a fragment's row, the first in the low half.
template <class T> __device__ __forceinline__ uint32_t pair(float low, float high);
template <> __device__ __forceinline__ uint32_t pair<bf16>(float low, float high) {
    const __nv_bfloat162 two = __floats2bfloat162_rn(low, high);
    return reinterpret_cast<const uint32_t &>(two);
}
template <> __device__ __forceinline__ uint32_t pair<f16>(float low, float high) {
    const __half2 two = __floats2half2_rn(low, high);
    return reinterpret_cast<const uint32_t &>(two);
}

// c[16, 8] += a[16, 16] b[16, 8], accumulated in f32. With g = lane / 4 and t = lane % 4 a thread holds
// a: rows g, g+8, g, g+8 at columns 2t, 2t, 2t+8, 2t+8 and the next; b: rows 2t, 2t+8 and the next at column g;
// c: row g at columns 2t, 2t+1, then row g+8.
template <class T>
__device__ __forceinline__ void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
#define MMA_16(T, type)                                                                                                 \
    template <>                                                                                                         \
    __device__ __forceinline__ void mma<T>(float(&c)[4], const uint32_t(&a)[4], uint32_t b0, uint32_t b1) {             \
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." type "." type ".f32 "                                     \
                     "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"                                            \
                     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                                   \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));                                   \
    }
MMA_16(bf16, "bf16")
MMA_16(f16, "f16")

// The same over 8 instead of 16: a[16, 8] has only the first two registers, b[8, 8] one.
template <class T> __device__ __forceinline__ void mma(float (&c)[4], const uint32_t (&a)[2], uint32_t b);
#define MMA_8(T, type)                                                                                                  \
    template <> __device__ __forceinline__ void mma<T>(float(&c)[4], const uint32_t(&a)[2], uint32_t b) {               \
        asm volatile("mma.sync.aligned.m16n8k8.row.col.f32." type "." type ".f32 "                                      \
                     "{%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"                                                     \
                     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                                   \
                     : "r"(a[0]), "r"(a[1]), "r"(b));                                                                   \
    }
MMA_8(bf16, "bf16")
MMA_8(f16, "f16")

__device__ __forceinline__ uint32_t shared_address(const void *p) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// Four 8x8 matrices of 16-bit values: lane 8m + r has the address of row r of matrix m and gets of each matrix row
// lane / 4, columns 2 (lane % 4) and the next.
__device__ __forceinline__ void ldmatrix(uint32_t (&r)[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}
// Two, whose rows lanes 0 to 15 point at.
__device__ __forceinline__ void ldmatrix(uint32_t (&r)[2], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared_address(row))
                 : "memory");
}
// Transposed: a lane gets column lane / 4, rows 2 (lane % 4) and the next.
__device__ __forceinline__ void ldmatrix_transposed(uint32_t (&r)[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}
__device__ __forceinline__ void ldmatrix_transposed(uint32_t (&r)[2], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared_address(row))
                 : "memory");
}

// Sixteen bytes from memory to shared memory, past the registers and L1; zeros if not `there`, and then no reading.
__device__ __forceinline__ void copy_async(void *to, const void *from, bool there) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
                 "r"(there ? 16 : 0)
                 : "memory");
}
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until all but the last `PENDING` groups of copies have arrived, for this thread.
template <int PENDING> __device__ __forceinline__ void wait_for_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

