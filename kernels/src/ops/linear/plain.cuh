// Products by plain multiply-adds, of operands of any type that lie anywhere.
#pragma once

#include "linear/type.cuh"

constexpr int TILE = 64, DEPTH = 16, THREADS = 256, EACH = 4; // TILE and THREADS as in cuda/plain.rs

// An operand: entry (i, k) lies at i·outer + k·inner. As in cuda/plain.rs.
struct Side {
    const void* data;
    unsigned long long outer, inner;
    Type type;
    int unused;

    __device__ float operator()(int i, int k) const { return read(data, type, i * outer + k * inner); }

    // Of a weight by rows: whether an entry is kept, which those are that are not zero, and what it is.
    __device__ bool find(int row, int col, float& w) const {
        w = (*this)(row, col);
        return w != 0.0f;
    }
};

// A packed weight, as kernels/src/weight/block.rs says: entry (i, k) is row i, or turned row k. As in cuda/plain.rs.
struct PackedSide {
    const unsigned long long* bits;
    const unsigned* starts;
    const void* values;
    Type type;
    int cols, turned, unused;

    __device__ float operator()(int i, int k) const {
        float w;
        return find(turned ? k : i, turned ? i : k, w) ? w : 0.0f;
    }

    // Whether an entry is kept, and what it is.
    __device__ bool find(int row, int col, float& w) const {
        const size_t tile = size_t(row / 32) * ((cols + 31) / 32) + col / 32;
        const int block = row % 32 / 8 * 4 + col % 32 / 8, bit = row % 8 * 8 + col % 8;
        const unsigned long long* masks = bits + tile * 16;
        if (!(masks[block] >> bit & 1)) return false;
        size_t at = starts[tile] + __popcll(masks[block] & ((1ull << bit) - 1));
        for (int before = 0; before < block; ++before) at += __popcll(masks[before]);
        w = read(values, type, at);
        return true;
    }
};

// A weight of which two of every four entries are kept, as kernels/src/weight/two_four.rs says. As in cuda/plain.rs.
struct TwoFourSide {
    const void* values;
    const unsigned* places;
    Type type;
    int cols, turned, unused;

    __device__ float operator()(int i, int k) const {
        float w;
        return find(turned ? k : i, turned ? i : k, w) ? w : 0.0f;
    }

    // Whether an entry is kept, and what it is.
    __device__ bool find(unsigned row, unsigned col, float& w) const {
        const size_t tile = size_t(row / 32) * ((cols + 31) / 32) + col / 32;
        const unsigned fragment = row % 32 / 16, below = row % 16 / 8, right = col % 32 / 16, group = col % 16 / 4;
        const unsigned mine = places[tile * 32 + row % 8 * 4 + fragment * 2 + right] >> (below * 16 + group * 4);
        const bool second = (mine >> 2 & 3) == col % 4;
        if (!second && (mine & 3) != col % 4) return false;
        const unsigned pair = (fragment * 32 + row % 8 * 4 + group) * 4 + right * 2 + below;
        w = read(values, type, tile * 512 + pair * 2 + second);
        return true;
    }
};

// C, whose entry (i, j) lies at i·width + j; added to it, it is f32. As in cuda/plain.rs.
struct Target {
    void* data;
    unsigned long long width;
    Type type;
    int add;
};

// What a thread sums of the block's 64×64 of C: rows thread/16, columns thread%16, and every 16 on.
using PlainSums = float[EACH][EACH];

// sums += A·B of depth k, and A₂·B₂ of depth k2 behind it, of the rows of A and columns of B from `row` and `col` on.
template <class B>
__device__ void add_products(PlainSums& sums, const Side& a, const B& b, const Side& a2, const Side& b2, int row, int col, int m,
                             int n, int k, int k2) {
    __shared__ float as[DEPTH][TILE], bs[DEPTH][TILE];
    const unsigned thread = threadIdx.x;
#pragma unroll 1
    for (int from = 0; from < k + k2; from += DEPTH) {
        __syncthreads();
#pragma unroll 1
        for (unsigned at = thread; at < DEPTH * TILE; at += THREADS) {
            const unsigned place = at % TILE, deep = at / TILE;
            const int depth = from + deep, i = row + place, j = col + place;
            as[deep][place] = i >= m || depth >= k + k2 ? 0.0f : depth < k ? a(i, depth) : a2(i, depth - k);
            bs[deep][place] = j >= n || depth >= k + k2 ? 0.0f : depth < k ? b(j, depth) : b2(j, depth - k);
        }
        __syncthreads();
#pragma unroll 2
        for (int deep = 0; deep < DEPTH; ++deep) {
#pragma unroll
            for (int i = 0; i < EACH; ++i) {
#pragma unroll
                for (int j = 0; j < EACH; ++j) {
                    sums[i][j] = fmaf(as[deep][thread / 16 + i * 16], bs[deep][thread % 16 + j * 16], sums[i][j]);
                }
            }
        }
    }
}

// C = scale·(A·B + A₂·B₂) + bias, or C += that.
template <class B>
__device__ void product(const Side& a, const B& b, const Side& a2, const Side& b2, int m, int n, int k, int k2, float scale,
                        const float* bias, const Target& c) {
    const unsigned thread = threadIdx.x;
    PlainSums sums = {};
    add_products(sums, a, b, a2, b2, blockIdx.x * TILE, blockIdx.y * TILE, m, n, k, k2);
    const int row = blockIdx.x * TILE + thread / 16, col = blockIdx.y * TILE + thread % 16;
    // The next row of sums moves up: what is done with one is compiled once.
#pragma unroll 1
    for (int at_row = row; at_row < m && at_row < row + EACH * 16; at_row += 16) {
#pragma unroll
        for (int j = 0; j < EACH; ++j) {
            const int at_col = col + j * 16;
            if (at_col >= n) continue;
            const size_t at = at_row * c.width + at_col;
            const float sum = scale * sums[0][j] + (bias ? bias[at_col] : 0.0f);
            if (c.add) {
                static_cast<float*>(c.data)[at] += sum;
            } else {
                write(c.data, c.type, at, sum);
            }
        }
#pragma unroll
        for (int i = 1; i < EACH; ++i) {
#pragma unroll
            for (int j = 0; j < EACH; ++j) sums[i - 1][j] = sums[i][j];
        }
    }
}
