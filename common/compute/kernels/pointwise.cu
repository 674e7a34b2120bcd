// Operations on single values, a pack of them per thread. Activations are taken in f32 of what the reference stores
// before them, a sum rounded to T.
#include "pointwise.cuh"

enum Activation { NONE, GELU_TANH, GELU_ERF, SILU };

// x = act(x + bias), in place. `table`, if any, is added after the bias: row r of x takes row r mod `period` of it.
template <class T, Activation ACT>
__device__ void bias_act(T *x, const T *bias, const T *table, int period, int rows, int columns, bool aligned) {
    constexpr int N = PACK<T>;
    const unsigned packs = (columns + N - 1) / N;
    const unsigned at = blockIdx.x * blockDim.x + threadIdx.x;
    const unsigned row = at / packs;
    const int first = (at - row * packs) * N;
    if (row >= rows) return;
    T *here = x + size_t(row) * columns;
    float v[N], b[N];
    load(v, here, first, columns, aligned);
    if (bias) {
        load(b, bias, first, columns, aligned);
#pragma unroll
        for (int i = 0; i < N; ++i) v[i] = rounded<T>(v[i] + b[i]);
    }
    if (table) {
        load(b, table + size_t(row % period) * columns, first, columns, aligned);
#pragma unroll
        for (int i = 0; i < N; ++i) v[i] += b[i];
    }
#pragma unroll
    for (int i = 0; i < N; ++i) {
        if (ACT == GELU_TANH) v[i] = gelu_tanh<T>(v[i]);
        if (ACT == GELU_ERF) v[i] = gelu_erf(v[i]);
    }
    store(v, here, first, columns, aligned);
}

// Rows of gates and ups side by side [rows, 2, width] to act(gate) * up [rows, width]. The activation is rounded before the
// product is.
template <class T, Activation ACT>
__device__ void glu(const T *gate_up, T *out, int rows, int width, bool aligned) {
    constexpr int N = PACK<T>;
    const unsigned packs = (width + N - 1) / N;
    const unsigned at = blockIdx.x * blockDim.x + threadIdx.x;
    const unsigned row = at / packs;
    const int first = (at - row * packs) * N;
    next_may_begin();
    wait_for_earlier();
    if (row >= rows) return;
    const T *gates = gate_up + size_t(row) * width * 2;
    float gate[N], up[N];
    load(gate, gates, first, width, aligned);
    load(up, gates + width, first, width, aligned);
#pragma unroll
    for (int i = 0; i < N; ++i) gate[i] = rounded<T>(ACT == SILU ? silu<T>(gate[i]) : gelu_tanh<T>(gate[i])) * up[i];
    store(gate, out + size_t(row) * width, first, width, aligned);
}

#define BIAS_ACT(name, T, operation, ACT)                                                                               \
    extern "C" __global__ void __launch_bounds__(256) operation##_##name(                                               \
        T *__restrict__ x, const T *__restrict__ bias, const T *__restrict__ table, int period, int rows, int columns,  \
        int aligned) {                                                                                                  \
        bias_act<T, ACT>(x, bias, table, period, rows, columns, aligned);                                               \
    }

#define GLU(name, T, operation, ACT)                                                                                    \
    extern "C" __global__ void __launch_bounds__(256) operation##_##name(                                               \
        const T *__restrict__ gate_up, T *__restrict__ out, int rows, int width, int aligned) {                         \
        glu<T, ACT>(gate_up, out, rows, width, aligned);                                                                \
    }

#define KERNELS(name, T)                                                                                                \
    BIAS_ACT(name, T, bias_add, NONE)                                                                                   \
    BIAS_ACT(name, T, bias_gelu_tanh, GELU_TANH)                                                                        \
    BIAS_ACT(name, T, bias_gelu_erf, GELU_ERF)                                                                          \
    GLU(name, T, geglu, GELU_TANH)                                                                                      \
    GLU(name, T, swiglu, SILU)

FOR_EACH_TYPE(KERNELS)
