// Activation functions and the gate of the Llama family, with their gradients; pointwise.cuh says how.
//
// Bytes for N elements of size e, all of them the least: forward 2·N·e, backward 3·N·e, ReLU 2·N·e and N/8 each way with a
// bit an element, the gate 3·N·e and 5·N·e back.
//
// Exponentials and quotients are the approximate ones: within 2 ulp, where a GPU has time for some 25 instructions an
// element of bf16. Φ is the polynomial that the CPU takes. A thread's bits are one byte of the bitmap (of f32, half of
// one, which its neighbour completes), so that a warp's are whole sectors.
//
// Registers: 18 to 32 a thread on sm_80 and sm_90, up to 40 on sm_86 and sm_89, which have 1,536 threads: all that an SM has
// run at once. No shared memory.

#include "activation/functions.cuh"
#include "cuda/pointwise.cuh"

template <class T> __device__ void forward(int kind, const T* x, size_t len, T* y) {
    const Piece<T> piece(len);
    Vector<T, Piece<T>::V> v = piece.load(x);
#pragma unroll
    for (int i = 0; i < piece.V; ++i) v.set(i, value(kind, v[i]));
    piece.store(v, y);
}

// In dy's place.
template <class T> __device__ void backward(int kind, T* dy, const T* x, size_t len) {
    const Piece<T> piece(len);
    Vector<T, Piece<T>::V> d = piece.load(dy);
    const Vector<T, Piece<T>::V> v = piece.load(x);
#pragma unroll
    for (int i = 0; i < piece.V; ++i) d.set(i, slope(kind, v[i], d[i]));
    piece.store(d, dy);
}

// In place; bit i of `signs` is set where x_i > 0 or NaN, and clear past the end, up to a multiple of 64. Not where `signs`
// is null.
template <class T> __device__ void relu_in_place(T* x, size_t len, unsigned char* signs) {
    const Piece<T> piece(len);
    Vector<T, Piece<T>::V> v = piece.load(x);
    unsigned bits = 0;
#pragma unroll
    for (int i = 0; i < piece.V; ++i) {
        bits |= unsigned(!(v[i] <= 0.0f)) << i;
        v.set(i, relu(v[i]));
    }
    piece.store(v, x);
    if (!signs) return;
    if constexpr (piece.V == 4) {
        bits <<= 4 * (threadIdx.x % 2);
        bits |= __shfl_xor_sync(0xffffffff, bits, 1);
    }
    const size_t byte = piece.index * piece.V / 8;
    if (piece.index * piece.V % 8 == 0 && byte < (len + 63) / 64 * 8) signs[byte] = bits;
}

// In dy's place.
template <class T> __device__ void relu_backward(T* dy, const unsigned char* signs, size_t len) {
    const Piece<T> piece(len);
    if (piece.count == 0) return;
    Vector<T, Piece<T>::V> d = piece.load(dy);
    const unsigned bits = signs[piece.index * piece.V / 8] >> piece.index * piece.V % 8;
#pragma unroll
    for (int i = 0; i < piece.V; ++i) {
        if (!(bits >> i & 1)) d.set(i, 0.0f);
    }
    piece.store(d, dy);
}

// silu(gate)∘up
template <class T> __device__ void gate_forward(const T* gate, const T* up, size_t len, T* y) {
    const Piece<T> piece(len);
    Vector<T, Piece<T>::V> g = piece.load(gate);
    const Vector<T, Piece<T>::V> u = piece.load(up);
#pragma unroll
    for (int i = 0; i < piece.V; ++i) g.set(i, value(SILU, g[i]) * u[i]);
    piece.store(g, y);
}

// dgate = dy∘up∘silu′(gate), and dup = dy∘silu(gate) in dy's place.
template <class T> __device__ void gate_backward(const T* gate, const T* up, T* dy, size_t len, T* d_gate) {
    const Piece<T> piece(len);
    Vector<T, Piece<T>::V> g = piece.load(gate), d = piece.load(dy);
    const Vector<T, Piece<T>::V> u = piece.load(up);
#pragma unroll
    for (int i = 0; i < piece.V; ++i) {
        const float x = g[i], y = d[i];
        g.set(i, slope(SILU, x, y * u[i]));
        d.set(i, y * value(SILU, x));
    }
    piece.store(g, d_gate);
    piece.store(d, dy);
}

#define POINTWISE extern "C" __global__ __launch_bounds__(POINTWISE_THREADS) void

#define ACTIVATION(NAME, T)                                                                                              \
    POINTWISE activation_##NAME(int kind, const T* __restrict__ x, unsigned long long len, T* __restrict__ y) {          \
        forward(kind, x, len, y);                                                                                        \
    }                                                                                                                    \
    POINTWISE activation_backward_##NAME(int kind, T* dy, const T* __restrict__ x, unsigned long long len) {             \
        backward(kind, dy, x, len);                                                                                      \
    }                                                                                                                    \
    POINTWISE relu_##NAME(T* x, unsigned long long len, unsigned char* __restrict__ signs) {                             \
        relu_in_place(x, len, signs);                                                                                    \
    }                                                                                                                    \
    POINTWISE relu_backward_##NAME(T* dy, const unsigned char* __restrict__ signs, unsigned long long len) {             \
        relu_backward(dy, signs, len);                                                                                   \
    }                                                                                                                    \
    POINTWISE silu_gate_##NAME(const T* __restrict__ gate, const T* __restrict__ up, unsigned long long len,             \
                               T* __restrict__ y) {                                                                      \
        gate_forward(gate, up, len, y);                                                                                  \
    }                                                                                                                    \
    POINTWISE silu_gate_backward_##NAME(const T* __restrict__ gate, const T* __restrict__ up, T* dy,                     \
                                        unsigned long long len, T* __restrict__ d_gate) {                                \
        gate_backward(gate, up, dy, len, d_gate);                                                                        \
    }

ACTIVATION(bf16, bf16)
ACTIVATION(f16, f16)
ACTIVATION(f32, float)
