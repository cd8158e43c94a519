// What becomes of a warp's sums of G = dyᵀ·x where a weight has no entry, and where it has one: M⊙G or W⊙G.
//
// A warp's 64×64 of G are four tiles of a packed weight, and of a block of 8×8 each lane has the two entries that the lane's
// pair of bits stands for. Masks are read once for all tokens, and values only where they scale.
#pragma once

#include "cuda/product.cuh"
#include "cuda/scan.cuh"
#include "linear/packed.cuh"
#include "linear/two_four.cuh"

// One entry: g, or g·W, where it is kept.
template <class Value> __device__ float masked(float g, bool kept, bool scaled, Value value) {
    if (!kept) return 0.0f;
    return scaled ? g * value() : g;
}

// A weight in blocks.
struct BlockMask {
    Stored from;

    template <class S> __device__ void apply(Sums<S>& sums, const Corner& mine, bool scaled) const {
        static_assert(S::WARP_M % SIDE == 0 && S::WARP_N % SIDE == 0, "whole tiles");
        const int wide = (from.cols + SIDE - 1) / SIDE, high = (from.rows + SIDE - 1) / SIDE;
        const unsigned lane = threadIdx.x % 32, shift = lane % 16 * 2, below = (1u << shift) - 1;
        const unsigned* masks = reinterpret_cast<const unsigned*>(from.bits);
#pragma unroll
        for (int i = 0; i < S::WARP_M / SIDE; ++i) {
#pragma unroll
            for (int j = 0; j < S::WARP_N / SIDE; ++j) {
                const int row = mine.m / SIDE + i, col = mine.n / SIDE + j;
                const bool there = row < high && col < wide;
                const size_t tile = there ? size_t(row) * wide + col : 0;
                // Each lane a mask word, and where its values begin.
                const unsigned words = there ? masks[tile * 32 + lane] : 0;
                const unsigned starts = from.starts[tile] + warp_scan(unsigned(__popc(words))) - __popc(words);
#pragma unroll
                for (int b = 0; b < 16; ++b) {
                    const unsigned word = __shfl_sync(0xffffffff, words, b * 2 + lane / 16);
                    const unsigned start = __shfl_sync(0xffffffff, starts, b * 2 + lane / 16);
                    const unsigned pair = word >> shift & 3, at = start + __popc(word & below);
                    float* g = &sums[i * 2 + b / 8][j * 4 + b % 4][b / 4 % 2 * 2];
                    g[0] = masked(g[0], pair & 1, scaled, [&] { return read(from.values, from.type, at); });
                    g[1] = masked(g[1], pair & 2, scaled, [&] { return read(from.values, from.type, at + (pair & 1)); });
                }
            }
        }
    }
};

// A weight whose entries are all stored: zeros are those that are not kept.
struct DenseMask {
    const void* values;
    Type type;
    int rows, cols;

    template <class S> __device__ void apply(Sums<S>& sums, const Corner& mine, bool scaled) const {
        each_pair<S>(sums, [&](int col) {
            return [=](int row, float& low, float& high) {
                const bool there = mine.m + row < rows && mine.n + col < cols; // both columns, or neither
                const size_t at = there ? size_t(mine.m + row) * cols + mine.n + col : 0;
                const float2 two = there ? read_two(values, type, at) : make_float2(0.0f, 0.0f);
                low = masked(low, two.x != 0.0f, scaled, [=] { return two.x; });
                high = masked(high, two.y != 0.0f, scaled, [=] { return two.y; });
            };
        });
    }
};

// Two of every four.
struct TwoFourMask {
    TwoFour from;

    template <class S> __device__ void apply(Sums<S>& sums, const Corner& mine, bool scaled) const {
        const unsigned lane = threadIdx.x % 32, row = lane / 4;
#pragma unroll
        for (int i = 0; i < S::WARP_M / SIDE; ++i) {
#pragma unroll
            for (int j = 0; j < S::WARP_N / SIDE; ++j) {
                // Of a tile past the edge G is zero.
                const int at_row = min(mine.m / SIDE + i, from.high() - 1), at_col = min(mine.n / SIDE + j, from.wide() - 1);
                const size_t tile = size_t(at_row) * from.wide() + at_col;
                const uint4 of_row = from.places[tile * 8 + row];
                const unsigned places[4] = {of_row.x, of_row.y, of_row.z, of_row.w};
#pragma unroll
                for (int b = 0; b < 16; ++b) {
                    const unsigned fragment = b / 8, below = b / 4 % 2, right = b % 4 / 2, group = b % 2 * 2 + lane % 4 / 2;
                    const unsigned mine = places[fragment * 2 + right] >> (below * 16 + group * 4);
                    const unsigned pair = (fragment * 32 + row * 4 + group) * 4 + right * 2 + below;
                    float* g = &sums[i * 2 + fragment][j * 4 + b % 4][below * 2];
#pragma unroll
                    for (int e = 0; e < 2; ++e) {
                        const unsigned at = lane % 2 * 2 + e, second = (mine >> 2 & 3) == at;
                        g[e] = masked(g[e], second || (mine & 3) == at, scaled, [&] {
                            return read(from.values, from.type, tile * 512 + pair * 2 + second);
                        });
                    }
                }
            }
        }
    }
};
