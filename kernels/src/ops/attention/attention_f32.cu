// Attention in f32, forward and backward: plain multiply-adds, for those who want the digits and not the speed.
//
// As on tensor cores (attention_bf16.cu), tiles of scores live in registers, and each result has one block, which sums in an
// order that the shape decides. A warp owns four rows (queries, or keys in their gradients) and goes through the others 32
// at a time: lane l has the scores of other l, and then features l, l + 32, … of the rows' sums. Both uses read a tile
// whose rows begin in different banks.
//
// Bytes: a tile of 16 rows reads all others that it sees, 32 multiply-adds a feature for each 4 bytes, through L2. Shared
// memory: (2·16 + 2·32)·(features + 1)·4, 48.4 KiB for heads of 128.

#include "attention/delta.cuh"
#include "attention/layout.cuh"
#include "cuda/reduce.cuh"

constexpr int ROWS = 4;                              // of a warp
constexpr int THREADS = 128, OWN = THREADS / 32 * ROWS; // rows of a block
constexpr int OTHERS = 32;                           // rows of a tile of the others
constexpr int SPANS = 4;                             // features of a lane: heads of up to 128

// Rows of a head in shared memory, at a distance of an odd number of banks.
struct Rows {
    float* data;
    int features;

    static __device__ int size(int rows, int features) { return rows * (features + 1); }
    __device__ float* row(int i) const { return data + i * (features + 1); }

    // Zeros past the last token.
    __device__ void load(const Head<const float>& from, int first, int rows) const {
        for (int i = threadIdx.x / 32; i < rows; i += THREADS / 32) {
            const bool there = first + i < from.tokens;
            for (int d = threadIdx.x % 32; d < features; d += 32) row(i)[d] = there ? *from.at(first + i, d) : 0.0f;
        }
    }
};

// s[r] = row r of the warp · this lane's row of the others
__device__ inline void scores(float (&s)[ROWS], const Rows& own, const Rows& others) {
    const float* other = others.row(threadIdx.x % 32);
    const int first = threadIdx.x / 32 * ROWS;
#pragma unroll
    for (int r = 0; r < ROWS; ++r) s[r] = 0.0f;
    for (int d = 0; d < own.features; ++d) {
#pragma unroll
        for (int r = 0; r < ROWS; ++r) s[r] += own.row(first + r)[d] * other[d];
    }
}

// sums[r] += Σ over the others of weight · row, where lane l has the weights of other l.
__device__ inline void accumulate(float (&sums)[ROWS][SPANS], const float (&weights)[ROWS], const Rows& others) {
    const int lane = threadIdx.x % 32;
    for (int other = 0; other < OTHERS; ++other) {
        float weight[ROWS];
#pragma unroll
        for (int r = 0; r < ROWS; ++r) weight[r] = __shfl_sync(0xffffffff, weights[r], other);
#pragma unroll
        for (int span = 0; span < SPANS; ++span) {
            if (lane + 32 * span >= others.features) break;
            const float x = others.row(other)[lane + 32 * span];
#pragma unroll
            for (int r = 0; r < ROWS; ++r) sums[r][span] += weight[r] * x;
        }
    }
}

__device__ inline void store(const float (&sums)[SPANS], float factor, const Head<float>& to, int token) {
    if (token >= to.tokens) return;
#pragma unroll
    for (int span = 0; span < SPANS; ++span) {
        const int feature = threadIdx.x % 32 + 32 * span;
        if (feature < to.features) *to.at(token, feature) = sums[span] * factor;
    }
}

