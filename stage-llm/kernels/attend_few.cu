// Attention of at most 8 rows (tokens x query heads of a kv head) over long caches: decode. Bound by memory.
//
// Products are turned round: keys (then dimensions) are the 16 rows of a tensor core's tile and the queries its 8
// columns, so that little of a tile is padding. A product does not mind the order of what it sums over, so each thread
// takes 16 neighbouring bytes of a key as they lie in memory and the queries are laid out to match. Every warp has a deep
// queue of tiles in shared memory, which costs no registers and waits for no other warp.
//
// A head has WIDTH values, 256 or 128: a row of keys or values is whole lines of 128 bytes or, with 128 values of 4 bits,
// half a line.
#include "attention.cuh"

constexpr int WARPS = 4, TILE = 16;
// A maximum may be passed by this many powers of two before all sums are rescaled.
constexpr float SLACK = 8.f;

// How a tile of 16 keys (or values) of a format is held by a warp.
template <int WIDTH, int FORMAT> struct Tile {
    static constexpr int ROW = FORMAT == DENSE ? 2 * WIDTH : FORMAT == Q8 ? WIDTH : WIDTH / 2;  // bytes
    static constexpr int LINE = ROW < 128 ? ROW : 128;                                          // bytes of it in a line
    static constexpr int CHUNK = 16 * WIDTH / ROW;                                              // values in 16 bytes
    static constexpr int PIECE = LINE / 8;              // bytes of a value's line that a thread multiplies
    static constexpr int HELD = CHUNK * PIECE / 16;     // values in them
    static constexpr int GROUPS = FORMAT == DENSE ? 0 : WIDTH / (FORMAT == Q8 ? GROUP_8 : GROUP_4);  // of a row
    static constexpr int SCALES = 2 * GROUPS;           // bytes
    static constexpr int VALUES = TILE * ROW;           // bytes before the scales
    static constexpr int BYTES = VALUES + TILE * SCALES;
    // Tiles in the queue: as many bytes are under way whatever the width.
    static constexpr int DEPTH = (FORMAT == DENSE ? 3 : FORMAT == Q8 ? 5 : 8) * 256 / WIDTH;
    static constexpr int QUEUE = DEPTH * BYTES;
    static_assert(ROW == 64 || ROW % 128 == 0, "whole lines, or two rows to a line");
    static_assert(BYTES % 16 == 0, "tiles begin on 16 bytes");
    static_assert(WARPS * QUEUE <= 99 << 10, "a block has 99 KB on sm_89");
    static_assert(QUEUE >= (8 * WIDTH + 16) * 4, "room for outcomes");
};

struct Lane {
    int index, g, t;  // of a quad g = index / 4, the thread t
};

// Where 16 bytes of a row lie in a slot: column `at` of its line `line`. Rows exchange their columns so that what eight
// threads read at once, be it of two rows (keys) or of four (values), lies in different banks. Of two rows in a line, the
// odd one has the second half before columns are exchanged; of values, sixteen threads then read 8 bytes each of four lines.
template <int WIDTH, int FORMAT> __device__ inline int place(int row, int line, int at) {
    constexpr int ROW = Tile<WIDTH, FORMAT>::ROW;
    int start = ROW < 128 ? row / 2 * 128 : row * ROW + line * 128;
    return start + (at ^ (row & 6) ^ (row & 1) << 2) * 16;
}

// Starts copying a tile of keys or values. Eight threads copy 128 neighbouring bytes: what is asked for half by half, the
// second cache hands out twice.
template <int WIDTH, int FORMAT>
__device__ inline void fetch_tile(unsigned char* slot, const unsigned char* rows, const uint16_t* scales, int key, int end,
                                  Lane lane) {
    using F = Tile<WIDTH, FORMAT>;
    constexpr int THREADS = F::LINE / 16, ROWS = 32 / THREADS;  // threads of a row, rows that the warp copies at once
#pragma unroll
    for (int i = 0; i < TILE / ROWS; i++) {
        int row = ROWS * i + lane.index / THREADS, at = lane.index % THREADS;
        bool there = key + row < end;
        const unsigned char* from = rows + size_t(there ? key + row : 0) * F::ROW + 16 * at;
#pragma unroll
        for (int l = 0; l < F::ROW / F::LINE; l++) copy16(slot + place<WIDTH, FORMAT>(row, l, at), from + 128 * l, there);
    }
    if constexpr (F::SCALES > 0) {
        if (lane.index < TILE) {
            int at = key + lane.index;
            bool there = at < end;
            unsigned char* to = slot + F::VALUES + lane.index * F::SCALES;
            copy_scales<F::SCALES>(to, scales + size_t(there ? at : 0) * F::GROUPS, there);
        }
    }
}

