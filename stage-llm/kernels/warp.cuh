// What a warp can do, as plain functions over 32-bit registers: two 16-bit values to a register ("pair").
#pragma once
#include <cstdint>

#include "../../common/compute/kernels/order.cuh"
#include "../../common/compute/kernels/quick.cuh"

// (a & MASK) | b in one instruction: the compiler makes two where both are constants.
template <uint32_t MASK> __device__ inline uint32_t masked_or(uint32_t a, uint32_t b) {
    uint32_t r;
    asm("lop3.b32 %0, %1, %2, %3, 0xEA;" : "=r"(r) : "r"(a), "n"(MASK), "r"(b));
    return r;
}

// 16-bit types as tags. `widen` and `narrow` are for single values, the rest for pairs.
struct Bf16 {
    using Element = uint16_t;
    static constexpr uint32_t ONE = 0x3F803F80u;
    // 16.0: its mantissa has room for a nibble of integer at bit NIBBLE.
    static constexpr uint32_t SIXTEEN = 0x41804180u;
    static constexpr int NIBBLE = 3;
    // The number whose mantissa's lowest bit is 1.
    static constexpr uint32_t WHOLE = 0x43004300u;
    static constexpr float WHOLE_VALUE = 128.f;

    static __device__ float widen(uint16_t v) { return __uint_as_float(uint32_t(v) << 16); }
    static __device__ uint16_t narrow(float v) {
        uint16_t r;
        asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(r) : "f"(v));
        return r;
    }
    static __device__ uint32_t pack(float low, float high) {
        uint32_t r;
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
        return r;
    }
    // a * b + c of both halves, each rounded once.
    static __device__ uint32_t fma(uint32_t a, uint32_t b, uint32_t c) {
        uint32_t r;
        asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
        return r;
    }
    // d[16 x 8] += a[16 x 16] b[16 x 8], accumulated in f32.
    static __device__ void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
        asm volatile(
            "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    }
    // Signed bytes in the low byte of each half (the high ones are ignored) as numbers, exactly. bf16 has 7 bits of
    // mantissa: the seven low bits ride on 128, the sign bit makes what is taken off it 128 or 256.
    static __device__ uint32_t bytes(uint32_t lanes) {
        uint32_t low = (lanes & 0x007F007Fu) | 0x43004300u, high = (lanes & 0x00800080u) | 0xC300C300u;
        return fma(low, ONE, high);
    }
    // The same as a sum of two, for products that need not be of one number each.
    static __device__ uint32_t bytes_first(uint32_t lanes) { return masked_or<0x007F007Fu>(lanes, 0x43004300u); }
    static __device__ uint32_t bytes_second(uint32_t lanes) { return masked_or<0x00800080u>(lanes, 0xC300C300u); }
};

struct F16 {
    using Element = uint16_t;
    static constexpr uint32_t ONE = 0x3C003C00u;
    static constexpr uint32_t SIXTEEN = 0x4C004C00u;
    static constexpr int NIBBLE = 6;
    static constexpr uint32_t WHOLE = 0x64006400u;
    static constexpr float WHOLE_VALUE = 1024.f;

    static __device__ float widen(uint16_t v) {
        float r;
        asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(v));
        return r;
    }
    static __device__ uint16_t narrow(float v) {
        uint16_t r;
        asm("cvt.rn.f16.f32 %0, %1;" : "=h"(r) : "f"(v));
        return r;
    }
    static __device__ uint32_t pack(float low, float high) {
        uint32_t r;
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
        return r;
    }
    static __device__ uint32_t fma(uint32_t a, uint32_t b, uint32_t c) {
        uint32_t r;
        asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
        return r;
    }
    static __device__ void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
        asm volatile(
            "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    }
    // 1024 + (byte + 128), less 1152.
    static __device__ uint32_t bytes(uint32_t lanes) {
        return fma((lanes & 0x00FF00FFu) ^ 0x64806480u, ONE, 0xE480E480u);
    }
    static __device__ uint32_t bytes_first(uint32_t lanes) { return masked_or<0x00FF00FFu>(lanes ^ 0x00800080u, 0x64006400u); }
    static __device__ uint32_t bytes_second(uint32_t) { return 0xE480E480u; }
};

struct F32 {
    using Element = float;
    static __device__ float widen(float v) { return v; }
    static __device__ float narrow(float v) { return v; }
};

// A product that rounds once; minus zero keeps the sign of zeros.
template <class T> __device__ inline uint32_t times(uint32_t a, uint32_t b) { return T::fma(a, b, 0x80008000u); }

// 16 + nibble in both halves, of the nibbles that begin at bit `BIT` of each half.
template <class T, int BIT> __device__ inline uint32_t sixteen_and(uint32_t word) {
    constexpr int SHIFT = T::NIBBLE - BIT;
    uint32_t moved = SHIFT >= 0 ? word << (SHIFT >= 0 ? SHIFT : 0) : word >> (SHIFT < 0 ? -SHIFT : 0);
    return (moved & (0x000F000Fu << T::NIBBLE)) | T::SIXTEEN;
}

// Bytes of `a` (0 to 3) and `b` (4 to 7), the lowest chosen by the selector's lowest nibble.
template <uint32_t SELECTOR> __device__ inline uint32_t choose(uint32_t a, uint32_t b) {
    return __byte_perm(a, b, SELECTOR);
}

// Copies 16 (or 8, or 4) bytes to shared memory without waiting; zeros instead where there is nothing to copy.
__device__ inline void copy16(void* shared, const void* global, bool there) {
    uint32_t to = uint32_t(__cvta_generic_to_shared(shared));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(there ? 16 : 0) : "memory");
}
__device__ inline void copy8(void* shared, const void* global, bool there) {
    uint32_t to = uint32_t(__cvta_generic_to_shared(shared));
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(to), "l"(global), "r"(there ? 8 : 0) : "memory");
}
__device__ inline void copy4(void* shared, const void* global, bool there) {
    uint32_t to = uint32_t(__cvta_generic_to_shared(shared));
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(global), "r"(there ? 4 : 0) : "memory");
}
// Closes a group of copies.
__device__ inline void copies_end() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most `PENDING` groups of this thread's are under way.
template <int PENDING> __device__ inline void copies_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

// Four 8 x 8 matrices of 16-bit values: lanes 0 to 7 give the rows' addresses of the first, 8 to 15 of the second, and
// so on. Lane l gets columns 2 (l % 4) and the next of row l / 4; transposed, of column l / 4 those two rows.
__device__ inline void load_matrices(uint32_t (&r)[4], const void* row) {
    uint32_t from = uint32_t(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(from) : "memory");
}
__device__ inline void load_matrices_transposed(uint32_t (&r)[4], const void* row) {
    uint32_t from = uint32_t(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(from) : "memory");
}
// The same 8 x 8 matrix, transposed, from registers to registers.
__device__ inline uint32_t transpose(uint32_t pair) {
    uint32_t r;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(r) : "r"(pair));
    return r;
}

// The block's dynamic shared memory.
__device__ inline unsigned char* shared_memory() {
    extern __shared__ uint4 shared_bytes[];
    return reinterpret_cast<unsigned char*>(shared_bytes);
}
