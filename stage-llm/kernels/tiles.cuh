// Tiles of 16 keys (or values) as a warp of attend_few.cu holds and multiplies them.
//
// Products are turned round: keys (then dimensions) are the 16 rows of a tensor core's tile and queries its 8 columns, so that
// little of a tile is padding. A product does not mind the order of what it sums over, so each thread takes 16 neighbouring
// bytes of a key as they lie in memory and the queries are laid out to match.
//
// A head has WIDTH values, 256 or 128: a row of keys or values is whole lines of 128 bytes or, with 128 values of 4 bits,
// half a line.
#pragma once
#include "attention.cuh"

constexpr int WARPS = 4, TILE = 16;
// A maximum may be passed by this many powers of two before all sums are rescaled.
constexpr float SLACK = 8.f;

// How a tile of 16 keys (or values) of a format is held by a warp.
template <int WIDTH, int FORMAT> struct Tile {
    static constexpr int ROW = FORMAT == DENSE ? 2 * WIDTH : FORMAT == Q8 ? WIDTH : WIDTH / 2;  // bytes
    static constexpr int LINE = ROW < 128 ? ROW : 128;                                          // bytes of it in a line
    static constexpr int CHUNK = 16 * WIDTH / ROW;                                              // values in 16 bytes
    static constexpr int PIECE = LINE / 8;              // bytes of a value's line that a thread multiplies
    static constexpr int HELD = CHUNK * PIECE / 16;     // values in them
    static constexpr int GROUPS = FORMAT == DENSE ? 0 : WIDTH / (FORMAT == Q8 ? GROUP_8 : GROUP_4);  // of a row
    static constexpr int SCALES = 2 * GROUPS;           // bytes
    static constexpr int VALUES = TILE * ROW;           // bytes before the scales
    static constexpr int BYTES = VALUES + TILE * SCALES;
    static_assert(ROW == 64 || ROW % 128 == 0, "whole lines, or two rows to a line");
    static_assert(BYTES % 16 == 0, "tiles begin on 16 bytes");
};

struct Lane {
    int index, g, t;  // of a quad g = index / 4, the thread t
};

// Where 16 bytes of a row lie in a slot: column `at` of its line `line`. Rows exchange their columns so that what eight
// threads read at once, be it of two rows (keys) or of four (values), lies in different banks. Of two rows in a line, the
// odd one has the second half before columns are exchanged; of values, sixteen threads then read 8 bytes each of four lines.
template <int WIDTH, int FORMAT> __device__ inline int place(int row, int line, int at) {
    constexpr int ROW = Tile<WIDTH, FORMAT>::ROW;
    int start = ROW < 128 ? row / 2 * 128 : row * ROW + line * 128;
    return start + (at ^ (row & 6) ^ (row & 1) << 2) * 16;
}

// Starts copying a tile of keys or values. Eight threads copy 128 neighbouring bytes: what is asked for half by half, the
// second cache hands out twice.
template <int WIDTH, int FORMAT>
__device__ inline void fetch_tile(unsigned char* slot, const unsigned char* rows, const uint16_t* scales, int key, int end,
                                  Lane lane) {
    using F = Tile<WIDTH, FORMAT>;
    constexpr int THREADS = F::LINE / 16, ROWS = 32 / THREADS;  // threads of a row, rows that the warp copies at once
#pragma unroll
    for (int i = 0; i < TILE / ROWS; i++) {
        int row = ROWS * i + lane.index / THREADS, at = lane.index % THREADS;
        bool there = key + row < end;
        const unsigned char* from = rows + size_t(there ? key + row : 0) * F::ROW + 16 * at;
#pragma unroll
        for (int l = 0; l < F::ROW / F::LINE; l++) copy16(slot + place<WIDTH, FORMAT>(row, l, at), from + 128 * l, there);
    }
    if constexpr (F::SCALES > 0) {
        if (lane.index < TILE) {
            int at = key + lane.index;
            bool there = at < end;
            unsigned char* to = slot + F::VALUES + lane.index * F::SCALES;
            copy_scales<F::SCALES>(to, scales + size_t(there ? at : 0) * F::GROUPS, there);
        }
    }
}

// 16 bytes of a key that the thread multiplies: part t of 64, the j-th.
template <int WIDTH, int FORMAT>
__device__ inline uint4 piece_of_key(const unsigned char* slot, int row, int j, Lane lane) {
    return *reinterpret_cast<const uint4*>(slot + place<WIDTH, FORMAT>(row, j / 2, j % 2 * 4 + lane.t));
}
// An eighth of a value's j-th line: part g.
template <int WIDTH, int FORMAT>
__device__ inline void piece_of_value(uint32_t (&w)[Tile<WIDTH, FORMAT>::PIECE / 4], const unsigned char* slot, int row, int j,
                                      Lane lane) {
    if constexpr (Tile<WIDTH, FORMAT>::PIECE == 16) {
        uint4 p = *reinterpret_cast<const uint4*>(slot + place<WIDTH, FORMAT>(row, j, lane.g));
        w[0] = p.x, w[1] = p.y, w[2] = p.z, w[3] = p.w;
    } else {
        uint2 p = *reinterpret_cast<const uint2*>(slot + place<WIDTH, FORMAT>(row, j, lane.g / 2) + lane.g % 2 * 8);
        w[0] = p.x, w[1] = p.y;
    }
}