// 16 bytes of a key that the thread multiplies: part t of 64, the j-th.
template <int WIDTH, int FORMAT>
__device__ inline uint4 piece_of_key(const unsigned char* slot, int row, int j, Lane lane) {
    return *reinterpret_cast<const uint4*>(slot + place<WIDTH, FORMAT>(row, j / 2, j % 2 * 4 + lane.t));
}
// An eighth of a value's j-th line: part g.
template <int WIDTH, int FORMAT>
__device__ inline void piece_of_value(uint32_t (&w)[Tile<WIDTH, FORMAT>::PIECE / 4], const unsigned char* slot, int row, int j,
                                      Lane lane) {
    if constexpr (Tile<WIDTH, FORMAT>::PIECE == 16) {
        uint4 p = *reinterpret_cast<const uint4*>(slot + place<WIDTH, FORMAT>(row, j, lane.g));
        w[0] = p.x, w[1] = p.y, w[2] = p.z, w[3] = p.w;
    } else {
        uint2 p = *reinterpret_cast<const uint2*>(slot + place<WIDTH, FORMAT>(row, j, lane.g / 2) + lane.g % 2 * 8);
        w[0] = p.x, w[1] = p.y;
    }
}

// Scores of 16 keys: score[0] and [1] of key g for rows 2t and 2t + 1, [2] and [3] of key g + 8.
template <class T, int WIDTH, int FORMAT>
__device__ inline void multiply_keys(float (&score)[4], const unsigned char* slot, const uint32_t (&q)[WIDTH / 16][2],
                                     Lane lane) {
    using F = Tile<WIDTH, FORMAT>;
    constexpr int J = F::ROW / 64, STEPS = F::CHUNK / 4;
    float even[4] = {0, 0, 0, 0}, odd[4] = {0, 0, 0, 0};
    const uint16_t* scales = reinterpret_cast<const uint16_t*>(slot + F::VALUES);
#pragma unroll
    for (int j = 0; j < J; j++) {
        uint4 p0 = piece_of_key<WIDTH, FORMAT>(slot, lane.g, j, lane);
        uint4 p1 = piece_of_key<WIDTH, FORMAT>(slot, lane.g + 8, j, lane);
        uint32_t w0[4] = {p0.x, p0.y, p0.z, p0.w}, w1[4] = {p1.x, p1.y, p1.z, p1.w};
        uint32_t s0 = 0, s1 = 0, c0 = 0, c1 = 0;
        if constexpr (FORMAT == Q8) {  // a group is the four threads' 16 values
            float a = scale_8(scales[lane.g * F::GROUPS + j]), b = scale_8(scales[(lane.g + 8) * F::GROUPS + j]);
            s0 = T::pack(a, a), s1 = T::pack(b, b);
        }
        if constexpr (FORMAT == Q4) {  // a group is this thread's 32 values
            float ca, cb;
            float a = scale_4(scales[lane.g * F::GROUPS + 4 * j + lane.t], ca);
            float b = scale_4(scales[(lane.g + 8) * F::GROUPS + 4 * j + lane.t], cb);
            s0 = T::pack(a, a), s1 = T::pack(b, b), c0 = T::pack(ca, ca), c1 = T::pack(cb, cb);
        }
#pragma unroll
        for (int h = 0; h < STEPS; h++) {
            uint32_t a[4];
            if constexpr (FORMAT == DENSE) {
                a[0] = w0[2 * h], a[1] = w1[2 * h], a[2] = w0[2 * h + 1], a[3] = w1[2 * h + 1];
            } else if constexpr (FORMAT == Q8) {
                a[0] = times<T>(T::bytes(choose<0x4140>(w0[h], 0)), s0);
                a[1] = times<T>(T::bytes(choose<0x4140>(w1[h], 0)), s1);
                a[2] = times<T>(T::bytes(choose<0x4342>(w0[h], 0)), s0);
                a[3] = times<T>(T::bytes(choose<0x4342>(w1[h], 0)), s1);
            } else if (h % 2 == 0) {
                a[0] = T::fma(sixteen_and<T, 0>(w0[h / 2]), s0, c0);
                a[1] = T::fma(sixteen_and<T, 0>(w1[h / 2]), s1, c1);
                a[2] = T::fma(sixteen_and<T, 4>(w0[h / 2]), s0, c0);
                a[3] = T::fma(sixteen_and<T, 4>(w1[h / 2]), s1, c1);
            } else {
                a[0] = T::fma(sixteen_and<T, 8>(w0[h / 2]), s0, c0);
                a[1] = T::fma(sixteen_and<T, 8>(w1[h / 2]), s1, c1);
                a[2] = T::fma(sixteen_and<T, 12>(w0[h / 2]), s0, c0);
                a[3] = T::fma(sixteen_and<T, 12>(w1[h / 2]), s1, c1);
            }
            T::mma(h % 2 ? odd : even, a, q[j * STEPS + h]);
        }
    }
#pragma unroll
    for (int i = 0; i < 4; i++) score[i] = even[i] + odd[i];
}

