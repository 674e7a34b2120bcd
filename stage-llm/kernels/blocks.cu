// Weights in blocks: taken apart on their way to the card, and rows of them expanded: for products of many rows, in 16 or
// in 8 bits, and as an embedding.
#include "../../common/kernels/e4m3.cuh"
#include "blocks.cuh"

// Copies blocks `first` and on of a matrix of `total` blocks into their planes, two bytes a thread.
extern "C" __global__ void blocks_split(const uint16_t* raw, unsigned char* out, int format, long long first, long long blocks, long long total) {
    int units = format == W_Q8_0 ? 17 : 105;
    long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= blocks * units) return;
    long long block = first + i / units;
    int unit = int(i % units);
    uint16_t* to = reinterpret_cast<uint16_t*>(out);
    if (format == W_Q8_0) {
        if (unit == 0) to[total * 16 + block] = raw[i];
        else to[block * 16 + unit - 1] = raw[i];
    } else if (unit < 64) {
        to[block * 64 + unit] = raw[i];
    } else if (unit < 96) {
        to[total * 64 + block * 32 + unit - 64] = raw[i];
    } else if (unit < 104) {
        to[total * 96 + block * 8 + unit - 96] = raw[i];
    } else {
        to[total * 104 + block] = raw[i];
    }
}

// Values column to column + 7 of a row.
template <class T, int FORMAT>
__device__ inline void expand(float (&v)[8], const Planes& planes, size_t row, int column, int cols) {
    if constexpr (FORMAT == W_DENSE) {
        const typename T::Element* from = reinterpret_cast<const typename T::Element*>(planes.values) + row * cols + column;
#pragma unroll
        for (int i = 0; i < 8; i++) v[i] = T::widen(from[i]);
    } else if constexpr (FORMAT == W_Q8_0) {
        float s = F16::widen(planes.block_scales[(row * cols + column) / 32]);
        uint2 w = *reinterpret_cast<const uint2*>(planes.values + row * cols + column);
#pragma unroll
        for (int i = 0; i < 8; i++) v[i] = s * float(int8_t((i < 4 ? w.x : w.y) >> (8 * (i % 4))));
    } else {
        size_t block = (row * cols + column) / 256;
        int at = column % 256;
        if constexpr (FORMAT == W_Q4_K) {
            const unsigned char* from = planes.values + block * 144;
            Minima m(*reinterpret_cast<const uint4*>(from));
            int group = at / 32, high = group % 2;
            uint32_t scale = group < 4 ? m.scale[0] : m.scale[1], min = group < 4 ? m.min[0] : m.min[1];
            float s = m.d * float((scale >> (8 * (group % 4))) & 63u);
            float low = m.dmin * float((min >> (8 * (group % 4))) & 63u);
            uint2 w = *reinterpret_cast<const uint2*>(from + 16 + 32 * (at / 64) + at % 32);
#pragma unroll
            for (int i = 0; i < 8; i++) v[i] = s * float(((i < 4 ? w.x : w.y) >> (8 * (i % 4) + 4 * high)) & 15u) - low;
        } else {
            int half = at / 128, quarter = at % 128 / 32, l = at % 32;
            float s = F16::widen(planes.block_scales[block]) * float(planes.scales[block * 16 + 8 * half + 2 * quarter + l / 16]);
            uint2 w = *reinterpret_cast<const uint2*>(planes.values + block * 128 + 64 * half + 32 * (quarter % 2) + l);
            uint2 h = *reinterpret_cast<const uint2*>(planes.high + block * 64 + 32 * half + l);
#pragma unroll
            for (int i = 0; i < 8; i++) {
                uint32_t low = ((i < 4 ? w.x : w.y) >> (8 * (i % 4) + 4 * (quarter / 2))) & 15u;
                uint32_t top = ((i < 4 ? h.x : h.y) >> (8 * (i % 4) + 2 * quarter)) & 3u;
                v[i] = s * float(int(low | top << 4) - 32);
            }
        }
    }
}

// out[i] = row ids[i] (or first + i, without ids), rounded, times scale, rounded. A thread has eight values.
template <class T, int FORMAT>
__device__ inline void take(const void* w, long long rows, int cols, const uint32_t* ids, long long first, long long n, float scale, void* out) {
    long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    int eighths = cols / 8;
    if (i >= n * eighths) return;
    Planes planes(FORMAT, w, rows, cols);
    size_t row = ids ? min((long long)ids[i / eighths], rows - 1) : first + i / eighths;
    float v[8];
    expand<T, FORMAT>(v, planes, row, int(i % eighths) * 8, cols);
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
    Planes planes;
    size_t row;
    int cols;
    __device__ inline void operator()(float (&v)[8], int column) const { expand<F32, FORMAT>(v, planes, row, column, cols); }
};

// Rows first and on of a matrix, one a block.
#define E4M3(NAME, FORMAT)                                                                                                     \
    extern "C" __global__ void __launch_bounds__(512) e4m3_##NAME(const void* w, long long rows, int cols, long long first,   \
                                                                  uint8_t* bytes, float* scales) {                            \
        size_t i = blockIdx.x;                                                                                                \
        row_to_e4m3<4>(Row<FORMAT>{Planes(FORMAT, w, rows, cols), size_t(first) + i, cols}, cols, bytes + i * cols, scales + i); \
    }
E4M3(q8_0, W_Q8_0)
E4M3(q4_k, W_Q4_K)
E4M3(q6_k, W_Q6_K)
