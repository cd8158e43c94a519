// A histogram of bytes: a private one for each block in shared memory, added to the whole at the end.

extern "C" __global__ void histogram(const unsigned char* data, unsigned* bins, unsigned n) {
    __shared__ unsigned mine[256];
    for (int i = threadIdx.x; i < 256; i += blockDim.x) mine[i] = 0;
    __syncthreads();
    for (unsigned i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x)
        atomicAdd(&mine[data[i]], 1u);
    __syncthreads();
    for (int i = threadIdx.x; i < 256; i += blockDim.x)
        if (mine[i]) atomicAdd(&bins[i], mine[i]);
}

// The same, four bytes a load, and lanes of a warp that hold the same byte counted by one of them.
extern "C" __global__ void histogram_matched(const uchar4* data, unsigned* bins, unsigned n4) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n4) return;
    uchar4 v = data[i];
    unsigned char bytes[4] = {v.x, v.y, v.z, v.w};
    for (int j = 0; j < 4; j++) {
        unsigned active = __activemask();
        unsigned peers = __match_any_sync(active, (unsigned)bytes[j]);
        if ((int)(threadIdx.x & 31) == __ffs(peers) - 1) atomicAdd(&bins[bytes[j]], __popc(peers));
        __syncwarp(active);
    }
}
