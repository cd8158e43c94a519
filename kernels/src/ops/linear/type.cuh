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

__device__ inline void write(void* data, Type type, size_t i, float x) {
    switch (type) {
    case Type::F16: return round_to(x, static_cast<f16*>(data)[i]);
    case Type::BF16: return round_to(x, static_cast<bf16*>(data)[i]);
    default: static_cast<float*>(data)[i] = x;
    }
}
