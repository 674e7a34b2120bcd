// y[m, n] = sum over k of x[m, k] w[n, k] for up to 8 rows of x: bound by reading w once.
//
// Tensor cores do it turned round: 16 rows of w are a tile's rows. Each warp has a queue of stretches of w in shared
// memory, filled without waiting and across tiles, so that the memory never rests. The warps of a block share a tile along
// k and meet once a tile.
//
// Weights in blocks are multiplied as the whole numbers that they are, and each group's sum is scaled in f32. For that the
// tile's 8 columns are not 8 rows of x but 8 groups of one row: a thread gives its x to the products of its own group, and
// zeros to those of the others.
#include "blocks.cuh"

constexpr int WARPS = 8, ROWS = UNIT_ROWS;

struct Lane {
    int index, g, t;  // of a quad g = index / 4, the thread t
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
__device__ inline uint4 piece(const unsigned char* unit, int p, Lane lane) {
    return *reinterpret_cast<const uint4*>(unit + p * 512 + lane.index * 16);
}

// How a warp multiplies stretches of a tile, of `COLS` columns and `BYTES` bytes, `DEPTH` of which are in its queue.
// `Source` is where they come from, one after the other; `load` takes the x that a stretch is to meet, `add` multiplies,
// `finish` writes the sums: [M][16 rows].
template <class T, int FORMAT, int M> struct Stretch;

template <class T, int M> struct Stretch<T, W_DENSE, M> {
    static constexpr int COLS = 64, BYTES = ROWS * COLS * 2, DEPTH = 5;
    float sum[2][4] = {};
    uint4 x[2];

    // Rows of 128 bytes, odd ones with their halves exchanged: what eight threads read at once lies in different banks.
    static __device__ inline int at(int row, int sixteenth) { return row * 128 + (sixteenth ^ (row % 2 * 4)) * 16; }

    // Eight threads copy 128 bytes of a row.
    struct Source {
        const uint16_t *start, *from;  // `from`: this thread's part of the tile's row 0, 1, 2 or 3
        size_t over;
        int column, row, n, k;
        __device__ inline Source(const Matrices& a, int tile, int c, Lane lane) : n(a.n), k(a.k) {
            row = tile * ROWS + lane.index / 8, column = COLS * c + 8 * (lane.index % 8);
            start = static_cast<const uint16_t*>(a.w), from = start + size_t(row) * k + column;
            over = size_t(gridDim.x) * ROWS * k;
        }
        __device__ inline void fetch(unsigned char* slot, Lane lane) const {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                bool there = column < k && row + 4 * i < n;
                copy16(slot + at(4 * i + lane.index / 8, lane.index % 8), there ? from + size_t(4 * i) * k : start, there);
            }
        }
        __device__ inline void along() { from += WARPS * COLS, column += WARPS * COLS; }
        __device__ inline void next_tile(int stretches) {
            from += over - size_t(stretches) * COLS, column -= stretches * COLS, row += gridDim.x * ROWS;
        }
    };
    __device__ inline void load(const Matrices& a, int c, Lane lane) {
#pragma unroll
        for (int j = 0; j < 2; j++) {
            int column = COLS * c + 32 * j + 8 * lane.t;
            x[j] = sixteen_bytes(a.x + size_t(lane.g) * a.stride + column, lane.g < a.m && column < a.k);
        }
    }
    __device__ inline void add(const unsigned char* w, Lane lane) {
#pragma unroll
        for (int j = 0; j < 2; j++) {
            uint4 p0 = *reinterpret_cast<const uint4*>(w + at(lane.g, 4 * j + lane.t));
            uint4 p1 = *reinterpret_cast<const uint4*>(w + at(lane.g + 8, 4 * j + lane.t));
            T::mma(sum[0], {p0.x, p1.x, p0.y, p1.y}, {x[j].x, x[j].y});
            T::mma(sum[1], {p0.z, p1.z, p0.w, p1.w}, {x[j].z, x[j].w});
        }
    }
    __device__ inline void finish(float* outcome, Lane lane) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int column = 2 * lane.t + i % 2;
            if (column < M) outcome[column * ROWS + lane.g + 8 * (i / 2)] = sum[0][i] + sum[1][i];
        }
    }
};

