// Norms over rows, with the additions that come before them. One block per row, which its threads keep in registers
// from the first reading to the last writing: memory is read once and written once.
#include "e4m3.cuh"
#include "real.cuh"

// Packs of a row that a thread keeps: the host picks the threads so that these hold it.
constexpr int HELD = 2;

// A thread's share of a row, in f32.
template <class T> struct Share {
    static constexpr int N = PACK<T>;
    float v[HELD][N];

    // Neighbouring threads keep neighbouring packs.
    static __device__ int first(int h) { return (h * blockDim.x + threadIdx.x) * N; }

    __device__ void load(const T *row, int columns, bool aligned) {
#pragma unroll
        for (int h = 0; h < HELD; ++h) ::load(v[h], row, first(h), columns, aligned);
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

// The sum over the block, for every thread. Each sum of a kernel has its own 32 floats: no thread can overwrite what
// a slower one has yet to read.
__device__ float block_sum(float x, float (&warps)[32]) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(~0u, x, step);
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = x;
    __syncthreads();
    float sum = 0.f;
    for (int w = 0; w < blockDim.x / 32; ++w) sum += warps[w];
    return sum;
}

// Where the outcome of a row goes: as it is, or, if there is no `out`, in E4M3 with a scale per row.
template <class T> struct Outcome {
    T *out;
    uint8_t *bytes;
    float *scales;

    __device__ bool wanted() const { return out != nullptr || bytes != nullptr; }

    __device__ void store(Share<T> &a, int columns, bool aligned) const {
        const size_t row = size_t(blockIdx.x) * columns;
        if (out != nullptr) return a.store(out + row, columns, aligned);
        __shared__ float warps[32];
        float largest = 0.f;
#pragma unroll
        for (int h = 0; h < HELD; ++h)
#pragma unroll
            for (int i = 0; i < a.N; ++i) {
                // What is beyond the row's end is no part of it.
                a.v[h][i] = a.first(h) < columns ? rounded<T>(a.v[h][i]) : 0.f;
                largest = fmaxf(largest, fabsf(a.v[h][i]));
            }
        const E4m3Scale scale(block_largest(largest, warps));
#pragma unroll
        for (int h = 0; h < HELD; ++h) {
            if (a.first(h) >= columns) continue;
            uint32_t packed[a.N / 4];
#pragma unroll
            for (int i = 0; i < a.N / 4; ++i) packed[i] = scale.four(&a.v[h][4 * i]);
            uint8_t *to = bytes + row + a.first(h);
            if constexpr (a.N == 8) *reinterpret_cast<uint2 *>(to) = make_uint2(packed[0], packed[1]);
            else *reinterpret_cast<uint32_t *>(to) = packed[0];
        }
        if (threadIdx.x == 0) scales[blockIdx.x] = scale.of_row;
    }
};

// out = x / sqrt(mean(x^2) + eps) * gain, the gain in f32, one rounding.
template <class T>
__device__ void rms_norm(const T *x, const float *gain, Outcome<T> out, int columns, float eps, bool aligned) {
    __shared__ float warps[32];
    const size_t row = size_t(blockIdx.x) * columns;
    Share<T> a;
    a.load(x + row, columns, aligned);
    const float inverse = 1.f / sqrtf(block_sum(a.squares(), warps) / columns + eps);
#pragma unroll
    for (int h = 0; h < HELD; ++h) {
        float g[a.N];
        load(g, gain, a.first(h), columns, aligned);
#pragma unroll
        for (int i = 0; i < a.N; ++i) a.v[h][i] = a.v[h][i] * inverse * g[i];
    }
    out.store(a, columns, aligned);
}

// x += rms_norm(y, gain), the norm rounded before the sum; and if there is an out: out = rms_norm(x, next_gain).
template <class T>
__device__ void add_rms_norm(T *x, const T *y, const float *gain, const float *next_gain, Outcome<T> out, int columns,
                             float eps, bool aligned) {
    __shared__ float warps[32], next_warps[32];
    const size_t row = size_t(blockIdx.x) * columns;
    Share<T> a, b;
    b.load(y + row, columns, aligned);
    a.load(x + row, columns, aligned);
    const float inverse = 1.f / sqrtf(block_sum(b.squares(), warps) / columns + eps);
#pragma unroll
    for (int h = 0; h < HELD; ++h) {
        float g[a.N];
        load(g, gain, a.first(h), columns, aligned);
#pragma unroll
        for (int i = 0; i < a.N; ++i)
            a.v[h][i] = rounded<T>(a.v[h][i] + rounded<T>(b.v[h][i] * inverse * g[i]));
    }
    a.store(x + row, columns, aligned);
    if (!out.wanted()) return;
    const float next_inverse = 1.f / sqrtf(block_sum(a.squares(), next_warps) / columns + eps);
#pragma unroll
    for (int h = 0; h < HELD; ++h) {
        float g[a.N];
        load(g, next_gain, a.first(h), columns, aligned);
#pragma unroll
        for (int i = 0; i < a.N; ++i) a.v[h][i] = a.v[h][i] * next_inverse * g[i];
    }
    out.store(a, columns, aligned);
}

// out = rms(x) rounded, then times the weight, if any, rounded again.
template <class T>
__device__ void rms(const T *x, const T *weight, T *out, int columns, float eps, bool aligned) {
    __shared__ float warps[32];
    const size_t row = size_t(blockIdx.x) * columns;
    Share<T> a;
    a.load(x + row, columns, aligned);
    const float inverse = 1.f / sqrtf(block_sum(a.squares(), warps) / columns + eps);
#pragma unroll
    for (int h = 0; h < HELD; ++h) {
        float w[a.N];
        if (weight) load(w, weight, a.first(h), columns, aligned);
#pragma unroll
        for (int i = 0; i < a.N; ++i) {
            a.v[h][i] = rounded<T>(a.v[h][i] * inverse);
            if (weight) a.v[h][i] *= w[i];
        }
    }
    a.store(out + row, columns, aligned);
}

// a = (a - mean) / sqrt(variance + eps) * weight + bias. The variance is of what the mean leaves: E[x^2] - E[x]^2 would
// lose its digits where the mean is large.
template <class T>
__device__ void normalise(Share<T> &a, const T *weight, const T *bias, int columns, float eps, bool aligned) {
    __shared__ float mean_warps[32], variance_warps[32];
    const float mean = block_sum(a.sum(), mean_warps) / columns;
    // What is beyond the row's end stays zero and out of the variance.
#pragma unroll
    for (int h = 0; h < HELD; ++h)
#pragma unroll
        for (int i = 0; i < a.N; ++i)
            if (a.first(h) + i < columns) a.v[h][i] -= mean;
    const float inverse = 1.f / sqrtf(block_sum(a.squares(), variance_warps) / columns + eps);
#pragma unroll
    for (int h = 0; h < HELD; ++h) {
        float w[a.N], b[a.N];
        load(w, weight, a.first(h), columns, aligned);
        load(b, bias, a.first(h), columns, aligned);
#pragma unroll
        for (int i = 0; i < a.N; ++i) a.v[h][i] = a.v[h][i] * inverse * w[i] + b[i];
    }
}

template <class T>
__device__ void layer_norm(const T *x, const T *weight, const T *bias, Outcome<T> out, int columns, float eps,
                           bool aligned) {
    const size_t row = size_t(blockIdx.x) * columns;
    Share<T> a;
    a.load(x + row, columns, aligned);
    normalise(a, weight, bias, columns, eps, aligned);
    out.store(a, columns, aligned);
}

// x += y + y_bias, each sum rounded, then held within +-limit; and if there is an out: out = layer_norm(x).
template <class T>
__device__ void add_layer_norm(T *x, const T *y, const T *y_bias, float limit, const T *weight, const T *bias,
                               Outcome<T> out, int columns, float eps, bool aligned) {
    const size_t row = size_t(blockIdx.x) * columns;
    Share<T> a, b;
    b.load(y + row, columns, aligned);
    a.load(x + row, columns, aligned);
#pragma unroll
    for (int h = 0; h < HELD; ++h) {
        float c[a.N];
        if (y_bias) load(c, y_bias, a.first(h), columns, aligned);
#pragma unroll
        for (int i = 0; i < a.N; ++i) {
            if (y_bias) b.v[h][i] = rounded<T>(b.v[h][i] + c[i]);
            const float s = rounded<T>(a.v[h][i] + b.v[h][i]);
            a.v[h][i] = s > limit ? limit : s < -limit ? -limit : s; // NaN stays NaN
        }
    }
    a.store(x + row, columns, aligned);
    if (!out.wanted()) return;
    normalise(a, weight, bias, columns, eps, aligned);
    out.store(a, columns, aligned);
}

#define OUTCOME(T) T *__restrict__ out, uint8_t *__restrict__ bytes, float *__restrict__ scales

#define KERNELS(name, T)                                                                                                \
    extern "C" __global__ void __launch_bounds__(1024) rms_norm_##name(                                                 \
        const T *__restrict__ x, const float *__restrict__ gain, OUTCOME(T), int columns, float eps, int aligned) {     \
        rms_norm(x, gain, Outcome<T>{out, bytes, scales}, columns, eps, aligned);                                       \
    }                                                                                                                   \
    extern "C" __global__ void __launch_bounds__(1024) add_rms_norm_##name(                                             \
        T *__restrict__ x, const T *__restrict__ y, const float *__restrict__ gain,                                     \
        const float *__restrict__ next_gain, OUTCOME(T), int columns, float eps, int aligned) {                         \
        add_rms_norm(x, y, gain, next_gain, Outcome<T>{out, bytes, scales}, columns, eps, aligned);                     \
    }                                                                                                                   \
    extern "C" __global__ void __launch_bounds__(1024) rms_##name(                                                      \
        const T *__restrict__ x, const T *__restrict__ weight, T *__restrict__ out, int columns, float eps,             \
        int aligned) {                                                                                                  \
        rms(x, weight, out, columns, eps, aligned);                                                                     \
    }                                                                                                                   \
    extern "C" __global__ void __launch_bounds__(1024) layer_norm_##name(                                               \
        const T *__restrict__ x, const T *__restrict__ weight, const T *__restrict__ bias, OUTCOME(T), int columns,     \
        float eps, int aligned) {                                                                                       \
        layer_norm(x, weight, bias, Outcome<T>{out, bytes, scales}, columns, eps, aligned);                             \
    }                                                                                                                   \
    extern "C" __global__ void __launch_bounds__(1024) add_layer_norm_##name(                                           \
        T *__restrict__ x, const T *__restrict__ y, const T *__restrict__ y_bias, float limit,                          \
        const T *__restrict__ weight, const T *__restrict__ bias, OUTCOME(T), int columns, float eps, int aligned) {    \
        add_layer_norm(x, y, y_bias, limit, weight, bias, Outcome<T>{out, bytes, scales}, columns, eps, aligned);       \
    }

FOR_EACH_TYPE(KERNELS)
