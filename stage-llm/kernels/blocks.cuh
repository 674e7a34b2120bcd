// Weights in blocks, as they lie on the card (quantized.rs): GGUF's Q4_K blocks unchanged; those of Q8_0 and Q6_K, whose
// 34 and 210 bytes nothing wide could load, taken apart into planes.
#pragma once
#include "warp.cuh"

enum Weights { W_DENSE = 0, W_Q8_0 = 1, W_Q4_K = 2, W_Q6_K = 3 };

// Where the parts of a matrix begin.
struct Planes {
    const unsigned char* values;   // Q8_0: [rows, cols]; Q4_K: [blocks, 144]; Q6_K: low nibbles [blocks, 128]
    const unsigned char* high;     // Q6_K: high pairs of bits [blocks, 64]
    const int8_t* scales;          // Q6_K: [blocks, 16]
    const uint16_t* block_scales;  // Q8_0: [rows, cols / 32]; Q6_K: [blocks]

    __device__ Planes(int format, const void* data, size_t rows, size_t cols) {
        values = static_cast<const unsigned char*>(data);
        size_t blocks = rows * cols / 256;
        high = values + blocks * 128;
        scales = reinterpret_cast<const int8_t*>(values + blocks * 192);
        block_scales = reinterpret_cast<const uint16_t*>(values + (format == W_Q8_0 ? rows * cols : blocks * 208));
    }
};

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
