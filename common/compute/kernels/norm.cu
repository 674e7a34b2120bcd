// Norms over rows, with the additions that come before them. A row's threads keep it in registers from the first reading to
// the last writing: memory is read once and written once.
#include "e4m3.cuh"
#include "real.cuh"

// Who makes a row: a block, or, where it is narrow, a warp, which waits for nobody.
struct Block {
    // Packs of a row that a thread keeps: the host picks threads so that these hold it.
    static constexpr int HELD = 2, THREADS = 1024;
    static __device__ int row() { return blockIdx.x; }
    static __device__ int thread() { return threadIdx.x; }
    static __device__ int threads() { return blockDim.x; }

    // The sum for every thread. Each sum of a kernel has its own 32 floats: no thread can overwrite what a slower one has
    // yet to read.
    static __device__ float sum(float x, float (&warps)[32]) {
#pragma unroll
        for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(~0u, x, step);
        if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = x;
        __syncthreads();
        float sum = 0.f;
        for (int w = 0; w < blockDim.x / 32; ++w) sum += warps[w];
        return sum;
    }
    static __device__ float largest(float x, float (&warps)[32]) { return block_largest(x, warps); }
    // Both at once: threads wait for each other once.
    static __device__ float2 sum_and_largest(float x, float y, float (&warps)[32], float (&others)[32]) {
#pragma unroll
        for (int step = 16; step > 0; step /= 2) y = fmaxf(y, __shfl_xor_sync(~0u, y, step));
        if (threadIdx.x % 32 == 0) others[threadIdx.x / 32] = y;
        x = sum(x, warps);
        for (int w = 0; w < blockDim.x / 32; ++w) y = fmaxf(y, others[w]);
        return {x, y};
    }
};

struct Warp {
    static constexpr int HELD = 5, THREADS = 128;
    static __device__ int row() { return blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32; }
    static __device__ int thread() { return threadIdx.x % 32; }
    static __device__ int threads() { return 32; }

    static __device__ float sum(float x, float (&)[32]) {
#pragma unroll
        for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(~0u, x, step);
        return x;
    }
    static __device__ float largest(float x, float (&)[32]) {
#pragma unroll
        for (int step = 16; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, step));
        return x;
    }
    static __device__ float2 sum_and_largest(float x, float y, float (&warps)[32], float (&others)[32]) {
        return {sum(x, warps), largest(y, others)};
    }
};

// What a thread has of a row of E, as it lies in memory. It is asked for at once and looked at later: a thread that looked
// at each pack before it asked for the next would wait for the memory once a pack.
template <class E, int N, class By> struct Packs {
    static constexpr int HELD = By::HELD, WORDS = N * sizeof(E) / 16;
    uint4 bits[HELD][WORDS];

    // Neighbouring threads keep neighbouring packs.
    static __device__ int first(int h) { return (h * By::threads() + By::thread()) * N; }

    // Zeros beyond the row's end.
    __device__ __forceinline__ Packs(const E *row, int columns, bool aligned) {
        if (aligned) {
#pragma unroll
            for (int h = 0; h < HELD; ++h)
#pragma unroll
                for (int w = 0; w < WORDS; ++w)
                    bits[h][w] = first(h) < columns ? reinterpret_cast<const uint4 *>(row + first(h))[w] : uint4{};
        } else {
#pragma unroll
            for (int h = 0; h < HELD; ++h) {
                E *x = reinterpret_cast<E *>(bits[h]);
#pragma unroll
                for (int i = 0; i < N; ++i) x[i] = first(h) + i < columns ? row[first(h) + i] : E(0.f);
            }
        }
    }
    __device__ __forceinline__ void get(float (&out)[N], int h) const {
        const E *x = reinterpret_cast<const E *>(bits[h]);
#pragma unroll
        for (int i = 0; i < N; ++i) out[i] = wide(x[i]);
    }
};

// A thread's share of a row, in f32.
template <class T, class By> struct Share {
    static constexpr int N = PACK<T>, HELD = By::HELD;
    using Same = Packs<T, N, By>;
    using Single = Packs<float, N, By>;
    float v[HELD][N];

    static __device__ int first(int h) { return Same::first(h); }

    __device__ void take(const Same &packs) {
#pragma unroll
        for (int h = 0; h < HELD; ++h) packs.get(v[h], h);
    }
    __device__ void store(T *row, int columns, bool aligned) const {
#pragma unroll
        for (int h = 0; h < HELD; ++h) ::store(v[h], row, first(h), columns, aligned);
    }
    __device__ float sum() const {
        float s = 0.f;
#pragma unroll
        for (int h = 0; h < HELD; ++h)
#pragma unroll
            for (int i = 0; i < N; ++i) s += v[h][i];
        return s;
    }
    __device__ float squares() const {
        float s = 0.f;
#pragma unroll
        for (int h = 0; h < HELD; ++h)
#pragma unroll
            for (int i = 0; i < N; ++i) s += v[h][i] * v[h][i];
        return s;
    }
};

