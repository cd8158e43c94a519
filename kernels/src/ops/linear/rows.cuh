// Neighbouring columns of a row-major matrix in f32, of `width` columns, as lanes have sums of a product and its factors: in one
// access where rows are whole pairs, so that a quad moves a sector, and not two halves of it twice. Column `col` is even.
#pragma once

__device__ inline void store_two(float* row, int col, int width, float low, float high) {
    if (width % 2 == 0) {
        // As one word: the compiler makes two accesses of some float2s.
        const unsigned long long upper = __float_as_uint(high);
        if (col < width) *reinterpret_cast<unsigned long long*>(row + col) = upper << 32 | __float_as_uint(low);
        return;
    }
    if (col < width) row[col] = low;
    if (col + 1 < width) row[col + 1] = high;
}

// Zeros past the end.
__device__ inline float2 load_two(const float* row, int col, int width) {
    if (width % 2 == 0) return col < width ? *reinterpret_cast<const float2*>(row + col) : make_float2(0.0f, 0.0f);
    return make_float2(col < width ? row[col] : 0.0f, col + 1 < width ? row[col + 1] : 0.0f);
}
