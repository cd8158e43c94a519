// Dense linear layers on tensor cores: y = x·Wᵀ + b, and dx = dy·W, from the same copy of W.
//
// C[m×n] = A[m×k]·B, A row-major. Forward: A = x, B = Wᵀ, so that B[k][n] = W[n][k] and both operands are contiguous along
// k. Input gradient: A = dy, B = W, contiguous along n: `ldmatrix.trans` turns it on its way to the registers.
//
// A block of four warps computes a 128×128 tile of C, each warp 64×64 of it in 128 accumulators a thread. It walks k in
// panels of 32 through a ring of three stages of shared memory: while the warps multiply one, `cp.async` fills the next
// two, so that the latency of memory (some 800 clocks) hides behind 2 · 512 clocks of products. 48 KiB of shared memory
// and at most 255 registers: two blocks an SM, whose barriers and epilogues hide each other.
//
// A stage is stored in chunks of 16 bytes, permuted within their row (`place`): the eight rows of a matrix that `ldmatrix`
// reads in one pass lie in eight different groups of four banks, and so do the chunks that eight threads write.
//
// Traffic: each block reads its rows of A and its columns of B once, (m·k·⌈n/128⌉ + k·n·⌈m/128⌉)·2 bytes through L2, which
// holds most of it: blocks walk C in bands of 8 tiles, so that those that run together share rows and columns. C is
// written once, in whole lines, through shared memory. 64 multiply-adds are done for each byte read.

#include "cuda/element.cuh"
#include "cuda/matrix.cuh"

constexpr int WARPS_M = 2, WARPS_N = 2;
constexpr int THREADS = 32 * WARPS_M * WARPS_N;
constexpr int WARP_M = 64, WARP_N = 64;                             // a warp's tile of C
constexpr int TILE_M = WARPS_M * WARP_M, TILE_N = WARPS_N * WARP_N; // a block's
constexpr int TILE_K = 32;                                          // depth of a stage
constexpr int STAGES = 3;
constexpr int CHUNK = 8; // elements of 16 bytes
constexpr int BAND = 8;  // tiles

constexpr int A_BYTES = TILE_M * TILE_K * 2, B_BYTES = TILE_K * TILE_N * 2;

static_assert(STAGES * (A_BYTES + B_BYTES) <= 48 * 1024, "shared memory without opting in to more");
static_assert(WARPS_M * WARPS_N * WARP_M * WARP_N * 2 <= STAGES * (A_BYTES + B_BYTES), "C leaves through the stages");

// Where chunk `chunk` of row `row` lies in a panel of CHUNKS chunks a row, in bytes. With 4 chunks (64 bytes) two rows
// share the 32 banks, with 8 or more one row fills them.
template <int CHUNKS> __device__ int place(int row, int chunk) {
    static_assert(CHUNKS == 4 || CHUNKS % 8 == 0, "rows of 64 bytes, or whole lines");
    return (row * CHUNKS + (CHUNKS == 4 ? chunk ^ (row / 2 & 3) : chunk ^ (row & 7))) * 16;
}

// A row-major matrix.
template <class T> struct Matrix {
    const T* data;
    int rows, cols;
};

// Starts to copy the panel of ROWS rows and CHUNKS chunks from (row, col) into shared memory; zeros outside the matrix.
// Rows that are not a multiple of 16 bytes (EVEN is false) can't be copied by chunks: their elements go through registers.
template <class T, int ROWS, int CHUNKS, bool EVEN>
__device__ void load_panel(unsigned char* panel, const Matrix<T>& from, int row, int col) {
    static_assert(ROWS * CHUNKS % THREADS == 0, "every thread copies as much");
#pragma unroll
    for (int i = 0; i < ROWS * CHUNKS / THREADS; ++i) {
        const int r = (i * THREADS + threadIdx.x) / CHUNKS, c = (i * THREADS + threadIdx.x) % CHUNKS;
        const int at_row = row + r, at_col = col + c * CHUNK;
        unsigned char* to = panel + place<CHUNKS>(r, c);
        const T* source = from.data + size_t(at_row) * from.cols + at_col;
        if constexpr (EVEN) {
            const bool there = at_row < from.rows && at_col < from.cols;
            copy_async(shared_address(to), there ? source : from.data, there ? 16 : 0);
        } else {
            Vector<T, CHUNK> chunk;
            if (at_row < from.rows) {
#pragma unroll
                for (int e = 0; e < CHUNK; ++e) {
                    if (at_col + e < from.cols) chunk.at[e] = source[e];
                }
            }
            *reinterpret_cast<uint4*>(to) = chunk.words;
        }
    }
}

