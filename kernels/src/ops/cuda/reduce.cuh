// Sums over a warp and over a team: the blockDim.x threads of a block, whole warps, that share threadIdx.y. Their order is
// the block's shape's alone.
#pragma once

__device__ inline float warp_sum(float x) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) x += __shfl_xor_sync(0xffffffff, x, distance);
    return x;
}

// The sums of x and of y over the team, in every thread. `xs` and `ys` hold a number for each warp of the block; they may be
// written again once every thread has passed another barrier.
__device__ inline void team_sums(float& x, float& y, float (&xs)[32], float (&ys)[32]) {
    x = warp_sum(x), y = warp_sum(y);
    const int warps = blockDim.x / 32, lane = threadIdx.x % 32, first = threadIdx.y * warps;
    if (warps == 1) return;
    if (lane == 0) xs[first + threadIdx.x / 32] = x, ys[first + threadIdx.x / 32] = y;
    __syncthreads();
    x = warp_sum(lane < warps ? xs[first + lane] : 0.0f);
    y = warp_sum(lane < warps ? ys[first + lane] : 0.0f);
}

// The sum of x over the team; as above.
__device__ inline float team_sum(float x, float (&xs)[32]) {
    x = warp_sum(x);
    const int warps = blockDim.x / 32, lane = threadIdx.x % 32, first = threadIdx.y * warps;
    if (warps == 1) return x;
    if (lane == 0) xs[first + threadIdx.x / 32] = x;
    __syncthreads();
    return warp_sum(lane < warps ? xs[first + lane] : 0.0f);
}
