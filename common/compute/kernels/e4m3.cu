// Activations to rows of E4M3, as they are or through GeGLU, SwiGLU or GELU, and the scales of both operands over a matmul that was
// computed without them (e4m3.rs).
#include "e4m3.cuh"
#include "pointwise.cuh"

// A thread holds at most so many packs of eight: rows of 16,384 values for the largest blocks that the host asks for.
constexpr int HELD = 4;

enum Made { ROWS, GEGLU, SWIGLU, GELU_TANH, GELU_ERF };

// Eight values as they lie in memory.
template <class T> struct Eight {
    uint4 bits[8 / PACK<T>];
    Eight() = default;
    __device__ __forceinline__ explicit Eight(const T *from) {
#pragma unroll
        for (int i = 0; i < 8 / PACK<T>; ++i) bits[i] = reinterpret_cast<const uint4 *>(from)[i];
    }
    __device__ __forceinline__ float operator[](int i) const { return wide(reinterpret_cast<const T *>(bits)[i]); }
};

// Eight values of a row; of 2 `columns` values, gates and ups, for GEGLU and SWIGLU.
template <class T, Made MADE> struct Source {
    struct Asked {
        Eight<T> row, other;
    };
    static constexpr bool GATED = MADE == GEGLU || MADE == SWIGLU;
    const T *row, *bias;
    int columns;
    __device__ __forceinline__ Asked ask(int column) const {
        if constexpr (MADE == ROWS) return {Eight<T>(row + column), {}};
        return {Eight<T>(row + column), Eight<T>((GATED ? row + columns : bias) + column)};
    }
    __device__ __forceinline__ void make(float (&v)[8], const Asked &asked, int) const {
#pragma unroll
        for (int i = 0; i < 8; ++i) v[i] = asked.row[i];
        if constexpr (MADE == ROWS) return;
        if constexpr (!GATED) {
#pragma unroll
            for (int i = 0; i < 8; ++i) v[i] += asked.other[i];
            round_all<T>(v);
        }
#pragma unroll
        for (int i = 0; i < 8; ++i)
            v[i] = MADE == GELU_ERF ? gelu_erf(v[i]) : MADE == SWIGLU ? silu<T>(v[i]) : gelu_tanh<T>(v[i]);
        round_all<T>(v);
        if constexpr (GATED) {
#pragma unroll
            for (int i = 0; i < 8; ++i) v[i] *= asked.other[i];
            round_all<T>(v);
        }
    }
};

// y[row, column] *= row's scale * column's scale, rounded to T. A thread has 16 bytes.
template <class T>
__device__ void scale(T *y, const float *by_row, const float *by_column, int rows, int columns) {
    constexpr int N = PACK<T>;
    const unsigned packs = columns / N;
    const unsigned at = blockIdx.x * blockDim.x + threadIdx.x;
    const unsigned row = at / packs;
    const int first = (at - row * packs) * N;
    if (row >= rows) return;
    float v[N];
    load(v, y + size_t(row) * columns, first, columns, true);
#pragma unroll
    for (int i = 0; i < N; ++i) v[i] *= by_row[row] * by_column[first + i];
    store(v, y + size_t(row) * columns, first, columns, true);
}

#define KERNEL(made, name, T, MADE)                                                                                     \
    extern "C" __global__ void __launch_bounds__(512) e4m3_##made##_##name(                                             \
        const T *__restrict__ x, int stride, uint8_t *__restrict__ bytes, float *__restrict__ scales, int columns,      \
        const T *__restrict__ bias) {                                                                                   \
        const size_t row = blockIdx.x;                                                                                  \
        row_to_e4m3<HELD>(Source<T, MADE>{x + row * stride, bias, columns}, columns, bytes + row * columns,             \
                          scales + row);                                                                                \
    }

#define KERNELS(name, T)                                                                                                \
    KERNEL(rows, name, T, ROWS)                                                                                         \
    KERNEL(geglu, name, T, GEGLU)                                                                                       \
    KERNEL(swiglu, name, T, SWIGLU)                                                                                     \
    KERNEL(gelu_tanh, name, T, GELU_TANH)                                                                               \
    KERNEL(gelu_erf, name, T, GELU_ERF)

FOR_EACH_TYPE(KERNELS)

extern "C" __global__ void __launch_bounds__(256) e4m3_scale(
    bf16 *__restrict__ y, const float *__restrict__ by_row, const float *__restrict__ by_column, int rows, int columns) {
    scale(y, by_row, by_column, rows, columns);
}