// C = A·B + bias. TRANSPOSED: B is given as its transpose, `[n, k]`; else `[k, n]`.
template <class T, bool TRANSPOSED, bool EVEN>
__device__ void product(const Matrix<T>& a, const Matrix<T>& b, const float* bias, T* c) {
    __shared__ __align__(128) unsigned char shared[STAGES * (A_BYTES + B_BYTES)];
    constexpr int A_CHUNKS = TILE_K / CHUNK, B_CHUNKS = (TRANSPOSED ? TILE_K : TILE_N) / CHUNK;
    const int m = a.rows, k = a.cols, n = TRANSPOSED ? b.rows : b.cols;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int warp_m = warp / WARPS_N * WARP_M, warp_n = warp % WARPS_N * WARP_N;

    // Bands of BAND tiles down m, walked along n.
    const int tiles_m = (m + TILE_M - 1) / TILE_M, tiles_n = (n + TILE_N - 1) / TILE_N;
    const int band = blockIdx.x / (BAND * tiles_n) * BAND, within = blockIdx.x % (BAND * tiles_n);
    const int height = min(BAND, tiles_m - band);
    const int tile_m = (band + within % height) * TILE_M, tile_n = within / height * TILE_N;

    const auto load_stage = [&](int step) {
        unsigned char* stage = shared + step % STAGES * (A_BYTES + B_BYTES);
        load_panel<T, TILE_M, A_CHUNKS, EVEN>(stage, a, tile_m, step * TILE_K);
        if constexpr (TRANSPOSED) {
            load_panel<T, TILE_N, B_CHUNKS, EVEN>(stage + A_BYTES, b, tile_n, step * TILE_K);
        } else {
            load_panel<T, TILE_K, B_CHUNKS, EVEN>(stage + A_BYTES, b, step * TILE_K, tile_n);
        }
    };

    float sums[WARP_M / 16][WARP_N / 8][4] = {};
    const int steps = (k + TILE_K - 1) / TILE_K;
#pragma unroll
    for (int step = 0; step < STAGES - 1; ++step) {
        if (step < steps) load_stage(step);
        copies_commit();
    }
    for (int step = 0; step < steps; ++step) {
        copies_wait<STAGES - 2>();
        // Every thread's part of this stage is there, and no warp reads the stage that is filled next.
        __syncthreads();
        if (step + STAGES - 1 < steps) load_stage(step + STAGES - 1);
        copies_commit();
        const unsigned a_panel = shared_address(shared + step % STAGES * (A_BYTES + B_BYTES)), b_panel = a_panel + A_BYTES;
#pragma unroll
        for (int depth = 0; depth < TILE_K; depth += 16) {
            unsigned a_part[WARP_M / 16][4], b_part[WARP_N / 16][4];
#pragma unroll
            for (int i = 0; i < WARP_M / 16; ++i) {
                // Matrices: rows 0–7 and 8–15 of the first eight k, then of the second.
                const int row = warp_m + i * 16 + lane % 16;
                load_matrices(a_part[i], a_panel + place<A_CHUNKS>(row, depth / CHUNK + lane / 16));
            }
#pragma unroll
            for (int j = 0; j < WARP_N / 16; ++j) {
                // Matrices: the first and the second eight k of columns 0–7, then of 8–15.
                const int col = warp_n + j * 16;
                if constexpr (TRANSPOSED) {
                    const int row = col + lane / 16 * 8 + lane % 8;
                    load_matrices(b_part[j], b_panel + place<B_CHUNKS>(row, depth / CHUNK + lane / 8 % 2));
                } else {
                    const int row = depth + lane % 16;
                    load_matrices_transposed(b_part[j], b_panel + place<B_CHUNKS>(row, col / CHUNK + lane / 16));
                }
            }
#pragma unroll
            for (int i = 0; i < WARP_M / 16; ++i) {
#pragma unroll
                for (int j = 0; j < WARP_N / 8; ++j) {
                    multiply_add<T>(sums[i][j], a_part[i], b_part[j / 2][j % 2 * 2], b_part[j / 2][j % 2 * 2 + 1]);
                }
            }
        }
    }
    copies_wait<0>();
    __syncthreads();

    // Each warp's tile of C through its own part of shared memory, 64 rows of 128 bytes: accumulators are pairs of columns,
    // lines of memory are whole rows.
    constexpr int C_CHUNKS = WARP_N / CHUNK;
    unsigned char* mine = shared + warp * WARP_M * WARP_N * 2;
#pragma unroll
    for (int j = 0; j < WARP_N / 8; ++j) {
        const int col = tile_n + warp_n + j * 8 + lane % 4 * 2;
        const float low = bias && col < n ? bias[col] : 0.0f, high = bias && col + 1 < n ? bias[col + 1] : 0.0f;
#pragma unroll
        for (int i = 0; i < WARP_M / 16; ++i) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int row = i * 16 + half * 8 + lane / 4;
                *reinterpret_cast<unsigned*>(mine + place<C_CHUNKS>(row, j) + lane % 4 * 4) =
                    pack<T>(sums[i][j][half * 2] + low, sums[i][j][half * 2 + 1] + high);
            }
        }
    }
    __syncwarp();
