// AdamW over a list of tensors in one launch (tensors.cuh), and the mask of pruned values.
//
// The clip factor, and whether there is a step at all, are read from memory, where grad_norm.cu left them: the host need
// not wait for the norm between backward and the step.
//
// Bound by memory. An element costs 28 bytes: value, gradient, m and v are read, value, m and v written, once each, in
// 16-byte vectors, and a bit where there is a mask. About 14 operations an element are far below what any GPU does in the
// time of 28 bytes, if root and division are the approximate ones: they are within 2 ulp, of an update that is itself some
// 1/1000 of the value it changes.
//
// Registers: 18 to 32 a thread on sm_80 and sm_90, up to 40 on sm_86 and sm_89, which have 1,536 threads: all that an SM has
// run at once. No shared memory.

#include "cuda/tensors.cuh"

struct Tensor {
    float* value;
    const float* grad;
    const unsigned long long* mask; // may be null
    float* m;
    float* v;
    unsigned long long len;
};

// What every element shares, computed by the host in f64. It changes from step to step, and so lies in memory: a launch is the same
// in each, as a graph's is.
struct Factors {
    float keep;       // 1 − η·λ
    float beta1;      // β₁
    float rest1;      // 1 − β₁
    float beta2;      // β₂
    float rest2;      // 1 − β₂
    float step_size;  // η/(1 − β₁ᵗ)
    float root_scale; // 1/√(1 − β₂ᵗ)
    float eps;        // ε
};

__device__ float root(float x) {
    float y;
    asm("sqrt.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// g is scaled by c already.
__device__ void update(float& w, float g, float& m, float& v, const Factors& f) {
    m = f.beta1 * m + f.rest1 * g;
    v = f.beta2 * v + f.rest2 * g * g;
    w = f.keep * w - __fdividef(f.step_size * m, root(v) * f.root_scale + f.eps);
}

// Nothing changes where a gradient is not finite.
extern "C" __global__ __launch_bounds__(TENSOR_THREADS) void adamw_step(const Tensor* __restrict__ tensors, int count,
                                                                        const GradNorm* __restrict__ norm,
                                                                        const Factors* __restrict__ factors) {
    if (norm->first_non_finite != ALL_FINITE) return;
    const Factors f = *factors;
    const float scale = norm->scale;
    const Chunk chunk = chunks(tensors, count)[blockIdx.x];
    const Tensor t = tensors[chunk.tensor];
    const unsigned long long start = (unsigned long long)chunk.index * CHUNK;
    const int len = (int)min((unsigned long long)CHUNK, t.len - start);
    float *value = t.value + start, *m = t.m + start, *v = t.v + start;
    const float* grad = t.grad + start;
    for (int i = 4 * threadIdx.x; i < len; i += 4 * TENSOR_THREADS) {
        const unsigned bits = kept(t.mask, start + i);
        if (i + 4 <= len) {
            float4 w4 = *reinterpret_cast<const float4*>(value + i);
            const float4 g4 = keep(*reinterpret_cast<const float4*>(grad + i), bits);
            float4 m4 = *reinterpret_cast<const float4*>(m + i);
            float4 v4 = *reinterpret_cast<const float4*>(v + i);
            update(w4.x, scale * g4.x, m4.x, v4.x, f);
            update(w4.y, scale * g4.y, m4.y, v4.y, f);
            update(w4.z, scale * g4.z, m4.z, v4.z, f);
            update(w4.w, scale * g4.w, m4.w, v4.w, f);
            *reinterpret_cast<float4*>(value + i) = w4;
            *reinterpret_cast<float4*>(m + i) = m4;
            *reinterpret_cast<float4*>(v + i) = v4;
        } else {
            // The end of a tensor whose length is not a multiple of 4.
            for (int j = 0; i + j < len; ++j) {
                update(value[i + j], bits >> j & 1 ? scale * grad[i + j] : 0.0f, m[i + j], v[i + j], f);
            }
        }
    }
}

// values[i] = 0 where bit i%64 of word i/64 is clear. 8 bytes an element, and a bit.
extern "C" __global__ __launch_bounds__(TENSOR_THREADS) void apply_mask(float* values, const unsigned long long* mask,
                                                                        unsigned long long len) {
    const unsigned long long i = 4 * ((unsigned long long)blockIdx.x * TENSOR_THREADS + threadIdx.x);
    if (i >= len) return;
    const unsigned bits = kept(mask, i);
    if (i + 4 <= len) {
        float4* place = reinterpret_cast<float4*>(values + i);
        *place = keep(*place, bits);
    } else {
        for (int j = 0; i + j < len; ++j) {
            if (!(bits >> j & 1)) values[i + j] = 0.0f;
        }
    }
}
