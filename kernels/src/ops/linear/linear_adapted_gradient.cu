// Gradients of an adapter inside a weight: with G = dyᵀ·x and H = M⊙G (or W⊙G) parts of dB = H·Aᵀ and dA = Bᵀ·H.
//
// A block of four warps computes a 128×128 tile of G as dW is computed (linear.cu), over all tokens, each warp 64×64 of it in 128
// accumulators a thread. There they are masked (masked.cuh), split into two parts of bf16 in the same registers, which lie as
// the left operand of a product, and multiplied with A's rows, 16 of the rank at a time; each 8×8 turned once, they are the
// right operand of the product with B. Of the four products of the parts three are taken (split.cuh): as precise as f32
// factors but for 2⁻¹⁶, whatever the type of x. G never leaves the registers.
//
// Sums of a tile's two warps that share rows (or columns) are added through shared memory, and left to a workspace: `[tiles
// beside each other][rows][rank]` and `[tiles below each other][rank][in]`. `lora_gradient_add` adds those in order: no atomics,
// the same bits in every run. A launch takes some rows of tiles, as many as the host has workspace for, from `first` on.
//
// Traffic of a tile: 512 bytes of x and dy a token, 2 KiB of A and B and 1 KiB to the workspace for each of the rank, and the masks
// once, or a dense weight: in 16 bits a quad's 8 entries are half a sector, which is asked for twice, the second time of L1. Beside
// 1 MiB of 2,048 tokens that is 64 KiB, and the products take longer than either. Projections are 192 of `mma` a warp and 16 of the
// rank, those of three panels of G: at 2,048 tokens 5 % of it.

#include "linear/masked.cuh"
#include "linear/rows.cuh"
#include "linear/split.cuh"

using Tile = Tiling<2, 2, 64, 64, 3>; // as in cuda/adapted.rs
constexpr int RANKS = 16;             // of the rank, together

// What a warp has of H: of rows 8·i + … and columns 8·j + … two neighbours' high and low parts a thread.
using Parts = Split2[Tile::WARP_M / 8][Tile::WARP_N / 8];

// sums += left·right, both in parts: [high, low] of left, `right` the high parts of two k of 8, then the low ones.
__device__ inline void multiply_parts(float (&sums)[4], const unsigned (&high)[4], const unsigned (&low)[4], const uint4& right) {
    multiply_add<bf16>(sums, low, right.x, right.y);
    multiply_add<bf16>(sums, high, right.z, right.w);
    multiply_add<bf16>(sums, high, right.x, right.y);
}

// Adds what the second of two warps that share a part of an output has to what the first has: true in the first. COUNT sums a
// thread, `team` of two.
template <int COUNT> __device__ bool add_other(float (&sums)[COUNT][4], unsigned char* shared, unsigned team, bool first) {
    float4* place = reinterpret_cast<float4*>(shared) + team * COUNT * 32 + threadIdx.x % 32;
    __syncthreads();
    if (!first) {
#pragma unroll
        for (int i = 0; i < COUNT; ++i) place[i * 32] = make_float4(sums[i][0], sums[i][1], sums[i][2], sums[i][3]);
    }
    __syncthreads();
    if (!first) return false;
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
        const float4 other = place[i * 32];
        sums[i][0] += other.x, sums[i][1] += other.y, sums[i][2] += other.z, sums[i][3] += other.w;
    }
    return true;
}

// The adapter and what is left of its gradients, for the rows of G from `first` to `last`.
struct Projection {
    const float *a, *b;
    float *parts_a, *parts_b; // of this block's row, and column, of tiles
    int rank, in, first, last;
};

