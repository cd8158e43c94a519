// f32 rounded to 16 bits: weights that train, for a library that multiplies operands of one type.
//
// A thread takes four neighbours: a warp reads 512 bytes and writes 256, in whole sectors. Bytes for N numbers: 6·N, the
// least. Registers: few; occupancy is full.

#include "cuda/element.cuh"

// As in cuda/library.rs.
constexpr int THREADS = 256, EACH = 4;

// `len` is a multiple of EACH.
template <class T> __device__ void round_all(const float* from, size_t len, T* to) {
    const size_t i = (size_t(blockIdx.x) * THREADS + threadIdx.x) * EACH;
    if (i >= len) return;
    float values[EACH];
    load_columns<EACH>(values, from + i);
    Vector<T, EACH> out;
#pragma unroll
    for (int e = 0; e < EACH; ++e) out.set(e, values[e]);
    out.store(to + i);
}

#define ROUND(T)                                                                                                         \
    extern "C" __global__ __launch_bounds__(THREADS) void round_##T(const float* __restrict__ from,                      \
                                                                    unsigned long long len, T* __restrict__ to) {        \
        round_all<T>(from, len, to);                                                                                     \
    }

ROUND(bf16)
ROUND(f16)
