// Sums of activations, in place; pointwise.cuh says how.
//
// Bytes for N elements of size e: 3·N·e, which is the least. Registers: 18 to 30 a thread, no shared memory: all threads
// that an SM has run at once.

#include "cuda/pointwise.cuh"

// sum += x, rounded once
template <class T> __device__ void add(T* sum, const T* x, size_t len) {
    const Piece<T> piece(len);
    Vector<T, Piece<T>::V> a = piece.load(sum);
    const Vector<T, Piece<T>::V> b = piece.load(x);
#pragma unroll
    for (int i = 0; i < piece.V; ++i) a.set(i, a[i] + b[i]);
    piece.store(a, sum);
}

#define ADD(NAME, T)                                                                                                     \
    extern "C" __global__ __launch_bounds__(POINTWISE_THREADS) void add_##NAME(T* sum, const T* __restrict__ x,          \
                                                                               unsigned long long len) {                 \
        add(sum, x, len);                                                                                                \
    }

ADD(bf16, bf16)
ADD(f16, f16)
ADD(f32, float)
