// Sums over a warp, over a team (the blockDim.x threads of a block, whole warps, that share threadIdx.y), and over what
// blocks left in memory. Their order is the shapes' alone.
#pragma once

__device__ inline float warp_sum(float x) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) x += __shfl_xor_sync(0xffffffff, x, distance);
    return x;
}

__device__ inline float warp_max(float x) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffff, x, distance));
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

// For a block of 32×8 threads: Σ part[i·stride] over `parts` of them, in the threads of the first row. Row r of threads adds
// parts r, r + 8, …; then the eight sums are added in order. Threads that are not `there` have none.
__device__ inline float sum_of_parts(const float* part, size_t stride, int parts, bool there) {
    __shared__ float sums[8][32];
    float sum = 0.0f;
    if (there) {
#pragma unroll 4
        for (int i = threadIdx.y; i < parts; i += 8) sum += part[i * stride];
    }
    sums[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y > 0) return 0.0f;
#pragma unroll
    for (int r = 1; r < 8; ++r) sum += sums[r][threadIdx.x];
    return sum;
}