// mixed += values * weights. Tile n of `mixed` has values 2u (rows g) and 2u + 1 (rows g + 8) of each thread's pieces:
// n = j * HELD / 2 + u.
template <class T, int WIDTH, int FORMAT>
__device__ inline void multiply_values(float (&mixed)[WIDTH / 16][4], const unsigned char* slot, const uint32_t (&weights)[2],
                                       Lane lane) {
    using F = Tile<WIDTH, FORMAT>;
    constexpr int J = F::ROW / F::LINE, WORDS = F::PIECE / 4;
    const uint16_t* scales = reinterpret_cast<const uint16_t*>(slot + F::VALUES);
#pragma unroll
    for (int j = 0; j < J; j++) {
        uint32_t w[4][WORDS];
#pragma unroll
        for (int q = 0; q < 4; q++) piece_of_value<WIDTH, FORMAT>(w[q], slot, 2 * lane.t + q % 2 + q / 2 * 8, j, lane);
        uint32_t s[2] = {0, 0}, c[2] = {0, 0};
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int key = 2 * lane.t + 8 * half;
            if constexpr (FORMAT == Q8) {
                int group = 2 * j + lane.g / 4;
                s[half] = T::pack(scale_8(scales[key * F::GROUPS + group]), scale_8(scales[(key + 1) * F::GROUPS + group]));
            }
            if constexpr (FORMAT == Q4) {
                int group = lane.g * F::HELD / GROUP_4;
                float ca, cb;
                float a = scale_4(scales[key * F::GROUPS + group], ca), b = scale_4(scales[(key + 1) * F::GROUPS + group], cb);
                s[half] = T::pack(a, b), c[half] = T::pack(ca, cb);
            }
        }
        if constexpr (FORMAT == DENSE) {
#pragma unroll
            for (int u = 0; u < WORDS; u++) {
                uint32_t a[4] = {choose<0x5410>(w[0][u], w[1][u]), choose<0x7632>(w[0][u], w[1][u]),
                                 choose<0x5410>(w[2][u], w[3][u]), choose<0x7632>(w[2][u], w[3][u])};
                T::mma(mixed[j * F::HELD / 2 + u], a, weights);
            }
        } else if constexpr (FORMAT == Q8) {
#pragma unroll
            for (int i = 0; i < WORDS; i++) {
                // Halves: two values of the first key, the same two of the second.
                uint32_t y[2][2] = {{choose<0x5410>(w[0][i], w[1][i]), choose<0x7632>(w[0][i], w[1][i])},
                                    {choose<0x5410>(w[2][i], w[3][i]), choose<0x7632>(w[2][i], w[3][i])}};
#pragma unroll
                for (int u = 0; u < 2; u++) {
                    uint32_t a[4] = {times<T>(T::bytes(y[0][u]), s[0]), times<T>(T::bytes(y[0][u] >> 8), s[0]),
                                     times<T>(T::bytes(y[1][u]), s[1]), times<T>(T::bytes(y[1][u] >> 8), s[1])};
                    T::mma(mixed[j * F::HELD / 2 + 2 * i + u], a, weights);
                }
            }
        } else {
#pragma unroll
            for (int i = 0; i < WORDS; i++) {
                // Halves: even values (then odd ones) of the first key, the same of the second.
                uint32_t e0 = choose<0x5410>(w[0][i], w[1][i]), o0 = choose<0x7632>(w[0][i], w[1][i]);
                uint32_t e1 = choose<0x5410>(w[2][i], w[3][i]), o1 = choose<0x7632>(w[2][i], w[3][i]);
#define PAIR(P)                                                                                               \
    {                                                                                                         \
        uint32_t a[4] = {T::fma(sixteen_and<T, 4 * P>(e0), s[0], c[0]), T::fma(sixteen_and<T, 4 * P>(o0), s[0], c[0]),  \
                         T::fma(sixteen_and<T, 4 * P>(e1), s[1], c[1]), T::fma(sixteen_and<T, 4 * P>(o1), s[1], c[1])}; \
        T::mma(mixed[j * F::HELD / 2 + 4 * i + P], a, weights);                                               \
    }
                PAIR(0) PAIR(1) PAIR(2) PAIR(3)
#undef PAIR
            }
        }
    }
}

