// The head and its loss, a chunk of rows at a time: logits x = h·Wᵀ + z·Bᵀ, each row's loss, dx, and dh = g·(dx·W + u·A).
//
// Logits are the products of linear.cu (and, for weights in another type than h, or packed, those of linear_packed.cu), with
// another end: a warp has 64 logits of each of its rows in registers, where their largest, m, and Σ exp(x − m) cost a quad two
// shuffles each. These statistics, 8 bytes for 64 logits, are all that a loss needs: without gradients no logit is ever
// written. `head_losses` merges a row's statistics, and with gradients `head_gradient` reads each logit once, in f32, and
// writes dx once, in 16 bits: 6 bytes a logit besides the 4 of the product, where another pass for the statistics would take
// 4 more.
//
// dx = SCALE·(p − [v = target]), rounded: g goes into what is computed from it, in f32. SCALE, a power of two, keeps the
// probabilities of large vocabularies in f16's range: what is lost of one is at most 2⁻³³, of 2¹⁷ together less than the
// target's rounding, 2⁻¹².
//
// dh sums over the whole vocabulary, and a chunk's dh has few tiles (18 for 384 rows of 768 features, where an A100 holds
// 216 blocks): the vocabulary is cut into parts whose sums `head_hidden_gradient_add` adds in order. How many is the
// shape's choice, so that every GPU computes the same.
//
// Traffic: of the products, as linear.cu and linear_packed.cu say, and of their results in f32, in whole sectors: a quad
// writes 8 neighbours. Registers and shared memory are those kernels', too; the others are bound by memory and need few.

#include "cuda/reduce.cuh"
#include "linear/layer.cuh"
#include "linear/packed.cuh"

using Tile = Tiling<2, 2, 64, 64, 3>;    // as in linear.cu
using AnyTile = Tiling<4, 2, 32, 64, 3>; // as in linear_packed.cu
constexpr int SHARED = 96'128;           // as in linear_packed.cu

// As in cuda.rs.
constexpr int COLUMNS = 64; // logits of a row in one statistic
constexpr int THREADS = 256, TURNS = 4;
constexpr float SCALE = 256.0f;

constexpr float LEAST = -3.402823466e38f, LOG2_E = 1.44269504088896341f;

// The largest of some logits, and Σ exp(logit − largest).
struct __align__(8) Statistic {
    float largest, total;
};

// What turns a row's logits into their gradients.
struct __align__(8) Softmax {
    float largest;
    float factor; // SCALE over the total; 0 in an ignored row
};

__device__ inline float exponential(float x, float largest) { return exp2f((x - largest) * LOG2_E); }

// Two neighbours in one access, for the compiler makes two of some float2s: a quad then writes a sector, and not two halves.
__device__ inline void store_pair(float* to, float low, float high) {
    const unsigned long long upper = __float_as_uint(high);
    *reinterpret_cast<unsigned long long*>(to) = upper << 32 | __float_as_uint(low);
}

template <bool MAX> __device__ float of_quad(float x) {
#pragma unroll
    for (int distance = 1; distance < 4; distance *= 2) {
        const float other = __shfl_xor_sync(0xffffffff, x, distance);
        x = MAX ? fmaxf(x, other) : x + other;
    }
    return x;
}

// Where logits go: themselves `[rows, vocab]` where they are wanted, their statistics `[⌈vocab / COLUMNS⌉, rows]`, and each
// row's logit of its target.
struct Logits {
    float* logits;
    Statistic* statistics;
    float* of_targets;
    const unsigned* targets;
    int rows, vocab;
};

// Takes a warp's sums there. The vocabulary is a multiple of 8: a pair of columns is inside, or not.
template <class S> __device__ void take(Sums<S>& sums, const Corner& corner, const Logits& to) {
    static_assert(S::WARP_N == COLUMNS, "a warp's columns make one statistic");
    const Corner mine = warp_corner<S>(corner);
    if (mine.n >= to.vocab) return;
    const unsigned lane = threadIdx.x % 32;
    const int col = mine.n + lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < S::WARP_M / 16; ++i) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int row = mine.m + i * 16 + half * 8 + lane / 4;
            float largest = LEAST, total = 0.0f;
