// Kernels over a list of tensors in one launch.
//
// PERP trains hundreds of tensors of a few thousand numbers: a launch for each would leave the GPU idle between them. A
// block takes one chunk of one tensor, which it finds in a table: blocks are alike whatever the tensors' sizes. The table
// costs 8 bytes a chunk of 4,096 elements, and a few words a tensor.
#pragma once

constexpr int TENSOR_THREADS = 256;
constexpr int CHUNK = 4096; // elements; the host cuts tensors by it

struct Chunk {
    unsigned tensor;
    unsigned index; // within the tensor
};

// The chunks, which follow the tensors in the table.
template <class Tensor> __device__ const Chunk* chunks(const Tensor* tensors, int count) {
    return reinterpret_cast<const Chunk*>(tensors + count);
}

// Four neighbours' bits of a mask, from element `i` on, a multiple of four; all set where there is no mask.
__device__ inline unsigned kept(const unsigned long long* mask, unsigned long long i) {
    return mask ? unsigned(mask[i / 64] >> i % 64) : 15;
}

__device__ inline float4 keep(float4 x, unsigned kept) {
    return {kept & 1 ? x.x : 0.0f, kept & 2 ? x.y : 0.0f, kept & 4 ? x.z : 0.0f, kept & 8 ? x.w : 0.0f};
}

// What is known of all gradients together. It stays in the GPU's memory, where AdamW reads it.
struct GradNorm {
    double norm;
    unsigned long long first_non_finite; // a tensor's number, or ALL_FINITE
    double scale;                        // the clip factor
};

constexpr unsigned long long ALL_FINITE = ~0ull;
