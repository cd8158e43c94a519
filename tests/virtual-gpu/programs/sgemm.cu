// A matrix product as hand-tuned ones are written: tiles of 64×64 by 16, vector loads, the next tile fetched into
// registers while this one is multiplied, 4×4 results a thread; and one whose tiles come by asynchronous copies.

#include <cuda_pipeline.h>

constexpr int BM = 64, BN = 64, BK = 16, TM = 4, TN = 4;

template <bool Edge>
__device__ __forceinline__ float4 load4(const float* __restrict__ p, int row, int col, int rows, int cols) {
    if constexpr (Edge) {
        float v[4];
#pragma unroll
        for (int i = 0; i < 4; i++) v[i] = row < rows && col + i < cols ? p[(size_t)row * cols + col + i] : 0.0f;
        return make_float4(v[0], v[1], v[2], v[3]);
    } else {
        return *reinterpret_cast<const float4*>(p + (size_t)row * cols + col);
    }
}

template <bool Edge>
__device__ void product(int m, int n, int k, float alpha, const float* a, const float* b, float beta, float* c) {
    __shared__ float as[2][BK][BM + 4];
    __shared__ float bs[2][BK][BN];
    const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
    const int arow = threadIdx.x / 4, acol = threadIdx.x % 4 * 4;
    const int brow = threadIdx.x / 16, bcol = threadIdx.x % 16 * 4;
    const int row0 = blockIdx.y * BM, col0 = blockIdx.x * BN;
    float acc[TM][TN] = {};
    auto keep = [&](int s, float4 x, float4 y) {
        as[s][acol][arow] = x.x;
        as[s][acol + 1][arow] = x.y;
        as[s][acol + 2][arow] = x.z;
        as[s][acol + 3][arow] = x.w;
        *reinterpret_cast<float4*>(&bs[s][brow][bcol]) = y;
    };
    keep(0, load4<Edge>(a, row0 + arow, acol, m, k), load4<Edge>(b, brow, col0 + bcol, k, n));
    __syncthreads();
    int stage = 0;
    for (int k0 = 0; k0 < k; k0 += BK) {
        float4 nexta, nextb;
        bool more = k0 + BK < k;
        if (more) {
            nexta = load4<Edge>(a, row0 + arow, k0 + BK + acol, m, k);
            nextb = load4<Edge>(b, k0 + BK + brow, col0 + bcol, k, n);
        }
#pragma unroll
        for (int kk = 0; kk < BK; kk++) {
            float4 x = *reinterpret_cast<float4*>(&as[stage][kk][ty * TM]);
            float4 y = *reinterpret_cast<float4*>(&bs[stage][kk][tx * TN]);
            float xs[TM] = {x.x, x.y, x.z, x.w}, ys[TN] = {y.x, y.y, y.z, y.w};
#pragma unroll
            for (int i = 0; i < TM; i++)
#pragma unroll
                for (int j = 0; j < TN; j++) acc[i][j] = fmaf(xs[i], ys[j], acc[i][j]);
        }
        if (more) {
            stage ^= 1;
            keep(stage, nexta, nextb);
            __syncthreads();
        }
    }
#pragma unroll
    for (int i = 0; i < TM; i++)
#pragma unroll
        for (int j = 0; j < TN; j++) {
            int row = row0 + ty * TM + i, col = col0 + tx * TN + j;
            if (!Edge || (row < m && col < n)) {
                float* out = c + (size_t)row * n + col;
                *out = beta == 0.0f ? alpha * acc[i][j] : alpha * acc[i][j] + beta * *out;
            }
        }
}

extern "C" __global__ __launch_bounds__(256, 2) void sgemm(int m, int n, int k, float alpha, const float* a, const float* b,
                                                           float beta, float* c) {
    if (m % BM == 0 && n % BN == 0 && k % BK == 0) {
        product<false>(m, n, k, alpha, a, b, beta, c);
    } else {
        product<true>(m, n, k, alpha, a, b, beta, c);
    }
}

// C = A·B over whole 32×32 tiles that arrive by `cp.async`, three stages deep, through the toolkit's pipeline.
extern "C" __global__ void staged(int k, int n, const float* a, const float* b, float* c) {
    extern __shared__ __align__(16) float tiles[];
    constexpr int T = 32, STAGES = 3;
    float* as = tiles;
    float* bs = tiles + STAGES * T * T;
    int x = threadIdx.x, y = threadIdx.y, row = blockIdx.y * T, col = blockIdx.x * T;
    auto fetch = [&](int t) {
        int s = t % STAGES;
        if (t * T < k) {
            // 32×8 threads of four floats each.
            int r = (y * 32 + x) / 8, q = (y * 32 + x) % 8 * 4;
            __pipeline_memcpy_async(&as[s * T * T + r * T + q], &a[(size_t)(row + r) * k + t * T + q], 16);
            __pipeline_memcpy_async(&bs[s * T * T + r * T + q], &b[(size_t)(t * T + r) * n + col + q], 16);
        }
        __pipeline_commit();
    };
    float acc[4] = {};
    fetch(0);
    fetch(1);
    for (int t = 0; t * T < k; t++) {
        fetch(t + 2);
        __pipeline_wait_prior(2);
        __syncthreads();
        int s = t % STAGES;
        for (int kk = 0; kk < T; kk++)
#pragma unroll
            for (int i = 0; i < 4; i++) acc[i] += as[s * T * T + (y + 8 * i) * T + kk] * bs[s * T * T + kk * T + x];
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < 4; i++) c[(size_t)(row + y + 8 * i) * n + col + x] = acc[i];
}