// Where the outcome of a row goes: as it is, or, if there is no `out`, in E4M3 with a scale per row.
template <class T, class By> struct Outcome {
    T *out;
    uint8_t *bytes;
    float *scales;

    __device__ bool wanted() const { return out != nullptr || bytes != nullptr; }

    __device__ void store(Share<T, By> &a, int columns, bool aligned) const {
        if (out != nullptr) return a.store(out + size_t(By::row()) * columns, columns, aligned);
        __shared__ float warps[32];
        float largest = 0.f;
#pragma unroll
        for (int h = 0; h < a.HELD; ++h) {
            // What is beyond the row's end is no part of it.
            if (a.first(h) >= columns) continue;
            round_all<T>(a.v[h]);
#pragma unroll
            for (int i = 0; i < a.N; ++i) largest = fmaxf(largest, fabsf(a.v[h][i]));
        }
        quantize(a, columns, By::largest(largest, warps));
    }

    // Stores a row of E4M3, rounded to T, whose largest value is known.
    __device__ void quantize(Share<T, By> &a, int columns, float largest) const {
        const size_t row = size_t(By::row()) * columns;
        const E4m3Scale scale(largest);
#pragma unroll
        for (int h = 0; h < a.HELD; ++h) {
            if (a.first(h) >= columns) continue;
            uint32_t packed[a.N / 4];
#pragma unroll
            for (int i = 0; i < a.N / 4; ++i) packed[i] = scale.four(&a.v[h][4 * i]);
            uint8_t *to = bytes + row + a.first(h);
            if constexpr (a.N == 8) *reinterpret_cast<uint2 *>(to) = make_uint2(packed[0], packed[1]);
            else *reinterpret_cast<uint32_t *>(to) = packed[0];
        }
        if (By::thread() == 0) scales[By::row()] = scale.of_row;
    }
};

// out = a / sqrt(mean(a^2) + eps) * gains, the gains in f32, one rounding. A row's largest value in E4M3 is searched for while its
// squares are summed: the norm's factor comes later, to the same within two roundings of f32.
template <class T, class By>
__device__ void store_rms_norm(Share<T, By> &a, const typename Share<T, By>::Single &gains, const Outcome<T, By> &out,
                               int columns, float eps, bool aligned) {
    __shared__ float warps[32], others[32];
    const bool quantized = out.out == nullptr;
    float largest = 0.f;
    if (quantized) {
#pragma unroll
        for (int h = 0; h < a.HELD; ++h) {
            float g[a.N];
            gains.get(g, h);
#pragma unroll
            for (int i = 0; i < a.N; ++i) largest = fmaxf(largest, fabsf(a.v[h][i] * g[i]));
        }
    }
    const float2 both = quantized ? By::sum_and_largest(a.squares(), largest, warps, others)
                                  : make_float2(By::sum(a.squares(), warps), 0.f);
    const float inverse = 1.f / sqrtf(both.x / columns + eps);
#pragma unroll
    for (int h = 0; h < a.HELD; ++h) {
        float g[a.N];
        gains.get(g, h);
#pragma unroll
        for (int i = 0; i < a.N; ++i) a.v[h][i] = a.v[h][i] * inverse * g[i];
        if (quantized) round_all<T>(a.v[h]);
    }
    if (quantized) out.quantize(a, columns, rounded<T>(both.y * inverse));
    else out.store(a, columns, aligned);
}

// out = rms_norm(x, gain).
template <class T, class By>
__device__ void rms_norm(const T *x, const float *gain, Outcome<T, By> out, int columns, float eps, bool aligned) {
    using A = Share<T, By>;
    const typename A::Same packs(x + size_t(By::row()) * columns, columns, aligned);
    const typename A::Single gains(gain, columns, aligned);
    A a;
    a.take(packs);
    store_rms_norm(a, gains, out, columns, eps, aligned);
}

// x += rms_norm(y, gain), the norm rounded before the sum; and if there is an out: out = rms_norm(x, next_gain).
template <class T, class By>
__device__ void add_rms_norm(T *x, const T *y, const float *gain, const float *next_gain, Outcome<T, By> out, int columns,
                             float eps, bool aligned) {
    __shared__ float warps[32];
    const size_t row = size_t(By::row()) * columns;
    using A = Share<T, By>;
    const typename A::Same y_packs(y + row, columns, aligned), x_packs(x + row, columns, aligned);
    const typename A::Single gains(gain, columns, aligned);
    A a;
    a.take(y_packs);
    const float inverse = 1.f / sqrtf(By::sum(a.squares(), warps) / columns + eps);
#pragma unroll
    for (int h = 0; h < a.HELD; ++h) {
        float g[a.N], b[a.N];
        gains.get(g, h);
        x_packs.get(b, h);
#pragma unroll
        for (int i = 0; i < a.N; ++i) a.v[h][i] = a.v[h][i] * inverse * g[i];
        round_all<T>(a.v[h]);
#pragma unroll
        for (int i = 0; i < a.N; ++i) a.v[h][i] += b[i];
        round_all<T>(a.v[h]);
    }
    a.store(x + row, columns, aligned);
    if (!out.wanted()) return;
    store_rms_norm(a, typename A::Single(next_gain, columns, aligned), out, columns, eps, aligned);
}

