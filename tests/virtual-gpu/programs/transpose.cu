// A transpose by tiles of 32 × 32 through shared memory, a column wider so that its columns lie in different banks; and
// the same without that column.

constexpr int TILE = 32, ROWS = 8;

template <int PAD>
__device__ void transpose(const float* in, float* out, int width, int height) {
    __shared__ float tile[TILE][TILE + PAD];
    int x = blockIdx.x * TILE + threadIdx.x, y = blockIdx.y * TILE + threadIdx.y;
    for (int j = 0; j < TILE; j += ROWS)
        if (x < width && y + j < height) tile[threadIdx.y + j][threadIdx.x] = in[(y + j) * width + x];
    __syncthreads();
    x = blockIdx.y * TILE + threadIdx.x;
    y = blockIdx.x * TILE + threadIdx.y;
    for (int j = 0; j < TILE; j += ROWS)
        if (x < height && y + j < width) out[(y + j) * height + x] = tile[threadIdx.x][threadIdx.y + j];
}

extern "C" __global__ void transpose_padded(const float* in, float* out, int width, int height) {
    transpose<1>(in, out, width, height);
}

extern "C" __global__ void transpose_conflicts(const float* in, float* out, int width, int height) {
    transpose<0>(in, out, width, height);
}
