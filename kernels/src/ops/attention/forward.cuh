// Attention forward on tensor cores, as in FlashAttention-2 (Dao 2023): scores of a tile live in registers, become
// probabilities there, and are the left operand of the product with V; no T×T matrix exists.
//
// A block of four warps has 128 queries of one head, each warp 32 of them, and walks the keys that any of them sees in tiles
// of 64 (of 32 above 64 features, for registers): while one is multiplied, `cp.async` fills the other of two stages. Warps
// skip tiles that none of their queries sees, and mask only those that some do not see whole. The largest score so far and
// the sum of exponentials are each thread's own; they are joined over the four lanes of a row.
//
// Bytes: q once, out and lse once; K and V once for each 128 queries that see them, through L2, where the heads of a group
// and of a sequence that run together find them. Shared memory (128 + 4·keys)·features·2: 48 KiB for heads of 64, 64 KiB
// for 128; at most 255 registers: two blocks an SM.
#pragma once

#include "attention/tile.cuh"

template <int HEAD> struct Forward {
    static constexpr int D = HEAD, WARPS = 4, THREADS = 32 * WARPS;
    static constexpr int F = 2; // fragments of 16 rows that a warp has
    static constexpr int QUERIES = 16 * F * WARPS, KEYS = D > 64 ? 32 : 64;
    static constexpr int Q_BYTES = QUERIES * D * 2, K_BYTES = KEYS * D * 2;
    static constexpr int SHARED = Q_BYTES + 2 * 2 * K_BYTES;
    static constexpr int BLOCKS = 2;
};

// The running softmax of a warp's queries: rows f·16 + half·8 + lane/4.
template <int F> struct Softmax {
    float largest[F][2]; // of the scores so far, times scale, rounded
    float sums[F][2];    // of this thread's columns' 2^(scale·score − largest)

    __device__ Softmax() {
#pragma unroll
        for (int f = 0; f < F; ++f) largest[f][0] = largest[f][1] = MINUS_INFINITY, sums[f][0] = sums[f][1] = 0.0f;
    }

    // Scores to probabilities, but for the sum, which `out` is brought up to.
    template <int N, int D>
    __device__ void update(float (&s)[F][N / 8][4], float (&out)[F][D / 8][4], float scale) {
        float factors[F][2];
        bool rises = false;
#pragma unroll
        for (int f = 0; f < F; ++f) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                float most = MINUS_INFINITY;
#pragma unroll
                for (int n = 0; n < N / 8; ++n) most = fmaxf(most, fmaxf(s[f][n][half * 2], s[f][n][half * 2 + 1]));
                most = fmaxf(most, __shfl_xor_sync(0xffffffff, most, 1));
                most = fmaxf(most, __shfl_xor_sync(0xffffffff, most, 2));
                // The product is rounded before it is compared, and what is kept is what was subtracted: a largest score
                // that stays gives the factor 1. A product fused with the difference gives 2^(its rounding), every tile.
                most = fmaxf(largest[f][half], most * scale);
                rises |= most > largest[f][half];
                // Where the window has not begun, nothing has been seen: −∞ less −∞ is no number.
                const float shift = most == MINUS_INFINITY ? 0.0f : most;
                factors[f][half] = power_of_two(largest[f][half] - shift);
                largest[f][half] = most;
                float sum = sums[f][half] * factors[f][half];
#pragma unroll
                for (int n = 0; n < N / 8; ++n) {
#pragma unroll
                    for (int e = half * 2; e < half * 2 + 2; ++e) {
                        s[f][n][e] = power_of_two(fmaf(s[f][n][e], scale, -shift));
                        sum += s[f][n][e];
                    }
                }
                sums[f][half] = sum;
            }
        }
        // After some tiles the largest scores rarely rise.
        if (!__any_sync(0xffffffff, rises)) return;
#pragma unroll
        for (int f = 0; f < F; ++f) {
#pragma unroll
            for (int d = 0; d < D / 8; ++d) {
#pragma unroll
                for (int e = 0; e < 4; ++e) out[f][d][e] *= factors[f][e / 2];
            }
        }
    }

    // The whole rows' sums.
    __device__ float sum(int f, int half) const {
        float sum = sums[f][half];
        sum += __shfl_xor_sync(0xffffffff, sum, 1);
        return sum + __shfl_xor_sync(0xffffffff, sum, 2);
    }
};

