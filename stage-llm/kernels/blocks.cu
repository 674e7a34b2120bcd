// Rows of weights in blocks, expanded: for products of many rows, in 16 or in 8 bits, and as an embedding.
#include "../../common/compute/kernels/e4m3.cuh"
#include "blocks.cuh"

// Values column to column + 7 of a row: `ask` loads what they are made of, `make` makes them.
template <class T, int FORMAT> struct Eight;

template <class T> struct Eight<T, W_DENSE> {
    typename T::Element x[8];
    __device__ inline void ask(const void* w, size_t row, int column, int cols) {
        const typename T::Element* from = static_cast<const typename T::Element*>(w) + row * cols + column;
#pragma unroll
        for (int i = 0; i < 8; i++) x[i] = from[i];
    }
    __device__ inline void make(float (&v)[8], int) const {
#pragma unroll
        for (int i = 0; i < 8; i++) v[i] = T::widen(x[i]);
    }
};

template <class T> struct Eight<T, W_Q8_0> {
    uint16_t scale;
    uint2 bytes;
    __device__ inline void ask(const void* w, size_t row, int column, int cols) {
        using U = Unit<W_Q8_0>;
        const unsigned char* unit = unit_of<W_Q8_0>(w, row, column, cols);
        int r = int(row % UNIT_ROWS), at = column % UNIT_COLS;
        scale = *reinterpret_cast<const uint16_t*>(unit + U::scale(r, at / 32));
        bytes = *reinterpret_cast<const uint2*>(unit + U::value(r, at));
    }
    __device__ inline void make(float (&v)[8], int) const {
        float s = F16::widen(scale);
#pragma unroll
        for (int i = 0; i < 8; i++) v[i] = s * float(int8_t((i < 4 ? bytes.x : bytes.y) >> (8 * (i % 4))));
    }
};

template <class T> struct Eight<T, W_Q4_K> {
    uint4 header;
    uint2 nibbles;
    __device__ inline void ask(const void* w, size_t row, int column, int cols) {
        using U = Unit<W_Q4_K>;
        const unsigned char* unit = unit_of<W_Q4_K>(w, row, column, cols);
        int r = int(row % UNIT_ROWS), at = column % UNIT_COLS;
        header = *reinterpret_cast<const uint4*>(unit + U::HEADERS + r * 16);
        nibbles = *reinterpret_cast<const uint2*>(unit + U::nibbles(r, at / 64 * 32 + at % 32));
    }
    __device__ inline void make(float (&v)[8], int column) const {
        Minima m(header);
        int group = column % UNIT_COLS / 32, high = group % 2;
        uint32_t scale = group < 4 ? m.scale[0] : m.scale[1], min = group < 4 ? m.min[0] : m.min[1];
        float s = m.d * float((scale >> (8 * (group % 4))) & 63u);
        float low = m.dmin * float((min >> (8 * (group % 4))) & 63u);
#pragma unroll
        for (int i = 0; i < 8; i++)
            v[i] = s * float(((i < 4 ? nibbles.x : nibbles.y) >> (8 * (i % 4) + 4 * high)) & 15u) - low;
    }
};

template <class T> struct Eight<T, W_Q6_K> {
    uint16_t d;
    int8_t scale;
    uint32_t lows[2], highs[2];
    __device__ inline void ask(const void* w, size_t row, int column, int cols) {
        using U = Unit<W_Q6_K>;
        const unsigned char* unit = unit_of<W_Q6_K>(w, row, column, cols);
        int r = int(row % UNIT_ROWS), at = column % UNIT_COLS, half = at / 128, quarter = at % 128 / 32, l = at % 32;
        d = *reinterpret_cast<const uint16_t*>(unit + U::D + r * 2);
        scale = int8_t(unit[U::SCALES + r * 16 + at / 16]);
#pragma unroll
        for (int j = 0; j < 2; j++) {
            lows[j] = *reinterpret_cast<const uint32_t*>(unit + U::low(r, half, quarter % 2, l + 4 * j));
            highs[j] = *reinterpret_cast<const uint32_t*>(unit + U::high(r, half, l + 4 * j));
        }
    }
    __device__ inline void make(float (&v)[8], int column) const {
        int quarter = column % 128 / 32;
        float s = F16::widen(d) * float(scale);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            uint32_t low = (lows[i / 4] >> (i % 4 * 8 + quarter / 2 * 4)) & 15u;
            uint32_t top = (highs[i / 4] >> (i % 4 * 8 + quarter * 2)) & 3u;
            v[i] = s * float(int(low | top << 4) - 32);
        }
    }
};

