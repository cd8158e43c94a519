// The thin products of adapters: u = s·x·Aᵀ and v = s·dy·B, and the gradients dA += vᵀ·x and dB += dyᵀ·u, all in f32 of
// activations in 16 bits.
//
// x or dy are read once from memory, and that is what a product costs. The thin factor, in f32, is split into two parts of 16
// bits that lie side by side as columns of the same product (high in columns 0–15, low in 16–31), whose sums are added in the
// end: as precise as f32 factors are but for 2⁻¹⁶ (in f16 2⁻²², or 2⁻²⁵ where that is more), and sixteen of the rank in one
// block. `cp.async` brings it as it is; it is split a step before it is multiplied, as packed weights are.
//
// Each block reads the factor (or u, v) for itself, through L2, which holds it: a few hundred KiB, or 3 MiB of a head's B. Bytes
// between L2 and SMs are those of x times 1 + 2·r/E for E rows (dA, dB: features) a block and a rank of r ≤ 16: 2 for 32 rows,
// 1.5 for 64, 1.25 for 128, 1.125 for 256. No cut goes much below that: larger blocks leave SMs without one, and blocks that
// share rows, each with some of the features, leave sums to be added, 8 bytes each and part, which cost as much. So blocks are
// as large as leaves 64 of them, which is what memory needs: each waits for it alone, and keeps 14 to 48 KiB of x on its way,
// 0.9 MiB or more for all: 600 ns of an A100's bandwidth. u and v of 2,048 tokens are 64 blocks of 32 rows, of 4,096 tokens 64,
// of 8,192 tokens 128. An entry's sum is the same in all of them.
//
// dA and dB: blocks of four or eight warps take 128 or 256 features and at most `span` tokens; their sums go to a workspace, and
// `lora_gradient_add` adds them to the gradient in order, so that the result is the same in every run. That is 8·r bytes for each
// 2·span of x.

#include "cuda/product.cuh"
#include "linear/rows.cuh"

constexpr int RANKS = 16; // of the rank, in a block

// As in cuda/products.rs: rows of a block, and the shared memory below.
using Rows32 = Tiling<2, 1, 16, 2 * RANKS, 8>;
using Rows64 = Tiling<4, 1, 16, 2 * RANKS, 6>;
using Rows128 = Tiling<4, 1, 32, 2 * RANKS, 4>;
// As in cuda/gradients.rs: features of a block, and the shared memory below.
using Tall128 = Tiling<4, 1, 32, 2 * RANKS, 4>;
using Tall256 = Tiling<8, 1, 32, 2 * RANKS, 4>;

// A thin factor in f32: entry (k, r) is data[k · k_stride + r · rank_stride].
struct Thin {
    const float* data;
    int k, rank;
    size_t k_stride, rank_stride;
};

// Columns `first` … +RANKS − 1 of it as B, twice: high and low parts.
template <class T, int THREADS> struct Factor : AtOnce {
    static constexpr bool PACKED = true, ALONG_K = true;
    // Words of a row of the copy: the lanes of a warp write, and read in pairs, different banks, whether they walk along the
    // rank or along k.
    static constexpr int PITCH = TILE_K + 2, BYTES = RANKS * PITCH * 4;
    Thin from;
    int first;

    __device__ Factor(const Thin& from, int first) : from(from), first(first) {}

    __device__ void clear(unsigned char*) const {}

    // Neighbours in memory are copied by neighbouring threads.
    __device__ void load(unsigned char* stage, int step) const {
        const bool rows = from.k_stride == 1;
#pragma unroll
        for (int i = 0; i < RANKS * TILE_K / THREADS; ++i) {
            const unsigned at = i * THREADS + threadIdx.x;
            const unsigned r = rows ? at / TILE_K : at % RANKS, k = rows ? at % TILE_K : at / RANKS;
            const int at_rank = first + int(r), at_k = step * TILE_K + int(k);
            const bool there = at_rank < from.rank && at_k < from.k;
            const float* source = from.data + (there ? at_k * from.k_stride + at_rank * from.rank_stride : 0);
            copy_async_word(shared_address(stage) + (r * PITCH + k) * 4, source, there);
        }
    }

    __device__ void unpack(unsigned char* stage, unsigned char* spare, int) const {
#pragma unroll
        for (int i = 0; i < RANKS * TILE_K / 2 / THREADS; ++i) {
            const unsigned at = i * THREADS + threadIdx.x, r = at / (TILE_K / 2), k = at % (TILE_K / 2) * 2;
            const float2 pair = *reinterpret_cast<const float2*>(stage + (r * PITCH + k) * 4);
            T low, high;
            round_to(pair.x, low), round_to(pair.y, high);
            unsigned char* to = spare + k % CHUNK * 2;
            *reinterpret_cast<unsigned*>(to + place<TILE_K / CHUNK>(r, k / CHUNK)) = pack<T>(pair.x, pair.y);
            *reinterpret_cast<unsigned*>(to + place<TILE_K / CHUNK>(RANKS + r, k / CHUNK)) =
                pack<T>(pair.x - to_f32(low), pair.y - to_f32(high));
        }
    }

    __device__ const unsigned char* panel(const unsigned char*, const unsigned char* spare, int) const { return spare; }
};

