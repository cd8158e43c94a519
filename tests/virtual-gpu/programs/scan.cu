// Prefix sums: up and down a tree in shared memory within a block, then the blocks' totals, then the offsets.

constexpr int BLOCK = 256;

// Exclusive sums of 2·BLOCK numbers a block; its total into `totals`.
extern "C" __global__ void scan_blocks(const unsigned* in, unsigned* out, unsigned* totals, int n) {
    __shared__ unsigned s[2 * BLOCK];
    int t = threadIdx.x, base = blockIdx.x * 2 * BLOCK;
    for (int i = t; i < 2 * BLOCK; i += BLOCK) s[i] = base + i < n ? in[base + i] : 0;
    int offset = 1;
    for (int d = BLOCK; d > 0; d >>= 1) {
        __syncthreads();
        if (t < d) s[offset * (2 * t + 2) - 1] += s[offset * (2 * t + 1) - 1];
        offset *= 2;
    }
    __syncthreads();
    if (t == 0) {
        totals[blockIdx.x] = s[2 * BLOCK - 1];
        s[2 * BLOCK - 1] = 0;
    }
    for (int d = 1; d <= BLOCK; d *= 2) {
        offset >>= 1;
        __syncthreads();
        if (t < d) {
            int a = offset * (2 * t + 1) - 1, b = offset * (2 * t + 2) - 1;
            unsigned left = s[a];
            s[a] = s[b];
            s[b] += left;
        }
    }
    __syncthreads();
    for (int i = t; i < 2 * BLOCK; i += BLOCK)
        if (base + i < n) out[base + i] = s[i];
}

extern "C" __global__ void add_offsets(unsigned* out, const unsigned* offsets, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] += offsets[i / (2 * BLOCK)];
}

// Inclusive sums within warps by shuffles, each warp alone.
extern "C" __global__ void scan_warps(int* x) {
    int i = blockIdx.x * blockDim.x + threadIdx.x, lane = threadIdx.x & 31;
    int v = x[i];
    for (int d = 1; d < 32; d *= 2) {
        int up = __shfl_up_sync(0xffffffffu, v, d);
        if (lane >= d) v += up;
    }
    x[i] = v;
}
