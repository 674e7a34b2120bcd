// y[m, n] = sum over k of x[m, k] w[n, k] for up to 8 rows of x: bound by reading w once.
//
// Tensor cores do it turned round: 16 rows of w are a tile's rows, the rows of x its 8 columns, so that 8 rows cost what
// one does. A sum does not mind its order, so each thread takes 16 neighbouring bytes of a row of w as they lie in memory
// and x is laid out to match. Accumulated in f32; quantized weights are expanded to 16 bit in registers, x is not touched.
#include "blocks.cuh"

constexpr int WARPS = 8, ROWS = 16;

struct Lane {
    int g, t;
};

struct Matrices {
    const uint16_t* x;  // [m, k], rows `stride` elements apart
    const void* w;      // [n, k]
    uint16_t* y;        // [m, n]
    int stride, m, n, k;
};

__device__ inline uint4 sixteen_bytes(const uint16_t* x, bool there) {
    return there ? *reinterpret_cast<const uint4*>(x) : make_uint4(0, 0, 0, 0);
}

// Rows first + g and first + g + 8 of w, part `part` of `parts` along k.
template <class T> __device__ inline void dense(float (&sum)[2][4], const Matrices& a, size_t row0, size_t row1, int part, int parts, Lane lane) {
    constexpr int UNROLL = 4;
    const uint16_t* w = static_cast<const uint16_t*>(a.w);
    const uint16_t *w0 = w + row0 * a.k + 8 * lane.t, *w1 = w + row1 * a.k + 8 * lane.t;
    const uint16_t* x = a.x + size_t(lane.g) * a.stride + 8 * lane.t;
    int chunks = (a.k + 31) / 32, end = int((long long)chunks * (part + 1) / parts);
    for (int c = int((long long)chunks * part / parts); c < end; c += UNROLL) {
        uint4 p0[UNROLL], p1[UNROLL], q[UNROLL];
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            int at = 32 * (c + u);
            bool there = c + u < end && at + 8 * lane.t < a.k;
            p0[u] = there ? stream16(w0 + at) : make_uint4(0, 0, 0, 0);
            p1[u] = there ? stream16(w1 + at) : make_uint4(0, 0, 0, 0);
            q[u] = sixteen_bytes(x + at, there && lane.g < a.m);
        }
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            T::mma(sum[0], {p0[u].x, p1[u].x, p0[u].y, p1[u].y}, {q[u].x, q[u].y});
            T::mma(sum[1], {p0[u].z, p1[u].z, p0[u].w, p1[u].w}, {q[u].z, q[u].w});
        }
    }
}

template <class T> __device__ inline void q8_0(float (&sum)[2][4], const Matrices& a, size_t row0, size_t row1, int part, int parts, Lane lane) {
    constexpr int UNROLL = 2;
    Planes planes(W_Q8_0, a.w, a.n, a.k);
    const unsigned char *w0 = planes.values + row0 * a.k + 16 * lane.t, *w1 = planes.values + row1 * a.k + 16 * lane.t;
    const uint16_t *s0 = planes.block_scales + row0 * (a.k / 32) + lane.t / 2, *s1 = planes.block_scales + row1 * (a.k / 32) + lane.t / 2;
    const uint16_t* x = a.x + size_t(lane.g) * a.stride + 16 * lane.t;
    int chunks = (a.k + 63) / 64, end = int((long long)chunks * (part + 1) / parts);
    for (int c = int((long long)chunks * part / parts); c < end; c += UNROLL) {
        uint4 p0[UNROLL], p1[UNROLL], q[UNROLL][2];
        uint16_t scale0[UNROLL], scale1[UNROLL];
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            int at = 64 * (c + u);
            bool there = c + u < end && at + 16 * lane.t < a.k;
            p0[u] = there ? stream16(w0 + at) : make_uint4(0, 0, 0, 0);
            p1[u] = there ? stream16(w1 + at) : make_uint4(0, 0, 0, 0);
            scale0[u] = there ? s0[2 * (c + u)] : 0;
            scale1[u] = there ? s1[2 * (c + u)] : 0;
            q[u][0] = sixteen_bytes(x + at, there && lane.g < a.m);
            q[u][1] = sixteen_bytes(x + at + 8, there && lane.g < a.m);
        }
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            float f0 = F16::widen(scale0[u]), f1 = F16::widen(scale1[u]);
            uint32_t t0 = T::pack(f0, f0), t1 = T::pack(f1, f1);
            uint32_t v0[4] = {p0[u].x, p0[u].y, p0[u].z, p0[u].w}, v1[4] = {p1[u].x, p1[u].y, p1[u].z, p1[u].w};
            uint32_t b[8] = {q[u][0].x, q[u][0].y, q[u][0].z, q[u][0].w, q[u][1].x, q[u][1].y, q[u][1].z, q[u][1].w};
#pragma unroll
            for (int h = 0; h < 4; h++) {
                uint32_t w[4] = {times<T>(T::bytes(choose<0x4140>(v0[h], 0)), t0), times<T>(T::bytes(choose<0x4140>(v1[h], 0)), t1),
                                 times<T>(T::bytes(choose<0x4342>(v0[h], 0)), t0), times<T>(T::bytes(choose<0x4342>(v1[h], 0)), t1)};
                T::mma(sum[h % 2], w, {b[2 * h], b[2 * h + 1]});
            }
        }
    }
}

