// softmax(q k^T scale) v of the two towers, scale > 0: no mask, every row sees every row. The rows are a matmul's,
// [batch, rows, q | k | v, heads, WIDTH], and what comes out is [batch, rows, heads, WIDTH]: nothing is transposed or
// copied before.
//
// Scores and softmax are f32 and never leave the registers; the weights of the values are rounded to T before the
// second matmul, as flash-attn does, and not yet divided by their sum.
//
// The online softmax weighs the keys of a row against a reference: the row's greatest score as of when a key last
// weighed more than 2^GROWTH. So the sum and the weighed values seldom have to be shrunk. The outcome is exact all the
// same: both have the same reference, and the division cancels it. A row's reference depends on its own scores alone,
// so that the outcome does not depend on what else is in the warp.
#include "mma.cuh"

// A block takes 128 queries of a head, each of its four warps 32 of them: a warp that reads a piece of the keys from
// shared memory multiplies it twice, which is what keeps the tensor cores and not the shared memory busy.
constexpr int WARPS = 4, WARP_QUERIES = 32, QUERIES = WARPS * WARP_QUERIES;
// A tile of keys and values in shared memory, of which there are two: while one is multiplied the next one arrives. A
// warp multiplies half a tile at a time, more scores would not fit into its registers.
constexpr int KEYS = 64, HALF = KEYS / 2;
// Values from a row to the next in shared memory. 144 bytes are nine times 16, an odd number: the eight rows of an
// 8x8 matrix lie in eight different sets of banks.
constexpr int PITCH = 72;
constexpr int TILE = KEYS * PITCH;
static_assert(QUERIES == 2 * KEYS, "the queries fit where a tile of keys and one of values will be");
// No weight is above 2^GROWTH: f16 has such numbers, and their sum is far from the end of f32.
constexpr float GROWTH = 8;

// `N` rows of WIDTH values, `stride` apart in memory, to shared memory; zeros from row `there` on.
template <int WIDTH, int N, class T>
__device__ __forceinline__ void fetch(T *to, const T *from, size_t stride, int there) {
    constexpr int CHUNKS = WIDTH / PACK<T>, AT_ONCE = WARPS * 32 / CHUNKS;
    const int first = threadIdx.x / CHUNKS, at = threadIdx.x % CHUNKS * PACK<T>;
    if (first >= AT_ONCE) return; // the threads that are left have no whole row
#pragma unroll
    for (int begin = 0; begin < N; begin += AT_ONCE) {
        const int row = begin + first;
        if (begin + AT_ONCE <= N || row < N) copy_async(to + row * PITCH + at, from + row * stride + at, row < there);
    }
}

