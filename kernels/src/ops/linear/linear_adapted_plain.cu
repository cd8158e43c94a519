// A weight with an adapter inside by plain multiply-adds: products and gradients, for activations in f32 and features that are
// not multiples of 8.
//
// Products are those of linear_plain.cu with another B, whose entries are formed as they are read, the sum over the rank in
// order of it. A gradient's block computes a 64×64 tile of G = dyᵀ·x, masks or scales it into 16 KiB of shared memory, and
// leaves the tile's parts of dB = H·Aᵀ and dA = Bᵀ·H to a workspace, as linear_adapted_gradient.cu does.

#include "linear/plain.cuh"

// The adapter inside a weight of `cols` columns. As in cuda/adapted.rs.
struct InsideSide {
    const float *a, *b; // `[rank, cols]`, `[.., rank]`
    int rank, cols, turned, scaled;
    float scale;
    int unused;
};

template <class W> struct Adapted : InsideSide {
    W weight;

    __device__ Adapted(const W& weight, const InsideSide& inside) : InsideSide(inside), weight(weight) {}

    __device__ float operator()(int i, int k) const {
        const int row = turned ? k : i, col = turned ? i : k;
        float w;
        if (!weight.find(row, col, w)) return 0.0f;
        float p = 0.0f;
#pragma unroll 1
        for (int r = 0; r < rank; ++r) p = fmaf(b[size_t(row) * rank + r], a[size_t(r) * cols + col], p);
        return scaled ? w * p : fmaf(scale, p, w);
    }
};

// Rows `first` to `last` of G, whose block blockIdx.x, blockIdx.y of them has.
template <class W>
__device__ void gradient(const Side& dy, const Side& x, const Adapted<W>& inside, int rows, int first, int last,
                         float* parts_a, float* parts_b) {
    __shared__ float h[TILE][TILE + 1];
    const int in = inside.cols, rank = inside.rank, row = first + blockIdx.x * TILE, col = blockIdx.y * TILE;
    PlainSums sums = {};
    const Side none{};
    add_products(sums, dy, x, none, none, row, col, last, in, rows, 0);
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
#pragma unroll
        for (int j = 0; j < EACH; ++j) h[threadIdx.x / 16 + i * 16][threadIdx.x % 16 + j * 16] = sums[i][j];
    }
    __syncthreads();
#pragma unroll 1
    for (int at = threadIdx.x; at < TILE * TILE; at += THREADS) {
        const int r = at / TILE, c = at % TILE;
        float w = 0.0f;
        const bool kept = row + r < last && col + c < in && inside.weight.find(row + r, col + c, w);
        if (!kept || inside.scaled) h[r][c] = kept ? h[r][c] * w : 0.0f;
    }
    __syncthreads();
    const int high = min(TILE, last - row), wide = min(TILE, in - col);
    parts_b += (size_t(blockIdx.y) * (last - first) + blockIdx.x * TILE) * rank;
#pragma unroll 1
    for (int at = threadIdx.x; at < high * rank; at += THREADS) {
        const int r = at / rank, k = at % rank;
        float sum = 0.0f;
#pragma unroll 1
        for (int c = 0; c < wide; ++c) sum = fmaf(h[r][c], inside.a[size_t(k) * in + col + c], sum);
        parts_b[at] = sum;
    }
    parts_a += size_t(blockIdx.x) * rank * in + col;
#pragma unroll 1
    for (int at = threadIdx.x; at < wide * rank; at += THREADS) {
        const int k = at / wide, c = at % wide;
        float sum = 0.0f;
#pragma unroll 1
        for (int r = 0; r < high; ++r) sum = fmaf(h[r][c], inside.b[size_t(row + r) * rank + k], sum);
        parts_a[size_t(k) * in + c] = sum;
    }
}

#define LINEAR(NAME, W)                                                                                                  \
    extern "C" __global__ __launch_bounds__(THREADS) void adapted_plain_##NAME(                                          \
        Side a, W weight, InsideSide inside, int m, int n, int k, const float* __restrict__ bias, Target c) {            \
        const Side none{};                                                                                               \
        product(a, Adapted<W>(weight, inside), none, none, m, n, k, 0, 1.0f, bias, c);                                   \
    }                                                                                                                    \
    extern "C" __global__ __launch_bounds__(THREADS) void adapted_plain_gradient_##NAME(                                 \
        Side dy, Side x, W weight, InsideSide inside, int rows, int first, int last, float* __restrict__ parts_a,        \
        float* __restrict__ parts_b) {                                                                                   \
        gradient(dy, x, Adapted<W>(weight, inside), rows, first, last, parts_a, parts_b);                                \
    }

LINEAR(dense, Side)
LINEAR(packed, PackedSide)
LINEAR(two_four, TwoFourSide)
