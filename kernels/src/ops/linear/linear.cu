// Dense linear layers on tensor cores: y = x·Wᵀ + b, and dx = dy·W, from the same copy of W.
//
// C[m×n] = A[m×k]·B, A row-major. Forward: A = x, B = Wᵀ, so that B[k][n] = W[n][k] and both operands are contiguous along
// k. Input gradient: A = dy, B = W, contiguous along n: `ldmatrix.trans` turns it on its way to the registers.
//
// A block of four warps computes a 128×128 tile of C, each warp 64×64 of it in 128 accumulators a thread. It walks k in
// panels of 32 through a ring of three stages of shared memory: while the warps multiply one, `cp.async` fills the next
// two, so that the latency of memory (some 800 clocks) hides behind 2 · 512 clocks of products. 48 KiB of shared memory
// and at most 255 registers: two blocks an SM, whose barriers and epilogues hide each other.
//
// Traffic: each block reads its rows of A and its columns of B once, (m·k·⌈n/128⌉ + k·n·⌈m/128⌉)·2 bytes through L2, which
// holds most of it: blocks walk C in bands of 8 tiles, so that those that run together share rows and columns. C is
// written once, in whole lines, through shared memory. 64 multiply-adds are done for each byte read.

#include "cuda/product.cuh"

using Tile = Tiling<2, 2, 64, 64, 3>;

// C = A·B + bias, rounded.
template <class T, class B, bool EVEN>
__device__ void product(const Matrix<T>& a, const Matrix<T>& b, int n, const float* bias, T* c) {
    using A = AlongK<T, Tile::THREADS, Tile::TILE_M, EVEN>;
    static_assert(shared_bytes<Tile, A, B>() <= 48 * 1024, "shared memory without opting in to more");
    __shared__ __align__(128) unsigned char shared[shared_bytes<Tile, A, B>()];
    const Corner corner = banded<Tile>(blockIdx.x, a.rows, n);
    A a_side(a, corner.m);
    B b_side(b, corner.n);
    Sums<Tile> sums = {};
    multiply<T, Tile>(sums, a_side, b_side, panels(a.cols), shared);
    store_rows<T, Tile, EVEN>(sums, corner, a.rows, n, shared, c, [&](int col) {
        const float b0 = bias && col < n ? bias[col] : 0.0f, b1 = bias && col + 1 < n ? bias[col + 1] : 0.0f;
        return [=](int, float& low, float& high) { low += b0, high += b1; };
    });
}

// Two blocks an SM. The names that end in `_odd` take features that are not multiples of 8.
#define LINEAR(NAME, T, EVEN)                                                                                            \
    extern "C" __global__ __launch_bounds__(Tile::THREADS, 2) void linear_forward_##NAME(                                \
        const T* __restrict__ x, const T* __restrict__ weight, const float* __restrict__ bias, int rows, int in,         \
        int out, T* __restrict__ y) {                                                                                    \
        using B = AlongK<T, Tile::THREADS, Tile::TILE_N, EVEN>;                                                          \
        product<T, B, EVEN>(Matrix<T>{x, rows, in}, Matrix<T>{weight, out, in}, out, bias, y);                           \
    }                                                                                                                    \
    extern "C" __global__ __launch_bounds__(Tile::THREADS, 2) void linear_backward_input_##NAME(                         \
        const T* __restrict__ dy, const T* __restrict__ weight, int rows, int in, int out, T* __restrict__ dx) {         \
        using B = AcrossK<T, Tile::THREADS, Tile::TILE_N, EVEN>;                                                         \
        product<T, B, EVEN>(Matrix<T>{dy, rows, out}, Matrix<T>{weight, out, in}, in, nullptr, dx);                      \
    }

LINEAR(bf16, bf16, true)
LINEAR(f16, f16, true)
LINEAR(bf16_odd, bf16, false)
LINEAR(f16_odd, f16, false)
