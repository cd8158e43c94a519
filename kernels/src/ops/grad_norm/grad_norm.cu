// The L2 norm of a list of gradients, whether they are finite, and the clip factor: for AdamW, on the GPU.
//
// One block a chunk of 4,096 elements sums its squares, and one block adds the chunks' sums: two launches for all tensors.
// Squares of f32 are exact in f64 and cannot overflow there, so a chunk's sum is finite where all its elements are, and no
// flag is needed beside it. Two f64 instructions an element are less than the time of its 4 bytes, on an RTX 4090 too
// (640 G/s of them, 250 G/s elements from memory).
//
// Bytes: 4 an element, a bit of the mask, and 24 a chunk for the table and the sum (least: 4 an element, and the bit).
//
// Registers: 32 a thread on sm_80 and sm_90, 40 on sm_86 and sm_89, which have 1,536 threads: all that an SM has run at
// once. 96 bytes of shared memory a block, and 260 of the last.

#include "cuda/tensors.cuh"

struct Tensor {
    const float* grad;
    const unsigned long long* mask; // may be null
    unsigned long long len;
};

// Σ x over the block, in thread 0; its order is the block's size's alone. `sums` holds a number for each warp.
__device__ double block_sum(double x, double* sums) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) x += __shfl_xor_sync(0xffffffff, x, distance);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = x;
    __syncthreads();
    if (threadIdx.x > 0) return 0.0;
    for (int warp = 1; warp < blockDim.x / 32; ++warp) x += sums[warp];
    return x;
}

__device__ double square(float x) { return double(x) * double(x); }

// sums[chunk] = Σ g² over the chunk's elements that the mask keeps
extern "C" __global__ __launch_bounds__(TENSOR_THREADS) void grad_norm_chunks(const Tensor* __restrict__ tensors, int count,
                                                                              double* __restrict__ sums) {
    __shared__ double warps[TENSOR_THREADS / 32];
    __shared__ Chunk chunk;
    __shared__ Tensor t;
    // Once for the block, not once for each warp: that would be 8 % of what a chunk reads.
    if (threadIdx.x == 0) {
        chunk = chunks(tensors, count)[blockIdx.x];
        t = tensors[chunk.tensor];
    }
    __syncthreads();
    const unsigned long long start = (unsigned long long)chunk.index * CHUNK;
    const int len = (int)min((unsigned long long)CHUNK, t.len - start);
    double sum = 0.0;
#pragma unroll
    for (int at = 0; at < CHUNK; at += 4 * TENSOR_THREADS) {
        const int i = at + 4 * threadIdx.x;
        float4 g = {};
        if (i + 4 <= len) {
            g = *reinterpret_cast<const float4*>(t.grad + start + i);
        } else if (i < len) {
            // The end of a tensor whose length is not a multiple of 4.
            g.x = t.grad[start + i];
            if (i + 1 < len) g.y = t.grad[start + i + 1];
            if (i + 2 < len) g.z = t.grad[start + i + 2];
        }
        if (i < len) g = keep(g, kept(t.mask, start + i));
        sum += square(g.x) + square(g.y) + square(g.z) + square(g.w);
    }
    sum = block_sum(sum, warps);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

// One block. c = min(1, clip/(norm + 1e-6)); `clip` is infinite where nothing is clipped.
extern "C" __global__ __launch_bounds__(1024) void grad_norm_finish(const Tensor* __restrict__ tensors, int count,
                                                                    const double* __restrict__ sums, int size, double clip,
                                                                    GradNorm* __restrict__ out) {
    __shared__ double warps[32];
    __shared__ unsigned first;
    if (threadIdx.x == 0) first = size;
    __syncthreads();
    double sum = 0.0;
#pragma unroll 4
    for (unsigned i = threadIdx.x; i < size; i += 1024) {
        const double part = sums[i];
        sum += part;
        if (!isfinite(part)) atomicMin(&first, i);
    }
    sum = block_sum(sum, warps);
    if (threadIdx.x > 0) return;
    const double norm = sqrt(sum);
    // Chunks are in their tensors' order.
    const unsigned long long tensor = first < size ? chunks(tensors, count)[first].tensor : ALL_FINITE;
    *out = {norm, tensor, fmin(1.0, clip / (norm + 1e-6))};
}
