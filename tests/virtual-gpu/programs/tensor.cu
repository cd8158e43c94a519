// Products on tensor cores: by the toolkit's wmma, and by ldmatrix and mma in assembly with a pipeline of asynchronous
// copies.

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <mma.h>

using namespace nvcuda;

// One warp, one 16 × 16 tile of C = A·B, row by row in memory.
extern "C" __global__ void wmma_product(const __half* a, const __half* b, float* c, int n, int k) {
    wmma::fragment<wmma::accumulator, 16, 16, 16, float> sum;
    wmma::fill_fragment(sum, 0.0f);
    for (int k0 = 0; k0 < k; k0 += 16) {
        wmma::fragment<wmma::matrix_a, 16, 16, 16, __half, wmma::row_major> fa;
        wmma::fragment<wmma::matrix_b, 16, 16, 16, __half, wmma::row_major> fb;
        wmma::load_matrix_sync(fa, a + blockIdx.y * 16 * k + k0, k);
        wmma::load_matrix_sync(fb, b + k0 * n + blockIdx.x * 16, n);
        wmma::mma_sync(sum, fa, fb, sum);
    }
    for (int i = 0; i < sum.num_elements; i++) sum.x[i] *= 0.5f;
    wmma::store_matrix_sync(c + blockIdx.y * 16 * n + blockIdx.x * 16, sum, n, wmma::mem_row_major);
}

constexpr int TILE_M = 64, TILE_N = 32, TILE_K = 32, STAGES = 3, PITCH = TILE_K + 8;

__device__ void copy16(void* to, const void* from) {
    unsigned shared = (unsigned)__cvta_generic_to_shared(to);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared), "l"(from));
}

// C = A·Bᵀ: A is [m, k], B is [n, k], both row by row; four warps, 16 rows each.
extern "C" __global__ void __launch_bounds__(128) mma_product(const __nv_bfloat16* a, const __nv_bfloat16* b, float* c, int n, int k) {
    __shared__ __align__(16) __nv_bfloat16 as[STAGES][TILE_M][PITCH], bs[STAGES][TILE_N][PITCH];
    int t = threadIdx.x, lane = t % 32, warp = t / 32;
    a += blockIdx.y * TILE_M * k;
    b += blockIdx.x * TILE_N * k;
    auto fetch = [&](int stage, int k0) {
        for (int i = t; i < TILE_M * TILE_K / 8; i += 128) copy16(&as[stage][i / 4][i % 4 * 8], a + i / 4 * k + k0 + i % 4 * 8);
        for (int i = t; i < TILE_N * TILE_K / 8; i += 128) copy16(&bs[stage][i / 4][i % 4 * 8], b + i / 4 * k + k0 + i % 4 * 8);
    };
    float sum[TILE_N / 8][4] = {};
    int tiles = k / TILE_K;
    for (int s = 0; s < STAGES - 1; s++) {
        if (s < tiles) fetch(s, s * TILE_K);
        asm volatile("cp.async.commit_group;");
    }
    for (int i = 0; i < tiles; i++) {
        asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 2));
        __syncthreads();
        if (i + STAGES - 1 < tiles) fetch((i + STAGES - 1) % STAGES, (i + STAGES - 1) * TILE_K);
        asm volatile("cp.async.commit_group;");
        int stage = i % STAGES;
        for (int kk = 0; kk < TILE_K; kk += 16) {
            unsigned fa[4];
            unsigned address = (unsigned)__cvta_generic_to_shared(&as[stage][warp * 16 + lane % 16][kk + lane / 16 * 8]);
            asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                         : "=r"(fa[0]), "=r"(fa[1]), "=r"(fa[2]), "=r"(fa[3])
                         : "r"(address));
            for (int j = 0; j < TILE_N / 8; j++) {
                unsigned fb[2];
                address = (unsigned)__cvta_generic_to_shared(&bs[stage][j * 8 + lane % 8][kk + lane / 8 % 2 * 8]);
                asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];" : "=r"(fb[0]), "=r"(fb[1]) : "r"(address));
                asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                             "{%0, %1, %2, %3};"
                             : "+f"(sum[j][0]), "+f"(sum[j][1]), "+f"(sum[j][2]), "+f"(sum[j][3])
                             : "r"(fa[0]), "r"(fa[1]), "r"(fa[2]), "r"(fa[3]), "r"(fb[0]), "r"(fb[1]));
            }
        }
    }
    int row = blockIdx.y * TILE_M + warp * 16 + lane / 4, col = blockIdx.x * TILE_N + lane % 4 * 2;
    for (int j = 0; j < TILE_N / 8; j++) {
        *(float2*)&c[row * n + col + j * 8] = make_float2(sum[j][0], sum[j][1]);
        *(float2*)&c[(row + 8) * n + col + j * 8] = make_float2(sum[j][2], sum[j][3]);
    }
}
