#pragma once

#include "attention/layout.cuh"
#include "cuda/element.cuh"

// δ = dout·out of each query, f32 `[B, H, T]`. A warp takes 32 tokens of a head, some at a time, each by a team of lanes.
constexpr int DELTA_THREADS = 128, DELTA_TOKENS = DELTA_THREADS;

template <class T> __device__ void delta(const T* d_out, const T* out, const Shape& shape, float* delta) {
    constexpr int V = 16 / sizeof(T);
    const int lane = threadIdx.x % 32, chunks = shape.features / V;
    int team = 1;
    while (team < chunks) team *= 2;
    const int at_once = 32 / team;
    const Task task(blockIdx.x, shape.heads, (shape.tokens + DELTA_TOKENS - 1) / DELTA_TOKENS);
    const Head<const T> d_outs(d_out, shape, shape.heads, task.sequence, task.head);
    const Head<const T> outs(out, shape, shape.heads, task.sequence, task.head);
    const int first = task.tile * DELTA_TOKENS + threadIdx.x / 32 * 32;
    float mine = 0.0f;
    for (int round = 0; round < team; ++round) {
        const int token = first + round * at_once + lane / team, chunk = lane % team;
        float sum = 0.0f;
        if (token < shape.tokens && chunk < chunks) {
            Vector<T, V> a, b;
            a.load(d_outs.at(token, chunk * V));
            b.load(outs.at(token, chunk * V));
#pragma unroll
            for (int i = 0; i < V; ++i) sum += a[i] * b[i];
        }
        for (int distance = team / 2; distance > 0; distance /= 2) sum += __shfl_xor_sync(0xffffffff, sum, distance);
        // Token l of the 32 belongs to lane l, which writes it with all others at once.
        sum = __shfl_sync(0xffffffff, sum, lane % at_once * team);
        if (lane / at_once == round) mine = sum;
    }
    if (first + lane < shape.tokens) delta[statistics(shape, task.sequence, task.head) + first + lane] = mine;
}

#define ATTENTION_DELTA(NAME, TYPE)                                                                                            \
    extern "C" __global__ __launch_bounds__(DELTA_THREADS) void attention_delta_##NAME(                                  \
        const TYPE* __restrict__ d_out, const TYPE* __restrict__ out, Shape shape, float* __restrict__ to) {             \
        delta<TYPE>(d_out, out, shape, to);                                                                              \
    }
