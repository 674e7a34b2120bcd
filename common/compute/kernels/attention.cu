// softmax(q k^T scale) v of the two towers: no mask, every row sees every row. The rows are a matmul's, [batch, rows,
// q | k | v, heads, WIDTH], and what comes out is [batch, rows, heads, WIDTH]: nothing is transposed or copied before.
//
// Scores and softmax are f32 and never leave the registers; the weights of the values are rounded to T before the
// second matmul, as flash-attn does: exp(s - max) and not yet divided by its sum.
#include "mma.cuh"

// A block takes 128 queries of a head, each of its four warps 32 of them: a warp that reads a piece of the keys from
// shared memory multiplies it twice, which is what keeps the tensor cores and not the shared memory busy.
constexpr int WARPS = 4, WARP_QUERIES = 32, QUERIES = WARPS * WARP_QUERIES;
// Keys and values that are in shared memory at a time, twice: while one tile is multiplied the next one arrives.
constexpr int KEYS = 64;
// Values from a row to the next in shared memory. 144 bytes are nine times 16, an odd number: the eight rows of an
// 8x8 matrix lie in eight different sets of banks.
constexpr int PITCH = 72;
constexpr int TILE = KEYS * PITCH;
static_assert(QUERIES == 2 * KEYS, "the queries fit where a tile of keys and one of values will be");

// `n` rows of WIDTH values, `stride` apart in memory, to shared memory; zeros from row `there` on.
template <int WIDTH, class T>
__device__ __forceinline__ void fetch(T *to, const T *from, size_t stride, int n, int there) {
    constexpr int CHUNKS = WIDTH / PACK<T>;
    for (int i = threadIdx.x; i < n * CHUNKS; i += WARPS * 32) {
        const int row = i / CHUNKS, at = i % CHUNKS * PACK<T>;
        copy_async(to + row * PITCH + at, from + (row < there ? row * stride : 0) + at, row < there);
    }
}

