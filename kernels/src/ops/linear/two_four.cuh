// A weight of which two of every four entries of a row are kept (kernels/src/weight/two_four.rs): as the sparse operand of
// tensor cores for Wᵀ, unpacked for W.
//
// A tile of 32×32 entries lies in memory as the lanes of a warp hold it, 1,024 bytes of values and 128 of places, so that
// `cp.async` copies it in whole lines and one access of 16 bytes a lane reads a fragment of 16 rows. `mma.sp` takes W only as
// A, the left side: the forward product is yᵀ = W·xᵀ, whose tiles are turned on their way out.
//
// dx = dy·W sums over W's rows, along which nothing is regular: the panel is unpacked, as that of packed.cuh is. Here a thread's
// 16 bytes are four pairs whose places are known without counting: each becomes the four entries of its group by two byte
// permutations that its places choose. A warp's lanes take their rows in an order in which neither the 16 bytes that eight of
// them read nor the 8 that sixteen of them write meet in a bank.
#pragma once

#include "cuda/product.cuh"
#include "linear/type.cuh"

constexpr int SIDE = 32; // rows and columns of a tile

// A tile in shared memory. Rows 16·f + … of it are fragment f: values[f][lane] are pairs of the lane's four groups, row lane/4
// (+ 8 for the second and fourth) and columns 4·(lane%4) (+ 16 for the third and fourth). places[lane] is what `mma.sp` reads
// of that lane.
struct TwoFourTile {
    uint4 values[2][32];
    unsigned places[32];
};

// A `[rows, cols]` weight in such tiles, row-major. FOREIGN: the stored type is not the one that is multiplied.
struct TwoFour {
    const uint4* values;
    const uint4* places;
    Type type;
    int rows, cols;

    __device__ int high() const { return (rows + SIDE - 1) / SIDE; }
    __device__ int wide() const { return (cols + SIDE - 1) / SIDE; }
};

// Starts to copy tiles at(0), at(1), … into shared memory.
template <int THREADS, int TILES, class At>
__device__ void load_tiles(unsigned char* panel, const TwoFour& from, At at) {
    constexpr int VALUES = sizeof(TwoFourTile::values) / 16, PLACES = sizeof(TwoFourTile::places) / 16;
    static_assert(THREADS % VALUES == 0 && TILES * VALUES % THREADS == 0 && TILES * PLACES <= THREADS, "whole turns");
    const unsigned to = shared_address(panel), thread = threadIdx.x;
#pragma unroll
    for (int i = 0; i < TILES * VALUES / THREADS; ++i) {
        const unsigned tile = i * (THREADS / VALUES) + thread / VALUES, chunk = thread % VALUES;
        copy_async(to + tile * sizeof(TwoFourTile) + chunk * 16, from.values + size_t(at(tile)) * VALUES + chunk, 16);
    }
    if (thread < TILES * PLACES) {
        const unsigned tile = thread / PLACES, chunk = thread % PLACES;
        copy_async(to + tile * sizeof(TwoFourTile) + (VALUES + chunk) * 16,
                   from.places + size_t(at(tile)) * PLACES + chunk, 16);
    }
}

// W as the sparse A of `multiply_sparse`: a panel is a column of tiles. Rows past the edge are those of the last tile again,
// for places must be places; their sums go nowhere.
template <class S> struct Compressed {
    static constexpr int TILES = S::TILE_M / SIDE, BYTES = TILES * sizeof(TwoFourTile);
    TwoFour from;
    int first;

    __device__ Compressed(const TwoFour& from, int row) : from(from), first(row / SIDE) {}
    __device__ void load(unsigned char* stage, int step) const {
        const int wide = from.wide(), last = from.high() - 1;
        load_tiles<S::THREADS, TILES>(stage, from, [=](int tile) { return min(first + tile, last) * wide + step; });
    }
};

// c[16×8] += a[16×32] · b[32×8], of which a's rows have two of every four entries, at the places that the two lanes
// 2·SELECTOR and the next of each quad tell for row lane/4 (lower half) and the eighth after it. Products are exact, sums in
// f32. Places ascend, as PTX calls `ordered_metadata` from version 8.5 on: what GPUs after Hopper need for their full speed.
template <class T, int SELECTOR>
__device__ void multiply_add_sparse(float (&c)[4], const uint4& a, const unsigned (&low)[2], const unsigned (&high)[2],
                                    unsigned places) {
#define MULTIPLY(TYPE)                                                                                                   \
    asm("mma.sp.sync.aligned.m16n8k32.row.col.f32." TYPE "." TYPE ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "            \
        "{%8, %9, %10, %11}, {%0, %1, %2, %3}, %12, %13;"                                                                \
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                                                 \
        : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(low[0]), "r"(low[1]), "r"(high[0]), "r"(high[1]), "r"(places),     \
          "n"(SELECTOR))
    if constexpr (Half<T>::TYPE == Type::BF16) {
        MULTIPLY("bf16");
    } else {
        MULTIPLY("f16");
    }
#undef MULTIPLY
}

// sums += A·B, as `multiply`, for a Compressed A; its values are rounded to T where they are `foreign`.
template <class T, class S, class A, class B>
__device__ void multiply_sparse(Sums<S>& sums, A& a, B& b, int steps, bool foreign, unsigned char* shared) {
    static_assert(TILE_K == SIDE && S::WARP_M % SIDE == 0, "a panel is as deep as a tile");
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const unsigned first = warp / S::WARPS_N * (S::WARP_M / SIDE);
    const Fragments<B, S::TILE_N, S::WARP_N / 16> b_at(warp % S::WARPS_N * S::WARP_N, false);
    each_panel<S>(a, b, steps, shared, [&](const unsigned char* of_a, const unsigned char* of_b, const Weaver<B>&) {
        const TwoFourTile* tiles = reinterpret_cast<const TwoFourTile*>(of_a) + first;
        const unsigned b_panel = shared_address(of_b);
        // [columns][k of 16][k of 8]
        unsigned b_part[S::WARP_N / 8][2][2];
#pragma unroll
        for (int j = 0; j < S::WARP_N / 16; ++j) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                unsigned part[4];
                b_at.read(part, b_panel, j, half);
                b_part[j * 2][half][0] = part[0], b_part[j * 2][half][1] = part[1];
                b_part[j * 2 + 1][half][0] = part[2], b_part[j * 2 + 1][half][1] = part[3];
            }
        }
#pragma unroll
        for (int i = 0; i < S::WARP_M / SIDE; ++i) {
            const unsigned places = tiles[i].places[lane];
            uint4 upper = tiles[i].values[0][lane], lower = tiles[i].values[1][lane];
            if (foreign) upper = from_other<T>(upper), lower = from_other<T>(lower);
#pragma unroll
            for (int j = 0; j < S::WARP_N / 8; ++j) {
                multiply_add_sparse<T, 0>(sums[i * 2][j], upper, b_part[j][0], b_part[j][1], places);
                multiply_add_sparse<T, 1>(sums[i * 2 + 1][j], lower, b_part[j][0], b_part[j][1], places);
            }
        }
    });
}

