// The element type of a weight or of activations, where a kernel isn't compiled for one.
#pragma once

#include "cuda/element.cuh"

// As in cuda/mod.rs.
enum class Type : int { F32, F16, BF16 };

__device__ inline float read(const void* data, Type type, size_t i) {
    switch (type) {
    case Type::F16: return to_f32(static_cast<const f16*>(data)[i]);
    case Type::BF16: return to_f32(static_cast<const bf16*>(data)[i]);
    default: return static_cast<const float*>(data)[i];
    }
}

// Two neighbours from i on, which is even, in one access.
__device__ inline float2 read_two(const void* data, Type type, size_t i) {
    if (type == Type::F32) return static_cast<const float2*>(data)[i / 2];
    const unsigned both = static_cast<const unsigned*>(data)[i / 2];
    const unsigned short low = both, high = both >> 16;
    return type == Type::F16 ? make_float2(to_f32(f16{low}), to_f32(f16{high})) : make_float2(to_f32(bf16{low}), to_f32(bf16{high}));
}

__device__ inline void write(void* data, Type type, size_t i, float x) {
    switch (type) {
    case Type::F16: return round_to(x, static_cast<f16*>(data)[i]);
    case Type::BF16: return round_to(x, static_cast<bf16*>(data)[i]);
    default: static_cast<float*>(data)[i] = x;
    }
}

// The two types of 16 bits: what is multiplied, and what a weight may be stored in besides.
template <class T> struct Half;
template <> struct Half<bf16> {
    static constexpr Type TYPE = Type::BF16;
    using Other = f16;
};
template <> struct Half<f16> {
    static constexpr Type TYPE = Type::F16;
    using Other = bf16;
};

// Two neighbours of T from two of the other type, rounded.
template <class T> __device__ unsigned from_other(unsigned pair) {
    using Other = typename Half<T>::Other;
    const Other low{static_cast<unsigned short>(pair)}, high{static_cast<unsigned short>(pair >> 16)};
    return pack<T>(to_f32(low), to_f32(high));
}

template <class T> __device__ uint4 from_other(const uint4& pairs) {
    return {from_other<T>(pairs.x), from_other<T>(pairs.y), from_other<T>(pairs.z), from_other<T>(pairs.w)};
}
