// Maps of arrays, element by element: bound by memory, every array is moved once, 16 bytes a thread and access. A block of
// 256 threads takes as many vectors in a row; an SM has 2,048 threads and so 32 KB of each array on their way.
#pragma once

#include "cuda/element.cuh"

constexpr int POINTWISE_THREADS = 256;

// This thread's part of arrays of `len` elements: a vector, of which the last may be shorter, and threads past it have
// none. Every array starts at a multiple of 16 bytes.
template <class T> struct Piece {
    static constexpr int V = 16 / sizeof(T);
    size_t index; // of the vector
    int count;    // of elements that are there

    __device__ explicit Piece(size_t len) {
        index = size_t(blockIdx.x) * POINTWISE_THREADS + threadIdx.x;
        count = index * V >= len ? 0 : len - index * V < V ? int(len - index * V) : V;
    }

    // Zeros where nothing is.
    __device__ Vector<T, V> load(const T* from) const {
        Vector<T, V> x;
        if (count == V) {
            x.load(from + index * V);
        } else {
#pragma unroll
            for (int i = 0; i < V; ++i) {
                if (i < count) x.at[i] = from[index * V + i];
            }
        }
        return x;
    }

    __device__ void store(const Vector<T, V>& x, T* to) const {
        if (count == V) {
            x.store(to + index * V);
        } else {
#pragma unroll
            for (int i = 0; i < V; ++i) {
                if (i < count) to[index * V + i] = x.at[i];
            }
        }
    }
};
