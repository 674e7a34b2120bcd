// Activations to rows of E4M3, as they are or through GeGLU, SwiGLU or GELU, and the scales of both operands over a matmul that was
// computed without them: on the way into such an activation, or alone (e4m3.rs).
#include "e4m3.cuh"
#include "pointwise.cuh"
#include <type_traits>

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

// What a matmul has left to whoever reads its outcome. `by_row` is of the row that is read.
struct Left {
    const float *by_row, *by_column;
    const bf16 *bias;
};

// y += bias, rounded, after y *= by_row * by_column, rounded.
template <class T>
__device__ __forceinline__ void finish(float (&v)[8], float by_row, const float *by_column, const bf16 *bias) {
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] *= by_row * by_column[i];
    round_all<T>(v);
    if (bias == nullptr) return;
    const Eight<bf16> added(bias);
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] += added[i];
    round_all<T>(v);
}

// Eight values of a row; of 2 `columns` values, gates and ups, for GEGLU and SWIGLU. LEFT: the matmul has left something to do.
template <class T, Made MADE, bool LEFT> struct Source {
    static constexpr bool GATED = MADE == GEGLU || MADE == SWIGLU;
    struct Alone {
        Eight<T> row;
    };
    struct Both {
        Eight<T> row, ups;
    };
    using Asked = std::conditional_t<GATED, Both, Alone>;
    const T *row;
    int columns;
    Left left;
    __device__ __forceinline__ Asked ask(int column) const {
        if constexpr (GATED) return {Eight<T>(row + column), Eight<T>(row + columns + column)};
        else return {Eight<T>(row + column)};
    }
    __device__ __forceinline__ void take(float (&v)[8], const Eight<T> &from, int column) const {
#pragma unroll
        for (int i = 0; i < 8; ++i) v[i] = from[i];
        if constexpr (LEFT)
            finish<T>(v, *left.by_row, left.by_column + column, left.bias == nullptr ? nullptr : left.bias + column);
    }
    __device__ __forceinline__ void make(float (&v)[8], const Asked &asked, int column) const {
        take(v, asked.row, column);
        if constexpr (MADE == ROWS) return;
#pragma unroll
        for (int i = 0; i < 8; ++i)
            v[i] = MADE == GELU_ERF ? gelu_erf(v[i]) : MADE == SWIGLU ? silu<T>(v[i]) : gelu_tanh<T>(v[i]);
        round_all<T>(v);
        if constexpr (GATED) {
            float ups[8];
            take(ups, asked.ups, columns + column);
#pragma unroll
            for (int i = 0; i < 8; ++i) v[i] *= ups[i];
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

#define KERNEL(name, T, MADE, LEFT)                                                                                     \
    extern "C" __global__ void __launch_bounds__(512) e4m3_##name(                                                      \
        const T *__restrict__ x, int stride, uint8_t *__restrict__ bytes, float *__restrict__ scales, int columns,      \
        const float *__restrict__ by_row, const float *__restrict__ by_column, const bf16 *__restrict__ bias) {         \
        const size_t row = blockIdx.x;                                                                                  \
        row_to_e4m3<HELD>(Source<T, MADE, LEFT>{x + row * stride, columns, {by_row + row, by_column, bias}}, columns,   \
                          bytes + row * columns, scales + row);                                                         \
    }

#define ROWS_OF(name, T) KERNEL(rows_##name, T, ROWS, false)
FOR_EACH_TYPE(ROWS_OF)

// Matmuls of E4M3 are bf16.
#define ACTIVATION(name, MADE)                                                                                          \
    KERNEL(name##_bf16, bf16, MADE, false)                                                                              \
    KERNEL(name##_left_bf16, bf16, MADE, true)

ACTIVATION(geglu, GEGLU)
ACTIVATION(swiglu, SWIGLU)
ACTIVATION(gelu_tanh, GELU_TANH)
ACTIVATION(gelu_erf, GELU_ERF)

extern "C" __global__ void __launch_bounds__(256) e4m3_scale(
    bf16 *__restrict__ y, const float *__restrict__ by_row, const float *__restrict__ by_column, int rows, int columns) {
    scale(y, by_row, by_column, rows, columns);
}