// H·Aᵀ of the warp's part, whose corner is `mine`.
__device__ inline void project_on_b(const Parts& h, const Projection& to, const Corner& mine, unsigned char* shared) {
    constexpr int ROWS = Tile::WARP_M / 16;
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll 1
    for (int from = 0; from < to.rank; from += RANKS) {
        float sums[ROWS * 2][4] = {}; // 16 rows and 8 of the rank each
#pragma unroll
        for (int j = 0; j < Tile::WARP_N / 16; ++j) {
            uint4 factor[2];
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                const int k = from + e * 8 + lane / 4, col = mine.n + j * 16 + lane % 4 * 2;
                const float* row = to.a + size_t(k) * to.in + col;
                // Columns are a multiple of 8: neighbours are there together.
                const bool here = k < to.rank && col < to.in, next = k < to.rank && col + 8 < to.in;
                const float2 x = here ? *reinterpret_cast<const float2*>(row) : make_float2(0.0f, 0.0f);
                const float2 y = next ? *reinterpret_cast<const float2*>(row + 8) : make_float2(0.0f, 0.0f);
                factor[e] = Split4({x.x, x.y, y.x, y.y}).words;
            }
#pragma unroll
            for (int i = 0; i < ROWS; ++i) {
                const Split2 &p = h[i * 2][j * 2], &q = h[i * 2 + 1][j * 2];
                const Split2 &r = h[i * 2][j * 2 + 1], &s = h[i * 2 + 1][j * 2 + 1];
                const unsigned high[4] = {p.high, q.high, r.high, s.high}, low[4] = {p.low, q.low, r.low, s.low};
#pragma unroll
                for (int e = 0; e < 2; ++e) multiply_parts(sums[i * 2 + e], high, low, factor[e]);
            }
        }
        if (!add_other(sums, shared, warp / Tile::WARPS_N, warp % Tile::WARPS_N == 0)) continue;
#pragma unroll
        for (int i = 0; i < ROWS * 2; ++i) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int row = mine.m + i / 2 * 16 + half * 8 + lane / 4, k = from + i % 2 * 8 + lane % 4 * 2;
                float* out = to.parts_b + size_t(row - to.first) * to.rank;
                if (row < to.last) store_two(out, k, to.rank, sums[i][half * 2], sums[i][half * 2 + 1]);
            }
        }
    }
}

// Bᵀ·H, h being turned: of rows 8·i + … and columns 8·j + … a thread has column l/4, and rows 2·(l%4) and the next.
__device__ inline void project_on_a(const Parts& h, const Projection& to, const Corner& mine, unsigned char* shared) {
    constexpr int COLS = Tile::WARP_N / 8;
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll 1
    for (int from = 0; from < to.rank; from += RANKS) {
        float sums[COLS][4] = {}; // 16 of the rank and 8 columns each
#pragma unroll
        for (int i = 0; i < Tile::WARP_M / 16; ++i) {
            const int row = mine.m + i * 16 + lane % 4 * 2, k = from + lane / 4;
            const auto entry = [&](int below, int right) {
                const bool there = row + below < to.last && k + right < to.rank;
                return there ? to.b[size_t(row + below) * to.rank + k + right] : 0.0f;
            };
            const Split2 p(entry(0, 0), entry(1, 0)), q(entry(0, 8), entry(1, 8));
            const Split2 r(entry(8, 0), entry(9, 0)), s(entry(8, 8), entry(9, 8));
            const unsigned high[4] = {p.high, q.high, r.high, s.high}, low[4] = {p.low, q.low, r.low, s.low};
#pragma unroll
            for (int j = 0; j < COLS; ++j) {
                const Split2 &upper = h[i * 2][j], &lower = h[i * 2 + 1][j];
                multiply_parts(sums[j], high, low, make_uint4(upper.high, lower.high, upper.low, lower.low));
            }
        }
        if (!add_other(sums, shared, warp % Tile::WARPS_N, warp / Tile::WARPS_N == 0)) continue;
#pragma unroll
        for (int j = 0; j < COLS; ++j) {
            const int col = mine.n + j * 8 + lane % 4 * 2;
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int k = from + half * 8 + lane / 4;
                if (k >= to.rank || col >= to.in) continue;
                float2* out = reinterpret_cast<float2*>(to.parts_a + size_t(k) * to.in + col);
                *out = make_float2(sums[j][half * 2], sums[j][half * 2 + 1]);
            }
        }
    }
}

