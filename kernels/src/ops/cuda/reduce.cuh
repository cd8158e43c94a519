// Sums over a warp and a block, in an order that only the block's size decides.
#pragma once

__device__ inline float warp_sum(float x) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) x += __shfl_xor_sync(0xffffffff, x, distance);
    return x;
}

// The sum of x over the block (whole warps), in every thread. `partial` holds a number for each warp; it may be written
// again once every thread has passed another barrier.
__device__ inline float block_sum(float x, float (&partial)[32]) {
    x = warp_sum(x);
    if (blockDim.x == 32) return x;
    const int lane = threadIdx.x % 32;
    if (lane == 0) partial[threadIdx.x / 32] = x;
    __syncthreads();
    return warp_sum(lane < blockDim.x / 32 ? partial[lane] : 0.0f);
}