template <class T, int HEAD>
__device__ void forward(const T* q, const T* k, const T* v, const Shape& shape, T* out, float* lse) {
    using C = Forward<HEAD>;
    const float scale = shape.scale * LOG2_E;
    constexpr int F = C::F, D = C::D;
    const int lane = threadIdx.x % 32, warp_row = threadIdx.x / 32 * 16 * F;

    const int tiles = (shape.tokens + C::QUERIES - 1) / C::QUERIES;
    const Task task(blockIdx.x, shape.heads, tiles);
    // The last tiles see the most keys: they begin first.
    const int first_query = (tiles - 1 - task.tile) * C::QUERIES, warp_query = first_query + warp_row;
    const int kv_head = task.head / (shape.heads / shape.kv_heads);
    const Head<const T> queries(q, shape, shape.heads, task.sequence, task.head);
    const Head<const T> keys(k, shape, shape.kv_heads, task.sequence, kv_head);
    const Head<const T> values(v, shape, shape.kv_heads, task.sequence, kv_head);
    const unsigned q_tile = shared_address(dynamic), stages = q_tile + C::Q_BYTES;
    const auto stage = [&](int key) { return stages + key / C::KEYS % 2 * 2 * C::K_BYTES; };
    const auto load_stage = [&](int key) {
        load_tile<C::KEYS, D, C::THREADS>(stage(key), keys, key);
        load_tile<C::KEYS, D, C::THREADS>(stage(key) + C::K_BYTES, values, key);
        copies_commit();
    };

    const int end = min(shape.tokens, first_query + C::QUERIES);
    const int begin = max(0, first_query - shape.window + 1) / C::KEYS * C::KEYS;
    load_tile<C::QUERIES, D, C::THREADS>(q_tile, queries, first_query);
    load_stage(begin);

    const TileRows<F, D> rows{q_tile, warp_row};
    Softmax<F> softmax;
    float sums[F][D / 8][4] = {};
    for (int key = begin; key < end; key += C::KEYS) {
        copies_wait<0>();
        // This stage is there, and no warp reads the one that is filled next.
        __syncthreads();
        if (key + C::KEYS < end) load_stage(key + C::KEYS);
        // Some key of the tile is seen by some query of the warp; all keys by all queries.
        const bool some = warp_query < shape.tokens && key < warp_query + 16 * F && key + C::KEYS + shape.window > warp_query + 1;
        const bool all = key + C::KEYS <= warp_query + 1 && key + shape.window >= warp_query + 16 * F;
        if (!some) continue;
        const unsigned k_tile = stage(key);
        float s[F][C::KEYS / 8][4];
        scores<T, F, C::KEYS, D>(s, rows, k_tile);
        if (!all) {
            replace<F, C::KEYS>(s, MINUS_INFINITY, [&](int row, int column) {
                return !is_visible(warp_query + row, key + column, shape.window);
            });
        }
        softmax.template update<C::KEYS, D>(s, sums, scale);
        accumulate<T, F, C::KEYS, D>(sums, s, k_tile + C::K_BYTES);
    }

    float factors[F][2];
#pragma unroll
    for (int f = 0; f < F; ++f) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const float sum = softmax.sum(f, half);
            factors[f][half] = 1.0f / sum;
            const int query = warp_query + f * 16 + half * 8 + lane / 4;
            if (lane % 4 == 0 && query < shape.tokens) {
                lse[statistics(shape, task.sequence, task.head) + query] = (softmax.largest[f][half] + log2f(sum)) * LN_2;
            }
        }
    }
    store_rows<T, F, D>(sums, factors, dynamic, warp_row, Head<T>(out, shape, shape.heads, task.sequence, task.head),
                        first_query);
}

#define ATTENTION_FORWARD(TYPE, HEAD)                                                                                    \
    extern "C" __global__                                                                                                \
    __launch_bounds__(Forward<HEAD>::THREADS, Forward<HEAD>::BLOCKS) void attention_forward_##TYPE##_##HEAD(             \
        const TYPE* __restrict__ q, const TYPE* __restrict__ k, const TYPE* __restrict__ v, Shape shape,                 \
        TYPE* __restrict__ out, float* __restrict__ lse) {                                                               \
        forward<TYPE, HEAD>(q, k, v, shape, out, lse);                                                            \
    }
