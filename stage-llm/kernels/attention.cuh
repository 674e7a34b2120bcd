// What all attention kernels are told, and how keys and values lie in memory (kv.rs, kv/row.rs).
#pragma once
#include "warp.cuh"

enum Format { DENSE = 0, Q8 = 1, Q4 = 2 };
constexpr int GROUP_8 = 64, GROUP_4 = 32;

// One softmax: text, image or audio. Mirrors `Segment` in attention/cuda.rs.
struct Segment {
    const unsigned char* k;  // [kv_heads, capacity, bytes of a row]
    const unsigned char* v;
    const uint16_t* k_scales;  // [kv_heads, capacity, groups]
    const uint16_t* v_scales;
    int format;
    int capacity;  // tokens
    int start;     // keys that any query sees: start to end
    int end;
    int causal;  // whether query i stands at position first + i and sees what is not after it
    int first;
    int window;  // keys that a causal query sees at most; 0: all
    int splits;  // blocks that share the keys
};

// Mirrors `Attention` in attention/cuda.rs.
struct Attention {
    Segment segments[3];
    const void* rotated;  // queries of causal segments, [tokens, heads * head_dim], rows `*_stride` elements apart
    const void* plain;    // queries of the others
    float* mixed;         // [splits of all segments, tokens * heads, head_dim], not yet divided by the sum
    float2* stats;        // [splits of all segments, tokens * heads]: maximum (in powers of two) and sum
    void* out;            // [tokens, heads * head_dim]
    int rotated_stride;
    int plain_stride;
    int count;  // segments
    int tokens;
    int heads;
    int kv_heads;
    int head_dim;
    int split_keys;  // keys of one split
    float scale;
    float cap;  // 0: none
};

// Keys and values of one of several texts, in 16 bits. Mirrors `RawText` in attention/cuda/each.rs.
struct Text {
    const unsigned char *k, *v;  // [kv_heads, capacity, bytes of a row]
    int capacity;                // tokens
    int start, end;              // keys that its query sees
    int unused;
};
// One token of each of several texts. `a` has no segments here. Mirrors `RawTexts` in attention/cuda/each.rs.
struct Texts {
    Attention a;
    Text texts[64];
};

// Starts copying a row's scales, of so many bytes.
template <int BYTES> __device__ inline void copy_scales(void* shared, const void* global, bool there) {
    static_assert(BYTES == 4 || BYTES == 8 || BYTES == 16, "heads of 128 or 256");
    if constexpr (BYTES == 4) copy4(shared, global, there);
    else if constexpr (BYTES == 8) copy8(shared, global, there);
    else copy16(shared, global, there);
}

// Maximum of a row that has seen nothing: finite, so that differences are.
constexpr float NOTHING = -1e30f;
constexpr float LOG2_E = 1.4426950408889634f;

// Keys low to high are those that a query sees.
__device__ inline void seen(const Segment& s, int token, int& low, int& high) {
    low = s.start;
    high = s.end;
    if (s.causal) {
        int end = s.first + token + 1;
        high = min(high, end);
        if (s.window > 0) low = max(low, end - s.window);
    }
}

// Scores as they come out of the product, to logarithms of weights, in powers of two. tanh x is 1 - 2 / (1 + e^2x):
// off by 2e-7 at most, which the cap of 50 makes 1e-5 of a score; bf16 queries and keys are off by a hundred times that.
// Without a cap they are scaled, and no tanh is taken: the choice is the same for all threads, and made once for N scores.
struct Capping {
    float inner, outer;
    bool capped;
    __device__ Capping(const Attention& a) : capped(a.cap > 0.f) {
        inner = capped ? a.scale / a.cap * 2.f * LOG2_E : a.scale * LOG2_E;
        outer = a.cap * LOG2_E;
    }
    template <int N> __device__ void operator()(float (&y)[N]) const {
#pragma unroll
        for (int i = 0; i < N; i++) y[i] *= inner;
        if (!capped) return;
#pragma unroll
        for (int i = 0; i < N; i++) y[i] = outer - 2.f * outer * reciprocal_quick(1.f + exp2_quick(y[i]));
    }
};

// Which split of which segment a block has: the segment's index, and the first and the last key but one of it.
__device__ inline int find_split(const Attention& a, int split, int& from, int& to) {
    int i = 0;
    while (split >= a.segments[i].splits) split -= a.segments[i++].splits;
    const Segment& s = a.segments[i];
    from = s.start + split * a.split_keys;
    to = min(s.end, from + a.split_keys);
    return i;
}

// An f16 scale, and one whose four lowest bits are a zero point: its scale, and what `16 + nibble` times the scale is
// to be corrected by.
__device__ inline float scale_8(uint16_t bits) { return F16::widen(bits); }
__device__ inline float scale_4(uint16_t bits, float& correction) {
    float scale = F16::widen(bits & 0xFFF0u);
    correction = -(16.f + float(bits & 15u)) * scale;
    return scale;
}
