// Tiles of tokens × features in shared memory and products of them on tensor cores: what all of attention's kernels for 16
// bits are made of.
//
// A product's sums lie in registers as `mma` leaves them: fragments of 16×8, of which lane l holds columns 2·(l%4) and
// 2·(l%4) + 1 of rows l/4 and l/4 + 8. Two neighbours, packed to 16 bits, are just the left operand of another product of
// depth 16: probabilities go from one product into the next without passing through memory.
#pragma once

#include "attention/layout.cuh"
#include "cuda/element.cuh"
#include "cuda/matrix.cuh"

constexpr int CHUNK = 8; // elements of 16 bytes

// Where chunk `chunk` of row `row` lies in a tile of CHUNKS chunks a row, in bytes. Eight rows' chunks of the same number,
// which `ldmatrix` reads in one pass, lie in eight different groups of four banks, whatever rows' length shares with 32
// banks; and so do eight neighbouring chunks, which eight threads write.
template <int CHUNKS> __device__ int place(int row, int chunk) {
    static_assert(CHUNKS % 2 == 0, "chunks change places within their row");
    constexpr int SWAPPED = CHUNKS % 8 == 0 ? 8 : CHUNKS % 4 == 0 ? 4 : 2;
    return (row * CHUNKS + (chunk ^ (row / (8 / SWAPPED) % SWAPPED))) * 16;
}

// Starts to copy tokens `first` … + ROWS into a tile of D features; zeros past the last token and feature.
template <int ROWS, int D, int THREADS, class T> __device__ void load_tile(unsigned tile, const Head<T>& from, int first) {
    constexpr int CHUNKS = D / CHUNK;
    static_assert(ROWS * CHUNKS % 32 == 0, "every lane of a warp copies as much");
#pragma unroll
    for (int i = 0; i < (ROWS * CHUNKS + THREADS - 1) / THREADS; ++i) {
        const int row = (i * THREADS + threadIdx.x) / CHUNKS, chunk = (i * THREADS + threadIdx.x) % CHUNKS;
        if (ROWS * CHUNKS % THREADS != 0 && row >= ROWS) break;
        const bool there = first + row < from.tokens && chunk * CHUNK < from.features;
        copy_async(tile + place<CHUNKS>(row, chunk), there ? from.at(first + row, chunk * CHUNK) : from.data, there ? 16 : 0);
    }
}

// A warp's rows of a tile as left operand, read from shared memory whenever they are needed.
template <int F, int D> struct TileRows {
    unsigned tile;
    int first;

    __device__ void get(unsigned (&part)[F][4], int depth) const {
        const int lane = threadIdx.x % 32;
#pragma unroll
        for (int f = 0; f < F; ++f) {
            // Matrices: rows 0–7 and 8–15 of the first eight features, then of the second.
            const int row = first + f * 16 + lane % 16;
            load_matrices(part[f], tile + place<D / CHUNK>(row, depth * 2 + lane / 16));
        }
    }
};

// The same, kept in registers.
template <int F, int D> struct KeptRows {
    unsigned parts[D / 16][F][4];

    __device__ explicit KeptRows(const TileRows<F, D>& rows) {
#pragma unroll
        for (int depth = 0; depth < D / 16; ++depth) rows.get(parts[depth], depth);
    }

    __device__ void get(unsigned (&part)[F][4], int depth) const {
#pragma unroll
        for (int f = 0; f < F; ++f) {
#pragma unroll
            for (int i = 0; i < 4; ++i) part[f][i] = parts[depth][f][i];
        }
    }
};

// c[16·F × N] = a · bᵀ, where b is a tile of N rows.
template <class T, int F, int N, int D, class Rows>
__device__ void scores(float (&c)[F][N / 8][4], const Rows& a, unsigned b) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int f = 0; f < F; ++f) {
#pragma unroll
        for (int n = 0; n < N / 8; ++n) c[f][n][0] = c[f][n][1] = c[f][n][2] = c[f][n][3] = 0.0f;
    }