// Four values of x in the order of a word of nibbles, whose pairs are bytes 0 and 2, and 1 and 3.
#define CROSSED(LOW, HIGH) {choose<0x5410>(LOW, HIGH), choose<0x7632>(LOW, HIGH)}

// A block is 256 values: 16 bytes of header, then four runs of 32 bytes, whose low nibbles are 32 values and whose high
// ones the next 32. A thread has 16 bytes of each half of the block.
template <class T> __device__ inline void q4_k(float (&sum)[2][4], const Matrices& a, size_t row0, size_t row1, int part, int parts, Lane lane) {
    int blocks = a.k / 256, end = blocks * (part + 1) / parts;
    const unsigned char* w = static_cast<const unsigned char*>(a.w);
    for (int c = blocks * part / parts; c < end; c++) {
        const unsigned char *b0 = w + (row0 * blocks + c) * 144, *b1 = w + (row1 * blocks + c) * 144;
        uint4 p0[2] = {stream16(b0 + 16 + 16 * lane.t), stream16(b0 + 80 + 16 * lane.t)};
        uint4 p1[2] = {stream16(b1 + 16 + 16 * lane.t), stream16(b1 + 80 + 16 * lane.t)};
        Minima m0(stream16(b0)), m1(stream16(b1));
        const uint16_t* x = a.x + size_t(lane.g) * a.stride + 256 * c + 64 * (lane.t / 2) + 16 * (lane.t % 2);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            uint32_t v0[4] = {p0[half].x, p0[half].y, p0[half].z, p0[half].w}, v1[4] = {p1[half].x, p1[half].y, p1[half].z, p1[half].w};
#pragma unroll
            for (int high = 0; high < 2; high++) {
                int bit = 16 * (lane.t / 2) + 8 * high;
                float f0 = m0.d * float((m0.scale[half] >> bit) & 63u), f1 = m1.d * float((m1.scale[half] >> bit) & 63u);
                float c0 = -m0.dmin * float((m0.min[half] >> bit) & 63u) - 16.f * f0;
                float c1 = -m1.dmin * float((m1.min[half] >> bit) & 63u) - 16.f * f1;
                uint32_t s0 = T::pack(f0, f0), s1 = T::pack(f1, f1), o0 = T::pack(c0, c0), o1 = T::pack(c1, c1);
                uint4 q[2] = {sixteen_bytes(x + 128 * half + 32 * high, lane.g < a.m), sixteen_bytes(x + 128 * half + 32 * high + 8, lane.g < a.m)};
                uint32_t b[8] = {q[0].x, q[0].y, q[0].z, q[0].w, q[1].x, q[1].y, q[1].z, q[1].w};
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    uint32_t n0[2] = {high ? sixteen_and<T, 4>(v0[i]) : sixteen_and<T, 0>(v0[i]), high ? sixteen_and<T, 12>(v0[i]) : sixteen_and<T, 8>(v0[i])};
                    uint32_t n1[2] = {high ? sixteen_and<T, 4>(v1[i]) : sixteen_and<T, 0>(v1[i]), high ? sixteen_and<T, 12>(v1[i]) : sixteen_and<T, 8>(v1[i])};
                    uint32_t w4[4] = {T::fma(n0[0], s0, o0), T::fma(n1[0], s1, o1), T::fma(n0[1], s0, o0), T::fma(n1[1], s1, o1)};
                    T::mma(sum[i % 2], w4, CROSSED(b[2 * i], b[2 * i + 1]));
                }
            }
        }
    }
}

