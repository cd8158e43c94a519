// Both products of a linear layer, whatever its weight is: y = f(x·Wᵀ + u·Bᵀ + b) + r, and dx = dy·W + v·A.
#pragma once

#include "linear/adapter.cuh"
#include "linear/ending.cuh"

// The adapter's factors: u or v, `[rows of C, rank]`, and B `[n, rank]` or A `[rank, n]`. Rank 0 where there is none.
struct Adapter {
    const float *down, *up;
    Rank rank;
};

// Writes the block's tile of C `[m, n]`: sums and bias, rounded, and changed by `end`.
template <class T, class S, class End>
__device__ void store_layer(Sums<S>& sums, const Corner& corner, int m, int n, const float* bias, T* c, unsigned char* shared,
                            const End& end) {
    const auto add_bias = [&](int col) {
        // n is a multiple of 8: both columns are inside, or neither.
        const float2 b = bias && col < n ? *reinterpret_cast<const float2*>(bias + col) : make_float2(0.0f, 0.0f);
        return [=](float& low, float& high) { low += b.x, high += b.y; };
    };
    store_rows<T, S>(sums, corner, m, n, shared, c, add_bias, end);
}

// X, W: the panels of x (or dy) and of the weight.
template <class T, class S, class W, class X = AlongK<T, S::THREADS, S::TILE_M>> struct Layer {
    using A = Then<X, Split<T, S::THREADS, S::TILE_M, true, 1>>;
    using B = Then<W, Split<T, S::THREADS, S::TILE_N, W::ALONG_K, 2>>;
    static constexpr int SHARED = shared_bytes<S, A, B>();
    static_assert(SHARED >= S::THREADS / 32 * S::WARP_M * S::WARP_N * 2, "C leaves through the stages");

    // The tile of C `[m, n]` at `corner`: `steps` panels of x and w, and the adapter's.
    static __device__ void multiply(Sums<S>& sums, const X& x, const W& w, int steps, int m, int n, const Corner& corner,
                                    const Adapter& adapter, unsigned char* shared) {
        A a_side(x, {adapter.down, m, adapter.rank, corner.m}, steps);
        B b_side(w, {adapter.up, n, adapter.rank, corner.n}, steps);
        ::multiply<T, S>(sums, a_side, b_side, steps + adapter.rank.panels(), shared);
    }

    // The block's tile of C `[a.rows, n]`, rounded, and changed by `end`. The weight's panels are made by `weight(corner)`.
    template <class Weight, class End>
    static __device__ void product(const Matrix<T>& a, int n, Weight weight, const float* bias, const Adapter& adapter,
                                   T* c, unsigned char* shared, const End& end) {
        const Corner corner = banded<S>(blockIdx.x, a.rows, n);
        Sums<S> sums = {};
        multiply(sums, X(a, corner.m), weight(corner), panels(a.cols), a.rows, n, corner, adapter, shared);
        store_layer<T, S>(sums, corner, a.rows, n, bias, c, shared, end);
    }
};
