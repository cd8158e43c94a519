// Bitonic sort: steps within a block in shared memory, wider steps through global memory.

constexpr int BLOCK = 256;

__device__ void order(unsigned& a, unsigned& b, bool up) {
    if ((a > b) == up) {
        unsigned t = a;
        a = b;
        b = t;
    }
}

// Sorts runs of 2·BLOCK, alternately up and down.
extern "C" __global__ void sort_blocks(unsigned* x) {
    __shared__ unsigned s[2 * BLOCK];
    unsigned base = blockIdx.x * 2 * BLOCK, t = threadIdx.x;
    s[t] = x[base + t];
    s[t + BLOCK] = x[base + t + BLOCK];
    for (unsigned size = 2; size <= 2 * BLOCK; size *= 2)
        for (unsigned stride = size / 2; stride > 0; stride /= 2) {
            __syncthreads();
            unsigned i = 2 * t - (t & (stride - 1));
            bool up = ((base + i) & size) == 0;
            order(s[i], s[i + stride], up);
        }
    __syncthreads();
    x[base + t] = s[t];
    x[base + t + BLOCK] = s[t + BLOCK];
}

extern "C" __global__ void step(unsigned* x, unsigned size, unsigned stride) {
    unsigned t = blockIdx.x * blockDim.x + threadIdx.x;
    unsigned i = 2 * t - (t & (stride - 1));
    order(x[i], x[i + stride], (i & size) == 0);
}
