// Sums over the threads of a block before each one, whole warps in the order of threadIdx.x. N is an integer.
#pragma once

// The sum of x over this lane and those below it.
template <class N> __device__ N warp_scan(N x) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
        const N below = __shfl_up_sync(0xffffffff, x, distance);
        if (lane >= distance) x += below;
    }
    return x;
}

// The sum of x over the threads below this one, and over all. `sums` holds a number for each warp; it may be used again at
// once.
template <class N> __device__ N block_scan(N x, N& total, N (&sums)[32]) {
    const int warps = blockDim.x / 32, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const N within = warp_scan(x);
    __syncthreads();
    if (lane == 31) sums[warp] = within;
    __syncthreads();
    const N of_warps = warp_scan(lane < warps ? sums[lane] : N(0));
    total = __shfl_sync(0xffffffff, of_warps, 31);
    const N before = __shfl_sync(0xffffffff, of_warps, warp == 0 ? 0 : warp - 1);
    return (warp == 0 ? N(0) : before) + within - x;
}
