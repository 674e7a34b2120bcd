// The two ends of the vision tower: pixels to patches, and patches to the cells of a token grid.
#include "real.cuh"

// Frames [n, size, size, 3] of bytes to rows of patches [n * side * side, 3 * patch * patch], values in the order
// colour, row, column. A thread writes two values that are neighbours in a row: `patch` is even.
template <class T>
__device__ void patchify(const uint8_t *frames, T *out, int frames_n, int size, int patch, int side) {
    // What the processor makes of a byte: v / 255 in double, rounded, then (x - 0.5) / 0.5 in single precision.
    __shared__ T table[256];
    for (int v = threadIdx.x; v < 256; v += blockDim.x)
        table[v] = narrow<T>((float(double(v) * 0.00392156862745098) - 0.5f) / 0.5f);
    __syncthreads();
    const unsigned half = patch / 2, pairs = 3 * patch * half;
    const unsigned at = blockIdx.x * blockDim.x + threadIdx.x;
    const unsigned cell = at / pairs, pair = at % pairs;
    const unsigned x = cell % side, y = cell / side % side, n = cell / (side * side);
    if (n >= frames_n) return;
    const unsigned dx = pair % half * 2, dy = pair / half % patch, colour = pair / (half * patch);
    const uint8_t *pixel = frames + ((size_t(n) * size + y * patch + dy) * size + x * patch + dx) * 3 + colour;
    struct alignas(2 * sizeof(T)) Two {
        T a, b;
    };
    reinterpret_cast<Two *>(out)[at] = {table[pixel[0]], table[pixel[3]]};
}

// One axis of the resize: which two cells of `padded` make cell i of `side`, and the share of the second. Bilinear,
// corners not aligned, in the single precision arithmetic of PyTorch's upsample_bilinear2d.
struct Blend {
    int low, high;
    float to_high;
    __device__ Blend(int i, int padded, int side) {
        const float source = fmaxf(__fsub_rn(__fmul_rn(float(padded) / float(side), i + 0.5f), 0.5f), 0.f);
        low = min(int(source), padded - 1);
        high = min(low + 1, padded - 1);
        to_high = fminf(fmaxf(source - low, 0.f), 1.f);
    }
};

// Patches [n, from, from, channels], zeros to the right and below up to `padded` a side, shrunk to 2 `grid` a side if
// that is less, to cells [n, grid, grid, channels, 2, 2]. A thread makes a pack of channels of a cell: 4 packs.
template <class T>
__device__ void pool(const T *in, T *out, int frames, int from, int padded, int grid, int channels, bool aligned) {
    constexpr int N = PACK<T>;
    const unsigned packs = (channels + N - 1) / N;
    const unsigned at = blockIdx.x * blockDim.x + threadIdx.x;
    const unsigned cell = at / packs;
    const int first = at % packs * N;
    const unsigned column = cell % grid, row = cell / grid % grid, n = cell / (grid * grid);
    if (n >= frames) return;
    const T *frame = in + size_t(n) * from * from * channels;
    const auto patch = [&](float(&v)[N], int y, int x) {
        const bool inside = y < from && x < from;
        load(v, frame + size_t(inside ? y * from + x : 0) * channels, first, inside ? channels : 0, aligned);
    };
    float made[4 * N]; // [N, 2, 2]
    const int side = 2 * grid;
#pragma unroll
    for (int d = 0; d < 4; ++d) {
        const int y = row * 2 + d / 2, x = column * 2 + d % 2;
        float v[N];
        if (side == padded) {
            patch(v, y, x);
        } else {
            // Across before down, each blend rounded only to f32.
            const Blend down(y, padded, side), across(x, padded, side);
            float a[N], b[N], c[N], e[N];
            patch(a, down.low, across.low);
            patch(b, down.low, across.high);
            patch(c, down.high, across.low);
            patch(e, down.high, across.high);
#pragma unroll
            for (int i = 0; i < N; ++i) {
                const float upper = (1.f - across.to_high) * a[i] + across.to_high * b[i];
                const float lower = (1.f - across.to_high) * c[i] + across.to_high * e[i];
                v[i] = (1.f - down.to_high) * upper + down.to_high * lower;
            }
        }
#pragma unroll
        for (int i = 0; i < N; ++i) made[i * 4 + d] = v[i];
    }
    store(made, out + size_t(cell) * channels * 4, first * 4, channels * 4, aligned);
}

#define KERNELS(name, T)                                                                                                \
    extern "C" __global__ void __launch_bounds__(256) patchify_##name(                                                  \
        const uint8_t *__restrict__ frames, T *__restrict__ out, int n, int size, int patch, int side) {                \
        patchify(frames, out, n, size, patch, side);                                                                    \
    }                                                                                                                   \
    extern "C" __global__ void __launch_bounds__(256) pool_##name(                                                      \
        const T *__restrict__ in, T *__restrict__ out, int frames, int from, int padded, int grid, int channels,        \
        int aligned) {                                                                                                  \
        pool(in, out, frames, from, padded, grid, channels, aligned);                                                   \
    }

FOR_EACH_TYPE(KERNELS)