// Where a thread's part of tile n of `mixed` belongs: values at this column and the next.
template <int WIDTH, int FORMAT> __device__ inline int column(int n, Lane lane) {
    constexpr int HELD = Tile<WIDTH, FORMAT>::HELD;
    int j = n / (HELD / 2), u = n % (HELD / 2);
    return 8 * HELD * j + HELD * lane.g + 2 * u;
}

template <class T, int WIDTH, int FORMAT>
__device__ inline void attend(const Attention& a, const Segment& s, int from, int to) {
    using F = Tile<WIDTH, FORMAT>;
    constexpr int STEPS = WIDTH / 16;  // products over the values of a key, and tiles of those of a value
    int warp = threadIdx.x / 32;
    Lane lane = {int(threadIdx.x % 32), int(threadIdx.x % 32) / 4, int(threadIdx.x % 4)};
    int head = blockIdx.y, group = a.heads / a.kv_heads, rows = a.tokens * group;
    unsigned char* queue = shared_memory() + warp * F::QUEUE;

    // What all rows see, and what this thread's two rows see.
    int low[2], high[2], all_low, all_high, any_low, any_high;
    seen(s, 0, any_low, all_high);
    seen(s, a.tokens - 1, all_low, any_high);
#pragma unroll
    for (int i = 0; i < 2; i++) seen(s, min((2 * lane.t + i) / group, a.tokens - 1), low[i], high[i]);
    from = max(from, any_low);
    to = min(to, any_high);

    const size_t first_row = size_t(head) * s.capacity;
    const unsigned char *k = s.k + first_row * F::ROW, *v = s.v + first_row * F::ROW;
    const uint16_t *ks = s.k_scales + first_row * F::GROUPS, *vs = s.v_scales + first_row * F::GROUPS;
    int tiles = to > from ? (to - from + TILE - 1) / TILE : 0;
    int mine = tiles > warp ? (tiles - warp + WARPS - 1) / WARPS : 0;
    // Unit 2i is the keys of this warp's tile i, unit 2i + 1 its values.
    auto fetch = [&](int unit) {
        if (unit < 2 * mine) {
            unsigned char* slot = queue + unit % F::DEPTH * F::BYTES;
            int key = from + (unit / 2 * WARPS + warp) * TILE;
            if (unit % 2 == 0) fetch_tile<WIDTH, FORMAT>(slot, k, ks, key, s.end, lane);
            else fetch_tile<WIDTH, FORMAT>(slot, v, vs, key, s.end, lane);
        }
        copies_end();
    };

    Capping capping(a);
    float mixed[STEPS][4], most[2] = {NOTHING, NOTHING}, sum[2] = {0.f, 0.f};
#pragma unroll
    for (int n = 0; n < STEPS; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) mixed[n][i] = 0.f;

    // Image and audio tokens were there before any text; text's own keys, like the queries, may just be in the making.
    next_may_begin();
    if (s.causal) wait_for_earlier();
    for (int unit = 0; unit < F::DEPTH - 1; unit++) fetch(unit);
    if (!s.causal) wait_for_earlier();

    // Queries as the second factor of every step: row g, four values at a time of this thread's chunks.
    uint32_t q[STEPS][2];
    {
        const uint16_t* base = static_cast<const uint16_t*>(s.causal ? a.rotated : a.plain);
        size_t stride = s.causal ? a.rotated_stride : a.plain_stride;
        const uint16_t* row = base + lane.g / group * stride + (head * group + lane.g % group) * WIDTH;
#pragma unroll
        for (int step = 0; step < STEPS; step++) {
            int j = step / (F::CHUNK / 4), h = step % (F::CHUNK / 4);
            uint2 pair = make_uint2(0, 0);
            if (lane.g < rows) pair = *reinterpret_cast<const uint2*>(row + 4 * F::CHUNK * j + F::CHUNK * lane.t + 4 * h);
            q[step][0] = pair.x, q[step][1] = pair.y;
        }
    }

    for (int i = 0; i < mine; i++) {
        copies_wait<F::DEPTH - 2>();
        __syncwarp();
        fetch(2 * i + F::DEPTH - 1);
        float y[4];
        multiply_keys<T, WIDTH, FORMAT>(y, queue + 2 * i % F::DEPTH * F::BYTES, q, lane);

        int key = from + (i * WARPS + warp) * TILE;
        capping(y);
        if (key < all_low || key + TILE > all_high || key + TILE > to) {
#pragma unroll
            for (int n = 0; n < 4; n++) {
                int at = key + lane.g + 8 * (n / 2);
                if (at < low[n % 2] || at >= min(high[n % 2], to)) y[n] = -INFINITY;
            }
        }
        float top[2] = {fmaxf(y[0], y[2]), fmaxf(y[1], y[3])};
        if (__any_sync(0xFFFFFFFFu, top[0] > most[0] + SLACK || top[1] > most[1] + SLACK)) {
#pragma unroll
            for (int r = 0; r < 2; r++) {
#pragma unroll
                for (int step = 4; step < 32; step *= 2) top[r] = fmaxf(top[r], __shfl_xor_sync(0xFFFFFFFFu, top[r], step));
                float more = fmaxf(most[r], top[r]), factor = exp2_quick(most[r] - more);
                most[r] = more;
                sum[r] *= factor;
#pragma unroll
                for (int n = 0; n < STEPS; n++) mixed[n][r] *= factor, mixed[n][r + 2] *= factor;
            }
        }
#pragma unroll
        for (int n = 0; n < 4; n++) y[n] = exp2_quick(y[n] - most[n % 2]);
        sum[0] += y[0] + y[2], sum[1] += y[1] + y[3];
        uint32_t weights[2] = {transpose(T::pack(y[0], y[1])), transpose(T::pack(y[2], y[3]))};

        copies_wait<F::DEPTH - 2>();
        __syncwarp();
        fetch(2 * i + F::DEPTH);
        multiply_values<T, WIDTH, FORMAT>(mixed, queue + (2 * i + 1) % F::DEPTH * F::BYTES, weights, lane);
    }

    // The warps' outcomes meet in shared memory, each in its own queue: maxima, sums, [8, WIDTH].
    copies_wait<0>();
    __syncwarp();
    float* own = reinterpret_cast<float*>(queue);
#pragma unroll
    for (int r = 0; r < 2; r++) {
        for (int step = 4; step < 32; step *= 2) sum[r] += __shfl_xor_sync(0xFFFFFFFFu, sum[r], step);
        int row = 2 * lane.t + r;
        if (lane.g == 0) own[row] = most[r], own[8 + row] = sum[r];
        if (row < rows) {
#pragma unroll
            for (int n = 0; n < STEPS; n++)
                *reinterpret_cast<float2*>(own + 16 + row * WIDTH + column<WIDTH, FORMAT>(n, lane)) =
                    make_float2(mixed[n][r], mixed[n][r + 2]);
        }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < rows * (WIDTH / 4); i += 32 * WARPS) {
        int row = i / (WIDTH / 4), at = i % (WIDTH / 4) * 4;
        float top = NOTHING, total = 0.f;
        float4 out = make_float4(0.f, 0.f, 0.f, 0.f);
        const float* first = reinterpret_cast<const float*>(shared_memory());
        for (int w = 0; w < WARPS; w++) top = fmaxf(top, first[w * (F::QUEUE / 4) + row]);
        for (int w = 0; w < WARPS; w++) {
            const float* theirs = first + w * (F::QUEUE / 4);
            float factor = exp2_quick(theirs[row] - top);
            float4 x = *reinterpret_cast<const float4*>(theirs + 16 + row * WIDTH + at);
            total += factor * theirs[8 + row];
            out.x += factor * x.x, out.y += factor * x.y, out.z += factor * x.z, out.w += factor * x.w;
        }
        size_t to_row = size_t(blockIdx.x) * a.tokens * a.heads + row / group * a.heads + head * group + row % group;
        *reinterpret_cast<float4*>(a.mixed + to_row * WIDTH + at) = out;
        if (at == 0) a.stats[to_row] = make_float2(top, total);
    }
}

template <class T, int WIDTH> __device__ inline void attend_any_format(const Attention& a) {
    int from, to;
    const Segment& s = a.segments[find_split(a, blockIdx.x, from, to)];
    switch (s.format) {
        case DENSE: return attend<T, WIDTH, DENSE>(a, s, from, to);
        case Q8: return attend<T, WIDTH, Q8>(a, s, from, to);
        default: return attend<T, WIDTH, Q4>(a, s, from, to);
    }
}

// Grid: splits of all segments, kv heads. Block: 128 threads.
#define ATTEND(NAME, T, WIDTH)                                                                                           \
    extern "C" __global__ void __launch_bounds__(128, 2) attend_few_##WIDTH##_##NAME(const __grid_constant__ Attention a) { \
        attend_any_format<T, WIDTH>(a);                                                                                  \
    }
ATTEND(bf16, Bf16, 256)
ATTEND(f16, F16, 256)
ATTEND(bf16, Bf16, 128)
ATTEND(f16, F16, 128)