// What a warp has in registers: two fragments of 16 queries. Of a row four neighbouring lanes hold all, each two of
// every eight columns; r = 0 to 3 are rows r * 8 + lane / 4, and fragment r / 2 has them.
//
// Lanes point ldmatrix into row `lane % 8` of the matrix `lane / 8`, the matrices in the order that the fragment has
// its registers in.
template <class T, int WIDTH> struct Warp {
    static constexpr int STEPS = WIDTH / 16;      // of the first matmul, over 16 values each
    static constexpr bool REST = WIDTH % 16 != 0; // and 8 more
    static constexpr int COLUMNS = WIDTH / 8;     // tiles of 8 columns of the outcome
    static constexpr int COLUMN_PAIRS = COLUMNS / 2;
    static_assert(WIDTH % 8 == 0 && WIDTH <= PITCH, "a row fits");

    const int lane = threadIdx.x % 32;
    const float scale_log2, growth = GROWTH * reciprocal_quick(scale_log2);
    uint32_t q[2][STEPS][4], q_rest[2][2];
    float s[2][HALF / 8][4]; // scores of half a tile
    float o[2][COLUMNS][4] = {}, sum[4] = {};
    float reference[4]; // times the scale
    float limit[4];     // a score above it becomes the reference

    __device__ __forceinline__ Warp(const T *queries, float scale_log2) : scale_log2(scale_log2) {
#pragma unroll
        for (int m = 0; m < 2; ++m) {
            const T *row = queries + (m * 16 + lane % 16) * PITCH;
#pragma unroll
            for (int step = 0; step < STEPS; ++step) ldmatrix(q[m][step], row + lane / 16 * 8 + step * 16);
            if constexpr (REST) ldmatrix(q_rest[m], row + STEPS * 16);
        }
#pragma unroll
        for (int r = 0; r < 4; ++r) reference[r] = limit[r] = -INFINITY;
    }

    // This lane's greatest score of a row.
    __device__ __forceinline__ float greatest(int r) const {
        float g = -INFINITY;
#pragma unroll
        for (int n = 0; n < HALF / 8; ++n) g = fmaxf(g, fmaxf(s[r / 2][n][r % 2 * 2], s[r / 2][n][r % 2 * 2 + 1]));
        return g;
    }

    // The scores of half a tile's keys, of which `there` exist.
    __device__ __forceinline__ void score(const T *k, int there) {
#pragma unroll
        for (int i = 0; i < HALF; ++i) s[i / 16][i / 4 % 4][i % 4] = 0.f;
        uint32_t b[4];
#pragma unroll
        for (int step = 0; step < STEPS; ++step)
#pragma unroll
            for (int n = 0; n < HALF / 8; n += 2) { // 8 keys: 8 values, and 8 values on; then the next 8 keys
                ldmatrix(b, k + (n * 8 + lane / 16 * 8 + lane % 8) * PITCH + lane / 8 % 2 * 8 + step * 16);
#pragma unroll
                for (int m = 0; m < 2; ++m) {
                    mma<T>(s[m][n], q[m][step], b[0], b[1]);
                    mma<T>(s[m][n + 1], q[m][step], b[2], b[3]);
                }
            }
        if constexpr (REST) {
            ldmatrix(b, k + lane * PITCH + STEPS * 16);
#pragma unroll
            for (int i = 0; i < 8; ++i) mma<T>(s[i / 4][i % 4], q_rest[i / 4], b[i % 4]);
        }
        bool unsettled = there < HALF;
#pragma unroll
        for (int r = 0; r < 4; ++r) unsettled |= greatest(r) > limit[r];
        if (__any_sync(~0u, unsettled)) settle(there);
    }

    // Scores beyond the last key become nothing, and rows with one above their limit get a new reference. After some
    // tiles there seldom is such a row.
    __device__ __forceinline__ void settle(int there) {
#pragma unroll
        for (int i = 0; i < HALF / 2; ++i)
            if (i / 4 * 8 + lane % 4 * 2 + i % 2 >= there) s[0][i / 4][i % 4] = s[1][i / 4][i % 4] = -INFINITY;
#pragma unroll
        for (int r = 0; r < 4; ++r) {
            float g = greatest(r);
            g = fmaxf(g, __shfl_xor_sync(~0u, g, 1));
            g = fmaxf(g, __shfl_xor_sync(~0u, g, 2));
            const bool exceeds = g > limit[r]; // the row's own score: its neighbours change nothing
            const float shrink = exceeds ? exp2_quick(reference[r] - g * scale_log2) : 1.f;
            reference[r] = exceeds ? g * scale_log2 : reference[r];
            limit[r] = exceeds ? g + growth : limit[r];
            sum[r] *= shrink;
#pragma unroll
            for (int i = 0; i < 2 * COLUMNS; ++i) o[r / 2][i / 2][r % 2 * 2 + i % 2] *= shrink;
        }
    }

    // Weighs the keys whose scores are there, and adds their values.
    __device__ __forceinline__ void add(const T *v) {
        uint32_t p[HALF / 16][2][4], b[4];
#pragma unroll
        for (int step = 0; step < HALF / 16; ++step) {
            // Sixteen keys after the other: their weights are where the second matmul wants its first factor.
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                const int m = i / 4, r = m * 2 + i % 2;
                const float *score = s[m][step * 2 + i / 2 % 2] + i % 2 * 2;
                const float low = exp2_quick(fmaf(score[0], scale_log2, -reference[r]));
                const float high = exp2_quick(fmaf(score[1], scale_log2, -reference[r]));
                sum[r] += low + high;
                p[step][m][i % 4] = pair<T>(low, high);
            }
#pragma unroll
            for (int c = 0; c < COLUMN_PAIRS; ++c) {
                ldmatrix_transposed(b, v + (step * 16 + lane % 16) * PITCH + lane / 16 * 8 + c * 16);
#pragma unroll
                for (int m = 0; m < 2; ++m) {
                    mma<T>(o[m][2 * c], p[step][m], b[0], b[1]);
                    mma<T>(o[m][2 * c + 1], p[step][m], b[2], b[3]);
                }
            }
        }
        if constexpr (COLUMNS % 2 != 0) { // all 32 keys' values of the last eight columns
            ldmatrix_transposed(b, v + lane * PITCH + COLUMN_PAIRS * 16);
#pragma unroll
            for (int i = 0; i < 4; ++i)
                mma<T>(o[i % 2][COLUMNS - 1], p[i / 2][i % 2], b[i / 2 * 2], b[i / 2 * 2 + 1]);
        }
    }

    // The outcome of the queries, of which `there` exist. Through shared memory, so that whole rows are written.
    __device__ __forceinline__ void write(T *mine, T *out, size_t stride, int there) const {
#pragma unroll
        for (int r = 0; r < 4; ++r) {
            float total = sum[r];
            total += __shfl_xor_sync(~0u, total, 1);
            total += __shfl_xor_sync(~0u, total, 2);
            const float share = reciprocal_quick(total);
            uint32_t *row = reinterpret_cast<uint32_t *>(mine + (r * 8 + lane / 4) * PITCH);
#pragma unroll
            for (int c = 0; c < COLUMNS; ++c) {
                const float *two = o[r / 2][c] + r % 2 * 2;
                row[c * 4 + lane % 4] = pair<T>(two[0] * share, two[1] * share);
            }
        }
        __syncwarp();
        constexpr int CHUNKS = WIDTH / PACK<T>;
        for (int i = lane; i < min(there, WARP_QUERIES) * CHUNKS; i += 32) {
            const int row = i / CHUNKS, at = i % CHUNKS * PACK<T>;
            *reinterpret_cast<uint4 *>(out + row * stride + at) = *reinterpret_cast<uint4 *>(mine + row * PITCH + at);
        }
    }
};

