// The rest of attention: the splits' sum, and a plain kernel for what the fast ones do not take (f32, other widths).
#include "attention.cuh"

// out = sum over segments of (sum over splits of mixed) / (sum over splits of sum), each split's weights relative to
// the largest maximum. A warp for each segment finds its splits' factors, then all threads sum: four a column quad of heads
// of 256, eight of heads of 128.
// Grid: tokens * heads. Block: 256 threads, with 4 KB of shared memory and a float more for each split.
template <class T, int WIDTH> __device__ inline void combine(const Attention& a) {
    constexpr int QUADS = WIDTH / 4, PARTS = 256 / QUADS;
    next_may_begin();
    wait_for_earlier();
    int column = threadIdx.x % QUADS * 4, part = threadIdx.x / QUADS, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    size_t rows = size_t(a.tokens) * a.heads, row = blockIdx.x;
    float4* parts = reinterpret_cast<float4*>(shared_memory());
    float* factors = reinterpret_cast<float*>(shared_memory() + 4096);
    int splits = 0;
    for (int i = 0; i < a.count; i++) {
        int first = splits;
        splits += a.segments[i].splits;
        if (warp != i) continue;
        float most = NOTHING, sum = 0.f;
        for (int s = first + lane; s < splits; s += 32) most = fmaxf(most, a.stats[s * rows + row].x);
        for (int step = 1; step < 32; step *= 2) most = fmaxf(most, __shfl_xor_sync(0xFFFFFFFFu, most, step));
        for (int s = first + lane; s < splits; s += 32) {
            float2 stats = a.stats[s * rows + row];
            factors[s] = exp2f(stats.x - most);
            sum += stats.y * factors[s];
        }
        for (int step = 1; step < 32; step *= 2) sum += __shfl_xor_sync(0xFFFFFFFFu, sum, step);
        float over = sum > 0.f ? 1.f / sum : 0.f;
        for (int s = first + lane; s < splits; s += 32) factors[s] *= over;
    }
    __syncthreads();
    float4 out = make_float4(0.f, 0.f, 0.f, 0.f);
#pragma unroll 4
    for (int s = part; s < splits; s += PARTS) {
        float factor = factors[s];
        float4 x = *reinterpret_cast<const float4*>(a.mixed + (s * rows + row) * WIDTH + column);
        out.x += factor * x.x, out.y += factor * x.y, out.z += factor * x.z, out.w += factor * x.w;
    }
    parts[threadIdx.x] = out;
    __syncthreads();
    if (part == 0) {
        for (int p = 1; p < PARTS; p++) {
            float4 x = parts[QUADS * p + threadIdx.x];
            out.x += x.x, out.y += x.y, out.z += x.z, out.w += x.w;
        }
        uint2 pairs = make_uint2(T::pack(out.x, out.y), T::pack(out.z, out.w));
        *reinterpret_cast<uint2*>(static_cast<uint16_t*>(a.out) + row * WIDTH + column) = pairs;
    }
}

#define COMBINE(NAME, T, WIDTH)                                                                       \
    extern "C" __global__ void attend_combine_##WIDTH##_##NAME(const __grid_constant__ Attention a) { \
        combine<T, WIDTH>(a);                                                                         \
    }
COMBINE(bf16, Bf16, 256)
COMBINE(f16, F16, 256)
COMBINE(bf16, Bf16, 128)
COMBINE(f16, F16, 128)

// One key or value.
template <class T>
__device__ inline float element(const unsigned char* rows, const uint16_t* scales, int format, size_t row, int column, int width) {
    if (format == DENSE) return T::widen(reinterpret_cast<const typename T::Element*>(rows)[row * width + column]);
    if (format == Q8) {
        int groups = (width + GROUP_8 - 1) / GROUP_8;
        return float(int8_t(rows[row * width + column])) * scale_8(scales[row * groups + column / GROUP_8]);
    }
    int groups = (width + GROUP_4 - 1) / GROUP_4, at = column % 8;
    uint32_t word = reinterpret_cast<const uint32_t*>(rows)[(row * width + column) / 8];
    float nibble = float((word >> (4 * (at / 2) + 16 * (at % 2))) & 15u), correction;
    float scale = scale_4(scales[row * groups + column / GROUP_4], correction);
    return (16.f + nibble) * scale + correction;
}

constexpr int SLOTS = 16;  // columns of a thread: heads of 512 at most

// Grid: tokens * heads. Block: a warp, which has every 32nd column of every key.
template <class T> __device__ inline void plain(const Attention& a) {
    wait_for_earlier();
    using E = typename T::Element;
    int token = blockIdx.x / a.heads, head = blockIdx.x % a.heads, kv_head = head / (a.heads / a.kv_heads);
    int lane = threadIdx.x, width = a.head_dim;
    float out[SLOTS] = {};
    for (int i = 0; i < a.count; i++) {
        const Segment& s = a.segments[i];
        const E* q = static_cast<const E*>(s.causal ? a.rotated : a.plain) +
                     size_t(token) * (s.causal ? a.rotated_stride : a.plain_stride) + head * width;
        float query[SLOTS], mixed[SLOTS] = {}, most = NOTHING, sum = 0.f;
        for (int j = 0; j < SLOTS; j++) query[j] = lane + 32 * j < width ? T::widen(q[lane + 32 * j]) : 0.f;
        int low, high;
        seen(s, token, low, high);
        for (int key = low; key < high; key++) {
            size_t row = size_t(kv_head) * s.capacity + key;
            float y = 0.f;
            for (int j = 0; j < SLOTS; j++)
                if (lane + 32 * j < width) y += query[j] * element<T>(s.k, s.k_scales, s.format, row, lane + 32 * j, width);
            for (int step = 1; step < 32; step *= 2) y += __shfl_xor_sync(0xFFFFFFFFu, y, step);
            y *= a.scale;
            if (a.cap > 0.f) y = a.cap * tanhf(y / a.cap);
            float more = fmaxf(most, y), factor = expf(most - more), weight = expf(y - more);
            most = more;
            sum = sum * factor + weight;
            for (int j = 0; j < SLOTS; j++)
                if (lane + 32 * j < width)
                    mixed[j] = mixed[j] * factor + weight * element<T>(s.v, s.v_scales, s.format, row, lane + 32 * j, width);
        }
        for (int j = 0; j < SLOTS; j++) out[j] += sum > 0.f ? mixed[j] / sum : 0.f;
    }
    for (int j = 0; j < SLOTS; j++)
        if (lane + 32 * j < width)
            static_cast<E*>(a.out)[size_t(blockIdx.x) * width + lane + 32 * j] = T::narrow(out[j]);
}

extern "C" __global__ void attend_plain_bf16(const __grid_constant__ Attention a) { plain<Bf16>(a); }
extern "C" __global__ void attend_plain_f16(const __grid_constant__ Attention a) { plain<F16>(a); }
extern "C" __global__ void attend_plain_f32(const __grid_constant__ Attention a) { plain<F32>(a); }
