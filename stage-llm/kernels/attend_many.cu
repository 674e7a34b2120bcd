// Attention of many rows (tokens x query heads of a kv head): prompts. Bound by arithmetic once rows are many.
//
// A block has 64 rows, a warp 16 of them, and walks over its keys 32 at a time. A head has WIDTH values, 256 or 128. Tiles
// lie in shared memory as 16-bit rows, whole lines of 128 bytes, whose 16-byte chunks are permuted by the row's number, so
// that eight rows' chunks never meet in a bank. 16-bit keys and values are copied there while the tile before is multiplied; quantized ones are copied as they
// are and expanded once for all warps.
#include "attention.cuh"

constexpr int WARPS = 4, ROWS = 16 * WARPS, KEYS = 32;
constexpr float SLACK = 8.f;  // as in attend_few.cu

// A row and a tile of keys, or of values, in 16 bits.
template <int WIDTH> constexpr int ROW_BYTES = 2 * WIDTH;
template <int WIDTH> constexpr int TILE_BYTES = KEYS * ROW_BYTES<WIDTH>;

// A row and a tile as they are kept.
template <int WIDTH, int FORMAT> struct Raw {
    static constexpr int ROW = FORMAT == Q8 ? WIDTH : WIDTH / 2;
    static constexpr int GROUPS = WIDTH / (FORMAT == Q8 ? GROUP_8 : GROUP_4);
    static constexpr int SCALES = 2 * GROUPS;
    static constexpr int BYTES = KEYS * (ROW + SCALES);
};
// Shared memory of a block; `Fast` in attention/cuda.rs says it to the driver.
template <int WIDTH> constexpr int SHARED = ROWS * ROW_BYTES<WIDTH> + 4 * TILE_BYTES<WIDTH>;
static_assert(SHARED<256> <= 99 << 10, "a block has 99 KB on sm_89");
static_assert(2 * Raw<256, Q8>::BYTES <= 2 * TILE_BYTES<256>, "what is kept and what is expanded take no more");
static_assert(2 * Raw<128, Q8>::BYTES <= 2 * TILE_BYTES<128>, "what is kept and what is expanded take no more");

template <int WIDTH> __device__ inline unsigned char* chunk_of(unsigned char* tile, int row, int chunk) {
    static_assert(ROW_BYTES<WIDTH> % 128 == 0, "whole lines");
    return tile + row * ROW_BYTES<WIDTH> + (chunk ^ (row & 7)) * 16;
}

// Starts copying keys (or values) key to key + 31.
template <int WIDTH>
__device__ inline void fetch_dense(unsigned char* tile, const unsigned char* rows, int key, int end) {
    constexpr int CHUNKS = WIDTH / 8;
    for (int i = threadIdx.x; i < KEYS * CHUNKS; i += 32 * WARPS) {
        int row = i / CHUNKS, chunk = i % CHUNKS;
        bool there = key + row < end;
        copy16(chunk_of<WIDTH>(tile, row, chunk), rows + size_t(there ? key + row : 0) * ROW_BYTES<WIDTH> + chunk * 16, there);
    }
}

template <int WIDTH, int FORMAT>
__device__ inline void fetch_raw(unsigned char* raw, const unsigned char* rows, const uint16_t* scales, int key, int end) {
    using F = Raw<WIDTH, FORMAT>;
    constexpr int PIECES = F::ROW / 16;
    for (int i = threadIdx.x; i < KEYS * PIECES; i += 32 * WARPS) {
        int row = i / PIECES;
        bool there = key + row < end;
        copy16(raw + i * 16, rows + size_t(there ? key + row : 0) * F::ROW + i % PIECES * 16, there);
    }
    if (threadIdx.x < KEYS) {
        bool there = key + threadIdx.x < end;
        const uint16_t* from = scales + size_t(there ? key + threadIdx.x : 0) * F::GROUPS;
        copy_scales<F::SCALES>(raw + KEYS * F::ROW + threadIdx.x * F::SCALES, from, there);
    }
}

