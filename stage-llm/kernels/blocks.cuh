// Weights in blocks, as they lie in GPU memory (quantized/units.rs arranges them): cut into units of 16 rows by 256 columns,
// each of them one stretch of memory, with zeros where a matrix ends within one. In a unit, what a thread of a warp
// multiplies lies together: `piece` p is 16 bytes for each of 32 lanes, and lane 4g + t has part t of rows g (first half of
// the pieces) and g + 8 (second half).
#pragma once
#include "warp.cuh"

enum Weights { W_DENSE = 0, W_Q8_0 = 1, W_Q4_K = 2, W_Q6_K = 3 };

constexpr int UNIT_ROWS = 16, UNIT_COLS = 256;

// Where the parts of a unit begin. The bits are GGUF's; only where they lie differs.
template <int FORMAT> struct Unit;
// Eight groups of 32 signed bytes: part t of a group is values 8t to 8t + 7; a piece has two groups. f16 scales [16][8].
template <> struct Unit<W_Q8_0> {
    static constexpr int VALUES = 0, SCALES = 4096, BYTES = 4352;
    static __device__ int value(int row, int column) {
        int group = column / 32;
        return (row / 8 * 4 + group / 2) * 512 + (row % 8 * 4 + column % 32 / 8) * 16 + group % 2 * 8 + column % 8;
    }
    static __device__ int scale(int row, int group) { return SCALES + (row * 8 + group) * 2; }
};
// A header of 16 bytes a row (d, dmin, scales and minima), then four runs of 32 bytes, whose low nibbles are 32 values
// and whose high ones the next 32. Part t of a run is bytes 8t to 8t + 7; a piece has two runs.
template <> struct Unit<W_Q4_K> {
    static constexpr int HEADERS = 0, NIBBLES = 256, BYTES = 2304;
    static __device__ int nibbles(int row, int byte) {
        int run = byte / 32;
        return NIBBLES + (row / 8 * 2 + run / 2) * 512 + (row % 8 * 4 + byte % 32 / 8) * 16 + run % 2 * 8 + byte % 8;
    }
};
// Two halves of 128 values: 64 bytes of nibbles a, b and 32 bytes of pairs of bits. Byte l of the pairs and bytes l and
// 32 + l of the nibbles make values l, 32 + l, 64 + l and 96 + l. Part t is the l of 4t to 4t + 3 and 16 more: 8 bytes of
// a and 8 of b to a piece for each half, 8 of pairs for each half to another. int8 scales [16][16], f16 d [16].
template <> struct Unit<W_Q6_K> {
    static constexpr int LOW = 0, HIGH = 2048, SCALES = 3072, D = 3328, BYTES = 3360;
    static __device__ int part(int row, int l) { return (row % 8 * 4 + l % 16 / 4) * 16 + l / 16 * 4 + l % 4; }
    static __device__ int low(int row, int half, int b, int l) {
        return LOW + (row / 8 * 2 + half) * 512 + part(row, l) + b * 8;
    }
    static __device__ int high(int row, int half, int l) { return HIGH + row / 8 * 512 + part(row, l) + half * 8; }
};

// The unit of a row and a column.
template <int FORMAT> __device__ inline const unsigned char* unit_of(const void* w, size_t row, int column, int cols) {
    size_t across = (cols + UNIT_COLS - 1) / UNIT_COLS;
    return static_cast<const unsigned char*>(w) + (row / UNIT_ROWS * across + column / UNIT_COLS) * Unit<FORMAT>::BYTES;
}

// The 6-bit scales and minima of a Q4_K block's eight groups, four to a word: of groups 0 to 3 and of 4 to 7.
struct Minima {
    float d, dmin;
    uint32_t scale[2], min[2];
    __device__ Minima(uint4 header) {
        d = F16::widen(uint16_t(header.x)), dmin = F16::widen(uint16_t(header.x >> 16));
        scale[0] = header.y & 0x3F3F3F3Fu, min[0] = header.z & 0x3F3F3F3Fu;
        scale[1] = (header.w & 0x0F0F0F0Fu) | ((header.y >> 2) & 0x30303030u);
        min[1] = ((header.w >> 4) & 0x0F0F0F0Fu) | ((header.z >> 2) & 0x30303030u);
    }
};
