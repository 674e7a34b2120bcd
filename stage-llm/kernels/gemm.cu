// y[m, n] = sum over k of x[m, k] w[n, k] for up to 32 rows of x and weights in blocks: bound by reading w once.
//
// What it is to gain: through weights expanded to 16 bit, a matrix of 4.5 bits a weight costs its blocks, its values written
// and its values read again: 36.5 bits. Here it costs 4.5, and by that count an eighth of the time.
//
// A warp has TILES times 16 rows of w, whose values it makes in registers, for EIGHTS times 8 rows of x: the columns of a
// tensor core's tile. x lies in shared memory as the second factors of these products, half a unit's columns at a time, and is
// brought there once for the eight warps of a block. Each warp has a queue of units of w of its own. Blocks side by side have
// other rows of w, blocks above each other other columns, whose sums `gemm_sum` adds: always in the same order.
#include "blocks.cuh"

constexpr int WARPS = 8, HALF = UNIT_COLS / 2;

struct Lane {
    int index, g, t;  // of a quad g = index / 4, the thread t
};

__device__ inline uint4 piece(const unsigned char* unit, int p, Lane lane) {
    return *reinterpret_cast<const uint4*>(unit + p * 512 + lane.index * 16);
}
// One half of a pair, twice.
__device__ inline uint32_t low_twice(uint32_t pair) { return choose<0x1010>(pair, 0); }
__device__ inline uint32_t high_twice(uint32_t pair) { return choose<0x3232>(pair, 0); }
// A number as a type, for loops whose steps differ.
template <int N> struct Index { static constexpr int value = N; };
// What thread t of the quad has.
__device__ inline uint32_t of_thread(uint32_t v, int t, Lane lane) { return __shfl_sync(0xFFFFFFFFu, v, (lane.index & ~3) | t); }

// How half a unit becomes the first factors of products: `load` finds it in its unit; `group` makes a[step] of each of the
// two steps of 16 columns of group `G` of 32 of them. In a step a thread has four values of row g and of row g + 8: those that
// `place` gives it.
template <class T, int FORMAT> struct Half;

template <class T> struct Half<T, W_Q4_K> {
    uint32_t scales[2];  // of group t, rows g and g + 8: scale, and minimum with its sign turned
    uint4 nibbles[2];
    __device__ inline void load(const unsigned char* w, int half, Lane lane) {
        using U = Unit<W_Q4_K>;
#pragma unroll
        for (int r = 0; r < 2; r++) {
            Minima m(*reinterpret_cast<const uint4*>(w + U::HEADERS + (lane.g + 8 * r) * 16));
            uint32_t scale = (half ? m.scale[1] : m.scale[0]) >> (8 * lane.t), min = (half ? m.min[1] : m.min[0]) >> (8 * lane.t);
            scales[r] = T::pack(m.d * float(scale & 63u), -m.dmin * float(min & 63u));
            nibbles[r] = piece(w + U::NIBBLES, 2 * r + half, lane);
        }
    }
    static __device__ inline uint32_t value(uint32_t v, uint32_t scale, uint32_t min) {
        return T::fma(T::fma(masked_or<0x000F000Fu>(v, T::WHOLE), T::ONE, T::WHOLE | 0x80008000u), scale, min);
    }
    template <int G> __device__ inline void group(uint32_t (&a)[2][4], Lane lane) const {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            uint32_t s = of_thread(scales[r], G, lane), scale = low_twice(s), min = high_twice(s);
            uint32_t words[2] = {G < 2 ? nibbles[r].x : nibbles[r].z, G < 2 ? nibbles[r].y : nibbles[r].w};
#pragma unroll
            for (int step = 0; step < 2; step++) {
                a[step][r] = value(words[step] >> (G % 2 * 4), scale, min);
                a[step][r + 2] = value(words[step] >> (G % 2 * 4 + 8), scale, min);
            }
        }
    }
};

