// What becomes of a layer's z = x·Wᵀ + u·Bᵀ + b on its way to memory: y = f(z) + r.
//
// z is rounded before f takes it, and f(z) before r is added, as by kernels of their own: what f's gradient will see is what
// f saw. They would read y and write it again for f, and so for r, 8 bytes an element; here r's 2 are read, and nothing
// else. For the gradient ReLU keeps a bit of each element, a byte a chunk, eight of which a warp writes to a sector; the
// others' z has no other home than its own 2 bytes.
#pragma once

#include "activation/functions.cuh"
#include "cuda/product.cuh"

constexpr int NO_FUNCTION = -1;

// As in cuda/ending.rs.
template <class T> struct Ending {
    const T* residual;
    void* saved; // z, of ReLU its signs as in activation.cu, or null
    int function; // a Kind, or NO_FUNCTION
    int unused;

    __device__ bool changes() const { return function != NO_FUNCTION || residual; }

    __device__ void load(Vector<T, CHUNK>& r, size_t at) const {
        if (residual) r.load(residual + at);
    }

    // Elements at … at + 7 of `len`.
    __device__ void operator()(Vector<T, CHUNK>& y, const Vector<T, CHUNK>& r, size_t at, size_t len) const {
        if (function != NO_FUNCTION) {
            if (saved) save(y, at, len);
#pragma unroll
            for (int i = 0; i < CHUNK; ++i) y.set(i, value(function, y[i]));
        }
        if (!residual) return;
#pragma unroll
        for (int i = 0; i < CHUNK; ++i) y.set(i, y[i] + r[i]);
    }

    __device__ void save(const Vector<T, CHUNK>& z, size_t at, size_t len) const {
        if (function != RELU) return z.store(static_cast<T*>(saved) + at);
        unsigned signs = 0;
#pragma unroll
        for (int i = 0; i < CHUNK; ++i) signs |= unsigned(!(z[i] <= 0.0f)) << i;
        unsigned char* bytes = static_cast<unsigned char*>(saved);
        bytes[at / 8] = signs;
        // The last one clears what is past the end of the last word.
        if (at + CHUNK < len) return;
        for (size_t byte = len / 8; byte % 8 != 0; ++byte) bytes[byte] = 0;
    }
};