// Two values of 6 bits: nibbles that begin at bit NIBBLE of each half, pairs of bits that begin at bit PAIR.
template <class T, int NIBBLE, int PAIR> __device__ inline uint32_t six(uint32_t low, uint32_t high) {
    uint32_t top = PAIR < 4 ? high << (PAIR < 4 ? 4 - PAIR : 0) : high >> (PAIR < 4 ? 0 : PAIR - 4);
    return T::six_bits(((low >> NIBBLE) & 0x000F000Fu) | (top & 0x00300030u));
}

// A block is two halves of 128 values: 64 bytes of nibbles a, b; 32 bytes of pairs of bits; 8 scales. Byte l of the pairs
// and bytes l and 32 + l of the nibbles make values l, 32 + l, 64 + l and 96 + l. A thread has 8 such l of each half.
template <class T> __device__ inline void q6_k(float (&sum)[2][4], const Matrices& a, size_t row0, size_t row1, int part, int parts, Lane lane) {
    Planes planes(W_Q6_K, a.w, a.n, a.k);
    int blocks = a.k / 256, end = blocks * (part + 1) / parts;
    for (int c = blocks * part / parts; c < end; c++) {
        size_t at[2] = {row0 * blocks + c, row1 * blocks + c};
        uint2 low[2][4], high[2][2];
        uint4 packed[2];
        float d[2];
#pragma unroll
        for (int r = 0; r < 2; r++) {
#pragma unroll
            for (int i = 0; i < 4; i++) low[r][i] = stream8(planes.values + at[r] * 128 + 32 * i + 8 * lane.t);
#pragma unroll
            for (int i = 0; i < 2; i++) high[r][i] = stream8(planes.high + at[r] * 64 + 32 * i + 8 * lane.t);
            packed[r] = stream16(planes.scales + at[r] * 16);
            d[r] = F16::widen(planes.block_scales[at[r]]);
        }
        const uint16_t* x = a.x + size_t(lane.g) * a.stride + 256 * c + 8 * lane.t;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            uint32_t s[2][4];
#pragma unroll
            for (int r = 0; r < 2; r++) {
                uint32_t words[2] = {half ? packed[r].z : packed[r].x, half ? packed[r].w : packed[r].y};
#pragma unroll
                for (int q = 0; q < 4; q++) {
                    float f = d[r] * float(int8_t(words[q / 2] >> (8 * (lane.t / 2) + 16 * (q % 2))));
                    s[r][q] = T::pack(f, f);
                }
            }
            uint4 b[4];
#pragma unroll
            for (int q = 0; q < 4; q++) b[q] = sixteen_bytes(x + 128 * half + 32 * q, lane.g < a.m);
#pragma unroll
            for (int i = 0; i < 2; i++) {
                uint32_t l[2][2], h[2];
#pragma unroll
                for (int r = 0; r < 2; r++) {
                    l[r][0] = i ? low[r][2 * half].y : low[r][2 * half].x;
                    l[r][1] = i ? low[r][2 * half + 1].y : low[r][2 * half + 1].x;
                    h[r] = i ? high[r][half].y : high[r][half].x;
                }
#define QUARTER(Q, N, NIBBLE)                                                                                       \
    {                                                                                                               \
        uint32_t w[4] = {times<T>(six<T, NIBBLE, 2 * Q>(l[0][N], h[0]), s[0][Q]),                                   \
                         times<T>(six<T, NIBBLE, 2 * Q>(l[1][N], h[1]), s[1][Q]),                                   \
                         times<T>(six<T, NIBBLE, 2 * Q>(l[0][N] >> 8, h[0] >> 8), s[0][Q]),                         \
                         times<T>(six<T, NIBBLE, 2 * Q>(l[1][N] >> 8, h[1] >> 8), s[1][Q])};                        \
        T::mma(sum[Q % 2], w, CROSSED(i ? b[Q].z : b[Q].x, i ? b[Q].w : b[Q].y));                                   \
    }
                QUARTER(0, 0, 0) QUARTER(1, 1, 0) QUARTER(2, 0, 4) QUARTER(3, 1, 4)
#undef QUARTER
            }
        }
    }
}