#pragma unroll
    for (int depth = 0; depth < D / 16; ++depth) {
        unsigned a_part[F][4];
        a.get(a_part, depth);
#pragma unroll
        for (int n = 0; n < N / 16; ++n) {
            // Matrices: the first and the second eight features of rows 0–7, then of 8–15.
            unsigned b_part[4];
            load_matrices(b_part, b + place<D / CHUNK>(n * 16 + lane / 16 * 8 + lane % 8, depth * 2 + lane / 8 % 2));
#pragma unroll
            for (int f = 0; f < F; ++f) {
                multiply_add<T>(c[f][n * 2], a_part[f], b_part[0], b_part[1]);
                multiply_add<T>(c[f][n * 2 + 1], a_part[f], b_part[2], b_part[3]);
            }
        }
    }
}

// c[16·F × D] += a · b, where a [16·F × N] is rounded to T and b is a tile of N rows.
template <class T, int F, int N, int D>
__device__ void accumulate(float (&c)[F][D / 8][4], const float (&a)[F][N / 8][4], unsigned b) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int depth = 0; depth < N / 16; ++depth) {
        unsigned a_part[F][4];
#pragma unroll
        for (int f = 0; f < F; ++f) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const float* pair = &a[f][depth * 2 + i / 2][i % 2 * 2];
                a_part[f][i] = pack<T>(pair[0], pair[1]);
            }
        }
#pragma unroll
        for (int d = 0; d < D / 16; ++d) {
            // Matrices: rows 0–7 and 8–15 of the first eight features, then of the second.
            unsigned b_part[4];
            load_matrices_transposed(b_part, b + place<D / CHUNK>(depth * 16 + lane % 16, d * 2 + lane / 16));
#pragma unroll
            for (int f = 0; f < F; ++f) {
                multiply_add<T>(c[f][d * 2], a_part[f], b_part[0], b_part[1]);
                multiply_add<T>(c[f][d * 2 + 1], a_part[f], b_part[2], b_part[3]);
            }
        }
    }
}

// Replaces the sums of the rows and columns that `of` picks.
template <int F, int N, class Of> __device__ void replace(float (&c)[F][N / 8][4], float by, const Of& of) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int f = 0; f < F; ++f) {
#pragma unroll
        for (int n = 0; n < N / 8; ++n) {
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                if (of(f * 16 + e / 2 * 8 + lane / 4, n * 8 + lane % 4 * 2 + e % 2)) c[f][n][e] = by;
            }
        }
    }
}

// The factor of a row, where every row has its own, and where all have one.
template <int F> __device__ float factor_of(const float (&factors)[F][2], int f, int half) { return factors[f][half]; }

__device__ inline float factor_of(float factor, int, int) { return factor; }

// Writes a warp's sums, times their rows' factors, to tokens `first` + `row` … + 16·F of `to`, through its own rows `row` … of
// a tile that no other warp touches: sums are pairs of columns, lines of memory are whole rows.
template <class T, int F, int D, class Factors>
__device__ void store_rows(const float (&c)[F][D / 8][4], const Factors& factors, unsigned char* tile, int row,
                           const Head<T>& to, int first) {
    constexpr int CHUNKS = D / CHUNK;
    const int lane = threadIdx.x % 32;
    __syncwarp();
#pragma unroll
    for (int f = 0; f < F; ++f) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const float factor = factor_of(factors, f, half);
#pragma unroll
            for (int d = 0; d < D / 8; ++d) {
                *reinterpret_cast<unsigned*>(tile + place<CHUNKS>(row + f * 16 + half * 8 + lane / 4, d) + lane % 4 * 4) =
                    pack<T>(c[f][d][half * 2] * factor, c[f][d][half * 2 + 1] * factor);
            }
        }
    }
    __syncwarp();
#pragma unroll 4
    for (int i = lane; i < 16 * F * CHUNKS; i += 32) {
        const int token = first + row + i / CHUNKS, chunk = i % CHUNKS;
        if (token >= to.tokens || chunk * CHUNK >= to.features) continue;
        Vector<T, CHUNK> out;
        out.words = *reinterpret_cast<const uint4*>(tile + place<CHUNKS>(row + i / CHUNKS, chunk));
        out.store(to.at(token, chunk * CHUNK));
    }
}

// 2ˣ, to 2 ulp; 0 below the normal numbers.
__device__ inline float power_of_two(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