#pragma unroll
            for (int j = 0; j < S::WARP_N / 8; ++j) {
                const float low = sums[i][j][2 * half], high = sums[i][j][2 * half + 1];
                if (col + j * 8 < to.vocab) largest = fmaxf(largest, fmaxf(low, high));
            }
            largest = of_quad<true>(largest);
#pragma unroll
            for (int j = 0; j < S::WARP_N / 8; ++j) {
                const float low = sums[i][j][2 * half], high = sums[i][j][2 * half + 1];
                if (col + j * 8 < to.vocab) total += exponential(low, largest) + exponential(high, largest);
            }
            total = of_quad<false>(total);
            if (row >= to.rows) continue;
            if (lane % 4 == 0) to.statistics[size_t(mine.n / COLUMNS) * to.rows + row] = {largest, total};
            const unsigned target = to.targets[row];
            float* out = to.logits + (to.logits ? size_t(row) * to.vocab : 0);
#pragma unroll
            for (int j = 0; j < S::WARP_N / 8; ++j) {
                const int at = col + j * 8;
                const float low = sums[i][j][2 * half], high = sums[i][j][2 * half + 1];
                if (at >= to.vocab) continue;
                if (to.logits) store_pair(out + at, low, high);
                if (target == unsigned(at)) to.of_targets[row] = low;
                if (target == unsigned(at) + 1) to.of_targets[row] = high;
            }
        }
    }
}

// The block's tile of the logits of h.
template <class T, class S, class W, class Weight>
__device__ void logits(const Matrix<T>& h, Weight weight, const Adapter& adapter, const Logits& to, unsigned char* shared) {
    using Product = Layer<T, S, W>;
    const Corner corner = banded<S>(blockIdx.x, h.rows, to.vocab);
    Sums<S> sums = {};
    Product::multiply(sums, {h, corner.m}, weight(corner), panels(h.cols), h.rows, to.vocab, corner, adapter, shared);
    take<S>(sums, corner, to);
}

// Part blockIdx.z of the block's tile of dx·W + u·A `[dx.rows, dim]`; the adapter's is in the last.
template <class T, class S, class W, class Weight>
__device__ void hidden_gradient(const Matrix<T>& dx, int dim, Weight weight, const Adapter& adapter, float* parts,
                                unsigned char* shared) {
    using X = Later<AlongK<T, S::THREADS, S::TILE_M>>;
    using Product = Layer<T, S, Later<W>, X>;
    const unsigned long long steps = panels(dx.cols);
    const int part = blockIdx.z, begin = steps * part / gridDim.z, end = steps * (part + 1) / gridDim.z;
    const bool last = part + 1 == gridDim.z;
    const Corner corner = banded<S>(blockIdx.x, dx.rows, dim);
    Sums<S> sums = {};
    Product::multiply(sums, {{dx, corner.m}, begin}, {weight(corner), begin}, end - begin, dx.rows, dim, corner,
                      {adapter.down, adapter.up, Rank(last ? adapter.rank.rank : 0)}, shared);
    const Corner mine = warp_corner<S>(corner);
    float* to = parts + size_t(part) * dx.rows * dim + size_t(mine.m) * dim + mine.n;
    each_pair<S>(sums, [&](int col) {
        return [=](int row, float low, float high) {
            if (mine.m + row >= dx.rows || mine.n + col >= dim) return;
            store_pair(to + size_t(row) * dim + col, low, high);
        };
    });
}

// W in h's type: two blocks an SM.
extern "C" __global__ __launch_bounds__(Tile::THREADS, 2) void head_logits_bf16(
    const bf16* __restrict__ h, const bf16* __restrict__ weight, const float* __restrict__ z, const float* __restrict__ b,
    int rank, int dim, Logits to) {
    using W = AlongK<bf16, Tile::THREADS, Tile::TILE_N>;
    __shared__ __align__(128) unsigned char shared[Layer<bf16, Tile, W>::SHARED];
    const auto operand = [&](const Corner& corner) { return W({weight, to.vocab, dim}, corner.n); };
    logits<bf16, Tile, W>({h, to.rows, dim}, operand, {z, b, Rank(rank)}, to, shared);
}

