// Attention backward on tensor cores (Dao 2023, algorithm 2), in two kernels instead of one with atomics: each gradient has
// one block, which sums in an order that the shape decides. Scores are computed twice for that: seven products instead of
// five.
//
// `key_gradients`: a block has 128 keys of one key/value head and walks all queries that see them, of every head of the group:
// dv += pᵀ·dout, dk += dsᵀ·q, with p = exp(scale·q·kᵀ − lse) and ds = p·(dout·vᵀ − δ). Scores are transposed: keys are the
// rows, so that p and ds are left operands as they lie.
// `query_gradients`: a block has 128 queries, in registers, and walks the keys that they see: dq += ds·k.
//
// Bytes: what a block owns once, the others once for each 128 of its own that see them, through L2. Above 64 features a
// warp has 16 rows instead of 32 and a block eight warps; at most 255 registers.
#pragma once

#include "attention/tile.cuh"

template <int HEAD> struct KeyGradients {
    static constexpr int D = HEAD;
    static constexpr int F = D > 64 ? 1 : 2, WARPS = D > 64 ? 8 : 4, THREADS = 32 * WARPS, BLOCKS = D > 64 ? 1 : 2;
    static constexpr int KEYS = 16 * F * WARPS, QUERIES = D == 80 ? 64 : 32;
    static constexpr int K_BYTES = KEYS * D * 2, Q_BYTES = QUERIES * D * 2;
    static constexpr int STAGE = 2 * Q_BYTES + 2 * QUERIES * 4; // q, dout, lse, δ
    static constexpr int SHARED = 2 * K_BYTES + 2 * STAGE;
    static_assert(KEYS % QUERIES == 0, "a tile of keys begins with a tile of queries");
    static_assert(2 * QUERIES <= THREADS, "each thread copies a statistic");
};

template <class T, int HEAD>
__device__ void key_gradients(const T* d_out, const T* q, const T* k, const T* v, const float* lse, const float* delta,
                              const Shape& shape, T* dk, T* dv) {
    using C = KeyGradients<HEAD>;
    constexpr int F = C::F, D = C::D, QUERIES = C::QUERIES;
    const float scale = shape.scale * LOG2_E;
    const int lane = threadIdx.x % 32, warp_row = threadIdx.x / 32 * 16 * F;

    // The first tiles are seen by the most queries, and begin first.
    const Task task(blockIdx.x, shape.kv_heads, (shape.tokens + C::KEYS - 1) / C::KEYS);
    const int first_key = task.tile * C::KEYS, warp_key = first_key + warp_row, group = shape.heads / shape.kv_heads;
    const unsigned k_tile = shared_address(dynamic), v_tile = k_tile + C::K_BYTES, stages = v_tile + C::K_BYTES;
    load_tile<C::KEYS, D, C::THREADS>(k_tile, Head(k, shape, shape.kv_heads, task.sequence, task.head), first_key);
    load_tile<C::KEYS, D, C::THREADS>(v_tile, Head(v, shape, shape.kv_heads, task.sequence, task.head), first_key);

    // All tiles of queries that see some of these keys, of one head of the group after the other.
    const int end_query = min(shape.tokens, first_key + C::KEYS - 1 + shape.window);
    const int tiles = (end_query - first_key + QUERIES - 1) / QUERIES, steps = group * tiles;
    const auto load_stage = [&](int step) {
        const unsigned stage = stages + step % 2 * C::STAGE;
        const int head = task.head * group + step / tiles, query = first_key + step % tiles * QUERIES;
        load_tile<QUERIES, D, C::THREADS>(stage, Head(q, shape, shape.heads, task.sequence, head), query);
        load_tile<QUERIES, D, C::THREADS>(stage + C::Q_BYTES, Head(d_out, shape, shape.heads, task.sequence, head), query);
        const int at = query + threadIdx.x % QUERIES;
        if (threadIdx.x < 2 * QUERIES) {
            const bool there = at < shape.tokens;
            const float* from = threadIdx.x < QUERIES ? lse : delta;
            copy_async_word(stage + 2 * C::Q_BYTES + threadIdx.x * 4,
                            from + statistics(shape, task.sequence, head) + (there ? at : 0), there);
        }
        copies_commit();
    };

    const TileRows<F, D> k_rows{k_tile, warp_row}, v_rows{v_tile, warp_row};
    float dk_sums[F][D / 8][4] = {}, dv_sums[F][D / 8][4] = {};
    load_stage(0);
    for (int step = 0; step < steps; ++step) {
        copies_wait<0>();
        // This stage is there, and no warp reads the one that is filled next.
        __syncthreads();
        if (step + 1 < steps) load_stage(step + 1);
        const int query = first_key + step % tiles * QUERIES;
        // Some query of the tile sees some key of the warp; all see all.
        const bool some = query + QUERIES > warp_key && query - shape.window < warp_key + 16 * F - 1;
        const bool all = query >= warp_key + 16 * F - 1 && query + QUERIES - 1 - shape.window < warp_key;
        if (!some) continue;
        const unsigned q_tile = stages + step % 2 * C::STAGE, d_out_tile = q_tile + C::Q_BYTES;
        // This lane's queries are two neighbours of every eight.
        const float2* statistics = reinterpret_cast<const float2*>(
            dynamic + 2 * C::K_BYTES + step % 2 * C::STAGE + 2 * C::Q_BYTES + lane % 4 * 8);

        float p[F][QUERIES / 8][4], ds[F][QUERIES / 8][4];
        scores<T, F, QUERIES, D>(p, k_rows, q_tile);
#pragma unroll
        for (int n = 0; n < QUERIES / 8; ++n) {
            const float2 shifts = statistics[n * 4];
#pragma unroll
            for (int f = 0; f < F; ++f) {
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    p[f][n][e] = power_of_two(p[f][n][e] * scale - (e % 2 ? shifts.y : shifts.x) * LOG2_E);
                }
            }
        }
        if (!all) {
            replace<F, QUERIES>(p, 0.0f, [&](int row, int column) {
                return !is_visible(query + column, warp_key + row, shape.window);
            });
        }
        accumulate<T, F, QUERIES, D>(dv_sums, p, d_out_tile);
        scores<T, F, QUERIES, D>(ds, v_rows, d_out_tile);
#pragma unroll
        for (int n = 0; n < QUERIES / 8; ++n) {
            const float2 deltas = statistics[QUERIES / 2 + n * 4];
#pragma unroll
            for (int f = 0; f < F; ++f) {
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    ds[f][n][e] = p[f][n][e] * (ds[f][n][e] - (e % 2 ? deltas.y : deltas.x));
                }
            }
        }
        accumulate<T, F, QUERIES, D>(dk_sums, ds, q_tile);
    }

    // A warp's rows of the keys and values are its own.
    store_rows<T, F, D>(dk_sums, shape.scale, dynamic, warp_row, Head(dk, shape, shape.kv_heads, task.sequence, task.head), first_key);
    store_rows<T, F, D>(dv_sums, 1.0f, dynamic + C::K_BYTES, warp_row, Head(dv, shape, shape.kv_heads, task.sequence, task.head), first_key);
}