// The tile of x·factor (A is x's panels) at `corner`: use(row, column, low, high) for the thread's sums of two neighbouring
// columns, both parts added.
template <class T, class S, int BYTES, class A, class Use>
__device__ void thin_product(A& a, const Thin& factor, const Corner& corner, Use use) {
    using B = Factor<T, S::THREADS>;
    static_assert(shared_bytes<S, A, B>() == BYTES, "what the launch asks for");
    extern __shared__ __align__(128) unsigned char shared[];
    B b(factor, corner.n);
    Sums<S> sums = {};
    multiply<T, S>(sums, a, b, panels(factor.k), shared);
    const unsigned lane = threadIdx.x % 32;
    const Corner mine = warp_corner<S>(corner);
#pragma unroll
    for (int i = 0; i < S::WARP_M / 16; ++i) {
#pragma unroll
        for (int j = 0; j < RANKS / 8; ++j) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const float *high = &sums[i][j][half * 2], *low = &sums[i][j + RANKS / 8][half * 2];
                const int row = mine.m + i * 16 + half * 8 + lane / 4, col = mine.n + j * 8 + lane % 4 * 2;
                use(row, col, high[0] + low[0], high[1] + low[1]);
            }
        }
    }
}

// out `[n, rank]` = scale · x · the factor, which is `[rank, features]`, or `[features, rank]` where `turned`.
template <class T, class S, int BYTES>
__device__ void project(const Matrix<T>& x, const float* factor, int rank, int turned, float scale, float* out) {
    const Thin thin{factor, x.cols, rank, turned ? size_t(rank) : 1, turned ? 1 : size_t(x.cols)};
    const Corner corner{int(blockIdx.x) * S::TILE_M, int(blockIdx.y) * RANKS};
    AlongK<T, S::THREADS, S::TILE_M> a(x, corner.m);
    thin_product<T, S, BYTES>(a, thin, corner, [&](int row, int col, float low, float high) {
        if (row < x.rows) store_two(out + size_t(row) * rank, col, rank, scale * low, scale * high);
    });
}

// One part of xᵀ·down, of tokens blockIdx.z · span and on: `[features, rank]`, or `[rank, features]` where `turned`.
template <class T, class S, int BYTES>
__device__ void gradient(const Matrix<T>& x, const float* down, int rank, int span, int turned, float* parts) {
    const int from = blockIdx.z * span, tokens = min(span, x.rows - from);
    const Corner corner{int(blockIdx.x) * S::TILE_M, int(blockIdx.y) * RANKS};
    AcrossK<T, S::THREADS, S::TILE_M> a({x.data + size_t(from) * x.cols, tokens, x.cols}, corner.m);
    float* part = parts + size_t(blockIdx.z) * x.cols * rank;
    const Thin factor{down + size_t(from) * rank, tokens, rank, size_t(rank), 1};
    thin_product<T, S, BYTES>(a, factor, corner, [&](int row, int col, float low, float high) {
        if (row >= x.cols) return;
        if (!turned) return store_two(part + size_t(row) * rank, col, rank, low, high);
        // Eight lanes have neighbouring rows.
        if (col < rank) part[size_t(col) * x.cols + row] = low;
        if (col + 1 < rank) part[size_t(col + 1) * x.cols + row] = high;
    });
}

#define PROJECT(S, ROWS, BYTES, T)                                                                                       \
    extern "C" __global__ __launch_bounds__(S::THREADS) void lora_project_##ROWS##_##T(                                  \
        const T* __restrict__ x, const float* __restrict__ factor, int rows, int features, int rank, int turned,         \
        float scale, float* __restrict__ out) {                                                                          \
        project<T, S, BYTES>({x, rows, features}, factor, rank, turned, scale, out);                                     \
    }

#define GRADIENT(S, FEATURES, BYTES, T)                                                                                  \
    extern "C" __global__ __launch_bounds__(S::THREADS) void lora_gradient_##FEATURES##_##T(                             \
        const T* __restrict__ x, const float* __restrict__ down, int rows, int features, int rank, int span, int turned, \
        float* __restrict__ parts) {                                                                                     \
        gradient<T, S, BYTES>({x, rows, features}, down, rank, span, turned, parts);                                     \
    }

#define LORA(T)                                                                                                          \
    PROJECT(Rows32, 32, 37'888, T)                                                                                       \
    PROJECT(Rows64, 64, 41'728, T)                                                                                       \
    PROJECT(Rows128, 128, 45'568, T)                                                                                     \
    GRADIENT(Tall128, 128, 45'568, T)                                                                                    \
    GRADIENT(Tall256, 256, 78'336, T)

LORA(bf16)
LORA(f16)

// sums[i] += scale · Σ of part p's i, p rising, for `len` sums.
extern "C" __global__ void lora_gradient_add(
    const float* __restrict__ parts, int count, unsigned long long len, float scale, float* __restrict__ sums) {
    for (size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x; i < len; i += size_t(gridDim.x) * blockDim.x) {
        float sum = 0.0f;
#pragma unroll 1
        for (int p = 0; p < count; ++p) sum += parts[p * len + i];
        sums[i] = fmaf(scale, sum, sums[i]);
    }
}