extern "C" __global__ __launch_bounds__(Tile::THREADS, 2) void head_hidden_gradient_bf16(
    const bf16* __restrict__ dx, const bf16* __restrict__ weight, const float* __restrict__ u, const float* __restrict__ a,
    int rank, int rows, int dim, int vocab, float* __restrict__ parts) {
    using W = AcrossK<bf16, Tile::THREADS, Tile::TILE_N>;
    __shared__ __align__(128) unsigned char shared[Layer<bf16, Tile, W>::SHARED];
    const auto operand = [&](const Corner& corner) { return W({weight, vocab, dim}, corner.n); };
    hidden_gradient<bf16, Tile, W>({dx, rows, vocab}, dim, operand, {u, a, Rank(rank)}, parts, shared);
}

// Any weight.
#define ANY(T)                                                                                                           \
    extern "C" __global__ __launch_bounds__(AnyTile::THREADS, 1) void head_any_logits_##T(                               \
        const T* __restrict__ h, const uint2* __restrict__ bits, const unsigned* __restrict__ starts,                    \
        const void* __restrict__ values, Type type, const float* __restrict__ z, const float* __restrict__ b, int rank,  \
        int dim, Logits to) {                                                                                            \
        using W = Packed<T, AnyTile, true, true>;                                                                        \
        static_assert(Layer<T, AnyTile, W>::SHARED == SHARED, "what the launch asks for");                               \
        extern __shared__ __align__(128) unsigned char shared[];                                                         \
        const Stored weight{bits, starts, values, type, to.vocab, dim};                                                  \
        const auto operand = [&](const Corner& corner) { return W(weight, corner.n); };                                  \
        logits<T, AnyTile, W>({h, to.rows, dim}, operand, {z, b, Rank(rank)}, to, shared);                               \
    }                                                                                                                    \
    extern "C" __global__ __launch_bounds__(AnyTile::THREADS, 1) void head_any_hidden_gradient_##T(                      \
        const T* __restrict__ dx, const uint2* __restrict__ bits, const unsigned* __restrict__ starts,                   \
        const void* __restrict__ values, Type type, const float* __restrict__ u, const float* __restrict__ a, int rank,  \
        int rows, int dim, int vocab, float* __restrict__ parts) {                                                       \
        using W = Packed<T, AnyTile, false, true>;                                                                       \
        static_assert(Layer<T, AnyTile, W>::SHARED == SHARED, "what the launch asks for");                               \
        extern __shared__ __align__(128) unsigned char shared[];                                                         \
        const Stored weight{bits, starts, values, type, vocab, dim};                                                     \
        const auto operand = [&](const Corner& corner) { return W(weight, corner.n); };                                  \
        hidden_gradient<T, AnyTile, W>({dx, rows, vocab}, dim, operand, {u, a, Rank(rank)}, parts, shared);              \
    }

ANY(bf16)
ANY(f16)

// dh[i] = scale · Σ of part p's i, p rising, for `len` of them, four a thread.
template <class T>
__device__ void add_parts(const float* parts, int count, size_t len, float scale, T* d_hidden) {
    const size_t i = (size_t(blockIdx.x) * THREADS + threadIdx.x) * 4;
    if (i >= len) return;
    float4 sum = {};
#pragma unroll 4
    for (int p = 0; p < count; ++p) {
        const float4 x = *reinterpret_cast<const float4*>(parts + p * len + i);
        sum.x += x.x, sum.y += x.y, sum.z += x.z, sum.w += x.w;
    }
    Vector<T, 4> out;
    out.set(0, scale * sum.x), out.set(1, scale * sum.y), out.set(2, scale * sum.z), out.set(3, scale * sum.w);
    out.store(d_hidden + i);
}

#define ADD_PARTS(T)                                                                                                     \
    extern "C" __global__ __launch_bounds__(THREADS) void head_hidden_gradient_add_##T(                                  \
        const float* __restrict__ parts, int count, unsigned long long len, float scale, T* __restrict__ d_hidden) {     \
        add_parts(parts, count, len, scale, d_hidden);                                                                   \
    }

ADD_PARTS(bf16)
ADD_PARTS(f16)