template <class T> struct Half<T, W_Q8_0> {
    uint2 scales[2];  // four f16 of rows g and g + 8
    uint4 bytes[2][2];
    __device__ inline void load(const unsigned char* w, int half, Lane lane) {
        using U = Unit<W_Q8_0>;
#pragma unroll
        for (int r = 0; r < 2; r++) {
            scales[r] = *reinterpret_cast<const uint2*>(w + U::scale(lane.g + 8 * r, 4 * half));
#pragma unroll
            for (int j = 0; j < 2; j++) bytes[r][j] = piece(w, 4 * r + 2 * half + j, lane);
        }
    }
    template <int G> __device__ inline void group(uint32_t (&a)[2][4], Lane) const {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float s = F16::widen(uint16_t((G < 2 ? scales[r].x : scales[r].y) >> (G % 2 * 16)));
            uint32_t scale = T::pack(s, s);
            const uint4& p = bytes[r][G / 2];
            uint32_t words[2] = {G % 2 ? p.z : p.x, G % 2 ? p.w : p.y};
#pragma unroll
            for (int step = 0; step < 2; step++) {
                a[step][r] = times<T>(T::bytes(words[step]), scale);
                a[step][r + 2] = times<T>(T::bytes(words[step] >> 8), scale);
            }
        }
    }
};

template <class T> struct Half<T, W_Q6_K> {
    uint32_t scales[2];  // of both steps of group t, rows g and g + 8
    uint4 low[2];
    uint2 high[2];
    __device__ inline void load(const unsigned char* w, int half, Lane lane) {
        using U = Unit<W_Q6_K>;
#pragma unroll
        for (int r = 0; r < 2; r++) {
            int row = lane.g + 8 * r;
            float d = F16::widen(*reinterpret_cast<const uint16_t*>(w + U::D + row * 2));
            uint32_t two = *reinterpret_cast<const uint16_t*>(w + U::SCALES + row * 16 + 8 * half + 2 * lane.t);
            scales[r] = T::pack(d * float(int8_t(two)), d * float(int8_t(two >> 8)));
            low[r] = piece(w + U::LOW, 2 * r + half, lane);
            high[r] = *reinterpret_cast<const uint2*>(w + U::HIGH + r * 512 + lane.index * 16 + half * 8);
        }
    }
    // Nibbles begin at bit 4 (G / 2) of each half, pairs of bits at 2 G.
    template <int G> static __device__ inline uint32_t value(uint32_t low, uint32_t high, uint32_t scale) {
        uint32_t top = G < 2 ? high << (G < 2 ? 4 - 2 * G : 0) : high >> (G < 2 ? 0 : 2 * G - 4);
        uint32_t six = masked_or<0x00300030u>(top, masked_or<0x000F000Fu>(low >> (G / 2 * 4), T::WHOLE));
        return times<T>(T::fma(six, T::ONE, (T::WHOLE + 0x00200020u) | 0x80008000u), scale);
    }
    template <int G> __device__ inline void group(uint32_t (&a)[2][4], Lane lane) const {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            uint32_t both = of_thread(scales[r], G, lane);
#pragma unroll
            for (int step = 0; step < 2; step++) {
                uint32_t scale = step ? high_twice(both) : low_twice(both), h = step ? high[r].y : high[r].x;
                uint32_t l = G % 2 ? (step ? low[r].w : low[r].z) : (step ? low[r].y : low[r].x);
                a[step][r] = value<G>(l, h, scale);
                a[step][r + 2] = value<G>(l >> 8, h >> 8, scale);
            }
        }
    }
};

// Units of each tile in a warp's queue, and bytes of x of half a unit's columns. `Shape` in quantized/cuda/gemm.rs knows both.
template <int FORMAT, int TILES> constexpr int DEPTH = FORMAT == W_Q4_K ? 4 / TILES : FORMAT == W_Q6_K ? 3 : 2;
template <int EIGHTS> constexpr int X_BYTES = EIGHTS * 8 * HALF * 2;