template <class T, int WIDTH>
__device__ __forceinline__ void attention(const T *qkv, T *out, int rows, int heads, float scale_log2) {
    __shared__ __align__(16) T tiles[2][2][TILE], first_keys[HALF * PITCH]; // [stage, keys | values]
    const size_t width = size_t(heads) * WIDTH, stride = 3 * width;
    const int in_block = threadIdx.x / 32 * WARP_QUERIES, first = blockIdx.x * QUERIES;
    const T *sequence = qkv + size_t(blockIdx.z) * rows * stride + blockIdx.y * WIDTH;
    const T *keys = sequence + width, *values = sequence + 2 * width;

    // Keys run 32 ahead of values: a stage has the values of a tile, and the keys of its second and of the next tile's
    // first half. So a warp multiplies the values of one half and the scores of the next without a stop: the scores
    // need no weights, and fill the gaps. The queries are where the second stage will be.
    fetch<WIDTH, QUERIES>(tiles[1][0], sequence + first * stride, stride, rows - first);
    fetch<WIDTH, HALF>(first_keys, keys, stride, rows);
    commit_copies();
    keys += HALF * stride;
    fetch<WIDTH, KEYS>(tiles[0][0], keys, stride, rows - HALF);
    fetch<WIDTH, KEYS>(tiles[0][1], values, stride, rows);
    commit_copies();
    wait_for_copies<1>();
    __syncthreads();

    const int there = rows - first - in_block; // none for the last warps of the last block: they only copy
    Warp<T, WIDTH> warp(tiles[1][0] + in_block * PITCH, scale_log2);
    if (there > 0) warp.score(first_keys, rows);

    int begin = 0; // of the half whose scores are there and whose values are next
    for (;; begin += HALF) {
        if (begin % KEYS == 0) {
            // One barrier a tile is enough: behind it the tile is there for all warps, and all are done with what was
            // in the other stage, the tile before or the queries.
            wait_for_copies<0>();
            __syncthreads();
            const int next = begin + KEYS;
            if (next < rows) {
                fetch<WIDTH, KEYS>(tiles[next / KEYS % 2][0], keys + next * stride, stride, rows - HALF - next);
                fetch<WIDTH, KEYS>(tiles[next / KEYS % 2][1], values + next * stride, stride, rows - next);
                commit_copies();
            }
        }
        if (begin + HALF >= rows) break;
        if (there > 0) {
            warp.add(tiles[begin / KEYS % 2][1] + begin % KEYS * PITCH);
            warp.score(tiles[begin / KEYS % 2][0] + begin % KEYS * PITCH, rows - HALF - begin);
        }
    }
    if (there <= 0) return;
    // The tail, one key to 32: weights of those beyond are 0, and so are their values. The other stage is free for the
    // outcome, where every warp keeps to its own rows.
    warp.add(tiles[begin / KEYS % 2][1] + begin % KEYS * PITCH);
    T *to = out + (size_t(blockIdx.z) * rows + first + in_block) * width + blockIdx.y * WIDTH;
    warp.write(tiles[(begin / KEYS + 1) % 2][0] + in_block * PITCH, to, width, there);
}