extern "C" __global__ __launch_bounds__(THREADS) void attention_forward_f32(const float* __restrict__ q,
                                                                            const float* __restrict__ k,
                                                                            const float* __restrict__ v, Shape shape,
                                                                            float* __restrict__ out,
                                                                            float* __restrict__ lse) {
    const int lane = threadIdx.x % 32, features = shape.features;
    const float scale = shape.scale * LOG2_E;
    const int tiles = (shape.tokens + OWN - 1) / OWN;
    const Task task(blockIdx.x, shape.heads, tiles);
    // The last tiles see the most keys: they begin first.
    const int first = (tiles - 1 - task.tile) * OWN, warp_first = first + threadIdx.x / 32 * ROWS;
    const int kv_head = task.head / (shape.heads / shape.kv_heads);
    const Head keys(k, shape, shape.kv_heads, task.sequence, kv_head);
    const Head values(v, shape, shape.kv_heads, task.sequence, kv_head);
    const Rows queries{reinterpret_cast<float*>(dynamic), features};
    const Rows k_rows{queries.row(OWN), features}, v_rows{k_rows.row(OTHERS), features};
    queries.load(Head(q, shape, shape.heads, task.sequence, task.head), first, OWN);

    float sums[ROWS][SPANS] = {}, largest[ROWS], weights[ROWS] = {};
#pragma unroll
    for (int r = 0; r < ROWS; ++r) largest[r] = MINUS_INFINITY;
    const int end = min(shape.tokens, first + OWN), begin = max(0, first - shape.window + 1) / OTHERS * OTHERS;
    for (int key = begin; key < end; key += OTHERS) {
        __syncthreads();
        k_rows.load(keys, key, OTHERS);
        v_rows.load(values, key, OTHERS);
        __syncthreads();
        float s[ROWS];
        scores(s, queries, k_rows);
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            if (!is_visible(warp_first + r, key + lane, shape.window)) s[r] = MINUS_INFINITY;
            // As in forward.cuh.
            const float most = fmaxf(largest[r], warp_max(s[r]) * scale);
            const float shift = most == MINUS_INFINITY ? 0.0f : most;
            const float factor = exp2f(largest[r] - shift);
            largest[r] = most;
            s[r] = exp2f(fmaf(s[r], scale, -shift));
            weights[r] = weights[r] * factor + s[r];
#pragma unroll
            for (int span = 0; span < SPANS; ++span) sums[r][span] *= factor;
        }
        accumulate(sums, s, v_rows);
    }
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
        const float weight = warp_sum(weights[r]);
        store(sums[r], 1.0f / weight, Head(out, shape, shape.heads, task.sequence, task.head), warp_first + r);
        if (lane == 0 && warp_first + r < shape.tokens) {
            lse[statistics(shape, task.sequence, task.head) + warp_first + r] =
                (largest[r] + log2f(weight)) * LN_2;
        }
    }
}

extern "C" __global__ __launch_bounds__(THREADS) void attention_key_gradients_f32(
    const float* __restrict__ d_out, const float* __restrict__ q, const float* __restrict__ k,
    const float* __restrict__ v, const float* __restrict__ lse, const float* __restrict__ delta, Shape shape,
    float* __restrict__ dk, float* __restrict__ dv) {
    const int lane = threadIdx.x % 32, features = shape.features, group = shape.heads / shape.kv_heads;
    // The first tiles are seen by the most queries, and begin first.
    const Task task(blockIdx.x, shape.kv_heads, (shape.tokens + OWN - 1) / OWN);
    const int first = task.tile * OWN, warp_first = first + threadIdx.x / 32 * ROWS;
    const Rows k_rows{reinterpret_cast<float*>(dynamic), features}, v_rows{k_rows.row(OWN), features};
    const Rows q_rows{v_rows.row(OWN), features}, d_out_rows{q_rows.row(OTHERS), features};
    k_rows.load(Head(k, shape, shape.kv_heads, task.sequence, task.head), first, OWN);
    v_rows.load(Head(v, shape, shape.kv_heads, task.sequence, task.head), first, OWN);

    float dk_sums[ROWS][SPANS] = {}, dv_sums[ROWS][SPANS] = {};
    const int end = min(shape.tokens, first + OWN - 1 + shape.window);
    for (int head = task.head * group; head < (task.head + 1) * group; ++head) {
        for (int query = first / OTHERS * OTHERS; query < end; query += OTHERS) {
            __syncthreads();
            q_rows.load(Head(q, shape, shape.heads, task.sequence, head), query, OTHERS);
            d_out_rows.load(Head(d_out, shape, shape.heads, task.sequence, head), query, OTHERS);
            __syncthreads();
            const size_t at = statistics(shape, task.sequence, head) + query + lane;
            const bool there = query + lane < shape.tokens;
            const float shift = there ? lse[at] * LOG2_E : 0.0f, mean = there ? delta[at] : 0.0f;
            float p[ROWS], ds[ROWS];
            scores(p, k_rows, q_rows);
            scores(ds, v_rows, d_out_rows);
#pragma unroll
            for (int r = 0; r < ROWS; ++r) {
                const bool visible = there && is_visible(query + lane, warp_first + r, shape.window);
                p[r] = visible ? exp2f(p[r] * (shape.scale * LOG2_E) - shift) : 0.0f;
                ds[r] = p[r] * (ds[r] - mean);
            }
            accumulate(dv_sums, p, d_out_rows);
            accumulate(dk_sums, ds, q_rows);
        }
    }
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
        store(dk_sums[r], shape.scale, Head(dk, shape, shape.kv_heads, task.sequence, task.head), warp_first + r);
        store(dv_sums[r], 1.0f, Head(dv, shape, shape.kv_heads, task.sequence, task.head), warp_first + r);
    }
}