// Of rows `first` to `last` of G, whole tiles but for the last.
template <class T, class Mask>
__device__ void gradient(const Matrix<T>& dy, const Matrix<T>& x, const Mask& mask, bool scaled, const float* a,
                         const float* b, int rank, int first, int last, float* parts_a, float* parts_b) {
    using A = AcrossK<T, Tile::THREADS, Tile::TILE_M>;
    using B = AcrossK<T, Tile::THREADS, Tile::TILE_N>;
    __shared__ __align__(128) unsigned char shared[shared_bytes<Tile, A, B>()];
    const int n = x.cols;
    Corner corner = banded<Tile>(blockIdx.x, last - first, n);
    parts_a += size_t(corner.m / Tile::TILE_M) * rank * n;
    parts_b += size_t(corner.n / Tile::TILE_N) * (last - first) * rank;
    corner.m += first;
    const Corner mine = warp_corner<Tile>(corner);
    Parts h;
    {
        A a_side(dy, corner.m);
        B b_side(x, corner.n);
        Sums<Tile> sums = {};
        multiply<T, Tile>(sums, a_side, b_side, panels(x.rows), shared);
        mask.template apply<Tile>(sums, mine, scaled);
#pragma unroll
        for (int i = 0; i < Tile::WARP_M / 8; ++i) {
#pragma unroll
            for (int j = 0; j < Tile::WARP_N / 8; ++j) {
                const float* of = &sums[i / 2][j][i % 2 * 2];
                h[i][j] = Split2(of[0], of[1]);
            }
        }
    }
    const Projection to{a, b, parts_a, parts_b, rank, n, first, last};
    project_on_b(h, to, mine, shared);
#pragma unroll
    for (int i = 0; i < Tile::WARP_M / 8; ++i) {
#pragma unroll
        for (int j = 0; j < Tile::WARP_N / 8; ++j) {
            h[i][j].high = transpose_matrix(h[i][j].high), h[i][j].low = transpose_matrix(h[i][j].low);
        }
    }
    project_on_a(h, to, mine, shared);
}

#define OPERANDS(T)                                                                                                      \
    const T *__restrict__ dy, const T *__restrict__ x, const float *__restrict__ a, const float *__restrict__ b,          \
        int rows, int in, int out, int rank, int scaled, int first, int last, float *__restrict__ parts_a,               \
        float *__restrict__ parts_b

#define GRADIENT(T)                                                                                                      \
    extern "C" __global__ __launch_bounds__(Tile::THREADS, 2) void adapted_gradient_packed_##T(                          \
        const uint2* __restrict__ bits, const unsigned* __restrict__ starts, const void* __restrict__ values, Type type, \
        OPERANDS(T)) {                                                                                                   \
        const BlockMask mask{{bits, starts, values, type, out, in}};                                                     \
        gradient<T>({dy, rows, out}, {x, rows, in}, mask, scaled, a, b, rank, first, last, parts_a, parts_b);            \
    }                                                                                                                    \
    extern "C" __global__ __launch_bounds__(Tile::THREADS, 2) void adapted_gradient_two_four_##T(                        \
        const uint4* __restrict__ values, const uint4* __restrict__ places, Type type, OPERANDS(T)) {                    \
        const TwoFourMask mask{{values, places, type, out, in}};                                                         \
        gradient<T>({dy, rows, out}, {x, rows, in}, mask, scaled, a, b, rank, first, last, parts_a, parts_b);            \
    }                                                                                                                    \
    extern "C" __global__ __launch_bounds__(Tile::THREADS, 2) void adapted_gradient_dense_##T(                           \
        const void* __restrict__ values, Type type, OPERANDS(T)) {                                                       \
        const DenseMask mask{values, type, out, in};                                                                     \
        gradient<T>({dy, rows, out}, {x, rows, in}, mask, scaled, a, b, rank, first, last, parts_a, parts_b);            \
    }

GRADIENT(bf16)
GRADIENT(f16)
