// Embeddings and their gradients: rows of a table, by token or by position. All of them move rows, bound by memory.
//
// A lane takes V neighbouring columns, so that a warp's accesses are contiguous on both sides: 16 bytes a lane of the wider
// type, 8 of the narrower. Bytes, with rows of D elements, e of them in activations and E in the table:
//   lookup              N·D·(E + e) + N·32 (a sector for each token's id)      (least: N·D·(E + e) + N·4)
//   positions           N·D·2e + T·D·E                                         (the least)
//   position gradient   N·D·e + T·D·8                                          (the least)
//   lookup gradient     N·D·e + U·D·8 + (N·32 + U·128)·D/C                     (least: N·D·e + U·D·8 + N·4)
// for U different tokens and C = 128·V columns a block; N − U blocks more read 32 bytes each and end. What positions share is read once: a warp keeps it, and walks all
// sequences.
//
// The host sorts tokens into segments of equal ones, in the order of the batch. A block takes a segment: its warps add rows
// w, w + 4, …, then the four sums are added in order, and to the table's row, which is this block's alone: no atomics, the
// same bits on every run and every GPU.
//
// Registers: 16 to 40 a thread, and up to 48 in the gradient of tokens, which has 6 KB of shared memory a block: at least
// 1,280 threads an SM.

#include "cuda/element.cuh"

constexpr int WARPS = 8;

// y_n = E[token_n]. A warp takes a row.
template <class E, class A, int V>
__device__ void lookup(const E* table, const unsigned* tokens, int rows, int cols, A* y) {
    const int row = blockIdx.x * WARPS + threadIdx.y;
    if (row >= rows) return;
    const E* from = table + size_t(tokens[row]) * cols;
    A* to = y + size_t(row) * cols;
#pragma unroll 4
    for (int col = threadIdx.x * V; col < cols; col += 32 * V) {
        Vector<E, V> in;
        Vector<A, V> out;
        in.load(from + col);
#pragma unroll
        for (int i = 0; i < V; ++i) out.set(i, in[i]);
        out.store(to + col);
    }
}

constexpr int FLIGHT = 4; // rows on their way at once

// y_n += P[n mod `tokens`], whose first row starts at element `offset` of the table. A warp takes a position and 32·V columns.
template <class E, class A, int V>
__device__ void add_positions(const E* table, size_t offset, int rows, int tokens, int cols, A* y) {
    const int position = blockIdx.x * WARPS + threadIdx.y, col = (blockIdx.y * 32 + threadIdx.x) * V;
    if (position >= tokens || col >= cols) return;
    Vector<E, V> place;
    place.load(table + offset + size_t(position) * cols + col);
    for (int first = position; first < rows; first += FLIGHT * tokens) {
        Vector<A, V> values[FLIGHT];
        // Stores must not come between loads, which they might change.
#pragma unroll
        for (int k = 0; k < FLIGHT; ++k) {
            if (first + k * tokens < rows) values[k].load(y + size_t(first + k * tokens) * cols + col);
        }
#pragma unroll
        for (int k = 0; k < FLIGHT; ++k) {
            if (first + k * tokens >= rows) break;
#pragma unroll
            for (int i = 0; i < V; ++i) values[k].set(i, values[k][i] + place[i]);
            values[k].store(y + size_t(first + k * tokens) * cols + col);
        }
    }
}

// to[col] … += sums
template <int V> __device__ void add_columns(const float (&sums)[V], float* to) {
    float values[V];
    load_columns<V>(values, to);
#pragma unroll
    for (int i = 0; i < V; ++i) values[i] += sums[i];
    store_columns<V>(values, to);
}

// dP[t] += Σ dy_n over n mod `tokens` = t, in order; as above.
template <class A, int V>
__device__ void position_gradient(const A* dy, int rows, int tokens, int cols, size_t offset, float* d_table) {
    const int position = blockIdx.x * WARPS + threadIdx.y, col = (blockIdx.y * 32 + threadIdx.x) * V;
    if (position >= tokens || col >= cols) return;
    float sums[V] = {};
#pragma unroll 4
    for (int row = position; row < rows; row += tokens) {
        Vector<A, V> values;
        values.load(dy + size_t(row) * cols + col);
#pragma unroll
        for (int i = 0; i < V; ++i) sums[i] += values[i];
    }
    add_columns<V>(sums, d_table + offset + size_t(position) * cols + col);
}

constexpr int SEGMENT_WARPS = 4;
constexpr int STEPS = 4; // vectors of a lane, so that ids cost little beside the columns

// The rows order[first] … order[end] of dy belong to one token; none where they are equal.
struct Segment {
    unsigned token, first, end, unused;
};

