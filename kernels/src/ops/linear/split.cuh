// Numbers in f32 as sums of two in bf16, but for 2⁻¹⁶ of them, over f32's range: what a product of tensor cores takes instead.
#pragma once

#include "cuda/matrix.cuh"

// Two neighbours' high parts in one word, and their low parts in another.
struct Split2 {
    unsigned high, low;

    Split2() = default;
    __device__ Split2(float x, float y) {
        high = pack<bf16>(x, y);
        low = pack<bf16>(x - __uint_as_float(high << 16), y - __uint_as_float(high & 0xffff0000));
    }
};

// Of four numbers: high parts of two and of the others, then their low parts.
struct Split4 {
    uint4 words;

    __device__ explicit Split4(const float (&x)[4]) {
        const Split2 first(x[0], x[1]), second(x[2], x[3]);
        words = make_uint4(first.high, second.high, first.low, second.low);
    }
};
