// Programs of the kind that models and their data bring: half-precision products, bytes and dp4a, sparse rows, clusters,
// statistics in one pass, paths through a matrix that fills shared memory, a graph searched level by level.

#include <cuda_fp16.h>

// y = A·x in pairs of halves, a warp a row; reads go past the L1 cache's coherence.
extern "C" __global__ void gemv(const __half2* a, const __half2* x, float* y, int rows, int pairs) {
    int row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= rows) return;
    __half2 sum = __float2half2_rn(0.0f);
    for (int c = lane; c < pairs; c += 32) sum = __hfma2(__ldg(&a[row * pairs + c]), __ldg(&x[c]), sum);
    float v = __low2float(sum) + __high2float(sum);
    for (int d = 16; d > 0; d /= 2) v += __shfl_xor_sync(0xffffffffu, v, d);
    if (lane == 0) y[row] = v;
}

// Bytes with a scale a row, four to a word.
extern "C" __global__ void quantize(const float* x, char4* q, float* scale, int cols) {
    __shared__ float most;
    const float4* row = (const float4*)(x + blockIdx.x * cols);
    float m = 0;
    for (int c = threadIdx.x; c < cols / 4; c += 32) {
        float4 v = row[c];
        m = fmaxf(m, fmaxf(fmaxf(fabsf(v.x), fabsf(v.y)), fmaxf(fabsf(v.z), fabsf(v.w))));
    }
    unsigned bits = __reduce_max_sync(0xffffffffu, __float_as_uint(m));
    if (threadIdx.x == 0) most = fmaxf(__uint_as_float(bits), 1e-20f);
    __syncwarp();
    float inverse = 127.0f / most;
    for (int c = threadIdx.x; c < cols / 4; c += 32) {
        float4 v = row[c];
        q[blockIdx.x * (cols / 4) + c] = make_char4(__float2int_rn(v.x * inverse), __float2int_rn(v.y * inverse),
                                                    __float2int_rn(v.z * inverse), __float2int_rn(v.w * inverse));
    }
    if (threadIdx.x == 0) scale[blockIdx.x] = most / 127.0f;
}

// NVRTC declares __dp4a and does not define it.
__device__ int dot(int a, int b, int sum) {
    asm("dp4a.s32.s32 %0, %1, %2, %0;" : "+r"(sum) : "r"(a), "r"(b));
    return sum;
}

// C[i, j] = row i of A times row j of B, both of bytes.
extern "C" __global__ void byte_product(const int* a, const int* b, int* c, int n, int words) {
    int j = blockIdx.x * blockDim.x + threadIdx.x, i = blockIdx.y;
    if (j >= n) return;
    int sum = 0;
#pragma unroll 4
    for (int k = 0; k < words; k++) sum = dot(a[i * words + k], b[j * words + k], sum);
    c[i * n + j] = sum;
}

// y = A·x for rows of unequal length, eight threads a row.
extern "C" __global__ void spmv(const int* start, const int* col, const float* value, const float* x, float* y, int rows) {
    int row = (blockIdx.x * blockDim.x + threadIdx.x) / 8, part = threadIdx.x % 8;
    bool there = row < rows;
    float sum = 0;
    if (there)
        for (int i = start[row] + part; i < start[row + 1]; i += 8) sum += value[i] * __ldg(&x[col[i]]);
    for (int d = 4; d > 0; d /= 2) sum += __shfl_down_sync(0xffffffffu, sum, d, 8);
    if (there && part == 0) y[row] = sum;
}

__constant__ float2 centres[8];

// One step of k-means: sums and counts by nearest centre, in shared memory first.
extern "C" __global__ void clusters(const float2* points, int n, int k, int* nearest, int* sums, int* counts) {
    __shared__ int sum[16], count[8];
    if (threadIdx.x < 16) sum[threadIdx.x] = 0;
    if (threadIdx.x < 8) count[threadIdx.x] = 0;
    __syncthreads();
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
        float2 p = points[i];
        int best = 0;
        float least = 3.4e38f;
        for (int c = 0; c < k; c++) {
            float dx = p.x - centres[c].x, dy = p.y - centres[c].y, d = dx * dx + dy * dy;
            if (d < least) least = d, best = c;
        }
        nearest[i] = best;
        atomicAdd(&sum[2 * best], (int)p.x);
        atomicAdd(&sum[2 * best + 1], (int)p.y);
        atomicAdd(&count[best], 1);
    }
    __syncthreads();
    if (threadIdx.x < 2 * k) atomicAdd(&sums[threadIdx.x], sum[threadIdx.x]);
    if (threadIdx.x < k) atomicAdd(&counts[threadIdx.x], count[threadIdx.x]);
}

struct Moments {
    float n, mean, m2;
};

__device__ Moments join(Moments a, Moments b) {
    float n = a.n + b.n, d = b.mean - a.mean;
    if (n == 0) return a;
    return {n, a.mean + d * (b.n / n), a.m2 + b.m2 + d * d * (a.n * b.n / n)};
}

// Mean and variance of each row in one pass.
extern "C" __global__ void moments(const float* x, float2* out, int cols) {
    __shared__ Moments by_warp[4];
    Moments m = {0, 0, 0};
    for (int c = threadIdx.x; c < cols; c += blockDim.x) m = join(m, {1, x[blockIdx.x * cols + c], 0});
    for (int d = 16; d > 0; d /= 2)
        m = join(m, {__shfl_down_sync(~0u, m.n, d), __shfl_down_sync(~0u, m.mean, d), __shfl_down_sync(~0u, m.m2, d)});
    if (threadIdx.x % 32 == 0) by_warp[threadIdx.x / 32] = m;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int w = 1; w < blockDim.x / 32; w++) m = join(m, by_warp[w]);
        out[blockIdx.x] = make_float2(m.mean, m.m2 / m.n);
    }
}

// Shortest paths between all pairs, the whole matrix in dynamic shared memory (more than 48 KiB of it).
extern "C" __global__ void paths(float* matrix, int n) {
    extern __shared__ float d[];
    for (int i = threadIdx.x; i < n * n; i += blockDim.x) d[i] = matrix[i];
    for (int k = 0; k < n; k++) {
        __syncthreads();
        for (int i = threadIdx.x; i < n * n; i += blockDim.x) {
            float via = d[i / n * n + k] + d[k * n + i % n];
            // Rows and columns of k do not change in step k.
            if (i / n != k && i % n != k && via < d[i]) d[i] = via;
        }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < n * n; i += blockDim.x) matrix[i] = d[i];
}

// One level of a breadth-first search: whoever reaches a vertex first puts it into the next level.
extern "C" __global__ void level(const int* start, const int* edge, int* depth, int now, const int* front, int n, int* next,
                                 int* count) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    int v = front[i];
    for (int e = start[v]; e < start[v + 1]; e++)
        if (atomicCAS(&depth[edge[e]], -1, now) == -1) next[atomicAdd(count, 1)] = edge[e];
}
