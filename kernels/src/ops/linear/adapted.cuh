// A weight with an adapter inside, W + s·M⊙(B·A) or W⊙(B·A), as B of a product, for Wᵀ and W alike.
//
// What is kept of W is changed where it is unpacked (packed.cuh, two_four.cuh), a step before it is multiplied: no entry ever
// leaves shared memory, and one is rounded once, to the type that is multiplied. The sum over the rank is a small product on
// tensor cores whose sums lie in a warp as the warp unpacks: of a block of 8×8 each lane has row l/4 and columns 2·(l%4) and
// the next. Where 2:4 weights are unpacked by groups of four columns, the factor's columns are taken in an order that gives a
// lane its groups.
//
// Factors in f32 are the sum of two parts in bf16 but for 2⁻¹⁶, in either type of x, for f32's range; three of the four
// products of the parts are taken. `adapted_split` does that once for a product and leaves them in global memory in the order
// in which lanes take them: 64 bytes a feature and 16 of the rank, which L1 serves to the warps of a block.
#pragma once

#include "linear/packed.cuh"
#include "linear/two_four.cuh"

constexpr int RANKS = 16; // of the rank, in a chunk

// As in cuda/adapted.rs. Factors as `adapted_split` leaves them: for each chunk of the rank and each feature, of which there
// are whole tiles, four times ranks 2q and 2q + 1, 2q + 8 and 2q + 9, and their low parts.
struct Inside {
    const uint4 *rows, *cols; // of B's rows and A's columns
    int height, width;        // features of a chunk
    int chunks, scaled;
    float scale;
    int unused;

    // What an entry w becomes, p being that of B·A.
    __device__ float operator()(float w, float p) const { return scaled ? w * p : fmaf(scale, p, w); }

    // Entries of B·A in rows `row` and row + 8 of the lane's quad: of the t-th of four products columns col(t) of the lane's
    // quad, and so p[t][0] and [1] columns that quads 2·(l%4) and the next have, p[t][2] and [3] the same of row + 8.
    template <class Col> __device__ void form(float (&p)[4][4], int row, Col col) const {
        const unsigned part = threadIdx.x % 4;
        const uint4 *of_row = rows + size_t(row) * 4 + part, *of_col = cols + part;
#pragma unroll 1
        for (int chunk = 0; chunk < chunks; ++chunk) {
            const uint4 upper = __ldg(of_row), lower = __ldg(of_row + 8 * 4);
            const unsigned high[4] = {upper.x, lower.x, upper.y, lower.y};
            const unsigned low[4] = {upper.z, lower.z, upper.w, lower.w};
#pragma unroll
            for (int t = 0; t < 4; ++t) {
                const uint4 c = __ldg(of_col + size_t(col(t)) * 4);
                multiply_add<bf16>(p[t], low, c.x, c.y);
                multiply_add<bf16>(p[t], high, c.z, c.w);
                multiply_add<bf16>(p[t], high, c.x, c.y);
            }
            of_row += size_t(height) * 4, of_col += size_t(width) * 4;
        }
    }
};

// A stored entry of 16 bits; `foreign`: in the other type than T.
template <class T> __device__ float widen(unsigned short bits, bool foreign) {
    using Other = typename Half<T>::Other;
    return foreign ? to_f32(Other{bits}) : to_f32(T{bits});
}

template <class T> __device__ float widen(float x, bool) { return x; }

// In blocks, or dense where ANY: kept is then what is not zero.
template <class T, class S, bool ALONG_K_, bool ANY> struct AdaptedBlocks : Packed<T, S, ALONG_K_, ANY> {
    using Base = Packed<T, S, ALONG_K_, ANY>;
    static constexpr bool WOVEN = false;
    Inside inside;

    __device__ AdaptedBlocks(const Stored& from, const Inside& inside, int start) : Base(from, start), inside(inside) {}

    __device__ void unpack(unsigned char* stage, unsigned char* spare, int step) const {
        if (ANY && this->from.type == Type::F32) {
            unpack_inside<float>(stage, spare, step);
        } else {
            unpack_inside<unsigned short>(stage, spare, step);
        }
    }

    template <class V> __device__ void unpack_inside(unsigned char* stage, unsigned char* spare, int step) const {
        const unsigned lane = threadIdx.x % 32, half = threadIdx.x / 32 % 2;
        // Of a tile past the edge nothing is kept; the last one's factors are there to read.
        const int high = (this->from.rows + SIDE - 1) / SIDE;
        const int tile_row = min(ALONG_K_ ? this->first : step, high - 1);
        const int tile_col = min(ALONG_K_ ? step : this->first, this->wide - 1);
        float p[4][4] = {};
        inside.form(p, tile_row * SIDE + half * 16 + lane / 4, [=](int t) { return tile_col * SIDE + t * 8 + lane / 4; });
        const bool foreign = this->from.type != Half<T>::TYPE;
        this->template unpack_blocks<V>(stage, spare, step, [&](int i, V v, V w, unsigned pair) {
            const float first = widen<T>(v, foreign), second = widen<T>(w, foreign);
            // A stored zero of a dense weight is none of its entries.
            if (this->dense()) pair = (first != 0.0f) | (second != 0.0f) << 1;
            const float high = this->dense() || pair & 1 ? second : first;
            const float* of_pair = &p[i % 4][i / 4 * 2];
            return ::pack<T>(pair & 1 ? inside(first, of_pair[0]) : 0.0f, pair & 2 ? inside(high, of_pair[1]) : 0.0f);
        });
    }
};

template <class T, class S, bool ALONG_K_> struct AdaptedTwoFour : Unpacked<T, S, ALONG_K_> {
    using Base = Unpacked<T, S, ALONG_K_>;
    Inside inside;

    __device__ AdaptedTwoFour(const TwoFour& from, const Inside& inside, int start) : Base(from, start), inside(inside) {}

    __device__ void unpack(unsigned char* stage, unsigned char* spare, int step) const {
        const unsigned quad = threadIdx.x % 32 / 4, team = threadIdx.x / 64, fragment = threadIdx.x / 32 % 2;
        const TwoFour& from = this->from;
        const int across = min(this->first + int(team), (ALONG_K_ ? from.high() : from.wide()) - 1);
        const int tile_row = ALONG_K_ ? across : step, tile_col = ALONG_K_ ? step : across;
        // Of 16 columns products 0 and 1, of the others 2 and 3: the first takes the first two columns of each group, the
        // second the last two.
        const int col = tile_col * SIDE + quad / 2 * 4 + quad % 2;
        float p[4][4] = {};
        inside.form(p, tile_row * SIDE + fragment * 16 + this->row(), [=](int t) { return col + t / 2 * 16 + t % 2 * 2; });
        const bool foreign = from.type != Half<T>::TYPE;
        this->unpack_groups(stage, spare, [&](int i, unsigned pair, unsigned places) {
            const float(&left)[4] = p[i / 2 * 2], (&right)[4] = p[i / 2 * 2 + 1];
            const int at = i % 2 * 2;
            const unsigned first = places & 3, second = places >> 2 & 3;
            // The first is never the last column of its group, nor the second the first.
            const float of_first = first == 0 ? left[at] : first == 1 ? left[at + 1] : right[at];
            const float of_second = second == 1 ? left[at + 1] : second == 2 ? right[at] : right[at + 1];
            return ::pack<T>(inside(widen<T>(static_cast<unsigned short>(pair), foreign), of_first),
                             inside(widen<T>(static_cast<unsigned short>(pair >> 16), foreign), of_second));
        });
    }
};
