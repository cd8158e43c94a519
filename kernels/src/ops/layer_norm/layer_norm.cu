// LayerNorm, forward and backward: norm.cuh says how and why.
//
// Bytes for N rows of D elements of size e, in B blocks:
//   forward   N·D·2e + N·8 + B·D·8                    (least: N·D·2e + N·8 + D·8)
//   backward  N·D·4e + N·8 + B·D·4 + 2·B·D·8          (least: N·D·4e + N·8 + D·4 + 2·D·8), 3e where dx is added to nothing
// where the last term is each block's part of dw and db, written and read again, through L2. Of 16-bit rows a block of
// forward takes 26, whose 104·D bytes make its own 8·D less than 8 %, one of backward 54 (20·D of 324·D).
//
// Registers: 32 to 48 a thread in forward, which is 2 blocks of 640 threads an SM, and 63 to 96 in backward, which is one
// for rows of 16 bits. Shared memory: 8 bytes a column, a row's columns filled up to whole warps, and at most 512 bytes.

#include "cuda/norm.cuh"

// Rows whose length is a multiple of a vector's are read by 16-byte vectors, others by elements. STEPS: 16 columns a
// thread by vectors of 16-bit elements, else 8, which is what registers hold.
//
// Dynamic shared memory: 2·blockDim.x·V·STEPS floats.
#define LAYER_NORM(NAME, T, V, STEPS)                                                                                    \
    extern "C" __global__ __launch_bounds__(MAX_THREADS) void layer_norm_forward_##NAME(                                 \
        const T* __restrict__ x, const float* __restrict__ weight, const float* __restrict__ bias, float eps, int rows,  \
        int cols, T* __restrict__ y, float* __restrict__ mean, float* __restrict__ rstd) {                               \
        norm_forward<true, T, V, STEPS>(x, weight, bias, eps, rows, cols, y, mean, rstd);                                \
    }                                                                                                                    \
    extern "C" __global__ __launch_bounds__(MAX_THREADS) void layer_norm_backward_##NAME(                                \
        const T* dy, const T* __restrict__ x, const float* __restrict__ weight, const float* __restrict__ mean,          \
        const float* __restrict__ rstd, int rows, int cols, const T* __restrict__ sum, T* dx, float* __restrict__ partials) {                       \
        norm_backward<true, T, V, STEPS>(dy, x, weight, mean, rstd, rows, cols, sum, dx, partials);                           \
    }

LAYER_NORM(bf16, bf16, 8, 2)
LAYER_NORM(f16, f16, 8, 2)
LAYER_NORM(f32, float, 4, 2)
LAYER_NORM(bf16_odd, bf16, 1, 8)
LAYER_NORM(f16_odd, f16, 1, 8)
LAYER_NORM(f32_odd, float, 1, 8)

// dw += Σ_blocks partials[block][0], db += Σ_blocks partials[block][1]; not where they are null.
extern "C" __global__ __launch_bounds__(256) void layer_norm_param_gradients(const float* __restrict__ partials,
                                                                             int blocks, int size, int threads, int v,
                                                                             int cols, float* d_weight, float* d_bias) {
    float* out = blockIdx.y == 0 ? d_weight : d_bias;
    if (out) add_norm_gradients(partials, 2, blockIdx.y, blocks, size, threads, v, cols, out);
}
