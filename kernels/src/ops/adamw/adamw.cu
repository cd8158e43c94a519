// AdamW over a list of tensors in one launch, and the mask of pruned gradients.
//
// PERP trains hundreds of tensors of a few thousand numbers: a launch for each would leave the GPU idle between them. One
// launch takes all: a block updates one chunk of one tensor, which it finds in a table. Blocks are alike whatever the
// tensors' sizes.
//
// Bound by memory. An element costs 28 bytes: value, gradient, m and v are read, value, m and v written, once each, in
// 16-byte vectors; the tables cost 8 bytes a chunk of 4,096 elements, and 40 a tensor. About 14 operations an element are
// far below what any GPU does in the time of 28 bytes, if root and division are the approximate ones: they are within
// 2 ulp, of an update that is itself some 1/1000 of the value it changes.

constexpr int THREADS = 256;
constexpr int CHUNK = 4096; // elements; the host cuts tensors by it

struct Tensor {
    float* value;
    const float* grad;
    float* m;
    float* v;
    unsigned long long len;
};

struct Chunk {
    unsigned tensor;
    unsigned index; // within the tensor
};

// What every element shares, computed by the host in f64.
struct Factors {
    float keep;       // 1 − η·λ
    float beta1;      // β₁
    float rest1;      // 1 − β₁
    float beta2;      // β₂
    float rest2;      // 1 − β₂
    float grad_scale; // c
    float step_size;  // η/(1 − β₁ᵗ)
    float root_scale; // 1/√(1 − β₂ᵗ)
    float eps;        // ε
};

__device__ float root(float x) {
    float y;
    asm("sqrt.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ void update(float& w, float g, float& m, float& v, const Factors& f) {
    g *= f.grad_scale;
    m = f.beta1 * m + f.rest1 * g;
    v = f.beta2 * v + f.rest2 * g * g;
    w = f.keep * w - __fdividef(f.step_size * m, root(v) * f.root_scale + f.eps);
}

extern "C" __global__ __launch_bounds__(THREADS) void adamw_step(const Tensor* tensors, const Chunk* chunks, Factors f) {
    const Chunk chunk = chunks[blockIdx.x];
    const Tensor t = tensors[chunk.tensor];
    const unsigned long long start = (unsigned long long)chunk.index * CHUNK;
    const int len = (int)min((unsigned long long)CHUNK, t.len - start);
    float *value = t.value + start, *m = t.m + start, *v = t.v + start;
    const float* grad = t.grad + start;
    for (int i = 4 * threadIdx.x; i < len; i += 4 * THREADS) {
        if (i + 4 <= len) {
            float4 w4 = *reinterpret_cast<const float4*>(value + i);
            const float4 g4 = *reinterpret_cast<const float4*>(grad + i);
            float4 m4 = *reinterpret_cast<const float4*>(m + i);
            float4 v4 = *reinterpret_cast<const float4*>(v + i);
            update(w4.x, g4.x, m4.x, v4.x, f);
            update(w4.y, g4.y, m4.y, v4.y, f);
            update(w4.z, g4.z, m4.z, v4.z, f);
            update(w4.w, g4.w, m4.w, v4.w, f);
            *reinterpret_cast<float4*>(value + i) = w4;
            *reinterpret_cast<float4*>(m + i) = m4;
            *reinterpret_cast<float4*>(v + i) = v4;
        } else {
            // The end of a tensor whose length is not a multiple of 4.
            for (int j = i; j < len; ++j) update(value[j], grad[j], m[j], v[j], f);
        }
    }
}

// values[i] = 0 where bit i%64 of word i/64 is clear. 8 bytes an element, and a bit.
extern "C" __global__ __launch_bounds__(THREADS) void apply_mask(float* values, const unsigned long long* mask,
                                                                 unsigned long long len) {
    const unsigned long long i = 4 * ((unsigned long long)blockIdx.x * THREADS + threadIdx.x);
    if (i >= len) return;
    const unsigned keep = (unsigned)(mask[i / 64] >> (i % 64)); // four neighbours share a word
    if (i + 4 <= len) {
        float4 x = *reinterpret_cast<const float4*>(values + i);
        x.x = keep & 1 ? x.x : 0.0f;
        x.y = keep & 2 ? x.y : 0.0f;
        x.z = keep & 4 ? x.z : 0.0f;
        x.w = keep & 8 ? x.w : 0.0f;
        *reinterpret_cast<float4*>(values + i) = x;
    } else {
        for (int j = 0; i + j < len; ++j) {
            if (!(keep >> j & 1)) values[i + j] = 0.0f;
        }
    }
}
