// Attention of few rows (tokens x query heads of a kv head) over long caches: decode, of one text or of several about one
// video. Bound by memory: keys and values are read once for 8 rows, or for 16. More rows are blocks of 16, which ask for
// the same keys at about the same time, so that the second cache has them.
//
// Every warp has a deep queue of tiles in shared memory, which costs no registers and waits for no other warp.
#include "tiles.cuh"

// Shared memory of a block for EIGHTS times 8 rows: the queries, unless registers hold them, then the warps' queues; in the end
// the warps' outcomes. `Fast` in attention/cuda.rs says it to the driver.
template <int WIDTH, int FORMAT, int EIGHTS> struct Shared {
    using F = Tile<WIDTH, FORMAT>;
    // Tiles in the queue: as many bytes are under way whatever the width.
    static constexpr int DENSE_DEPTH = EIGHTS == 1 ? 3 : 2;
    static constexpr int DEPTH = (FORMAT == DENSE ? DENSE_DEPTH : FORMAT == Q8 ? 5 : 8) * 256 / WIDTH;
    static constexpr int QUEUE = DEPTH * F::BYTES;
    static constexpr int QUERIES = EIGHTS == 1 ? 0 : EIGHTS * 8 * WIDTH * 2;
    static constexpr int ROWS = EIGHTS * 8;
    static constexpr int OUTCOME = (ROWS * WIDTH + 2 * ROWS) * 4;  // maxima, sums, [ROWS, WIDTH]
    // Where a warp's outcome may lie: in its own queue, or where other warps' were.
    static constexpr bool OWN = QUERIES == 0 && QUEUE >= OUTCOME;
    static constexpr int STRIDE = OWN ? QUEUE : OUTCOME;
    static_assert(QUERIES + WARPS * QUEUE <= 99 << 10, "a block has 99 KB on sm_89");
    static_assert(WARPS * STRIDE <= QUERIES + WARPS * QUEUE, "room for outcomes");
};

// What a block has of the queries: `tokens` of them from `first_token` on, of whose rows it takes those from `first_row` on;
// and which split of the keys it is.
struct Part {
    int first_token, tokens, first_row, split;
};

