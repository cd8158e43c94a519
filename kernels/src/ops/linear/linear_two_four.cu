// Linear layers with a 2:4 weight: y = f(x·Wᵀ + u·Bᵀ + b) + r on sparse tensor cores, which skip the zeros, and
// dx = dy·W + v·A on dense ones, from the same copy of W (two_four.cuh).
//
// Forward, a block of eight warps computes 256 features of 128 rows, each warp 64×64 of them. `mma.sp` does the products of
// a panel in half the time of the dense ones: 512 clocks of an A100 for 256·128·32 of them. Passes over shared memory in that
// time: 400 to read (each of eight warps 2 KiB of W and 256 bytes of places, and 4 KiB of x), 136 for `cp.async` to write, 536
// in all: shared memory is the limit, just before the products. Beside them go 17 KiB a panel through L2, 34 bytes a clock and
// SM, of some 47; a tile of 128×256 would take 41.
//
// Four stages of 9 KiB of W and 8 KiB of x: 68 KiB of shared memory. The adapter's product is dense, and follows in its own
// ring of 72 KiB. The input gradient is that of linear_packed.cu, with half of its instructions to unpack: 88 KiB. Some 205
// registers a thread, one block an SM.
//
// Traffic: W moves once for each 128 rows of x (forward) or 256 of dy, 9 bits an entry.

#include "linear/layer.cuh"
#include "linear/two_four.cuh"

using Sparse = Tiling<4, 2, 64, 64, 4>;
using Dense = Tiling<4, 2, 64, 64, 3>;
constexpr int FORWARD_SHARED = 73'728, BACKWARD_SHARED = 90'112; // as in cuda/two_four.rs

// The block's tile of yᵀ: rows of W, columns of xᵀ.
template <class T>
__device__ void forward(const Matrix<T>& x, const TwoFour& weight, const float* bias, const Adapter& adapter, T* y,
                        const Ending<T>& ending) {
    using W = Compressed<Sparse>;
    using X = AlongK<T, Sparse::THREADS, Sparse::TILE_N>;
    using Up = Split<T, Dense::THREADS, Dense::TILE_M, true, 2>;
    using Down = Split<T, Dense::THREADS, Dense::TILE_N, true, 1>;
    static_assert(Sparse::STAGES * (W::BYTES + X::BYTES) <= FORWARD_SHARED, "what the launch asks for");
    static_assert(shared_bytes<Dense, Up, Down>() == FORWARD_SHARED, "what the launch asks for");
    extern __shared__ __align__(128) unsigned char shared[];
    const Corner corner = banded<Sparse>(blockIdx.x, weight.rows, x.rows);
    Sums<Sparse> sums = {};
    W w(weight, corner.m);
    X x_side(x, corner.n);
    multiply_sparse<T, Sparse>(sums, w, x_side, panels(x.cols), weight.type != Half<T>::TYPE, shared);
    if (adapter.rank.rank > 0) {
        Up up(adapter.up, weight.rows, adapter.rank, corner.m);
        Down down(adapter.down, x.rows, adapter.rank, corner.n);
        multiply<T, Dense>(sums, up, down, adapter.rank.panels(), shared);
    }
    const auto add_bias = [&](int row) {
        const float b = bias && row < weight.rows ? bias[row] : 0.0f;
        return [=](float& low, float& high) { low += b, high += b; };
    };
    store_transposed<T, Sparse>(sums, corner, weight.rows, x.rows, shared, y, add_bias, ending);
}

template <class T>
__device__ void backward_input(const Matrix<T>& dy, const TwoFour& weight, const Adapter& adapter, T* dx) {
    using W = Unpacked<T, Dense>;
    using Product = Layer<T, Dense, W>;
    static_assert(Product::SHARED == BACKWARD_SHARED, "what the launch asks for");
    extern __shared__ __align__(128) unsigned char shared[];
    const auto operand = [&](const Corner& corner) { return W(weight, corner.n); };
    Product::product(dy, weight.cols, operand, nullptr, adapter, dx, shared, AsTheyAre());
}

#define LINEAR(T)                                                                                                        \
    extern "C" __global__ __launch_bounds__(Sparse::THREADS, 1) void linear_two_four_forward_##T(                        \
        const T* __restrict__ x, const uint4* __restrict__ values, const uint4* __restrict__ places, Type type,          \
        const float* __restrict__ bias, const float* __restrict__ u, const float* __restrict__ b, int rank, int rows,    \
        int in, int out, T* __restrict__ y, Ending<T> ending) {                                                          \
        forward<T>({x, rows, in}, {values, places, type, out, in}, bias, {u, b, Rank(rank)}, y, ending);                 \
    }                                                                                                                    \
    extern "C" __global__ __launch_bounds__(Dense::THREADS, 1) void linear_two_four_backward_input_##T(                  \
        const T* __restrict__ dy, const uint4* __restrict__ values, const uint4* __restrict__ places, Type type,         \
        const float* __restrict__ v, const float* __restrict__ a, int rank, int rows, int in, int out,                   \
        T* __restrict__ dx) {                                                                                            \
        backward_input<T>({dy, rows, out}, {values, places, type, out, in}, {v, a, Rank(rank)}, dx);                     \
    }

LINEAR(bf16)
LINEAR(f16)
