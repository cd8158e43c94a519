// Activation functions and their slopes, as activation.cu's header says.
#pragma once

// 1/(1 + e⁻ˣ); e⁻ˣ may be infinite.
__device__ inline float sigmoid(float x) { return __fdividef(1.0f, 1.0f + __expf(-x)); }

// √(8/π): twice the √(2/π) of u.
constexpr float SQRT_8_PI = 1.5957691f;
constexpr float GELU_CUBIC = 0.044715f;

// 2u = √(8/π)·(x + 0.044715·x³)
__device__ inline float twice_u(float x) { return x * (SQRT_8_PI * GELU_CUBIC * x * x + SQRT_8_PI); }

// e^(−x²/2)
__device__ inline float bell(float x) { return __expf(-0.5f * x * x); }

// Φ(x) by Abramowitz and Stegun 7.1.26, from `bell`: erf z = 1 − p(t)·e^(−z²), t = 1/(1 + 0.3275911·z), |error| ≤ 1.5e-7
// for z = |x|/√2; erf is odd.
__device__ inline float normal_cdf(float x, float bell) {
    const float t = __fdividef(1.0f, 0.3275911f * 0.70710678f * fabsf(x) + 1.0f);
    const float p = (((1.0614054f * t - 1.4531521f) * t + 1.4214138f) * t - 0.28449672f) * t + 0.25482959f;
    const float tail = 0.5f * p * t * bell;
    return x > 0.0f ? 1.0f - tail : tail;
}

// As in cuda.rs.
enum Kind { RELU, GELU, GELU_TANH, SILU };

// NaN stays NaN, so that a broken step shows in the loss.
__device__ inline float relu(float x) { return x <= 0.0f ? 0.0f : x; }

__device__ inline float value(int kind, float x) {
    if (kind == RELU) return relu(x);
    if (kind == GELU) return x * normal_cdf(x, bell(x));
    return x * sigmoid(kind == GELU_TANH ? twice_u(x) : x);
}

// dy·f′(x)
__device__ inline float slope(int kind, float x, float dy) {
    if (kind == RELU) return x <= 0.0f ? 0.0f : dy;
    if (kind == GELU) {
        const float b = bell(x);
        return dy * (x * b * 0.3989423f + normal_cdf(x, b));
    }
    if (kind == GELU_TANH) {
        // (1 + tanh u)/2 = σ(2u): f′ = σ(2u) + x·σ(2u)·(1 − σ(2u))·(2u)′
        const float s = sigmoid(twice_u(x));
        return dy * (s + x * s * (1.0f - s) * (SQRT_8_PI * 3.0f * GELU_CUBIC * x * x + SQRT_8_PI));
    }
    const float s = sigmoid(x);
    return dy * s * (x * (1.0f - s) + 1.0f);
}