template <int HEAD> struct QueryGradients {
    static constexpr int D = HEAD;
    static constexpr int F = D > 64 ? 1 : 2, WARPS = D > 64 ? 8 : 4, THREADS = 32 * WARPS, BLOCKS = D > 64 ? 1 : 2;
    static constexpr int QUERIES = 16 * F * WARPS, KEYS = D > 64 ? 64 : 32;
    static constexpr int Q_BYTES = QUERIES * D * 2, K_BYTES = KEYS * D * 2, STAGE = 2 * K_BYTES;
    static constexpr int SHARED = 2 * (Q_BYTES > STAGE ? Q_BYTES : STAGE); // q and dout; then stages of k and v
};

// dq takes dout's place: a block reads its rows of dout before it writes dq there, and no other block reads them.
template <class T, int HEAD>
__device__ void query_gradients(const T* d_out, const T* q, const T* k, const T* v, const float* lse, const float* delta,
                                const Shape& shape, T* dq) {
    using C = QueryGradients<HEAD>;
    constexpr int F = C::F, D = C::D, KEYS = C::KEYS;
    const float scale = shape.scale * LOG2_E;
    const int lane = threadIdx.x % 32, warp_row = threadIdx.x / 32 * 16 * F;

    const int tiles = (shape.tokens + C::QUERIES - 1) / C::QUERIES;
    const Task task(blockIdx.x, shape.heads, tiles);
    const int first_query = (tiles - 1 - task.tile) * C::QUERIES, warp_query = first_query + warp_row;
    const unsigned shared = shared_address(dynamic);
    load_tile<C::QUERIES, D, C::THREADS>(shared, Head(q, shape, shape.heads, task.sequence, task.head), first_query);
    load_tile<C::QUERIES, D, C::THREADS>(shared + C::Q_BYTES, Head(d_out, shape, shape.heads, task.sequence, task.head), first_query);
    copies_commit();
    copies_wait<0>();
    __syncthreads();
    const KeptRows<F, D> q_rows(TileRows<F, D>{shared, warp_row});
    const KeptRows<F, D> d_out_rows(TileRows<F, D>{shared + C::Q_BYTES, warp_row});
    float shifts[F][2], deltas[F][2];
#pragma unroll
    for (int f = 0; f < F; ++f) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int query = warp_query + f * 16 + half * 8 + lane / 4;
            const size_t at = statistics(shape, task.sequence, task.head) + query;
            shifts[f][half] = query < shape.tokens ? lse[at] * LOG2_E : 0.0f;
            deltas[f][half] = query < shape.tokens ? delta[at] : 0.0f;
        }
    }
    __syncthreads();

    const int kv_head = task.head / (shape.heads / shape.kv_heads);
    const Head<const T> keys(k, shape, shape.kv_heads, task.sequence, kv_head);
    const Head<const T> values(v, shape, shape.kv_heads, task.sequence, kv_head);
    const auto stage = [&](int key) { return shared + key / KEYS % 2 * C::STAGE; };
    const auto load_stage = [&](int key) {
        load_tile<KEYS, D, C::THREADS>(stage(key), keys, key);
        load_tile<KEYS, D, C::THREADS>(stage(key) + C::K_BYTES, values, key);
        copies_commit();
    };
    const int end = min(shape.tokens, first_query + C::QUERIES);
    const int begin = max(0, first_query - shape.window + 1) / KEYS * KEYS;
    load_stage(begin);
    float sums[F][D / 8][4] = {};
    for (int key = begin; key < end; key += KEYS) {
        copies_wait<0>();
        __syncthreads();
        if (key + KEYS < end) load_stage(key + KEYS);
        // As in forward.
        const bool some = warp_query < shape.tokens && key < warp_query + 16 * F && key + KEYS + shape.window > warp_query + 1;
        const bool all = key + KEYS <= warp_query + 1 && key + shape.window >= warp_query + 16 * F;
        if (!some) continue;
        const unsigned k_tile = stage(key), v_tile = k_tile + C::K_BYTES;
        float p[F][KEYS / 8][4], ds[F][KEYS / 8][4];
        scores<T, F, KEYS, D>(p, q_rows, k_tile);
        scores<T, F, KEYS, D>(ds, d_out_rows, v_tile);
#pragma unroll
        for (int f = 0; f < F; ++f) {
#pragma unroll
            for (int n = 0; n < KEYS / 8; ++n) {
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    ds[f][n][e] = power_of_two(p[f][n][e] * scale - shifts[f][e / 2]) * (ds[f][n][e] - deltas[f][e / 2]);
                }
            }
        }
        if (!all) {
            replace<F, KEYS>(ds, 0.0f, [&](int row, int column) {
                return !is_visible(warp_query + row, key + column, shape.window);
            });
        }
        accumulate<T, F, KEYS, D>(sums, ds, k_tile);
    }
    // No warp reads the stages.
    __syncthreads();
    store_rows<T, F, D>(sums, shape.scale, dynamic, warp_row, Head(dq, shape, shape.heads, task.sequence, task.head), first_query);
}

