// Rotary position embedding, in place.
//
// A warp takes one position, for which the table's row is the same in every head of every sequence: it reads the row once
// and keeps it in registers, while it turns 8 heads for each of its groups of lanes. A group of pairs/V lanes takes one
// head, each lane V pairs: both halves of a head are contiguous, 16 bytes a lane. Four heads a lane are on their way at
// once, for the stores of one must not wait for the loads of the next.
//
// Bytes for N rows of H heads, d rotated features of size e, T positions of the table used: 2·N·H·d·e + R·d·4 with R ≥ T
// rows of the table read, one for each warp (least: 2·N·H·d·e + T·d·4). A warp's 8·32 lanes of 64 bytes make a table's row
// of 64 features of bf16 2 %.
//
// Registers: 70 to 79 a thread by vectors, which is 24 warps an SM with 96 KB on their way, and 40 to 48 by elements. No
// shared memory.

#include "cuda/element.cuh"

constexpr int WARPS = 4; // of a block; a position each
constexpr int HEADS = 8; // that a group of lanes turns
constexpr int FLIGHT = 4; // of them at once

// (a, b) → (a·cos − b·sign·sin, b·cos + a·sign·sin) for features i and i + pairs of every head; row n has position
// n mod `tokens`. cos and sin are [positions, pairs].
template <class T, int V>
__device__ void rotate(T* x, const float* cos, const float* sin, int rows, int tokens, int heads, int head_dim, int pairs,
                       float sign) {
    const int position = blockIdx.x * WARPS + threadIdx.y;
    if (position >= tokens) return;
    const int vectors = pairs / V, width = min(vectors, 32), groups = 32 / width, group = threadIdx.x / width;
    if (group >= groups) return;
    // The heads of this position in all sequences; the last sequence may end before it.
    const int all = (rows - position + tokens - 1) / tokens * heads;
    const int first = blockIdx.y * groups * HEADS, end = min(all, first + groups * HEADS);
    for (int vector = threadIdx.x % width; vector < vectors; vector += width) {
        const int pair = vector * V;
        float c[V], s[V];
        load_columns<V>(c, cos + size_t(position) * pairs + pair);
        load_columns<V>(s, sin + size_t(position) * pairs + pair);
        for (int from = first + group; from < end; from += FLIGHT * groups) {
            Vector<T, V> as[FLIGHT], bs[FLIGHT];
            T* places[FLIGHT];
#pragma unroll
            for (int k = 0; k < FLIGHT; ++k) {
                const int head = from + k * groups;
                const size_t row = size_t(head / heads) * tokens + position;
                places[k] = x + (row * heads + head % heads) * head_dim + pair;
                if (head < end) as[k].load(places[k]), bs[k].load(places[k] + pairs);
            }
#pragma unroll
            for (int k = 0; k < FLIGHT; ++k) {
                if (from + k * groups >= end) break;
                Vector<T, V> a, b;
#pragma unroll
                for (int i = 0; i < V; ++i) {
                    a.set(i, as[k][i] * c[i] - bs[k][i] * (sign * s[i]));
                    b.set(i, bs[k][i] * c[i] + as[k][i] * (sign * s[i]));
                }
                a.store(places[k]), b.store(places[k] + pairs);
            }
        }
    }
}

// By vectors where both `pairs` and `head_dim` are multiples of V, else by elements.
#define ROTARY(NAME, T, V)                                                                                               \
    extern "C" __global__ __launch_bounds__(32 * WARPS) void rotary_##NAME(                                              \
        T* x, const float* __restrict__ cos, const float* __restrict__ sin, int rows, int tokens, int heads,             \
        int head_dim, int pairs, float sign) {                                                                           \
        rotate<T, V>(x, cos, sin, rows, tokens, heads, head_dim, pairs, sign);                                           \
    }

ROTARY(bf16, bf16, 8)
ROTARY(f16, f16, 8)
ROTARY(f32, float, 4)
ROTARY(bf16_odd, bf16, 1)
ROTARY(f16_odd, f16, 1)
ROTARY(f32_odd, float, 1)
