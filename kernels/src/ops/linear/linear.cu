// Dense linear layers on tensor cores: y = f(x·Wᵀ + u·Bᵀ + b) + r and dx = dy·W + v·A in bf16, from the same copy of W, and
// dW += s·dyᵀ·x.
//
// C[m×n] = A[m×k]·B[k×n]. Forward: A = x, B = Wᵀ, so that B[k][n] = W[n][k] and both operands are contiguous along k. Input
// gradient: A = dy, B = W, contiguous along n: `ldmatrix.trans` turns it on its way to the registers. Weight gradient:
// A = dyᵀ, B = x, both turned so; its sums are added to what is there, in f32, in pairs of columns.
//
// A block of four warps computes a 128×128 tile of C, each warp 64×64 of it in 128 accumulators a thread. It walks k in
// panels of 32 through a ring of three stages of shared memory: while the warps multiply one, `cp.async` fills the next
// two, so that the latency of memory (some 800 clocks) hides behind 2 · 512 clocks of products. 48 KiB of shared memory
// and at most 255 registers: two blocks an SM, whose barriers and epilogues hide each other.
//
// Traffic: each block reads its rows of A and its columns of B once, (m·k·⌈n/128⌉ + k·n·⌈m/128⌉)·2 bytes through L2, which
// holds most of it: blocks walk C in bands of 8 tiles, so that those that run together share rows and columns. C is
// written once, in whole lines, through shared memory. 32 multiply-adds are done for each byte read.

#include "linear/layer.cuh"

using Tile = Tiling<2, 2, 64, 64, 3>;

template <class W, class End>
__device__ void product(const Matrix<bf16>& a, int n, const Matrix<bf16>& weight, const float* bias,
                        const Adapter& adapter, bf16* c, const End& end) {
    using Product = Layer<bf16, Tile, W>;
    static_assert(Product::SHARED <= 48 * 1024, "shared memory without opting in to more");
    __shared__ __align__(128) unsigned char shared[Product::SHARED];
    const auto operand = [&](const Corner& corner) { return W(weight, corner.n); };
    Product::product(a, n, operand, bias, adapter, c, shared, end);
}

extern "C" __global__ __launch_bounds__(Tile::THREADS, 2) void linear_forward_bf16(
    const bf16* __restrict__ x, const bf16* __restrict__ weight, const float* __restrict__ bias,
    const float* __restrict__ u, const float* __restrict__ b, int rank, int rows, int in, int out, bf16* __restrict__ y,
    Ending<bf16> ending) {
    using W = AlongK<bf16, Tile::THREADS, Tile::TILE_N>;
    product<W>({x, rows, in}, out, {weight, out, in}, bias, {u, b, Rank(rank)}, y, ending);
}

extern "C" __global__ __launch_bounds__(Tile::THREADS, 2) void linear_backward_input_bf16(
    const bf16* __restrict__ dy, const bf16* __restrict__ weight, const float* __restrict__ v,
    const float* __restrict__ a, int rank, int rows, int in, int out, bf16* __restrict__ dx) {
    using W = AcrossK<bf16, Tile::THREADS, Tile::TILE_N>;
    product<W>({dy, rows, out}, in, {weight, out, in}, nullptr, {v, a, Rank(rank)}, dx, AsTheyAre());
}

template <class T> __device__ void weight_gradient(const Matrix<T>& dy, const Matrix<T>& x, float scale, float* dw) {
    using A = AcrossK<T, Tile::THREADS, Tile::TILE_M>;
    using B = AcrossK<T, Tile::THREADS, Tile::TILE_N>;
    __shared__ __align__(128) unsigned char shared[shared_bytes<Tile, A, B>()];
    const int m = dy.cols, n = x.cols;
    const Corner corner = banded<Tile>(blockIdx.x, m, n);
    A a(dy, corner.m);
    B b(x, corner.n);
    Sums<Tile> sums = {};
    multiply<T, Tile>(sums, a, b, panels(x.rows), shared);
    const Corner mine = warp_corner<Tile>(corner);
    dw += size_t(mine.m) * n + mine.n;
    each_pair<Tile>(sums, [&](int col) {
        return [=](int row, float low, float high) {
            if (mine.m + row >= m || mine.n + col >= n) return;
            float2* pair = reinterpret_cast<float2*>(dw + size_t(row) * n + col);
            const float2 before = *pair;
            *pair = make_float2(fmaf(scale, low, before.x), fmaf(scale, high, before.y));
        };
    });
}

#define WEIGHT_GRADIENT(T)                                                                                               \
    extern "C" __global__ __launch_bounds__(Tile::THREADS, 2) void linear_weight_gradient_##T(                           \
        const T* __restrict__ dy, const T* __restrict__ x, int rows, int in, int out, float scale,                       \
        float* __restrict__ dw) {                                                                                        \
        weight_gradient<T>({dy, rows, out}, {x, rows, in}, scale, dw);                                                   \
    }

WEIGHT_GRADIENT(bf16)
WEIGHT_GRADIENT(f16)