// x of half a unit's columns, on its way through registers.
template <class T, int FORMAT, int EIGHTS> struct Columns {
    static constexpr int PACKS = EIGHTS * 8 * HALF / 8, MINE = (PACKS + 32 * WARPS - 1) / (32 * WARPS);
    uint4 coming[MINE];

    __device__ inline void load(const uint16_t* x, int stride, int m, int k, int half) {
#pragma unroll
        for (int p = 0; p < MINE; p++) {
            int i = threadIdx.x + 32 * WARPS * p, row = i / (HALF / 8), column = half * HALF + i % (HALF / 8) * 8;
            bool there = i < PACKS && row < m && column < k;
            coming[p] = there ? *reinterpret_cast<const uint4*>(x + size_t(row) * stride + column) : make_uint4(0, 0, 0, 0);
        }
    }
    // As second factors: [group][eight rows][lane] of both steps. Four neighbours are crossed, as they are in a word of w whose
    // pairs are bytes 0 and 2, 1 and 3.
    __device__ inline void store(uint4* to) const {
#pragma unroll
        for (int p = 0; p < MINE; p++) {
            int i = threadIdx.x + 32 * WARPS * p, row = i / (HALF / 8), pack = i % (HALF / 8);
            if (i >= PACKS) return;
            uint4 v = coming[p];
            uint2 fours[2] = {make_uint2(choose<0x5410>(v.x, v.y), choose<0x7632>(v.x, v.y)),
                              make_uint2(choose<0x5410>(v.z, v.w), choose<0x7632>(v.z, v.w))};
            int first = ((pack / 4 * EIGHTS + row / 8) * 32 + row % 8 * 4) * 2;  // of thread 0's two steps
#pragma unroll
            for (int f = 0; f < 2; f++) {
                int four = pack % 4 * 2 + f;  // of the group's eight
                // Thread t has values 8t to 8t + 7 or, of 6 bits, 4t to 4t + 3 and 16 more.
                int at = FORMAT == W_Q6_K ? four % 4 * 2 + four / 4 : four;
                reinterpret_cast<uint2*>(to)[first + at] = fours[f];
            }
        }
    }
};

template <class T, int FORMAT, int EIGHTS, int TILES>
__device__ inline void gemm(const void* x_rows, int stride, const void* weights, void* y, float* sums, int m, int n, int k,
                            int units) {
    constexpr int UNIT = Unit<FORMAT>::BYTES, D = DEPTH<FORMAT, TILES>, QUEUE = D * TILES * UNIT;
    static_assert(WARPS * QUEUE + 2 * X_BYTES<EIGHTS> <= 99 << 10, "a block has 99 KB on sm_89");
    static_assert(UNIT % 16 == 0, "units begin on 16 bytes");
    const uint16_t* x = static_cast<const uint16_t*>(x_rows);
    int warp = threadIdx.x / 32;
    Lane lane = {int(threadIdx.x % 32), int(threadIdx.x % 32) / 4, int(threadIdx.x % 4)};
    int across = (k + UNIT_COLS - 1) / UNIT_COLS, tiles = (n + UNIT_ROWS - 1) / UNIT_ROWS;
    int tile = (blockIdx.x * WARPS + warp) * TILES, from = blockIdx.y * units, to = min(across, from + units);
    unsigned char* queue = shared_memory() + warp * QUEUE;
    uint4* factors = reinterpret_cast<uint4*>(shared_memory() + WARPS * QUEUE);

    auto fetch = [&](int unit) {
#pragma unroll
        for (int i = 0; i < TILES; i++) {
            if (unit >= to || tile + i >= tiles) break;
            unsigned char* slot = queue + (unit % D * TILES + i) * UNIT;
            const unsigned char* source = static_cast<const unsigned char*>(weights) + (size_t(tile + i) * across + unit) * UNIT;
#pragma unroll
            for (int at = 0; at < UNIT; at += 512)
                if (at + lane.index * 16 < UNIT) copy16(slot + at + lane.index * 16, source + at + lane.index * 16, true);
        }
        copies_end();
    };
    // Nothing writes weights.
    for (int unit = from; unit < from + D - 1; unit++) fetch(unit);
    next_may_begin();
    wait_for_earlier();

    Columns<T, FORMAT, EIGHTS> columns;
    columns.load(x, stride, m, k, 2 * from);
    float sum[TILES][EIGHTS][4] = {};
    for (int half = 2 * from; half < 2 * to; half++) {
        int unit = half / 2;
        uint4* b = factors + half % 2 * (X_BYTES<EIGHTS> / 16);
        columns.store(b);
        if (half % 2 == 0) copies_wait<D - 2>();
        __syncthreads();  // x and the unit are there, and nobody reads what came before them any more
        if (half % 2 == 0) fetch(unit + D - 1);
        if (half + 1 < 2 * to) columns.load(x, stride, m, k, half + 1);
        if (tile >= tiles) continue;
        const unsigned char* slot = queue + unit % D * TILES * UNIT;
        Half<T, FORMAT> halves[TILES];
#pragma unroll
        for (int i = 0; i < TILES; i++) halves[i].load(slot + i * UNIT, half % 2, lane);
        auto group = [&](auto index) {
            constexpr int G = decltype(index)::value;
            uint4 second[EIGHTS];
#pragma unroll
            for (int e = 0; e < EIGHTS; e++) second[e] = b[(G * EIGHTS + e) * 32 + lane.index];
#pragma unroll
            for (int i = 0; i < TILES; i++) {
                uint32_t a[2][4];
                halves[i].template group<G>(a, lane);
#pragma unroll
                for (int e = 0; e < EIGHTS; e++) T::mma(sum[i][e], a[0], {second[e].x, second[e].y});
#pragma unroll
                for (int e = 0; e < EIGHTS; e++) T::mma(sum[i][e], a[1], {second[e].z, second[e].w});
            }
        };
        group(Index<0>()), group(Index<1>()), group(Index<2>()), group(Index<3>());
    }
    copies_wait<0>();

    bool whole = gridDim.y == 1;
#pragma unroll
    for (int i = 0; i < TILES; i++)
#pragma unroll
        for (int e = 0; e < EIGHTS; e++)
#pragma unroll
            for (int c = 0; c < 4; c++) {
                int row = 8 * e + 2 * lane.t + c % 2, output = (tile + i) * UNIT_ROWS + lane.g + c / 2 * 8;
                if (row >= m || output >= n) continue;
                if (whole) static_cast<uint16_t*>(y)[size_t(row) * n + output] = T::narrow(sum[i][e][c]);
                else sums[(size_t(blockIdx.y) * m + row) * n + output] = sum[i][e][c];
            }
}