// For any width up to 256 and any type: a warp per query, a key per lane, values of a row 32 apart. Not quick; models
// of this size have other widths only in tests.
template <class T>
__device__ void attention_any(const T *qkv, T *out, int rows, int heads, int width, float scale_log2) {
    constexpr int MOST = 256 / 32;
    const int lane = threadIdx.x % 32, query = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, head = blockIdx.y;
    if (query >= rows) return;
    const size_t all = size_t(heads) * width, stride = 3 * all;
    const T *sequence = qkv + size_t(blockIdx.z) * rows * stride + head * width;
    const T *q = sequence + query * stride, *keys = sequence + all, *values = sequence + 2 * all;
    float o[MOST] = {}, most = -INFINITY, sum = 0.f;
    for (int begin = 0; begin < rows; begin += 32) {
        float score = -INFINITY;
        if (begin + lane < rows) {
            const T *k = keys + (begin + lane) * stride;
            score = 0.f;
            for (int i = 0; i < width; ++i) score += wide(q[i]) * wide(k[i]);
            score *= scale_log2;
        }
        float greatest = fmaxf(most, score);
#pragma unroll
        for (int step = 16; step > 0; step /= 2) greatest = fmaxf(greatest, __shfl_xor_sync(~0u, greatest, step));
        const float shrink = exp2f(most - greatest), weight = exp2f(score - greatest);
        most = greatest;
        sum = sum * shrink + weight;
#pragma unroll
        for (int j = 0; j < MOST; ++j) o[j] *= shrink;
        for (int i = 0; i < min(32, rows - begin); ++i) {
            const float p = rounded<T>(__shfl_sync(~0u, weight, i));
            const T *v = values + (begin + i) * stride;
#pragma unroll
            for (int j = 0; j < MOST; ++j)
                if (lane + 32 * j < width) o[j] += p * wide(v[lane + 32 * j]);
        }
    }
#pragma unroll
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
    T *to = out + (size_t(blockIdx.z) * rows + query) * all + head * width;
#pragma unroll
    for (int j = 0; j < MOST; ++j)
        if (lane + 32 * j < width) to[lane + 32 * j] = narrow<T>(o[j] / sum);
}

#define ATTENTION(name, T, WIDTH)                                                                                       \
    extern "C" __global__ void __launch_bounds__(WARPS * 32, 2) attention_##WIDTH##_##name(                             \
        const T *__restrict__ qkv, T *__restrict__ out, int rows, int heads, int width, float scale_log2) {             \
        attention<T, WIDTH>(qkv, out, rows, heads, scale_log2);                                                         \
    }
ATTENTION(bf16, bf16, 64)
ATTENTION(bf16, bf16, 72)
ATTENTION(f16, f16, 64)
ATTENTION(f16, f16, 72)

#define ATTENTION_ANY(name, T)                                                                                          \
    extern "C" __global__ void __launch_bounds__(128) attention_any_##name(                                             \
        const T *__restrict__ qkv, T *__restrict__ out, int rows, int heads, int width, float scale_log2) {             \
        attention_any(qkv, out, rows, heads, width, scale_log2);                                                        \
    }
FOR_EACH_TYPE(ATTENTION_ANY)
