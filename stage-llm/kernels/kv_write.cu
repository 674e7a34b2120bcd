// Keys and values on their way into their cache: quantized (kv/row.rs) or as they are, from token-major rows to
// head-major ones; and the text's, rotated.
#include "attention.cuh"

// Eight values of a row.
template <class T> __device__ inline void eight(const typename T::Element* from, float (&x)[8]) {
#pragma unroll
    for (int i = 0; i < 8; i++) x[i] = T::widen(from[i]);
}
template <> __device__ inline void eight<Bf16>(const uint16_t* from, float (&x)[8]) {
    uint4 w = *reinterpret_cast<const uint4*>(from);
    uint32_t words[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
    for (int i = 0; i < 4; i++) x[2 * i] = Bf16::widen(words[i] & 0xFFFFu), x[2 * i + 1] = Bf16::widen(words[i] >> 16);
}
template <> __device__ inline void eight<F16>(const uint16_t* from, float (&x)[8]) {
    uint4 w = *reinterpret_cast<const uint4*>(from);
    uint32_t words[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
    for (int i = 0; i < 4; i++) x[2 * i] = F16::widen(words[i] & 0xFFFFu), x[2 * i + 1] = F16::widen(words[i] >> 16);
}

// Largest (or smallest) of a group, whose values are held by neighbouring threads, eight each.
template <int THREADS> __device__ inline float largest(float x) {
#pragma unroll
    for (int step = 1; step < THREADS; step *= 2) x = fmaxf(x, __shfl_xor_sync(0xFFFFFFFFu, x, step));
    return x;
}

// A row of a head has a warp or, of at most 128 values, half of one: eight values a thread. Groups of values that share a
// scale lie within a half. Grid: n * kv_heads rows of as many threads (`row_threads` in language/kernels/cuda.rs), in blocks of
// 256. `rows` is [n, kv_heads * width], rows `stride` elements apart, each aligned to 16 bytes.
template <class T>
__device__ inline void write(const void* rows, int stride, int n, int kv_heads, int width, int capacity, int at,
                             unsigned char* values, uint16_t* scales, int format) {
    using E = typename T::Element;
    int threads = width <= 128 ? 16 : 32, lane = threadIdx.x % threads;
    int id = blockIdx.x * (256 / threads) + threadIdx.x / threads;
    bool row_there = id < n * kv_heads;
    if (!row_there) id = 0;  // its warp needs it for exchanges
    int token = id / kv_heads, head = id % kv_heads;
    const E* from = static_cast<const E*>(rows) + size_t(token) * stride + head * width;
    size_t row = size_t(head) * capacity + at + token;
    for (int begin = 0; begin < width; begin += 8 * threads) {
        int column = begin + 8 * lane;
        bool inside = row_there && column < width;
        float x[8] = {};
        if (inside) eight<T>(from + column, x);
        if (format == Q8) {
            float most = 0.f;
#pragma unroll
            for (int i = 0; i < 8; i++) most = fmaxf(most, fabsf(x[i]));
            most = largest<GROUP_8 / 8>(most);
            uint16_t bits = F16::narrow(fminf(most / 127.f, 65504.f));
            float s = F16::widen(bits);
            uint32_t packed[2] = {0, 0};
#pragma unroll
            for (int i = 0; i < 8; i++) {
                float q = s == 0.f ? 0.f : fminf(fmaxf(rintf(x[i] / s), -127.f), 127.f);
                packed[i / 4] |= uint32_t(uint8_t(int8_t(q))) << (8 * (i % 4));
            }
            if (!inside) continue;
            *reinterpret_cast<uint2*>(values + row * width + column) = make_uint2(packed[0], packed[1]);
            int groups = (width + GROUP_8 - 1) / GROUP_8;
            if (column % GROUP_8 == 0) scales[row * groups + column / GROUP_8] = bits;
        } else {
            float low = 0.f, high = 0.f;
#pragma unroll
            for (int i = 0; i < 8; i++) low = fminf(low, x[i]), high = fmaxf(high, x[i]);
            low = -largest<GROUP_4 / 8>(-low);
            high = largest<GROUP_4 / 8>(high);
            uint32_t nearest = F16::narrow(fminf((high - low) / 15.f, 65504.f));
            uint32_t bits = min((nearest + 8u) & 0xFFF0u, 0x7BF0u);
            float s = F16::widen(uint16_t(bits));
            float zero = s == 0.f ? 0.f : fminf(fmaxf(rintf(-low / s), 0.f), 15.f);
            uint32_t packed = 0;
#pragma unroll
            for (int i = 0; i < 8; i++) {
                float q = s == 0.f ? 0.f : fminf(fmaxf(rintf(x[i] / s) + zero, 0.f), 15.f);
                packed |= uint32_t(q) << (4 * (i / 2) + 16 * (i % 2));
            }
            if (!inside) continue;
            reinterpret_cast<uint32_t*>(values)[(row * width + column) / 8] = packed;
            int groups = (width + GROUP_4 - 1) / GROUP_4;
            if (column % GROUP_4 == 0) scales[row * groups + column / GROUP_4] = uint16_t(bits | uint32_t(zero));
        }
    }
}

// Unchanged: `unit` bytes at a time, 16 where all is aligned to it.
template <class Unit>
__device__ inline void copy(const void* rows, int stride, int n, int kv_heads, int width, int capacity, int at, unsigned char* values, int size) {
    int units = width * size / int(sizeof(Unit));
    long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= (long long)n * kv_heads * units) return;
    int unit = int(i % units), head = int(i / units % kv_heads);
    size_t token = i / units / kv_heads;
    const unsigned char* from = static_cast<const unsigned char*>(rows) + (token * stride + size_t(head) * width) * size;
    unsigned char* to = values + (size_t(head) * capacity + at + token) * width * size;
    reinterpret_cast<Unit*>(to)[unit] = reinterpret_cast<const Unit*>(from)[unit];
}

#define KV_WRITE(NAME, T)                                                                                             \
    extern "C" __global__ void kv_write_##NAME(const void* rows, int stride, int n, int kv_heads, int width, int capacity, \
                                               int at, unsigned char* values, uint16_t* scales, int format) {         \
        write<T>(rows, stride, n, kv_heads, width, capacity, at, values, scales, format);                            \
    }