#define ATTENTION_BACKWARD(TYPE, HEAD)                                                                                   \
    extern "C" __global__ __launch_bounds__(KeyGradients<HEAD>::THREADS, KeyGradients<HEAD>::BLOCKS)                     \
    void attention_key_gradients_##TYPE##_##HEAD(                                                                        \
        const TYPE* __restrict__ d_out, const TYPE* __restrict__ q, const TYPE* __restrict__ k,                          \
        const TYPE* __restrict__ v, const float* __restrict__ lse, const float* __restrict__ delta, Shape shape,         \
        TYPE* __restrict__ dk, TYPE* __restrict__ dv) {                                                                  \
        key_gradients<TYPE, HEAD>(d_out, q, k, v, lse, delta, shape, dk, dv);                                            \
    }                                                                                                                    \
    extern "C" __global__ __launch_bounds__(QueryGradients<HEAD>::THREADS, QueryGradients<HEAD>::BLOCKS)                 \
    void attention_query_gradients_##TYPE##_##HEAD(                                                                      \
        const TYPE* d_out, const TYPE* __restrict__ q, const TYPE* __restrict__ k, const TYPE* __restrict__ v,           \
        const float* __restrict__ lse, const float* __restrict__ delta, Shape shape, TYPE* dq) {                         \
        query_gradients<TYPE, HEAD>(d_out, q, k, v, lse, delta, shape, dq);                                              \
    }