// dq takes dout's place: a block reads its rows of dout before it writes dq there, and no other block reads them.
extern "C" __global__ __launch_bounds__(THREADS) void attention_query_gradients_f32(
    const float* d_out, const float* __restrict__ q, const float* __restrict__ k, const float* __restrict__ v,
    const float* __restrict__ lse, const float* __restrict__ delta, Shape shape, float* dq) {
    const int lane = threadIdx.x % 32, features = shape.features;
    const int tiles = (shape.tokens + OWN - 1) / OWN;
    const Task task(blockIdx.x, shape.heads, tiles);
    const int first = (tiles - 1 - task.tile) * OWN, warp_first = first + threadIdx.x / 32 * ROWS;
    const int kv_head = task.head / (shape.heads / shape.kv_heads);
    const Rows q_rows{reinterpret_cast<float*>(dynamic), features}, d_out_rows{q_rows.row(OWN), features};
    const Rows k_rows{d_out_rows.row(OWN), features}, v_rows{k_rows.row(OTHERS), features};
    q_rows.load(Head(q, shape, shape.heads, task.sequence, task.head), first, OWN);
    d_out_rows.load(Head(d_out, shape, shape.heads, task.sequence, task.head), first, OWN);

    float sums[ROWS][SPANS] = {};
    const int end = min(shape.tokens, first + OWN), begin = max(0, first - shape.window + 1) / OTHERS * OTHERS;
    for (int key = begin; key < end; key += OTHERS) {
        __syncthreads();
        k_rows.load(Head(k, shape, shape.kv_heads, task.sequence, kv_head), key, OTHERS);
        v_rows.load(Head(v, shape, shape.kv_heads, task.sequence, kv_head), key, OTHERS);
        __syncthreads();
        float p[ROWS], ds[ROWS];
        scores(p, q_rows, k_rows);
        scores(ds, d_out_rows, v_rows);
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            const int query = warp_first + r;
            const size_t at = statistics(shape, task.sequence, task.head) + query;
            const bool visible = query < shape.tokens && is_visible(query, key + lane, shape.window);
            p[r] = visible ? exp2f(p[r] * (shape.scale * LOG2_E) - lse[at] * LOG2_E) : 0.0f;
            ds[r] = visible ? p[r] * (ds[r] - delta[at]) : 0.0f;
        }
        accumulate(sums, ds, k_rows);
    }
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
        store(sums[r], shape.scale, Head(dq, shape, shape.heads, task.sequence, task.head), warp_first + r);
    }
}

ATTENTION_DELTA(f32, float)