KV_WRITE(bf16, Bf16)
KV_WRITE(f16, F16)
KV_WRITE(f32, F32)

extern "C" __global__ void kv_copy(const void* rows, int stride, int n, int kv_heads, int width, int capacity, int at,
                                   unsigned char* values, int size) {
    copy<uint4>(rows, stride, n, kv_heads, width, capacity, at, values, size);
}

// Where a token's rotations are, and where its keys and values go: to `at` of a cache of `capacity` tokens. Mirrors
// `RawNext` in rope/cuda.rs.
struct Next {
    const void *cos_table, *sin_table;  // [positions, width / 2]
    void *keys, *values;                // [kv_heads, capacity, width]
    int capacity, at;
};

// Mirrors `RawRotation` in rope/cuda.rs.
constexpr int TEXTS = 64;
struct Rotation {
    Next next[TEXTS];
    const void* qkv;  // [n, (heads + 2 * kv_heads) * width], rows `stride` elements apart
    void* queries;    // [n, heads * width]
    int stride, n, heads, kv_heads, width, unused;
};

// Rows [n, (heads + 2 * kv_heads) * width] of a fused projection: queries rotated to `queries` [n, heads * width], keys
// rotated and values as they are to the cache. Rotation is half-split: value i and i + width / 2 turn by the angle of column i
// of the tables; f32 inside, rounded once. A thread has four columns of both halves of a head. Grid:
// n * (heads + 2 * kv_heads) * width / 8 threads in blocks of 256. `next(token)` says where a token goes.
template <class T, class N>
__device__ inline void rotate(const void* qkv, int stride, int n, int heads, int kv_heads, int width, void* queries, N next) {
    using E = typename T::Element;
    struct alignas(4 * sizeof(E)) Four { E at[4]; };
    next_may_begin();
    wait_for_earlier();
    int quads = width / 8, all = heads + 2 * kv_heads;
    long long id = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (id >= (long long)n * all * quads) return;
    int quad = int(id % quads), head = int(id / quads % all), token = int(id / quads / all);
    int half = width / 2, column = 4 * quad;
    Next to_next = next(token);
    const E* from = static_cast<const E*>(qkv) + size_t(token) * stride + size_t(head) * width + column;
    Four a = *reinterpret_cast<const Four*>(from), b = *reinterpret_cast<const Four*>(from + half);
    if (head < heads + kv_heads) {
        size_t angle = size_t(to_next.at) * half + column;
        Four c = *reinterpret_cast<const Four*>(static_cast<const E*>(to_next.cos_table) + angle);
        Four s = *reinterpret_cast<const Four*>(static_cast<const E*>(to_next.sin_table) + angle);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float x = T::widen(a.at[i]), y = T::widen(b.at[i]), co = T::widen(c.at[i]), si = T::widen(s.at[i]);
            a.at[i] = T::narrow(x * co - y * si);
            b.at[i] = T::narrow(x * si + y * co);
        }
    }
    E* to;
    if (head < heads) {
        to = static_cast<E*>(queries) + (size_t(token) * heads + head) * width;
    } else if (head < heads + kv_heads) {
        to = static_cast<E*>(to_next.keys) + (size_t(head - heads) * to_next.capacity + to_next.at) * width;
    } else {
        to = static_cast<E*>(to_next.values) + (size_t(head - heads - kv_heads) * to_next.capacity + to_next.at) * width;
    }
    *reinterpret_cast<Four*>(to + column) = a;
    *reinterpret_cast<Four*>(to + column + half) = b;
}

// `rotate`: rows are of one text, from position `first` on. `rotate_each`: each is of a text of its own.
#define ROTATE(NAME, T)                                                                                                  \
    extern "C" __global__ void rotate_##NAME(const void* qkv, int stride, int n, int heads, int kv_heads, int width,     \
                                             const void* cos_table, const void* sin_table, int first, void* queries,     \
                                             void* keys, void* values, int capacity) {                                   \
        rotate<T>(qkv, stride, n, heads, kv_heads, width, queries, [=](int token) {                                      \
            return Next{cos_table, sin_table, keys, values, capacity, first + token};                                    \
        });                                                                                                              \
    }                                                                                                                    \
    extern "C" __global__ void rotate_each_##NAME(const __grid_constant__ Rotation r) {                                  \
        rotate<T>(r.qkv, r.stride, r.n, r.heads, r.kv_heads, r.width, r.queries, [&](int token) { return r.next[token]; }); \
    }
ROTATE(bf16, Bf16)
ROTATE(f16, F16)
ROTATE(f32, F32)
