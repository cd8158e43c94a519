// Linear layers with a packed sparse weight on tensor cores: y = f(x·Wᵀ + u·Bᵀ + b) + r and dx = dy·W + v·A, from the same
// copy of W.
//
// The products are the dense ones (linear.cu) with another B: what moves is the packed weight, 9 bits an entry at half density
// instead of 16, and it is unpacked once in a block, for all of its rows of A (packed.cuh). A zero is multiplied: tensor cores
// can't skip one of any mask.
//
// A block of eight warps computes a 256×128 tile of C, each warp 64×64 of it: the more rows share what is unpacked, the
// better. What bounds a panel's product is the instructions around it, of which a scheduler has two warps to choose from: on an
// H100 a panel takes 2,400 cycles for 830 of tensor cores (benches/README.md), and was 3,100 before its B was unpacked in
// pieces between the products (cuda/product.cuh).
//
// Three stages of 16 KiB of A and 8.6 KiB of packed B, and two unpacked panels of 8 KiB with 2 KiB of notes: 94 KiB of shared
// memory and 255 registers, one block an SM. A stage is filled while one is unpacked and one multiplied, so that the latency
// of memory hides behind a panel's products.
//
// The kernels named `any` take what is less common: weights in f32, or dense ones in another type than x (trainable ones), and
// activations in f16. Blocks have half the rows, because values in f32 need more room, and the same shared memory.
//
// Traffic: each block reads its rows of A once and its columns of B once, packed.

#include "linear/layer.cuh"
#include "linear/packed.cuh"

using Tile = Tiling<4, 2, 64, 64, 3>;
using AnyTile = Tiling<4, 2, 32, 64, 3>;
constexpr int SHARED = 96'128; // as in cuda/products.rs

template <class T, class S, bool FORWARD, bool ANY, class End>
__device__ void product(const Matrix<T>& a, const Stored& weight, const float* bias, const Adapter& adapter, T* c,
                        const End& end) {
    using W = Packed<T, S, FORWARD, ANY>;
    using Product = Layer<T, S, W>;
    static_assert(Product::SHARED == SHARED, "what the launch asks for");
    extern __shared__ __align__(128) unsigned char shared[];
    const auto operand = [&](const Corner& corner) { return W(weight, corner.n); };
    Product::product(a, FORWARD ? weight.rows : weight.cols, operand, bias, adapter, c, shared, end);
}

#define LINEAR(NAME, T, S, ANY)                                                                                          \
    extern "C" __global__ __launch_bounds__(S::THREADS, 1) void linear_##NAME##_forward_##T(                             \
        const T* __restrict__ x, const uint2* __restrict__ bits, const unsigned* __restrict__ starts,                    \
        const void* __restrict__ values, Type type, const float* __restrict__ bias, const float* __restrict__ u,         \
        const float* __restrict__ b, int rank, int rows, int in, int out, T* __restrict__ y, Ending<T> ending) {         \
        product<T, S, true, ANY>({x, rows, in}, {bits, starts, values, type, out, in}, bias, {u, b, Rank(rank)}, y,      \
                                 ending);                                                                                \
    }                                                                                                                    \
    extern "C" __global__ __launch_bounds__(S::THREADS, 1) void linear_##NAME##_backward_input_##T(                      \
        const T* __restrict__ dy, const uint2* __restrict__ bits, const unsigned* __restrict__ starts,                   \
        const void* __restrict__ values, Type type, const float* __restrict__ v, const float* __restrict__ a, int rank,  \
        int rows, int in, int out, T* __restrict__ dx) {                                                                 \
        product<T, S, false, ANY>({dy, rows, out}, {bits, starts, values, type, out, in}, nullptr, {v, a, Rank(rank)},   \
                                  dx, AsTheyAre());                                                                      \
    }

LINEAR(packed, bf16, Tile, false)
LINEAR(any, bf16, AnyTile, true)
LINEAR(any, f16, AnyTile, true)