// What the formats of blocks share. Thread t of a quad sums groups 2t and 2t + 1 of rows g and g + 8.
template <class T, int FORMAT, int M> struct Grouped {
    static constexpr int COLS = UNIT_COLS, BYTES = Unit<FORMAT>::BYTES, DEPTH = FORMAT == W_Q4_K ? 3 : 2;
    // Two accumulators, which need not wait for each other.
    using Sums = float[2][M][4];
    float sum[M][2] = {};
    uint32_t x[M][4];  // this thread's values of group g, four in the order of a word whose pairs are bytes 0 and 2, 1 and 3

    // A unit is one stretch of memory, and so is a tile.
    struct Source {
        const unsigned char* from;
        size_t over;
        bool there;
        int tile, tiles;
        __device__ inline Source(const Matrices& a, int tile, int c, Lane lane)
            : tile(tile), tiles((a.n + ROWS - 1) / ROWS) {
            size_t across = (a.k + COLS - 1) / COLS;
            from = static_cast<const unsigned char*>(a.w) + (tile * across + c) * BYTES + lane.index * 16;
            over = (gridDim.x - 1) * across * BYTES;
        }
        __device__ inline void fetch(unsigned char* slot, Lane lane) const {
            if (tile >= tiles) return;
#pragma unroll
            for (int i = 0; i < BYTES; i += 512)
                if (i + 512 <= BYTES || i + lane.index * 16 < BYTES)
                    copy16(slot + i + lane.index * 16, from + i, true);
        }
        __device__ inline void along() { from += WARPS * BYTES; }
        __device__ inline void next_tile(int) { from += over, tile += gridDim.x; }
    };
    static __device__ inline uint32_t crossed(uint32_t low, uint32_t high, bool second) {
        return second ? choose<0x7632>(low, high) : choose<0x5410>(low, high);
    }
    __device__ inline void load(const Matrices& a, int c, Lane lane) {
        int column = COLS * c + 8 * lane.index;
#pragma unroll
        for (int i = 0; i < M; i++) {
            uint4 v = sixteen_bytes(a.x + size_t(i) * a.stride + column, i < a.m && column < a.k);
            x[i][0] = crossed(v.x, v.y, false), x[i][1] = crossed(v.x, v.y, true);
            x[i][2] = crossed(v.z, v.w, false), x[i][3] = crossed(v.z, v.w, true);
        }
    }
    // d += w x, where `own` says that this thread's group is multiplied: x[at], x[at + 1].
    __device__ inline void multiply(float (&d)[M][4], const uint32_t (&w)[4], int at, bool own) const {
#pragma unroll
        for (int i = 0; i < M; i++) T::mma(d[i], w, {own ? x[i][at] : 0, own ? x[i][at + 1] : 0});
    }
    // Each group's sum of x.
    __device__ inline void add_ones(float (&d)[M][4], int at) const {
#pragma unroll
        for (int i = 0; i < M; i++) T::mma(d[i], {T::ONE, T::ONE, T::ONE, T::ONE}, {x[i][at], x[i][at + 1]});
    }
    __device__ inline void scaled(const float (&d)[M][4], const float (&s)[4]) {
#pragma unroll
        for (int i = 0; i < M; i++) {
            sum[i][0] = fmaf(s[0], d[i][0], fmaf(s[1], d[i][1], sum[i][0]));
            sum[i][1] = fmaf(s[2], d[i][2], fmaf(s[3], d[i][3], sum[i][1]));
        }
    }
    __device__ inline void scaled_both(Sums& d, const float (&s)[4]) {
#pragma unroll
        for (int i = 0; i < M; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) d[0][i][j] += d[1][i][j];
        scaled(d[0], s);
    }
    __device__ inline void finish(float* outcome, Lane lane) {
#pragma unroll
        for (int i = 0; i < M; i++)
#pragma unroll
            for (int r = 0; r < 2; r++) {
                float all = sum[i][r];
                all += __shfl_xor_sync(0xFFFFFFFFu, all, 1);
                all += __shfl_xor_sync(0xFFFFFFFFu, all, 2);
                if (lane.t == 0) outcome[i * ROWS + lane.g + 8 * r] = all;
            }
    }
};