// Grid: enough blocks for n / 16 tiles, `8 / parts` a block; `parts` warps share a tile, each a stretch along k.
template <class T, int FORMAT>
__device__ inline void gemv(const void* x, int stride, const void* w, void* y, int m, int n, int k, int parts) {
    int warp = threadIdx.x / 32;
    Lane lane = {int(threadIdx.x % 32) / 4, int(threadIdx.x % 4)};
    Matrices a = {static_cast<const uint16_t*>(x), w, static_cast<uint16_t*>(y), stride, m, n, k};
    int tiles = WARPS / parts, first = (blockIdx.x * tiles + warp / parts) * ROWS;
    size_t row0 = min(first + lane.g, n - 1), row1 = min(first + lane.g + 8, n - 1);
    float sum[2][4] = {};
    if (first < n) {
        if (FORMAT == W_DENSE) dense<T>(sum, a, row0, row1, warp % parts, parts, lane);
        if (FORMAT == W_Q8_0) q8_0<T>(sum, a, row0, row1, warp % parts, parts, lane);
        if (FORMAT == W_Q4_K) q4_k<T>(sum, a, row0, row1, warp % parts, parts, lane);
        if (FORMAT == W_Q6_K) q6_k<T>(sum, a, row0, row1, warp % parts, parts, lane);
    }
    // [warp][column of x][row of the tile]
    float* outcome = reinterpret_cast<float*>(shared_memory());
#pragma unroll
    for (int i = 0; i < 4; i++)
        outcome[warp * 128 + (2 * lane.t + i % 2) * ROWS + lane.g + 8 * (i / 2)] = sum[0][i] + sum[1][i];
    __syncthreads();
    for (int i = threadIdx.x; i < tiles * 128; i += 32 * WARPS) {
        int tile = i / 128, column = i % 128 / ROWS, row = (blockIdx.x * tiles + tile) * ROWS + i % ROWS;
        if (column >= m || row >= n) continue;
        float total = 0.f;
        for (int p = 0; p < parts; p++) total += outcome[(tile * parts + p) * 128 + i % 128];
        a.y[size_t(column) * n + row] = T::narrow(total);
    }
}

#define GEMV(NAME, T, FORMAT)                                                                                       \
    extern "C" __global__ void __launch_bounds__(256, FORMAT == W_DENSE || FORMAT == W_Q8_0 ? 3 : 2)                \
        gemv_##NAME(const void* x, int stride, const void* w, void* y, int m, int n, int k, int parts) {            \
        gemv<T, FORMAT>(x, stride, w, y, m, n, k, parts);                                                           \
    }
GEMV(dense_bf16, Bf16, W_DENSE)
GEMV(dense_f16, F16, W_DENSE)
GEMV(q8_0_bf16, Bf16, W_Q8_0)
GEMV(q8_0_f16, F16, W_Q8_0)
GEMV(q4_k_bf16, Bf16, W_Q4_K)
GEMV(q4_k_f16, F16, W_Q4_K)
GEMV(q6_k_bf16, Bf16, W_Q6_K)
GEMV(q6_k_f16, F16, W_Q6_K)