// Scores of 16 keys for EIGHTS times 8 rows: of each eight, score[0] and [1] of key g for rows 2t and 2t + 1, [2] and [3] of
// key g + 8. `queries(eight, pair)` are the second factors of steps 2 pair and 2 pair + 1.
template <class T, int WIDTH, int FORMAT, int EIGHTS, class Queries>
__device__ inline void multiply_keys(float (&score)[EIGHTS][4], const unsigned char* slot, const Queries& queries, Lane lane) {
    using F = Tile<WIDTH, FORMAT>;
    constexpr int J = F::ROW / 64, STEPS = F::CHUNK / 4;
    float even[EIGHTS][4] = {}, odd[EIGHTS][4] = {};
    uint4 q[EIGHTS];
    const uint16_t* scales = reinterpret_cast<const uint16_t*>(slot + F::VALUES);
#pragma unroll
    for (int j = 0; j < J; j++) {
        uint4 p0 = piece_of_key<WIDTH, FORMAT>(slot, lane.g, j, lane);
        uint4 p1 = piece_of_key<WIDTH, FORMAT>(slot, lane.g + 8, j, lane);
        uint32_t w0[4] = {p0.x, p0.y, p0.z, p0.w}, w1[4] = {p1.x, p1.y, p1.z, p1.w};
        uint32_t s0 = 0, s1 = 0, c0 = 0, c1 = 0;
        if constexpr (FORMAT == Q8) {  // a group is the four threads' 16 values
            float a = scale_8(scales[lane.g * F::GROUPS + j]), b = scale_8(scales[(lane.g + 8) * F::GROUPS + j]);
            s0 = T::pack(a, a), s1 = T::pack(b, b);
        }
        if constexpr (FORMAT == Q4) {  // a group is this thread's 32 values
            float ca, cb;
            float a = scale_4(scales[lane.g * F::GROUPS + 4 * j + lane.t], ca);
            float b = scale_4(scales[(lane.g + 8) * F::GROUPS + 4 * j + lane.t], cb);
            s0 = T::pack(a, a), s1 = T::pack(b, b), c0 = T::pack(ca, ca), c1 = T::pack(cb, cb);
        }
#pragma unroll
        for (int h = 0; h < STEPS; h++) {
            if (h % 2 == 0) {
#pragma unroll
                for (int e = 0; e < EIGHTS; e++) q[e] = queries(e, (j * STEPS + h) / 2);
            }
            uint32_t a[4];
            if constexpr (FORMAT == DENSE) {
                a[0] = w0[2 * h], a[1] = w1[2 * h], a[2] = w0[2 * h + 1], a[3] = w1[2 * h + 1];
            } else if constexpr (FORMAT == Q8) {
                a[0] = times<T>(T::bytes(choose<0x4140>(w0[h], 0)), s0);
                a[1] = times<T>(T::bytes(choose<0x4140>(w1[h], 0)), s1);
                a[2] = times<T>(T::bytes(choose<0x4342>(w0[h], 0)), s0);
                a[3] = times<T>(T::bytes(choose<0x4342>(w1[h], 0)), s1);
            } else if (h % 2 == 0) {
                a[0] = T::fma(sixteen_and<T, 0>(w0[h / 2]), s0, c0);
                a[1] = T::fma(sixteen_and<T, 0>(w1[h / 2]), s1, c1);
                a[2] = T::fma(sixteen_and<T, 4>(w0[h / 2]), s0, c0);
                a[3] = T::fma(sixteen_and<T, 4>(w1[h / 2]), s1, c1);
            } else {
                a[0] = T::fma(sixteen_and<T, 8>(w0[h / 2]), s0, c0);
                a[1] = T::fma(sixteen_and<T, 8>(w1[h / 2]), s1, c1);
                a[2] = T::fma(sixteen_and<T, 12>(w0[h / 2]), s0, c0);
                a[3] = T::fma(sixteen_and<T, 12>(w1[h / 2]), s1, c1);
            }
#pragma unroll
            for (int e = 0; e < EIGHTS; e++) {
                if (h % 2) T::mma(odd[e], a, {q[e].z, q[e].w});
                else T::mma(even[e], a, {q[e].x, q[e].y});
            }
        }
    }
#pragma unroll
    for (int e = 0; e < EIGHTS; e++)
#pragma unroll
        for (int i = 0; i < 4; i++) score[e][i] = even[e][i] + odd[e][i];
}