// Eight values at a time to 16 bit.
template <class T, int WIDTH, int FORMAT> __device__ inline void expand(unsigned char* tile, const unsigned char* raw) {
    using F = Raw<WIDTH, FORMAT>;
    constexpr int CHUNKS = WIDTH / 8;
    const uint16_t* scales = reinterpret_cast<const uint16_t*>(raw + KEYS * F::ROW);
    for (int i = threadIdx.x; i < KEYS * CHUNKS; i += 32 * WARPS) {
        int row = i / CHUNKS, chunk = i % CHUNKS;
        uint4 out;
        if constexpr (FORMAT == Q8) {
            uint2 w = *reinterpret_cast<const uint2*>(raw + row * F::ROW + chunk * 8);
            float scale = scale_8(scales[row * F::GROUPS + chunk / 8]);
            uint32_t s = T::pack(scale, scale);
            out.x = times<T>(T::bytes(choose<0x4140>(w.x, 0)), s);
            out.y = times<T>(T::bytes(choose<0x4342>(w.x, 0)), s);
            out.z = times<T>(T::bytes(choose<0x4140>(w.y, 0)), s);
            out.w = times<T>(T::bytes(choose<0x4342>(w.y, 0)), s);
        } else {
            uint32_t w = *reinterpret_cast<const uint32_t*>(raw + row * F::ROW + chunk * 4);
            float correction, scale = scale_4(scales[row * F::GROUPS + chunk / 4], correction);
            uint32_t s = T::pack(scale, scale), c = T::pack(correction, correction);
            out.x = T::fma(sixteen_and<T, 0>(w), s, c);
            out.y = T::fma(sixteen_and<T, 4>(w), s, c);
            out.z = T::fma(sixteen_and<T, 8>(w), s, c);
            out.w = T::fma(sixteen_and<T, 12>(w), s, c);
        }
        *reinterpret_cast<uint4*>(chunk_of<WIDTH>(tile, row, chunk)) = out;
    }
}

// A warp's 16 rows: this thread has parts of rows g and g + 8.
template <int WIDTH> struct Rows {
    float mixed[WIDTH / 8][4];  // columns 8n + 2t and the next; [0], [1] of row g, [2], [3] of row g + 8
    float most[2], sum[2];
    int low[2], high[2];    // what each row sees
    int any_low, all_low, any_high, all_high;  // what any and what all of the warp's rows see
};

template <class T, int WIDTH>
__device__ inline void tile(Rows<WIDTH>& r, unsigned char* queries, unsigned char* keys, unsigned char* values, int key, int to,
                            const Capping& capping) {
    int lane = threadIdx.x % 32, t = lane % 4;
    if (key >= r.any_high || key + KEYS <= r.any_low) return;

    float y[4][4] = {};
#pragma unroll
    for (int step = 0; step < WIDTH / 16; step++) {
        uint32_t a[4], b[4];
        load_matrices(a, chunk_of<WIDTH>(queries, threadIdx.x / 32 * 16 + lane % 16, 2 * step + lane / 16));
#pragma unroll
        for (int n = 0; n < 4; n += 2) {
            load_matrices(b, chunk_of<WIDTH>(keys, n * 8 + lane % 8 + lane / 16 * 8, 2 * step + lane / 8 % 2));
            T::mma(y[n], a, {b[0], b[1]});
            T::mma(y[n + 1], a, {b[2], b[3]});
        }
    }
    bool masked = key < r.all_low || key + KEYS > min(r.all_high, to);
    float top[2] = {-INFINITY, -INFINITY};
#pragma unroll
    for (int n = 0; n < 4; n++) capping(y[n]);
#pragma unroll
    for (int n = 0; n < 4; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int at = key + 8 * n + 2 * t + i % 2;
            if (masked && (at < r.low[i / 2] || at >= min(r.high[i / 2], to))) y[n][i] = -INFINITY;
            top[i / 2] = fmaxf(top[i / 2], y[n][i]);
        }
    if (__any_sync(0xFFFFFFFFu, top[0] > r.most[0] + SLACK || top[1] > r.most[1] + SLACK)) {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            top[h] = fmaxf(top[h], __shfl_xor_sync(0xFFFFFFFFu, top[h], 1));
            top[h] = fmaxf(top[h], __shfl_xor_sync(0xFFFFFFFFu, top[h], 2));
            float more = fmaxf(r.most[h], top[h]), factor = exp2_quick(r.most[h] - more);
            r.most[h] = more;
            r.sum[h] *= factor;
#pragma unroll
            for (int n = 0; n < WIDTH / 8; n++) r.mixed[n][2 * h] *= factor, r.mixed[n][2 * h + 1] *= factor;
        }
    }