template <class T, int M> struct Stretch<T, W_Q8_0, M> : Grouped<T, W_Q8_0, M> {
    __device__ inline void add(const unsigned char* w, Lane lane) {
        using U = Unit<W_Q8_0>;
        typename Grouped<T, W_Q8_0, M>::Sums d = {};
#pragma unroll
        for (int j = 0; j < 4; j++) {
            uint4 p0 = piece(w, j, lane), p1 = piece(w, 4 + j, lane);
            uint32_t v0[4] = {p0.x, p0.y, p0.z, p0.w}, v1[4] = {p1.x, p1.y, p1.z, p1.w};
#pragma unroll
            for (int i = 0; i < 4; i++) {
                uint32_t h0 = v0[i] >> 8, h1 = v1[i] >> 8;
                bool own = lane.g == 2 * j + i / 2;
                uint32_t first[4] = {T::bytes_first(v0[i]), T::bytes_first(v1[i]), T::bytes_first(h0), T::bytes_first(h1)};
                uint32_t second[4] = {T::bytes_second(v0[i]), T::bytes_second(v1[i]), T::bytes_second(h0), T::bytes_second(h1)};
                this->multiply(d[0], first, i % 2 * 2, own);
                this->multiply(d[1], second, i % 2 * 2, own);
            }
        }
        uint32_t s0 = *reinterpret_cast<const uint32_t*>(w + U::scale(lane.g, 2 * lane.t));
        uint32_t s1 = *reinterpret_cast<const uint32_t*>(w + U::scale(lane.g + 8, 2 * lane.t));
        this->scaled_both(d, {F16::widen(uint16_t(s0)), F16::widen(uint16_t(s0 >> 16)), F16::widen(uint16_t(s1)),
                              F16::widen(uint16_t(s1 >> 16))});
    }
};

template <class T, int M> struct Stretch<T, W_Q4_K, M> : Grouped<T, W_Q4_K, M> {
    __device__ inline void add(const unsigned char* w, Lane lane) {
        using U = Unit<W_Q4_K>;
        typename Grouped<T, W_Q4_K, M>::Sums d = {};
        float ones[M][4] = {};
        this->add_ones(ones, 0), this->add_ones(ones, 2);
        auto whole = [](uint32_t v) { return masked_or<0x000F000Fu>(v, T::WHOLE); };
#pragma unroll
        for (int j = 0; j < 2; j++) {
            uint4 p0 = piece(w + U::NIBBLES, j, lane), p1 = piece(w + U::NIBBLES, 2 + j, lane);
            uint32_t v0[4] = {p0.x, p0.y, p0.z, p0.w}, v1[4] = {p1.x, p1.y, p1.z, p1.w};
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int group = 4 * j + i / 2 * 2;
                uint32_t low[4] = {whole(v0[i]), whole(v1[i]), whole(v0[i] >> 8), whole(v1[i] >> 8)};
                this->multiply(d[0], low, i % 2 * 2, lane.g == group);
                uint32_t high[4] = {whole(v0[i] >> 4), whole(v1[i] >> 4), whole(v0[i] >> 12), whole(v1[i] >> 12)};
                this->multiply(d[1], high, i % 2 * 2, lane.g == group + 1);
            }
        }
        float s[4], c[4];
#pragma unroll
        for (int r = 0; r < 2; r++) {
            Minima m(*reinterpret_cast<const uint4*>(w + U::HEADERS + (lane.g + 8 * r) * 16));
            uint32_t scales = (lane.t < 2 ? m.scale[0] : m.scale[1]) >> (lane.t % 2 * 16);
            uint32_t minima = (lane.t < 2 ? m.min[0] : m.min[1]) >> (lane.t % 2 * 16);
#pragma unroll
            for (int i = 0; i < 2; i++) {
                s[2 * r + i] = m.d * float((scales >> (8 * i)) & 63u);
                c[2 * r + i] = fmaf(-T::WHOLE_VALUE, s[2 * r + i], -m.dmin * float((minima >> (8 * i)) & 63u));
            }
        }
        this->scaled_both(d, s);
        this->scaled(ones, c);
    }
};

