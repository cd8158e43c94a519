// Matrix products on tensor cores: C[m×n] = A[m×k]·B[k×n] in 16 bits with sums in f32, a tile of C for each block.
//
// `multiply` walks k in panels of 32 through a ring of stages of shared memory: while the warps multiply one panel of A and B,
// `cp.async` fills the next ones. How a panel gets there is the operand's business (`AlongK` and `AcrossK` are the dense
// ones; a packed operand copies what is packed, and unpacks it one step ahead), and what becomes of the sums the caller's:
// `each_pair` hands them out where they are, `store_rows` writes them as rows of 16 bits in whole lines.
//
// A panel is stored in chunks of 16 bytes, permuted within their row (`place`): the eight rows of a matrix that `ldmatrix`
// reads in one pass lie in eight different groups of four banks, and so do the chunks that eight threads write.
#pragma once

#include "cuda/element.cuh"
#include "cuda/matrix.cuh"

constexpr int CHUNK = 8;   // elements of 16 bytes
constexpr int TILE_K = 32; // depth of a panel

// How a block divides its tile of C among its warps, and how many panels are in shared memory.
template <int WARPS_M_, int WARPS_N_, int WARP_M_, int WARP_N_, int STAGES_> struct Tiling {
    static constexpr int WARPS_M = WARPS_M_, WARPS_N = WARPS_N_, WARP_M = WARP_M_, WARP_N = WARP_N_, STAGES = STAGES_;
    static constexpr int THREADS = 32 * WARPS_M * WARPS_N;
    static constexpr int TILE_M = WARPS_M * WARP_M, TILE_N = WARPS_N * WARP_N;
    static constexpr int A_BYTES = TILE_M * TILE_K * 2, B_BYTES = TILE_K * TILE_N * 2;
    static_assert(WARP_M % 16 == 0 && WARP_N % 16 == 0, "fragments of A have 16 rows, those of B come in pairs of 8 columns");
};

// What a warp has of C: for each 16 rows and 8 columns four sums a thread.
template <class S> using Sums = float[S::WARP_M / 16][S::WARP_N / 8][4];

// A row-major matrix.
template <class T> struct Matrix {
    const T* data;
    int rows, cols;
};

// Where chunk `chunk` of row `row` lies in a panel of CHUNKS chunks a row, in bytes. With 4 chunks (64 bytes) two rows
// share the 32 banks, with 2 four; with 8 or more one row fills them.
template <int CHUNKS> __device__ int place(int row, int chunk) {
    static_assert(CHUNKS == 2 || CHUNKS == 4 || CHUNKS % 8 == 0, "rows that share lines, or whole lines");
    const int permuted = CHUNKS == 2 ? chunk ^ (row / 4 & 1) : CHUNKS == 4 ? chunk ^ (row / 2 & 3) : chunk ^ (row & 7);
    return (row * CHUNKS + permuted) * 16;
}