template <class T, int WIDTH, int FORMAT, int EIGHTS>
__device__ inline void attend(const Attention& a, const Segment& s, int from, int to, Part part) {
    using F = Tile<WIDTH, FORMAT>;
    using M = Shared<WIDTH, FORMAT, EIGHTS>;
    constexpr int STEPS = WIDTH / 16;  // products over the values of a key, and tiles of those of a value
    constexpr int DEPTH = M::DEPTH, ROWS = M::ROWS;
    int warp = threadIdx.x / 32;
    Lane lane = {int(threadIdx.x % 32), int(threadIdx.x % 32) / 4, int(threadIdx.x % 4)};
    int head = blockIdx.y, group = a.heads / a.kv_heads, rows = part.tokens * group - part.first_row;
    unsigned char* queue = shared_memory() + M::QUERIES + warp * M::QUEUE;

    // What all rows of the block see, and what any of them does.
    auto sees = [&](int row, int& low, int& high) { seen(s, min((part.first_row + row) / group, part.tokens - 1), low, high); };
    int all_low, all_high, any_low, any_high;
    sees(0, any_low, all_high);
    sees(ROWS - 1, all_low, any_high);
    from = max(from, any_low);
    to = min(to, any_high);

    const size_t first_key = size_t(head) * s.capacity;
    const unsigned char *k = s.k + first_key * F::ROW, *v = s.v + first_key * F::ROW;
    const uint16_t *ks = s.k_scales + first_key * F::GROUPS, *vs = s.v_scales + first_key * F::GROUPS;
    int tiles = to > from ? (to - from + TILE - 1) / TILE : 0;
    int mine = tiles > warp ? (tiles - warp + WARPS - 1) / WARPS : 0;
    // Unit 2i is the keys of this warp's tile i, unit 2i + 1 its values.
    auto fetch = [&](int unit) {
        if (unit < 2 * mine) {
            unsigned char* slot = queue + unit % DEPTH * F::BYTES;
            int key = from + (unit / 2 * WARPS + warp) * TILE;
            if (unit % 2 == 0) fetch_tile<WIDTH, FORMAT>(slot, k, ks, key, s.end, lane);
            else fetch_tile<WIDTH, FORMAT>(slot, v, vs, key, s.end, lane);
        }
        copies_end();
    };

    Capping capping(a);
    float mixed[EIGHTS][STEPS][4] = {}, most[2 * EIGHTS], sum[2 * EIGHTS];
#pragma unroll
    for (int r = 0; r < 2 * EIGHTS; r++) most[r] = NOTHING, sum[r] = 0.f;

    // Image and audio tokens were there before any text; text's own keys, like the queries, may just be in the making.
    next_may_begin();
    if (s.causal) wait_for_earlier();
    for (int unit = 0; unit < DEPTH - 1; unit++) fetch(unit);
    if (!s.causal) wait_for_earlier();

    // Queries as the second factors of two steps: row g of an eight, eight values at a time of a thread's chunks.
    auto query = [&](int e, int pair, int index) {
        const uint16_t* base = static_cast<const uint16_t*>(s.causal ? a.rotated : a.plain);
        size_t stride = s.causal ? a.rotated_stride : a.plain_stride;
        int row = 8 * e + index / 4, j = 2 * pair / (F::CHUNK / 4), h = 2 * pair % (F::CHUNK / 4);
        if (row >= rows) return make_uint4(0, 0, 0, 0);
        row += part.first_row;
        base += (part.first_token + row / group) * stride + (head * group + row % group) * WIDTH;
        return *reinterpret_cast<const uint4*>(base + 4 * F::CHUNK * j + F::CHUNK * (index % 4) + 4 * h);
    };
    uint4 held[STEPS / 2];
    const uint4* shared_queries = reinterpret_cast<const uint4*>(shared_memory());
    if constexpr (EIGHTS == 1) {
#pragma unroll
        for (int p = 0; p < STEPS / 2; p++) held[p] = query(0, p, lane.index);
    } else {
        for (int i = threadIdx.x; i < EIGHTS * STEPS / 2 * 32; i += 32 * WARPS)
            reinterpret_cast<uint4*>(shared_memory())[i] = query(i / 32 / (STEPS / 2), i / 32 % (STEPS / 2), i % 32);
        __syncthreads();
    }
    auto queries = [&](int e, int pair) {
        if constexpr (EIGHTS == 1) return held[pair];
        else return shared_queries[(e * (STEPS / 2) + pair) * 32 + lane.index];
    };

    for (int i = 0; i < mine; i++) {
        copies_wait<DEPTH - 2>();
        __syncwarp();
        fetch(2 * i + DEPTH - 1);
        float y[EIGHTS][4];
        multiply_keys<T, WIDTH, FORMAT, EIGHTS>(y, queue + 2 * i % DEPTH * F::BYTES, queries, lane);

        int key = from + (i * WARPS + warp) * TILE;
        bool masked = key < all_low || key + TILE > all_high || key + TILE > to, higher = false;
        float top[2 * EIGHTS];
#pragma unroll
        for (int e = 0; e < EIGHTS; e++) {
            capping(y[e]);
            if (masked) {
#pragma unroll
                for (int n = 0; n < 4; n++) {
                    int low, high, at = key + lane.g + 8 * (n / 2);
                    sees(8 * e + 2 * lane.t + n % 2, low, high);
                    if (at < low || at >= min(high, to)) y[e][n] = -INFINITY;
                }
            }
#pragma unroll
            for (int r = 0; r < 2; r++) {
                top[2 * e + r] = fmaxf(y[e][r], y[e][r + 2]);
                higher |= top[2 * e + r] > most[2 * e + r] + SLACK;
            }
        }
        if (__any_sync(0xFFFFFFFFu, higher)) {
#pragma unroll
            for (int r = 0; r < 2 * EIGHTS; r++) {
#pragma unroll
                for (int step = 4; step < 32; step *= 2) top[r] = fmaxf(top[r], __shfl_xor_sync(0xFFFFFFFFu, top[r], step));
                float more = fmaxf(most[r], top[r]), factor = exp2_quick(most[r] - more);
                most[r] = more;
                sum[r] *= factor;
#pragma unroll
                for (int n = 0; n < STEPS; n++) mixed[r / 2][n][r % 2] *= factor, mixed[r / 2][n][r % 2 + 2] *= factor;
            }
        }
        uint32_t weights[EIGHTS][2];
#pragma unroll
        for (int e = 0; e < EIGHTS; e++) {
#pragma unroll
            for (int n = 0; n < 4; n++) y[e][n] = exp2_quick(y[e][n] - most[2 * e + n % 2]);
            sum[2 * e] += y[e][0] + y[e][2], sum[2 * e + 1] += y[e][1] + y[e][3];
            weights[e][0] = transpose(T::pack(y[e][0], y[e][1]));
            weights[e][1] = transpose(T::pack(y[e][2], y[e][3]));
        }

        copies_wait<DEPTH - 2>();
        __syncwarp();
        fetch(2 * i + DEPTH);
        multiply_values<T, WIDTH, FORMAT, EIGHTS>(mixed, queue + (2 * i + 1) % DEPTH * F::BYTES, weights, lane);
    }

    // The warps' outcomes meet in shared memory.
    copies_wait<0>();
    if constexpr (M::OWN) __syncwarp();
    else __syncthreads();
    float* first = reinterpret_cast<float*>(shared_memory());
    float* own = first + warp * (M::STRIDE / 4);
#pragma unroll
    for (int r = 0; r < 2 * EIGHTS; r++) {
        for (int step = 4; step < 32; step *= 2) sum[r] += __shfl_xor_sync(0xFFFFFFFFu, sum[r], step);
        int row = r / 2 * 8 + 2 * lane.t + r % 2;
        if (lane.g == 0) own[row] = most[r], own[ROWS + row] = sum[r];
        if (row < rows) {
#pragma unroll
            for (int n = 0; n < STEPS; n++)
                *reinterpret_cast<float2*>(own + 2 * ROWS + row * WIDTH + column<WIDTH, FORMAT>(n, lane)) =
                    make_float2(mixed[r / 2][n][r % 2], mixed[r / 2][n][r % 2 + 2]);
        }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < min(rows, ROWS) * (WIDTH / 4); i += 32 * WARPS) {
        int row = i / (WIDTH / 4), at = i % (WIDTH / 4) * 4;
        float top = NOTHING, total = 0.f;
        float4 out = make_float4(0.f, 0.f, 0.f, 0.f);
        for (int w = 0; w < WARPS; w++) top = fmaxf(top, first[w * (M::STRIDE / 4) + row]);
        for (int w = 0; w < WARPS; w++) {
            const float* theirs = first + w * (M::STRIDE / 4);
            float factor = exp2_quick(theirs[row] - top);
            float4 x = *reinterpret_cast<const float4*>(theirs + 2 * ROWS + row * WIDTH + at);
            total += factor * theirs[ROWS + row];
            out.x += factor * x.x, out.y += factor * x.y, out.z += factor * x.z, out.w += factor * x.w;
        }
        int of_all = part.first_row + row;
        size_t to_row = size_t(part.split) * a.tokens * a.heads + (part.first_token + of_all / group) * a.heads + head * group +
                        of_all % group;
        *reinterpret_cast<float4*>(a.mixed + to_row * WIDTH + at) = out;
        if (at == 0) a.stats[to_row] = make_float2(top, total);
    }
}