// out[i] = row ids[i] (or first + i, without ids), rounded, times scale, rounded. A thread has eight values.
template <class T, int FORMAT>
__device__ inline void take(const void* w, long long rows, int cols, const uint32_t* ids, long long first, long long n, float scale, void* out) {
    long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    int eighths = cols / 8;
    if (i >= n * eighths) return;
    size_t row = ids ? min((long long)ids[i / eighths], rows - 1) : first + i / eighths;
    int column = int(i % eighths) * 8;
    Eight<T, FORMAT> asked;
    asked.ask(w, row, column, cols);
    float v[8];
    asked.make(v, column);
    typename T::Element* to = static_cast<typename T::Element*>(out) + i * 8;
#pragma unroll
    for (int j = 0; j < 8; j++) v[j] = T::widen(T::narrow(v[j])) * scale;
    if constexpr (sizeof(typename T::Element) == 2) {
        *reinterpret_cast<uint4*>(to) = make_uint4(
            T::narrow(v[0]) | uint32_t(T::narrow(v[1])) << 16, T::narrow(v[2]) | uint32_t(T::narrow(v[3])) << 16,
            T::narrow(v[4]) | uint32_t(T::narrow(v[5])) << 16, T::narrow(v[6]) | uint32_t(T::narrow(v[7])) << 16);
    } else {
#pragma unroll
        for (int j = 0; j < 8; j++) to[j] = v[j];
    }
}

#define TAKE(NAME, T, FORMAT)                                                                                                  \
    extern "C" __global__ void take_##NAME(const void* w, long long rows, int cols, const uint32_t* ids, long long first,     \
                                           long long n, float scale, void* out) {                                             \
        take<T, FORMAT>(w, rows, cols, ids, first, n, scale, out);                                                            \
    }
TAKE(dense_bf16, Bf16, W_DENSE)
TAKE(dense_f16, F16, W_DENSE)
TAKE(dense_f32, F32, W_DENSE)
TAKE(q8_0_bf16, Bf16, W_Q8_0)
TAKE(q8_0_f16, F16, W_Q8_0)
TAKE(q8_0_f32, F32, W_Q8_0)
TAKE(q4_k_bf16, Bf16, W_Q4_K)
TAKE(q4_k_f16, F16, W_Q4_K)
TAKE(q4_k_f32, F32, W_Q4_K)
TAKE(q6_k_bf16, Bf16, W_Q6_K)
TAKE(q6_k_f16, F16, W_Q6_K)
TAKE(q6_k_f32, F32, W_Q6_K)

template <int FORMAT> struct Row {
    using Asked = Eight<F32, FORMAT>;
    const void* w;
    size_t row;
    int cols;
    __device__ inline Asked ask(int column) const {
        Asked asked;
        asked.ask(w, row, column, cols);
        return asked;
    }
    __device__ inline void make(float (&v)[8], const Asked& asked, int column) const { asked.make(v, column); }
};

// Rows first and on of a matrix, one a block.
#define E4M3(NAME, FORMAT)                                                                                                     \
    extern "C" __global__ void __launch_bounds__(512) e4m3_##NAME(const void* w, int cols, long long first, uint8_t* bytes,     \
                                                                  float* scales) {                                            \
        size_t i = blockIdx.x;                                                                                                \
        row_to_e4m3<4>(Row<FORMAT>{w, size_t(first) + i, cols}, cols, bytes + i * cols, scales + i);                          \
    }
E4M3(q8_0, W_Q8_0)
E4M3(q4_k, W_Q4_K)
E4M3(q6_k, W_Q6_K)
