// The bias's gradient: sums down the columns of dy.
//
// A block takes 64 rows of 32·V columns. Each of its 8 warps has 8 rows on their way at once, 16 bytes a lane, and adds
// them; the block adds its warps' sums in order, and leaves them to a second kernel, which adds the blocks' in order. The
// shape alone decides that order: no atomics, the same bits on every run and every GPU.
//
// Bytes for N rows of F columns of size e: N·F·e + 2·(N/64)·F·4 + 2·F·4, the second term being what blocks leave, through
// L2 (least: N·F·e + 2·F·4); of bf16 1/16 above the least. 2,048 rows of 768 columns are 96 blocks.
//
// Registers: 28 to 64 a thread, 9 KB of shared memory a block: at least 4 blocks an SM, with 128 KB on their way.

#include "cuda/element.cuh"
#include "cuda/reduce.cuh"

constexpr int WARPS = 8;
constexpr int ROWS = 64; // of a block

// partials[blockIdx.x] of this block's columns.
template <class T, int V> __device__ void sum_rows(const T* dy, int rows, int cols, float* partials) {
    // A lane's V sums stand this far apart, so that neither they nor a warp's columns in order meet in a bank.
    constexpr int STRIDE = 32 + 32 / V;
    __shared__ float sums[WARPS][V * STRIDE];
    const int block = blockIdx.y * 32 * V, col = block + threadIdx.x * V;
    const int first = blockIdx.x * ROWS + threadIdx.y;
    Vector<T, V> values[ROWS / WARPS];
#pragma unroll
    for (int k = 0; k < ROWS / WARPS; ++k) {
        const int row = first + k * WARPS;
        if (row < rows && col < cols) values[k].load(dy + size_t(row) * cols + col);
    }
#pragma unroll
    for (int i = 0; i < V; ++i) {
        float sum = 0.0f;
#pragma unroll
        for (int k = 0; k < ROWS / WARPS; ++k) sum += values[k][i];
        sums[threadIdx.y][i * STRIDE + threadIdx.x] = sum;
    }
    __syncthreads();
    const int mine = threadIdx.y * 32 + threadIdx.x;
    if (mine >= 32 * V || block + mine >= cols) return;
    float sum = 0.0f;
#pragma unroll
    for (int warp = 0; warp < WARPS; ++warp) sum += sums[warp][mine % V * STRIDE + mine / V];
    partials[size_t(blockIdx.x) * cols + block + mine] = sum;
}

// By vectors where the columns are a multiple of V, else by elements.
#define BIAS_GRADIENT(NAME, T, V)                                                                                        \
    extern "C" __global__ __launch_bounds__(32 * WARPS) void bias_gradient_##NAME(                                       \
        const T* __restrict__ dy, int rows, int cols, float* __restrict__ partials) {                                    \
        sum_rows<T, V>(dy, rows, cols, partials);                                                                        \
    }

BIAS_GRADIENT(bf16, bf16, 8)
BIAS_GRADIENT(f16, f16, 8)
BIAS_GRADIENT(f32, float, 4)
BIAS_GRADIENT(bf16_odd, bf16, 1)
BIAS_GRADIENT(f16_odd, f16, 1)
BIAS_GRADIENT(f32_odd, float, 1)

// db += Σ_blocks partials
extern "C" __global__ __launch_bounds__(256) void bias_gradient_sum(const float* __restrict__ partials, int blocks,
                                                                    int cols, float* __restrict__ d_bias) {
    const int col = blockIdx.x * 32 + threadIdx.x;
    const float sum = sum_of_parts(partials + col, cols, blocks, col < cols);
    if (threadIdx.y == 0 && col < cols) d_bias[col] += sum;
}