template <class T, int WIDTH>
__device__ void attention(const T *qkv, T *out, int rows, int heads, float scale_log2) {
    constexpr int STEPS = WIDTH / 16;          // of the first matmul, over 16 values each
    constexpr bool REST = WIDTH % 16 != 0;     // and 8 more
    constexpr int COLUMNS = WIDTH / 8;         // tiles of 8 columns of the outcome
    constexpr int COLUMN_PAIRS = COLUMNS / 2;
    static_assert(WIDTH % 8 == 0 && WIDTH <= PITCH, "a row fits");
    __shared__ __align__(16) T tiles[2][2][TILE]; // [stage, keys | values]

    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int first = blockIdx.x * QUERIES, head = blockIdx.y;
    const size_t width = size_t(heads) * WIDTH, stride = 3 * width;
    const T *sequence = qkv + size_t(blockIdx.z) * rows * stride + head * WIDTH;
    const T *keys = sequence + width, *values = sequence + 2 * width;

    // Queries to the second stage's place, the first tile to the first's.
    T *queries = tiles[1][0];
    fetch<WIDTH>(queries, sequence + first * stride, stride, QUERIES, rows - first);
    commit_copies();
    fetch<WIDTH>(tiles[0][0], keys, stride, KEYS, rows);
    fetch<WIDTH>(tiles[0][1], values, stride, KEYS, rows);
    commit_copies();
    wait_for_copies<1>();
    __syncthreads();

    // Where a lane points ldmatrix: into row `lane % 8` of the matrix `lane / 8`, the matrices in the order that the
    // fragment has its registers in.
    const int in_a = (lane % 16) * PITCH + lane / 16 * 8;                  // rows 0-7, 8-15, then 8 columns on
    const int in_keys = (lane / 16 * 8 + lane % 8) * PITCH + lane / 8 % 2 * 8; // 8 columns on, then rows 8-15
    const int in_keys_rest = lane * PITCH;                                 // four times eight rows
    const int in_values = in_a;                                            // and then transposed

    uint32_t q[2][STEPS][4], q_rest[2][2];
#pragma unroll
    for (int m = 0; m < 2; ++m) {
        const T *mine = queries + (warp * WARP_QUERIES + m * 16) * PITCH;
#pragma unroll
        for (int s = 0; s < STEPS; ++s) ldmatrix(q[m][s], mine + in_a + s * 16);
        if constexpr (REST) ldmatrix(q_rest[m], mine + (lane % 16) * PITCH + STEPS * 16);
    }
    __syncthreads(); // the queries' place is free

    // Of a row of queries four neighbouring lanes hold all: each two of every eight columns, of rows g and g + 8.
    float o[2][COLUMNS][4] = {};
    float most[2][2], sum[2][2] = {};
#pragma unroll
    for (int m = 0; m < 2; ++m) most[m][0] = most[m][1] = -INFINITY;

    const int n_tiles = (rows + KEYS - 1) / KEYS;
    for (int tile = 0; tile < n_tiles; ++tile) {
        const int begin = tile * KEYS, next = begin + KEYS;
        if (next < rows) {
            fetch<WIDTH>(tiles[(tile + 1) % 2][0], keys + next * stride, stride, KEYS, rows - next);
            fetch<WIDTH>(tiles[(tile + 1) % 2][1], values + next * stride, stride, KEYS, rows - next);
        }
        commit_copies();
        wait_for_copies<1>();
        __syncthreads();
        const T *k = tiles[tile % 2][0], *v = tiles[tile % 2][1];

        float s[2][KEYS / 8][4] = {};
#pragma unroll
        for (int step = 0; step < STEPS; ++step)
#pragma unroll
            for (int n = 0; n < KEYS / 8; n += 2) {
                uint32_t b[4];
                ldmatrix(b, k + n * 8 * PITCH + in_keys + step * 16);
#pragma unroll
                for (int m = 0; m < 2; ++m) {
                    mma<T>(s[m][n], q[m][step], b[0], b[1]);
                    mma<T>(s[m][n + 1], q[m][step], b[2], b[3]);
                }
            }
        if constexpr (REST) {
#pragma unroll
            for (int n = 0; n < KEYS / 8; n += 4) {
                uint32_t b[4];
                ldmatrix(b, k + n * 8 * PITCH + in_keys_rest + STEPS * 16);
#pragma unroll
                for (int m = 0; m < 2; ++m)
#pragma unroll
                    for (int i = 0; i < 4; ++i) mma<T>(s[m][n + i], q_rest[m], b[i]);
            }
        }
        if (next > rows) {
#pragma unroll
            for (int n = 0; n < KEYS / 8; ++n)
#pragma unroll
                for (int i = 0; i < 4; ++i)
                    if (begin + n * 8 + lane % 4 * 2 + i % 2 >= rows) s[0][n][i] = s[1][n][i] = -INFINITY;
        }

        // The greatest score so far. There is one: no tile is without a key.
        float greatest[2][2];
        bool grew = false;
#pragma unroll
        for (int m = 0; m < 2; ++m)
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                float g = most[m][r];
#pragma unroll
                for (int n = 0; n < KEYS / 8; ++n) g = fmaxf(g, fmaxf(s[m][n][2 * r], s[m][n][2 * r + 1]));
                g = fmaxf(g, __shfl_xor_sync(~0u, g, 1));
                g = fmaxf(g, __shfl_xor_sync(~0u, g, 2));
                grew |= g > most[m][r];
                greatest[m][r] = g;
            }
        // What is there was weighed against a smaller one. After some tiles it seldom is.
        if (__any_sync(~0u, grew)) {
#pragma unroll
            for (int m = 0; m < 2; ++m)
#pragma unroll
                for (int r = 0; r < 2; ++r) {
                    const float shrink = exp2_quick((most[m][r] - greatest[m][r]) * scale_log2);
                    most[m][r] = greatest[m][r];
                    sum[m][r] *= shrink;
#pragma unroll
                    for (int c = 0; c < COLUMNS; ++c) {
                        o[m][c][2 * r] *= shrink;
                        o[m][c][2 * r + 1] *= shrink;
                    }
                }
        }

        // Sixteen keys after the other: their weights are where the second matmul wants its first factor.
#pragma unroll
        for (int step = 0; step < KEYS / 16; ++step) {
            uint32_t p[2][4];
#pragma unroll
            for (int m = 0; m < 2; ++m)
#pragma unroll
                for (int half = 0; half < 2; ++half)
#pragma unroll
                    for (int r = 0; r < 2; ++r) {
                        const float *score = s[m][step * 2 + half] + 2 * r;
                        const float top = most[m][r] * scale_log2;
                        const float low = exp2_quick(fmaf(score[0], scale_log2, -top));
                        const float high = exp2_quick(fmaf(score[1], scale_log2, -top));
                        sum[m][r] += low + high;
                        p[m][half * 2 + r] = pair<T>(low, high);
                    }
            const T *rows_v = v + step * 16 * PITCH + in_values;
#pragma unroll
            for (int c = 0; c < COLUMN_PAIRS; ++c) {
                uint32_t b[4];
                ldmatrix_transposed(b, rows_v + c * 16);
#pragma unroll
                for (int m = 0; m < 2; ++m) {
                    mma<T>(o[m][2 * c], p[m], b[0], b[1]);
                    mma<T>(o[m][2 * c + 1], p[m], b[2], b[3]);
                }
            }
            if constexpr (COLUMNS % 2 != 0) {
                uint32_t b[2];
                ldmatrix_transposed(b, v + (step * 16 + lane % 16) * PITCH + COLUMN_PAIRS * 16);
#pragma unroll
                for (int m = 0; m < 2; ++m) mma<T>(o[m][COLUMNS - 1], p[m], b[0], b[1]);
            }
        }
        __syncthreads(); // the tile's place is free
    }

    // Through shared memory, so that whole rows are written; every warp keeps to its own rows.
    T *mine = tiles[0][0] + warp * WARP_QUERIES * PITCH;
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            float total = sum[m][r];
            total += __shfl_xor_sync(~0u, total, 1);
            total += __shfl_xor_sync(~0u, total, 2);
            const float share = 1.f / total;
            uint32_t *row = reinterpret_cast<uint32_t *>(mine + (m * 16 + r * 8 + lane / 4) * PITCH);
#pragma unroll
            for (int c = 0; c < COLUMNS; ++c)
                row[c * 4 + lane % 4] = pair<T>(o[m][c][2 * r] * share, o[m][c][2 * r + 1] * share);
        }
    __syncwarp();
    const int first_mine = first + warp * WARP_QUERIES;
    T *to = out + (size_t(blockIdx.z) * rows + first_mine) * width + head * WIDTH;
    constexpr int CHUNKS = WIDTH / PACK<T>;
    for (int i = lane; i < WARP_QUERIES * CHUNKS; i += 32) {
        const int row = i / CHUNKS, at = i % CHUNKS * PACK<T>;
        if (first_mine + row < rows)
            *reinterpret_cast<uint4 *>(to + row * width + at) =
                *reinterpret_cast<const uint4 *>(mine + row * PITCH + at);
    }
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
