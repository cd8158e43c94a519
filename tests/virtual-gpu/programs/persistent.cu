// A persistent kernel: all blocks stay, and meet at a barrier across the grid between the steps of a diffusion.

__device__ unsigned arrived = 0;
__device__ volatile unsigned generation = 0;

__device__ void grid_barrier() {
    __syncthreads();
    if (threadIdx.x == 0) {
        unsigned mine = generation;
        __threadfence();
        if (atomicAdd(&arrived, 1u) == gridDim.x - 1) {
            arrived = 0;
            __threadfence();
            generation = mine + 1;
        } else {
            while (generation == mine) {
            }
        }
        __threadfence();
    }
    __syncthreads();
}

extern "C" __global__ void diffuse(float* a, float* b, int n, int steps) {
    for (int s = 0; s < steps; s++) {
        for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
            float left = __ldcg(&a[i == 0 ? n - 1 : i - 1]), right = __ldcg(&a[i == n - 1 ? 0 : i + 1]);
            b[i] = 0.5f * __ldcg(&a[i]) + 0.25f * left + 0.25f * right;
        }
        grid_barrier();
        float* t = a;
        a = b;
        b = t;
    }
}

// A ticket lock that every thread takes in turn.
__device__ unsigned next_ticket = 0;
__device__ volatile unsigned serving = 0;

extern "C" __global__ void locked(volatile unsigned* counter) {
    unsigned ticket = atomicAdd(&next_ticket, 1u);
    while (serving != ticket) {
    }
    __threadfence();
    *counter = *counter * 3 + 1;
    __threadfence();
    serving = ticket + 1;
}