// x += y, rounded; then out = rms_norm(x, gain): where no norm stands between a part of a layer and the residual stream.
template <class T, class By>
__device__ void add_then_rms_norm(T *x, const T *y, const float *gain, Outcome<T, By> out, int columns, float eps,
                                  bool aligned) {
    const size_t row = size_t(By::row()) * columns;
    using A = Share<T, By>;
    const typename A::Same y_packs(y + row, columns, aligned), x_packs(x + row, columns, aligned);
    const typename A::Single gains(gain, columns, aligned);
    A a;
    a.take(x_packs);
#pragma unroll
    for (int h = 0; h < a.HELD; ++h) {
        float b[a.N];
        y_packs.get(b, h);
#pragma unroll
        for (int i = 0; i < a.N; ++i) a.v[h][i] += b[i];
        round_all<T>(a.v[h]);
    }
    a.store(x + row, columns, aligned);
    store_rms_norm(a, gains, out, columns, eps, aligned);
}

// out = rms(x) rounded, then times the weight, if any, rounded again.
template <class T, class By>
__device__ void rms(const T *x, const T *weight, T *out, int columns, float eps, bool aligned) {
    __shared__ float warps[32];
    const size_t row = size_t(By::row()) * columns;
    using A = Share<T, By>;
    const typename A::Same packs(x + row, columns, aligned), weights(weight ? weight : x + row, columns, aligned);
    A a;
    a.take(packs);
    const float inverse = 1.f / sqrtf(By::sum(a.squares(), warps) / columns + eps);
#pragma unroll
    for (int h = 0; h < a.HELD; ++h) {
        float w[a.N];
        weights.get(w, h);
#pragma unroll
        for (int i = 0; i < a.N; ++i) a.v[h][i] *= inverse;
        round_all<T>(a.v[h]);
        if (!weight) continue;
#pragma unroll
        for (int i = 0; i < a.N; ++i) a.v[h][i] *= w[i];
    }
    a.store(out + row, columns, aligned);
}

// a = (a - mean) / sqrt(variance + eps) * weight + bias. The variance is of what the mean leaves: E[x^2] - E[x]^2 would
// lose its digits where the mean is large.
template <class T, class By>
__device__ void normalise(Share<T, By> &a, const T *weight, const T *bias, int columns, float eps, bool aligned) {
    __shared__ float mean_warps[32], variance_warps[32];
    const typename Share<T, By>::Same weights(weight, columns, aligned), biases(bias, columns, aligned);
    const float mean = By::sum(a.sum(), mean_warps) / columns;
    // What is beyond the row's end stays zero and out of the variance.
#pragma unroll
    for (int h = 0; h < a.HELD; ++h)
#pragma unroll
        for (int i = 0; i < a.N; ++i)
            if (a.first(h) + i < columns) a.v[h][i] -= mean;
    const float inverse = 1.f / sqrtf(By::sum(a.squares(), variance_warps) / columns + eps);
#pragma unroll
    for (int h = 0; h < a.HELD; ++h) {
        float w[a.N], b[a.N];
        weights.get(w, h);
        biases.get(b, h);
#pragma unroll
        for (int i = 0; i < a.N; ++i) a.v[h][i] = a.v[h][i] * inverse * w[i] + b[i];
    }
}

template <class T, class By>
__device__ void layer_norm(const T *x, const T *weight, const T *bias, Outcome<T, By> out, int columns, float eps,
                           bool aligned) {
    Share<T, By> a;
    a.take({x + size_t(By::row()) * columns, columns, aligned});
    normalise(a, weight, bias, columns, eps, aligned);
    out.store(a, columns, aligned);
}