// mixed += values * weights. Tile n of `mixed` has values 2u (rows g) and 2u + 1 (rows g + 8) of each thread's pieces:
// n = j * HELD / 2 + u.
template <class T, int WIDTH, int FORMAT, int EIGHTS>
__device__ inline void multiply_values(float (&mixed)[EIGHTS][WIDTH / 16][4], const unsigned char* slot,
                                       const uint32_t (&weights)[EIGHTS][2], Lane lane) {
    auto add = [&](int n, const uint32_t (&a)[4]) {
#pragma unroll
        for (int e = 0; e < EIGHTS; e++) T::mma(mixed[e][n], a, weights[e]);
    };
    using F = Tile<WIDTH, FORMAT>;
    constexpr int J = F::ROW / F::LINE, WORDS = F::PIECE / 4;
    const uint16_t* scales = reinterpret_cast<const uint16_t*>(slot + F::VALUES);
#pragma unroll
    for (int j = 0; j < J; j++) {
        uint32_t w[4][WORDS];
#pragma unroll
        for (int q = 0; q < 4; q++) piece_of_value<WIDTH, FORMAT>(w[q], slot, 2 * lane.t + q % 2 + q / 2 * 8, j, lane);
        uint32_t s[2] = {0, 0}, c[2] = {0, 0};
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int key = 2 * lane.t + 8 * half;
            if constexpr (FORMAT == Q8) {
                int group = 2 * j + lane.g / 4;
                s[half] = T::pack(scale_8(scales[key * F::GROUPS + group]), scale_8(scales[(key + 1) * F::GROUPS + group]));
            }
            if constexpr (FORMAT == Q4) {
                int group = lane.g * F::HELD / GROUP_4;
                float ca, cb;
                float a = scale_4(scales[key * F::GROUPS + group], ca), b = scale_4(scales[(key + 1) * F::GROUPS + group], cb);
                s[half] = T::pack(a, b), c[half] = T::pack(ca, cb);
            }
        }
        if constexpr (FORMAT == DENSE) {
#pragma unroll
            for (int u = 0; u < WORDS; u++) {
                uint32_t a[4] = {choose<0x5410>(w[0][u], w[1][u]), choose<0x7632>(w[0][u], w[1][u]),
                                 choose<0x5410>(w[2][u], w[3][u]), choose<0x7632>(w[2][u], w[3][u])};
                add(j * F::HELD / 2 + u, a);
            }
        } else if constexpr (FORMAT == Q8) {
#pragma unroll
            for (int i = 0; i < WORDS; i++) {
                // Halves: two values of the first key, the same two of the second.
                uint32_t y[2][2] = {{choose<0x5410>(w[0][i], w[1][i]), choose<0x7632>(w[0][i], w[1][i])},
                                    {choose<0x5410>(w[2][i], w[3][i]), choose<0x7632>(w[2][i], w[3][i])}};
#pragma unroll
                for (int u = 0; u < 2; u++) {
                    uint32_t a[4] = {times<T>(T::bytes(y[0][u]), s[0]), times<T>(T::bytes(y[0][u] >> 8), s[0]),
                                     times<T>(T::bytes(y[1][u]), s[1]), times<T>(T::bytes(y[1][u] >> 8), s[1])};
                    add(j * F::HELD / 2 + 2 * i + u, a);
                }
            }
        } else {
#pragma unroll
            for (int i = 0; i < WORDS; i++) {
                // Halves: even values (then odd ones) of the first key, the same of the second.
                uint32_t e0 = choose<0x5410>(w[0][i], w[1][i]), o0 = choose<0x7632>(w[0][i], w[1][i]);
                uint32_t e1 = choose<0x5410>(w[2][i], w[3][i]), o1 = choose<0x7632>(w[2][i], w[3][i]);
#define PAIR(P)                                                                                               \
    {                                                                                                         \
        uint32_t a[4] = {T::fma(sixteen_and<T, 4 * P>(e0), s[0], c[0]), T::fma(sixteen_and<T, 4 * P>(o0), s[0], c[0]),  \
                         T::fma(sixteen_and<T, 4 * P>(e1), s[1], c[1]), T::fma(sixteen_and<T, 4 * P>(o1), s[1], c[1])}; \
        add(j * F::HELD / 2 + 4 * i + P, a);                                                                  \
    }
                PAIR(0) PAIR(1) PAIR(2) PAIR(3)
#undef PAIR
            }
        }
    }
}

// Where a thread's part of tile n of `mixed` belongs: values at this column and the next.
template <int WIDTH, int FORMAT> __device__ inline int column(int n, Lane lane) {
    constexpr int HELD = Tile<WIDTH, FORMAT>::HELD;
    int j = n / (HELD / 2), u = n % (HELD / 2);
    return 8 * HELD * j + HELD * lane.g + 2 * u;
}