// Of all tokens, the rows that are the block's, over one split of the keys of all segments.
template <class T, int WIDTH, int EIGHTS> __device__ inline void attend_any_format(const Attention& a) {
    int from, to, split = blockIdx.x;
    const Segment& s = a.segments[find_split(a, split, from, to)];
    Part part = {0, a.tokens, int(blockIdx.z) * EIGHTS * 8, split};
    switch (s.format) {
        case DENSE: return attend<T, WIDTH, DENSE, EIGHTS>(a, s, from, to, part);
        case Q8: return attend<T, WIDTH, Q8, EIGHTS>(a, s, from, to, part);
        default: return attend<T, WIDTH, Q4, EIGHTS>(a, s, from, to, part);
    }
}

// Of one token of each of several texts, over its own text's keys.
template <class T, int WIDTH> __device__ inline void attend_own(const Texts& x) {
    const Text& text = x.texts[blockIdx.z];
    Segment s = {};
    s.k = text.k, s.v = text.v, s.capacity = text.capacity;
    s.start = text.start, s.end = text.end, s.causal = 1, s.first = text.end - 1;
    int split = blockIdx.x, from = s.start + split * x.a.split_keys;
    Part part = {int(blockIdx.z), 1, 0, split};
    attend<T, WIDTH, DENSE, 1>(x.a, s, from, min(s.end, from + x.a.split_keys), part);
}

// Block: 128 threads. Grid of attend_few and attend_some: splits of all segments, kv heads, blocks of 8 (one) or 16 rows;
// of attend_texts: splits of the longest text, kv heads, texts.
#define ATTEND(NAME, T, WIDTH)                                                                                            \
    extern "C" __global__ void __launch_bounds__(128, 2) attend_few_##WIDTH##_##NAME(const __grid_constant__ Attention a) {  \
        attend_any_format<T, WIDTH, 1>(a);                                                                                \
    }                                                                                                                     \
    extern "C" __global__ void __launch_bounds__(128, 2) attend_some_##WIDTH##_##NAME(const __grid_constant__ Attention a) { \
        attend_any_format<T, WIDTH, 2>(a);                                                                                \
    }                                                                                                                     \
    extern "C" __global__ void __launch_bounds__(128, 2) attend_texts_##WIDTH##_##NAME(const __grid_constant__ Texts x) {    \
        attend_own<T, WIDTH>(x);                                                                                          \
    }
ATTEND(bf16, Bf16, 256)
ATTEND(f16, F16, 256)
ATTEND(bf16, Bf16, 128)
ATTEND(f16, F16, 128)