// dE[token] += Σ dy_n over the segment's rows.
template <class A, int V>
__device__ void lookup_gradient(const A* dy, const uint4* segments, const unsigned* order, int cols, float* d_table) {
    __shared__ float others[SEGMENT_WARPS - 1][STEPS][V][32];
    const uint4 words = segments[blockIdx.x];
    const Segment segment{words.x, words.y, words.z, words.w};
    // There are as many blocks as tokens, so that the launch is the same whatever they are.
    if (segment.first == segment.end) return;
    const int start = (blockIdx.y * STEPS * 32 + threadIdx.x) * V;
    float sums[STEPS][V] = {};
#pragma unroll 2
    for (unsigned at = segment.first + threadIdx.y; at < segment.end; at += SEGMENT_WARPS) {
        const A* row = dy + size_t(order[at]) * cols;
        Vector<A, V> values[STEPS];
#pragma unroll
        for (int s = 0; s < STEPS; ++s) {
            if (start + s * 32 * V < cols) values[s].load(row + start + s * 32 * V);
        }
#pragma unroll
        for (int s = 0; s < STEPS; ++s) {
#pragma unroll
            for (int i = 0; i < V; ++i) sums[s][i] += values[s][i];
        }
    }
    const int warps = min(segment.end - segment.first, unsigned(SEGMENT_WARPS));
    if (warps > 1) {
        if (threadIdx.y > 0) {
#pragma unroll
            for (int s = 0; s < STEPS; ++s) {
#pragma unroll
                for (int i = 0; i < V; ++i) others[threadIdx.y - 1][s][i][threadIdx.x] = sums[s][i];
            }
        }
        __syncthreads();
    }
    if (threadIdx.y > 0) return;
    for (int warp = 1; warp < warps; ++warp) {
#pragma unroll
        for (int s = 0; s < STEPS; ++s) {
#pragma unroll
            for (int i = 0; i < V; ++i) sums[s][i] += others[warp - 1][s][i][threadIdx.x];
        }
    }
#pragma unroll
    for (int s = 0; s < STEPS; ++s) {
        const int col = start + s * 32 * V;
        if (col < cols) add_columns<V>(sums[s], d_table + size_t(segment.token) * cols + col);
    }
}

// By vectors where the columns are a multiple of V, else by elements.
#define LOOKUP(NAME, E, V)                                                                                               \
    extern "C" __global__ __launch_bounds__(32 * WARPS) void embedding_##NAME(                                           \
        const E* __restrict__ table, const unsigned* __restrict__ tokens, int rows, int cols, bf16* __restrict__ y) {    \
        lookup<E, bf16, V>(table, tokens, rows, cols, y);                                                                \
    }

LOOKUP(bf16, bf16, 8)
LOOKUP(f16, f16, 8)
LOOKUP(f32, float, 4)
LOOKUP(bf16_odd, bf16, 1)
LOOKUP(f16_odd, f16, 1)
LOOKUP(f32_odd, float, 1)

#define POSITIONS(NAME, E, A, V)                                                                                         \
    extern "C" __global__ __launch_bounds__(32 * WARPS) void add_positions_##NAME(                                       \
        const E* __restrict__ table, unsigned long long offset, int rows, int tokens, int cols, A* y) {                  \
        add_positions<E, A, V>(table, offset, rows, tokens, cols, y);                                                    \
    }

// The table's type, then the activations'.
#define POSITIONS_OF(NAME, E, V16, V32)                                                                                  \
    POSITIONS(NAME##_bf16, E, bf16, V16)                                                                                 \
    POSITIONS(NAME##_f16, E, f16, V16)                                                                                   \
    POSITIONS(NAME##_f32, E, float, V32)                                                                                 \
    POSITIONS(NAME##_bf16_odd, E, bf16, 1)                                                                               \
    POSITIONS(NAME##_f16_odd, E, f16, 1)                                                                                 \
    POSITIONS(NAME##_f32_odd, E, float, 1)

POSITIONS_OF(bf16, bf16, 8, 4)
POSITIONS_OF(f16, f16, 8, 4)
POSITIONS_OF(f32, float, 4, 4)

#define GRADIENTS(NAME, A, V)                                                                                            \
    extern "C" __global__ __launch_bounds__(32 * WARPS) void position_gradient_##NAME(                                   \
        const A* __restrict__ dy, int rows, int tokens, int cols, unsigned long long offset,                             \
        float* __restrict__ d_table) {                                                                                   \
        position_gradient<A, V>(dy, rows, tokens, cols, offset, d_table);                                                \
    }                                                                                                                    \
    extern "C" __global__ __launch_bounds__(32 * SEGMENT_WARPS) void embedding_gradient_##NAME(                          \
        const A* __restrict__ dy, const uint4* __restrict__ segments, const unsigned* __restrict__ order, int cols,      \
        float* __restrict__ d_table) {                                                                                   \
        lookup_gradient<A, V>(dy, segments, order, cols, d_table);                                                       \
    }

GRADIENTS(bf16, bf16, 4)
GRADIENTS(f16, f16, 4)
GRADIENTS(f32, float, 4)
GRADIENTS(bf16_odd, bf16, 1)
GRADIENTS(f16_odd, f16, 1)
GRADIENTS(f32_odd, float, 1)