// The four entries of a group, from the two that are kept and their places.
__device__ inline uint2 spread_group(unsigned pair, unsigned places) {
    const unsigned first = places & 3, second = places >> 2 & 3;
    // Bytes 4 to 7 are zeros. Entries 0 and 1: the first at 0, the first at 1, neither, both.
    const unsigned long long of_low = 0x3210'4444'1044'4410;
    // Entries 2 and 3: both, neither, the second at 2, the second at 3.
    const unsigned long long of_high = 0x3244'4432'4444'3210;
    const unsigned low = second == 1 ? 3 : first, high = first == 2 ? 0 : second;
    return make_uint2(__byte_perm(pair, 0, unsigned(of_low >> low * 16)), __byte_perm(pair, 0, unsigned(of_high >> high * 16)));
}

// W as B of a product, for Wᵀ (ALONG_K_) a column of tiles a panel, for W a row, unpacked one step before it is multiplied. Tiles
// past the edge are the last one again; their sums go nowhere.
template <class T, class S, bool ALONG_K_ = false> struct Unpacked : AtOnce {
    static constexpr bool PACKED = true, ALONG_K = ALONG_K_;
    static constexpr int TILES = S::TILE_N / SIDE, BYTES = TILES * sizeof(TwoFourTile);
    static_assert(SIDE == TILE_K && S::THREADS / TILES == 64, "two warps unpack a tile, one a fragment");
    TwoFour from;
    int first;

    __device__ Unpacked(const TwoFour& from, int start) : from(from), first(start / SIDE) {}
    __device__ void clear(unsigned char*) const {}
    __device__ void load(unsigned char* stage, int step) const {
        const int wide = from.wide(), last = (ALONG_K ? from.high() : wide) - 1;
        load_tiles<S::THREADS, TILES>(stage, from, [=](int tile) {
            const int at = min(first + tile, last);
            return ALONG_K ? at * wide + step : step * wide + at;
        });
    }

    // The row of its fragment that the lane's quad takes. For W rows 0, 3, 4, 7, 1, 2, 5, 6: eight lanes have an even and an odd
    // one, sixteen one of each two. For Wᵀ, whose rows share lines in pairs, 0, 1, 4, 5, 2, 3, 6, 7.
    __device__ static unsigned row() {
        const unsigned quad = threadIdx.x % 32 / 4;
        return ALONG_K ? quad / 2 % 2 * 4 + quad / 4 * 2 + quad % 2 : quad % 4 * 2 + ((quad ^ quad / 4) & 1);
    }

    __device__ void unpack(unsigned char* stage, unsigned char* spare, int) const {
        const bool foreign = from.type != Half<T>::TYPE;
        unpack_groups(stage, spare,
                      [=](int, unsigned pair, unsigned) { return foreign ? from_other<T>(pair) : pair; });
    }

    // make(i, pair, places) gives what is written of the lane's i-th group, of which `pair` is stored: that of row `row()` and
    // columns 4·(lane%4), the one 8 rows below, and both 16 columns on.
    template <class Make>
    __device__ void unpack_groups(unsigned char* stage, unsigned char* spare, Make make) const {
        const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32, team = warp / 2, fragment = warp % 2;
        const unsigned row = this->row(), group = lane % 4;
        const TwoFourTile& tile = reinterpret_cast<const TwoFourTile*>(stage)[team];
        const uint4 values = tile.values[fragment][row * 4 + group];
        const uint2 places = *reinterpret_cast<const uint2*>(&tile.places[row * 4 + fragment * 2]);
        const unsigned pairs[4] = {values.x, values.y, values.z, values.w};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const unsigned mine = (i < 2 ? places.x : places.y) >> (i % 2 * 16 + group * 4);
            const unsigned pair = make(i, pairs[i], mine);
            const unsigned at = fragment * 16 + i % 2 * 8 + row, chunk = i / 2 * 2 + group / 2;
            unsigned char* to = ALONG_K ? spare + place<TILE_K / CHUNK>(team * SIDE + at, chunk)
                                        : spare + place<S::TILE_N / CHUNK>(at, team * (SIDE / CHUNK) + chunk);
            *reinterpret_cast<uint2*>(to + group % 2 * 8) = spread_group(pair, mine);
        }
    }

    __device__ const unsigned char* panel(const unsigned char*, const unsigned char* spare, int) const { return spare; }
};
