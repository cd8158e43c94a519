// Every product of linear layers by plain multiply-adds: C = scale·(A·B + A₂·B₂) + bias, or C += that.
//
// For activations in f32, and for features that are not multiples of 8, which tensor cores' loads can't take: a block of 256
// threads computes 64×64 of C, each thread 4×4 of it, from panels 16 deep in 8 KiB of shared memory. Operands are of any type
// and lie anywhere: strides say how, and each entry is read by itself, also those of a packed weight, whose values are found
// by counting bits. Sums are fused multiply-adds in f32, in order of k.

#include "linear/plain.cuh"

#define LINEAR(NAME, B)                                                                                                  \
    extern "C" __global__ __launch_bounds__(THREADS) void NAME(                                                          \
        Side a, B b, Side a2, Side b2, int m, int n, int k, int k2, float scale, const float* __restrict__ bias,         \
        Target c) {                                                                                                      \
        product(a, b, a2, b2, m, n, k, k2, scale, bias, c);                                                              \
    }

LINEAR(linear_plain, Side)
LINEAR(linear_plain_packed, PackedSide)
LINEAR(linear_plain_two_four, TwoFourSide)