// x += y + y_bias, each sum rounded, then held within +-limit; and if there is an out: out = layer_norm(x).
template <class T, class By>
__device__ void add_layer_norm(T *x, const T *y, const T *y_bias, float limit, const T *weight, const T *bias,
                               Outcome<T, By> out, int columns, float eps, bool aligned) {
    const size_t row = size_t(By::row()) * columns;
    using A = Share<T, By>;
    const typename A::Same x_packs(x + row, columns, aligned), y_packs(y + row, columns, aligned);
    const typename A::Same y_biases(y_bias ? y_bias : y + row, columns, aligned);
    A a;
#pragma unroll
    for (int h = 0; h < a.HELD; ++h) {
        float b[a.N], c[a.N];
        x_packs.get(a.v[h], h), y_packs.get(b, h), y_biases.get(c, h);
#pragma unroll
        for (int i = 0; i < a.N; ++i) b[i] += y_bias ? c[i] : 0.f;
        round_all<T>(b);
#pragma unroll
        for (int i = 0; i < a.N; ++i) a.v[h][i] += b[i];
        round_all<T>(a.v[h]);
#pragma unroll
        for (int i = 0; i < a.N; ++i) {
            const float s = a.v[h][i];
            a.v[h][i] = s > limit ? limit : s < -limit ? -limit : s; // NaN stays NaN
        }
    }
    a.store(x + row, columns, aligned);
    if (!out.wanted()) return;
    normalise(a, weight, bias, columns, eps, aligned);
    out.store(a, columns, aligned);
}

#define OUTCOME(T) T *__restrict__ out, uint8_t *__restrict__ bytes, float *__restrict__ scales

// `rows`: a warp beyond the last one has nothing to do.
#define KERNELS_BY(name, T, By)                                                                                         \
    extern "C" __global__ void __launch_bounds__(By::THREADS) rms_norm_##name(                                                 \
        const T *__restrict__ x, const float *__restrict__ gain, OUTCOME(T), int rows, int columns, float eps,          \
        int aligned) {                                                                                                  \
        next_may_begin();                                                                                               \
        wait_for_earlier();                                                                                             \
        if (By::row() < rows) rms_norm(x, gain, Outcome<T, By>{out, bytes, scales}, columns, eps, aligned);             \
    }                                                                                                                   \
    extern "C" __global__ void __launch_bounds__(By::THREADS) add_rms_norm_##name(                                             \
        T *__restrict__ x, const T *__restrict__ y, const float *__restrict__ gain,                                     \
        const float *__restrict__ next_gain, OUTCOME(T), int rows, int columns, float eps, int aligned) {               \
        next_may_begin();                                                                                               \
        wait_for_earlier();                                                                                             \
        if (By::row() < rows)                                                                                           \
            add_rms_norm(x, y, gain, next_gain, Outcome<T, By>{out, bytes, scales}, columns, eps, aligned);             \
    }                                                                                                                   \
    extern "C" __global__ void __launch_bounds__(By::THREADS) add_then_rms_norm_##name(                                        \
        T *__restrict__ x, const T *__restrict__ y, const float *__restrict__ gain, OUTCOME(T), int rows, int columns,  \
        float eps, int aligned) {                                                                                       \
        next_may_begin();                                                                                               \
        wait_for_earlier();                                                                                             \
        if (By::row() < rows)                                                                                           \
            add_then_rms_norm(x, y, gain, Outcome<T, By>{out, bytes, scales}, columns, eps, aligned);                   \
    }                                                                                                                   \
    extern "C" __global__ void __launch_bounds__(By::THREADS) rms_##name(                                                      \
        const T *__restrict__ x, const T *__restrict__ weight, T *__restrict__ out, int rows, int columns, float eps,   \
        int aligned) {                                                                                                  \
        wait_for_earlier();                                                                                             \
        if (By::row() < rows) rms<T, By>(x, weight, out, columns, eps, aligned);                                        \
    }                                                                                                                   \
    extern "C" __global__ void __launch_bounds__(By::THREADS) layer_norm_##name(                                               \
        const T *__restrict__ x, const T *__restrict__ weight, const T *__restrict__ bias, OUTCOME(T), int rows,        \
        int columns, float eps, int aligned) {                                                                          \
        wait_for_earlier();                                                                                             \
        if (By::row() < rows) layer_norm(x, weight, bias, Outcome<T, By>{out, bytes, scales}, columns, eps, aligned);   \
    }                                                                                                                   \
    extern "C" __global__ void __launch_bounds__(By::THREADS) add_layer_norm_##name(                                           \
        T *__restrict__ x, const T *__restrict__ y, const T *__restrict__ y_bias, float limit,                          \
        const T *__restrict__ weight, const T *__restrict__ bias, OUTCOME(T), int rows, int columns, float eps,         \
        int aligned) {                                                                                                  \
        wait_for_earlier();                                                                                             \
        if (By::row() < rows)                                                                                           \
            add_layer_norm(x, y, y_bias, limit, weight, bias, Outcome<T, By>{out, bytes, scales}, columns, eps, aligned); \
    }

#define KERNELS(name, T) KERNELS_BY(name, T, Block) KERNELS_BY(narrow_##name, T, Warp)

FOR_EACH_TYPE(KERNELS)
