// C = A·B by tiles in shared memory, for single and double precision.

constexpr int TILE = 16;

template <typename T>
__device__ void product(const T* a, const T* b, T* c, int m, int n, int k) {
    __shared__ T as[TILE][TILE], bs[TILE][TILE];
    int row = blockIdx.y * TILE + threadIdx.y, col = blockIdx.x * TILE + threadIdx.x;
    T sum = 0;
    for (int k0 = 0; k0 < k; k0 += TILE) {
        int ka = k0 + threadIdx.x, kb = k0 + threadIdx.y;
        as[threadIdx.y][threadIdx.x] = row < m && ka < k ? a[row * k + ka] : T(0);
        bs[threadIdx.y][threadIdx.x] = kb < k && col < n ? b[kb * n + col] : T(0);
        __syncthreads();
        for (int i = 0; i < TILE; i++) sum += as[threadIdx.y][i] * bs[i][threadIdx.x];
        __syncthreads();
    }
    if (row < m && col < n) c[row * n + col] = sum;
}

extern "C" __global__ void product_f32(const float* a, const float* b, float* c, int m, int n, int k) {
    product(a, b, c, m, n, k);
}

extern "C" __global__ void product_f64(const double* a, const double* b, double* c, int m, int n, int k) {
    product(a, b, c, m, n, k);
}
