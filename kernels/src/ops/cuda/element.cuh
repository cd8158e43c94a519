// Elements in 16 and 32 bits: as f32 for arithmetic, and in vectors of 16 bytes for memory.
//
// The toolkit's cuda_bf16.h and cuda_fp16.h need headers that NVRTC does not carry, and thousands of lines to say what
// four instructions do.
#pragma once

struct bf16 {
    unsigned short bits;
};

struct f16 {
    unsigned short bits;
};

__device__ inline float to_f32(float x) { return x; }

__device__ inline float to_f32(bf16 x) { return __uint_as_float(unsigned(x.bits) << 16); }

__device__ inline float to_f32(f16 x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
}

__device__ inline void round_to(float x, float& y) { y = x; }

__device__ inline void round_to(float x, bf16& y) { asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x)); }

__device__ inline void round_to(float x, f16& y) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x)); }

// Two neighbours in one word, the lower address in the lower half.
template <class T> __device__ unsigned pack(float low, float high);

template <> __device__ inline unsigned pack<bf16>(float low, float high) {
    unsigned word;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
}

template <> __device__ inline unsigned pack<f16>(float low, float high) {
    unsigned word;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
}

// What moves so many bytes in one access.
template <int BYTES> struct Words;

template <> struct Words<16> {
    using Type = uint4;
};

template <> struct Words<8> {
    using Type = uint2;
};

// V neighbours, moved by one access: 16 bytes, or 8 beside 16 of a wider type, or one element.
template <class T, int V> struct Vector {
    using Access = typename Words<V * sizeof(T)>::Type;
    union {
        Access words;
        T at[V];
    };

    // Zeros.
    __device__ Vector() : words{} {}
    __device__ void load(const T* from) { words = *reinterpret_cast<const Access*>(from); }
    __device__ void store(T* to) const { *reinterpret_cast<Access*>(to) = words; }
    __device__ float operator[](int i) const { return to_f32(at[i]); }
    __device__ void set(int i, float x) { round_to(x, at[i]); }
};

template <class T> struct Vector<T, 1> {
    T at[1] = {};

    __device__ void load(const T* from) { at[0] = *from; }
    __device__ void store(T* to) const { *to = at[0]; }
    __device__ float operator[](int i) const { return to_f32(at[i]); }
    __device__ void set(int i, float x) { round_to(x, at[i]); }
};

// V columns of f32 from or to memory of any kind, by 16 bytes where V allows.
template <int V> __device__ void load_columns(float (&out)[V], const float* from) {
    if constexpr (V % 4 == 0) {
#pragma unroll
        for (int i = 0; i < V; i += 4) {
            const float4 x = *reinterpret_cast<const float4*>(from + i);
            out[i] = x.x, out[i + 1] = x.y, out[i + 2] = x.z, out[i + 3] = x.w;
        }
    } else {
        out[0] = from[0];
    }
}

template <int V> __device__ void store_columns(const float (&values)[V], float* to) {
    if constexpr (V % 4 == 0) {
#pragma unroll
        for (int i = 0; i < V; i += 4) {
            *reinterpret_cast<float4*>(to + i) = float4{values[i], values[i + 1], values[i + 2], values[i + 3]};
        }
    } else {
        to[0] = values[0];
    }
}