#pragma unroll 4
    for (int i = 0; i < WARP_M * C_CHUNKS / 32; ++i) {
        const int r = i * (32 / C_CHUNKS) + lane / C_CHUNKS, chunk = lane % C_CHUNKS;
        const int row = tile_m + warp_m + r, col = tile_n + warp_n + chunk * CHUNK;
        if (row >= m || col >= n) continue;
        Vector<T, CHUNK> out;
        out.words = *reinterpret_cast<const uint4*>(mine + place<C_CHUNKS>(r, chunk));
        T* to = c + size_t(row) * n + col;
        if constexpr (EVEN) {
            out.store(to);
        } else {
#pragma unroll
            for (int e = 0; e < CHUNK; ++e) {
                if (col + e < n) to[e] = out.at[e];
            }
        }
    }
}

// Two blocks an SM. The names that end in `_odd` take features that are not multiples of 8.
#define LINEAR(NAME, T, EVEN)                                                                                            \
    extern "C" __global__ __launch_bounds__(THREADS, 2) void linear_forward_##NAME(                                      \
        const T* __restrict__ x, const T* __restrict__ weight, const float* __restrict__ bias, int rows, int in,         \
        int out, T* __restrict__ y) {                                                                                    \
        product<T, true, EVEN>(Matrix<T>{x, rows, in}, Matrix<T>{weight, out, in}, bias, y);                             \
    }                                                                                                                    \
    extern "C" __global__ __launch_bounds__(THREADS, 2) void linear_backward_input_##NAME(                               \
        const T* __restrict__ dy, const T* __restrict__ weight, int rows, int in, int out, T* __restrict__ dx) {         \
        product<T, false, EVEN>(Matrix<T>{dy, rows, out}, Matrix<T>{weight, out, in}, nullptr, dx);                      \
    }

LINEAR(bf16, bf16, true)
LINEAR(f16, f16, true)
LINEAR(bf16_odd, bf16, false)
LINEAR(f16_odd, f16, false)
