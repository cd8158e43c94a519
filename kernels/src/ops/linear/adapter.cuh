// The adapter as more panels of the same product: y = x·Wᵀ + u·Bᵀ, dx = dy·W + v·A, with u, v, A and B in f32.
//
// A number in f32 is the sum of two in bf16 but for 2⁻¹⁶ of it (in f16 2⁻²², or 2⁻²⁵ where that is more). Of the four products
// of the parts three are taken, hi·hi + lo·hi + hi·lo: the adapter is as precise as its factors are, and the product's k
// grows by thrice the rank, one or two panels of hundreds. The factors are split on their way into shared memory.
#pragma once

#include "cuda/product.cuh"

// What is left of x once `high` has been taken: low is the nearest T to x − high.
template <class T> __device__ T part(float x, bool low) {
    T high;
    round_to(x, high);
    if (low) round_to(x - to_f32(high), high);
    return high;
}

// The k of the adapter's product: three parts of `padded` each, the rank rounded up to whole chunks.
struct Rank {
    int rank, padded;

    __device__ explicit Rank(int rank) : rank(rank), padded((rank + CHUNK - 1) / CHUNK * CHUNK) {}
    __device__ int panels() const { return ::panels(3 * padded); }
};

// A `[rank, width]` or `[height, rank]` factor as a panel with rows of CHUNKS chunks. LOW: which of the three parts is low.
template <class T, int THREADS, int EXTENT, bool ALONG_K_, int LOW> struct Split : Plain {
    static constexpr bool ALONG_K = ALONG_K_;
    static constexpr int BYTES = EXTENT * TILE_K * 2, CHUNKS = (ALONG_K ? TILE_K : EXTENT) / CHUNK;
    const float* data;
    int extent, first; // of rows or columns
    Rank rank;

    __device__ Split(const float* data, int extent, Rank rank, int first)
        : data(data), extent(extent), first(first), rank(rank) {}

    // Half a chunk at a time: neighbouring threads then read neighbouring 16 bytes, and a warp whole sectors.
    __device__ void load(unsigned char* stage, int step) const {
        constexpr int HALF = CHUNK / 2, HALVES = 2 * CHUNKS; // of a row
#pragma unroll 1
        for (unsigned at = threadIdx.x; at < BYTES / 8; at += THREADS) {
            const int r = at / HALVES, c = at % HALVES * HALF;
            // Where the half begins in the product, and in the factor. A part is whole chunks, and so are A's rows.
            const int outside = first + (ALONG_K ? r : c), k = step * TILE_K + (ALONG_K ? c : r);
            const int which = k / rank.padded, j = k % rank.padded;
            const float* from = data + (ALONG_K ? size_t(outside) * rank.rank + j : size_t(j) * extent + outside);
            const int count = outside >= extent || which > 2 ? 0 : ALONG_K ? rank.rank - j : j < rank.rank ? HALF : 0;
            float x[HALF] = {};
            if (!ALONG_K || rank.rank % HALF == 0) {
                const float4 four = count > 0 ? *reinterpret_cast<const float4*>(from) : float4{};
                x[0] = four.x, x[1] = four.y, x[2] = four.z, x[3] = four.w;
            } else {
#pragma unroll
                for (int e = 0; e < HALF; ++e) x[e] = e < count ? from[e] : 0.0f;
            }
            Vector<T, HALF> half;
#pragma unroll
            for (int e = 0; e < HALF; ++e) half.at[e] = part<T>(x[e], which == LOW);
            half.store(reinterpret_cast<T*>(stage + place<CHUNKS>(r, c / CHUNK) + c % CHUNK * 2));
        }
    }
};

// An operand whose panels are counted from `begin`.
template <class Operand> struct Later : Operand {
    static_assert(!Operand::WOVEN, "pieces would be counted from the first panel");
    int begin;

    __device__ Later(const Operand& operand, int begin) : Operand(operand), begin(begin) { Operand::skip(begin); }
    __device__ void load(unsigned char* stage, int step) { Operand::load(stage, begin + step); }
    __device__ void unpack(unsigned char* stage, unsigned char* spare, int step) const {
        Operand::unpack(stage, spare, begin + step);
    }
};

// `steps` panels of the first operand, then those of the second.
template <class First, class Second> struct Then {
    static_assert(First::ALONG_K == Second::ALONG_K && !Second::PACKED, "panels of one kind");
    static constexpr bool ALONG_K = First::ALONG_K, PACKED = First::PACKED, WOVEN = First::WOVEN;
    static constexpr int BYTES = First::BYTES > Second::BYTES ? First::BYTES : Second::BYTES, BESIDE = First::BESIDE;
    using Unpacking = typename First::Unpacking;
    First first;
    Second second;
    int steps;

    __device__ Then(const First& first, const Second& second, int steps) : first(first), second(second), steps(steps) {}
    __device__ void load(unsigned char* stage, int step) {
        if (step < steps) {
            first.load(stage, step);
        } else {
            second.load(stage, step - steps);
        }
    }
    __device__ void clear(unsigned char* stage) const { first.clear(stage); }
    __device__ void unpack(unsigned char* stage, unsigned char* spare, int step) const {
        if (step < steps) first.unpack(stage, spare, step);
    }
    __device__ bool never(int piece) const { return first.never(piece); }
    __device__ void unpack_piece(Unpacking& state, int piece, unsigned char* stage, unsigned char* spare, int step) const {
        first.unpack_piece(state, piece, stage, spare, step);
    }
    __device__ const unsigned char* panel(const unsigned char* stage, const unsigned char* spare, int step) const {
        return step < steps ? first.panel(stage, spare, step) : stage;
    }
};
