// Linear layers whose weight has an adapter inside (adapted.cuh): y = f(x·Vᵀ + b) + r and dx = dy·V with V = W + s·M⊙(B·A) or
// W⊙(B·A), from the same packed copy of W.
//
// Tiles are those of linear_packed.cu. Beside a panel's products, 64 of `mma` a warp, its entries take 12 for each 16 of the
// rank, and 16 values each to be changed: what is fused costs instructions, and no memory but the factors'. 2:4 weights are
// multiplied densely in both directions, for what sparse tensor cores skip is smaller than what a second unpacked form would
// cost: their A would have to be formed in each of the warps that share it.
//
// Traffic: as in linear_packed.cu and linear_two_four.cu, and each of a block's eight warps asks for 96 features' parts of 64
// bytes for each panel and each 16 of the rank; those of a block's own rows or columns stay in L1. `adapted_split` reads f32
// and writes as many bytes, of features to whole tiles.

#include "linear/adapted.cuh"
#include "linear/layer.cuh"
#include "linear/rows.cuh"
#include "linear/split.cuh"

using Tile = Tiling<4, 2, 64, 64, 3>;
using AnyTile = Tiling<4, 2, 32, 64, 3>;
// As in cuda/adapted.rs.
constexpr int SHARED = 96'128, TWO_FOUR_SHARED = 79'360, SPLIT_THREADS = 256;

// Both factors: thread by thread four words of a feature. Entry (feature, rank) of B `[out, rank]` or A `[rank, in]`.
extern "C" __global__ __launch_bounds__(SPLIT_THREADS) void adapted_split(
    const float* __restrict__ a, const float* __restrict__ b, int in, int out, int rank, int width, int height,
    uint4* __restrict__ cols, uint4* __restrict__ rows) {
    const int chunks = (rank + RANKS - 1) / RANKS;
    const size_t of_cols = size_t(chunks) * width * 4, all = of_cols + size_t(chunks) * height * 4;
    const size_t at = size_t(blockIdx.x) * SPLIT_THREADS + threadIdx.x;
    if (at >= all) return;
    const bool is_row = at >= of_cols;
    const size_t word = is_row ? at - of_cols : at;
    const int extent = is_row ? height : width, count = is_row ? out : in;
    const int feature = word / 4 % extent, first = word / 4 / extent * RANKS + word % 4 * 2;
    float x[4] = {};
    if (feature < count) {
#pragma unroll
        for (int i = 0; i < 4; i += 2) {
            const int k = first + i / 2 * 8;
            // A's rows are read by neighbouring quads, B's by the lanes of one.
            const auto of_col = [&](int k) { return k < rank ? a[size_t(k) * in + feature] : 0.0f; };
            const float2 two = is_row ? load_two(b + size_t(feature) * rank, k, rank) : make_float2(of_col(k), of_col(k + 1));
            x[i] = two.x, x[i + 1] = two.y;
        }
    }
    const Split4 parts(x);
    (is_row ? rows : cols)[word] = parts.words;
}

// The block's tile of C `[x.rows, n]`; the weight's panels are made by `weight(first column)`.
template <class T, class S, int BYTES, class Weight, class End>
__device__ void product(const Matrix<T>& x, int n, Weight weight, const float* bias, T* c, const End& end) {
    extern __shared__ __align__(128) unsigned char shared[];
    const Corner corner = banded<S>(blockIdx.x, x.rows, n);
    auto b_side = weight(corner.n);
    AlongK<T, S::THREADS, S::TILE_M> a_side(x, corner.m);
    static_assert(shared_bytes<S, decltype(a_side), decltype(b_side)>() == BYTES, "what the launch asks for");
    Sums<S> sums = {};
    multiply<T, S>(sums, a_side, b_side, panels(x.cols), shared);
    store_layer<T, S>(sums, corner, x.rows, n, bias, c, shared, end);
}

template <class T, class S, bool FORWARD, bool ANY, class End>
__device__ void blocks(const Matrix<T>& x, const Stored& weight, const Inside& inside, const float* bias, T* c, const End& end) {
    const auto operand = [&](int start) { return AdaptedBlocks<T, S, FORWARD, ANY>(weight, inside, start); };
    product<T, S, SHARED>(x, FORWARD ? weight.rows : weight.cols, operand, bias, c, end);
}

template <class T, bool FORWARD, class End>
__device__ void two_four(const Matrix<T>& x, const TwoFour& weight, const Inside& inside, const float* bias, T* c,
                         const End& end) {
    const auto operand = [&](int start) { return AdaptedTwoFour<T, Tile, FORWARD>(weight, inside, start); };
    product<T, Tile, TWO_FOUR_SHARED>(x, FORWARD ? weight.rows : weight.cols, operand, bias, c, end);
}

#define BLOCKS(NAME, T, S, ANY)                                                                                          \
    extern "C" __global__ __launch_bounds__(S::THREADS, 1) void adapted_##NAME##_forward_##T(                            \
        const T* __restrict__ x, const uint2* __restrict__ bits, const unsigned* __restrict__ starts,                    \
        const void* __restrict__ values, Type type, Inside inside, const float* __restrict__ bias, int rows, int in,     \
        int out, T* __restrict__ y, Ending<T> ending) {                                                                  \
        blocks<T, S, true, ANY>({x, rows, in}, {bits, starts, values, type, out, in}, inside, bias, y, ending);          \
    }                                                                                                                    \
    extern "C" __global__ __launch_bounds__(S::THREADS, 1) void adapted_##NAME##_backward_input_##T(                     \
        const T* __restrict__ dy, const uint2* __restrict__ bits, const unsigned* __restrict__ starts,                   \
        const void* __restrict__ values, Type type, Inside inside, int rows, int in, int out, T* __restrict__ dx) {      \
        blocks<T, S, false, ANY>({dy, rows, out}, {bits, starts, values, type, out, in}, inside, nullptr, dx,            \
                                 AsTheyAre());                                                                           \
    }

BLOCKS(packed, bf16, Tile, false)
BLOCKS(any, bf16, AnyTile, true)
BLOCKS(any, f16, AnyTile, true)

#define TWO_FOUR(T)                                                                                                      \
    extern "C" __global__ __launch_bounds__(Tile::THREADS, 1) void adapted_two_four_forward_##T(                         \
        const T* __restrict__ x, const uint4* __restrict__ values, const uint4* __restrict__ places, Type type,          \
        Inside inside, const float* __restrict__ bias, int rows, int in, int out, T* __restrict__ y, Ending<T> ending) { \
        two_four<T, true>({x, rows, in}, {values, places, type, out, in}, inside, bias, y, ending);                      \
    }                                                                                                                    \
    extern "C" __global__ __launch_bounds__(Tile::THREADS, 1) void adapted_two_four_backward_input_##T(                  \
        const T* __restrict__ dy, const uint4* __restrict__ values, const uint4* __restrict__ places, Type type,         \
        Inside inside, int rows, int in, int out, T* __restrict__ dx) {                                                  \
        two_four<T, false>({dy, rows, out}, {values, places, type, out, in}, inside, nullptr, dx, AsTheyAre());          \
    }

TWO_FOUR(bf16)
TWO_FOUR(f16)