// Sixteen groups of 16: a half of the unit has the eight that fill a tile's columns. Of x, a thread has four values for
// each half.
template <class T, int M> struct Stretch<T, W_Q6_K, M> : Grouped<T, W_Q6_K, M> {
    using Base = Grouped<T, W_Q6_K, M>;
    __device__ inline void load(const Matrices& a, int c, Lane lane) {
#pragma unroll
        for (int i = 0; i < M; i++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                int column = UNIT_COLS * c + 128 * half + 4 * lane.index;
                bool there = i < a.m && column < a.k;
                uint2 v = there ? *reinterpret_cast<const uint2*>(a.x + size_t(i) * a.stride + column) : make_uint2(0, 0);
                this->x[i][2 * half] = Base::crossed(v.x, v.y, false);
                this->x[i][2 * half + 1] = Base::crossed(v.x, v.y, true);
            }
    }
    // Two values of 6 bits on top of T::WHOLE: nibbles that begin at bit 4 (Q / 2) of each half, pairs of bits at 2 Q.
    template <int Q> static __device__ inline uint32_t six(uint32_t low, uint32_t high) {
        uint32_t top = Q < 2 ? high << (Q < 2 ? 4 - 2 * Q : 0) : high >> (Q < 2 ? 0 : 2 * Q - 4);
        return masked_or<0x00300030u>(top, masked_or<0x000F000Fu>(low >> (Q / 2 * 4), T::WHOLE));
    }
    template <int Q>
    __device__ inline void quarter(float (&d)[M][4], const uint32_t (&low)[2][4], const uint32_t (&pairs)[2][2], int half,
                                   int s, Lane lane) {
        uint32_t l0 = low[0][Q % 2 * 2 + s], l1 = low[1][Q % 2 * 2 + s], h0 = pairs[0][s], h1 = pairs[1][s];
        this->multiply(d, {six<Q>(l0, h0), six<Q>(l1, h1), six<Q>(l0 >> 8, h0 >> 8), six<Q>(l1 >> 8, h1 >> 8)}, 2 * half,
                       lane.g == 2 * Q + s);
    }
    __device__ inline void add(const unsigned char* w, Lane lane) {
        using U = Unit<W_Q6_K>;
        uint4 h0 = piece(w + U::HIGH, 0, lane), h1 = piece(w + U::HIGH, 1, lane);
        float whole[2] = {F16::widen(*reinterpret_cast<const uint16_t*>(w + U::D + lane.g * 2)),
                          F16::widen(*reinterpret_cast<const uint16_t*>(w + U::D + (lane.g + 8) * 2))};
#pragma unroll
        for (int half = 0; half < 2; half++) {
            typename Base::Sums d = {};
            float ones[M][4] = {};
            this->add_ones(ones, 2 * half);
            uint4 p0 = piece(w, half, lane), p1 = piece(w, 2 + half, lane);
            uint32_t low[2][4] = {{p0.x, p0.y, p0.z, p0.w}, {p1.x, p1.y, p1.z, p1.w}};
            uint32_t pairs[2][2] = {{half ? h0.z : h0.x, half ? h0.w : h0.y}, {half ? h1.z : h1.x, half ? h1.w : h1.y}};
#pragma unroll
            for (int s = 0; s < 2; s++) {
                quarter<0>(d[0], low, pairs, half, s, lane), quarter<1>(d[1], low, pairs, half, s, lane);
                quarter<2>(d[0], low, pairs, half, s, lane), quarter<3>(d[1], low, pairs, half, s, lane);
            }
            float scales[4], c[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int8_t scale = *reinterpret_cast<const int8_t*>(w + U::SCALES + (lane.g + i / 2 * 8) * 16 + 8 * half +
                                                                2 * lane.t + i % 2);
                scales[i] = whole[i / 2] * float(scale), c[i] = -(T::WHOLE_VALUE + 32.f) * scales[i];
            }
            this->scaled_both(d, scales);
            this->scaled(ones, c);
        }
    }
};