// Starts to copy the panel of ROWS rows and CHUNKS chunks from (row, col) into shared memory; zeros outside the matrix.
// Rows that are not a multiple of 16 bytes (EVEN is false) can't be copied by chunks: their elements go through registers.
template <class T, int THREADS, int ROWS, int CHUNKS, bool EVEN>
__device__ void load_panel(unsigned char* panel, const Matrix<T>& from, int row, int col) {
    constexpr int TURNS = (ROWS * CHUNKS + THREADS - 1) / THREADS;
#pragma unroll
    for (int i = 0; i < TURNS; ++i) {
        const int at = i * THREADS + threadIdx.x;
        if (ROWS * CHUNKS % THREADS != 0 && at >= ROWS * CHUNKS) break;
        const int r = at / CHUNKS, c = at % CHUNKS;
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

// An operand that lies in panels as it is copied: nothing is unpacked.
struct Plain {
    static constexpr bool PACKED = false;
    __device__ void unpack(const unsigned char*, unsigned char*, int) const {}
    __device__ const unsigned char* panel(const unsigned char* stage, const unsigned char*, int) const { return stage; }
};

// A row-major, or B given as its transpose: rows run along k. The panel is EXTENT rows from `first`.
template <class T, int THREADS, int EXTENT, bool EVEN> struct AlongK : Plain {
    static constexpr bool ALONG_K = true;
    static constexpr int BYTES = EXTENT * TILE_K * 2;
    Matrix<T> from;
    int first;

    __device__ AlongK(const Matrix<T>& from, int first) : from(from), first(first) {}
    __device__ void load(unsigned char* stage, int step) const {
        load_panel<T, THREADS, EXTENT, TILE_K / CHUNK, EVEN>(stage, from, first, step * TILE_K);
    }
};

// B row-major, or A given as its transpose: rows run across k. The panel is EXTENT columns from `first`.
template <class T, int THREADS, int EXTENT, bool EVEN> struct AcrossK : Plain {
    static constexpr bool ALONG_K = false;
    static constexpr int BYTES = EXTENT * TILE_K * 2;
    Matrix<T> from;
    int first;

    __device__ AcrossK(const Matrix<T>& from, int first) : from(from), first(first) {}
    __device__ void load(unsigned char* stage, int step) const {
        load_panel<T, THREADS, TILE_K, EXTENT / CHUNK, EVEN>(stage, from, step * TILE_K, first);
    }
};

// Rows `row` … +15 and k `depth` … +15 of a panel of A.
template <bool ALONG_K, int EXTENT> __device__ void read_a(unsigned (&part)[4], unsigned panel, int row, int depth) {
    const int lane = threadIdx.x % 32;
    // Matrices: rows 0–7 and 8–15 of the first eight k, then of the second.
    if constexpr (ALONG_K) {
        load_matrices(part, panel + place<TILE_K / CHUNK>(row + lane % 16, depth / CHUNK + lane / 16));
    } else {
        const int k = depth + lane / 16 * 8 + lane % 8;
        load_matrices_transposed(part, panel + place<EXTENT / CHUNK>(k, row / CHUNK + lane / 8 % 2));
    }
}

// Columns `col` … +15 and k `depth` … +15 of a panel of B.
template <bool ALONG_K, int EXTENT> __device__ void read_b(unsigned (&part)[4], unsigned panel, int col, int depth) {
    const int lane = threadIdx.x % 32;
    // Matrices: the first and the second eight k of columns 0–7, then of 8–15.
    if constexpr (ALONG_K) {
        const int row = col + lane / 16 * 8 + lane % 8;
        load_matrices(part, panel + place<TILE_K / CHUNK>(row, depth / CHUNK + lane / 8 % 2));
    } else {
        load_matrices_transposed(part, panel + place<EXTENT / CHUNK>(depth + lane % 16, col / CHUNK + lane / 16));
    }
}

// Bytes of shared memory that `multiply` needs: the ring, and two panels of B if it is unpacked.
template <class S, class A, class B> __device__ constexpr int shared_bytes() {
    return S::STAGES * (A::BYTES + B::BYTES) + (B::PACKED ? 2 * S::B_BYTES : 0);
}

// sums += A·B over `steps` panels. `shared` has `shared_bytes` and is free again when this returns; every thread of the block
// takes part.
template <class T, class S, class A, class B>
__device__ void multiply(Sums<S>& sums, A& a, B& b, int steps, unsigned char* shared) {
    static_assert(!B::PACKED || S::STAGES >= 3, "one stage to multiply, one to unpack, one to fill");
    constexpr int STAGE = A::BYTES + B::BYTES;
    const int warp = threadIdx.x / 32;
    const int warp_m = warp / S::WARPS_N * S::WARP_M, warp_n = warp % S::WARPS_N * S::WARP_N;
    const auto stage = [&](int step) { return shared + step % S::STAGES * STAGE; };
    const auto spare = [&](int step) { return shared + S::STAGES * STAGE + step % 2 * S::B_BYTES; };
    const auto load = [&](int step) {
        if (step < steps) a.load(stage(step), step), b.load(stage(step) + A::BYTES, step);
        copies_commit();
    };

#pragma unroll
    for (int step = 0; step < S::STAGES - 1; ++step) load(step);
    if constexpr (B::PACKED) {
        copies_wait<S::STAGES - 2>();
        __syncthreads();
        b.unpack(stage(0) + A::BYTES, spare(0), 0);
    }
    for (int step = 0; step < steps; ++step) {
        // Every thread's part of this step's stage is there, and of the next one's where it is unpacked now; no warp
        // reads the stage that is filled, or the panel that is unpacked next.
        copies_wait<S::STAGES - (B::PACKED ? 3 : 2)>();
        __syncthreads();
        load(step + S::STAGES - 1);
        if (B::PACKED && step + 1 < steps) b.unpack(stage(step + 1) + A::BYTES, spare(step + 1), step + 1);
        const unsigned a_panel = shared_address(stage(step));
        const unsigned b_panel = shared_address(b.panel(stage(step) + A::BYTES, spare(step), step));
#pragma unroll
        for (int depth = 0; depth < TILE_K; depth += 16) {
            unsigned a_part[S::WARP_M / 16][4], b_part[S::WARP_N / 16][4];
#pragma unroll
            for (int i = 0; i < S::WARP_M / 16; ++i) {
                read_a<A::ALONG_K, S::TILE_M>(a_part[i], a_panel, warp_m + i * 16, depth);
            }
#pragma unroll
            for (int j = 0; j < S::WARP_N / 16; ++j) {
                read_b<B::ALONG_K, S::TILE_N>(b_part[j], b_panel, warp_n + j * 16, depth);
            }
#pragma unroll
            for (int i = 0; i < S::WARP_M / 16; ++i) {
#pragma unroll
                for (int j = 0; j < S::WARP_N / 8; ++j) {
                    multiply_add<T>(sums[i][j], a_part[i], b_part[j / 2][j % 2 * 2], b_part[j / 2][j % 2 * 2 + 1]);
                }
            }
        }
    }
    copies_wait<0>();
    __syncthreads();
}

// The panels that a depth of k takes.
__device__ inline int panels(int k) { return (k + TILE_K - 1) / TILE_K; }

// Where a block's tile of C begins.
struct Corner {
    int m, n;
};

// The tile of block `block`: bands of BAND tiles down m, walked along n, so that blocks that run together share rows and
// columns in L2.
template <class S> __device__ Corner banded(int block, int m, int n) {
    constexpr int BAND = 1024 / S::TILE_M;
    const int tiles_m = (m + S::TILE_M - 1) / S::TILE_M, tiles_n = (n + S::TILE_N - 1) / S::TILE_N;
    const int band = block / (BAND * tiles_n) * BAND, within = block % (BAND * tiles_n);
    const int height = min(BAND, tiles_m - band);
    return {(band + within % height) * S::TILE_M, within / height * S::TILE_N};
}

// at(col)(row, low, high) for the sums of columns col and col + 1 in every row that the thread has, some of which may lie
// past the edges of C. What a pair of columns needs is loaded once, by at(col). The four threads of a quad have the same rows
// and neighbouring pairs.
template <class S, class At> __device__ void each_pair(Sums<S>& sums, const Corner& corner, At at) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int row = corner.m + warp / S::WARPS_N * S::WARP_M + lane / 4;
    const int col = corner.n + warp % S::WARPS_N * S::WARP_N + lane % 4 * 2;
#pragma unroll
    for (int j = 0; j < S::WARP_N / 8; ++j) {
        auto use = at(col + j * 8);
#pragma unroll
        for (int i = 0; i < S::WARP_M / 16; ++i) {
            use(row + i * 16, sums[i][j][0], sums[i][j][1]);
            use(row + i * 16 + 8, sums[i][j][2], sums[i][j][3]);
        }
    }
}

// Writes C, row-major `[m, n]`, as rows of 16-bit elements in whole lines, after finish(col)(row, low, high) has changed the
// sums of columns col and col + 1. The rows of each warp go through its own part of `shared`, THREADS / 32 times
// WARP_M · WARP_N · 2 bytes. EVEN: n is a multiple of CHUNK.
template <class T, class S, bool EVEN, class Finish>
__device__ void store_rows(
    Sums<S>& sums, const Corner& corner, int m, int n, unsigned char* shared, T* c, Finish finish) {
    constexpr int CHUNKS = S::WARP_N / CHUNK;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int warp_m = corner.m + warp / S::WARPS_N * S::WARP_M, warp_n = corner.n + warp % S::WARPS_N * S::WARP_N;
    unsigned char* mine = shared + warp * S::WARP_M * S::WARP_N * 2;
    each_pair<S>(sums, corner, [&](int col) {
        return [&, col, use = finish(col)](int row, float low, float high) mutable {
            use(row, low, high);
            unsigned char* chunk = mine + place<CHUNKS>(row - warp_m, (col - warp_n) / CHUNK);
            *reinterpret_cast<unsigned*>(chunk + lane % 4 * 4) = pack<T>(low, high);
        };
    });
    __syncwarp();
#pragma unroll 4
    for (int i = 0; i < S::WARP_M * CHUNKS / 32; ++i) {
        const int r = i * (32 / CHUNKS) + lane / CHUNKS, chunk = lane % CHUNKS;
        const int row = warp_m + r, col = warp_n + chunk * CHUNK;
        if (row >= m || col >= n) continue;
        Vector<T, CHUNK> out;
        out.words = *reinterpret_cast<const uint4*>(mine + place<CHUNKS>(r, chunk));
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
