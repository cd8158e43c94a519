// RMSNorm, forward and backward: norm.cuh says how and why.
//
// Bytes for N rows of D elements of size e, in B blocks:
//   forward   N·D·2e + N·4 + B·D·4                    (least: N·D·2e + N·4 + D·4)
//   backward  N·D·4e + N·4 + B·D·4 + B·D·8            (least: N·D·4e + N·4 + D·4 + D·8), 3e where dx is added to nothing
// where the last term is each block's part of dw, written and read again, through L2. Of 16-bit rows a block of forward
// takes 13, whose 52·D bytes make its own 4·D less than 8 %, one of backward 32 (12·D of 192·D).
//
// Registers: 30 to 46 a thread in forward, which is 2 blocks of 640 threads an SM, and 52 to 78 in backward, which is one
// for rows of 16 bits. Shared memory: 4 bytes a column, a row's columns filled up to whole warps, and 256 bytes.

#include "cuda/norm.cuh"

// As layer_norm.cu's.
#define RMS_NORM(NAME, T, V, STEPS)                                                                                      \
    extern "C" __global__ __launch_bounds__(MAX_THREADS) void rms_norm_forward_##NAME(                                   \
        const T* __restrict__ x, const float* __restrict__ weight, float eps, int rows, int cols, T* __restrict__ y,     \
        float* __restrict__ rstd) {                                                                                      \
        norm_forward<false, T, V, STEPS>(x, weight, nullptr, eps, rows, cols, y, nullptr, rstd);                         \
    }                                                                                                                    \
    extern "C" __global__ __launch_bounds__(MAX_THREADS) void rms_norm_backward_##NAME(                                  \
        const T* dy, const T* __restrict__ x, const float* __restrict__ weight, const float* __restrict__ rstd,          \
        int rows, int cols, const T* __restrict__ sum, T* dx, float* __restrict__ partials) {                                                       \
        norm_backward<false, T, V, STEPS>(dy, x, weight, nullptr, rstd, rows, cols, sum, dx, partials);                       \
    }

RMS_NORM(bf16, bf16, 8, 2)
RMS_NORM(f16, f16, 8, 2)
RMS_NORM(f32, float, 4, 2)
RMS_NORM(bf16_odd, bf16, 1, 8)
RMS_NORM(f16_odd, f16, 1, 8)
RMS_NORM(f32_odd, float, 1, 8)

// dw += Σ_blocks partials[block]
extern "C" __global__ __launch_bounds__(256) void rms_norm_weight_gradient(const float* __restrict__ partials, int blocks,
                                                                           int size, int threads, int v, int cols,
                                                                           float* d_weight) {
    add_norm_gradients(partials, 1, 0, blocks, size, threads, v, cols, d_weight);
}