// Grid: at most as many blocks as the GPU holds at once; each has every so many tiles. Shared memory: the queues of all
// warps and two turns of outcomes (`gemv_shared` in quantized/cuda.rs).
template <class T, int FORMAT, int M>
__device__ inline void gemv(const void* x, int stride, const void* w, void* y, int m, int n, int k) {
    using S = Stretch<T, FORMAT, M>;
    constexpr int OUTCOME = M * ROWS, DEPTH = S::DEPTH;
    static_assert(WARPS * (DEPTH * S::BYTES + 2 * OUTCOME * 4) <= 99 << 10, "a block has 99 KB on sm_89");
    int warp = threadIdx.x / 32;
    Lane lane = {int(threadIdx.x % 32), int(threadIdx.x % 32) / 4, int(threadIdx.x % 4)};
    Matrices a = {static_cast<const uint16_t*>(x), w, static_cast<uint16_t*>(y), stride, m, n, k};
    int tiles = (n + ROWS - 1) / ROWS, stretches = (k + S::COLS - 1) / S::COLS;
    unsigned char* queue = shared_memory() + warp * (DEPTH * S::BYTES);
    float* outcomes = reinterpret_cast<float*>(shared_memory() + WARPS * DEPTH * S::BYTES);

    // The stretches of all tiles of this block are dealt to its warps in turn.
    typename S::Source ahead(a, blockIdx.x, warp, lane);
    int ahead_c = warp, ahead_slot = 0;
    auto fetch = [&]() {
        while (ahead_c >= stretches) ahead_c -= stretches, ahead.next_tile(stretches);
        ahead.fetch(queue + ahead_slot, lane);
        copies_end();
        ahead.along(), ahead_c += WARPS;
        ahead_slot = ahead_slot == (DEPTH - 1) * S::BYTES ? 0 : ahead_slot + S::BYTES;
    };
    for (int i = 0; i < DEPTH - 1; i++) fetch();
    next_may_begin();
    wait_for_earlier();
    int slot = 0, c = warp, turn = 0;
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x, turn ^= 1) {
        S s;
        for (; c < stretches; c += WARPS) {
            s.load(a, c, lane);
            copies_wait<DEPTH - 2>();
            __syncwarp();
            fetch();
            s.add(queue + slot, lane);
            slot = slot == (DEPTH - 1) * S::BYTES ? 0 : slot + S::BYTES;
        }
        c -= stretches;
        float* outcome = outcomes + turn * WARPS * OUTCOME;
        s.finish(outcome + warp * OUTCOME, lane);
        __syncthreads();
        for (int i = threadIdx.x; i < OUTCOME; i += 32 * WARPS) {
            int row = tile * ROWS + i % ROWS;
            if (i / ROWS >= m || row >= n) continue;
            float total = 0.f;
#pragma unroll
            for (int p = 0; p < WARPS; p++) total += outcome[p * OUTCOME + i];
            a.y[size_t(i / ROWS) * n + row] = T::narrow(total);
        }
    }
}

// Blocks that a multiprocessor of a large GPU is to hold: as many as the queues leave room for.
template <int FORMAT, int M> constexpr int BLOCKS = M > 1 ? 1 : FORMAT == W_DENSE ? 2 : FORMAT == W_Q4_K ? 4 : 3;

#define GEMV_OF(NAME, T, FORMAT, M)                                                                           \
    extern "C" __global__ void __launch_bounds__(32 * WARPS, BLOCKS<FORMAT, M>)                               \
        gemv_##NAME(const void* x, int stride, const void* w, void* y, int m, int n, int k) {                 \
        gemv<T, FORMAT, M>(x, stride, w, y, m, n, k);                                                         \
    }
// For one row, and for up to eight.
#define GEMV(NAME, FORMAT)                                                                                    \
    GEMV_OF(NAME##_1_bf16, Bf16, FORMAT, 1)                                                                   \
    GEMV_OF(NAME##_1_f16, F16, FORMAT, 1)                                                                     \
    GEMV_OF(NAME##_8_bf16, Bf16, FORMAT, 8)                                                                   \
    GEMV_OF(NAME##_8_f16, F16, FORMAT, 8)
GEMV(dense, W_DENSE)
GEMV(q8_0, W_Q8_0)
GEMV(q4_k, W_Q4_K)
GEMV(q6_k, W_Q6_K)