#pragma unroll
    for (int n = 0; n < 4; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            y[n][i] = exp2_quick(y[n][i] - r.most[i / 2]);
            r.sum[i / 2] += y[n][i];
        }
#pragma unroll
    for (int step = 0; step < KEYS / 16; step++) {
        uint32_t a[4] = {T::pack(y[2 * step][0], y[2 * step][1]), T::pack(y[2 * step][2], y[2 * step][3]),
                         T::pack(y[2 * step + 1][0], y[2 * step + 1][1]), T::pack(y[2 * step + 1][2], y[2 * step + 1][3])};
#pragma unroll
        for (int n = 0; n < WIDTH / 8; n += 2) {
            uint32_t b[4];
            load_matrices_transposed(b, chunk_of<WIDTH>(values, 16 * step + lane % 16, n + lane / 16));
            T::mma(r.mixed[n], a, {b[0], b[1]});
            T::mma(r.mixed[n + 1], a, {b[2], b[3]});
        }
    }
}

template <class T, int WIDTH, int FORMAT>
__device__ inline void attend(const Attention& a, const Segment& s, int from, int to) {
    int head = blockIdx.y, group = a.heads / a.kv_heads, first = blockIdx.z * ROWS, rows = a.tokens * group;
    int lane = threadIdx.x % 32, warp_row = first + threadIdx.x / 32 * 16;
    unsigned char* queries = shared_memory();
    constexpr int CHUNKS = WIDTH / 8, TILE = TILE_BYTES<WIDTH>;
    unsigned char* tiles = queries + ROWS * ROW_BYTES<WIDTH>;
    unsigned char* raw = tiles + 2 * TILE;

    const uint16_t* base = static_cast<const uint16_t*>(s.causal ? a.rotated : a.plain);
    size_t stride = s.causal ? a.rotated_stride : a.plain_stride;
    for (int i = threadIdx.x; i < ROWS * CHUNKS; i += 32 * WARPS) {
        int row = first + i / CHUNKS, chunk = i % CHUNKS;
        bool there = row < rows;
        int token = there ? row / group : 0;
        copy16(chunk_of<WIDTH>(queries, i / CHUNKS, chunk), base + token * stride + (head * group + row % group) * WIDTH + chunk * 8,
               there);
    }

    Rows<WIDTH> r;
    int block_low, block_high, unused;
    seen(s, min(first / group, a.tokens - 1), block_low, unused);
    seen(s, min((first + ROWS - 1) / group, a.tokens - 1), unused, block_high);
    seen(s, min(warp_row / group, a.tokens - 1), r.any_low, r.all_high);
    seen(s, min((warp_row + 15) / group, a.tokens - 1), r.all_low, r.any_high);
#pragma unroll
    for (int h = 0; h < 2; h++) {
        seen(s, min((warp_row + lane / 4 + 8 * h) / group, a.tokens - 1), r.low[h], r.high[h]);
        r.most[h] = NOTHING, r.sum[h] = 0.f;
    }
    if (warp_row >= rows) r.any_high = 0;  // nothing to do but to help with copying
#pragma unroll
    for (int n = 0; n < WIDTH / 8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) r.mixed[n][i] = 0.f;
    from = max(from, block_low);
    to = min(to, block_high);

    const size_t first_row = size_t(head) * s.capacity;
    Capping capping(a);
    if constexpr (FORMAT == DENSE) {
        const unsigned char *k = s.k + first_row * ROW_BYTES<WIDTH>, *v = s.v + first_row * ROW_BYTES<WIDTH>;
        unsigned char* now = tiles;
        unsigned char* next = tiles + 2 * TILE;
        auto fetch = [&](unsigned char* to_tiles, int key) {
            if (key < to) {
                fetch_dense<WIDTH>(to_tiles, k, key, s.end);
                fetch_dense<WIDTH>(to_tiles + TILE, v, key, s.end);
            }
            copies_end();
        };
        fetch(now, from);
        for (int key = from; key < to; key += KEYS) {
            copies_wait<0>();
            __syncthreads();  // the tile is there, and nobody reads the other one any more
            fetch(next, key + KEYS);
            tile<T>(r, queries, now, now + TILE, key, to, capping);
            unsigned char* swapped = now;
            now = next, next = swapped;
        }
    } else {
        using F = Raw<WIDTH, FORMAT>;
        const unsigned char *k = s.k + first_row * F::ROW, *v = s.v + first_row * F::ROW;
        const uint16_t *ks = s.k_scales + first_row * F::GROUPS, *vs = s.v_scales + first_row * F::GROUPS;
        auto fetch = [&](int key) {
            if (key < to) {
                fetch_raw<WIDTH, FORMAT>(raw, k, ks, key, s.end);
                fetch_raw<WIDTH, FORMAT>(raw + F::BYTES, v, vs, key, s.end);
            }
            copies_end();
        };
        fetch(from);
        for (int key = from; key < to; key += KEYS) {
            copies_wait<0>();
            __syncthreads();  // the raw tile is there, and nobody reads the expanded one any more
            expand<T, WIDTH, FORMAT>(tiles, raw);
            expand<T, WIDTH, FORMAT>(tiles + TILE, raw + F::BYTES);
            __syncthreads();
            fetch(key + KEYS);
            tile<T>(r, queries, tiles, tiles + TILE, key, to, capping);
        }
    }

#pragma unroll
    for (int h = 0; h < 2; h++) {
        r.sum[h] += __shfl_xor_sync(0xFFFFFFFFu, r.sum[h], 1);
        r.sum[h] += __shfl_xor_sync(0xFFFFFFFFu, r.sum[h], 2);
        int row = warp_row + lane / 4 + 8 * h;
        if (row < rows) {
            size_t to_row = size_t(blockIdx.x) * a.tokens * a.heads + row / group * a.heads + head * group + row % group;
#pragma unroll
            for (int n = 0; n < WIDTH / 8; n++)
                *reinterpret_cast<float2*>(a.mixed + to_row * WIDTH + 8 * n + 2 * (lane % 4)) =
                    make_float2(r.mixed[n][2 * h], r.mixed[n][2 * h + 1]);
            if (lane % 4 == 0) a.stats[to_row] = make_float2(r.most[h], r.sum[h]);
        }
    }
}

template <class T, int WIDTH> __device__ inline void attend_any_format(const Attention& a) {
    wait_for_earlier();
    int from, to;
    const Segment& s = a.segments[find_split(a, blockIdx.x, from, to)];
    switch (s.format) {
        case DENSE: return attend<T, WIDTH, DENSE>(a, s, from, to);
        case Q8: return attend<T, WIDTH, Q8>(a, s, from, to);
        default: return attend<T, WIDTH, Q4>(a, s, from, to);
    }
}

// Grid: splits of all segments, kv heads, blocks of 64 rows. Block: 128 threads, with SHARED bytes of shared memory: a
// multiprocessor of a 4090 has room for one block with heads of 256, and for two with heads of 128.
#define ATTEND(NAME, T, WIDTH)                                                                             \
    extern "C" __global__ void __launch_bounds__(128, 2)                                                    \
        attend_many_##WIDTH##_##NAME(const __grid_constant__ Attention a) {                                 \
        attend_any_format<T, WIDTH>(a);                                                                     \
    }
ATTEND(bf16, Bf16, 256)
ATTEND(f16, F16, 256)
ATTEND(bf16, Bf16, 128)
ATTEND(f16, F16, 128)