// y = sum over `slices` of sums[slices, count].
template <class T> __device__ inline void add_slices(const float* sums, void* y, int count, int slices) {
    next_may_begin();
    wait_for_earlier();
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    float total = 0.f;
    for (int s = 0; s < slices; s++) total += sums[size_t(s) * count + i];
    static_cast<uint16_t*>(y)[i] = T::narrow(total);
}
extern "C" __global__ void gemm_sum_bf16(const float* sums, void* y, int count, int slices) { add_slices<Bf16>(sums, y, count, slices); }
extern "C" __global__ void gemm_sum_f16(const float* sums, void* y, int count, int slices) { add_slices<F16>(sums, y, count, slices); }

// Grid: groups of 8 TILES tiles of 16 outputs, slices of `units` units of 256 columns. Block: 256 threads.
#define GEMM_OF(NAME, T, FORMAT, EIGHTS, TILES)                                                                            \
    extern "C" __global__ void __launch_bounds__(32 * WARPS, 2)                                                            \
        gemm_##NAME(const void* x, int stride, const void* w, void* y, float* sums, int m, int n, int k, int units) {      \
        gemm<T, FORMAT, EIGHTS, TILES>(x, stride, w, y, sums, m, n, k, units);                                             \
    }
#define GEMM_ROWS(NAME, FORMAT, EIGHTS, TILES)                \
    GEMM_OF(NAME##_bf16, Bf16, FORMAT, EIGHTS, TILES)         \
    GEMM_OF(NAME##_f16, F16, FORMAT, EIGHTS, TILES)
#define GEMM(NAME, FORMAT, TILES)                   \
    GEMM_ROWS(NAME##_8, FORMAT, 1, TILES)           \
    GEMM_ROWS(NAME##_16, FORMAT, 2, TILES)          \
    GEMM_ROWS(NAME##_32, FORMAT, 4, TILES)
GEMM(q4_k_1, W_Q4_K, 1)
GEMM(q4_k_2, W_Q4_K, 2)
GEMM(q8_0_1, W_Q8_0, 1)
GEMM(q6_k_1, W_Q6_K, 1)