// The statistics of logits that are there already, a warp for each.
extern "C" __global__ __launch_bounds__(THREADS) void head_statistics(Logits of) {
    const int count = (of.vocab + COLUMNS - 1) / COLUMNS, lane = threadIdx.x % 32;
    const size_t warp = (size_t(blockIdx.x) * THREADS + threadIdx.x) / 32;
    const size_t row = warp / count;
    const int block = warp % count, col = block * COLUMNS + lane;
    if (row >= of.rows) return;
    const float* logits = of.logits + row * of.vocab;
    const bool first = col < of.vocab, second = col + 32 < of.vocab;
    const float x = first ? logits[col] : LEAST, y = second ? logits[col + 32] : LEAST;
    const float largest = warp_max(fmaxf(x, y));
    const float total =
        warp_sum((first ? exponential(x, largest) : 0.0f) + (second ? exponential(y, largest) : 0.0f));
    if (lane == 0) of.statistics[size_t(block) * of.rows + row] = {largest, total};
    const unsigned target = of.targets[row];
    if (first && target == unsigned(col)) of.of_targets[row] = x;
    if (second && target == unsigned(col) + 32) of.of_targets[row] = y;
}

// Each row's loss, and its softmax, from its `count` statistics. A block has 32 rows; thread (x, y) merges the statistics
// y, y + 32, … of row x, and the first threads those 32, in order.
extern "C" __global__ __launch_bounds__(1024) void head_losses(
    const Statistic* __restrict__ statistics, int count, int rows, const unsigned* __restrict__ targets,
    const float* __restrict__ of_targets, Softmax* __restrict__ softmax, float* __restrict__ losses) {
    __shared__ float largests[32][32], totals[32][32];
    const int row = blockIdx.x * 32 + threadIdx.x;
    Statistic mine{LEAST, 0.0f};
    const auto merge = [&](float largest, float total) {
        const float both = fmaxf(mine.largest, largest);
        mine.total = mine.total * exponential(mine.largest, both) + total * exponential(largest, both);
        mine.largest = both;
    };
    if (row < rows) {
#pragma unroll 4
        for (int i = threadIdx.y; i < count; i += 32) {
            const Statistic next = statistics[size_t(i) * rows + row];
            merge(next.largest, next.total);
        }
    }
    largests[threadIdx.y][threadIdx.x] = mine.largest, totals[threadIdx.y][threadIdx.x] = mine.total;
    __syncthreads();
    if (threadIdx.y > 0 || row >= rows) return;
    for (int y = 1; y < 32; ++y) merge(largests[y][threadIdx.x], totals[y][threadIdx.x]);
    const bool ignored = targets[row] == ~0u;
    softmax[row] = {mine.largest, ignored ? 0.0f : SCALE / mine.total};
    losses[row] = ignored ? 0.0f : logf(mine.total) + (mine.largest - of_targets[row]);
}

// dx from x, V neighbours at a time, TURNS times for each of the blocks that share a row; zeros in an ignored row, whatever
// it held. In f32 dx takes x's place.
template <class T, int V>
__device__ void gradient(const float* logits, int vocab, const Softmax* softmax, const unsigned* targets, T* dx) {
    constexpr int EACH = THREADS * V * TURNS;
    const int blocks = (vocab + EACH - 1) / EACH;
    const size_t row = blockIdx.x / blocks;
    const int first = blockIdx.x % blocks * EACH;
    const Softmax mine = softmax[row];
    const unsigned target = targets[row];
#pragma unroll
    for (int turn = 0; turn < TURNS; ++turn) {
        const int col = first + (turn * THREADS + threadIdx.x) * V;
        if (col >= vocab) return;
        float x[V];
        load_columns<V>(x, logits + row * vocab + col);
        Vector<T, V> out;
#pragma unroll
        for (int e = 0; e < V; ++e) {
            const float p = mine.factor == 0.0f ? 0.0f : mine.factor * exponential(x[e], mine.largest);
            out.set(e, target == unsigned(col + e) ? p - SCALE : p);
        }
        out.store(dx + row * vocab + col);
    }
}

#define GRADIENT(NAME, T, V)                                                                                             \
    extern "C" __global__ __launch_bounds__(THREADS) void head_gradient_##NAME(                                          \
        const float* logits, int vocab, const Softmax* __restrict__ softmax, const unsigned* __restrict__ targets,       \
        T* dx) {                                                                                                         \
        gradient<T, V>(logits, vocab, softmax, targets, dx);                                                             \
    }

GRADIENT(bf16, bf16, 4)
GRADIENT(f16, f16, 4)
GRADIENT(f32, float, 1)
